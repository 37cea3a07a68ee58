"""The sections of the report that tell what happened beside the drawing: one fact an assertion."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import IntegrityError
from pipeline.audit.contents import report_numbers
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.report import write_report
from pipeline.audit.report_digest import REPORTED, digests_of, report_state
from pipeline.audit.sections.beside import Beside, Unsteered
from pipeline.audit.sections.checks import checks
from pipeline.audit.sections.closest import ClosestTable
from pipeline.audit.sections.people import Waiting, claims, people
from pipeline.audit.sections.policy_changes import policy_changes, run_changes
from pipeline.audit.sections.training import TrainingTable, hash_of, own_columns
from pipeline.audit.state import fold
from pipeline.marking.coverage import marks_coverage
from pipeline.marking.robustness import measured, robustness_table
from pipeline.outcome import ACCEPTED
from pipeline.policy import Policy

from ..counted import finding, one_of_each, sealed

ENDED = datetime(2026, 11, 1, tzinfo=UTC)


def ids(folder: Path) -> dict[str, str]:
    return {row["request_key"]: row["sample_id"] for row in sample_rows(folder, ["request_key", "sample_id"])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sealed(tmp_path / "run", one_of_each())


def page_of(folder: Path, **more: Any) -> str:
    return write_report(folder, **more)[0].read_text(encoding="utf-8")


def cover_of(folder: Path) -> str:
    return page_of(folder).partition("<section")[0]


# --- closest ---------------------------------------------------------------------------------------------------------------


def test_the_closest_released_pictures_are_sorted_by_similarity(folder: Path) -> None:
    rows = report_numbers(folder)["closest"]["rows"]
    assert [(row["request_key"], row["similarity"]) for row in rows[:3]] == [("key-1", 0.91), ("key-4", 0.5), ("key-0", 0.3)]


def test_a_released_picture_says_what_both_looks_made_of_it(folder: Path) -> None:
    first, second, *_ = report_numbers(folder)["closest"]["rows"]
    assert (first["verdict"], first["confirm"]) == ("near, cleared by the second look", 0.01)
    assert (second["verdict"], second["confirm"]) == ("below the threshold", None)


def test_only_references_in_force_count_as_close(folder: Path) -> None:
    assert "key-9" not in [row["request_key"] for row in report_numbers(folder)["closest"]["rows"]]  # near to an allowed one


def test_the_closest_table_keeps_the_closest_of_many() -> None:
    table = ClosestTable(2)
    for number in range(100):
        finding = {"category": "copy.protected", "triggered": False}
        match = {
            "ref_id": "r",
            "title": "",
            "rights_basis": "",
            "similarity": number / 100,
            "confirm": None,
            "status": "active",
        }
        table.add(
            {
                "sample_id": str(number), "request_key": str(number), "prompt": "", "outcome": "accepted",
                "findings": [finding], "nearest": [match], "accepted_attempt": 0, "copy_threshold": 2.0,
            },
            [],
        )  # fmt: skip
    assert [row["request_key"] for row in table.rows()] == ["99", "98"] and table.total == 100


def test_recall_stands_beside_every_zero_of_copies(folder: Path) -> None:
    check = {"set_by": "policy", "threshold": 0.8}
    content = report_numbers(folder, copy_check=check)
    assert content["beside_zero"] == "how many copies this check finds was not measured"
    (bar,) = [bar for bar in content["funnel"] if bar["label"] == "– too near"]
    assert bar["number"] == 0 and content["beside_zero"] in bar["note"]


# --- policy ----------------------------------------------------------------------------------------------------------------


def test_two_policies_differ_key_by_key() -> None:
    default = dataclasses.asdict(Policy())
    stricter = {**default, "when_exhausted": "rejected", "copies": {**default["copies"], "k": 5}, "name": "mine"}
    assert policy_changes(default, stricter) == [
        {"key": "copies.k", "before": "3", "now": "5"}, {"key": "when_exhausted", "before": "review", "now": "rejected"},
    ]  # fmt: skip


def test_a_rung_that_is_new_is_one_row() -> None:
    (row,) = policy_changes({"mark_ladder": []}, {"mark_ladder": [{"kind": "reseed"}]})
    assert row == {"key": "mark_ladder, rung 1", "before": "not there", "now": "reseed: all at their defaults"}


def test_an_absent_key_says_what_is_in_force_in_a_difference() -> None:
    (row,) = policy_changes({"marks": {"action": "observe"}}, {"marks": {"action": None}})
    assert row["before"] == "observe" and row["now"].startswith("steer on the family of models")


def test_what_is_blocked_is_not_called_absent_when_it_was_added() -> None:
    rule = {"name": "artist", "words": ["van gogh"]}
    for before, now, word in (([], [rule], "before"), ([rule], [], "now")):
        rows = policy_changes({"blocked": before}, {"blocked": now})
        assert {row["key"] for row in rows} == {"blocked[1].name", "blocked[1].words"}
        assert {row[word] for row in rows} == {"not there"}


def test_the_order_of_keys_is_no_difference() -> None:
    rung = {"kind": "nudge", "window": 0.4, "enough": 0.3}
    assert policy_changes({"ladder": [rung]}, {"ladder": [dict(sorted(rung.items()))]}) == []


def test_an_approval_is_no_difference_of_rules() -> None:
    assert policy_changes({"about": {"owner": "a"}, "name": "x"}, {"about": {"owner": "b"}, "name": "y"}) == []


def test_runs_differ_in_what_their_statements_say() -> None:
    rows = run_changes({"index_id": "index-1", "model": {"id": "m"}}, {"index_id": "index-2", "model": {"id": "m"}})
    assert rows == [{"key": "index id", "before": "index-1", "now": "index-2"}]


def test_the_page_says_who_answers_for_the_policy(tmp_path: Path) -> None:
    about = {"owner": "head of data", "approver": "counsel", "approved_on": "2026-11-30"}
    page = page_of(sealed(tmp_path, one_of_each(), policy={**dataclasses.asdict(Policy()), "about": about}))
    for text in about.values():
        assert f"<td>{text}</td>" in page


def test_a_policy_without_an_owner_says_so(folder: Path) -> None:
    page = page_of(folder)
    assert "nobody is named" in page and "no approval is recorded" in page


def test_the_difference_to_the_run_before_is_shown(tmp_path: Path) -> None:
    policy = dataclasses.asdict(Policy())
    before = {"policy_id": "old@1", "policy": {**policy, "when_exhausted": "rejected"}}
    previous = {"run_id": "run-9", "folder": "sunday", "run_sha256": "aa", "named": False, "predicate": before}
    page = page_of(sealed(tmp_path, one_of_each(), policy=policy), beside=Beside(previous=previous, default_policy=policy))
    assert "Difference to the policy of run run-9" in page and "<code>when_exhausted</code>" in page
    assert "no rule differs" in page  # from the default


# --- people, claims, retention ---------------------------------------------------------------------------------------------


def decided(sample_id: str, outcome: str, seq: int = 0, hours: float = 2.0) -> dict[str, Any]:
    at = (ENDED + timedelta(hours=hours)).isoformat()
    return {
        "seq": seq, "at": at, "kind": "review.decided", "actor": "reviewer", "person": "p1", "reason": "looked", "digests": {},
        "samples": [sample_id], "details": {"outcome": outcome},
    }  # fmt: skip


def waiting_for(events: list[dict[str, Any]], **born: str) -> Waiting:
    waiting = Waiting(events, fold(events))
    for sample_id, outcome in born.items():
        waiting.add({"sample_id": sample_id, "request_key": f"key {sample_id}", "outcome": outcome, "finished_at": ENDED}, [])
    return waiting


def test_reviews_are_counted_once_each_by_the_last_decision() -> None:
    events = [decided("a", "rejected", 1), decided("a", "accepted", 2), decided("b", "rejected", 3)]
    found = people(events, waiting_for(events, a="review", b="review", c="review"))
    assert found["queue"] == {"open": 1, "held_since": 0, "asked": 3, "keys": ["key c"]}
    assert (found["accepted"]["k"], found["accepted"]["n"]) == (1, 2)


def test_a_decision_against_the_run_is_overturned() -> None:
    events = [decided("a", "rejected", 1), decided("b", "accepted", 2), decided("c", "accepted", 3)]
    found = people(events, waiting_for(events, a="accepted", b="rejected", c="review"))
    assert {row["sample_id"]: row["overturned"] for row in found["decisions"]} == {"a": True, "b": True, "c": False}


def test_accepted_pictures_that_a_person_looked_at_are_the_random_audit() -> None:
    events = [decided("a", "rejected", 1), decided("b", "accepted", 2)]
    found = people(events, waiting_for(events, a="accepted", b="accepted_after_steering"))
    assert (found["audited"]["k"], found["audited"]["n"]) == (1, 2)


def test_time_to_decide_runs_from_the_end_of_the_request() -> None:
    events = [decided("a", "accepted", 1, hours=1), decided("b", "accepted", 2, hours=5)]
    assert people(events, waiting_for(events, a="review", b="review"))["hours"] == {"median": 3.0, "most": 5.0, "n": 2}


def test_a_claim_and_what_was_done_are_listed() -> None:
    event = decided("a", "", 4) | {"kind": "takedown.applied", "details": {"claim": "12"}, "digests": {"receipt_sha256": "ab"}}
    held = decided("a", "", 5) | {"kind": "sample.quarantined", "details": {"claim": "12"}}
    found = claims([event, held], "claims@example.org")
    assert (found["contact"], found["takedowns"], found["quarantined"]) == ("claims@example.org", 1, 1)
    assert found["history"][0]["digests"] == {"receipt_sha256": "ab"}


def test_a_decision_after_the_run_is_in_force_and_on_the_cover(folder: Path) -> None:
    sample_id = ids(folder)["key-7"]
    append_event(folder, "review.decided", "reviewer", "harmless words", samples=[sample_id], details={"outcome": "accepted"})
    content, page = report_numbers(folder), page_of(folder)
    assert content["in_force"]["changed"] == 1 and content["in_force"]["outcomes"]["accepted"] == 5
    assert "Changed since the run." in page and "harmless words" in page


def test_a_picture_that_is_held_back_since_says_so_wherever_it_is_shown(folder: Path) -> None:
    held = [ids(folder)["key-1"]]
    append_event(folder, "sample.quarantined", "counsel", "claim 12", samples=held, details={"claim": "12"})
    page = page_of(folder)
    for name in ("copies", "sheet"):
        part = page[page.index(f'<section id="{name}"') :]
        assert "now quarantined" in part[: part.index("</section>")], name


def test_a_hold_and_an_erasure_are_shown(folder: Path) -> None:
    append_event(folder, "hold.set", "counsel", "inquiry 7", details={"matter": "7"})
    content = report_numbers(folder)
    assert content["retention"]["holds"] == 10
    assert "10 of 10 requests are under a hold" in page_of(folder) and "inquiry 7" in page_of(folder)
    assert "10 requests are under a hold, and nothing of them may be erased" in cover_of(folder)


def test_one_erasure_is_one_line_and_stands_on_the_cover(folder: Path) -> None:
    """An erasure writes an event for every shard, and one for the plan's requests."""
    from pipeline.audit.erase import KINDS, erase_payloads
    from pipeline.audit.events import NewEvent

    assert "Erased since the run" not in cover_of(folder)
    ids = [row["sample_id"] for row in sample_rows(folder, ["sample_id"])]
    columns = frozenset[str]().union(*KINDS.values())
    for two in (ids[:2], ids[2:4]):  # as the events of two shards
        event = NewEvent(kind="payload.erased", actor="privacy", reason="request 31", details={"why": "request"})
        erase_payloads(folder, dict.fromkeys(two, columns), event, known=len(read_events(folder)))
    found = report_numbers(folder)["retention"]
    assert [(one["samples"], len(one["events"]) > 1) for one in found["history"]] == [(4, True)]
    assert found["erased"]["requests"] == found["erased"]["payloads"]["prompt"] == 4
    page = page_of(folder)
    part = page[page.index('<section id="retention"') :].partition("</section>")[0]
    assert "of 4 of 10 requests: " in part and part.count("request 31") == 1
    assert "Of 4 requests pictures, prompts or other payloads were erased on purpose" in cover_of(folder)


