"""The large parts of a compacted run: ``parts/``, and the index in it that names every shard's rows in them.

A shard of 16 rows is three small files. `clearance compact` writes their rows into parts of some hundred megabytes, unchanged
and in the same order, and takes the small files away. What was committed stays provable without them, because a shard's leaf
in the Merkle tree holds the end of each table's chain, and the chain binds every row and, by digest, every payload. So
``parts/index.parquet`` keeps, for every shard: the bytes of its commit marker; and for each of its tables the part that its
rows are in, the number of the first one, how many there are, and the header that their chain starts from. A verifier
recomputes each shard's chain inside the part. The event ``run.compacted`` names the digest of the index, and the index the
digests of the parts.

The index is the switch. Where it is, every reader goes by it; where it is not, by the commit markers. So a reader sees the
small files or the parts, never both. :mod:`pipeline.audit.compact` writes all this; :mod:`pipeline.audit.layout` reads by it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from index.errors import IntegrityError
from index.padding import first_line
from index.parquet import parquet_file
from index.storage import entry_of, parse_object, read_file
from pipeline.audit.schema import KEPT

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "parts"
PARTS_INDEX = f"{PARTS}/index.parquet"
COMPACTED = "run.compacted"
_TABLES = ("samples", "attempts", KEPT)
_KEY = b"clearance_parts"
_RESTORE = f"Restore {PARTS_INDEX} from a copy"


def is_part_file(name: str) -> bool:
    """Whether a file of that name in ``parts/`` is of a compaction: only we write such."""
    return name == "index.parquet" or re.fullmatch(rf"({'|'.join(_TABLES)})-\d{{5,}}-[0-9a-f]{{8}}\.parquet", name) is not None


@dataclass(frozen=True, kw_only=True)
class LargePart:
    """A data file that holds the rows of many shards.

    Attributes:
        table: ``samples``, ``attempts`` or ``kept``. path: relative to the run folder.
        sha256, bytes: its digest and size when it was written. rows: rows in it.
    """

    table: str
    path: str
    sha256: str
    bytes: int
    rows: int


class Slice(NamedTuple):
    """The rows of one table of one shard: in which part, from which row on, how many; the header of their chain, as JSON."""

    path: str
    first: int
    rows: int
    header: str


@dataclass(frozen=True, kw_only=True)
class PartsIndex:
    """What ``parts/index.parquet`` holds.

    Attributes:
        parts: the parts, table by table, in the order of their rows.
        markers: the bytes of every shard's commit marker, in the order of the shards.
        slices: for every shard, its rows by table.
        sha256: digest of the file.
    """

    parts: tuple[LargePart, ...]
    markers: Mapping[str, bytes] = field(repr=False)
    slices: Mapping[str, Mapping[str, Slice]] = field(repr=False)
    sha256: str = ""

    def in_part(self, part: LargePart) -> list[tuple[str, Slice]]:
        """The shards whose rows are in a part, with their rows, in the order of the rows."""
        found = [(shard, own[part.table]) for shard, own in self.slices.items() if part.table in own]
        return sorted((one for one in found if one[1].path == part.path), key=lambda one: (one[1].first, one[1].rows))


def index_bytes(parts: Sequence[LargePart], markers: Mapping[str, bytes], slices: Mapping[str, Mapping[str, Slice]]) -> bytes:
    """The file of an index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {part.path: number for number, part in enumerate(parts)}
    rows = []
    for shard_id, marker in markers.items():
        row: dict[str, Any] = {"shard_id": shard_id, "marker": marker}
        for table, own in slices[shard_id].items():
            row |= {f"{table}_part": numbers[own.path], f"{table}_first": own.first, f"{table}_rows": own.rows}
            row[f"{table}_header"] = own.header
        rows.append(row)
    stated = json.dumps([asdict(part) for part in parts], sort_keys=True, separators=(",", ":"))
    sink = BytesIO()
    table = pa.Table.from_pylist(rows, schema=_schema().with_metadata({_KEY: stated.encode()}))
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue()


