from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from index.errors import InputError, IntegrityError, RunStopped
from jobs.cli import main as cli
from jobs.reaudit.standing import Standing
from jobs.review.decisions import Decision, decide_one, import_file
from jobs.review.export import Wanted, export, render
from jobs.review.queue import drawn, in_force, waiting
from jobs.run.lease.lock import lease
from pipeline.audit.contents import report_numbers
from pipeline.audit.events import append_event, read_events
from pipeline.audit.layout import data_files
from pipeline.audit.ledger import sample_rows
from pipeline.audit.requests import Row
from tests.pipeline.test_stored import rewrite

HELD_BACK = "row-000000"  # for the reference "ref"
PROMPTS = ["cat", "a copy", "steered", "stubborn", "dog", "lemon", "", "bell"]


@pytest.fixture
def run(tmp_path: Path, make_plan: Callable[..., Any], run_of: Callable[..., Path]) -> Path:
    """A run with accepted, rejected and failed samples; one accepted and one rejected wait for a person."""
    plan = make_plan(PROMPTS, dataset_id="d")
    run_of(plan, tmp_path / "run")
    cat = _row(tmp_path / "run", "row-000000")["sample_id"]
    append_event(
        tmp_path / "run", "sample.quarantined", "takedown", "claimed", samples=[cat],
        details={"claim": "claim-1", "looks": {cat: {"ref_ids": ["ref"], "similarity": 0.9, "confirm": None}}},
    )  # fmt: skip
    return tmp_path / "run"


def _row(folder: Path, key: str) -> Row:
    return next(row for row in sample_rows(folder) if row["request_key"] == key)


def outcome(folder: Path, key: str) -> str:
    row = _row(folder, key)
    return Standing.of(folder).outcome(row["sample_id"], row["outcome"])


def line(folder: Path, key: str, decision: str = "accept", **more: Any) -> dict[str, Any]:
    row = _row(folder, key)
    run_id = json.loads((folder / "plan.json").read_text())["run_id"]
    return {
        "run_id": run_id, "sample_id": row["sample_id"], "request_key": key, "pixel_sha256": row["pixel_sha256"],
        "purpose": "quarantine" if key == HELD_BACK else "queue", "decision": decision,
        "reason": "nothing_wrong" if decision == "accept" else "copy", "note": "", "decided_at": "2026-11-28T16:00:00Z",
        "seconds": 2.5, "references": ["ref"] if key == HELD_BACK else [], "claims": ["claim-1"] if key == HELD_BACK else [],
    } | more  # fmt: skip


def write(folder: Path, *lines: Any) -> Path:
    path = folder.parent / "decisions.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), encoding="utf-8")
    return path


def decisions(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["kind"] == "review.decided"]


# --- the queue -------------------------------------------------------------------------------------------------------------


def test_what_was_held_back_after_the_run_waits_for_a_person(run: Path) -> None:
    assert [(one.purpose, one.claims) for one in waiting(run, Standing.of(run))] == [("quarantine", ("claim-1",))]


def test_what_a_person_has_decided_waits_no_more(run: Path) -> None:
    import_file(run, write(run, line(run, "row-000000", "reject")), actor="compliance")
    assert [*waiting(run, Standing.of(run))] == []


def test_a_draw_is_repeatable_and_takes_accepted_ones_alone(run: Path) -> None:
    standing = Standing.of(run)
    one, same, other = (drawn(run, standing, 3, seed) for seed in (5, 5, 6))
    assert one == same != other
    assert {waiting.outcome for waiting in one} <= {"accepted", "accepted_after_steering"}


def test_every_accepted_sample_can_be_drawn(run: Path) -> None:
    standing = Standing.of(run)
    seen = {one.sample_id for seed in range(40) for one in drawn(run, standing, 1, seed)}
    assert len(seen) == 4  # steered, dog, lemon, bell: the cat is held back


def test_more_than_there_are_cannot_be_drawn(run: Path) -> None:
    with pytest.raises(InputError, match="5 accepted samples, and 4 are there"):
        drawn(run, Standing.of(run), 5, 0)


# --- exporting -------------------------------------------------------------------------------------------------------------


