"""The report: one self-contained page for the person who has to answer for a run, and its numbers as JSON beside it.

The numbers come from :mod:`pipeline.audit.numbers`; here they become pictures, tables and sentences.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit import charts
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.numbers import ACCEPTED, SAMPLE_COLUMNS, report_numbers
from pipeline.audit.policy_rows import ladders, policy_rows
from pipeline.audit.provenance import thumbnail
from pipeline.shard import write_atomically

REPORT_HTML, REPORT_JSON = "report.html", "report.json"
PAIRS, SHEET, LISTED, GALLERY = 12, 60, 40, 12  # how much is shown; the page always says how many there are


def write_report(
    folder: Path,
    references: Mapping[str, np.ndarray | None] | None = None,
    titles: Mapping[str, str] | None = None,
    salt: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write ``report.html`` and ``report.json`` into a run folder.

    Args:
        folder: the run folder.
        references: pictures of references, uint8 (H, W, 3), by ref_id; None or absent where the rights allow no copy.
        titles: titles of references by ref_id; those stored with the samples are used otherwise.
        salt: the run's prompt salt when it had a secret one; see :func:`pipeline.audit.verify.verify`.

    Returns:
        The path of the page, and the numbers in ``report.json``.

    Raises:
        InputError: there is no such run folder.
        IntegrityError: it holds no committed sample, or a commit marker cannot be read.
        ClearanceError: a data file cannot be read, or the report cannot be written.
    """
    numbers = report_numbers(folder, salt=salt)
    page = _render(folder, numbers, dict(references or {}), dict(titles or {}))
    write_atomically(folder / REPORT_JSON, json.dumps(numbers, indent=1, ensure_ascii=False).encode() + b"\n")
    write_atomically(folder / REPORT_HTML, page.encode())
    return folder / REPORT_HTML, numbers


# --- the page --------------------------------------------------------------------------------------------------------------


