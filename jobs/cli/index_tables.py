"""The tables of ``clearance index …``: what became of the works, what an index holds, what an operating point is worth."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from index import at_uri
from jobs.console import grid

if TYPE_CHECKING:
    from rich.table import Table

    from index.calibrate import Calibration
    from index.collect import Works
    from index.intake import Taken
    from index.pairs import Measured
    from index.rate import Rate
    from index.store import ReferenceIndex

NAMED = 20  # names in a line; --json has them all


# --- what became of the works -----------------------------------------------------------------------------------------------


def intake_data(index: ReferenceIndex, works: Works) -> dict[str, Any]:
    """What a build or an addition did, for ``--json``: every file under the heading that it ended at."""
    seen, taken = works.seen, index.taken
    return {
        "index_id": index.index_id,
        "embedder_id": index.embedder_id,
        "embedder": index.embedder_source.record(),
        "pictures": seen.pictures,
        "further_frames": seen.frames,
        "references": len(index),
        "with_picture": index.kept,
        "new": list(taken.new),
        "duplicates": [{"file": file, "of": first} for file, first in taken.duplicates],
        "in_the_index_already": [{"file": file, "ref_id": ref_id} for file, ref_id in taken.known],
        "left_out": [{"file": file, "reason": reason} for file, reason in seen.left_out],
        "conflicts": [{**asdict(conflict), "in_force": conflict.kept} for conflict in taken.conflicts],
        "pictures_not_kept": taken.not_kept,
        "pictures_still_kept": taken.still_kept,
        "unlisted": seen.unlisted,
        "one_colour": seen.one_colour,
        "other_files": [{"file": file, "is": what} for file, what in seen.others],
    }


def intake_lines(index: ReferenceIndex, works: Works) -> list[str]:
    """The same in words: one line for each heading that has something."""
    seen, taken = works.seen, index.taken
    headings = {
        "left out and not protected": [f"{file} ({reason})" for file, reason in seen.left_out],
        "duplicates": [f"{file} of {first}" for file, first in taken.duplicates],
        "in the index already": [f"{file} ({ref_id})" for file, ref_id in taken.known],
        "with another status, the strictest is in force": [
            f"{c.origin} is {c.stated}, {c.ref_id} was {c.before}: {c.kept}" for c in taken.conflicts
        ],
        **pictures_otherwise(taken),
        "not in metadata.csv, active all the same": seen.unlisted,
        "of one colour only, which is likely a mistake": seen.one_colour,
        "no pictures": [f"{file} ({what})" for file, what in seen.others],
    }
    return [f"{heading} ({len(names)}): {shortened(names)}" for heading, names in headings.items() if names]


def pictures_otherwise(taken: Taken) -> dict[str, list[str]]:
    """Headings of the references whose pictures an addition left as they were, against what its works say."""
    return {
        "not kept, because the index had them without their picture (build the index again to keep it)": taken.not_kept,
        "their picture stays in the index, though the work in force keeps none (build the index again)": taken.still_kept,
    }


def shortened(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more (--json names all)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# --- what an index holds ----------------------------------------------------------------------------------------------------


def calibration_of(index: ReferenceIndex) -> tuple[Calibration | None, str]:
    """The calibration that a run on this index uses where the policy sets no threshold, and one sentence about it.

    Raises:
        ClearanceError: the file beside the index is no calibration, or was changed.
    """
    from index.calibrate import Calibration
    from index.shipped import STICKERS

    for path, own in (
        (at_uri.beside(at_uri.place_of(index.folder), "calibration.json"), True),
        (STICKERS / "calibration.json", False),
    ):
        if not path.exists():
            continue
        found = Calibration.load(path)
        if found.embedder_id == index.embedder_id:
            if not own:
                return found, f"{found.calibration_id}, which ships with the embedder and was measured on other references"
            if found.index_id not in ("", index.index_id):
                return found, f"{found.calibration_id}, measured on {found.index_id}: the index has changed, calibrate again"
            return found, f"{found.calibration_id}, measured on this index"
    return None, "none: run clearance index calibrate, or set copies.threshold in the policy"


# --- what an operating point is worth ---------------------------------------------------------------------------------------


def worth(found: Calibration) -> list[tuple[str, str]]:
    """What matters most of an operating point: name and value."""
    rows = [
        ("threshold", f"{found.threshold:.4f}"),
        ("copies flagged", told(found.recall)),
        ("harmless flagged", told(found.false_positive_rate)),
        ("second look", found.second_look),
        ("measured on", found.source or "not stated"),
    ]
    if found.forced:
        rows.append(
            ("FORCED", f"it misses the least recall of {found.min_recall:.0%}: runs release copies that it does not flag")
        )
    return rows


def told(rate: Rate | None) -> str:
    """A rate, or that there is none."""
    return "not measured" if rate is None else str(rate)


def operating_point(found: Calibration, measured: Measured) -> Table:
    """A calibration as a table: the operating point, then what other points would give."""
    import numpy as np

    table = grid()
    table.add_row("threshold", f"{found.threshold:.4f}")
    table.add_row("copies flagged", told(found.recall))
    table.add_row("harmless flagged", told(found.false_positive_rate))
    table.add_row("copies, and the second look agrees", told(found.confirmed_recall))
    table.add_row("harmless, and the second look agrees", told(found.confirmed_false_positive_rate))
    if found.either_recall is not None:
        table.add_row(
            "second look alone suffices from", f"{found.alone_threshold:.4f}, where the cosine is {found.look_from:.4f}"
        )
        table.add_row("second look clears below", f"{found.veto_below:.4f}")
    table.add_row("copies flagged by the whole rule", told(found.either_recall))
    table.add_row("harmless flagged by the whole rule", told(found.either_false_positive_rate))
    table.add_row("average precision", f"{found.average_precision:.4f}")
    for look, precision, low, high, *gain in found.looks:
        above = "" if not any(gain) else f", {gain[0]:+.3f} ({gain[1]:+.3f} to {gain[2]:+.3f}) against {found.looks[0][0]}"
        chosen = ", in force" if look == found.second_look else ""
        table.add_row(
            f"second look {look}", f"average precision alone {precision:.3f} ({low:.3f} to {high:.3f}){above}{chosen}"
        )
    for label in dict.fromkeys(measured.label.tolist()):
        mine = measured.cosine[measured.label == label]
        low, middle, high = (float(v) for v in np.quantile(mine, (0.05, 0.5, 0.95)))
        flagged = float((mine >= found.threshold).mean())
        spread = f"median cosine {middle:.3f} (5 to 95 %: {low:.3f} to {high:.3f})"
        table.add_row(label, f"n {len(mine)}, {spread}, flagged {flagged:.1%}")
    for limit in (0.001, 0.01, 0.02, 0.05, 0.1):
        at = float(np.nextafter(np.quantile(measured.cosine[~measured.copy], 1 - limit, method="higher"), np.inf))
        caught = float((measured.cosine[measured.copy] >= at).mean())
        table.add_row(f"at {limit:.1%} harmless", f"threshold {at:.4f}, copies flagged {caught:.1%}")
    return table