def exported(run: Path, **wanted: Any) -> tuple[Path, list[dict[str, Any]]]:
    to = run.parent / "queue"
    export(run, to, Wanted(**wanted), lambda ref_id: None, actor="compliance")
    return to, [json.loads(one) for one in (to / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_an_export_holds_rows_pictures_and_the_page(run: Path) -> None:
    to, rows = exported(run, random=2, seed=1)
    assert sorted(row["purpose"] for row in rows) == ["audit", "audit", "quarantine"]
    assert all((to / row["picture"]).read_bytes() for row in rows)
    assert "Review queue" in (to / "queue.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("table", "column", "value"), [("samples", "prompt", "a dog"), ("attempts", "thumbnail", None)])
def test_a_person_is_shown_nothing_out_of_a_file_that_was_changed(run: Path, table: str, column: str, value: Any) -> None:
    append_event(run, "sample.quarantined", "takedown", "claimed", samples=[_row(run, "row-000003")["sample_id"]],
                 details={"claim": "claim-1"})  # fmt: skip
    for path in data_files(run, table):
        rewrite(run, path, column, value, 0)
    before = read_events(run)
    with pytest.raises(IntegrityError, match=r"is not the file that was committed|the file was changed"):
        export(run, run.parent / "queue", Wanted(), lambda ref_id: None, actor="compliance")
    assert read_events(run) == before


def test_an_export_is_an_event_that_names_who_was_drawn_and_the_seed(run: Path) -> None:
    _, rows = exported(run, random=2, seed=9)
    events = {event["details"]["purpose"]: event for event in read_events(run) if event["kind"] == "review.exported"}
    assert set(events) == {"quarantine", "audit"}
    assert events["audit"]["samples"] == sorted(row["sample_id"] for row in rows if row["purpose"] == "audit")
    assert events["audit"]["details"]["seed"] == 9


def test_the_rows_can_be_parquet(run: Path) -> None:
    export(run, run.parent / "q", Wanted(format="parquet"), lambda ref_id: None, actor="compliance")
    assert pq.read_table(run.parent / "q" / "rows.parquet").column("request_key").to_pylist() == ["row-000000"]


def test_an_export_never_lands_in_the_run_or_over_something(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").touch()
    for place, what in ((run / "queue", "lies in the run folder"), (tmp_path / "full", "not a new folder")):
        with pytest.raises(InputError, match=what):
            export(run, place, Wanted(), lambda ref_id: None, actor="compliance")


def test_an_empty_queue_says_so(run: Path) -> None:
    import_file(run, write(run, line(run, "row-000000")), actor="compliance")
    with pytest.raises(InputError, match="no sample waits"):
        export(run, run.parent / "q", Wanted(), lambda ref_id: None, actor="compliance")


def test_a_prompt_cannot_leave_its_place_in_the_page() -> None:
    evil = "</script><script>alert(1)</script>\u2028"
    text = render({"items": [{"prompt": evil}], "reasons": []})
    data = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "alert(1)</script>" not in text
    assert json.loads(data)["items"][0]["prompt"] == evil


# --- importing -------------------------------------------------------------------------------------------------------------


def test_decisions_become_events_in_one_part(run: Path) -> None:
    parts = len([*(run / "events").iterdir()])
    lines = [line(run, "row-000000", "reject"), line(run, "row-000004", "reject", purpose="audit", note="too near")]
    found = import_file(run, write(run, *lines), actor="compliance", person="r7")
    assert (found.decisions, found.rejected, found.audited, found.overturned) == (2, 2, 1, 1)
    events = decisions(run)
    assert {(event["actor"], event["person"]) for event in events} == {("compliance", "r7")}
    assert (
        events[1]["details"] | {"code": "copy", "purpose": "audit", "seconds": 2.5, "note": "too near"} == events[1]["details"]
    )
    assert outcome(run, "row-000004") == "rejected"
    assert len([*(run / "events").iterdir()]) == parts + 1


def test_accepting_what_was_held_back_releases_it(run: Path) -> None:
    assert outcome(run, "row-000000") == "quarantined"
    import_file(run, write(run, line(run, "row-000000")), actor="compliance")
    assert outcome(run, "row-000000") == "accepted"


def test_rejecting_what_was_held_back_leaves_it_held_back(run: Path) -> None:
    import_file(run, write(run, line(run, "row-000000", "reject")), actor="compliance")
    assert outcome(run, "row-000000") == "quarantined"


def test_the_same_file_again_changes_nothing_and_says_so(run: Path) -> None:
    path = write(run, line(run, "row-000000"), line(run, "row-000004"))
    import_file(run, path, actor="compliance")
    before = read_events(run)
    found = import_file(run, path, actor="compliance")
    assert found.before and found.decisions == 2
    assert read_events(run) == before


def test_parquet_is_taken_too(run: Path) -> None:
    pq.write_table(pa.Table.from_pylist([line(run, "row-000000")]), run.parent / "d.parquet")
    assert import_file(run, run.parent / "d.parquet", actor="compliance").accepted == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sample_id": "feed" * 8}, "line 2 names sample 'feed.*', which this run does not have"),
        ({"run_id": "another"}, "line 2 is of run 'another'"),
        ({"pixel_sha256": "0" * 64}, "line 2 was made on another picture"),
        ({"decision": "maybe"}, "line 2 decides 'maybe'"),
        ({"reason": "copy"}, "line 2 gives the reason 'copy' to accept"),
        ({"reason": "mood"}, "line 2 gives the reason 'mood'"),
        ({"verdict": 1}, "line 2 has the unknown key 'verdict'"),
        ({"decision": "reject", "reason": "other"}, "line 2 gives the reason 'other', which needs a note"),
        ({"decided_at": "soon"}, "line 2 was decided at 'soon'"),
        ({"seconds": -1}, "line 2 took '-1' seconds"),
        ({"purpose": "fun"}, "line 2 has the purpose 'fun'"),
        ({"references": "ref"}, "line 2 has references 'ref'"),
        ({"references": [1]}, "line 2 has references"),
        ({"claims": 1}, "line 2 has claims '1'"),
        ({"sample_id": ""}, "line 2 lacks 'sample_id'"),
    ],
)
def test_one_bad_line_refuses_the_whole_file(run: Path, change: dict[str, Any], what: str) -> None:
    before = read_events(run)
    with pytest.raises(InputError, match=what):
        import_file(run, write(run, line(run, "row-000000"), line(run, "row-000004") | change), actor="compliance")
    assert read_events(run) == before


@pytest.mark.parametrize(("text", "what"), [("{half", "line 2 is no JSON object"), ("[1]", "line 2 is no JSON object")])
def test_what_is_no_line_is_named(run: Path, text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        import_file(run, write(run, line(run, "row-000000"), text), actor="compliance")


def test_a_line_that_decides_twice_decides_nothing(run: Path) -> None:
    """Python takes the last of two values, and other readers the first: a reviewer's tool may have shown 'reject'."""
    text = json.dumps(line(run, "row-000004")).replace('"decision":', '"decision": "reject", "decision":')
    before = read_events(run)
    with pytest.raises(InputError, match="line 2 is no decision: 'decision' appears twice"):
        import_file(run, write(run, line(run, "row-000000"), text), actor="compliance")
    assert read_events(run) == before


def test_a_table_that_decides_twice_decides_nothing(run: Path, tmp_path: Path) -> None:
    plain = line(run, "row-000004")
    names = [*plain, "decision"]
    table = pa.Table.from_arrays([pa.array([plain[name]]) for name in names], names=names)
    pq.write_table(table, tmp_path / "decisions.parquet")
    with pytest.raises(InputError, match="'decision' appears twice"):
        import_file(run, tmp_path / "decisions.parquet", actor="compliance")


def test_an_empty_file_and_a_missing_one_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="holds no decision"):
        import_file(run, write(run), actor="compliance")
    with pytest.raises(InputError, match="cannot be read"):
        import_file(run, run.parent / "nowhere.jsonl", actor="compliance")


def test_two_decisions_about_one_sample_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"line 2 decides about sample .* again, as line 1 does"):
        import_file(run, write(run, line(run, "row-000004"), line(run, "row-000004", "reject")), actor="compliance")


def test_a_decision_that_stands_is_not_replaced_by_a_file(run: Path) -> None:
    import_file(run, write(run, line(run, "row-000000")), actor="compliance", person="r7")
    with pytest.raises(InputError, match=r"again: compliance \(r7\) on .* did, in event"):
        import_file(run, write(run, line(run, "row-000000", "reject")), actor="compliance")


def test_a_sample_that_was_held_back_since_can_be_decided_again(run: Path) -> None:
    import_file(run, write(run, line(run, "row-000000")), actor="compliance")
    sample_id = _row(run, "row-000000")["sample_id"]
    append_event(run, "sample.quarantined", "takedown", "claimed", samples=[sample_id], details={"claim": "claim-2"})
    assert import_file(run, write(run, line(run, "row-000000", "reject")), actor="compliance").rejected == 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"purpose": "audit", "references": []}, "reference ref, which that is for, was not shown"),
        ({"references": ["another"]}, "reference ref, which"),
        ({"claims": []}, "the line does not know of claim-1"),
    ],
)
def test_nobody_accepts_what_is_held_back_without_knowing_why(run: Path, more: dict[str, Any], why: str) -> None:
    """Handed out before the claim came, brought back behind it."""
    with pytest.raises(InputError, match=rf"line 1 accepts sample .*, held back by claim-1, but {why}"):
        import_file(run, write(run, line(run, HELD_BACK, **more)), actor="compliance")
    assert outcome(run, HELD_BACK) == "quarantined"
    import_file(run, write(run, line(run, HELD_BACK, "reject", **more)), actor="compliance")  # harms nobody


