"""The report: one self-contained page for the person responsible for a run, and its numbers as JSON beside it.

The numbers come from :mod:`pipeline.audit.contents`; here they become pictures, tables and sentences.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from index.printable import visible
from index.rate import Rate, percent
from index.storage import write_file
from pipeline.audit import charts
from pipeline.audit.contents import report_numbers
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.policy_rows import ladders, policy_rows
from pipeline.audit.showcase import Showcase
from pipeline.marking.encode import thumbnail
from pipeline.outcome import ACCEPTED

REPORT_HTML, REPORT_JSON = "report.html", "report.json"
PAIRS, SHEET, LISTED, GALLERY = 12, 60, 40, 12  # how much is shown; the page always says how many there are
CLEARED = 12
PictureOf = Callable[[str], "np.ndarray | None"]


def write_report(
    folder: Path,
    picture_of: PictureOf | None = None,
    titles: Mapping[str, str] | None = None,
    *,
    salt: str | None = None,
    copy_check: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write ``report.html`` and ``report.json`` into a run folder.

    Args:
        folder: the run folder.
        picture_of: the picture of a reference, uint8 (H, W, 3), by ref_id; None where the rights allow no copy.
        titles: titles of references by ref_id; those stored with the samples are used otherwise.
        salt: the run's prompt salt when it had a secret one; see :func:`pipeline.audit.verify.verify`.
        copy_check: the record of the copy check of a run that was not sealed; a sealed one has it in ``run.json``.

    Returns:
        The path of the page, and the numbers in ``report.json``.

    Raises:
        InputError: there is no such run folder.
        IntegrityError: it holds no committed sample that can be read, or a row that cannot be counted.
        ClearanceError: the report cannot be written.
    """
    showcase = Showcase(PAIRS, LISTED)
    numbers = report_numbers(folder, salt, copy_check=copy_check, also=[showcase], columns=Showcase.COLUMNS)
    page = _render(folder, numbers, showcase, picture_of or (lambda ref_id: None), dict(titles or {}))
    # A lone surrogate, which UTF-8 cannot hold, becomes its escape.
    data = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    write_file(folder, REPORT_JSON, data + b"\n")
    write_file(folder, REPORT_HTML, page.encode())
    return folder / REPORT_HTML, numbers


# --- the page --------------------------------------------------------------------------------------------------------------


def _render(folder: Path, numbers: dict[str, Any], showcase: Showcase, picture_of: PictureOf, titles: Mapping[str, str]) -> str:
    import jinja2
    from markupsafe import Markup

    m, sim, pairs = numbers["measures"], numbers["similarity"], showcase.pairs()
    cleared, gallery = numbers["cleared"][:CLEARED], numbers["references"][:GALLERY]
    sheet, prompts = _sheet(folder, int(m["accepted"]["value"]), {row["sample_id"] for row in cleared})
    thumbnails = _thumbnails(folder, {row["sample_id"] for row in (*pairs, *sheet, *showcase.held, *cleared)})
    references: dict[str, str] = {}

    def reference(ref_id: str) -> str:
        if ref_id not in references:
            picture = picture_of(ref_id) if ref_id else None
            references[ref_id] = "" if picture is None else _uri(thumbnail(picture))
        return references[ref_id]

    def title(ref_id: str, stored: str = "") -> str:
        return titles.get(ref_id) or stored or ref_id

    def picture(sample_id: str, attempt: int | None) -> str:
        return "" if attempt is None else thumbnails.get((sample_id, attempt), "")

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=_shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(pct=_percent, whole=lambda value: percent(value, 0), short=_short, real=_real, sim=_similarity)
    environment.globals["interval"] = lambda rate, colour=charts.RELEASED: (
        Markup(charts.interval(rate["low"], rate["high"], rate["value"], colour)) if rate["value"] is not None else ""
    )
    environment.globals["bounds"] = lambda rate: Rate.of(rate["k"], rate["n"]).bounds
    environment.globals["rate_text"] = lambda rate: "not measured" if rate is None else str(Rate(**rate))
    return environment.get_template("report.html.j2").render(
        n=numbers,
        m=m,
        run=numbers["run"],
        integrity=numbers["integrity"],
        sentences=numbers["sentences"],
        check=numbers["copy_check"],
        funnel=Markup(charts.funnel(_bars(m), m["requested"]["value"])),
        histogram=Markup(_histogram(sim)) if sim["threshold"] is not None and _measured(sim) else None,
        pairs=[
            {
                **pair,
                "before": picture(pair["sample_id"], pair["first"]),
                "after": picture(pair["sample_id"], pair["last"]),
                "reference": reference(pair["ref_id"]),
                "title": title(pair["ref_id"], pair["title"]),
            }
            for pair in pairs
        ],
        pairs_total=showcase.pairs_total,
        cleared=[
            {
                **row,
                "prompt": prompts.get(row["sample_id"]),
                "src": picture(row["sample_id"], row["attempt"]),
                "reference": reference(row["ref_id"]),
                "title": title(row["ref_id"], row["title"]),
            }
            for row in cleared
        ],
        sheet=[{**row, "src": picture(row["sample_id"], row["accepted_attempt"])} for row in sheet],
        held=[{**row, "src": picture(row["sample_id"], row["last"])} for row in showcase.held],
        held_total=showcase.held_total,
        errors=showcase.errors,
        errors_total=showcase.errors_total,
        gallery=[{**r, "title": title(r["ref_id"], r["title"]), "src": reference(r["ref_id"])} for r in gallery],
        policy=policy_rows(numbers["policy"]),
        ladders=ladders(numbers["policy"]),
        folder=folder.name,
    )


