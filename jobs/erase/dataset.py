"""Polluted sets: clean captioned pictures of which a known share carries a mark, written as Parquet.

The places of the marks are kept twice: as drawn (``marks``, the truth) and as a detector finds them (``found``). Real sets have
only a detector, so a training that used the truth would look better than it is.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from guards.base import Finding, Guard
from index.errors import ClearanceError, InputError
from index.parquet import parquet_file
from jobs.erase.captioned import Captioned
from jobs.erase.pollute import Mark, Pollution, pollute
from pipeline.steer.erase_tokens import CONCEPTS, check_box, marks_found, overlap

BATCH = 64
Detector = Literal["marks", "yolo", "codes", "text"]
Fractions = tuple[float, float, float, float]


class NothingFound(ClearanceError):
    """A detector finds nothing on a set that has marks, so nothing can be learned from it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture of a polluted set.

    Attributes:
        name: where the clean picture came from.
        caption: names no marks.
        stored: uint8 RGB (H, W, 3), or a picture file's bytes.
        marks: concept → boxes in fractions, as drawn.
        found: the same as the detector sees it; an empty list where it has no boxes.
        where: for messages.
    """

    name: str
    caption: str
    stored: np.ndarray | bytes
    marks: dict[str, list[Fractions]]
    found: dict[str, list[Fractions]]
    where: str = ""

    @property
    def picture(self) -> np.ndarray:
        """uint8 RGB (H, W, 3), decoded anew every time. Raises InputError when it cannot be."""
        from index.picture import read_picture

        return self.stored if isinstance(self.stored, np.ndarray) else read_picture(self.stored, where=self.where)


class Rows(Protocol):
    """The rows of a training, read more than once: a list, or a set on disk."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...


class PollutedSet:
    """A set on disk: captions and boxes are checked and kept in memory, pictures are read from the file at every pass.

    Args:
        path: Parquet with the columns image, caption and found.

    Raises:
        InputError: not there, columns missing, a caption missing, a box outside its picture.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise InputError("there is no such set", where=str(path), fix="Make one with `clearance erase dataset`")
        try:
            names = pq.read_schema(path).names
            if missing := [name for name in ("image", "caption", "found") if name not in names]:
                fix = "Make it with `clearance erase dataset`, or add image, caption and found (list of concept and box)"
                raise InputError(f"has no column {missing[0]!r}", where=str(path), fix=fix)
            stored = parquet_file(path).read(columns=["caption", "found", *(["marks"] if "marks" in names else [])]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"not a readable Parquet file ({error})", where=str(path), fix="Write it again") from None
        self.path, self._rows = path, []
        for number, row in enumerate(stored):
            where = f"{path}: row {number}"
            if not (row["caption"] or "").strip():
                raise InputError("has no caption", where=where, fix="Fill the column 'caption'")
            marks, found = (_boxes(row.get(column) or [], where) for column in ("marks", "found"))
            self._rows.append((row["caption"].strip(), marks, found, where))
        if not self._rows:
            raise InputError("holds no pictures", where=str(path), fix="Make it with `clearance erase dataset`")

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        with parquet_file(self.path) as file:
            images = (image for batch in file.iter_batches(BATCH, columns=["image"]) for image in batch["image"].to_pylist())
            for number, (image, (caption, marks, found, where)) in enumerate(zip(images, self._rows, strict=True)):
                stored = image if isinstance(image, dict) else {"bytes": image}
                yield Row(
                    name=stored.get("path") or str(number),
                    caption=caption,
                    stored=stored.get("bytes") or b"",
                    marks=marks,
                    found=found,
                    where=where,
                )


def schema() -> Any:
    """The columns; ``image`` is an Image feature of the datasets library."""
    import pyarrow as pa

    box = pa.list_(pa.float32(), 4)
    mark = pa.struct([("concept", pa.string()), ("design", pa.string()), ("opacity", pa.float32()), ("box", box)])
    found = pa.struct([("concept", pa.string()), ("score", pa.float32()), ("box", box)])
    columns = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "PNG"),
        ("caption", pa.string(), "what the picture shows; nothing about marks"),
        ("marks", pa.list_(mark), "the truth: concept, design, factor on its opacity, box as fractions x0, y0, x1, y1"),
        ("found", pa.list_(found), "what the detector saw; box is null where it has no boxes"),
    ]
    feature = {"info": {"features": {"image": {"_type": "Image"}}}}
    return pa.schema(
        [pa.field(name, kind, metadata={"doc": doc}) for name, kind, doc in columns],
        metadata={"huggingface": json.dumps(feature)},
    )


def build(
    source: Iterable[Captioned],
    out: Path,
    how: Pollution,
    guard: Guard | None,
    *,
    seed: int = 0,
    least: float = 0.02,
    boxes: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Pollute a clean set and write ``out`` (Parquet) with ``out``'s name + ``.json`` beside it.

    Args:
        source: clean captioned pictures; streamed.
        out: a ``.parquet`` file; written under a temporary name and renamed when complete.
        how: ratio, kinds, opacity, place, designs.
        guard: the detector that fills ``found``; None leaves it as empty as a clean set's.
        seed: of the pollution.
        least: share of the marked pictures that the detector must find.
        boxes: keep the detector's boxes; False keeps only whether a mark exists.
        progress: called with the number of pictures done.

    Returns:
        What is written beside it: pictures, how many were marked here and in how many the detector found a mark; its recall,
        false alarms and mean IoU against what was drawn here.

    Raises:
        InputError: the source is empty or broken.
        NothingFound: the detector finds fewer than ``least`` of the marked pictures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.suffix != ".parquet":
        raise InputError("the set is written as Parquet", where=str(out), fix="Give a name that ends in .parquet")
    rng = np.random.default_rng(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept, tally = schema(), _Tally()
    draft = out.with_suffix(".parquet.tmp")
    try:
        with pq.ParquetWriter(draft, kept, compression="zstd") as writer:
            for batch in _batches(source, BATCH):
                rows = []
                done = [pollute(one.picture, how, rng, one.hint) for one in batch]
                findings = _look(guard, [picture for picture, _ in done])
                for one, (picture, mark), seen in zip(batch, done, findings, strict=True):
                    rows.append(_row(one, picture, mark, seen, boxes))
                    tally.add(picture, mark, seen)
                writer.write_table(pa.Table.from_pylist(rows, kept))
                progress(tally.pictures)
        if not tally.pictures:
            raise InputError("the source holds no pictures", where=str(out), fix="Name another source")
        summary = tally.summary() | {"seed": seed, "detector": f"{guard.name} {guard.version}" if guard else ""}
        if guard is not None and tally.marked and tally.hit < least * tally.marked:
            raise NothingFound(
                f"{guard.name} finds {tally.hit} of {tally.marked} marked pictures", where=str(out),
                fix="Use another detector, a lower threshold (--threshold), or marks that can be seen (--opacity)",
            )  # fmt: skip
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    with out.open("rb") as written:
        summary["sha256"] = hashlib.file_digest(written, "sha256").hexdigest()
    out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


class _Tally:
    """Counts of a set, and the detector's quality against the truth."""

    def __init__(self) -> None:
        self.pictures = self.marked = self.found = self.hit = self.alarms = 0
        self.kinds: dict[str, int] = {}
        self.overlaps: list[float] = []

    def add(self, picture: np.ndarray, mark: Mark | None, findings: list[Finding]) -> None:
        self.pictures += 1
        found = marks_found(findings)
        self.found += bool(found)
        if mark is None:
            self.alarms += bool(found)
            return
        self.marked += 1
        self.kinds[mark.kind] = self.kinds.get(mark.kind, 0) + 1
        if mark.kind in found:
            self.hit += 1
            truth = _fractions(mark, picture)
            self.overlaps += [max(overlap(truth, box) for box in found[mark.kind])] if found[mark.kind] else []

    def summary(self) -> dict[str, Any]:
        clean = self.pictures - self.marked
        return {
            "pictures": self.pictures, "marked": self.marked, "found": self.found, "kinds": dict(sorted(self.kinds.items())),
            "recall": round(self.hit / self.marked, 4) if self.marked else None,
            "false_alarms": round(self.alarms / clean, 4) if clean else None,
            "mean_iou": round(float(np.mean(self.overlaps)), 4) if self.overlaps else None,
        }  # fmt: skip