def test_a_claim_that_came_since_is_not_lifted_by_who_knew_another(run: Path) -> None:
    sample_id = _row(run, HELD_BACK)["sample_id"]
    append_event(
        run, "sample.quarantined", "takedown", "claimed", samples=[sample_id],
        details={"claim": "claim-2", "looks": {sample_id: {"ref_ids": ["new"], "similarity": 0.9, "confirm": None}}},
    )  # fmt: skip
    both = ["claim-1", "claim-2"]
    with pytest.raises(InputError, match="held back by claim-1, claim-2, but reference new"):
        import_file(run, write(run, line(run, HELD_BACK, claims=both)), actor="compliance")
    found = import_file(run, write(run, line(run, HELD_BACK, claims=both, references=["ref", "new"])), actor="compliance")
    assert found.lifted == ("claim-1", "claim-2")
    assert Standing.of(run).settled_by_person(sample_id) == {"ref", "new"}


@pytest.mark.parametrize("looks", [True, False])
def test_a_claim_for_what_was_known_is_a_claim_that_was_not(run: Path, looks: bool) -> None:
    """Another claimant names the same work, or a program of somebody else names none."""
    sample_id = _row(run, HELD_BACK)["sample_id"]
    named = {"looks": {sample_id: {"ref_ids": ["ref"], "similarity": 0.9, "confirm": None}}} if looks else {}
    append_event(run, "sample.quarantined", "takedown", "claimed", samples=[sample_id], details={"claim": "claim-3", **named})
    with pytest.raises(InputError, match="held back by claim-1, claim-3, but the line does not know of claim-3"):
        import_file(run, write(run, line(run, HELD_BACK)), actor="compliance")
    assert outcome(run, HELD_BACK) == "quarantined"


