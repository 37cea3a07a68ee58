"""The review queue of a run: samples that wait for a person, those held back later, and accepted ones drawn for an audit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from index.counted import counted
from index.errors import InputError
from index.storage import open_file
from jobs.reaudit.standing import QUARANTINED, Standing
from pipeline.audit.pictures import COLUMNS
from pipeline.audit.requests import Opener, Row
from pipeline.audit.stored import rows_of, samples_of
from pipeline.outcome import Outcome

QUEUE, HELD, AUDIT = "queue", "quarantine", "audit"
ROW_COLUMNS = (*COLUMNS, "request_key", "reason", "prompt", "drawn_prompt", "attempts", "findings", "nearest", "finished_at")
WHY = {
    QUEUE: "The run could not decide: {reason}",
    HELD: "Held back after the run: {reason}",
    AUDIT: "Accepted by the run; drawn at random for an audit",
}


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A sample that waits for a person.

    Attributes:
        sample_id: the sample. born: its outcome in the row. outcome: the one in force.
        purpose: ``queue``, ``quarantine`` or ``audit``.
        reason: why it waits, in a few words.
        claims: what holds it back, if anything does.
        looks: what events say of it and the references that hold it back.
    """

    sample_id: str
    born: str
    outcome: str
    purpose: str
    reason: str = ""
    claims: tuple[str, ...] = ()
    looks: tuple[dict[str, Any], ...] = field(default=(), repr=False)


def waiting(folder: Path, standing: Standing) -> Iterator[Waiting]:
    """The samples that no person has decided about: outcome review, and those held back since. In the order of the rows.

    Raises:
        ClearanceError: a file cannot be read.
    """
    looks = _looks(standing)
    for part in samples_of(folder):
        for sample_id, born in zip(part.ids, part.outcomes, strict=True):
            outcome = standing.outcome(sample_id, born)
            if outcome == Outcome.QUARANTINED:
                if standing.decision(sample_id) is None:
                    yield _held(sample_id, born, standing, looks.get(sample_id, ()))
            elif outcome == Outcome.REVIEW:
                yield Waiting(sample_id=sample_id, born=born, outcome=outcome, purpose=QUEUE)


class InForce(NamedTuple):
    """The outcomes in force, counted, and how many samples wait for a person."""

    outcomes: Counter[str]
    waiting: int


def in_force(folder: Path, standing: Standing) -> InForce:
    """Count a run's samples by the outcome in force.

    Raises:
        ClearanceError: a file cannot be read.
    """
    pairs = ((i, born) for part in samples_of(folder) for i, born in zip(part.ids, part.outcomes, strict=True))
    outcomes = Counter(standing.outcome(sample_id, born) for sample_id, born in pairs)
    return InForce(outcomes, sum(1 for _ in waiting(folder, standing)))


def drawn(folder: Path, standing: Standing, count: int, seed: int) -> list[Waiting]:
    """Accepted samples drawn at random, each with the same chance; none that a person has decided about.

    The draw depends on the run, the seed and what was decided before, so it can be repeated.

    Raises:
        InputError: there are fewer.
    """
    fit = sorted(
        (sample_id, born)
        for part in samples_of(folder)
        for sample_id, born in zip(part.ids, part.outcomes, strict=True)
        if standing.is_out(sample_id, born) and standing.decision(sample_id) is None
    )
    if len(fit) < count:
        there = f"{len(fit)} {'is' if len(fit) == 1 else 'are'} there"
        what = f"asks for {counted(count, 'accepted sample')}, and {there} that nobody has looked at"
        raise InputError(what, where="--random", fix="Ask for fewer")
    chosen = sorted(random.Random(seed).sample(fit, count))
    return [
        Waiting(sample_id=sample_id, born=born, outcome=standing.outcome(sample_id, born), purpose=AUDIT)
        for sample_id, born in chosen
    ]


def rows_for(
    folder: Path, those: Collection[Waiting], *, opener: Opener = open_file
) -> Iterator[tuple[Waiting, tuple[str, int], Row]]:
    """What the rows hold of samples, with the file and number of each; in the order of the rows. ``opener`` opens the files."""
    by_id = {one.sample_id: one for one in those}
    for path, number, row in rows_of(folder, by_id.keys(), ROW_COLUMNS, opener=opener):
        yield by_id[row["sample_id"]], (path, number), row


def _looks(standing: Standing) -> dict[str, list[dict[str, Any]]]:
    """What events say of the samples that they hold back, and of the references that they are near to."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in standing.events:
        looks = event["details"].get("looks") if event["kind"] == QUARANTINED else None
        for sample_id, look in looks.items() if isinstance(looks, dict) else ():
            if isinstance(look, dict) and isinstance(look.get("ref_ids"), list):
                found.setdefault(sample_id, []).append(look)
    return found


def _held(sample_id: str, born: str, standing: Standing, looks: Sequence[dict[str, Any]]) -> Waiting:
    claims = standing.held_for(sample_id)
    return Waiting(
        sample_id=sample_id, born=born, outcome=str(Outcome.QUARANTINED), purpose=HELD, reason=", ".join(claims) or "held back",
        claims=tuple(claims), looks=tuple(looks),
    )  # fmt: skip
