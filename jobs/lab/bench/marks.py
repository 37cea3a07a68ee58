"""What survives of the watermarks, attack by attack, and how often they are found where there are none.

Held-out pictures: drawings of the world's packages whose names no training saw, rendered large; and crops of photographs in a
folder that the caller names. Nothing was tuned on either. Every picture has a key and a payload of its own.

What was measured is kept beside its code's digest, picture by picture, so that a stopped bench goes on and a changed scheme is
measured again.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from index.rate import Rate
from jobs.lab.bench.measures import Measure, publish, share

Attack = Callable[[np.ndarray], np.ndarray]
Kind = Literal["drawing", "photograph"]

SEED = 20_261_128
EDITION = b"1"  # raise it where pictures, attacks or counting change
EASY = (
    "none", "JPEG 95", "JPEG 75", "JPEG 50", "WebP 80", "half size and back", "blur 1.5", "noise 8", "contrast and brightness",
    "mirrored",
)  # fmt: skip
HARD = ("to .5", "to .75", "to 1.5", "cropped to 75 %", "cropped to 25 %", "turned by 90°", "turned by 5°", "screenshot")
# Scheme, side, and of how many pictures of each kind: with the attacks that a look in place answers, and with those that need
# a search (a hundred times as dear).
PLAN = (
    ("tile", 64, 20, 0), ("tile", 128, 75, 15), ("tile", 256, 150, 50), ("tile", 512, 150, 50), ("tile", 1024, 40, 15),
    ("rivagan", 256, 6, 6),
)  # fmt: skip
QUICK = (("tile", 64, 2, 0), ("tile", 256, 3, 2))
SEARCHES = ((160, 2200), (256, 1400), (512, 400))  # side, and unmarked looks that search
IN_PLACE = ((128, 2000), (256, 2000), (512, 500))
RECOVERY, FALSE_ALARMS = 0.98, 1e-3


@dataclass(frozen=True)
class Sources:
    """Where held-out pictures come from: icons of the world's packages by vendor and name, and files of photographs."""

    icons: dict[str, dict[str, Any]]
    drawings: tuple[tuple[str, str], ...]
    photographs: tuple[Path, ...]

    @classmethod
    def open(cls, world: Path, photographs: Path | None) -> Sources:
        """The held-out drawings of every vendor, in a fixed random order, and every picture below a folder.

        Raises:
            ClearanceError: a package cannot be fetched.
        """
        from jobs.lab.world.catalogue import VENDORS
        from jobs.lab.world.pictures import DROPPED, fetch, held_out

        icons = {vendor: fetch(vendor, world) for vendor in VENDORS}
        names = [
            (vendor, name)
            for vendor, found in icons.items()
            for name in sorted(found["icons"])
            if held_out(name) and not DROPPED.search(name) and not found["icons"][name].get("hidden")
        ]
        order = np.random.default_rng(SEED).permutation(len(names))
        files = (
            sorted(p for p in photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")) if photographs else []
        )
        return cls(icons, tuple(names[i] for i in order), tuple(files))

    def picture(self, kind: Kind, number: int, side: int) -> np.ndarray | None:
        """One held-out picture, uint8 (side, side, 3); None where the sources have no such one."""
        if kind == "drawing":
            vendor, name = self.drawings[number % len(self.drawings)]
            return drawn(self.icons[vendor], name, side)
        large = [path for path in self.photographs if min(_size(path)) >= side]
        return crop(large[number % len(large)], side, np.random.default_rng((SEED, number, side))) if large else None


def drawn(icons: dict[str, Any], name: str, side: int) -> np.ndarray:
    """One icon on white, rendered at twice the side and averaged down: uint8 (side, side, 3)."""
    import resvg_py
    from PIL import Image

    from jobs.lab.world.pictures import svg_of

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg_of(icons, name), width=2 * side, height=2 * side))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB").resize((side, side), Image.Resampling.BOX))


