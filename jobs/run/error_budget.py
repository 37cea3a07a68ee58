"""How many requests of a run may end as errors before the run itself counts as failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from index.errors import TooManyErrors
from pipeline.outcome import Outcome

LEAST_REQUESTS, LEAST_SHARDS = 100, 4  # that have ended before a run is stopped early: one bad shard is no trend
LISTED = "`clearance status RUN --errors` lists them"
FIX = f"{LISTED}. Remove the cause, or raise max_error_rate (1: no limit), and continue with --resume"


def least(shard_size: int) -> int:
    """Requests that must have ended before a run is stopped early."""
    return max(LEAST_REQUESTS, LEAST_SHARDS * shard_size)


def beyond(outcomes: Mapping[str, int], most: float) -> str:
    """A sentence where more than the share ``most`` of the ended requests are errors; else empty."""
    errors, ended = outcomes.get(Outcome.ERROR, 0), sum(outcomes.values())
    if not ended or errors / ended <= most:
        return ""
    return f"{errors} of {ended} requests ended as errors ({percent(errors / ended)}); max_error_rate allows {percent(most)}"


def percent(share: float) -> str:
    """ "25 %", "0.5 %"."""
    return f"{100 * share:.3g} %"


def stop_beyond(outcomes: Mapping[str, int], most: float, shard_size: int, folder: Path) -> None:
    """Stop a run that goes wrong from the start.

    Args:
        outcomes: of the requests that ended in this session: what an earlier one ended with is no reason to stop a run whose
            cause of errors was removed.
        most: the share of them that may be errors. shard_size: requests per shard.
        folder: the run folder, for the most frequent reason.

    Raises:
        TooManyErrors: enough of them have ended, and too many as errors.
    """
    if sum(outcomes.values()) >= least(shard_size) and (what := beyond(outcomes, most)):
        raise TooManyErrors(f"{what}{_reason(folder)}", where=str(folder), fix=FIX)


def _reason(folder: Path) -> str:
    from pipeline.audit.ledger import sample_rows

    reasons = Counter(row["reason"] for row in sample_rows(folder, ["outcome", "reason"]) if row["outcome"] == Outcome.ERROR)
    return f"; most often {reasons.most_common(1)[0][0]}" if reasons else ""
