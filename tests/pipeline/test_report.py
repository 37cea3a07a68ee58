from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import InputError, IntegrityError
from index.reference import Match
from pipeline.audit import report
from pipeline.audit.contents import report_numbers
from pipeline.audit.ledger import run_predicate, seal
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.report import write_report
from pipeline.audit.shards import commit_shard
from pipeline.audit.showcase import before_and_after
from pipeline.audit.tables import BINS, bin_of
from pipeline.audit.verify import verify
from pipeline.config import RunConfig
from pipeline.copy_check import copy_check_record
from pipeline.marking.encode import decode, thumbnail
from pipeline.outcome import Caught, Outcome, Verdict
from pipeline.policy import Policy
from pipeline.settings import from_dict
from tests.pipeline.conftest import a_context, a_sample, an_attempt, drawing

from ..counted import CONTEXT, FAR, attempt, commit, copies, finding, one_of_each, sample, sealed

Make = Callable[..., Any]
STICKERS_EMBEDDER = "openclip-a5e0fe2ba4838284"


@pytest.fixture
def run(make_run: Make, tmp_path: Path) -> Any:
    return make_run(tmp_path / "run")


def part(page: str, name: str) -> str:
    """One section of a page."""
    start = page.index(f'<section id="{name}"')
    return page[start : page.index("</section>", start)]


def uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def test_numbers_equal_a_recount_by_hand(run: Any) -> None:
    m = report_numbers(run.folder)["measures"]
    # Per shard: 4 + 2 + 1 + 1 + 2 = 10 requests, one of them without a picture; two shards.
    expected = {
        "requested": 20, "generated": 18, "pictures": 26, "flagged": 10, "steered": 6, "accepted": 12, "accepted_at_once": 8,
        "accepted_after_steering": 4, "review": 2, "rejected": 2, "quarantined": 0, "error": 4, "truncated": 0,
        "caught": 0, "acted_on": 10, "observed": 0,
    }  # fmt: skip
    assert {name: m[name]["value"] for name in expected} == expected
    rates = {
        "copy_rate_first": (8, 18), "copy_rate_accepted": (0, 12), "near_rate_accepted": (0, 12), "steering_success": (4, 6),
        "cleared_rate_accepted": (0, 12), "would_be_flagged_rate": (0, 12), "acceptance_rate": (12, 20), "review_rate": (2, 20),
        "error_rate": (4, 20), "xmp_rate": (12, 12), "c2pa_rate": (0, 12), "watermark_rate": (0, 12), "flagged_rate": (10, 18),
    }  # fmt: skip
    assert {name: (m[name]["k"], m[name]["n"]) for name in rates} == rates
    # 18 first attempts at 20 evaluations, 8 later ones at 17.5; the accepted ones: 8 first and 4 later.
    assert m["evals"]["value"] == 18 * 20 + 8 * 17.5
    assert m["evals_per_accepted"]["value"] == pytest.approx(500 / 12)
    assert m["evals_wasted"]["value"] == pytest.approx(1 - (8 * 20 + 4 * 17.5) / 500)
    assert m["device_seconds"]["value"] == 26 * 1.25


def test_numbers_agree_with_the_nouns(run: Any) -> None:
    numbers = report_numbers(run.folder)
    samples = run.samples
    assert numbers["measures"]["pictures"]["value"] == sum(len(s.attempts) for s in samples)
    firsts = Counter(bin_of(s.attempts[0].nearest[0].similarity) for s in samples if s.attempts)
    sim = numbers["similarity"]
    assert [a + b for a, b in zip(sim["first_below"], sim["first_reached"], strict=True)] == [firsts[b] for b in range(BINS)]
    assert sum(sim["first_reached"]) == sum(s.attempts[0].nearest[0].similarity >= 0.8 for s in samples if s.attempts)
    assert sum(sim["held_back"]) == 6 and sum(sim["accepted"]) == 12
    assert not any(sim["accepted"][bin_of(0.8) :]) and not any(sim["accepted_cleared"]) and not any(sim["accepted_too_near"])
    assert numbers["outcomes"] == {"accepted": 8, "accepted_after_steering": 4, "error": 4, "rejected": 2, "review": 2}
    assert numbers["reasons"] == {"copy.protected": 2, "input.prompt_empty": 2, "mark.qr": 2, "oom": 2}
    assert numbers["skipped_guards"] == {"unsafe": 2}