def test_where_to_claim_is_said_or_missed(tmp_path: Path) -> None:
    with_contact = sealed(tmp_path / "a", one_of_each(), config={"claims_contact": "claims@example.org"})
    assert "claims@example.org" in page_of(with_contact)
    assert "names no contact" in page_of(sealed(tmp_path / "b", one_of_each()))


# --- marks and training ----------------------------------------------------------------------------------------------------


def carried(**counts: int) -> dict[str, dict[str, Any]]:
    return {name: {"k": counts.get(name, 0), "n": 4} for name in ("xmp", "watermark", "c2pa", "label", "pdq", "iscc")}


@pytest.mark.parametrize(("counts", "states"), [
    ({}, ["no picture", "no picture", "no picture", "stated"]),
    ({"c2pa": 4, "watermark": 2, "pdq": 4}, ["all pictures", "some pictures", "all pictures", "stated"]),
])  # fmt: skip
def test_measures_of_the_code_of_practice_have_their_evidence(counts: dict[str, int], states: list[str]) -> None:
    rows = marks_coverage(carried(**counts))[:4]
    assert [row["measure"] for row in rows] == ["1.1.1", "1.1.2", "1.1.3", "1.2"]
    assert [row["state"] for row in rows] == states and all(row["evidence"] for row in rows)