def test_what_a_person_once_knew_is_known_when_the_reason_is_corrected(run: Path) -> None:
    sample_id = _row(run, HELD_BACK)["sample_id"]
    decide_one(run, HELD_BACK, one("accept"), actor="compliance")
    decide_one(run, HELD_BACK, one("accept", overrule=True), actor="head of compliance")
    assert Standing.of(run).settled_by_person(sample_id) == {"ref"}
    decide_one(run, HELD_BACK, one(overrule=True), actor="compliance")
    assert Standing.of(run).settled_by_person(sample_id) is None


def test_the_same_words_about_another_claim_are_another_decision(run: Path) -> None:
    """A line need not say when it was made."""
    sample_id, bare = _row(run, HELD_BACK)["sample_id"], {"decided_at": "", "seconds": None}
    import_file(run, write(run, line(run, HELD_BACK, "reject", **bare)), actor="compliance")
    assert import_file(run, write(run, line(run, HELD_BACK, "reject", **bare), ""), actor="compliance").before
    append_event(run, "sample.quarantined", "takedown", "claimed", samples=[sample_id], details={"claim": "claim-2"})
    found = import_file(run, write(run, line(run, HELD_BACK, "reject", **bare), "", ""), actor="compliance")
    assert (found.rejected, found.again) == (1, 0)


def test_a_draw_leaves_out_what_a_person_accepted_against_a_claim(run: Path) -> None:
    decide_one(run, HELD_BACK, one("accept"), actor="compliance")
    with pytest.raises(InputError, match="asks for 5 accepted samples, and 4 are there"):
        drawn(run, Standing.of(run), 5, 0)


def test_a_person_knows_the_references_that_were_shown_and_no_others(run: Path) -> None:
    """Released by a later look, then accepted at random: nobody was shown what it had been held back for."""
    sample_id = _row(run, HELD_BACK)["sample_id"]
    append_event(run, "sample.released", "reaudit", "not near", samples=[sample_id], details={"claim": "claim-1"})
    import_file(run, write(run, line(run, HELD_BACK, purpose="audit", references=[])), actor="compliance")
    assert Standing.of(run).settled_by_person(sample_id) == set()


