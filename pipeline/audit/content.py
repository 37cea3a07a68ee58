"""The content of a run: what must repeat when the same plan is run again, under one root.

The record root (``merkle_root`` of ``run.json``) is over the files, with their times, workers and signatures: no two runs share
it. The content root is over the requests: the seeds, the digests of the pixels before marking, what each guard found, what was
decided and what was changed. Runs of one plan have the same, whatever workers, kills and resumes there were; and so have runs
that cut their requests into shards of another size.

The tree is that of RFC 6962 over one digest a request, in the order of the requests.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import IntegrityError
from index.padding import first_line
from pipeline.audit.chain import canonical
from pipeline.audit.requests import VERIFY, Ended, ended_requests
from pipeline.audit.tree import merkle_root

SAMPLE_CONTENT = ("row_no", "request_key", "base_seed", "outcome", "reason", "accepted_attempt")
ATTEMPT_CONTENT = (
    "attempt", "seed", "resumed_from_step", "pixel_sha256", "decision", "reason", "skipped_guards", "findings", "intervention",
)  # fmt: skip
_VERDICT = ("guard", "category", "triggered", "confirmed")
_CHANGED = ("kind", "strength", "ref_ids", "tokens", "adapters")


def attempt_content(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row in ``attempts`` must repeat."""
    done = row["intervention"]
    return {
        **{name: row[name] for name in ATTEMPT_CONTENT},
        "findings": [[finding[name] for name in _VERDICT] for finding in row["findings"]],
        "intervention": None if done is None else {name: done[name] for name in _CHANGED},
    }


def attempt_digest(row: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of :func:`attempt_content`."""
    return hashlib.sha256(canonical(attempt_content(row))).hexdigest()


def sample_digest(row: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of what of a row in ``samples`` must repeat."""
    return hashlib.sha256(canonical({name: row[name] for name in SAMPLE_CONTENT})).hexdigest()


def content_digest(sample: str, attempts: Sequence[str]) -> str:
    """The digest of one request: over the digests of its sample and of its attempts in order."""
    return hashlib.sha256(canonical([sample, list(attempts)])).hexdigest()


class ContentTree:
    """Collects the digests of requests, in any order: 40 bytes a request."""

    def __init__(self) -> None:
        self._rows, self._digests = array("q"), bytearray()

    def add(self, row_no: int, digest: str) -> None:
        self._rows.append(row_no)
        self._digests += bytes.fromhex(digest)

    @property
    def root(self) -> str:
        """The root over the requests in the order of their rows, hex."""
        order = sorted(range(len(self._rows)), key=self._rows.__getitem__)
        return merkle_root([self._digests[32 * i : 32 * i + 32].hex() for i in order])


def content_root(folder: Path) -> str:
    """The content root of a run's committed shards.

    Raises:
        ClearanceError: a shard cannot be read.
    """
    tree = ContentTree()
    for ended in _ended(folder):
        tree.add(*_leaf(ended))
    return tree.root


def requests_content(folder: Path) -> Iterator[dict[str, Any]]:
    """Of every request what must repeat: ``sample``, ``attempts``, and the ``leaf`` that they make in the tree.

    Raises:
        ClearanceError: a shard cannot be read.
    """
    for ended in _ended(folder):
        yield {
            "sample": {name: ended.sample[name] for name in SAMPLE_CONTENT},
            "attempts": [attempt_content(row) for row in ended.attempts],
            "leaf": _leaf(ended)[1],
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs compared by content.

    Attributes:
        same: the content roots are equal.
        roots: of the two runs.
        requests: how many of each.
        differing: requests that differ, or that one run lacks.
        first: the key of the first of them; empty: there is none.
        what: how that one differs.
    """

    same: bool
    roots: tuple[str, str]
    requests: tuple[int, int]
    differing: int = 0
    first: str = ""
    what: str = ""


def compare(one: Path, other: Path) -> Comparison:
    """Compare two runs by content, and find the first request that differs.

    Raises:
        ClearanceError: a shard of either cannot be read.
    """
    trees = ContentTree(), ContentTree()
    known: dict[int, tuple[str, str]] = {}
    for ended in _ended(one):
        row, digest = _leaf(ended)
        trees[0].add(row, digest)
        known[row] = (digest, str(ended.sample["request_key"]))
    requests, others, differing = len(known), 0, dict[int, str]()
    for ended in _ended(other):
        row, digest = _leaf(ended)
        trees[1].add(row, digest)
        others += 1
        here = known.pop(row, None)
        if here is None or here[0] != digest:
            differing[row] = str(ended.sample["request_key"]) if here is None else here[1]
    differing |= {row: key for row, (_, key) in known.items()}
    roots, first = (trees[0].root, trees[1].root), min(differing, default=None)
    return Comparison(
        same=roots[0] == roots[1],
        roots=roots,
        requests=(requests, others),
        differing=len(differing),
        first="" if first is None else differing[first],
        what="" if first is None else _difference(_request(one, first), _request(other, first)),
    )


def _ended(folder: Path) -> Iterator[Ended]:
    return ended_requests(folder, SAMPLE_CONTENT, ATTEMPT_CONTENT)


def _leaf(ended: Ended) -> tuple[int, str]:
    try:
        return int(ended.sample["row_no"]), content_digest(sample_digest(ended.sample), [*map(attempt_digest, ended.attempts)])
    except (TypeError, ValueError) as error:  # an empty cell where no writer leaves one
        raise IntegrityError(f"holds a value that no row has ({first_line(error)})", where=ended.where, fix=VERIFY) from None


def _request(folder: Path, row_no: int) -> Ended | None:
    return next((ended for ended in _ended(folder) if ended.sample["row_no"] == row_no), None)


def _difference(one: Ended | None, other: Ended | None) -> str:
    """The first thing in which one request differs between two runs, as a sentence's end."""
    if one is None or other is None:
        return f"is in the {'second' if one is None else 'first'} run alone"
    for name in SAMPLE_CONTENT:
        if one.sample[name] != other.sample[name] and name in ("request_key", "base_seed"):
            return _named("", name, one.sample, other.sample)
    for before, after in zip(one.attempts, other.attempts, strict=False):
        here, there = attempt_content(before), attempt_content(after)
        for name in ATTEMPT_CONTENT:
            if here[name] != there[name]:
                return _named(f"attempt {here['attempt']}: ", name, here, there)
    if len(one.attempts) != len(other.attempts):
        return f"has {len(one.attempts)} attempts in the first run, {len(other.attempts)} in the second"
    name = next(name for name in SAMPLE_CONTENT if one.sample[name] != other.sample[name])
    return _named("", name, one.sample, other.sample)


def _named(place: str, name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    here, there = (str(values[name])[:120] for values in (one, other))
    return f"{place}{name} is {here} in the first run, {there} in the second"