def _schema() -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field("shard_id", pa.string()), pa.field("marker", pa.binary())]
    for table in _TABLES:
        fields += [pa.field(f"{table}_{name}", pa.int64()) for name in ("part", "first", "rows")]
        fields.append(pa.field(f"{table}_header", pa.string()))
    return pa.schema(fields)


def parts_index(folder: Path) -> PartsIndex | None:
    """The index of a compacted run; None where the run is not compacted.

    Raises:
        IntegrityError: it is a link, or cannot be read as an index.
    """
    if entry_of(folder, PARTS_INDEX) is None:
        return None
    data = read_file(folder, PARTS_INDEX)
    try:
        return _parse(data)
    except Exception as error:  # the reader of damaged bytes may raise anything
        what = f"cannot be read as the index of parts ({first_line(error)})"
        raise IntegrityError(what, where=str(folder / PARTS_INDEX), fix=_RESTORE) from None


@lru_cache(maxsize=1)  # whoever asks for the rows of a few pictures asks for it again and again
def _parse(data: bytes) -> PartsIndex:
    table = parquet_file(BytesIO(data), checksums=True).read(use_threads=False)
    table.validate(full=True)
    if not table.schema.remove_metadata().equals(_schema()):
        raise ValueError("other columns")
    parts = tuple(_part(plain) for plain in json.loads(table.schema.metadata[_KEY]))
    if len({part.path for part in parts}) < len(parts):
        raise ValueError("a part is named twice")
    columns = table.to_pydict()
    shards, bodies = columns["shard_id"], columns["marker"]
    if None in shards or None in bodies or len(set(shards)) < len(shards):
        raise ValueError("a shard is missing, or named twice")
    slices: dict[str, dict[str, Slice]] = {shard: {} for shard in shards}
    for name in _TABLES:
        held = (columns[f"{name}_{key}"] for key in ("part", "first", "rows", "header"))
        for shard, number, first, rows, header in zip(shards, *held, strict=True):
            if number is None:
                continue
            if not (0 <= number < len(parts)) or parts[number].table != name or first < 0 or rows < 0 or header is None:
                raise ValueError(f"shard {shard} names rows that no part has")
            slices[shard][name] = Slice(parts[number].path, first, rows, header)
    digest = hashlib.sha256(data).hexdigest()
    return PartsIndex(parts=parts, markers=dict(zip(shards, bodies, strict=True)), slices=slices, sha256=digest)


def _part(plain: Any) -> LargePart:
    kinds = {"table": str, "path": str, "sha256": str, "bytes": int, "rows": int}
    if {name: type(value) for name, value in plain.items()} != kinds:
        raise ValueError("other keys of a part")
    part = LargePart(**plain)
    folder, _, leaf = part.path.partition("/")
    # An index that names a file elsewhere would make readers follow it there.
    if folder != PARTS or not is_part_file(leaf) or not leaf.startswith(f"{part.table}-") or part.table not in _TABLES:
        raise ValueError("not a part")
    return part


def index_named(events: Iterable[Mapping[str, Any]]) -> str:
    """The digest of the index that the last event ``run.compacted`` names; empty where there is none."""
    named = ""
    for event in events:
        if event["kind"] == COMPACTED:
            named = str(event["digests"].get("index_sha256", ""))
    return named


def index_problems(index: PartsIndex, named: str) -> Iterator[tuple[str, str]]:
    """What of an index does not go with the events, as (where, what)."""
    if index.sha256 != named:
        what = "is not the index that the last event of a compaction names" if named else "is there, and no event names it"
        yield PARTS_INDEX, what


def header_of(text: str) -> dict[str, Any]:
    """The header of a shard's chain, as an index keeps it.

    Raises:
        IntegrityError: it is none.
    """
    return parse_object(text.encode(), where=PARTS_INDEX)
