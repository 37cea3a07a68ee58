"""What the report says of odd runs and of what came after the run: who waits, what was erased, what no claim could reach."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.contents import report_numbers
from pipeline.audit.erase import erase_payloads
from pipeline.audit.events import NewEvent, append_event, read_events
from pipeline.audit.sections.funnel import bars
from pipeline.audit.state import fold
from pipeline.outcome import ACCEPTED
from tests.pipeline.test_report_sections import decided, ids, page_of

from ..counted import one_of_each, sealed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sealed(tmp_path / "run", one_of_each())


def test_who_waits_today_is_counted_as_status_counts_it(folder: Path) -> None:
    """In review, or held back since by a claim and not decided about."""
    held, reviewed = ids(folder)["key-0"], ids(folder)["key-7"]

    def queue() -> dict[str, Any]:
        found = report_numbers(folder)["people"]["queue"]
        return {name: found[name] for name in ("open", "held_since", "keys")}

    assert queue() == {"open": 1, "held_since": 0, "keys": ["key-7"]}
    append_event(folder, "sample.quarantined", "counsel", "claim 12", samples=[held], details={"claim": "12"})
    assert queue() == {"open": 2, "held_since": 1, "keys": ["key-0", "key-7"]}
    assert "2 wait today, 1 of them held back after the run" in page_of(folder)
    for one in (held, reviewed):
        append_event(folder, "review.decided", "reviewer", "looked", samples=[one], details={"outcome": "rejected"})
    assert queue() == {"open": 0, "held_since": 0, "keys": []}
    append_event(folder, "sample.quarantined", "counsel", "claim 13", samples=[held], details={"claim": "13"})
    assert queue() == {"open": 1, "held_since": 1, "keys": ["key-0"]}  # decided before it was held back again


@pytest.mark.parametrize("details", [{"outcome": "acepted"}, {"outcome": "accepted", "retain_until": 7}, {"outcome": "review"}])
def test_a_decision_that_leaves_a_request_to_a_person_is_counted_as_none(folder: Path, details: dict[str, Any]) -> None:
    append_event(folder, "review.decided", "another program", "fine", samples=[ids(folder)["key-7"]], details=details)
    found = report_numbers(folder)["people"]
    assert (found["queue"]["open"], found["decided"], found["accepted"]["n"], found["hours"]["n"]) == (1, 0, 0, 0)
    assert [row["decision"] for row in found["decisions"]] == ["review"]


def test_a_release_leaves_only_the_decision_that_it_came_with() -> None:
    held = decided("a", "", 1) | {"kind": "sample.quarantined", "details": {"claim": "12"}}
    release = decided("a", "", 3) | {"kind": "sample.released", "details": {"claim": "12", "because_of": "review"}}
    other = release | {"details": {"claim": "12", "because_of": "claim-13"}}
    again = held | {"seq": 4, "details": {"claim": "14"}}
    assert fold([held, decided("a", "accepted", 2), release]).of("a").settled
    assert not fold([held, decided("a", "accepted", 2), other]).of("a").settled
    assert fold([decided("a", "accepted", 2), again]).waits({"sample_id": "a", "outcome": "accepted"})


def test_pictures_that_no_claim_could_reach_are_stated(folder: Path) -> None:
    details: dict[str, Any] = {
        "claim": "12",
        "action": "add",
        "references": ["r"],
        "not_reached": [["a", "erased"], ["b", "erased"]],
    }
    append_event(folder, "takedown.applied", "counsel", "add 1 reference", details=details)
    assert "<b>2 pictures could not be looked at</b>" in page_of(folder)
    append_event(folder, "takedown.applied", "counsel", "again", details=details | {"not_reached": [["a", "erased"]]})
    assert "<b>1 picture could not be looked at</b>" in page_of(folder)  # the same command again reached one more
    file = ["samples/part-1-0.parquet", "the file was changed"]
    append_event(folder, "takedown.applied", "counsel", "again", details=details | {"not_reached": [file]})
    assert "<b>the pictures of 1 file could not be looked at</b>" in page_of(folder)
    append_event(folder, "takedown.applied", "counsel", "again", details=details | {"not_reached": [["a", "erased"], file]})
    assert "<b>1 picture and the pictures of 1 file could not be looked at</b>" in page_of(folder)
    append_event(folder, "takedown.applied", "counsel", "again", details=details | {"not_reached": []})
    page = page_of(folder)
    assert "could not be looked at" not in page and "<b>claim</b> 12<br>" in page


def test_a_picture_that_was_erased_is_called_erased(folder: Path) -> None:
    assert "erased on purpose" not in page_of(folder)
    event = NewEvent(kind="payload.erased", actor="privacy", reason="request 31", details={"why": "request"})
    columns = frozenset({"image", "thumbnail"})
    erase_payloads(folder, {ids(folder)["key-1"]: columns}, event, known=len(read_events(folder)))
    page = page_of(folder)
    for name in ("copies", "sheet", "entries"):
        part = page[page.index(f'<section id="{name}"') :].partition("</section>")[0]
        assert ">erased on purpose</div>" in part, name
    assert "its picture was erased; it carried XMP yes" in page
    assert 'request 31<br><span class="muted">why request</span>' in page  # no digests of files


def test_where_nothing_was_compared_no_cosine_is_shown(folder: Path) -> None:
    page = page_of(folder)
    part = page[page.index('<section id="entries"') :]
    assert '<td class="n">nothing compared</td>' in part and ">−1.000<" not in part  # key-9 is near an allowed work alone


def test_of_a_run_that_accepted_nothing_nothing_is_claimed_about_accepted_pictures(tmp_path: Path) -> None:
    page = page_of(sealed(tmp_path, [one for one in one_of_each() if one.outcome not in ACCEPTED]))
    assert "no accepted picture was compared with a reference" in page
    assert "Accepted pictures carry" not in page and "(0 of 0)" not in page


def test_a_key_and_a_prompt_that_read_from_right_to_left_keep_their_places(tmp_path: Path) -> None:
    one = one_of_each()[0]
    arabic = dataclasses.replace(one.request, key="مرحبا", prompt="عصير ليمون")
    page = page_of(sealed(tmp_path, [dataclasses.replace(one, request=arabic)]))
    assert "<bdi>مرحبا</bdi> · <bdi>عصير ليمون</bdi>" in page


def test_large_numbers_are_written_in_one_way() -> None:
    names = "requested accepted accepted_at_once accepted_after_steering caught acted_on observed generated pictures flagged"
    m: dict[str, Any] = {name: {"value": 3000} for name in f"{names} steered review rejected quarantined error".split()}
    rates = {key: {"k": 0, "n": 0} for key in ("copy_rate_accepted", "cleared_rate_accepted", "would_be_flagged_rate")}
    notes = " ".join(bar["note"] for bar in bars(m | rates, None))
    assert "3,000 pictures" in notes and "3,000 at once" in notes and "3000" not in notes
