"""What can go wrong with each kind of input, and the commands that meet it then.

A group takes a copy of the project and a source of chance, breaks something, and yields what it did and the commands to try.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import ODD_VALUES, break_file, break_folder, break_json, toml_value
from tests.fuzz.project import POLICY, RUN, write_toml

Commands = list[tuple[object, ...]]
Group = Callable[[Path, random.Random], tuple[str, Commands]]

NUMBERS = {
    "run": (
        ("", "base_seed"), ("", "samples_per_prompt"), ("", "shard_size"), ("", "workers"), ("", "retention_days"),
        ("model", "size"), ("model", "text_tokens"), ("generation", "steps"), ("generation", "guidance_scale"),
        ("generation", "true_guidance_scale"), ("generation", "guidance_until"), ("generation", "eta"),
        ("generation", "rows"), ("generation", "threads"),
    ),
    "policy": (
        ("copies", "threshold"), ("copies", "k"), ("copies", "hues"), ("marks", "threshold"), ("codes", "threshold"),
        ("text", "threshold"), ("unsafe", "threshold"), ("early", "threshold"), ("early", "rollback"), ("", "max_evals"),
    ),
}  # fmt: skip
NEVER_A_NUMBER = (math.nan, math.inf, -math.inf, 1e300, -1e300, 2**70, -(2**70))  # in range for no key there is
SHARES = {"threshold", "eta", "guidance_until", "rollback"}


def run_file(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """A run file with an odd value, an odd key, odd syntax or odd bytes."""
    what = _break_toml(project / "run.toml", RUN, rng)
    return what, [("run", project / "run.toml", "--dry-run"), ("run", project / "run.toml")]


def policy(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """A policy likewise."""
    what = _break_toml(project / "policy.toml", POLICY, rng)
    return what, [("run", project / "run.toml", "--dry-run"), ("run", project / "run.toml")]


def out_of_range(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """A number that no key can mean: it must be refused, whatever the key."""
    name = rng.choice(("run", "policy"))
    table, key = rng.choice(NUMBERS[name])
    value: Any = rng.choice((*NEVER_A_NUMBER, *((85, 50.0, -0.3, 76.7) if key in SHARES else (-30, -1.5))))
    tables = {name: dict(values) for name, values in (RUN if name == "run" else POLICY).items()}
    tables.setdefault(table, {})[key] = value
    write_toml(project / f"{name}.toml", tables)
    return f"{table}.{key} = {value}", [("run", project / "run.toml", "--dry-run")]


def prompts(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """Prompts as spreadsheets, scripts and editors write them, and worse."""
    kind = rng.choice(("csv", "jsonl", "txt", "parquet", "bytes"))
    path = project / ("prompts.csv" if kind == "bytes" else f"prompts.{kind}")
    cells = (
        "cat",
        "",
        " ",
        '"',
        "a;b",
        "a,b",
        "a\nb",
        "\x00",
        "x" * 3000,
        "7.0",
        "-1",
        "1e5",
        "nan",
        "\x1b[31m",
        "猫",
        "\u202e",
    )
    if kind == "bytes":
        what = break_file(path, rng)
    elif kind == "csv":
        mark = rng.choice((",", ";", "\t", "|"))
        header = rng.choice(
            ("prompt,key,seed", "prompt,key,seed", "prompt", "caption,key", "prompt,prompt", "", "key,seed", "prompt,key,extra")
        )
        lines = [mark.join(rng.choice(cells) for _ in header.split(",")) for _ in range(rng.randrange(4))]
        text = rng.choice(("\n", "\r\n", "\r")).join([header.replace(",", mark), *lines])
        path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1")), errors="replace"))
        what = f"csv {text[:40]!r}"
    elif kind == "jsonl":
        rows = [{"prompt": rng.choice((*cells, *ODD_VALUES)), "seed": rng.choice((1, 7.0, *ODD_VALUES))} for _ in range(3)]
        lines = [json.dumps(row) for row in rows] + [rng.choice(("", "{", "[]", "null", '{"prompt": "cat"}', "[" * 5000))]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        what = f"jsonl {lines[0][:40]}"
    elif kind == "txt":
        path.write_bytes("\n".join(rng.choice(cells) for _ in range(3)).encode() + rng.choice((b"", b"\xff\xfe", b"\x00")))
        what = "txt"
    else:
        what = _odd_parquet(path, rng)
    tables = {**RUN, "": {**RUN[""], "prompts": path.name}}
    write_toml(project / "run.toml", tables)
    return what, [("run", project / "run.toml", "--dry-run"), ("run", project / "run.toml")]


def pictures(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """Works to be indexed, of which some are no pictures, broken pictures, or sheets that do not fit them."""
    works = project / "works"
    what = []
    for _ in range(rng.randrange(1, 3)):
        kind = rng.choice(("broken", "bomb", "text", "link", "loop", "sheet", "name", "empty folder", "svg"))
        if kind == "broken":
            whole = sorted(path for path in works.glob("*.png") if path.is_file())
            what.append(break_file(rng.choice(whole), rng) if whole else "nothing left")
        elif kind == "bomb":
            (works / "bomb.png").write_bytes(_png_header(30000, 30000))
        elif kind == "text":
            (works / f"notes{rng.choice(('.txt', '.png', '', '.jpg'))}").write_text("no picture")
        elif kind == "link":
            (works / "linked").unlink(missing_ok=True)
            (works / "linked").symlink_to(rng.choice((project / "model", project / "nowhere", project / "prompts.csv")))
        elif kind == "loop":
            (works / "loop").unlink(missing_ok=True)
            (works / "loop").symlink_to(works, target_is_directory=True)
        elif kind == "sheet":
            status = rng.choice(("active", "allowed", "", "x", "retired"))
            (works / "metadata.csv").write_text(
                rng.choice(("file,title,status\n", "file,status,title\n", "file\n", "title\n", "file;title\n"))
                + f"work-0.png,a, title,{status}\n" * rng.randrange(3)
            )
        elif kind == "name":
            (works / rng.choice(("[red].png", "a\nb.png", "\x1b[31m.png", "-rf.png", "猫.PNG"))).write_bytes(_png_header(1, 1))
        elif kind == "svg":
            (works / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        else:
            (works / "empty").mkdir(exist_ok=True)
        what.append(kind)
    new = project / "new-index"
    return ", ".join(what), [
        ("index", "build", works, "--out", new),
        ("index", "info", new),
        ("index", "add", project / "index", works),
    ]


def index_folder(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """An index with a damaged file."""
    what = break_folder(project / "index", rng)
    picture = project / "works" / "work-0.png"
    return what, [
        ("index", "info", project / "index"),
        ("index", "search", project / "index", picture),
        ("run", project / "run.toml"),
    ]


def calibration(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """A calibration beside the index with odd content; the policy leaves the threshold to it."""
    path = project / "index" / "calibration.json"
    shutil.copy(Path(__file__).parents[2] / "pipeline" / "weights" / "stickers" / "calibration.json", path)
    what = break_json(path, rng)
    write_toml(project / "policy.toml", {name: values for name, values in POLICY.items() if name != "copies"})
    return what, [("index", "info", project / "index"), ("run", project / "run.toml", "--dry-run")]


def run_folder(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """A finished run of which a file was changed; --resume, verify, report and status meet it."""
    what = break_folder(project / "done", rng)
    done = project / "done"
    return what, [
        ("status", done),
        ("verify", done),
        ("report", done),
        ("run", project / "run.toml", "--out", done, "--resume"),
    ]


def adapter(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """An eraser with a damaged file."""
    what = break_folder(project / "adapter", rng)
    write_toml(project / "run.toml", {**RUN, "": {**RUN[""], "adapters": [{"path": "adapter"}]}})
    return what, [("run", project / "run.toml", "--dry-run"), ("run", project / "run.toml")]


def model_folder(project: Path, rng: random.Random) -> tuple[str, Commands]:
    """A diffusers folder with a damaged file."""
    what = break_folder(project / "model", rng, json_first=0.6)
    return what, [("run", project / "run.toml", "--dry-run"), ("run", project / "run.toml")]


GROUPS: tuple[Group, ...] = (
    run_file, policy, out_of_range, prompts, pictures, index_folder, calibration, run_folder, adapter, model_folder,
)  # fmt: skip


def _break_toml(path: Path, tables: dict[str, dict[str, Any]], rng: random.Random) -> str:
    kind = rng.choice(("value", "value", "value", "key", "table", "bytes", "syntax", "mark"))
    broken = {name: dict(values) for name, values in tables.items()}
    table = rng.choice(list(broken))
    key = rng.choice(
        [*broken[table], "size", "device", "index", "action", "adapters", "ladder", "mark_ladder", "allow", "probes"]
    )
    if kind == "value":
        value = rng.choice([value for value in ODD_VALUES if value is not None])
        broken[table][key] = value
        write_toml(path, broken)
        return f"{table}.{key} = {toml_value(value)[:30]}"
    if kind == "key":
        broken[table][rng.choice(("treshold", "Prompts", "x", "ladder "))] = 1
        write_toml(path, broken)
        return "unknown key"
    if kind == "table":
        name = rng.choice(("ladder", "mark_ladder", "adapters", "model", "copies", "prompts", "name", "generation.steps"))
        path.write_text(path.read_text() + rng.choice((f"\n[{name}]\nkind = 'reseed'\n", f"\n[[{name}]]\nkind = 'nudge'\n")))
        return f"table {name}"
    if kind == "bytes":
        return break_file(path, rng)
    if kind == "mark":
        path.write_bytes(rng.choice((b"\xef\xbb\xbf", b"\xff\xfe")) + path.read_bytes())
        return "byte order mark"
    text = path.read_text()
    at = rng.randrange(len(text))
    path.write_text(text[:at] + rng.choice(('"', "[", "]", "=", "\n", "#", "'''", ".", "{")) + text[at:])
    return f"syntax at {at}"


def _odd_parquet(path: Path, rng: random.Random) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = rng.choice(
        (
            pa.array(["cat", None, ""]), pa.array([1, 2, 3]), pa.array([["cat"], None, []]), pa.array([{"a": 1}] * 3),
            pa.array([b"cat", b"\xff", b""]), pa.array(["cat", "dog", "owl"]).dictionary_encode(), pa.nulls(3),
        )
    )  # fmt: skip
    seeds = rng.choice(
        (
            pa.array([1.0, math.nan, 2.5]),
            pa.array([2**63 - 1, -1, None]),
            pa.array(["1", "x", None]),
            pa.array([True, False, None]),
        )
    )
    table = pa.table({rng.choice(("prompt", "prompt", "caption")): column, "seed": seeds})
    pq.write_table(table.slice(0, rng.randrange(4)), path)
    if rng.random() < 0.2:
        return break_file(path, rng)
    return f"parquet {column.type}, seeds {seeds.type}"


def _png_header(width: int, height: int) -> bytes:
    """A PNG whose header states a size and that holds nearly no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b"")