def _sheet(folder: Path, total: int, wanted: set[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Accepted samples for the sheet, at most SHEET, evenly spaced over ``total`` of them: it must not show only the start.
    And the prompts of the samples in ``wanted``."""
    places = set(range(total)) if total <= SHEET else {i * total // SHEET for i in range(SHEET)}
    sheet, prompts, number = [], {}, 0
    columns = ["sample_id", "request_key", "prompt", "outcome", "accepted_attempt"]
    for row in sample_rows(folder, columns, damaged=[]):  # what is left out is said on the cover
        if row["sample_id"] in wanted:
            prompts[row["sample_id"]] = row["prompt"]
        if row["outcome"] in ACCEPTED:
            if number in places:
                sheet.append(row)
            number += 1
    return sheet, prompts


def _thumbnails(folder: Path, wanted: set[str]) -> dict[tuple[str, int], str]:
    """The pictures of the attempts of some samples, by sample and number of the attempt."""
    rows = attempt_rows(folder, ["sample_id", "attempt", "thumbnail"], damaged=[])
    return {
        (row["sample_id"], row["attempt"]): _uri((row["thumbnail"] or {}).get("bytes"))
        for row in rows
        if row["sample_id"] in wanted
    }


def _bars(m: Mapping[str, Any]) -> list[charts.Bar]:
    def value(name: str) -> int:
        return int(m[name]["value"])

    whole = value("requested")

    def share(name: str) -> str:
        return _percent(value(name) / whole) if whole else ""

    flagged = ((value("caught"), charts.STOPPED), (value("acted_on"), charts.HELD), (value("observed"), charts.NEUTRAL))
    accepted = ((value("accepted_at_once"), charts.RELEASED), (value("accepted_after_steering"), charts.STEERED))
    split = f"{share('accepted')} · {value('accepted_at_once')} at once, {value('accepted_after_steering')} after steering"
    parts = (("caught", "in mid-flight"), ("acted_on", "on the picture"), ("observed", "only observed"))
    found = ", ".join(f"{value(name)} {where}" for name, where in parts if value(name))
    bars = [
        charts.Bar("Requested", ((whole, charts.NEUTRAL),), "100\u00a0%"),
        charts.Bar(
            "Generated", ((value("generated"), charts.NEUTRAL),), f"{share('generated')} · {value('pictures')} pictures"
        ),
        charts.Bar("Flagged at first", flagged, f"{share('flagged')} · {found}" if found else share("flagged")),
        charts.Bar("Steered", ((value("steered"), charts.HELD),), share("steered")),
        charts.Bar("Accepted", accepted, split),
    ]
    looked = (("copy_rate_accepted", "– too near", charts.STOPPED), ("cleared_rate_accepted", "– near, cleared", charts.HELD))
    for name, label, colour in looked:
        if m[name]["n"]:
            note = "after both looks" if name == "copy_rate_accepted" else "by the second look"
            bars.append(charts.Bar(label, ((m[name]["k"], colour),), note))
    if m["would_be_flagged_rate"]["k"]:
        bars.append(charts.Bar("– observed", ((m["would_be_flagged_rate"]["k"], charts.STOPPED),), "would have been flagged"))
    ends = (("Review", "review", charts.HELD), ("Rejected", "rejected", charts.STOPPED))
    rare = (("Quarantined", "quarantined", charts.STOPPED), ("Error", "error", charts.STOPPED))
    bars += [charts.Bar(label, ((value(name), colour),), share(name)) for label, name, colour in ends]
    return bars + [charts.Bar(label, ((value(name), colour),), share(name)) for label, name, colour in rare if value(name)]


def _measured(sim: Mapping[str, Any]) -> bool:
    return any(any(counts) for counts in sim.values() if isinstance(counts, list))


def _histogram(sim: Mapping[str, Any]) -> str:
    first = sum(map(sum, (sim["first_below"], sim["first_reached"])))
    accepted = sum(map(sum, (sim["accepted"], sim["accepted_cleared"], sim["accepted_too_near"])))
    panels = [
        charts.Panel(
            f"First pictures ({first})", ((sim["first_below"], charts.NEUTRAL), (sim["first_reached"], charts.STOPPED))
        ),
        charts.Panel(
            f"Final pictures ({accepted} accepted, {sum(sim['held_back'])} held back)",
            (
                (sim["accepted"], charts.RELEASED), (sim["accepted_cleared"], charts.STEERED),
                (sim["accepted_too_near"], charts.STOPPED), (sim["held_back"], charts.HELD),
            ),
        ),
    ]  # fmt: skip
    return charts.similarity(panels, sim["threshold"], lowest=sim["lowest"], width_of_bin=sim["bin"])


def _shown(value: Any) -> Any:
    """Text as a page may hold it: what would not be seen, or would turn the reading direction, is escaped."""
    return visible(value) if type(value) is str else value


def _uri(data: bytes | None) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}" if data else ""


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _similarity(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _real(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"
    return text.replace("-", "−")


def _short(digest: str | None) -> str:
    """The start of a digest, and what stands before it: "calibration-d9e7afbf…"."""
    if not digest or len(digest) <= 20:
        return digest or "–"
    name, dash, digits = digest.rpartition("-")
    return f"{name}{dash}{digits[:8]}…" if name and re.fullmatch("[0-9a-f]{9,}", digits) else f"{digest[:12]}…"
