"""The picture of a sample, as the run keeps it: the released file, the full one kept apart, or an exact small one.

What is read is held against its digest, because a decision rests on it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from index.fingerprint import pixel_digest
from index.storage import open_file
from pipeline.audit.layout import Unit, unit_of
from pipeline.audit.requests import Opener, Row, rows_of_unit
from pipeline.audit.schema import KEPT
from pipeline.audit.stored import chosen_rows

COLUMNS = (
    "sample_id",
    "outcome",
    "image",
    "pixel_sha256",
    "file_sha256",
    "kept_sha256",
)  # of the samples, that a picture is found by

GONE = "its picture was erased"  # as far as a row tells; an event names it then, or the file of kept pictures was changed
_MISSING = "its kept picture is missing from the run"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The picture of a sample.

    Attributes:
        picture: uint8 RGB (H, W, 3); None where there is none to look at.
        data: the file's bytes, in the format of ``suffix`` ("webp", "png", "jpeg").
        exact: its pixels are those that the guards saw; False: a mark or a label was put on them since.
        why: why there is no picture; empty where there is one.
    """

    picture: np.ndarray | None = field(default=None, repr=False)
    data: bytes = field(default=b"", repr=False)
    suffix: str = ""
    exact: bool = False
    why: str = ""


def pictures_of(folder: Path, path: str, rows: Mapping[int, Row], *, opener: Opener = open_file) -> dict[str, Shown]:
    """The pictures of some rows of one samples file.

    Args:
        folder: the run folder.
        path: the file that the rows are in.
        rows: by their numbers in it, with :data:`COLUMNS`.
        opener: opens the files; see :data:`pipeline.audit.requests.Opener`.

    Returns:
        sample_id → its picture, or why there is none.

    Raises:
        IntegrityError: the attempts of the shard cannot be read.
    """
    released = (row for row in rows.values() if row.get("image") is not None or row.get("file_sha256"))
    found = {row["sample_id"]: _released(row) for row in released}
    return found | _held(folder, path, {n: row for n, row in rows.items() if row["sample_id"] not in found}, opener)


def _released(row: Row) -> Shown:
    data = (row.get("image") or {}).get("bytes")
    if not data:
        return Shown(why=GONE)
    if hashlib.sha256(data).hexdigest() != row["file_sha256"]:
        return Shown(why="its file is not the one that was committed")
    return _decoded(data, str(row["pixel_sha256"]))


def _decoded(data: bytes, pixel_sha256: str) -> Shown:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        picture = np.asarray(image.convert("RGB"))
    except Exception as error:  # a decoder of damaged bytes may raise anything
        return Shown(why=f"its file cannot be decoded ({type(error).__name__})")
    exact = pixel_digest(picture) == pixel_sha256
    return Shown(picture=picture, data=data, suffix=(image.format or "").lower(), exact=exact)


def _held(folder: Path, path: str, rows: Mapping[int, Row], opener: Opener) -> dict[str, Shown]:
    """Of samples that were not released: the full picture that is kept apart, else the last small one, if it is exact."""
    if not rows:
        return {}
    pixels = {row["sample_id"]: str(row["pixel_sha256"] or "") for row in rows.values()}
    found = {
        sample_id: Shown(why="no picture of it is kept" if digest else "no picture was made")
        for sample_id, digest in pixels.items()
    }
    digests = {row["sample_id"]: str(row["kept_sha256"]) for row in rows.values() if row.get("kept_sha256")}
    beside = list(unit_of(folder, path, rows))
    for unit in beside:
        found |= _small(folder, unit, pixels, opener)
    full: dict[str, Shown] = {}
    for unit in beside if digests else ():
        full |= _full(folder, unit, digests, pixels, opener)
    missing = {one: Shown(why=_MISSING) for one in digests if one not in full and found[one].picture is None}
    return found | missing | full  # a full picture takes the place of a small one


def _full(folder: Path, unit: Unit, digests: Mapping[str, str], pixels: Mapping[str, str], opener: Opener) -> dict[str, Shown]:
    ids = rows_of_unit(folder, unit, KEPT, ("sample_id",), opener=opener)
    mine = [number for number, row in ids if row["sample_id"] in digests]
    found = {}
    columns = ("sample_id", "image")
    for _, row in chosen_rows(folder, unit.tables[KEPT].path, mine, columns, opener=opener) if mine else ():
        sample_id, data = row["sample_id"], (row["image"] or {}).get("bytes")
        if not data:
            found[sample_id] = Shown(why=GONE)
        elif hashlib.sha256(data).hexdigest() != digests[sample_id]:
            found[sample_id] = Shown(why="its file is not the one that was committed")
        else:
            found[sample_id] = _decoded(data, pixels[sample_id])
    return found


def _small(folder: Path, unit: Unit, pixels: Mapping[str, str], opener: Opener) -> dict[str, Shown]:
    last: dict[str, Any] = {}
    columns = ("sample_id", "attempt", "thumbnail", "pixel_sha256")
    for _, row in rows_of_unit(folder, unit, "attempts", columns, opener=opener):
        if row["pixel_sha256"] and row["pixel_sha256"] == pixels.get(row["sample_id"]):
            last[row["sample_id"]] = row["thumbnail"]
    found = {}
    for sample_id, stored in last.items():
        if stored is not None and stored["bytes"]:
            shown = _decoded(stored["bytes"], pixels[sample_id])
            found[sample_id] = shown if shown.exact or shown.why else Shown(why="only a smaller picture of it is kept")
    return found