def test_a_page_shows_everything_that_holds_a_sample_back(run: Path) -> None:
    sample_id = _row(run, HELD_BACK)["sample_id"]
    many = [f"ref-{n}" for n in range(5)]
    append_event(
        run, "sample.quarantined", "takedown", "claimed", samples=[sample_id],
        details={"claim": "claim-2", "looks": {sample_id: {"ref_ids": many, "similarity": 0.9, "confirm": None}}},
    )  # fmt: skip
    _, rows = exported(run)
    assert [match["ref_id"] for match in rows[0]["references"]] == ["ref", *many]


def test_lines_of_an_earlier_download_are_passed_over(run: Path) -> None:
    """A page keeps its decisions: every later download holds the earlier ones as well."""
    first, second = line(run, HELD_BACK), line(run, "row-000004", "reject")
    import_file(run, write(run, first), actor="compliance")
    found = import_file(run, write(run, first, second), actor="compliance")
    assert (found.decisions, found.again, found.accepted, found.rejected, found.before) == (2, 1, 0, 1, False)
    assert len(decisions(run)) == 2 and outcome(run, HELD_BACK) == "accepted"
    assert import_file(run, write(run, second), actor="compliance").before


def test_every_line_that_is_wrong_is_named(run: Path) -> None:
    lines = [line(run, "row-000000", run_id="x"), line(run, "row-000004"), line(run, "row-000005", reason="mood")]
    with pytest.raises(InputError, match=r"line 1 .*line 3 "):
        import_file(run, write(run, *lines), actor="compliance")


# --- one decision ----------------------------------------------------------------------------------------------------------


def one(decision: str = "reject", **more: Any) -> Decision:
    reason = "copy" if decision == "reject" else "licensed"
    return Decision(line=0, sample_id="", pixel_sha256="", decision=decision, reason=reason, **more)


def test_one_sample_is_decided_by_its_key(run: Path) -> None:
    decide_one(run, "row-000004", one(), actor="compliance")
    assert outcome(run, "row-000004") == "rejected"


def test_a_rejected_sample_can_be_accepted_by_a_person(run: Path) -> None:
    assert outcome(run, "row-000001") == "rejected"
    decide_one(run, "row-000001", one("accept"), actor="compliance")
    assert outcome(run, "row-000001") == "accepted"


def test_a_decision_is_replaced_only_on_purpose(run: Path) -> None:
    decide_one(run, "row-000004", one(), actor="compliance")
    with pytest.raises(InputError, match="again"):
        decide_one(run, "row-000004", one("accept"), actor="compliance")
    decide_one(run, "row-000004", one("accept", overrule=True), actor="head of compliance")
    assert outcome(run, "row-000004") == "accepted"


@pytest.mark.parametrize(
    "details", [{"outcome": "acepted"}, {"outcome": "accepted", "retain_until": "soon"}, {"outcome": "review"}]
)
def test_a_decision_that_leaves_a_sample_to_a_person_stands_in_nobodys_way(run: Path, details: dict[str, str]) -> None:
    keys = [HELD_BACK, "row-000004"]
    ids = [_row(run, key)["sample_id"] for key in keys]
    append_event(run, "review.decided", "another program", "fine", samples=ids, details=details)
    standing = Standing.of(run)
    assert [one.sample_id for one in waiting(run, standing)] == ids
    assert in_force(run, standing).waiting == sum(standing.state.waits(row) for row in sample_rows(run)) == 2
    assert [standing.settled_by_person(one) for one in ids] == [None, None]  # a claim may hold them
    import_file(run, write(run, *(line(run, key, "reject") for key in keys)), actor="compliance")
    assert [outcome(run, key) for key in keys] == ["quarantined", "rejected"] and not [*waiting(run, Standing.of(run))]


def test_a_sample_without_picture_cannot_be_decided(run: Path) -> None:
    with pytest.raises(InputError, match="no picture was made") as refused:
        decide_one(run, "row-000006", one(), actor="compliance")
    assert "import the file" not in refused.value.fix and "review list" in refused.value.fix