def _batches(source: Iterable[Captioned], size: int) -> Iterator[list[Captioned]]:
    batch: list[Captioned] = []
    for one in source:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _look(guard: Guard | None, pictures: list[np.ndarray]) -> list[list[Finding]]:
    """The detector's findings; pictures of one size in one call."""
    if guard is None:
        return [[] for _ in pictures]
    if len({picture.shape for picture in pictures}) == 1:
        return guard.check(np.stack(pictures))
    return [guard.check(picture[None])[0] for picture in pictures]


def _fractions(mark: Mark, picture: np.ndarray) -> Fractions:
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = mark.box
    return x0 / width, y0 / height, x1 / width, y1 / height


def _row(one: Captioned, picture: np.ndarray, mark: Mark | None, findings: list[Finding], boxes: bool) -> dict[str, Any]:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    marks = [] if mark is None else [
        {"concept": mark.kind, "design": mark.design, "opacity": mark.opacity, "box": list(_fractions(mark, picture))}
    ]  # fmt: skip
    found = [
        {"concept": CONCEPTS[f.category], "score": f.score, "box": list(f.box) if boxes and f.box is not None else None}
        for f in findings
        if f.triggered and f.category in CONCEPTS
    ]
    return {"image": {"bytes": data.getvalue(), "path": one.name}, "caption": one.caption, "marks": marks, "found": found}


def _boxes(column: list[dict[str, Any]], where: str) -> dict[str, list[Fractions]]:
    found: dict[str, list[Fractions]] = {}
    for entry in column:
        boxes = found.setdefault(str(entry["concept"]), [])
        if entry.get("box") is None:
            continue
        x0, y0, x1, y1 = (float(edge) for edge in entry["box"])
        try:
            check_box((x0, y0, x1, y1), (1, 1))
        except InputError as error:
            raise InputError(error.what, where=where, fix="Boxes are fractions of width and height; " + error.fix) from None
        boxes.append((x0, y0, x1, y1))
    return found
