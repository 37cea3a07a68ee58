"""The requests of a plan as they are stored and bound: a table with a row for each, and a digest.

A plan that was read from a run folder keeps them as that table. A million rows are 60 MB there, and are not made into objects
until they are drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from json.encoder import encode_basestring_ascii as _text
from typing import TYPE_CHECKING, Any, overload

from pipeline.outcome import AS_THE_RUN, Request, Stated

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 4096  # rows that are taken out of a table together
_ALWAYS = ("row_no", "key", "prompt", "negative_prompt", "seed", "problem_code", "problem")  # columns of every table


class StoredRequests(Sequence[Request]):
    """Requests as rows of a table: one is made when it is asked for. Equal to every sequence of the same requests.

    Args:
        table: as :func:`requests_table` makes it.
        rows: those of its rows that belong here, one after the other; None: all.
        file_sha256: digest of the file that the whole table was read from; empty: none.
    """

    __slots__ = ("_rows", "_table", "file_sha256")

    def __init__(self, table: pa.Table, rows: range | None = None, *, file_sha256: str = "") -> None:
        self._table, self._rows, self.file_sha256 = table, range(table.num_rows) if rows is None else rows, file_sha256

    @property
    def table(self) -> pa.Table:
        return self._table.slice(self._rows.start, len(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> StoredRequests: ...
    def __getitem__(self, place: int | slice) -> Request | StoredRequests:
        if isinstance(place, slice):
            rows = self._rows[place]
            return StoredRequests(self._table, rows) if rows.step == 1 else self.taken(range(len(self))[place])
        return request_of(self._table.slice(self._rows[place], 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Request]:
        for block in self._blocks():
            yield from map(request_of, block.to_pylist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredRequests):
            return bool(self.table.equals(other.table)) or tuple(self) == tuple(other)
        return tuple(self) == other if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def has(self, column: str) -> bool:
        """Whether the table has a column that not every plan needs."""
        return column in self._table.column_names

    def drawable(self) -> int:
        """How many of them have no problem."""
        import pyarrow.compute as pc

        return int(pc.sum(pc.equal(self.table["problem_code"], "")).as_py() or 0)

    def taken(self, places: Sequence[int]) -> StoredRequests:
        """The requests at these places, in this order."""
        import pyarrow as pa

        return StoredRequests(self.table.take(pa.array(places, pa.int64())))

    def texts(self) -> Iterator[str]:
        """What :func:`_json` gives for each."""
        import pyarrow.compute as pc

        plain = set(self._table.column_names) == set(_ALWAYS)
        for block in self._blocks():
            if plain and not pc.any(pc.not_equal(block["problem_code"], "")).as_py():
                columns = (block[name].to_pylist() for name in _ALWAYS[:5])
                for row_no, key, prompt, negative, seed in zip(*columns, strict=True):
                    yield _plain(row_no, key, prompt, negative, seed)
            else:
                yield from map(_json, map(request_of, block.to_pylist()))

    def _blocks(self) -> Iterator[pa.Table]:
        rows = self._rows
        for first in range(rows.start, rows.stop, _AT_ONCE):
            yield self._table.slice(first, min(_AT_ONCE, rows.stop - first))


def has_requests(table: pa.Table) -> bool:
    """Whether a table has the columns that :func:`requests_table` gives every one."""
    return set(_ALWAYS) <= set(table.column_names)


def row_numbers(requests: Sequence[Request]) -> Sequence[int]:
    """``row_no`` of each; no request is made for it."""
    if isinstance(requests, StoredRequests):
        numbers: list[int] = requests.table["row_no"].to_pylist()
        return numbers
    return [request.row_no for request in requests]


def requests_table(requests: Sequence[Request]) -> pa.Table:
    """A row for each request. Columns that no request needs are left out, so that older plans keep their bytes."""
    import pyarrow as pa

    columns = {
        "row_no": pa.array([r.row_no for r in requests], pa.int64()),
        "key": pa.array([r.key for r in requests], pa.string()),
        "prompt": pa.array([r.prompt for r in requests], pa.string()),
        "negative_prompt": pa.array([r.negative_prompt for r in requests], pa.string()),
        "seed": pa.array([r.seed for r in requests], pa.int64()),
        "problem_code": pa.array([r.problem[0] if r.problem else "" for r in requests], pa.string()),
        "problem": pa.array([r.problem[1] if r.problem else "" for r in requests], pa.string()),
    }
    if any(r.adapter for r in requests):
        columns["adapter"] = pa.array([r.adapter for r in requests], pa.string())
    if any(r.columns for r in requests):
        columns["columns"] = pa.array([r.columns for r in requests], pa.string())
    if any(r.stated is not AS_THE_RUN and r.stated for r in requests):
        for name in Stated._fields:
            kind = pa.float64() if name == "guidance_scale" else pa.int32()
            columns[name] = pa.array([getattr(r.stated, name) for r in requests], kind)
    if any(r.group for r in requests):
        columns["group"] = pa.array([r.group for r in requests], pa.string())
        columns["member"] = pa.array([r.member for r in requests], pa.int32())
        columns["group_size"] = pa.array([r.group_size for r in requests], pa.int32())
    return pa.table(columns)


def requests_digest(requests: Sequence[Request]) -> str:
    """The digest of requests; what a request does not have is left out of it."""
    whole, rest = divmod(len(requests), _AT_ONCE)
    return digests_of(requests, [_AT_ONCE] * whole + [rest] * bool(rest))[1]


def digests_of(requests: Sequence[Request], lengths: Iterable[int]) -> tuple[list[str], str]:
    """The digest of every piece, and of all requests: each request is written once, and the whole text is never there.

    It is the digest of ``json.dumps`` of a list with a list for each request.

    Args:
        requests: of all pieces, one after the other.
        lengths: how many there are in each piece.
    """
    whole, each, first = hashlib.sha256(b"["), [], True
    texts = requests.texts() if isinstance(requests, StoredRequests) else map(_json, requests)
    for length in lengths:
        text = ",".join(islice(texts, length)).encode()
        each.append(hashlib.sha256(b"[%b]" % text).hexdigest())
        whole.update(text if first else b"," + text)
        first = False
    whole.update(b"]")
    return each, whole.hexdigest()


def _json(r: Request) -> str:
    """A request as compact JSON in ASCII."""
    if not (r.problem or r.columns or r.group or r.adapter or (r.stated is not AS_THE_RUN and r.stated)):
        return _plain(r.row_no, r.key, r.prompt, r.negative_prompt, r.seed)
    row: list[Any] = [
        # a plan without columns of the caller's own keeps the digest it had before there were any
        *[r.row_no, r.key, r.prompt, r.negative_prompt, r.seed, list(r.problem) if r.problem else None],
        *([r.columns] if r.columns or r.group else []),
        *([[r.group, r.member, r.group_size]] if r.group else []),
        *([{"adapter": r.adapter}] if r.adapter else []),
        *([r.stated._asdict()] if r.stated else []),
    ]
    return json.dumps(row, separators=(",", ":"))


def _plain(row_no: int, key: str, prompt: str, negative_prompt: str, seed: int) -> str:
    """As json.dumps writes it, in half the time."""
    return f"[{row_no},{_text(key)},{_text(prompt)},{_text(negative_prompt)},{seed},null]"


def request_of(row: Mapping[str, Any]) -> Request:
    """The request of a row of the table."""
    problem = (row["problem_code"], row["problem"]) if row["problem_code"] else None
    stated = Stated(**{name: row.get(name) for name in Stated._fields})
    return Request(
        row_no=row["row_no"],
        key=row["key"],
        prompt=row["prompt"],
        negative_prompt=row["negative_prompt"],
        seed=row["seed"],
        adapter=row.get("adapter") or "",
        columns=row.get("columns") or "",
        stated=stated if stated else AS_THE_RUN,
        problem=problem,
        group=row.get("group") or "",
        member=row.get("member") or 0,
        group_size=row.get("group_size") or 0,
    )
