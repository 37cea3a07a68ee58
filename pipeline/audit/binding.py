"""Which run and plan a shard belongs to. The headers of a shard's files are compared with the run they lie in.

Every data file carries a header (:func:`pipeline.audit.chain.header`), which is the start of its chain: the run, the plan,
the policy, the shard, the worker that wrote it, the digest of ``plan.json`` and the event that the session began with. A whole
and valid shard of another run, laid in under the right name, differs in it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from index.errors import ClearanceError, IntegrityError
from index.parquet import parquet_file
from index.storage import cannot_read, each, entry_of, open_file, parsing
from pipeline.audit.chain import table_header
from pipeline.audit.compacted import PARTS_INDEX, PartsIndex, header_of, index_named, index_problems, parts_index
from pipeline.audit.erasure import Erasures
from pipeline.audit.event_parts import EVENTS_FOLDER
from pipeline.audit.requests import fits, written_version
from pipeline.audit.schema import KEPT, PAYLOADS, SCHEMA_VERSION, is_readable, schema_of
from pipeline.audit.shards import ShardFile, ShardReceipt

if TYPE_CHECKING:
    import pyarrow as pa

PLAN_FILE, REQUESTS_FILE = "plan.json", "requests.parquet"
_HEADER_KEY = b"\x18\x09clearance\x18"
BOUND = ("run_id", "dataset_id", "plan_sha256", "policy_sha256", "salt_id")
_NOUNS = {"run_id": "run", "dataset_id": "data set", "plan_sha256": "plan", "policy_sha256": "policy", "salt_id": "salt"}
_EITHER = "this file was changed, or the shard is another run's"
# What the rows repeat of the header, by the header's name.
_REPEATED = {
    "samples": {"schema_version": "schema_version", "run_id": "run_id", "dataset_id": "dataset_id", "shard_id": "shard_id",
                "policy_sha256": "policy_sha256", "writer": "worker_id"},
    "attempts": {"schema_version": "schema_version", "run_id": "run_id", "shard_id": "shard_id"},
    KEPT: {"schema_version": "schema_version", "run_id": "run_id", "shard_id": "shard_id"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunBinding:
    """What the headers of a run's shards must hold.

    Attributes:
        header: the values of those of :data:`BOUND` that are known.
        plan_file_sha256: digest of ``plan.json``; empty: not compared.
        events: digests of the run's events; None: not compared.
        erasures: the files that events say were changed since they were committed, because payloads were erased.
        index_sha256: digest of the index of parts that the last event of a compaction names; None: not compared.
    """

    header: Mapping[str, Any]
    plan_file_sha256: str = ""
    events: frozenset[str] | None = field(default=None, repr=False)
    erasures: Erasures = field(default_factory=Erasures, repr=False)
    index_sha256: str | None = None

    def known(self, events: Sequence[Mapping[str, Any]]) -> RunBinding:
        """With the events that a shard may have been written under, and what they say was erased."""
        digests = frozenset(str(event["record_sha256"]) for event in events)
        return replace(self, events=digests, erasures=Erasures.of(events), index_sha256=index_named(events))


def shard_problems(
    folder: Path, receipts: Mapping[str, ShardReceipt], run: RunBinding, *, hashed: bool = False
) -> Iterator[tuple[str, str]]:
    """Committed files that are missing, of another size or another run's, as (where, what). Reads headers, not rows.

    Args:
        folder: the run folder. receipts: of its shards. run: what they are held against.
        hashed: the caller compares digests. A digest tells a file whose erasure was interrupted from a changed one, and a size
            does not: the size of a file from which payloads were erased is then left to it.

    Raises:
        IntegrityError: the index of parts cannot be read.
        InputError: the storage failed; that says nothing of a file.
    """
    index = parts_index(folder)
    if index is not None:
        yield from _part_problems(folder, index, receipts, run, hashed)
        return
    files = {file.path: (receipt.shard_id, file) for receipt in receipts.values() for file in receipt.files}

    def problems(path: str) -> list[tuple[str, str]]:
        shard_id, file = files[path]
        try:
            now = run.erasures.now(path, file.sha256, file.bytes)
            which = "that was committed" if now.sha256 == file.sha256 else "that its last erasure left"
            shard_header = _header(folder, path, None if hashed and now.earlier else now.bytes, which)
        except IntegrityError as error:
            return [(path, error.what)]
        return list(header_problems(shard_header, shard_id, file, run))

    for found in each(folder, problems, list(files)):
        yield from found


def _part_problems(
    folder: Path, index: PartsIndex, receipts: Mapping[str, ShardReceipt], run: RunBinding, hashed: bool
) -> Iterator[tuple[str, str]]:
    """The same of a compacted run: its index, its parts, and the headers that the index keeps of the shards."""
    if run.index_sha256 is not None:
        yield from index_problems(index, run.index_sha256)
    for part in index.parts:
        try:
            entry, now = entry_of(folder, part.path), run.erasures.now(part.path, part.sha256, part.bytes)
        except IntegrityError as error:
            yield part.path, error.what
            continue
        if entry is None or entry.kind != "file":
            yield part.path, "is missing" if entry is None else f"is a {entry.kind}"
        elif entry.size != now.bytes and not (hashed and now.earlier):
            yield part.path, f"is not the part that was written: it has {entry.size} bytes, not {now.bytes}"
    for receipt in receipts.values():
        for file in receipt.files:
            own = index.slices[receipt.shard_id].get(file.table)
            if own is None or own.rows != file.rows:
                yield PARTS_INDEX, f"does not name the {file.rows} rows of {file.path}"
            else:
                yield from header_problems(header_of(own.header), receipt.shard_id, file, run)


def is_first_version(folder: Path, receipts: Mapping[str, ShardReceipt]) -> bool:
    """Whether every committed file is of the schema's first version, under which plans and events had another form."""
    versions = set()
    try:
        if (index := parts_index(folder)) is not None:
            headers = {one.header for own in index.slices.values() for one in own.values()}
            return {header_of(text).get("schema_version") for text in headers} == {1}
    except ClearanceError:  # whoever reads the index for itself names it
        return False
    for file in (file for receipt in receipts.values() for file in receipt.files):
        try:
            versions.add(_header(folder, file.path).get("schema_version"))
        except ClearanceError:
            versions.add(None)
    return versions == {1}


