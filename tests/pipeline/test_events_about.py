"""What an event that names many samples says of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.show import show_request
from pipeline.audit.erase import KINDS, erase_payloads
from pipeline.audit.events import NewEvent, append_event, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.page import details_of
from pipeline.audit.report import write_report
from pipeline.audit.sections.about import EventsAbout

from ..counted import one_of_each, sealed

OWN, OTHER = "a" * 32, "b" * 32


def about(details: dict[str, Any], **more: Any) -> dict[str, Any]:
    event = {"seq": 7, "kind": "sample.quarantined", "samples": [OTHER, OWN], "details": details, "digests": {}, **more}
    (found,) = EventsAbout([event, {**event, "samples": []}]).of(OWN, "key-a")
    return found


def test_it_names_the_sample_alone() -> None:
    found = about({"claim": "claim-1"})
    assert found["samples"] == [OWN] and found["details"] == {"claim": "claim-1"} and found["seq"] == 7


def test_the_looks_at_other_samples_are_left_out() -> None:
    assert about({"looks": {OTHER: {"by": "row"}, OWN: {"by": "picture"}}})["details"] == {"looks": {OWN: {"by": "picture"}}}
    assert details_of(about({"looks": {OTHER: {"by": "row"}}})) == "–"


def test_of_an_erasure_stay_its_files_and_its_own_cells() -> None:
    mine = {"path": "samples/a", "columns": {"image": [OTHER, OWN], "prompt": [OTHER]}}
    theirs = {"path": "samples/b", "columns": {"image": [OTHER]}}
    files = about({"files": [theirs, mine]}, kind="payload.erased")["details"]["files"]
    assert files == [{"path": "samples/a", "columns": {"image": [OWN]}}]


def test_lists_of_names_and_numbers_keep_its_own() -> None:
    details = {"held": ["key-b"], "waiting_for_review": ["key-b", "key-a"], "without_picture": [OTHER, OWN], "events": [3, 7]}
    kept = {"held": [], "waiting_for_review": ["key-a"], "without_picture": [OWN], "events": [7]}
    assert about(details)["details"] == kept


@pytest.mark.parametrize("odd", [
    {"looks": [OTHER]}, {"files": "all"}, {"held": {"key-b": 1}}, {"events": 3}, {"looks": None, "more": {"looks": {}}},
])  # fmt: skip
def test_details_of_another_form_stay_as_they_are(odd: dict[str, Any]) -> None:
    assert about(odd)["details"] == odd


@pytest.mark.parametrize("odd", [{"files": [1, {"columns": 2}, {"columns": {"image": [[], 3]}}]}, {"held": [[], {}]}])
def test_odd_items_name_nothing(odd: dict[str, Any]) -> None:
    assert [*about(odd)["details"].values()] == [[]]


def test_a_report_and_its_pages_do_not_repeat_what_is_of_other_requests(tmp_path: Path) -> None:
    """With all of every event in every entry, the report of 5,000 requests came to 171 MB after a retention."""
    folder = sealed(tmp_path / "run", one_of_each())
    ids = [row["sample_id"] for row in sample_rows(folder, ["sample_id"])]
    erasing = NewEvent(kind="payload.erased", actor="privacy", reason="request 31", details={"why": "request"})
    erase_payloads(folder, dict.fromkeys(ids, KINDS["prompt"]), erasing, known=len(read_events(folder)))
    looks = {sample_id: {"by": "picture"} for sample_id in ids}
    append_event(folder, "sample.quarantined", "counsel", "all", samples=ids, details={"claim": "c", "looks": looks})
    entries = write_report(folder)[1]["entries"]
    shown = show_request(folder, str(entries[0]["request_key"])).entry
    assert len(ids) > 1 and shown["events"] == entries[0]["events"]
    for entry in entries:
        others = {*ids} - {entry["sample_id"]}
        assert [event["kind"] for event in entry["events"]][-1] == "sample.quarantined"
        assert not any(other in str(entry["events"]) for other in others)
