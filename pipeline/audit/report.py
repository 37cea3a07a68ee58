"""The report: one self-contained page for the person who answers for a run, and its content as JSON beside it.

The content comes from :mod:`pipeline.audit.contents`; here the pictures and the requests that are shown are fetched, and both
files are written. Everything that the page says stands in the JSON; the page adds the pictures, named there by digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from index.errors import ClearanceError
from index.storage import write_file
from pipeline.audit.contents import report_numbers
from pipeline.audit.events import scan_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.page import render_report, sections
from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON, with_digest
from pipeline.audit.sections.about import EventsAbout
from pipeline.audit.sections.beside import Beside, PictureOf, Unsteered
from pipeline.audit.sections.checks import checks
from pipeline.audit.sections.entry import attempt_id, entries, entry_of
from pipeline.audit.showcase import Showcase
from pipeline.audit.state import fold
from pipeline.marking.encode import thumbnail
from pipeline.outcome import ACCEPTED

PAIRS, SHEET, LISTED, GALLERY = 12, 60, 40, 12  # how much is shown; the page always says how many there are
CLEARED = 12
ENTRIES = 150  # requests shown in full, those named first in the page first


def write_report(
    folder: Path,
    picture_of: PictureOf | None = None,
    titles: Mapping[str, str] | None = None,
    *,
    salt: str | None = None,
    copy_check: Mapping[str, Any] | None = None,
    beside: Beside | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write ``report.html`` and ``report.json`` into a run folder.

    Args:
        folder: the run folder.
        picture_of: the picture of a reference, uint8 (H, W, 3), by ref_id; None where the rights allow no copy.
        titles: titles of references by ref_id; those stored with the samples are used otherwise.
        salt: the run's prompt salt when it had a secret one; see :func:`pipeline.audit.verify.verify`.
        copy_check: the record of the copy check of a run that was not sealed; a sealed one has it in ``run.json``.
        beside: what the report shows beside the content of the folder.

    Returns:
        The path of the page, and the content of ``report.json``.

    Raises:
        InputError: there is no such run folder.
        IntegrityError: it holds no committed sample that can be read, or a row that cannot be counted.
        ClearanceError: the report cannot be written.
    """
    beside, showcase = beside or Beside(), Showcase(PAIRS, LISTED)
    content = report_numbers(
        folder, salt, copy_check=copy_check, beside=beside, also=[showcase], columns=Showcase.COLUMNS
    )  # fmt: skip
    pictures = _show(folder, content, showcase, beside)
    shown = [row["ref_id"] for row in (*content["pairs"]["rows"], *content["closest"]["rows"], *content["cleared"][:CLEARED])]
    shown += [row["ref_id"] for row in content["references"][:GALLERY]]
    shown += [finding["ref_id"] for row in content["held"]["rows"] for finding in row["findings"]]
    pictures |= reference_pictures(shown, picture_of)
    content["titles"] = titles_in(content["entries"]) | dict(titles or {})
    content["pictures"] = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(pictures.items())}
    # A lone surrogate, which UTF-8 cannot hold, becomes its escape.
    data = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    write_file(folder, REPORT_JSON, data + b"\n")
    write_file(folder, REPORT_HTML, with_digest(render_report(content, pictures)))
    return folder / REPORT_HTML, content


def _show(folder: Path, content: dict[str, Any], showcase: Showcase, beside: Beside) -> dict[str, bytes]:
    """Put the requests that are shown into the content; returns the pictures of their attempts, by id."""
    pairs, cleared, closest = showcase.pairs(), content["cleared"], content["closest"]["rows"]
    named = (*pairs, *closest, *cleared[:CLEARED], *showcase.held, *showcase.errors)
    sheet, prompts, shards = _sheet(folder, int(content["measures"]["accepted"]["value"]), {row["sample_id"] for row in named})
    unsteered = beside.unsteered({pair["sample_id"] for pair in pairs if pair["caught"]})
    for row in cleared:
        row |= {"prompt": prompts.get(row["sample_id"]), "picture": attempt_id(row["sample_id"], row["attempt"])}
    for row in closest:
        row["picture"] = attempt_id(row["sample_id"], row["attempt"])
    content["pairs"] = {
        "rows": [_pair(pair, unsteered.get(pair["sample_id"])) for pair in pairs],
        "total": showcase.pairs_total,
    }
    content["held"] = {"rows": [{**h, "picture": _last(h)} for h in showcase.held], "total": showcase.held_total}
    content["errors"] = {"rows": showcase.errors, "total": showcase.errors_total}
    content["sheet"] = {
        "rows": [{**row, "picture": attempt_id(row["sample_id"], row["accepted_attempt"])} for row in sheet]
    }  # fmt: skip
    content["shown_of"] = {"cleared": CLEARED, "references": GALLERY}
    content["given_up"] = [event for event in content["events"] if event["kind"] == "shard.given_up"]
    content["retried"] = sum(event["kind"] == "shard.retried" for event in content["events"])
    content["sections"], content["checks"] = sections(), checks(folder.name, content)
    ids = list(dict.fromkeys(row["sample_id"] for row in (*named, *sheet)))
    state = fold(scan_events(folder)[0])
    parts = ("pairs", "closest", "held", "errors", "sheet")
    for row in (*cleared, *(row for part in parts for row in content[part]["rows"])):
        row["outcome_in_force"] = state.outcome(row)
    content["entries"], pictures = _entries(folder, ids[:ENTRIES], set(ids), shards)
    return pictures | {f"unsteered:{sample_id}": one.thumbnail for sample_id, one in unsteered.items()}


