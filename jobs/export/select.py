"""Select what of a run is exported: by the outcome in force, which events may have changed since the rows were written.

A sample that was quarantined after its row was written is no longer accepted, and one that a person accepted in review is: its
picture is then the one that was kept, marked as released pictures are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import InputError, IntegrityError
from index.meant import meant
from jobs.export.own import OwnColumn, own_columns
from pipeline.audit.committed_files import CommittedFiles
from pipeline.audit.layout import Unit, units
from pipeline.audit.requests import VERIFY, Opener, Row, rows_of_unit
from pipeline.audit.schema import KEPT, SAMPLE_COLUMNS, samples_schema
from pipeline.audit.state import State, state_of
from pipeline.marking.encode import SUFFIXES
from pipeline.outcome import ACCEPTED, Outcome

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.marking.mark import MarkedPicture

DEFAULT = (
    "sample_id request_key prompt drawn_prompt negative_prompt base_seed width height outcome model_id model_revision "
    "model_licence digital_source_type pixel_sha256 file_sha256 pdq iscc watermark_scheme c2pa_present"
).split()
GROUPS: dict[str, frozenset[str]] = {
    "accepted": frozenset(map(str, ACCEPTED)),
    "held": frozenset(map(str, (Outcome.REVIEW, Outcome.REJECTED, Outcome.QUARANTINED))),
    "all": frozenset(map(str, Outcome)),
}
OWN, EVERY = "own", "all"
_NEEDED = ("sample_id", "request_key", "outcome", "image", "media_type", "file_sha256", "kept_sha256", "columns")
Mark = Callable[[bytes, Row], "MarkedPicture"]  # a kept picture and its row → the file that is released


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample that is exported.

    Attributes:
        sample_id: its id; letters and digits, so that it may be a file's name.
        suffix: ending of the picture's file, without a dot. image: the file.
        values: the other columns, in their order.
    """

    sample_id: str
    suffix: str
    image: bytes
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run that samples are exported from.

    Attributes:
        folder: the run folder; of an unfinished run, what is committed.
        counted: keys of the requests whose outcome is in force; None: all. Others were repeated by a later run.
        mark: marks the kept picture of a sample that was accepted in review.
    """

    folder: Path
    counted: Container[str] | None = None
    mark: Mark | None = None


class Selection:
    """The samples and columns of a run, or of the runs of a data set, that are exported.

    Args:
        runs: the run folder, or several runs in their order.
        only: outcomes in force, separated by commas: names of outcomes, ``accepted`` (at once or after steering), ``held``
            (review, rejected, quarantined) or ``all``.
        columns: names of columns of ``samples`` and of the caller's own; ``all``: every column; ``own``: all of the caller's.
            None: a selection that most readers want, and the caller's own.

    Attributes:
        names: the columns beside ``image``.
        own: the caller's columns among them.
        total: samples selected. left_out: samples that were selected and have no picture, by reason.

    Raises:
        InputError: an unknown outcome or column.
        IntegrityError: the events or the statement of the run were changed, or a data file is not the one that was committed.
        ClearanceError: a shard cannot be read.
    """

    def __init__(self, runs: Path | Sequence[Source], only: str = "accepted", columns: Sequence[str] | None = None) -> None:
        self.runs = [Source(folder=runs)] if isinstance(runs, Path) else list(runs)
        self.outcomes = outcomes_named(only)
        self.left_out: Counter[str] = Counter()
        self._states: dict[Path, State] = {run.folder: state_of(run.folder) for run in self.runs}
        # What is exported is handed on as the run's: no row or picture comes out of a file that was changed.
        self._files = {run.folder: CommittedFiles.of(run.folder) for run in self.runs}
        self.total = 0
        every = [column.name for column in SAMPLE_COLUMNS if column.name not in ("image", "columns")]
        every_own = own_columns(self._counted(), taken={*every, "image"})
        self.names, self.own = _chosen(columns, every, every_own)

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow types of ``image`` and of the columns, in their order; the image carries the ``huggingface`` feature."""
        import pyarrow as pa

        stored, own = samples_schema(), {column.name: column.type for column in self.own}
        fields = [pa.field("image", stored.field("image").type)]
        fields += [pa.field(name, own[name] if name in own else stored.field(name).type) for name in self.names]
        feature = {"info": {"features": {"image": {"_type": "Image"}}}}
        return pa.schema(fields, metadata={"huggingface": json.dumps(feature)})

    def items(self) -> Iterator[Item]:
        """The samples, in the order of shards and rows; at most one unit's kept pictures are in memory
        (:func:`pipeline.audit.layout.units`).

        Raises:
            IntegrityError: a data file is not the one that was committed, or a picture not the one that its row states.
        """
        self.left_out.clear()
        own = {column.name: column for column in self.own}
        stored = [name for name in self.names if name not in own]
        for run in self.runs:
            for unit in units(run.folder):
                kept: dict[str, bytes] | None = None
                for row in self._rows_of(run, unit, [*_NEEDED, *stored]):
                    if row["kept_sha256"] is not None and kept is None:
                        kept = _kept(run.folder, unit, self._files[run.folder].open)
                    image = self._image(run, row, kept or {})
                    if image is None:
                        continue
                    values = json.loads(row["columns"]) if own and row["columns"] else {}
                    yield Item(
                        sample_id=row["sample_id"],
                        suffix=SUFFIXES[row["media_type"]],
                        image=image,
                        values={name: own[name].value(values) if name in own else row[name] for name in self.names},
                    )

    def _counted(self) -> Iterator[str | None]:
        """The own columns of the selected rows, while the rows are counted."""
        for run in self.runs:
            for unit in units(run.folder):
                for row in self._rows_of(run, unit, ["sample_id", "request_key", "outcome", "columns"]):
                    self.total += 1
                    yield row["columns"]

    def _rows_of(self, run: Source, unit: Unit, columns: Sequence[str]) -> Iterator[Row]:
        state = self._states[run.folder]
        opener = self._files[run.folder].open
        for _, row in rows_of_unit(run.folder, unit, "samples", set(columns), opener=opener):
            if run.counted is not None and row["request_key"] not in run.counted:
                continue
            row["outcome"] = state.outcome(row)
            if row["outcome"] in self.outcomes:
                yield row

    def _image(self, run: Source, row: Row, kept: dict[str, bytes]) -> bytes | None:
        """The picture of a row, as its digest states it; None, and counted, where there is none."""
        released = (row["image"] or {}).get("bytes")
        data = released if released is not None else kept.get(row["sample_id"])
        stated = row["file_sha256"] if released is not None else row["kept_sha256"]
        if data is None:
            gone = row["file_sha256"] is not None or row["kept_sha256"] is not None
            self.left_out["its picture was erased" if gone else "no picture of it was kept"] += 1
            return None
        if hashlib.sha256(data).hexdigest() != stated:
            where = f"{run.folder}: sample {row['sample_id']} (key {row['request_key']!r})"
            raise IntegrityError("the picture does not match its digest", where=where, fix=VERIFY)
        if released is None:
            row["media_type"] = _media_type(data)
            if row["outcome"] in GROUPS["accepted"] and run.mark is not None:
                file = run.mark(data, row)
                row.update({name: getattr(file, name) for name in _OF_THE_FILE if name in row})
                return file.data
        return data