def test_layers_count_what_the_files_carry(folder: Path) -> None:
    layers = {layer["name"]: layer["carried"] for layer in report_numbers(folder)["marks"]["layers"]}
    assert (layers["xmp"]["k"], layers["xmp"]["n"]) == (6, 6) and layers["watermark"]["k"] == 0


def cell(attack: str, found: int, scheme: str = "tile", side: int = 256, kind: str = "all") -> dict[str, Any]:
    return {"scheme": scheme, "side": side, "kind": kind, "attack": attack, "found": found, "n": 100}


def test_the_robustness_table_is_of_the_schemes_in_use() -> None:
    cells = [cell("none", 100), cell("JPEG 50", 90), cell("none", 50, scheme="other"), cell("none", 1, kind="drawing")]
    table = robustness_table({"cells": cells, "unmarked": {"searching": {"alarms": 0, "looks": 3000}}}, ["tile/1"])
    assert table is not None and table["columns"] == ["tile, 256 px"]
    assert [row["name"] for row in table["rows"]] == ["none", "JPEG 50"]
    assert "0 of 3000" in table["notes"][0]


def test_nothing_measured_is_no_table() -> None:
    assert robustness_table(None, ["tile"]) is None and robustness_table({"cells": [], "unmarked": {}}, ["tile"]) is None


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "robustness.json").write_text("[]", encoding="utf-8")
    with pytest.raises(IntegrityError, match="no result of the marks bench"):
        measured(tmp_path / "robustness.json")


