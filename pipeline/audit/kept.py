"""Full pictures of what was not released: in part files of their own, ``kept/``, so that no reader of ``samples/`` sees them.

Review needs more than a thumbnail. The final picture of every sample in review, rejected or quarantined is kept without loss,
with XMP that names it as made by a model, and is committed with its shard. Of a picture that a hard stop ended, digests alone
are kept, and no thumbnail either: see :func:`is_hard_stop`.

Kept pictures are payloads. The chain holds their digests, here and as ``kept_sha256`` in ``samples``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError
from pipeline.audit.chain import chained, header, sample_identity
from pipeline.audit.context import RunContext
from pipeline.audit.layout import data_files
from pipeline.audit.requests import rows_in
from pipeline.audit.schema import KEPT, SCHEMA_VERSION, kept_schema
from pipeline.marking.encode import SUFFIXES, Encoded, encode, xmp_packet
from pipeline.outcome import Attempt, Outcome, Sample

if TYPE_CHECKING:
    import pyarrow as pa

HELD = (Outcome.REVIEW, Outcome.REJECTED, Outcome.QUARANTINED)


def is_hard_stop(attempt: Attempt, context: RunContext) -> bool:
    """Whether of an attempt's picture digests alone are kept: a guard whose action is ``reject`` confirmed a hard stop.

    The run file lists categories, or how they begin (``keep.hard_stop``).
    """
    return any(
        finding.triggered and finding.confirmed and finding.category.startswith(context.hard_stop)
        for finding in attempt.findings
        if context.hard_stop
        and finding.category not in attempt.asked
        and context.action_of(finding.guard, finding.category) == "reject"
    )


def kept_files(samples: Sequence[Sample], context: RunContext) -> dict[int, Encoded]:
    """The files of the pictures that are kept of samples, by row number."""
    if not context.keep_held:
        return {}
    lossless = "png" if context.image_format == "png" else "webp"
    software = f"Clearance {context.software_version}".strip()
    xmp = xmp_packet(ai_system=context.model_id, ai_version=context.model_version, software=software)
    return {
        sample.request.row_no: encode(sample.final.picture, lossless, xmp)
        for sample in samples
        if sample.outcome in HELD and sample.final is not None and not is_hard_stop(sample.final, context)
    }


def kept_table(samples: Sequence[Sample], files: Mapping[int, Encoded], context: RunContext, shard_id: str) -> pa.Table:
    """One row per kept picture, in the order of the samples, chained. Empty when none is kept."""
    rows = (
        _row(sample, files[sample.request.row_no], context, shard_id) for sample in samples if sample.request.row_no in files
    )
    return chained(rows, kept_schema(), header(KEPT, shard_id, context))


def _row(sample: Sample, file: Encoded, context: RunContext, shard_id: str) -> dict[str, Any]:
    final, sample_id = sample.final, sample_identity(sample.request, context)
    assert final is not None  # it has a file
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run_id,
        "shard_id": shard_id,
        "row_no": int(sample.request.row_no),
        "sample_id": sample_id,
        "request_key": sample.request.key,
        "attempt": int(final.number),
        "image": {"bytes": file.data, "path": f"{sample_id}.{SUFFIXES[file.media_type]}"},
        "media_type": file.media_type,
        "width": int(final.picture.shape[1]),
        "height": int(final.picture.shape[0]),
        "pixel_sha256": final.pixel_sha256,
        "kept_sha256": file.file_sha256,
    }


@dataclass(frozen=True, kw_only=True)
class KeptPicture:
    """A kept picture.

    Attributes:
        sample_id, request_key: of its sample. shard_id: of its shard.
        attempt: number of the attempt that it is the picture of.
        data: the file; None: it was erased. media_type: of the file.
        path: the part file that holds it, relative to the run folder.
    """

    sample_id: str
    request_key: str
    shard_id: str
    attempt: int
    data: bytes | None
    media_type: str
    path: str


def kept_pictures(folder: Path, *, pictures: bool = True, damaged: list[ClearanceError] | None = None) -> Iterator[KeptPicture]:
    """The kept pictures of a run's committed shards, in the order of shards and rows; none for runs of earlier versions.

    Args:
        folder: the run folder.
        pictures: read the pictures too; False gives ``data`` None throughout and reads little.
        damaged: when given, a shard that cannot be read is left out and its error appended here.

    Raises:
        ClearanceError: a shard cannot be read (and ``damaged`` is not given).
    """
    columns = ["shard_id", "sample_id", "request_key", "attempt", "media_type", *(["image", "kept_sha256"] if pictures else [])]
    for path in data_files(folder, KEPT, damaged=damaged):
        try:
            for _, row in rows_in(folder, path, KEPT, columns):
                yield KeptPicture(
                    sample_id=row["sample_id"],
                    request_key=row["request_key"],
                    shard_id=row["shard_id"],
                    attempt=row["attempt"],
                    data=(row.get("image") or {}).get("bytes"),
                    media_type=row["media_type"],
                    path=path,
                )
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)
