"""A report as a page: HTML out of the report's plain data and its small pictures. Nothing is counted here.

One page holds everything: no script, no network, no font from elsewhere. Every underlined number is a link to the expression
behind it, so that mouse, finger and keyboard reach it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.counted import counted
from index.printable import visible
from index.rate import Rate, percent

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
_SMALL = "thumbnail"  # the column whose pictures a report shows
_DETAIL = 160  # characters of a detail of an event
_BRIEF = 200  # characters of a prompt on a card; "Requests in full" has all of it
SECTIONS = (
    ("summary", "Summary"),
    ("pairs", "Before and after"),
    ("copies", "Copies: found, near, cleared"),
    ("results", "Results per guard"),
    ("exceptions", "Held back, errors, exceptions"),
    ("people", "People and reviews"),
    ("claims", "Claims and takedowns"),
    ("policy", "Policy in force"),
    ("references", "References"),
    ("models", "Model, guards, licences"),
    ("marks", "Marks"),
    ("retention", "Retention and holds"),
    ("cost", "Cost"),
    ("training", "For those who train on it"),
    ("sheet", "Sample sheet"),
    ("controls", "Control mapping"),
    ("method", "Method, words, events"),
    ("verify", "How to verify"),
    ("entries", "Requests in full"),
)


def sections() -> list[dict[str, Any]]:
    """The sections of the page in order: ``id``, ``number``, ``title``."""
    return [{"id": name, "number": number, "title": title} for number, (name, title) in enumerate(SECTIONS, 1)]


def render_report(content: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page of a report.

    Args:
        content: the content of ``report.json``; the same content gives the same page.
        pictures: its pictures by id, WebP files.
    """
    run, skipped = content["run"], content["skipped_guards"]
    known = content["guards_in_force"] or _guards_seen(content["guards"])
    return _Page(content["titles"], pictures, content["sections"], content["entries"]).render(
        "report.html.j2",
        n=content,
        m=content["measures"],
        run=run,
        integrity=content["integrity"],
        sentences=content["sentences"],
        check=content["copy_check"],
        shown_of=content["shown_of"],
        guards=[{**one, "skipped": _skipped(one["name"], skipped)} for one in known],
        marks_of={layer["name"]: layer["carried"] for layer in content["marks"]["layers"]}.__getitem__,
    )


def render_request(entry: Mapping[str, Any], about: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page of one request.

    Args:
        entry: as :func:`pipeline.audit.sections.entry.entry_of` makes it.
        about: ``run`` (facts of the run), ``titles`` of references by id, ``generated_at``.
        pictures: its pictures by id, WebP files.
    """
    named = [match["ref_id"] for attempt in entry["attempts"] for match in attempt["nearest"]]
    return _Page(about["titles"], pictures, sections(), [entry]).render(
        "request.html.j2",
        e=entry,
        run=about["run"],
        generated_at=about["generated_at"],
        references=[ref_id for ref_id in dict.fromkeys(named) if f"reference:{ref_id}" in pictures],
    )


class _Page:
    """What the templates call while one page is made."""

    def __init__(
        self,
        titles: Mapping[str, str],
        pictures: Mapping[str, bytes],
        sections: Sequence[Mapping[str, Any]],
        entries: Sequence[Mapping[str, Any]],
    ) -> None:
        self._titles, self._pictures = titles, pictures
        self._sections = {section["id"]: section for section in sections}
        self._anchors = {entry["sample_id"]: entry["anchor"] for entry in entries if "anchor" in entry}
        self._erased = {entry["sample_id"] for entry in entries if _SMALL in entry["state"]["erased"]}
        self._notes: dict[str, str] = {}

    def render(self, template: str, **values: Any) -> str:
        from markupsafe import Markup

        functions = dict(
            anchor=self._anchor,
            bounds=lambda rate: Rate.of(rate["k"], rate["n"]).bounds,
            details=details_of,
            parts=_parts,
            interval=interval,
            missing=self._missing,
            note=self._note,
            other_notes=self._other_notes,
            picture=self._picture,
            rate_text=lambda rate: "not measured" if rate is None else str(Rate(**rate)),
            section=self._sections.__getitem__,
            style=Markup(_style()),
            ticks=_ticks,
            title=self._title,
            width=lambda part, whole: f"{100 * part / whole:.2f}" if whole else "0",
        )
        return _environment().get_template(template).render(functions | values).strip() + "\n"

    def _anchor(self, sample_id: str) -> str:
        return f"#{self._anchors[sample_id]}" if sample_id in self._anchors else ""

    def _note(self, expression: str) -> str:
        """The id of the row that holds an expression; the rows are written at the end of the page."""
        # An expression quotes values of the caller's own columns, which may hold half a surrogate pair.
        known = expression.encode("utf-8", "surrogatepass")
        return self._notes.setdefault(expression, f"x-{hashlib.sha256(known).hexdigest()[:8]}")

    def _other_notes(self, measures: Mapping[str, Any]) -> list[tuple[str, str]]:
        mine = {measure["expression"] for measure in measures.values()}
        return [(name, expression) for expression, name in self._notes.items() if expression not in mine]

    def _picture(self, name: str | None) -> str:
        data = self._pictures.get(name or "")
        return f"data:image/webp;base64,{base64.b64encode(data).decode()}" if data else ""

    def _missing(self, name: str | None, otherwise: str) -> str:
        """What stands in place of a picture that is not there."""
        return "erased on purpose" if name and name.partition(":")[2].rpartition(":")[0] in self._erased else otherwise

    def _title(self, ref_id: str, stored: str = "") -> str:
        return self._titles.get(ref_id) or stored or ref_id


@functools.cache
def _environment() -> jinja2.Environment:
    """Made once, and given each page's functions as values: to load the templates takes longer than to write a small page."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(
        pct=_percent,
        whole=lambda value: percent(value, 0),
        short=short,
        real=_real,
        sim=_similarity,
        words=_words,
        brief=_brief,
        hours=_hours,
    )
    return made