@pytest.mark.parametrize(("compared", "said"), [
    (0, "no caption was checked against its picture"), (2, "compared 2 of them with their prompts"),
    (6, "the faithfulness guard compared every picture with its prompt"),
])  # fmt: skip
def test_whether_captions_were_checked_is_what_the_guard_did(tmp_path: Path, compared: int, said: str) -> None:
    samples = one_of_each()
    for at in [at for at, s in enumerate(samples) if s.outcome in ACCEPTED][:compared]:
        last = samples[at].attempts[-1]
        looked = dataclasses.replace(last, findings=(*last.findings, finding("faithfulness", 0.1, 0.5)))
        samples[at] = dataclasses.replace(samples[at], attempts=(*samples[at].attempts[:-1], looked))
    page = page_of(sealed(tmp_path, samples))
    assert said in page
    assert ("no caption was checked" in page) == (not compared)


def test_what_is_in_force_today_stands_beside_what_the_run_released(folder: Path) -> None:
    assert "In force today" not in page_of(folder)
    append_event(folder, "sample.quarantined", "claims", "claim 1", samples=[ids(folder)["key-0"]], details={"claim": "1"})
    section = page_of(folder).partition('<section id="training"')[2].partition("</section>")[0]
    assert "In force today" in section and "1 quarantined" in section and "1 request has changed" in section
    assert "at the end of the run, of 10 requests 1 in review" in section


def test_guard_time_is_summed_by_guard(tmp_path: Path) -> None:
    timed = [
        dataclasses.replace(
            s, attempts=tuple(dataclasses.replace(a, guard_seconds=(("copies", 0.5), ("text", 0.25))) for a in s.attempts)
        )
        for s in one_of_each()
    ]
    first, second = report_numbers(sealed(tmp_path, timed))["guard_seconds"]
    assert (first["guard"], first["seconds"]["value"], first["each"]["value"]) == ("copies", 5.5, 0.5)
    assert second["seconds"]["value"] == 2.75


def test_a_run_without_guard_time_says_so(folder: Path) -> None:
    assert "time of the guards is not recorded" in page_of(folder)


def row(outcome: str, pixel: str, pdq: str = "0" * 64, **more: Any) -> dict[str, Any]:
    about = {"width": 8, "height": 8, "media_type": "image/webp", "pixel_sha256": pixel, "pdq": pdq, "pdq_quality": 90}
    return {"outcome": outcome, "prompt_commit": pixel, "findings": [], **about, **more}


def test_duplicates_among_released_pictures_are_counted() -> None:
    table = TrainingTable()
    for pixel in ("a" * 64, "a" * 64, "b" * 64):
        table.add(row("accepted", pixel, pdq=pixel), [])
    table.add(row("rejected", "a" * 64), [])
    assert table.rows()["same_pixels"] == 1 and table.rows()["same_pdq"] == 1 and table.rows()["released"] == 3


