from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import InputError, IntegrityError
from pipeline.audit import report
from pipeline.audit.charts import bin_counts
from pipeline.audit.ledger import run_predicate, seal
from pipeline.audit.numbers import report_numbers
from pipeline.audit.provenance import decode, thumbnail
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.report import write_report
from pipeline.audit.verify import verify
from pipeline.shard import commit_shard

Make = Callable[..., Any]


@pytest.fixture
def run(make_run: Make, tmp_path: Path) -> Any:
    return make_run(tmp_path / "run")


def uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def test_numbers_equal_a_recount_by_hand(run: Any) -> None:
    m = report_numbers(run.folder)["measures"]
    # Per shard: 4 + 2 + 1 + 1 + 2 = 10 requests, one of them without a picture; two shards.
    expected = {
        "requested": 20, "generated": 18, "pictures": 26, "flagged": 10, "steered": 6, "released": 12, "accepted": 8,
        "accepted_after_steering": 4, "review": 2, "rejected": 2, "quarantined": 0, "error": 4, "truncated": 0,
    }  # fmt: skip
    assert {name: m[name]["value"] for name in expected} == expected
    rates = {
        "copy_rate_first": (8, 18), "copy_rate_released": (0, 12), "near_rate_released": (0, 12), "steering_success": (4, 6),
        "release_rate": (12, 20), "review_rate": (2, 20), "error_rate": (4, 20), "xmp_rate": (12, 12), "c2pa_rate": (0, 12),
        "watermark_rate": (0, 12), "flagged_rate": (10, 18),
    }  # fmt: skip
    assert {name: (m[name]["k"], m[name]["n"]) for name in rates} == rates
    # 18 first attempts at 20 evaluations, 8 later ones at 17.5; the accepted ones: 8 first and 4 later.
    assert m["evals"]["value"] == 18 * 20 + 8 * 17.5
    assert m["evals_per_released"]["value"] == pytest.approx(500 / 12)
    assert m["evals_wasted"]["value"] == pytest.approx(1 - (8 * 20 + 4 * 17.5) / 500)
    assert m["device_seconds"]["value"] == 26 * 1.25


def test_numbers_agree_with_the_nouns(run: Any) -> None:
    numbers = report_numbers(run.folder)
    samples = run.samples
    assert numbers["measures"]["pictures"]["value"] == sum(len(s.attempts) for s in samples)
    firsts = sorted(s.attempts[0].nearest[0].similarity for s in samples if s.attempts)
    assert numbers["similarity"]["first"] == firsts
    assert len(numbers["similarity"]["final_held"]) == 6 and max(numbers["similarity"]["final_released"]) < 0.8
    assert numbers["outcomes"] == {"accepted": 8, "accepted_after_steering": 4, "error": 4, "rejected": 2, "review": 2}
    assert numbers["reasons"] == {"copy.protected": 2, "input.prompt_empty": 2, "mark.qr": 2, "oom": 2}
    assert numbers["skipped_guards"] == {"unsafe": 2}


def test_guards_and_interventions(run: Any) -> None:
    numbers = report_numbers(run.folder)
    codes, copies = numbers["guards"]
    assert (codes["category"], codes["first"]["k"], codes["first"]["n"]) == ("mark.qr", 2, 14)
    assert (copies["category"], copies["first"]["k"], copies["first"]["n"]) == ("copy.protected", 8, 18)
    assert (copies["cleared"]["k"], copies["cleared"]["n"], copies["released"]["k"], copies["released"]["n"]) == (4, 6, 0, 12)
    negtome, nudge = numbers["interventions"]
    assert (negtome["kind"], negtome["accepted"]["k"], negtome["accepted"]["n"]) == ("negtome", 2, 6)
    assert (nudge["kind"], nudge["accepted"]["k"], nudge["accepted"]["n"]) == ("nudge", 2, 2)
    assert nudge["mean_drop"]["value"] == pytest.approx(0.88 - 0.6)


def test_references_are_ranked_by_how_often_they_were_too_near(run: Any) -> None:
    rows = report_numbers(run.folder)["references"]
    assert [r["flagged"] for r in rows] == [2, 2, 2, 2, 0, 0, 0, 0, 0]
    first = next(r for r in rows if r["ref_id"] == "ref-4")
    assert (first["nearest"], first["highest_first"], first["highest_released"]) == (2, 0.96, 0.55)


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
    path, _ = write_report(run.folder, {"ref-4": reference, "ref-5": None}, {"ref-4": "A famous <apple>"})
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
    sheet = page[page.index('<section id="sheet">') : page.index('<section id="method">')]
    assert len(re.findall("<img", sheet)) == 12
    shown = [decode(base64.b64decode(data))[0].tobytes() for data in re.findall(r"webp;base64,([^\"]+)", sheet)]
    released = [s.final.picture.tobytes() for s in run.samples if s.accepted_attempt is not None]
    assert shown == released


class Outside(HTMLParser):
    """Collects whatever a browser would fetch, and tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        self.fetched += [f"{tag} {v}" for k, v in attrs if k in ("src", "href", "srcset", "xlink:href", "data") and v]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "circle", "path"), tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())


def test_page_is_self_contained_and_well_formed(run: Any) -> None:
    page = write_report(run.folder)[0].read_text(encoding="utf-8")
    parser = Outside()
    parser.feed(page)
    assert parser.open == [] and parser.scripts == 0
    assert parser.fetched and all(place.startswith("img data:image/webp;base64,") for place in parser.fetched)
    assert "url(" not in page and "@import" not in page and "<link" not in page


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
    assert numbers["measures"]["evals_per_released"]["value"] is None and not numbers["integrity"]["ok"]
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
    assert "2 of 6 are shown" in page and "2 of 12 released pictures" in page and "2 of 4 shown" in page


def test_histogram_bins() -> None:
    assert bin_counts([0.0, 0.049, 0.05, 0.8, 0.99, 1.0, 1.2, -0.1], 0.0, 1.0, 20) == [3, 1, *[0] * 14, 1, 0, 0, 3]


def test_who_was_caught_in_mid_flight_has_a_reference_and_no_first_picture() -> None:
    from pipeline.audit.report import _pair

    sample = {"accepted_attempt": 0, "request_key": "k", "prompt": "fox", "outcome": "accepted_after_steering", "reason": ""}
    near = [{"ref_id": "other", "title": "cat", "similarity": 0.6}, {"ref_id": "own", "title": "fox", "similarity": 0.2}]
    attempt = {
        "attempt": 0, "src": "data:steered", "nearest": near, "intervention": {"kind": "nudge"},
        "caught": [{"step": 3, "ref_ids": ["own", "other"]}],
    }  # fmt: skip
    pair = _pair(sample, [attempt], {"own": "data:fox"}, lambda ref_id, stored="": stored or ref_id)
    assert (pair["before"], pair["after"], pair["reference"]) == ("", "data:steered", "data:fox")
    assert "3 steps" in pair["caught"] and pair["sim_before"] is None and pair["sim_after"] == 0.2
    assert pair["steps"] == ["nudge"]
    finished = _pair(sample, [{**attempt, "caught": []}], {}, lambda ref_id, stored="": stored or ref_id)
    assert finished["before"] == "data:steered" and finished["sim_before"] == 0.6 and finished["caught"] == ""