@functools.cache
def _style() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def interval(rate: Mapping[str, Any]) -> Markup:
    """A rate with its interval as a thin line beside its number; nothing where there was nothing to count."""
    from markupsafe import Markup

    if rate["value"] is None:
        return Markup("")
    wide, colour = 110, "#2b7a78"
    spread = f'x1="{rate["low"] * wide:.1f}" x2="{rate["high"] * wide:.1f}" y1="8" y2="8"'
    lines = (
        f'<line x1="0" x2="{wide}" y1="8" y2="8" stroke="#e2e7ed" stroke-width="2"/>'
        f'<line {spread} stroke="{colour}" stroke-width="4" stroke-opacity=".35"/>'
        f'<circle cx="{rate["value"] * wide:.1f}" cy="8" r="4" fill="{colour}"/>'
    )
    size = f'viewBox="-5 0 {wide + 10} 16" width="{wide + 10}" height="16"'
    return Markup(f'<svg class="interval" {size} aria-hidden="true">{lines}</svg>')


def _guards_seen(guards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The guards by their findings, for a run whose record does not list them."""
    versions: dict[str, set[str]] = {}
    for row in guards:
        versions.setdefault(row["guard"], set()).update(row["versions"])
    return [{"name": name, "version": ", ".join(sorted(found)), "note": ""} for name, found in versions.items()]


def _skipped(guard: str, skipped: Mapping[str, int]) -> str:
    count = sum(number for name, number in skipped.items() if name.split(":")[0] == guard)
    return counted(count, "request") if count else "none"


def _ticks(low: float) -> list[float]:
    return [tick / 10 for tick in range(round(low * 10), 11, 2)]


def details_of(event: Mapping[str, Any]) -> str:
    """Details and digests of an event as one line: what belongs to it, short."""
    return "; ".join(f"{name} {text}" for name, text in _parts(event)) or "–"


def _parts(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and short texts of an event's details and digests that are not empty.

    The files of an erasure are left out: their digests are for ``verify``, and a request's state names what was erased.
    """
    texts = [(name, _as_text(value)) for name, value in event["details"].items() if name != "files"]
    texts += [(name, short(value)) for name, value in event["digests"].items() if value]
    return [(name.replace("_", " "), _brief(text, _DETAIL)) for name, text in texts if text]


def _as_text(value: Any) -> str:
    """One detail of an event in words: what is empty or zero is left out, digests are short."""
    if isinstance(value, Mapping):
        inner = {name: _as_text(item) for name, item in value.items()}
        return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in inner.items() if text)
    if isinstance(value, list | tuple):
        return ", ".join(text for item in value if (text := _as_text(item)))
    if value is None or value == "" or (value == 0 and not isinstance(value, bool)):
        return ""
    text = _words(value)
    return short(text) if re.fullmatch("[0-9a-f]{32,}", text) else text


def _shown(value: Any) -> Any:
    """Text as a page may hold it: what would not be seen, or would turn the reading direction, is escaped."""
    return visible(value) if type(value) is str else value


def _brief(text: str | None, most: int = _BRIEF) -> str:
    """The beginning of a text that may be long, for a card; a damaged row may lack it."""
    if text is None:
        return "–"
    return text if len(text) <= most else f"{text[:most].rstrip()}…"


def _words(value: Any) -> str:
    """A value of a row for people."""
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


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


def _hours(value: float | None) -> str:
    """A time between a request's end and a decision: "3 min", "5.20 h"."""
    return "–" if value is None else f"{60 * value:.0f} min" if value < 1 else f"{_real(value)} h"


def short(digest: str | None) -> str:
    """The start of a digest, and what stands before it: "calibration-d9e7afbf…"."""
    if not digest or len(digest) <= 20:
        return digest or "–"
    name, dash, digits = digest.rpartition("-")
    return f"{name}{dash}{digits[:8]}…" if name and re.fullmatch("[0-9a-f]{9,}", digits) else f"{digest[:12]}…"