def _kept(folder: Path, unit: Unit, opener: Opener) -> dict[str, bytes]:
    found = {}
    for _, row in rows_of_unit(folder, unit, KEPT, ["sample_id", "image"], opener=opener):
        if row["image"] is not None and row["image"]["bytes"] is not None:
            found[row["sample_id"]] = row["image"]["bytes"]
    return found


_OF_THE_FILE = (
    "media_type file_sha256 stored_pixel_sha256 digital_source_type xmp_present c2pa_present c2pa_key_id watermark_scheme "
    "watermark_score watermark_key_id watermark_reason visible_label"
).split()


def _media_type(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/webp"  # what pictures are kept as


def outcomes_named(only: str) -> frozenset[str]:
    """The outcomes that a selection names.

    Raises:
        InputError: one of them is none.
    """
    found: set[str] = set()
    for name in (part.strip() for part in only.split(",")):
        known = {**GROUPS, **{str(outcome): frozenset({str(outcome)}) for outcome in Outcome if outcome != Outcome.ACCEPTED}}
        if name not in known:
            fix = meant(name, known, otherwise=f"Use {', '.join(known)}")
            raise InputError(f"there is no outcome {name!r}", where="--only", fix=fix)
        found |= known[name]
    return frozenset(found)


def _chosen(
    columns: Sequence[str] | None, every: Sequence[str], own: Sequence[OwnColumn]
) -> tuple[list[str], tuple[OwnColumn, ...]]:
    """The names of the columns that are exported, and the caller's own among them."""
    own_names = [column.name for column in own]
    wanted = [*DEFAULT, *own_names] if columns is None else []
    for name in columns or ():
        if name == EVERY:
            wanted += [*every, *own_names]
        elif name == OWN and OWN not in own_names:
            wanted += own_names
        elif name in every or name in own_names:
            wanted.append(name)
        elif name != "image":  # it is always there
            fix = meant(name, [*own_names, *every], otherwise=f"Use columns of samples, {OWN} or {EVERY}")
            raise InputError(f"there is no column {name!r}", where="--columns", fix=fix)
    names = list(dict.fromkeys(wanted))
    return names, tuple(column for column in own if column.name in names)