def header_problems(
    shard_header: Mapping[str, Any], shard_id: str, file: ShardFile, run: RunBinding
) -> Iterator[tuple[str, str]]:
    """What in a file's header does not fit the run, as (where, what)."""
    if shard_header.get("shard_id") != shard_id or shard_header.get("table") != file.table:
        yield file.path, f"belongs to shard {shard_header.get('shard_id')!r}, table {shard_header.get('table')!r}"
    if what := _version_problem(shard_header):
        yield file.path, what
    for name, value in run.header.items():
        if shard_header.get(name) != value:
            found = str(shard_header.get(name))[:64]
            yield file.path, f"is not this run's: its {_NOUNS[name]} is {found}, not {str(value)[:64]}"
    plan = shard_header.get("plan_file_sha256", "")
    if plan and run.plan_file_sha256 and plan != run.plan_file_sha256:
        yield (
            PLAN_FILE,
            f"is not the plan that shard {shard_id} was written under: it was changed, or the shard is another run's",
        )
    event = shard_header.get("events_head", "")
    if event and run.events is not None and event not in run.events:
        yield EVENTS_FOLDER, f"lacks the event that shard {shard_id} was written under: {_EITHER}"


def row_problems(row: Mapping[str, Any], table: str, shard_header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns of a row that contradict the file's header, as (column, what)."""
    for name, column in _REPEATED[table].items():
        if name in shard_header and row[column] != shard_header[name]:
            yield column, f"is {str(row[column])[:64]!r}; the file's header says {str(shard_header[name])[:64]!r}"


def schema_difference(table: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> str:
    """How a file's columns differ from those that its version of the schema writes; empty when they do not."""
    with suppress(IntegrityError):  # without a header it is held against today's
        if what := _version_problem(table_header(schema)):
            return what
    expected = schema_of(table, written_version(schema))
    wanted = [name for name in expected.names if columns is None or name in columns]
    there = Counter(schema.names)  # the list is made anew each time it is asked for
    missing = [name for name in wanted if name not in there]
    if missing:
        return f"columns are missing: {', '.join(missing)}"
    twice = sorted(name for name, count in there.items() if count > 1)
    if twice:
        return f"columns are there twice: {', '.join(twice)}"
    added = sorted(there.keys() - set(expected.names)) if columns is None else []
    if added:
        return f"columns are there that no writer writes: {', '.join(added)}"
    # The chain holds no digest of a member of a payload but its bytes, and the name is known: nothing would cover a third.
    more = [name for name in wanted if name in PAYLOADS and _members(schema, name) != _members(expected, name)]
    if more:
        return f"columns have other members: {', '.join(more)}"
    other = [name for name in wanted if not fits(schema.field(name).type, expected.field(name).type)]
    return f"columns have another type: {', '.join(other)}" if other else ""


def _members(schema: pa.Schema, name: str) -> list[str]:
    """Names of the members of a column that is a struct; none of any other."""
    kind = schema.field(name).type
    return [kind.field(place).name for place in range(kind.num_fields)] if str(kind).startswith("struct<") else []


def _version_problem(shard_header: Mapping[str, Any]) -> str:
    version = shard_header.get("schema_version")
    if is_readable(version):
        return ""
    return f"has columns of version {version!r}; this version of Clearance reads 1 to {SCHEMA_VERSION}"


def _header(folder: Path, path: str, size: int | None = None, which: str = "") -> dict[str, Any]:
    """The shard header of a data file.

    Raises:
        IntegrityError: the file has another size than ``size`` (it is not the file ``which``), or no header that can be read.
        InputError: the storage failed.
    """
    where = str(folder / path)
    with open_file(folder, path, little=True) as stream:
        try:
            there = stream.seek(0, os.SEEK_END)
            if size is not None and there != size:
                raise IntegrityError(f"is not the file {which}: it has {there} bytes, not {size}", where=where)
            found = header_in(stream, there)
        except OSError as error:
            raise cannot_read(error, where) from error
        if found is not None:
            return found
        with parsing(where, fix="", what="cannot be read as Parquet"):
            stream.seek(0)
            schema = parquet_file(stream).schema_arrow
        return table_header(schema)


def header_in(stream: IO[bytes], size: int) -> dict[str, Any] | None:
    """The shard header out of a Parquet file's footer, without parsing the footer; None where it is not found this way.

    A footer describes every column of every row group: parsing it takes .7 ms of CPU time, and finding one value in it .05.
    A resumed run looks at every committed file. Its footer holds the value in Thrift's compact form: field 1 (0x18, length,
    ``clearance``), field 2 (0x18, length, the header), in the last part, behind all that rows could have put there.
    """
    if size < 12:
        return None
    stream.seek(size - 8)
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size - 12:
        return None
    stream.seek(size - 8 - length)
    footer = stream.read(length)
    at = footer.rfind(_HEADER_KEY)
    if at < 0:
        return None
    at, count, shift = at + len(_HEADER_KEY), 0, 0
    while at < len(footer):
        byte, at = footer[at], at + 1
        count |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    try:
        found = json.loads(footer[at : at + count])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
