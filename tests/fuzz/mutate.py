"""Ways in which files go wrong: values of another kind, bytes that flip or end early, folders where files belong."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**70, 1e308, math.nan, math.inf, "", "x", "\x1b[31m[red]", "../..", "a" * 5000, "\ud7ff\u202e",
    [], [[]], [None], {}, {"x": 1}, ["a", 1],
)  # fmt: skip


def break_file(path: Path, rng: random.Random) -> str:
    """Damage one file; returns what was done to it."""
    data = path.read_bytes()
    how = rng.choice(("flip", "cut", "empty", "noise", "append", "twice", "gone", "folder", "dangling", "zeros"))
    if how == "flip" and data:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif how == "noise":
        path.write_bytes(rng.randbytes(rng.randrange(1, 300)))
    elif how == "append":
        path.write_bytes(data + rng.randbytes(rng.randrange(1, 50)))
    elif how == "twice":
        path.write_bytes(data + data)
    elif how == "zeros" and data:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes(len(data) - at))
    elif how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "dangling":
        path.unlink()
        path.symlink_to("nowhere")
    else:
        path.write_bytes(b"")
    return f"{path.name} {how}"


def break_json(path: Path, rng: random.Random) -> str:
    """Put one value of another kind into a JSON file, or take one away; what is no JSON is damaged as bytes."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return break_file(path, rng)
    if not isinstance(data, dict | list) or rng.random() < 0.05:
        path.write_text(json.dumps(rng.choice(ODD_VALUES)), encoding="utf-8", errors="surrogatepass")
        return f"{path.name} replaced"
    holder, key = rng.choice(list(_places(data)) or [(data, None)])
    if key is None:
        return break_file(path, rng)
    if rng.random() < 0.2:
        del holder[key]
        what = f"{path.name}: {key} taken away"
    else:
        holder[key] = rng.choice(ODD_VALUES)
        what = f"{path.name}: {key} = {str(holder[key])[:30]!r}"
    path.write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")
    return what


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside JSON-like data."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        yield data, key
        yield from _places(value)


def break_folder(folder: Path, rng: random.Random, *, json_first: float = 0.5) -> str:
    """Damage one file of a folder: values of a JSON file with the given probability, else bytes of any file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    described = [path for path in files if path.suffix == ".json"]
    if described and rng.random() < json_first:
        return break_json(rng.choice(described), rng)
    if rng.random() < 0.1:
        inner = [path for path in folder.rglob("*") if path.is_dir()]
        if inner:
            chosen = rng.choice(inner)
            shutil.rmtree(chosen)
            how: Callable[[], object] = rng.choice((lambda: None, chosen.touch))
            how()
            return f"{chosen.name} gone"
    return break_file(rng.choice(files), rng)


def toml_value(value: Any) -> str:
    """A Python value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf") if math.isinf(value) else repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, int) else json.dumps(value)