def test_guards_and_interventions(run: Any) -> None:
    numbers = report_numbers(run.folder)
    codes, copies = numbers["guards"]
    assert (codes["category"], codes["first"]["k"], codes["first"]["n"]) == ("mark.qr", 2, 14)
    assert (copies["category"], copies["first"]["k"], copies["first"]["n"]) == ("copy.protected", 8, 18)
    assert (copies["gone"]["k"], copies["gone"]["n"], copies["accepted"]["k"], copies["accepted"]["n"]) == (4, 6, 0, 12)
    negtome, nudge = numbers["interventions"]
    assert (negtome["kind"], negtome["accepted"]["k"], negtome["accepted"]["n"]) == ("negtome", 2, 6)
    assert (nudge["kind"], nudge["accepted"]["k"], nudge["accepted"]["n"]) == ("nudge", 2, 2)
    assert nudge["mean_drop"]["value"] == pytest.approx(0.88 - 0.6)


def test_references_are_ranked_by_how_often_they_were_too_near(run: Any) -> None:
    rows = report_numbers(run.folder)["references"]
    assert [r["reached"] for r in rows] == [2, 2, 2, 2, 0, 0, 0, 0, 0]
    first = next(r for r in rows if r["ref_id"] == "ref-4")
    assert (first["nearest"], first["highest_first"], first["highest_accepted"]) == (2, 0.96, 0.55)


def test_every_measure_has_its_expression(run: Any) -> None:
    path, numbers = write_report(run.folder)
    page = path.read_text(encoding="utf-8")
    from markupsafe import escape

    for name, measure in numbers["measures"].items():
        assert measure["expression"], name
        assert str(escape(measure["expression"])) in page, name


def test_report_files_and_verification_live_together(run: Any) -> None:
    path, numbers = write_report(run.folder)
    assert path == run.folder / "report.html"
    assert json.loads((run.folder / "report.json").read_text(encoding="utf-8")) == numbers
    assert verify(run.folder).ok


def test_before_and_after_pictures_are_in_the_page(run: Any) -> None:
    reference = np.full((32, 32, 3), 200, np.uint8)
    path, _ = write_report(run.folder, {"ref-4": reference, "ref-5": None}.get, {"ref-4": "A famous <apple>"})
    page = path.read_text(encoding="utf-8")
    steered = next(s for s in run.samples if s.outcome == "accepted_after_steering")
    assert uri(thumbnail(steered.attempts[0].picture)) in page
    assert uri(thumbnail(steered.attempts[-1].picture)) in page
    assert uri(thumbnail(reference)) in page
    assert "A famous &lt;apple&gt;" in page and "A famous <apple>" not in page
    assert "picture not kept here" in page
    assert "similarity 0.960" in page and "similarity 0.550" in page


def test_every_released_picture_is_on_the_sheet(run: Any) -> None:
    page = write_report(run.folder)[0].read_text(encoding="utf-8")
    sheet = part(page, "sheet")
    assert len(re.findall("<img", sheet)) == 12
    shown = [decode(base64.b64decode(data))[0].tobytes() for data in re.findall(r"webp;base64,([^\"]+)", sheet)]
    released = [s.final.picture.tobytes() for s in run.samples if s.accepted_attempt is not None]
    assert shown == released