def _render(folder: Path, numbers: dict[str, Any], references: dict[str, np.ndarray | None], titles: dict[str, str]) -> str:
    import jinja2
    from markupsafe import Markup

    samples = list(sample_rows(folder, SAMPLE_COLUMNS.split()))
    caught = {row["sample_id"] for row in attempt_rows(folder, ["sample_id", "caught"]) if row["caught"]}
    steered = [s for s in samples if s["attempts"] > 1 or s["sample_id"] in caught]
    sheet = _spread([s for s in samples if s["outcome"] in ACCEPTED], SHEET)
    held = [s for s in samples if s["outcome"] in ("review", "rejected", "quarantined")]
    errors = [s for s in samples if s["outcome"] == "error"]
    shown = {s["sample_id"] for s in [*steered, *sheet, *held[:LISTED]]}
    tries: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in attempt_rows(folder, ["sample_id", "attempt", "thumbnail", "nearest", "intervention", "caught"]):
        if row["sample_id"] in shown:
            tries[row["sample_id"]].append({**row, "src": _uri((row.pop("thumbnail") or {}).get("bytes"))})
    for rows in tries.values():
        rows.sort(key=lambda row: int(row["attempt"]))
    pictures = {ref_id: _uri(thumbnail(picture)) for ref_id, picture in references.items() if picture is not None}

    def title(ref_id: str, stored: str = "") -> str:
        return titles.get(ref_id) or stored or ref_id

    drawn_again = [(s, tries[s["sample_id"]]) for s in steered if tries[s["sample_id"]]]
    pairs = sorted((_pair(s, rows, pictures, title) for s, rows in drawn_again), key=_pair_order)
    gallery = [
        {**r, "title": title(r["ref_id"], r["title"]), "src": pictures.get(r["ref_id"], "")}
        for r in numbers["references"][:GALLERY]
    ]
    m, sim = numbers["measures"], numbers["similarity"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(pct=_percent, short=_short, real=_real, sim=_similarity)
    environment.globals["interval"] = lambda rate, colour=charts.RELEASED: (
        Markup(charts.interval(rate["low"], rate["high"], rate["value"], colour)) if rate["value"] is not None else ""
    )
    return environment.get_template("report.html.j2").render(
        n=numbers,
        m=m,
        run=numbers["run"],
        integrity=numbers["integrity"],
        funnel=Markup(charts.funnel(_bars(m), m["requested"]["value"])),
        histogram=Markup(_histogram(sim)) if sim["first"] else None,
        pairs=pairs[:PAIRS],
        pairs_total=len(pairs),
        sheet=[{"src": _final(s, tries)["src"], **s} for s in sheet if tries[s["sample_id"]]],
        sheet_total=m["released"]["value"],
        held=[{"src": _final(s, tries)["src"], **s} for s in held[:LISTED] if tries[s["sample_id"]]],
        held_total=len(held),
        errors=errors[:LISTED],
        errors_total=len(errors),
        gallery=gallery,
        policy=policy_rows(numbers["policy"]),
        ladders=ladders(numbers["policy"]),
        folder=folder.name,
    )


def _bars(m: Mapping[str, Any]) -> list[charts.Bar]:
    def value(name: str) -> int:
        return int(m[name]["value"])

    whole = value("requested")

    def share(name: str) -> str:
        return _percent(value(name) / whole) if whole else ""

    both = ((value("accepted"), charts.RELEASED), (value("accepted_after_steering"), charts.STEERED))
    split = f"{share('released')} · {value('accepted')} at once, {value('accepted_after_steering')} after steering"
    bars = [
        charts.Bar("Requested", ((whole, charts.NEUTRAL),), "100 %"),
        charts.Bar(
            "Generated", ((value("generated"), charts.NEUTRAL),), f"{share('generated')} · {value('pictures')} pictures"
        ),
        charts.Bar("Flagged at first", ((value("flagged"), charts.HELD),), share("flagged")),
        charts.Bar("Steered", ((value("steered"), charts.HELD),), share("steered")),
        charts.Bar("Accepted", both, split),
    ]
    ends = (("Review", "review", charts.HELD), ("Rejected", "rejected", charts.STOPPED))
    rare = (("Quarantined", "quarantined", charts.STOPPED), ("Error", "error", charts.STOPPED))
    bars += [charts.Bar(label, ((value(name), colour),), share(name)) for label, name, colour in ends]
    return bars + [charts.Bar(label, ((value(name), colour),), share(name)) for label, name, colour in rare if value(name)]


def _histogram(sim: Mapping[str, Any]) -> str:
    near = [value for value in sim["first"] if value >= sim["threshold"]]
    far = [value for value in sim["first"] if value < sim["threshold"]]
    return charts.similarity(
        [
            (f"First attempts ({len(sim['first'])})", [(far, charts.NEUTRAL), (near, charts.STOPPED)]),
            (
                f"Final pictures ({len(sim['final_released'])} accepted, {len(sim['final_held'])} held back)",
                [(sim["final_released"], charts.RELEASED), (sim["final_held"], charts.HELD)],
            ),
        ],
        sim["threshold"],
    )


def _pair(
    sample: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], pictures: Mapping[str, str], title: Callable[..., str]
) -> dict[str, Any]:
    first = attempts[0]
    flight = first["caught"][0] if first["caught"] else None  # ended by a probe: there was no first picture
    last = next((a for a in attempts if a["attempt"] == sample["accepted_attempt"]), attempts[-1])
    match = first["nearest"][0] if first["nearest"] else None
    if flight:
        ref_id = flight["ref_ids"][0]
        match = next(
            (m for m in first["nearest"] if m["ref_id"] == ref_id), {"ref_id": ref_id, "title": "", "similarity": None}
        )
    after = None
    if match:  # against the same reference where it is still among the nearest: the fair comparison
        after = next((m["similarity"] for m in last["nearest"] if m["ref_id"] == match["ref_id"]), None)
    return {
        "key": sample["request_key"],
        "prompt": sample["prompt"],
        "outcome": sample["outcome"],
        "reason": sample["reason"],
        "before": "" if flight else first["src"],
        "caught": f"caught after {flight['step']} steps on its way to the reference" if flight else "",
        "after": last["src"],
        "reference": pictures.get(match["ref_id"], "") if match else "",
        "title": title(match["ref_id"], match["title"]) if match else "no reference",
        "sim_before": match["similarity"] if match and not flight else None,
        "sim_after": after,
        "sim_nearest": last["nearest"][0]["similarity"] if last["nearest"] else None,
        "steps": [a["intervention"]["kind"] for a in attempts[0 if flight else 1 :] if a["intervention"]],
    }


def _pair_order(pair: Mapping[str, Any]) -> tuple[bool, float]:
    """Accepted ones first, the largest changes first; who was caught in mid-flight was on the way to the reference itself."""
    end = pair["sim_after"] if pair["sim_after"] is not None else pair["sim_nearest"]
    drop = (1.0 if pair["caught"] else pair["sim_before"] or 0.0) - (end or 0.0)
    return pair["outcome"] not in ACCEPTED, -drop


def _final(sample: Mapping[str, Any], tries: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    rows = tries[sample["sample_id"]]
    return next((row for row in rows if row["attempt"] == sample["accepted_attempt"]), rows[-1])


def _spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` rows, evenly spaced: a sample sheet must not show only the start."""
    if len(rows) <= most:
        return rows
    return [rows[i * len(rows) // most] for i in range(most)]


def _uri(data: bytes | None) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}" if data else ""


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    digits = 0 if value in (0.0, 1.0) or 0.1 <= value <= 0.9 else 1
    return f"{100 * value:.{digits}f}\u00a0%"


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
    return f"{digest[:12]}…" if digest and len(digest) > 20 else digest or "–"
