"""The sentences that stand beside the counts of a run, the same in terminal, status, demo and report."""

from __future__ import annotations

from typing import Any

from index.rate import Rate
from pipeline.audit.numbers import Counts
from pipeline.copy_check import UNKNOWN, CopyCheck


def sentences(counts: Counts, check: CopyCheck | None) -> dict[str, str]:
    """The sentences beside the counts, by topic; a topic without a sentence is left out.

    ``warning``: the check misses too much. ``observed``: what a policy that only observes let through. ``asked``: marks
    that were kept because the prompt asks for them. ``questions``: those to a vision-language model that were not answered, or
    by another model than was asked. ``copies``: how many
    accepted pictures are too near, and how many the second look cleared. ``nearest``: how near the nearest came, by either
    look. ``check``: the recall of the check, which stands beside every count of copies. ``measured_on``: what it was measured
    on.
    """
    found = {
        "warning": check.warning if check is not None else "",
        "observed": _observed(counts),
        "asked": _asked(counts),
        "questions": _questions(counts),
        "copies": _copies(counts),
    }
    if counts.looked or check is not None:
        found |= {"nearest": _nearest(counts), "check": check.sentence if check is not None else UNKNOWN}
        found["measured_on"] = check.measured_on if check is not None else ""
    return {topic: text for topic, text in found.items() if text}


def plain(counts: Counts, check: CopyCheck | None) -> dict[str, Any]:
    """Counts, sentences and the copy check as plain data: the part of ``report.json`` that status and demo print as well."""
    return {
        "measures": counts.measures(),
        "outcomes": dict(sorted((name, n) for name, n in counts.outcomes.items() if n)),
        "reasons": dict(sorted(counts.reasons.items())),
        "observed_by": dict(sorted(counts.observed_by.items())),
        "sentences": sentences(counts, check),
        "copy_check": check.plain() if check is not None else None,
    }


def _copies(counts: Counts) -> str:
    if not counts.accepted:
        return "No picture was accepted."
    if not counts.looked:
        return "Not looked for: the run has no reference index."
    rate, cleared = Rate.of(counts.too_near, counts.looked), counts.cleared
    return (
        f"{rate.hits} of {rate.n} accepted pictures {'is' if rate.hits == 1 else 'are'} too near a reference ({rate.text}, "
        f"95\u00a0%); {cleared} of {rate.n} {'was' if cleared == 1 else 'were'} near and cleared by the second look."
    )


def _nearest(counts: Counts) -> str:
    if counts.by_embedder is None or counts.copy_threshold is None:
        return ""
    after = "none" if counts.after_second_look is None else f"{counts.after_second_look:.3f}"
    return (
        f"The highest similarity of an accepted picture is {counts.by_embedder:.3f} by the embedder alone and {after} "
        f"after the second look; the threshold is {counts.copy_threshold:.3f}."
    )


def _asked(counts: Counts) -> str:
    if not counts.asked:
        return ""
    shown = "shows a mark that its prompt asks" if counts.asked == 1 else "show a mark that their prompt asks"
    return f"{counts.asked} of {counts.accepted} accepted pictures {shown} for; the policy keeps such marks (table asked)."


def _questions(counts: Counts) -> str:
    found = []
    if counts.unanswered:
        last = "1 request has" if counts.unanswered == 1 else f"{counts.unanswered} requests have"
        found.append(f"{last} a last picture about which a question was not answered; the finding answer.missing says why.")
    for model, count in sorted(counts.other_models.items()):
        about = "1 picture" if count == 1 else f"{count} pictures"
        found.append(f"Questions about {about} were answered by {model!r}, which is not the model that the policy names.")
    return " ".join(found)


def _observed(counts: Counts) -> str:
    if not counts.would_be_flagged:
        return ""
    guards = ", ".join(f"{guard} {count}" for guard, count in sorted(counts.observed_by.items()))
    return (
        f"{counts.would_be_flagged} of {counts.accepted} accepted pictures would have been flagged ({guards}): "
        "the policy only observes these guards."
    )