class Outside(HTMLParser):
    """Collects whatever a browser would fetch or run, the ids and the links inside the page, and tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: set[str] = set()
        self.ids: list[str] = []
        self.scripts = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        for name, value in attrs:
            if tag == "a" and name == "href" and value and value.startswith("#"):
                self.links.add(value[1:])
            elif name in ("src", "href", "srcset", "xlink:href", "data") and value:
                self.fetched.append(f"{tag} {value}")
        if tag not in ("img", "meta", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "circle", "path"), tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())


@pytest.fixture
def parsed(run: Any) -> Outside:
    parser = Outside()
    parser.feed(write_report(run.folder)[0].read_text(encoding="utf-8"))
    return parser


def test_page_is_self_contained_and_well_formed(parsed: Outside) -> None:
    assert parsed.open == [] and parsed.scripts == 0
    assert parsed.fetched and all(place.startswith("img data:image/webp;base64,") for place in parsed.fetched)


def test_style_fetches_nothing(run: Any) -> None:
    page = write_report(run.folder)[0].read_text(encoding="utf-8")
    assert "url(" not in page and "@import" not in page and "<link" not in page


def test_every_link_leads_somewhere_in_the_page(parsed: Outside) -> None:
    assert parsed.links and parsed.links <= set(parsed.ids)


def test_no_id_stands_twice(parsed: Outside) -> None:
    assert [name for name, count in Counter(parsed.ids).items() if count > 1] == []


def test_verdict_is_recomputed(run: Any) -> None:
    assert "every digest matches" in write_report(run.folder)[0].read_text(encoding="utf-8")
    marker = run.folder / "run.json"
    marker.write_bytes(marker.read_bytes().replace(b'"default"', b'"defaulT"'))
    path, numbers = write_report(run.folder)
    page = path.read_text(encoding="utf-8")
    assert not numbers["integrity"]["ok"] and "The record is not whole" in page and "<code>run.json</code>" in page


def test_hostile_text_is_escaped(tmp_path: Path, samples: list[Any], context: Make) -> None:
    bad = [
        replace(s, request=replace(s.request, prompt="<script>alert(1)</script>", key=f'"><u>{i}'))
        for i, s in enumerate(samples)
    ]
    commit_shard(tmp_path, "0", sample_table(bad, context(), "0"), attempt_table(bad, context(), "0"))
    seal(tmp_path, run_predicate(context()))
    page = write_report(tmp_path)[0].read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and '"><u>' not in page


def test_an_unsealed_run_without_references_or_pictures(tmp_path: Path, samples: list[Any], context: Make) -> None:
    only = [samples[-1]]
    commit_shard(tmp_path, "0", sample_table(only, context(), "0"), attempt_table(only, context(), "0"))
    path, numbers = write_report(tmp_path)
    assert numbers["measures"]["evals_per_accepted"]["value"] is None and not numbers["integrity"]["ok"]
    page = path.read_text(encoding="utf-8")
    assert "the run was never sealed" in page and "No request was steered" in page and "No similarity was measured" in page


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(IntegrityError, match="no committed sample"):
        write_report(tmp_path)


def test_long_lists_are_cut_and_say_so(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAIRS", "SHEET", "LISTED", "GALLERY"):
        monkeypatch.setattr(report, name, 2)
    page = write_report(make_run(tmp_path / "run").folder)[0].read_text(encoding="utf-8")
    assert "2 of 6 are shown" in page and "2 of 12 accepted pictures" in page and "2 of 4 shown" in page


def test_histogram_bins() -> None:
    values = [-1.2, -1.0, -0.9751, -0.975, 0.0, 0.0249, 0.025, 0.7999999999999999, 0.8, 0.99, 1.0, 1.2]
    assert [bin_of(value) for value in values] == [0, 0, 0, 1, 40, 40, 41, 72, 72, 79, 79, 79]


def test_who_was_caught_in_mid_flight_has_a_reference_and_no_first_picture() -> None:
    sample = {
        "sample_id": "s", "accepted_attempt": 0, "request_key": "k", "prompt": "fox", "outcome": "accepted_after_steering",
        "reason": "",
    }  # fmt: skip
    near = [
        {"ref_id": "other", "title": "cat", "similarity": 0.6, "status": "active"},
        {"ref_id": "own", "title": "fox", "similarity": 0.2, "status": "active"},
    ]
    copied = {"guard": "copies", "category": "copy.protected", "triggered": True, "ref_id": "other", "detail": "cat"}
    attempt = {
        "attempt": 0, "nearest": near, "intervention": {"kind": "nudge"}, "findings": [],
        "caught": [{"step": 3, "ref_ids": ["own", "other"]}],
    }  # fmt: skip
    pair = before_and_after(sample, [attempt])
    assert (pair["first"], pair["last"], pair["ref_id"]) == (None, 0, "own")
    assert "3 steps" in pair["caught"] and pair["sim_before"] is None and pair["sim_after"] == 0.2
    assert pair["steps"] == ["nudge"]
    finished = before_and_after(sample, [{**attempt, "caught": [], "findings": [copied]}])
    assert (finished["first"], finished["ref_id"], finished["sim_before"], finished["caught"]) == (0, "other", 0.6, "")
    marked = before_and_after(sample, [{**attempt, "caught": [], "findings": [{**copied, "category": "mark.qr"}]}])
    assert (marked["ref_id"], marked["sim_before"], marked["flagged"]) == ("", None, ["mark.qr"])


# --- what the page must not hide -------------------------------------------------------------------------------------------


def test_a_run_in_which_every_sample_was_caught_in_mid_flight_is_reported(tmp_path: Path) -> None:
    """No first picture finished, so the first panel of the histogram is empty."""
    drawn = an_attempt(0, drawing(1, [90, 40, 160]), 0.4, Verdict.ACCEPT, kind="negtome")
    caught = Caught(step=3, signal="latent", score=0.9, threshold=0.8, nearest=drawn.nearest)
    samples = [a_sample(0, Outcome.ACCEPTED_AFTER_STEERING, [replace(drawn, caught=(caught,))])]
    commit_shard(tmp_path, "0", sample_table(samples, a_context(), "0"), attempt_table(samples, a_context(), "0"))
    page = write_report(tmp_path)[0].read_text(encoding="utf-8")
    assert "First pictures (0)" in page and "Final pictures" in page


def text_of(page: str) -> str:
    """A page as a reader has it: no tags, no pictures."""
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def check() -> dict[str, Any]:
    """The record of a copy check as a plan holds it: that of the embedded world."""
    return copy_check_record(RunConfig(prompts="p.csv", index="index"), Policy(), STICKERS_EMBEDDER, base=Path("nowhere"))


def first_page(page: str) -> str:
    return text_of(page[: page.index('<section id="pairs"')])


def test_page_one_shows_what_the_second_look_cleared_beside_the_zero(tmp_path: Path) -> None:
    page = first_page(write_report(sealed(tmp_path, one_of_each()))[0].read_text(encoding="utf-8"))
    assert "0 % too near among accepted 0 of 6 (≤ 39 %, 95 %) 1 of 6 near, and cleared by the second look (section 3)" in page
    assert "after both looks. 1 other came near by the embedder, and the second look cleared it." in page


def test_cleared_pictures_are_shown_beside_their_reference(tmp_path: Path) -> None:
    reference = np.full((32, 32, 3), 77, np.uint8)
    page = write_report(sealed(tmp_path, one_of_each()), {"ref": reference}.get)[0].read_text(encoding="utf-8")
    section = part(page, "copies")
    assert uri(thumbnail(one_of_each()[1].attempts[0].picture)) in section
    assert uri(thumbnail(reference)) in section
    assert "similarity 0.910, at or above the threshold 0.800. Second look: 0.010." in text_of(section)


def test_what_a_policy_only_observes_would_have_been_flagged(tmp_path: Path) -> None:
    folder = sealed(tmp_path, one_of_each(), policy={"name": "mixed", "marks": {"action": "observe"}})
    page = write_report(folder)[0].read_text(encoding="utf-8")
    assert "1 of 6 accepted pictures would have been flagged (marks 1): the policy only observes these guards." in first_page(
        page
    )
    assert "marks mark.qr observe" in text_of(page)


def test_recall_stands_on_page_one_and_in_the_section_of_copies(tmp_path: Path, check: dict[str, Any]) -> None:
    page = write_report(sealed(tmp_path, one_of_each(), copy_check=check))[0].read_text(encoding="utf-8")
    sentence = "This check finds 91 % of edited copies (88–94 %, 428 measured); it misses the rest."
    assert "91 % of edited copies are found by this check 391 of 428 measured" in first_page(page)
    assert sentence in first_page(page)
    section = text_of(part(page, "copies"))
    assert sentence in section and "391 of 428 (91.4 %; 88 %–93.7 %, 95 %)" in section and "150 held-out names" in section


@pytest.mark.parametrize(
    ("copies", "found", "missed"),
    [
        ({}, "as they are; in other colours", "turned by a quarter or upside down; inverted; in a frame, on a page or in a"),
        ({"edits": ["turned"], "hues": 1}, "as they are; turned by a quarter or upside down", "in other colours; inverted; in"),
        ({"edits": ["inset", "negative", "turned"]}, "as they are; in other colours; turned by a quarter", None),
    ],
)
def test_the_section_of_copies_says_behind_which_edits_they_are_looked_for(
    tmp_path: Path, check: dict[str, Any], copies: dict[str, Any], found: str, missed: str | None
) -> None:
    policy = dataclasses.asdict(from_dict(Policy, {"copies": copies}, where="p"))
    folder = sealed(tmp_path, one_of_each(), copy_check=check, policy=policy)
    page = write_report(folder)[0].read_text(encoding="utf-8")
    section = text_of(part(page, "copies"))
    assert f"Copies looked for {found}" in section
    assert ("not looked for" in section) == bool(missed)
    assert f"Copies not looked for; expect most of them to be missed {missed}" in section or not missed
    said = f"does not look for copies that are {missed.replace('; ', ', or ')}" if missed else "does not look for copies"
    assert (said in text_of(part(page, "summary"))) == bool(missed)


def test_a_check_that_misses_most_is_warned_of_on_top(tmp_path: Path, check: dict[str, Any]) -> None:
    low = check | {"recall": {**check["recall"], "hits": 20, "n": 428}, "forced": True}
    page = write_report(sealed(tmp_path, one_of_each(), copy_check=low))[0].read_text(encoding="utf-8")
    warning = "Warning. The copy check misses too much to be relied on: it finds 5 % of edited copies (3–7 %, 428 measured)"
    assert warning in text_of(page[: page.index('<section id="summary"')])


def test_a_threshold_of_the_policy_has_no_recall(tmp_path: Path) -> None:
    folder = sealed(tmp_path, one_of_each(), copy_check={"set_by": "policy", "threshold": 0.8})
    page = first_page(write_report(folder)[0].read_text(encoding="utf-8"))
    assert "not measured how many copies this check finds the policy sets the threshold (0.800)" in page
    assert "Threshold set by the policy (0.800): recall not measured." in page


@pytest.mark.parametrize(
    ("index_id", "words"), [("", "there is no reference index"), ("c3" * 32, "no picture was compared with the index")]
)
def test_without_an_index_nothing_is_called_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_id: str, words: str
) -> None:
    monkeypatch.setitem(CONTEXT, "index_id", index_id)
    samples = [
        replace(s, attempts=tuple(replace(a, findings=a.findings[1:], nearest=(), caught=()) for a in s.attempts))
        for s in one_of_each()
    ]
    _, numbers = write_report(sealed(tmp_path, samples))
    page = first_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert numbers["measures"]["copy_rate_accepted"]["value"] is None
    assert "– too near among accepted nothing to count" in page and words in page


def test_an_unsealed_run_has_the_recall_of_its_plan(tmp_path: Path, check: dict[str, Any]) -> None:
    _, numbers = write_report(commit(tmp_path, one_of_each()), copy_check=check)
    assert numbers["copy_check"]["found"]["hits"] == 391


def test_an_erased_prompt_leaves_the_key(tmp_path: Path) -> None:
    folder = sealed(tmp_path, one_of_each())
    for path in (folder / "samples").glob("*.parquet"):
        data = pq.ParquetFile(path).read()
        erased = pa.nulls(data.num_rows, pa.string())
        pq.write_table(data.set_column(data.column_names.index("prompt"), data.schema.field("prompt"), erased), path)
    whole = write_report(folder)[0].read_text(encoding="utf-8")
    page = text_of(whole)
    assert "thing 4" not in page
    for name in ("pairs", "sheet", "entries"):
        assert "key-4" in part(whole, name), name


def test_every_card_of_those_held_back_shows_its_reference_once(tmp_path: Path) -> None:
    """A card that found the same reference by two looks shows its picture once, and so does the card after it."""
    hit = Match(ref_id="ref", title="the near drawing", similarity=0.95, confirm=0.9)
    copied = [copies(0.95), copies(0.97)]
    held = [sample(row, Outcome.REJECTED, [attempt(0, Verdict.REJECT, copied, [hit])], "copy.protected") for row in (0, 1)]
    held.append(sample(2, Outcome.REVIEW, [attempt(0, Verdict.REVIEW, [finding("text.ocr", 0.9, 0.5)], [FAR])], "text.ocr"))
    path, _ = write_report(sealed(tmp_path, held), picture_of=lambda ref_id: drawing(0, [200, 30, 40]))
    page = path.read_text(encoding="utf-8")
    cards = part(page, "exceptions").split("<div>")[1:]
    assert [card.count('alt="the reference the near drawing"') for card in cards] == [1, 1, 0]
    assert [card.count("<img") for card in cards] == [2, 2, 1]


def test_no_loop_of_a_template_asks_for_its_place_where_it_filters() -> None:
    """`loop` in the condition of a for is that of the loop around it."""
    for folder in ("pipeline/audit/templates", "jobs"):
        for path in Path(folder).rglob("*.j2"):
            assert not re.search(r"{%-? for [^%]* if [^%]*\bloop\.", path.read_text(encoding="utf-8")), path


def test_a_card_shows_the_beginning_of_a_long_prompt(tmp_path: Path) -> None:
    long = "a red apple " * 800
    folder = sealed(tmp_path, [replace(one, request=replace(one.request, prompt=long)) for one in one_of_each()])
    page = write_report(folder)[0].read_text(encoding="utf-8")
    for name in ("pairs", "copies", "exceptions", "sheet"):
        shown = part(page, name)
        assert long[:200].rstrip() + "…" in shown and long[:240] not in shown, name
    assert long.strip() in part(page, "entries")