def crop(path: Path, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a photograph, made smaller so that the square covers between a half and all of its shorter side."""
    from PIL import Image

    picture = _loaded(path)
    least = min(picture.size)
    times = max(side, min(least, round(side * rng.uniform(1.0, 2.0)))) / least
    size = (max(side, round(picture.width * times)), max(side, round(picture.height * times)))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    x, y = (int(rng.integers(0, length - side + 1)) for length in size)
    return np.asarray(small.crop((x, y, x + side, y + side)))


@lru_cache(maxsize=256)
def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


@lru_cache(maxsize=64)
def _loaded(path: Path) -> Any:
    """A photograph with at most 2,200 pixels on its shorter side, so that many stay in memory."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    times = min(1.0, 2200 / min(picture.size))
    return picture.resize((round(picture.width * times), round(picture.height * times)), Image.Resampling.LANCZOS)


def attacks() -> dict[str, Attack]:
    """Every attack by name: uint8 RGB (H, W, 3) → the same of another size."""
    import cv2
    from PIL import Image

    def encoded(picture: np.ndarray, image_format: str, quality: int) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, image_format, quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))

    def resized(picture: np.ndarray, times: float) -> np.ndarray:
        size = (round(picture.shape[1] * times), round(picture.shape[0] * times))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))

    def back(picture: np.ndarray) -> np.ndarray:
        small = Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2), Image.Resampling.LANCZOS)
        return np.asarray(small.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC))

    def kept(picture: np.ndarray, area: float) -> np.ndarray:
        high, wide = (round(side * area**0.5) for side in picture.shape[:2])
        top, left = (picture.shape[0] - high) // 3, (picture.shape[1] - wide) * 3 // 5
        return np.ascontiguousarray(picture[top : top + high, left : left + wide])

    def noisy(picture: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(SEED).normal(0, 8, picture.shape)
        return np.clip(picture + noise, 0, 255).astype(np.uint8)

    return {
        "none": lambda p: p,
        "JPEG 95": lambda p: encoded(p, "JPEG", 95),
        "JPEG 75": lambda p: encoded(p, "JPEG", 75),
        "JPEG 50": lambda p: encoded(p, "JPEG", 50),
        "WebP 80": lambda p: encoded(p, "WEBP", 80),
        "half size and back": back,
        "blur 1.5": lambda p: cv2.GaussianBlur(p, (0, 0), 1.5),
        "noise 8": noisy,
        "contrast and brightness": lambda p: np.clip((p.astype(np.float32) - 128) * 0.8 + 128 + 15, 0, 255).astype(np.uint8),
        "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
        "to .5": lambda p: resized(p, 0.5),
        "to .75": lambda p: resized(p, 0.75),
        "to 1.5": lambda p: resized(p, 1.5),
        "cropped to 75 %": lambda p: kept(p, 0.75),
        "cropped to 25 %": lambda p: kept(p, 0.25),
        "turned by 90°": lambda p: np.ascontiguousarray(np.rot90(p)),
        "turned by 5°": lambda p: np.asarray(Image.fromarray(p).rotate(5, Image.Resampling.BICUBIC)),
        "screenshot": lambda p: encoded(resized(p, 0.8), "JPEG", 85),
    }


def key_of(*what: object) -> bytes:
    """A key of its own for every picture and look."""
    return hashlib.sha256(repr((SEED, *what)).encode()).digest()


def code_digest() -> str:
    """Digest of the code that is measured, and the edition of what measures it, so that nothing old is taken for it."""
    from pipeline.marking import rivagan, tile

    digest = hashlib.sha256(EDITION)
    for path in (tile.__file__, rivagan.__file__):
        digest.update(Path(str(path)).read_bytes())
    return digest.hexdigest()[:16]


class Ledger:
    """What was measured, one JSON line each, in a file named by the code's digest."""

    def __init__(self, work: Path, code: str) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.path = work / f"marks-{code}.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may have been cut off
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in whole}

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["id"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def measure_marks(sources: Sources, ledger: Ledger, plan: Iterable[tuple[str, int, int, int]], until: float) -> bool:
    """Mark, attack and look, picture by picture; whether everything was done before ``until`` (monotonic seconds)."""
    from pipeline.marking.watermark import watermark_class

    every = attacks()
    for scheme, side, pictures, searched in plan:
        try:
            mark = watermark_class(scheme).open()
        except Exception as error:
            print(f"{scheme} is not measured: {error}")
            continue
        for number in range(pictures):
            names = EASY + HARD if number < searched else EASY
            for kind in ("drawing", "photograph"):
                row_id = f"{scheme} {side} {kind} {number}"
                if row_id in ledger.rows:
                    continue
                if time.monotonic() > until:
                    return False
                picture = sources.picture(kind, number, side)  # type: ignore[arg-type]
                if picture is not None:
                    row = one_picture(mark, picture, key_of(row_id), {name: every[name] for name in names})
                    ledger.add({"id": row_id, "scheme": scheme, "side": side, "kind": kind, **row})
    return True


def one_picture(mark: Any, picture: np.ndarray, key: bytes, every: dict[str, Attack]) -> dict[str, Any]:
    """What one look finds after each attack: found, payload right, score; and what marking cost. Times are of the processor."""
    from pipeline.marking.conformance import psnr

    if min(picture.shape[:2]) < mark.least_side:
        return {"found": {}}
    payload = int.from_bytes(key[:4], "big")
    start = time.process_time()
    marked = mark.embed(picture, key, payload)
    spent = time.process_time() - start
    found: dict[str, Any] = {}
    look = 0.0
    for name, attack in every.items():
        changed = attack(marked)
        start = time.process_time()
        seen = mark.look(changed, key)
        if name == "none":
            look = time.process_time() - start
        found[name] = [seen.found, seen.payload == payload if mark.payload_bits else None, seen.score]
    return {"found": found, "psnr": round(psnr(picture, marked), 2), "embed_s": round(spent, 4), "look_s": round(look, 4)}


def measure_unmarked(
    sources: Sources, ledger: Ledger, looks: Sequence[tuple[str, int, int]], until: float, block: int = 50
) -> bool:
    """Look at unmarked crops, each under a key of its own; ``looks``: how (``searching``, ``in place``), side, how many."""
    from pipeline.marking.tile import TileWatermark

    mark = TileWatermark()
    for how, side, count in looks:
        for start in range(0, count, block):
            row_id = f"unmarked {how} {side} {start}"
            if row_id in ledger.rows:
                continue
            if time.monotonic() > until:
                return False
            seen = [_unmarked(mark, sources, how, side, number) for number in range(start, min(count, start + block))]
            done = [one for one in seen if one is not None]
            row = {"looks": len(done), "alarms": sum(hit for hit, _ in done), "most": max((s for _, s in done), default=0.0)}
            ledger.add({"id": row_id, "how": how, "side": side, **row})
    return True


def _unmarked(mark: Any, sources: Sources, how: str, side: int, number: int) -> tuple[bool, float] | None:
    # numbers beyond those of the marked pictures: other crops, other drawings
    picture = sources.picture("photograph" if number % 2 else "drawing", 1000 + number // 2, side)
    if picture is None:
        return None
    hint = (side, side) if how == "in place" else None
    found = mark.look(picture, key_of("unmarked", how, side, number), size_hint=hint)
    return found.found, found.score


def bench(out: Path, *, quick: bool = False, work: Path, world: Path, photographs: Path | None, minutes: float = 600.0) -> None:
    """Measure and publish ``marks``: ``out/marks.json`` and the table ``out/marks.md``.

    Args:
        out: where results go.
        quick: a few pictures.
        work: what was measured is kept here.
        world: the built world, whose packages hold the drawings.
        photographs: a folder of photographs.
        minutes: stop after so long; the next call goes on, and nothing is published before all is measured.
    """
    import cv2

    cv2.setNumThreads(1)
    sources, until = Sources.open(world, photographs), time.monotonic() + 60 * minutes
    ledger = Ledger(work, code_digest() + ("-quick" if quick else ""))
    looks = [("searching", side, n) for side, n in SEARCHES] + [("in place", side, n) for side, n in IN_PLACE]
    looks = [("searching", 160, 10), ("in place", 128, 20)] if quick else looks
    plan = QUICK if quick else PLAN
    done = measure_marks(sources, ledger, [part for part in plan if part[0] == "tile"], until)
    done = measure_unmarked(sources, ledger, looks, until) and done
    done = measure_marks(sources, ledger, [part for part in plan if part[0] != "tile"], until) and done
    if not done:
        print(f"{len(ledger.rows)} parts are measured; call it again to go on")
        return
    rows = list(ledger.rows.values())
    result = {"cells": list(cells(rows)), "unmarked": unmarked(rows), "cost": cost(rows), "pictures": described(sources)}
    publish("marks", measures(result), out, seeds=[SEED], quick=quick, more=result)
    (out / f"marks{'-quick' if quick else ''}.md").write_text(table(result), encoding="utf-8")


def described(sources: Sources) -> dict[str, Any]:
    """What the pictures are, for the record."""
    from jobs.lab.world.catalogue import VENDORS

    packages = [f"{VENDORS[v][0]} {VENDORS[v][1]} ({VENDORS[v][2]})" for v in sources.icons]
    return {"drawings": len(sources.drawings), "packages": packages, "photographs": [p.name for p in sources.photographs]}


def cells(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One entry per scheme, side, kind and attack, and one for both kinds together: found and payload right, of how many."""
    counts: dict[tuple[str, int, str, str], list[list[Any]]] = {}
    for row in rows:
        for attack, seen in row.get("found", {}).items():
            for kind in (row["kind"], "all"):
                counts.setdefault((row["scheme"], row["side"], kind, attack), []).append(seen)
    for (scheme, side, kind, attack), seen in counts.items():
        found = Rate.of(sum(hit for hit, _, _ in seen), len(seen))
        payload = None if seen[0][1] is None else sum(bool(right and hit) for hit, right, _ in seen)
        yield {
            "scheme": scheme, "side": side, "kind": kind, "attack": attack, "found": found.hits, "n": found.n,
            "low": round(found.low, 4), "high": round(found.high, 4), "payload_right": payload,
            "median_score": round(float(np.median([score for _, _, score in seen])), 2),
        }  # fmt: skip


def unmarked(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """False alarms by how the look was taken, with Wilson's interval and the highest score there was."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "looks" in row:
            entry = found.setdefault(row["how"], {"alarms": 0, "looks": 0, "most": 0.0})
            entry["alarms"] += row["alarms"]
            entry["looks"] += row["looks"]
            entry["most"] = max(entry["most"], row["most"])
    for entry in found.values():
        rate = Rate.of(entry["alarms"], entry["looks"])
        entry |= {"low": rate.low, "high": rate.high}
    return found


def cost(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quality and processor time by scheme, side and kind."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("found"):
            groups.setdefault((row["scheme"], row["side"], row["kind"]), []).append(row)
    return [
        {
            "scheme": scheme, "side": side, "kind": kind, "n": len(group),
            "psnr_median": round(float(np.median([r["psnr"] for r in group])), 1),
            "psnr_least": round(min(r["psnr"] for r in group), 1),
            "embed_ms": round(1000 * float(np.median([r["embed_s"] for r in group])), 1),
            "look_ms": round(1000 * float(np.median([r["look_s"] for r in group])), 1),
        }
        for (scheme, side, kind), group in groups.items()
    ]  # fmt: skip


def measures(result: dict[str, Any]) -> list[Measure]:
    """The numbers with goals: recovery without attack, and false alarms by the upper end of their interval."""
    found = [
        share(f"{c['scheme']} {c['side']} px, {c['attack']}", c["found"], c["n"],
              RECOVERY if (c["scheme"], c["attack"]) == ("tile", "none") and c["side"] >= 256 else None)
        for c in result["cells"] if c["kind"] == "all"
    ]  # fmt: skip
    for how, entry in result["unmarked"].items():
        found.append(
            Measure(
                id=f"tile, false alarms {how}: upper end of the interval", value=entry["high"], low=entry["low"],
                high=entry["high"], n=entry["looks"], goal=FALSE_ALARMS, better="lower",
            )
        )  # fmt: skip
    return found


def table(result: dict[str, Any]) -> str:
    """The table of a page: a row per attack, a column per scheme and side; found in % (interval; drawings / photographs; n)."""
    by = {(c["scheme"], c["side"], c["kind"], c["attack"]): c for c in result["cells"]}
    columns = sorted({(c["scheme"] != "tile", c["scheme"], c["side"]) for c in result["cells"]})
    lines = [
        "| attack | " + " | ".join(f"{scheme} {side} px" for _, scheme, side in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for attack in EASY + HARD:
        texts = [_cell(by, scheme, side, attack) for _, scheme, side in columns]
        lines.append(f"| {attack} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _cell(by: dict[Any, Any], scheme: str, side: int, attack: str) -> str:
    both = by.get((scheme, side, "all", attack))
    if both is None:
        return "–"
    rate = Rate.of(both["found"], both["n"])
    kinds = [by.get((scheme, side, kind, attack)) for kind in ("drawing", "photograph")]
    split = " / ".join(f"{100 * kind['found'] / kind['n']:.0f}" if kind else "–" for kind in kinds)
    return f"{100 * rate.value:.0f} ({100 * rate.low:.0f}–{100 * rate.high:.0f}; {split}; n = {rate.n})"
