"""Claims carried out on runs of drawings, with the real embedder and the real copies guard."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from index.errors import ConfigError, InputError
from index.reference import NewReference
from index.storage import open_file
from index.store import ReferenceIndex
from jobs.by import By
from jobs.cli import main as cli
from jobs.compact import compact_run
from jobs.retention import erase_keys
from jobs.takedown.claim import EXAMPLE, FiledClaim, read_claim
from jobs.takedown.receipt import lines, receipt, write_receipt
from jobs.takedown.takedown import ADD, RETIRE, Done, Order, carry_out
from pipeline.audit.events import append_event, read_events
from pipeline.audit.stored import samples_of
from pipeline.audit.verify import verify
from tests.jobs.drawn_run import OBSERVE, draw, drawing, make_index
from tests.jobs.test_reaudit import World, outcomes, rows
from tests.pipeline.test_stored import rewrite
from tests.tampering.forge import before_the_seal, put, recommit, rewritten

CLAIM = """
claimant = "rights holder A"
date = 2026-11-28
basis = "author of the drawing"
works = ["Ant"]
contact = "secret@example.org"
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("claimed")
    index, embedder = make_index(base / "index")
    draw(base, index, embedder, policy=OBSERVE, out="observed")
    return World(base, index, embedder)


@pytest.fixture
def world(drawn: World, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(drawn.base, tmp_path / "world")
    yield World(tmp_path / "world", ReferenceIndex.open(tmp_path / "world" / "index"), drawn.embedder)


def claim_of(world: World, text: str = CLAIM) -> FiledClaim:
    path = world.base / "claim.toml"
    path.write_text(text, encoding="utf-8")
    return read_claim(path)


def ant(**more: Any) -> NewReference:
    return NewReference(title="ant", picture=drawing("ant"), **more)


def take_down(world: World, runs: Sequence[str] = ("observed",), **order: Any) -> Done:
    asked = Order(**{"filed": claim_of(world), "action": ADD, "works": [ant()]} | order)
    return carry_out(world.index, world.embedder, asked, [str(world.base / run) for run in runs])


def withdraw(world: World, ref_ids: Sequence[str], **order: Any) -> Done:
    filed = claim_of(world, CLAIM.replace("author of the drawing", "withdrawn"))
    return take_down(world, **{"filed": filed, "action": RETIRE, "works": (), "ref_ids": ref_ids} | order)


def ref_of(done: Done) -> str:
    return done.references[0]["ref_id"]


# --- adding ----------------------------------------------------------------------------------------------------------------


def test_the_index_changes_and_copies_are_held_back(world: World) -> None:
    done = take_down(world)
    assert done.before != done.after == ReferenceIndex.open(world.base / "index").index_id
    assert {change.request_key for change in done.runs[0].quarantined} == {"other-ant", "moved-ant"}
    assert {key for key, outcome in outcomes(world.base / "observed").items() if outcome == "quarantined"} == {
        "other-ant",
        "moved-ant",
    }


def test_the_second_look_uses_the_claims_picture_although_the_index_may_not_keep_it(world: World) -> None:
    done = take_down(world)
    assert not world.index.keeps(ref_of(done))
    assert all(change.confirm is not None for change in done.runs[0].quarantined)


def test_every_record_names_the_claim(world: World) -> None:
    done = take_down(world, actor="claims desk", person="c3")
    claim_id, events = done.order.filed.claim_id, read_events(world.base / "observed")[-2:]
    assert [event["kind"] for event in events] == ["takedown.applied", "sample.quarantined"]
    assert events[0]["reason"] == "add 1 reference: 2 samples held back, 0 released"
    assert {event["details"]["claim"] for event in events} == {claim_id}
    assert {(event["actor"], event["person"]) for event in events} == {("claims desk", "c3")}
    assert events[0]["digests"]["index_before"] == done.before and events[0]["digests"]["index_after"] == done.after
    entry = world.index.history()[-1]
    assert entry["event"] == "added" and entry["reason"].startswith(claim_id)
    assert next(r for r in world.index.references() if r.ref_id == ref_of(done)).claim_id == claim_id


def test_the_contact_stays_in_the_claim_file(world: World) -> None:
    done = take_down(world)
    everywhere = json.dumps([receipt(done), read_events(world.base / "observed"), world.index.history()])
    assert "secret@example.org" not in everywhere and "rights holder A" in everywhere


def test_the_same_claim_again_changes_nothing_and_says_so(world: World) -> None:
    take_down(world)
    events, index_id = read_events(world.base / "observed"), world.index.index_id
    done = take_down(world)
    assert done.nothing_new and done.runs[0].held_already == 2
    assert read_events(world.base / "observed") == events and world.index.index_id == index_id
    assert any("Nothing changed" in line for line in lines(done))


def test_a_run_that_is_named_later_gets_what_it_lacks(world: World) -> None:
    take_down(world)
    shutil.copytree(world.base / "observed", world.base / "later")
    (world.base / "first").mkdir()
    draw(world.base, world.index, world.embedder, policy=OBSERVE, out="fresh", shown={"x-ant": drawing("ant")})
    done = take_down(world, ["observed", "fresh"])
    assert [len(run.quarantined) for run in done.runs] == [0, 1]
    applied, held = (event["reason"] for event in read_events(world.base / "fresh")[-2:])
    assert applied == "add 1 reference: 1 sample held back, 0 released"
    assert held == f"1 sample is too near to what {done.order.filed.claim_id} claims"


def test_a_dry_run_finds_the_same_and_changes_nothing(world: World) -> None:
    events = read_events(world.base / "observed")
    done = take_down(world, dry_run=True)
    assert {change.request_key for change in done.runs[0].quarantined} == {"other-ant", "moved-ant"}
    assert ReferenceIndex.open(world.base / "index").index_id == done.before
    assert read_events(world.base / "observed") == events
    assert not (world.base / "observed" / ".lease").exists() or not (world.base / "observed" / ".lease").read_bytes()


def test_a_picture_that_a_person_accepted_after_the_claim_is_left_alone(world: World) -> None:
    take_down(world)
    folder = world.base / "observed"
    sample_id = rows(folder)["moved-ant"]["sample_id"]
    append_event(folder, "review.decided", "compliance", "another work", samples=[sample_id], details={"outcome": "accepted"})
    append_event(folder, "sample.released", "compliance", "accepted", samples=[sample_id], details={})
    done = take_down(world)
    assert [change.request_key for change in done.runs[0].by_person] == ["moved-ant"]
    assert outcomes(folder)["moved-ant"] == "accepted"


def test_a_reference_that_the_owner_called_allowed_protects_again(world: World) -> None:
    world.index.add([ant(keep_picture=True, status="allowed")], world.embedder)
    done = take_down(world)
    assert done.references[0]["state"] == "known, allowed" and len(done.runs[0].quarantined) == 2


def test_a_work_that_would_match_nothing_is_refused_before_anything_changes(world: World) -> None:
    before = world.index.index_id
    with pytest.raises(InputError, match="status 'allowed'"):
        take_down(world, works=[ant(status="allowed")])
    assert ReferenceIndex.open(world.base / "index").index_id == before


def test_the_run_stays_intact_for_those_who_verify_it(world: World) -> None:
    from jobs.run.verdict import verify_run

    ref_id = ref_of(take_down(world))
    withdraw(world, [ref_id])
    assert verify_run(world.base / "observed").ok


def test_a_run_that_never_ended_is_looked_at_as_far_as_it_is_committed(world: World) -> None:
    folder = world.base / "observed"
    before_the_seal(folder)
    sorted((folder / "commits").iterdir())[-1].unlink()  # moved-ant is in the last shard
    done = take_down(world)
    assert "2 of 3 shards are committed" in done.runs[0].notes[0]
    assert {change.request_key for change in done.runs[0].quarantined} == {"other-ant"}


def test_two_at_once_do_not_mix_their_events(world: World) -> None:
    from jobs.run.lease.lock import lease

    with lease(world.base / "observed"):
        done = take_down(world)
    assert "is under way" in done.runs[0].why_not and not receipt(done)["complete"]
    assert len(take_down(world).runs[0].quarantined) == 2


# --- what cannot be reached ------------------------------------------------------------------------------------------------


def test_what_was_not_reached_is_named_and_the_receipt_is_not_complete(world: World) -> None:
    done = take_down(world, ["nowhere", "observed"])
    data = receipt(done)
    assert (data["complete"], data["runs"][0]["reached"], data["runs"][1]["reached"]) == (False, False, True)
    assert "no such folder" in data["not_complete_because"][0]
    text = "\n".join(lines(done))
    assert "NOT COMPLETE" in text and "Complete:" not in text


def test_the_index_is_changed_although_no_run_is_reached(world: World) -> None:
    done = take_down(world, ["nowhere"])
    assert ReferenceIndex.open(world.base / "index").index_id == done.after != done.before


def test_what_was_erased_on_purpose_is_named_and_no_command_is_to_be_given_again(world: World) -> None:
    folder = world.base / "observed"
    erase_keys(folder, ["copy-anchor"], [], By(role="privacy", reason="request 31"))
    done = take_down(world)
    text = "\n".join(lines(done))
    assert not receipt(done)["complete"] and "its embedding was erased, and its picture was erased" in text
    assert "1 sample of these was erased on purpose" in text and "Give the same command again" not in text
    assert [run.may_be_mended for run in done.runs if run.lasting] == [False]
    assert "nothing can look at it any more" in text
    erase_keys(folder, ["copy-bell"], [], By(role="privacy", reason="request 32"))
    text = "\n".join(lines(take_down(world)))
    assert "2 samples of these were erased on purpose, and nothing can look at them any more" in text


def test_an_erased_picture_makes_the_receipt_incomplete(world: World) -> None:
    sample_id = put(world.base / "observed", "other-ant", "image", None)
    done = take_down(world)
    assert not receipt(done)["complete"]
    assert "Give the same command again" in "\n".join(lines(done)), "no event says that it was erased"
    change = next(change for change in done.runs[0].quarantined if change.sample_id == sample_id)
    assert change.by == "embedding" and change.confirm is None


def _exchange_the_embedding(folder: Path, path: str, row: int) -> None:
    other = np.zeros(len(rows(folder)["other-ant"]["embedding"]), np.float16)
    other[0] = 1
    rewrite(folder, path, "embedding", other.tolist(), row)
    rewrite(folder, path, "embedding_sha256", hashlib.sha256(other.tobytes()).hexdigest(), row)


def _call_it_an_error(folder: Path, path: str, row: int) -> None:
    rewrite(folder, path, "outcome", "error", row)


@pytest.mark.parametrize("tamper", [_exchange_the_embedding, _call_it_an_error])
@pytest.mark.parametrize("compacted", [False, True])
def test_rows_that_were_changed_are_not_reached(world: World, tamper: Any, compacted: bool) -> None:
    """The digest of an embedding stands in the same row: only the file's own tells that both were exchanged."""
    folder = world.base / "observed"
    if compacted:
        compact_run(folder, By(role="operator", reason="fewer files"))
    part = next(part for part in samples_of(folder) if rows(folder)["other-ant"]["sample_id"] in part.ids)
    tamper(folder, part.path, part.ids.index(rows(folder)["other-ant"]["sample_id"]))
    arguments = ("--runs", folder, "--add", world.base / "ant.png", "--claim", world.base / "claim.toml")
    claim_of(world)
    Image.fromarray(drawing("ant")).save(world.base / "ant.png")
    done = call(world, *arguments, "--json")
    data = json.loads(done.stdout)
    assert (done.exit_code, data["complete"]) == (1, False)
    assert f"{part.path}: is not the {'part that was written' if compacted else 'file that was committed'}" in str(data)
    assert "other-ant" not in {one["request_key"] for one in data["runs"][0]["quarantined"]}
    assert "NOT COMPLETE" in next((world.base / "receipts").glob("*.txt")).read_text()


def test_a_shard_that_was_committed_again_is_not_reached(world: World) -> None:
    """Row, chain, file and marker are forged together; the statement names the marker that was there."""
    folder = world.base / "observed"

    def change(table: Any) -> Any:
        return rewritten(table, lambda found: [row.update(outcome="error") for row in found], rechain=True)

    shard = rows(folder)["other-ant"]["shard_id"]
    recommit(folder, shard, {"samples": change})
    done = take_down(world)
    assert not receipt(done)["complete"] and "which is not the marker that the run was sealed with" in done.gaps[0]


def test_a_run_whose_statement_is_gone_is_not_reached(world: World) -> None:
    (world.base / "observed" / "run.json").unlink()
    done = take_down(world)
    assert "the run was never sealed, or the file was removed" in done.runs[0].why_not


def test_no_run_and_one_run_twice_are_refused(world: World) -> None:
    for runs, what in (([], "names no run"), (["observed", "observed"], "twice")):
        with pytest.raises(InputError, match=what):
            take_down(world, runs)


# --- retiring --------------------------------------------------------------------------------------------------------------


def test_a_retired_reference_lets_go_of_what_nothing_else_holds(world: World) -> None:
    ref_id = ref_of(take_down(world))
    done = withdraw(world, [ref_id[:8]])
    assert {change.request_key for change in done.runs[0].released} == {"other-ant", "moved-ant"}
    assert set(outcomes(world.base / "observed").values()) == {"accepted"}
    assert next(r for r in world.index.references() if r.ref_id == ref_id).status == "retired"


def test_a_sample_that_another_claim_holds_stays_held_back(world: World) -> None:
    ref_id = ref_of(take_down(world))
    folder = world.base / "observed"
    sample_id = rows(folder)["moved-ant"]["sample_id"]
    append_event(folder, "sample.quarantined", "takedown", "claimed too", samples=[sample_id], details={"claim": "another"})
    done = withdraw(world, [ref_id])
    assert [change.request_key for change in done.runs[0].released] == ["other-ant"]
    assert outcomes(folder)["moved-ant"] == "quarantined"


def test_what_a_person_rejected_meanwhile_is_not_called_released(world: World) -> None:
    ref_id = ref_of(take_down(world))
    folder = world.base / "observed"
    sample_id = rows(folder)["moved-ant"]["sample_id"]
    append_event(folder, "review.decided", "review", "a copy", samples=[sample_id], details={"outcome": "rejected"})
    done = withdraw(world, [ref_id])
    run = done.runs[0]
    assert [change.request_key for change in run.released] == ["other-ant"] and run.held_already == 1
    assert outcomes(folder)["moved-ant"] == "rejected", "the claim let it go, and the decision stays"
    assert [one["counts"]["released"] for one in receipt(done)["runs"]] == [1]
    assert withdraw(world, [ref_id]).nothing_new


def test_a_sample_near_another_reference_stays_held_back(world: World) -> None:
    ref_id = ref_of(take_down(world))
    other = NewReference(title="ant again", picture=drawing("ant")[:, ::-1].copy(), keep_picture=True)
    world.index.add([other], world.embedder)
    done = withdraw(world, [ref_id])
    assert not done.runs[0].released and done.runs[0].hits == 2


def test_retiring_again_changes_nothing(world: World) -> None:
    ref_id = ref_of(take_down(world))
    withdraw(world, [ref_id])
    events = read_events(world.base / "observed")
    assert withdraw(world, [ref_id]).nothing_new
    assert read_events(world.base / "observed") == events


def test_retiring_can_be_tried_first(world: World) -> None:
    ref_id = ref_of(take_down(world))
    done = withdraw(world, [ref_id], dry_run=True)
    assert len(done.runs[0].released) == 2
    assert outcomes(world.base / "observed")["other-ant"] == "quarantined"
    assert ReferenceIndex.open(world.base / "index").index_id == done.before


def test_without_its_picture_a_sample_stays_held_back(world: World) -> None:
    ref_id = ref_of(take_down(world))
    put(world.base / "observed", "other-ant", "image", None)
    done = withdraw(world, [ref_id])
    assert [change.request_key for change in done.runs[0].released] == ["moved-ant"]
    assert not receipt(done)["complete"]


# --- claim, receipt, command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("claimant", "claimnt"), "did you mean 'claimant'|Did you mean 'claimant'"),
        (("2026-11-28", '"28.11.2026"'), "is no day"),
        (('works = ["Ant"]', "works = []"), "must not be empty"),
        (('basis = "author of the drawing"', ""), "missing key 'basis'"),
    ],
)
def test_a_claim_that_cannot_be_used_is_refused(world: World, change: tuple[str, str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        claim_of(world, CLAIM.replace(*change))


def test_the_example_is_a_claim_once_it_is_filled_in(world: World) -> None:
    works, contact = ('["Red lemon, 2019", "Blue kite"]', '["Ant"]'), ("ticket 4711", "ticket 12")
    assert claim_of(world, EXAMPLE.replace(*works).replace(*contact)).claim.claimant == "rights holder A"
    for text, left in ((EXAMPLE, "works and contact still say"), (EXAMPLE.replace(*works), "contact still says")):
        with pytest.raises(ConfigError, match=left):
            claim_of(world, text)


def test_the_receipt_is_written_twice_and_covers_itself(world: World) -> None:
    import hashlib

    path, text = write_receipt(take_down(world), world.base / "receipts")
    data = json.loads(path.read_text())
    digest = data.pop("receipt_sha256")
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest
    assert digest in text.read_text()


def test_the_runs_event_names_its_part_of_the_receipt(world: World) -> None:
    import hashlib

    done = take_down(world)
    part = receipt(done)["runs"][0]
    named = read_events(world.base / "observed")[-1]["digests"]["receipt_part_sha256"]
    content = {key: value for key, value in part.items() if key not in ("part_sha256", "events_before", "events_after")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert named == part["part_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


def call(world: World, *arguments: object) -> Any:
    given = ["takedown", "--index", world.base / "index", "--receipts", world.base / "receipts", *arguments]
    return CliRunner().invoke(cli.app, [str(one) for one in given], terminal_width=200)


def test_the_command_carries_a_claim_out(world: World) -> None:
    claim_of(world)
    Image.fromarray(drawing("ant")).save(world.base / "ant.png")
    arguments = ("--runs", world.base / "observed", "--add", world.base / "ant.png", "--claim", world.base / "claim.toml")
    done = call(world, *arguments, "--json")
    data = json.loads(done.stdout)
    assert (done.exit_code, data["complete"], data["runs"][0]["counts"]["quarantined"]) == (0, True, 2)
    gone = call(world, "--runs", world.base / "gone", "--add", world.base / "ant.png", "--claim", world.base / "claim.toml")
    assert gone.exit_code == 1 and "NOT REACHED" in gone.stdout


def test_a_link_to_nothing_beside_the_runs_is_named_and_the_others_are_reached(world: World) -> None:
    claim_of(world)
    Image.fromarray(drawing("ant")).save(world.base / "ant.png")
    runs = world.base / "runs"
    runs.mkdir()
    shutil.move(world.base / "observed", runs / "observed")
    (runs / "unmounted").symlink_to(world.base / "nowhere")
    (runs / "to-itself").symlink_to("to-itself")
    done = call(world, "--runs", runs, "--add", world.base / "ant.png", "--claim", world.base / "claim.toml", "--json")
    assert done.exit_code == 1, done.output
    reached = {Path(run["run"]).name: run["reached"] for run in json.loads(done.stdout)["runs"]}
    assert reached == {"observed": True, "unmounted": False, "to-itself": False}


def test_a_file_whose_storage_fails_is_named_and_the_other_runs_are_reached(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_of(world)
    Image.fromarray(drawing("ant")).save(world.base / "ant.png")
    runs = world.base / "runs"
    shutil.copytree(world.base / "observed", runs / "0001")
    shutil.move(world.base / "observed", runs / "0002")

    class Failing(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def failing(folder: Path, path: str, **more: Any) -> Any:
        if folder.name == "0001" and path.startswith("samples/"):
            return Failing((folder / path).read_bytes())
        return open_file(folder, path, **more)

    monkeypatch.setattr("pipeline.audit.binding.open_file", failing)
    done = call(world, "--runs", runs, "--add", world.base / "ant.png", "--claim", world.base / "claim.toml", "--json")
    assert done.exit_code == 1, done.output
    first, second = json.loads(done.stdout)["runs"]
    assert (first["reached"], second["reached"], second["counts"]["quarantined"]) == (False, True, 2)
    assert re.match(r"samples/part-\S+: cannot be read \(Input/output error\)", first["why_not"])


@pytest.mark.parametrize(
    ("arguments", "what"), [((), "no claim file"), (("--claim", "claim.toml"), "either --add or --retire")]
)
def test_the_command_names_what_is_missing(world: World, arguments: tuple[str, ...], what: str) -> None:
    done = call(world, *arguments)
    assert done.exit_code == 2 and what in done.stderr


def test_the_command_prints_an_example() -> None:
    done = CliRunner().invoke(cli.app, ["takedown", "--example"])
    assert done.stdout == EXAMPLE


def test_a_claim_reaches_the_parts_of_a_compacted_run(world: World) -> None:
    run = world.base / "observed"
    compact_run(run, By(role="operator", reason="fewer files"))
    done = take_down(world)
    assert {change.request_key for change in done.runs[0].quarantined} == {"other-ant", "moved-ant"}
    assert {key for key, outcome in outcomes(run).items() if outcome == "quarantined"} == {"other-ant", "moved-ant"}
    assert verify(run).ok
    assert {change.request_key for change in withdraw(world, [ref_of(done)]).runs[0].released} == {"other-ant", "moved-ant"}
