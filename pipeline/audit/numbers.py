"""The counts of a run: the one source of the numbers of terminal, status, demo, report.html and report.json.

They are counted from the Parquet tables alone, request by request, in memory that does not grow with the run; a run that is
not finished has them too. What each word means, here and everywhere else:

=================  ========================================================================================================
requested          Requests that have ended, in whatever way: rows in ``samples``.
generated          Of these, requests with at least one finished picture.
flagged            Of these, requests whose first picture triggered a guard, *whatever the policy does about it*, or that a
                   probe caught in mid-flight. Every flagged request is exactly one of the next three. A prompt that the
                   policy rewrote flags no picture: what was drawn no longer holds the words that were found.
– caught           A probe stopped a try of it in mid-flight, because it was on its way to a reference.
– acted on         The first picture was flagged and not accepted: steered, sent to a person, or rejected.
– observed         The first picture was flagged and accepted at once: the policy only observes what was found, or keeps it
                   because the prompt asks for it.
steered            Requests for which at least one picture was drawn under an intervention.
accepted           Requests that ended with a picture, at once or after steering. Every other one is in review, rejected,
                   quarantined or an error.
asked for          Accepted pictures with a mark that the prompt asks for and that the policy keeps (its table ``asked``).
would have been    Accepted pictures on which a guard triggered that the policy only observes. A policy that acts would not
flagged            have let them through like that.
similarity         Of a picture: the highest cosine to a reference in force (one neither retired nor allowed).
near               By the embedder: the similarity reaches the copy threshold.
too near (copy)    A finding ``copy.*`` is triggered: what remains after both looks, the embedder's and the second, geometric
                   one. A policy that acts on copies accepts none; one that observes does.
cleared            By the second look: near, and not too near. Laid over the references it is near to, the picture shares
                   nothing with them. Every accepted near picture is either too near or cleared.
nearest accepted   The highest similarity of an accepted picture: before the second look (by the embedder alone), and after it
                   (references that it cleared left out).
=================  ========================================================================================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from guards.base import is_copy
from guards.copies import AS_IT_IS, HARMLESS, NOTHING_NEAR
from guards.vision_language import UNANSWERED, other_model
from index.errors import ClearanceError, IntegrityError
from index.rate import wilson
from pipeline.audit.requests import VERIFY, Row, ended_requests
from pipeline.outcome import ACCEPTED, Outcome, Verdict
from pipeline.policy import ASKED, REWRITE

SAMPLE_COLUMNS = (
    "request_key outcome reason accepted_attempt findings nearest copy_threshold denoiser_evals device_seconds started_at "
    "finished_at prompt_truncated xmp_present c2pa_present watermark_scheme"
).split()
ATTEMPT_COLUMNS = "intervention caught findings nearest decision denoiser_evals".split()
_ODD = (TypeError, KeyError, ValueError, IndexError, AttributeError, ArithmeticError)


class Counting(Protocol):
    """What counts requests, one by one."""

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        """Count a request: its row in ``samples``, and those of its attempts in order."""
        ...


@dataclass(kw_only=True)
class Counts:
    """The counts of a run, or of some of its requests. The words are those of this module's own text.

    Attributes:
        looked_first: requests whose first attempt the copies guard looked at, or a probe caught.
        too_near_first: of these, requests whose first picture was too near, or that were caught on the way to it.
        looked: accepted pictures that the copies guard looked at. near, too_near, cleared: of these.
        would_be_flagged: accepted pictures on which a guard triggered, but for marks that the prompt asks for and words of the
            prompt that the policy replaced. observed_by: the same by guard.
        asked: accepted pictures with a mark that the prompt asks for and the policy keeps.
        unanswered: requests whose last picture a question was asked about, and not answered. other_models: those of which a
            question was answered by another model than was asked, by the name that it gave.
        by_embedder, after_second_look: the nearest accepted similarity; None without accepted pictures or references in force.
        copy_threshold: the lowest in force, should rows differ; None where nothing was compared.
        evals, evals_accepted, device_seconds: what all attempts cost; what the accepted pictures cost.
    """

    requested: int = 0
    generated: int = 0
    pictures: int = 0
    flagged: int = 0
    caught: int = 0
    acted: int = 0
    observed: int = 0
    steered: int = 0
    steered_accepted: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    looked_first: int = 0
    too_near_first: int = 0
    looked: int = 0
    near: int = 0
    too_near: int = 0
    cleared: int = 0
    would_be_flagged: int = 0
    observed_by: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    unanswered: int = 0
    other_models: Counter[str] = field(default_factory=Counter)
    by_embedder: float | None = None
    after_second_look: float | None = None
    copy_threshold: float | None = None
    truncated: int = 0
    marked: Counter[str] = field(default_factory=Counter)
    evals: float = 0.0
    evals_accepted: float = 0.0
    device_seconds: float = 0.0
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def accepted(self) -> int:
        return sum(self.outcomes[name] for name in ACCEPTED)

    @property
    def evals_per_accepted(self) -> float | None:
        """Denoiser evaluations of the whole run, waste included, per accepted picture."""
        return self.evals / self.accepted if self.accepted else None

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        outcome = Outcome(sample["outcome"])
        self.requested += 1
        self.outcomes[outcome.value] += 1
        if sample["reason"]:
            self.reasons[str(sample["reason"])] += 1
        self.truncated += bool(sample["prompt_truncated"])
        self.pictures += len(attempts)
        self.evals += sample["denoiser_evals"]
        self.device_seconds += sample["device_seconds"]
        self.started = min(sample["started_at"], self.started or sample["started_at"])
        self.finished = max(sample["finished_at"], self.finished or sample["finished_at"])
        self.unanswered += any(finding["category"] == UNANSWERED for finding in triggered(sample["findings"]))
        answered = {other_model(str(finding["guard"]), str(finding.get("detail") or "")) for finding in sample["findings"]}
        self.other_models.update(answered - {""})
        if attempts:
            self._first(attempts, outcome)
        if looked_at_for_copies(sample["findings"]):
            self.copy_threshold = min(sample["copy_threshold"], self.copy_threshold or sample["copy_threshold"])
        if outcome in ACCEPTED:
            self._accepted(sample)
            self.evals_accepted += sum(t["denoiser_evals"] for t in attempts if t["attempt"] == sample["accepted_attempt"])

    def _first(self, attempts: Sequence[Row], outcome: Outcome) -> None:
        first, caught = attempts[0], any(one["caught"] for one in attempts)
        flagged = caught or any(not is_rewritten(finding) for finding in triggered(first["findings"]))
        observed = flagged and not caught and Verdict(first["decision"]) is Verdict.ACCEPT
        self.generated += 1
        self.flagged += flagged
        self.caught += caught
        self.observed += observed
        self.acted += flagged and not caught and not observed
        steered = any(one["intervention"] is not None for one in attempts)
        self.steered += steered
        self.steered_accepted += steered and outcome in ACCEPTED
        self.looked_first += bool(first["caught"]) or looked_at_for_copies(first["findings"])
        self.too_near_first += bool(first["caught"]) or is_too_near(first["findings"])

    def _accepted(self, sample: Row) -> None:
        found = triggered(sample["findings"])
        guards = {str(finding["guard"]) for finding in found if not (is_asked(finding) or is_rewritten(finding))}
        self.asked += any(map(is_asked, found))
        self.would_be_flagged += bool(guards)
        self.observed_by.update(guards)
        for name in ("xmp_present", "c2pa_present", "watermark_scheme"):
            self.marked[name] += bool(sample[name])
        if not looked_at_for_copies(sample["findings"]):
            return
        likeness = similarity(sample["nearest"])
        near, too_near = is_near(sample), is_too_near(sample["findings"])
        self.looked += 1
        self.near += near
        self.too_near += too_near
        self.cleared += near and not too_near
        self.by_embedder = larger(self.by_embedder, likeness)
        for finding in sample["findings"]:
            if finding["category"] in AS_IT_IS and finding["score"] > NOTHING_NEAR:
                self.after_second_look = larger(self.after_second_look, float(finding["score"]))

    def measures(self) -> dict[str, dict[str, Any]]:
        """Every number by name: its value, its interval where it is a rate, and the expression over the tables behind it."""
        n, accepted = self.requested, "outcome in (accepted, accepted_after_steering)"
        looked = f"count(samples where {accepted} and any(findings: category like copy.*))"
        too_near = "any(findings: category like copy.* and triggered)"
        near = "any(nearest: status not in (retired, allowed) and similarity >= copy_threshold)"
        first = "count(samples, attempts where attempt = 0 and"
        flagged, stopped = f"any(findings: triggered and action <> {REWRITE})", "any(attempts: caught <> [])"
        let_through = f"any(findings: triggered and action not in ({ASKED}, {REWRITE}))"
        by = {name: count(self.outcomes[name], f"count(samples where outcome = {name})") for name in Outcome}
        wasted = per(
            self.evals - self.evals_accepted, self.evals, "1 - sum(attempts.denoiser_evals of accepted attempts) / evals"
        )
        seconds = (self.finished - self.started).total_seconds() if self.finished and self.started else 0.0
        return {
            "requested": count(n, "count(samples)"),
            "generated": count(self.generated, "count(samples with a row in attempts)"),
            "pictures": count(self.pictures, "count(attempts)"),
            "flagged": count(self.flagged, f"{first} ({flagged} or {stopped}))"),
            "caught": count(self.caught, f"count(samples where {stopped})"),
            "acted_on": count(self.acted, f"{first} {flagged} and decision <> accept and not {stopped})"),
            "observed": count(self.observed, f"{first} {flagged} and decision = accept and not {stopped})"),
            "steered": count(self.steered, "count(samples where any(attempts: intervention is not null))"),
            "accepted": count(self.accepted, f"count(samples where {accepted})"),
            "accepted_at_once": by[Outcome.ACCEPTED],
            **{name.value: by[name] for name in Outcome if name is not Outcome.ACCEPTED},
            "flagged_rate": rate(self.flagged, self.generated, "flagged / generated"),
            "copy_rate_first": rate(
                self.too_near_first,
                self.looked_first,
                f"{first} ({too_near} or caught <> [])) / those with copy.* findings or caught",
            ),
            "copy_rate_accepted": rate(
                self.too_near, self.looked, f"count(samples where {accepted} and {too_near}) / {looked}"
            ),
            "near_rate_accepted": rate(self.near, self.looked, f"count(samples where {accepted} and {near}) / {looked}"),
            "cleared_rate_accepted": rate(
                self.cleared, self.looked, f"count(samples where {accepted} and {near} and not {too_near}) / {looked}"
            ),
            "would_be_flagged_rate": rate(
                self.would_be_flagged,
                self.accepted,
                f"count(samples where {accepted} and {let_through}) / accepted",
            ),
            "asked": count(self.asked, f"count(samples where {accepted} and any(findings: triggered and action = {ASKED}))"),
            "nearest_by_embedder": count(self.by_embedder, f"max(nearest.similarity in force of samples where {accepted})"),
            "nearest_after_second_look": count(
                self.after_second_look,
                f"max(findings.score, category in ({', '.join(AS_IT_IS)}), of samples where {accepted})",
            ),
            "copy_threshold": count(self.copy_threshold, "min(samples.copy_threshold)"),
            "steering_success": rate(self.steered_accepted, self.steered, f"count(samples steered where {accepted}) / steered"),
            "acceptance_rate": rate(self.accepted, n, "accepted / requested"),
            "review_rate": rate(self.outcomes[Outcome.REVIEW], n, "review / requested"),
            "rejected_rate": rate(self.outcomes[Outcome.REJECTED], n, "rejected / requested"),
            "error_rate": rate(self.outcomes[Outcome.ERROR], n, "error / requested"),
            "truncated": count(self.truncated, "count(samples where prompt_truncated)"),
            "xmp_rate": rate(self.marked["xmp_present"], self.accepted, "count(samples where xmp_present) / accepted"),
            "c2pa_rate": rate(self.marked["c2pa_present"], self.accepted, "count(samples where c2pa_present) / accepted"),
            "watermark_rate": rate(
                self.marked["watermark_scheme"], self.accepted, "count(samples where watermark_scheme <> '') / accepted"
            ),
            "evals": count(self.evals, "sum(samples.denoiser_evals)"),
            "evals_per_accepted": per(self.evals, self.accepted, "evals / accepted"),
            "evals_wasted": wasted,
            "device_seconds": count(self.device_seconds, "sum(samples.device_seconds)"),
            "device_seconds_per_accepted": per(self.device_seconds, self.accepted, "device_seconds / accepted"),
            "wall_seconds": count(seconds, "max(samples.finished_at) - min(samples.started_at)"),
        }


def count_run(folder: Path, keys: Container[str] | None = None) -> Counts:
    """Count the committed shards of a run folder, finished or not.

    Args:
        folder: the run folder.
        keys: count only these requests.

    Raises:
        IntegrityError: a file cannot be read, or a row holds what cannot be counted.
    """
    counts = Counts()
    count_into([counts], folder, keys=keys)
    return counts


def count_into(
    countings: Sequence[Counting],
    folder: Path,
    *,
    sample_columns: Collection[str] = (),
    attempt_columns: Collection[str] = (),
    keys: Container[str] | None = None,
    damaged: list[ClearanceError] | None = None,
) -> None:
    """Hand every request of a run to several countings, in one pass.

    Args:
        countings: what counts.
        folder: the run folder.
        sample_columns, attempt_columns: what they need beside those of :class:`Counts`.
        keys: only these requests.
        damaged: when given, a shard that cannot be read is left out and its error appended here.

    Raises:
        IntegrityError: a file cannot be read, or a row holds what cannot be counted.
    """
    for sample, attempts, where in ended_requests(
        folder, {*SAMPLE_COLUMNS, *sample_columns}, {*ATTEMPT_COLUMNS, *attempt_columns}, damaged=damaged
    ):
        try:
            if keys is None or sample["request_key"] in keys:
                for counting in countings:
                    counting.add(sample, attempts)
        except _ODD as error:
            raise IntegrityError(f"cannot be counted ({type(error).__name__}: {error})", where=where, fix=VERIFY) from None


# --- one picture -----------------------------------------------------------------------------------------------------------


def triggered(findings: Sequence[Row]) -> list[Row]:
    """The findings that reached their threshold."""
    return [finding for finding in findings if finding["triggered"]]


def is_asked(finding: Row) -> bool:
    """Whether a finding is of a mark that the prompt asks for and the policy keeps."""
    return finding.get("action") == ASKED  # rows of schema 1 have no action


def is_rewritten(finding: Row) -> bool:
    """Whether a finding is of words in the prompt that the policy replaced: it acted, and the picture is of other words."""
    return finding.get("action") == REWRITE


def is_too_near(findings: Sequence[Row]) -> bool:
    """Whether a picture is too near to a reference, after both looks."""
    return any(is_copy(str(finding["category"])) for finding in triggered(findings))


def looked_at_for_copies(findings: Sequence[Row]) -> bool:
    """Whether the copies guard looked at the picture at all: it reports something about every one."""
    return any(is_copy(str(finding["category"])) for finding in findings)


def in_force(nearest: Sequence[Row]) -> list[Row]:
    """The references near a picture that still forbid something, the nearest first."""
    if not all(math.isfinite(match["similarity"]) for match in nearest):
        raise ValueError("a similarity is not finite")
    return sorted((m for m in nearest if m["status"] not in HARMLESS), key=lambda match: -float(match["similarity"]))


def similarity(nearest: Sequence[Row]) -> float | None:
    """The highest cosine to a reference in force; None where there is none."""
    return next((float(match["similarity"]) for match in in_force(nearest)), None)


def is_near(sample: Row) -> bool:
    """Whether the embedder alone finds a sample's picture too near."""
    likeness = similarity(sample["nearest"])
    return likeness is not None and likeness >= sample["copy_threshold"]


def larger(known: float | None, value: float | None) -> float | None:
    return value if known is None else known if value is None else max(known, value)


# --- one number ------------------------------------------------------------------------------------------------------------


def count(value: float | None, expression: str) -> dict[str, Any]:
    return {"value": value, "expression": expression}


def rate(k: int, n: int, expression: str) -> dict[str, Any]:
    """A share with its interval; its value is None when there was nothing to count."""
    low, high = wilson(k, n)
    return {"value": k / n if n else None, "k": k, "n": n, "low": low, "high": high, "expression": expression}


def per(total: float, n: float, expression: str) -> dict[str, Any]:
    return {"value": total / n if n else None, "total": total, "n": n, "expression": expression}
