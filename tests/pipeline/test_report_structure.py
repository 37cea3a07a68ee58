"""What a reader with a screen reader, a keyboard or no colours has of the page: checked in its markup, without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.page import SECTIONS, details_of, render_report
from pipeline.audit.report import write_report
from pipeline.audit.report_digest import own_digest_matches, with_digest

from ..counted import one_of_each, sealed

VOID = {"img", "meta", "br", "link", "input"}


class Markup(HTMLParser):
    """Tags with their attributes, in order, each with the tags around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}, tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attrs for tag, attrs, _ in self.tags if tag in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sealed(tmp_path_factory.mktemp("run"), one_of_each())
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markup(page: str) -> Markup:
    return Markup(page)


def test_the_page_names_its_language(markup: Markup) -> None:
    assert markup.all("html") == [{"lang": "en"}]


@pytest.mark.parametrize("landmark", ["header", "nav", "main", "footer"])
def test_every_landmark_stands_once(markup: Markup, landmark: str) -> None:
    assert len(markup.all(landmark)) == 1


def test_every_header_cell_says_what_it_heads(markup: Markup) -> None:
    assert {attrs.get("scope") for attrs in markup.all("th")} == {"row", "col"}


def test_every_table_has_a_caption(markup: Markup) -> None:
    tags = [(tag, around) for tag, _, around in markup.tags if tag in ("table", "caption")]
    assert [tag for tag, _ in tags[::2]] == ["table"] * (len(tags) // 2)
    assert [tag for tag, _ in tags[1::2]] == ["caption"] * (len(tags) // 2)


def test_every_picture_says_what_it_shows(markup: Markup) -> None:
    alts = [attrs.get("alt", "") for attrs in markup.all("img")]
    assert alts and all(len(alt) > 4 for alt in alts)


def test_the_pictures_of_a_pair_have_different_texts(page: str) -> None:
    pair = page[page.index('<div class="pairs">') :]
    alts = re.findall(r'alt="([^"]*)"', pair)[:2]
    assert len(set(alts)) == 2


def test_headings_leave_no_level_out(markup: Markup) -> None:
    levels = [int(tag[1]) for tag, _, _ in markup.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(now <= before + 1 for before, now in pairwise(levels))


def test_the_contents_list_every_section_in_order(page: str) -> None:
    toc = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r'href="#([\w-]+)"', toc) == [name for name, _ in SECTIONS]


def test_every_section_is_named_by_its_heading(markup: Markup) -> None:
    assert [attrs["aria-labelledby"] for attrs in markup.all("section")] == [f"h-{name}" for name, _ in SECTIONS]


def test_every_expression_in_a_title_is_a_link_as_well(markup: Markup) -> None:
    """A tooltip reaches a mouse alone."""
    numbers = [(tag, attrs) for tag, attrs, _ in markup.tags if attrs.get("class") == "num"]
    assert numbers and all(tag == "a" and attrs["href"].startswith("#x-") for tag, attrs in numbers)


def test_a_field_of_choice_has_a_legend_and_labels(markup: Markup) -> None:
    radios = [around for tag, attrs, around in markup.tags if tag == "input"]
    assert radios and all(around[-1] == "label" and "fieldset" in around for around in radios)
    assert len(markup.all("legend")) == len(markup.all("fieldset"))


def test_every_kind_of_bar_has_a_pattern_or_is_the_plain_one() -> None:
    """Two kinds are plain and differ by their place and words; the others differ by pattern, not by colour alone."""
    style = (Path(render_report.__code__.co_filename).parent / "templates" / "style.css").read_text(encoding="utf-8")
    kinds = dict(re.findall(r"\.k-(\w+) \{ background:([^}]*)\}", style))
    assert set(kinds) == {"neutral", "released", "steered", "held", "stopped"}
    assert [name for name, fill in kinds.items() if "gradient" in fill] == ["steered", "held", "stopped"]


def test_numbers_of_the_histogram_are_a_table(page: str) -> None:
    table = page[page.index("The numbers of the histogram as a table") :]
    assert '<th scope="col" class="n">Cleared</th>' in table[: table.index("</table>")]


def test_the_page_is_made_from_its_json(folder: Path, page: str) -> None:
    """Without pictures, which the JSON names by digest, page and JSON hold the same."""
    content = json.loads((folder / "report.json").read_bytes())
    again = with_digest(render_report(content, {})).decode()
    bare = re.sub(r'<img class="([^"]*)" src="data:[^"]*" alt="[^"]*">', "", page)
    again = re.sub(r'<div class="pic nopic[^"]*">[^<]*</div>', "", again)
    bare = re.sub(r'<div class="pic nopic[^"]*">[^<]*</div>', "", bare)
    assert bare.splitlines()[:-1] == again.splitlines()[:-1]


def test_every_picture_of_the_page_is_named_by_its_digest(folder: Path, page: str) -> None:
    import base64
    import hashlib

    named = set(json.loads((folder / "report.json").read_bytes())["pictures"].values())
    shown = {hashlib.sha256(base64.b64decode(data)).hexdigest() for data in re.findall(r"webp;base64,([^\"]+)", page)}
    assert shown and shown <= named


def test_the_last_line_is_the_digest_of_the_rest(folder: Path) -> None:
    assert own_digest_matches((folder / "report.html").read_bytes())


@pytest.mark.parametrize(
    "change", [lambda data: data.replace(b"accepted", b"acceptes", 1), lambda data: data + b" ", lambda data: data[:-2]]
)
def test_a_changed_page_no_longer_matches_its_digest(folder: Path, change: Any) -> None:
    assert not own_digest_matches(change((folder / "report.html").read_bytes()))


def test_the_browser_is_forbidden_to_fetch_and_to_run(markup: Markup) -> None:
    policy = next(attrs["content"] for attrs in markup.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


OFFICER = Path(__file__).parents[2] / "infra" / "docs" / "officer.md"


def questions() -> list[tuple[int, list[str]]]:
    """The officer's questions by number, and the titles of the sections that answer them."""
    rows = re.findall(r"^\| (\d+)\. [^|]+\| ([^|]+) \|", OFFICER.read_text(encoding="utf-8"), re.MULTILINE)
    return [(int(number), titles.split("; ")) for number, titles in rows]


def test_the_officers_eighteen_questions_are_all_there() -> None:
    assert [number for number, _ in questions()] == [*range(1, 19)]


@pytest.mark.parametrize(("number", "titles"), questions())
def test_every_question_names_sections_that_the_page_has(number: int, titles: list[str]) -> None:
    assert set(titles) <= {title for _, title in SECTIONS}


def test_details_of_an_event_leave_out_what_is_empty_and_shorten_digests() -> None:
    details = {"claim": "claim-7", "counts": {"hits": 1, "released": 0}, "not_reached": [], "file": "a" * 64, "note": ""}
    assert details_of({"details": details, "digests": {"receipt": "b" * 64}}) == (
        "claim claim-7; counts hits 1; file aaaaaaaaaaaa…; receipt bbbbbbbbbbbb…"
    )