def test_two_who_decide_at_once_are_told_so(run: Path) -> None:
    """The run is finished: no run writes to it, and there is nothing to stop."""
    with lease(run), pytest.raises(RunStopped, match=r"another command is writing .*: a decision") as refused:
        decide_one(run, "row-000004", one(), actor="compliance")
    assert refused.value.fix == "Try again when it has ended"


# --- commands --------------------------------------------------------------------------------------------------------------


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["review", *map(str, arguments)], terminal_width=200)


def test_the_list_shows_what_waits(run: Path) -> None:
    data = json.loads(call("list", run, "--json").stdout)
    assert [(row["request_key"], row["reason"]) for row in data["waiting"]] == [("row-000000", "claim-1")]
    assert "1 sample waits" in call("list", run).stdout


def test_export_and_import_as_commands(run: Path) -> None:
    done = call("export", run, "--to", run.parent / "q", "--random", "1", "--by", "compliance", "--json")
    assert json.loads(done.stdout)["counts"] == {"quarantine": 1, "audit": 1}
    path = write(run, line(run, "row-000000"))
    assert "1 accepted" in call("import", run, path, "--by", "compliance").stdout
    assert "nothing changed" in call("import", run, path, "--by", "compliance").stdout


def test_decide_as_a_command_takes_a_sentence_as_reason(run: Path) -> None:
    done = call("decide", run, "--key", "row-000004", "--reject", "--reason", "the ears are the same", "--by", "compliance")
    assert done.exit_code == 0
    assert decisions(run)[-1]["details"]["note"] == "the ears are the same"
    assert decisions(run)[-1]["reason"] == "the ears are the same"
    call("decide", run, "--key", HELD_BACK, "--accept", "--reason", "contract 12", "--by", "compliance")
    last = decisions(run)[-1]
    assert (last["reason"], last["details"]["code"], last["details"]["references"]) == ("contract 12", "stated", ["ref"])
    assert (last["details"]["purpose"], outcome(run, HELD_BACK)) == ("quarantine", "accepted")
    wrong = call("decide", run, "--key", "row-000005", "--accept", "--reason", "copy", "--by", "compliance")
    assert wrong.exit_code == 2 and "no reason to accept" in wrong.stderr


def test_a_run_that_is_verified_stays_intact_after_decisions(run: Path) -> None:
    from jobs.run.verdict import verify_run

    import_file(run, write(run, line(run, "row-000000")), actor="compliance")
    assert verify_run(run).ok


def test_a_moved_run_takes_decisions(run: Path, tmp_path: Path) -> None:
    path = write(run, line(run, "row-000000"))
    shutil.move(run, tmp_path / "elsewhere")
    assert import_file(tmp_path / "elsewhere", path, actor="compliance").accepted == 1


def test_status_shows_the_queue_and_the_outcomes_in_force(run: Path) -> None:
    status = CliRunner().invoke(cli.app, ["status", str(run), "--json"])
    data = json.loads(status.stdout)
    assert (data["review_queue"], data["outcomes_in_force"]["quarantined"]) == (1, 1)
    assert report_numbers(run)["people"]["queue"]["open"] == 1  # the report and the terminal agree
    import_file(run, write(run, line(run, "row-000000")), actor="compliance")
    after = json.loads(CliRunner().invoke(cli.app, ["status", str(run), "--json"]).stdout)
    assert after["review_queue"] == 0 and "quarantined" not in after["outcomes_in_force"]
    assert after["outcomes_in_force"]["accepted"] == data["outcomes_in_force"]["accepted"] + 1
    assert "review queue" in CliRunner().invoke(cli.app, ["status", str(run)]).stdout
    assert report_numbers(run)["people"]["queue"]["open"] == 0


@pytest.mark.parametrize("looks", [None, 7, {"x": 1}, {"SAMPLE": 3}, {"SAMPLE": {"ref_ids": 4}}, {"SAMPLE": {}}])
def test_an_event_of_another_program_is_taken_as_it_is(run: Path, looks: Any) -> None:
    sample_id = _row(run, "row-000004")["sample_id"]
    looks = {sample_id if key == "SAMPLE" else key: value for key, value in looks.items()} if isinstance(looks, dict) else looks
    append_event(run, "sample.quarantined", "other", "claimed", samples=[sample_id], details={"claim": "c", "looks": looks})
    assert {one.reason for one in waiting(run, Standing.of(run))} == {"claim-1", "c"}
    export(run, run.parent / "q", Wanted(), lambda ref_id: None, actor="compliance")
    assert outcome(run, "row-000004") == "quarantined"