def _last(held: Mapping[str, Any]) -> str | None:
    return None if held["last"] is None else attempt_id(held["sample_id"], held["last"])


def _pair(pair: dict[str, Any], unsteered: Unsteered | None) -> dict[str, Any]:
    """A steered request with the ids of its pictures, and what is known of its seed without steering."""
    named = {
        "before": None if pair["first"] is None else attempt_id(pair["sample_id"], pair["first"]),
        "after": attempt_id(pair["sample_id"], pair["last"]),
    }
    if unsteered is None:
        return {**pair, **named, "unsteered": None}
    scores = {match["ref_id"]: match["similarity"] for match in unsteered.nearest}
    own = scores.get(pair["ref_id"])
    return {
        **pair,
        **named,
        "unsteered": {
            "run_id": unsteered.run_id,
            "folder": unsteered.folder,
            "picture": f"unsteered:{pair['sample_id']}",
            "own": own,
            "at_most": min(scores.values(), default=None) if own is None and pair["ref_id"] else None,
            "nearest": max(scores.values(), default=None),
        },
    }


def _sheet(folder: Path, total: int, wanted: set[str]) -> tuple[list[dict[str, Any]], dict[str, str], set[str]]:
    """Accepted samples for the sheet, at most SHEET, evenly spaced over ``total`` of them: it must not show only the start.

    Also the prompts of the samples in ``wanted``, and the shards in which they and those of the sheet stand.
    """
    places = set(range(total)) if total <= SHEET else {i * total // SHEET for i in range(SHEET)}
    sheet, prompts, shards, number = [], dict[str, str](), set[str](), 0
    columns = ["sample_id", "request_key", "prompt", "outcome", "accepted_attempt", "shard_id"]
    for row in sample_rows(folder, columns, damaged=[]):  # what is left out is said on the cover
        shard_id = str(row.pop("shard_id"))
        if row["sample_id"] in wanted:
            prompts[row["sample_id"]] = row["prompt"]
            shards.add(shard_id)
        if row["outcome"] in ACCEPTED:
            if number in places:
                sheet.append(row)
                shards.add(shard_id)
            number += 1
    return sheet, prompts, shards


def _entries(
    folder: Path, in_full: list[str], wanted: set[str], shards: set[str]
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The requests shown in full, in the order of their rows, and the pictures of all in ``wanted``."""
    events, _ = scan_events(folder)
    state, about = fold(events), EventsAbout(events)
    shown, pictures, full = [], dict[str, bytes](), set(in_full)
    damaged: list[ClearanceError] = []  # what is left out is said on the cover
    for ended, thumbnails in entries(folder, wanted, shards=shards, damaged=damaged):
        pictures |= thumbnails
        sample_id = str(ended.sample["sample_id"])
        if sample_id in full:
            entry = entry_of(ended, state.of(sample_id), about.of(sample_id, str(ended.sample["request_key"])))
            shown.append({**entry, "anchor": f"r-{sample_id[:16]}"})
    return sorted(shown, key=lambda entry: int(entry["row_no"])), pictures


def titles_in(shown: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Titles of the references that requests came near to, by ref_id, as their rows have them."""
    near = (match for entry in shown for attempt in entry["attempts"] for match in attempt["nearest"])
    return {str(match["ref_id"]): str(match["title"]) for match in near if match["title"]}


def reference_pictures(ref_ids: Iterable[str], picture_of: PictureOf | None) -> dict[str, bytes]:
    """Small pictures of references by id, of those that may be shown."""
    found = {}
    for ref_id in dict.fromkeys(ref_ids):
        picture = picture_of(ref_id) if ref_id and picture_of is not None else None
        if picture is not None:
            found[f"reference:{ref_id}"] = thumbnail(picture)
    return found
