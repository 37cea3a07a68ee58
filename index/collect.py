"""Read the works that are to become references: pictures in a folder, and what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from index.errors import InputError
from index.reference import COLUMNS, NewReference, require

KEEPING = ("licensed", "memorisation_probe", "own_mark")  # bases that allow a copy of the picture to be kept
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def read_references(path: Path) -> list[NewReference]:
    """Read works from a folder of pictures, with an optional ``metadata.csv``.

    Columns of ``metadata.csv``: ``file`` (relative to the folder) and any of ``title``, ``source_uri``,
    ``rightsholder``, ``rights_basis``, ``licence``, ``status``, ``claim_id``, ``keep_picture`` (yes or no). Without the
    file every picture below the folder is taken, its title being its name. ``rights_basis`` is ``claim`` unless said
    otherwise. A picture is kept if ``keep_picture`` says so, or if it is not said and the basis allows it (licensed,
    memorisation_probe, own_mark).

    Args:
        path: a folder, or one picture.

    Raises:
        InputError: nothing there, an unreadable picture (all of them are named), an unknown column or value.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("does not exist", where=str(path), fix="Name a folder of pictures")
    folder = path if path.is_dir() else path.parent
    sheet = folder / "metadata.csv"
    if path.is_dir() and sheet.exists():
        rows = _read_sheet(sheet)
    else:
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES) if path.is_dir() else [path]
        rows = [{"file": str(file.relative_to(folder))} for file in files]
    if not rows:
        fix = f"Put pictures there ({', '.join(PICTURES)})"
        raise InputError("holds no pictures", where=str(path), fix=fix)
    works, unreadable = [], []
    for row in rows:
        try:
            picture = read_picture(folder / row["file"])
        except (OSError, ValueError, SyntaxError) as error:
            unreadable.append(f"{row['file']} ({error or type(error).__name__})")
            continue
        basis = row.get("rights_basis") or "claim"
        keep = _yes(row.get("keep_picture", ""), basis in KEEPING, where=f"{sheet}: {row['file']}")
        stated = {name: row[name] for name in COLUMNS if row.get(name)}
        stated = {"title": Path(row["file"]).stem, **stated, "rights_basis": basis}
        works.append(NewReference(picture=picture, keep_picture=keep, **stated))
    if unreadable:
        raise InputError(
            f"{len(unreadable)} of {len(rows)} pictures cannot be read: {'; '.join(unreadable[:5])}", where=str(folder),
            fix="Mend or remove them; PNG, JPEG and WebP are fine",
        )  # fmt: skip
    for work in works:
        require(work)
    return works


def _read_sheet(sheet: Path) -> list[dict[str, str]]:
    import csv

    known = {"file", "keep_picture", *COLUMNS}
    try:
        with sheet.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or [])
            rows = [{name: (value or "").strip() for name, value in row.items() if name is not None} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV ({error})", where=str(sheet), fix="Save it as CSV in UTF-8") from None
    unknown = [name for name in header if name not in known]
    if "file" not in header or unknown:
        what = f"has unknown columns: {', '.join(unknown)}" if unknown else "has no column 'file'"
        raise InputError(what, where=str(sheet), fix=f"Columns are: file, {', '.join(sorted(known - {'file'}))}")
    for number, row in enumerate(rows, start=2):
        if not row["file"]:
            raise InputError("names no file", where=f"{sheet}, line {number}", fix="Fill the column 'file'")
    return rows


def read_picture(path: Path | IO[bytes]) -> np.ndarray:
    """uint8 RGB (H, W, 3); transparency becomes white."""
    from PIL import Image

    with Image.open(path) as stored:
        rgba = stored.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return np.asarray(canvas.convert("RGB"))


def _yes(word: str, otherwise: bool, *, where: str) -> bool:
    if not word:
        return otherwise
    if word.lower() in ("yes", "true", "1", "no", "false", "0"):
        return word.lower() in ("yes", "true", "1")
    raise InputError(f"keep_picture is {word!r}", where=where, fix="Write yes or no")
