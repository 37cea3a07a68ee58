"""The bars of the funnel, and the histogram of similarities, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from index.counted import counted
from index.rate import percent
from pipeline.copy_check import CopyCheck

# Kinds of a part of a bar: each has a colour and a pattern, and a word in the legend.
NEUTRAL, RELEASED, STEERED, HELD, STOPPED = "neutral", "released", "steered", "held", "stopped"


def bars(m: Mapping[str, Any], check: CopyCheck | None) -> list[dict[str, Any]]:
    """The bars from requested to error: label, parts (kind, words, number), and a note at the end."""

    def value(name: str) -> int:
        return int(m[name]["value"])

    whole = value("requested")

    def share(name: str) -> str:
        return percent(value(name) / whole) if whole else ""

    split = f"{share('accepted')} · {value('accepted_at_once'):,} at once, {value('accepted_after_steering'):,} after steering"
    flagged = [
        (STOPPED, "in mid-flight", value("caught")), (HELD, "on the picture", value("acted_on")),
        (NEUTRAL, "only observed", value("observed")),
    ]  # fmt: skip
    found = ", ".join(f"{number:,} {words}" for _, words, number in flagged if number)
    accepted = [
        (RELEASED, "at once", value("accepted_at_once")), (STEERED, "after steering", value("accepted_after_steering")),
    ]  # fmt: skip
    made = [
        _bar("Requested", [(NEUTRAL, "", whole)], "100\u00a0%"),
        _bar(
            "Generated", [(NEUTRAL, "", value("generated"))], f"{share('generated')} · {counted(value('pictures'), 'picture')}"
        ),
        _bar("Flagged at first", flagged, f"{share('flagged')} · {found}" if found else share("flagged")),
        _bar("Steered", [(HELD, "", value("steered"))], share("steered")),
        _bar("Accepted", accepted, split),
    ]
    if m["copy_rate_accepted"]["n"]:
        made.append(
            _bar(
                "– too near", [(STOPPED, "", m["copy_rate_accepted"]["k"])], f"after both looks; {beside_zero(check)}", sub=True
            )
        )
        made.append(_bar("– near, cleared", [(HELD, "", m["cleared_rate_accepted"]["k"])], "by the second look", sub=True))
    if m["would_be_flagged_rate"]["k"]:
        note = "would have been flagged"
        made.append(_bar("– observed", [(STOPPED, "", m["would_be_flagged_rate"]["k"])], note, sub=True))
    made.append(_bar("Review", [(HELD, "", value("review"))], share("review")))
    made.append(_bar("Rejected", [(STOPPED, "", value("rejected"))], share("rejected")))
    rare = (("Quarantined", "quarantined"), ("Error", "error"))
    return made + [_bar(label, [(STOPPED, "", value(name))], share(name)) for label, name in rare if value(name)]


def _bar(label: str, parts: list[tuple[str, str, int]], note: str, *, sub: bool = False) -> dict[str, Any]:
    kept = [{"kind": kind, "words": words, "number": number} for kind, words, number in parts if number]
    return {"label": label, "number": sum(part["number"] for part in kept), "parts": kept, "note": note, "sub": sub}


def beside_zero(check: CopyCheck | None) -> str:
    """What stands beside every zero count of copies: how many edited copies this check finds."""
    if check is None:
        return "how many copies this check finds is not in the record"
    if check.found is None or not check.found.n:
        return "how many copies this check finds was not measured"
    return f"this check finds {percent(check.found.value, 0)} of edited copies"


PANELS = (
    ("first", "First pictures", (("first_below", NEUTRAL, "below the threshold"), ("first_reached", STOPPED, "at or over it"))),
    (
        "final",
        "Final pictures",
        (
            ("accepted", RELEASED, "accepted"), ("accepted_cleared", STEERED, "accepted, cleared by the second look"),
            ("accepted_too_near", STOPPED, "accepted although too near"), ("held_back", HELD, "held back"),
        ),
    ),
)  # fmt: skip


def histogram(sim: Mapping[str, Any]) -> dict[str, Any] | None:
    """The bins between the lowest and the highest similarity, panel by panel; None where nothing was measured.

    ``low`` is where the axis starts; every bin has its lower edge, and per layer a count; ``most`` is the highest bin.
    """
    names = [name for _, _, layers in PANELS for name, _, _ in layers]
    filled = [bin_ for bin_ in range(len(sim[names[0]])) if any(sim[name][bin_] for name in names)]
    if sim["threshold"] is None or not filled:
        return None
    width, first = sim["bin"], sim["lowest"] + sim["bin"] * filled[0]
    low = 0.0 if first >= 0 else -0.5 if first >= -0.5 else -1.0
    skip = round((low - sim["lowest"]) / width)
    panels: list[dict[str, Any]] = []
    for name, title, layers in PANELS:
        shown = [{"name": layer, "kind": kind, "words": words, "bins": sim[layer][skip:]} for layer, kind, words in layers]
        total = sum(sum(layer["bins"]) for layer in shown)
        panels.append({"name": name, "title": title, "pictures": total, "layers": [one for one in shown if any(one["bins"])]})
    heights = [sum(column) for panel in panels for column in zip(*(layer["bins"] for layer in panel["layers"]), strict=True)]
    return {
        "low": low,
        "width": width,
        "threshold": sim["threshold"],
        "most": max(heights, default=1),
        "panels": panels,
        "rows": [_row(sim, place, names) for place in filled],
        "expression": sim["expression"],
    }


def _row(sim: Mapping[str, Any], place: int, names: list[str]) -> dict[str, Any]:
    low = sim["lowest"] + place * sim["bin"]
    return {"from": round(low, 6), "to": round(low + sim["bin"], 6), **{name: sim[name][place] for name in names}}