def test_equal_pdq_hashes_stay_equal_and_others_differ() -> None:
    assert hash_of("ab" * 32) == hash_of("AB" * 32) and hash_of("1" + "0" * 63) != hash_of("0" * 63 + "1")


def test_own_columns_are_counted_by_value() -> None:
    table = TrainingTable()
    table.add(row("accepted", "a" * 64, columns='{"kind":"cat"}'), [])
    table.add(row("rejected", "b" * 64, columns='{"kind":"cat"}'), [])
    (column,) = table.rows()["columns"]
    (value,) = column["values"]
    assert (column["column"], value["value"], value["released"]["k"], value["released"]["n"]) == ("kind", "cat", 1, 2)


def test_a_column_of_many_values_is_named_and_not_listed() -> None:
    table = TrainingTable()
    for number in range(30):
        table.add(row("accepted", "a" * 64, columns=f'{{"id":"{number}"}}'), [])
    assert table.rows()["columns"] == [{"column": "id", "values": None}]


def test_erased_columns_are_none() -> None:
    assert own_columns({"columns": None}) == {}


# --- before and after ------------------------------------------------------------------------------------------------------


def test_the_same_seed_without_steering_stands_in_the_place_of_a_picture_that_never_was(folder: Path) -> None:
    from pipeline.marking.encode import thumbnail

    caught = ids(folder)["key-3"]
    small = thumbnail(np.full((16, 16, 3), 90, np.uint8))
    nearest = ({"ref_id": "ref", "similarity": 0.97}, {"ref_id": "far", "similarity": 0.2})
    other = Unsteered(run_id="run-9", folder="observed", nearest=nearest, thumbnail=small)
    page = page_of(folder, beside=Beside(unsteered=lambda wanted: {caught: other} if caught in wanted else {}))
    pair = page[page.index("<b>Unsteered</b>") :]
    assert "similarity 0.970<br>nearest 0.970" in pair and "Unsteered, the same seed, in run observed." in pair


def test_without_another_run_it_says_that_it_is_not_known(folder: Path) -> None:
    assert "the unsteered one is not known" in page_of(folder)


# --- the report's own digest -----------------------------------------------------------------------------------------------


def reported(folder: Path) -> list[dict[str, Any]]:
    write_report(folder)
    return [append_event(folder, REPORTED, "reporter", "written", **digests_of(folder))]


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_report_as_written_passes(folder: Path, name: str) -> None:
    assert report_state(folder, name, reported(folder))[0] == "pass"


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_changed_report_is_named(folder: Path, name: str) -> None:
    events = reported(folder)
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"accepted", b"acceptea", 1))
    assert report_state(folder, name, events)[0] == "changed"


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_an_earlier_report_that_was_laid_back_is_named(folder: Path, name: str) -> None:
    events = reported(folder)
    earlier = (folder / name).read_bytes()
    write_report(folder, titles={"ref": "another title"})
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")  # and the digest of what is there now
    events.append(append_event(folder, REPORTED, "reporter", "written", **digests_of(folder)))
    assert report_state(folder, name, events)[0] == "pass"
    (folder / name).write_bytes(earlier)
    state, why = report_state(folder, name, events)
    numbers = events[0]["seq"], events[1]["seq"]
    assert (state, why) == ("changed", "an earlier report, of event {}; event {} names the present one".format(*numbers))


def test_a_page_with_a_digest_of_its_own_that_no_event_names_is_exchanged(folder: Path) -> None:
    events = reported(folder)
    write_report(folder, titles={"ref": "another title"})
    assert report_state(folder, "report.html", events)[0] == "changed"


def test_without_an_event_the_page_answers_for_itself(folder: Path) -> None:
    write_report(folder)
    assert report_state(folder, "report.html", [])[0] == "pass"


def test_an_absent_report_is_absent(folder: Path) -> None:
    assert report_state(folder, "report.html", [])[0] == "absent"


def test_ways_to_check_are_those_that_the_run_offers() -> None:
    content: dict[str, Any] = {
        "integrity": {"stages": [{"name": "signature", "state": "skip"}, {"name": "time stamp", "state": "pass"}]},
        "measures": {"xmp_rate": {"k": 1}, "c2pa_rate": {"k": 0}},
    }
    tools = [check["tool"] for check in checks("monday", content)]
    assert "OpenSSL" in tools and "ExifTool" in tools
    assert "securesystemslib (in-toto)" not in tools and "c2patool" not in tools
