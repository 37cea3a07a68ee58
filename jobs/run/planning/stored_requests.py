"""The requests of a plan as they are stored and bound: a table with a row for each, and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as _text
from typing import TYPE_CHECKING, Any

from pipeline.outcome import AS_THE_RUN, Request, Stated

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 4096  # requests in a piece of what a digest is taken of


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
    pieces = (requests[first : first + _AT_ONCE] for first in range(0, len(requests), _AT_ONCE))
    return digests_of(pieces)[1]


def digests_of(pieces: Iterable[Sequence[Request]]) -> tuple[list[str], str]:
    """The digest of every piece, and of all pieces as one: each request is written once, and the whole text is never there.

    It is the digest of ``json.dumps`` of a list with a list for each request.
    """
    whole, each, first = hashlib.sha256(b"["), [], True
    for piece in pieces:
        text = ",".join(map(_json, piece)).encode()
        each.append(hashlib.sha256(b"[%b]" % text).hexdigest())
        whole.update(text if first else b"," + text)
        first = False
    whole.update(b"]")
    return each, whole.hexdigest()


def _json(r: Request) -> str:
    """A request as compact JSON in ASCII."""
    if not (r.problem or r.columns or r.group or r.adapter or (r.stated is not AS_THE_RUN and r.stated)):
        texts = f"{_text(r.key)},{_text(r.prompt)},{_text(r.negative_prompt)}"
        return f"[{r.row_no},{texts},{r.seed},null]"  # as json.dumps writes it, in half the time
    row: list[Any] = [
        # a plan without columns of the caller's own keeps the digest it had before there were any
        *[r.row_no, r.key, r.prompt, r.negative_prompt, r.seed, list(r.problem) if r.problem else None],
        *([r.columns] if r.columns or r.group else []),
        *([[r.group, r.member, r.group_size]] if r.group else []),
        *([{"adapter": r.adapter}] if r.adapter else []),
        *([r.stated._asdict()] if r.stated else []),
    ]
    return json.dumps(row, separators=(",", ":"))


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
