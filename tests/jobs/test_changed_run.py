"""A stopped or sealed run that was changed is not continued: the first change is found, and nothing is written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from index.errors import IntegrityError, RunStopped
from jobs.run.event import Event
from jobs.run.folder import failed_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.chain import canonical
from pipeline.audit.event_parts import events_schema
from pipeline.audit.events import EVENTS_START, append_event, read_events
from pipeline.audit.shards import committed

from .run_folders import contents

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def redo_plan(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change plan.json and compute the digest in it again, as an attacker who knows the format could."""
    plain = json.loads((folder / "plan.json").read_bytes())
    del plain["plan_json_sha256"]
    change(plain)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / "plan.json").write_bytes(json.dumps({**plain, "plan_json_sha256": digest}, indent=2).encode() + b"\n")


def redo_events(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change events and redo their chain, one part an event, and the file beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    events, prev, part, digest = read_events(folder), EVENTS_START, "", ""
    change(events)
    shutil.rmtree(folder / "events")
    (folder / "events").mkdir()
    for number, event in enumerate(events):
        del event["record_sha256"]
        at, details = datetime.fromisoformat(event["at"]), canonical(event["details"]).decode()
        row = {**event, "seq": number, "at": at, "details": details, "prev_sha256": prev}
        prev = row["record_sha256"] = hashlib.sha256(canonical(row)).hexdigest()
        part, schema = f"events/{number:08d}.parquet", events_schema().with_metadata({"clearance_prev_part_sha256": digest})
        pq.write_table(pa.Table.from_pylist([{**row, "digests": list(row["digests"].items())}], schema=schema), folder / part)
        digest = hashlib.sha256((folder / part).read_bytes()).hexdigest()
    head = {"count": len(events), "head": prev, "part": part, "part_sha256": digest}
    (folder / "events-head.json").write_bytes(canonical(head) + b"\n")


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "events").iterdir())


def flip(path: Path, share: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a byte of the plan": (lambda f: flip(f / "plan.json"), "plan.json"),
    "run_id": (lambda f: redo_plan(f, lambda p: p.update(run_id="another")), "plan.json"),
    "created_at": (lambda f: redo_plan(f, lambda p: p.update(created_at=1.0)), "plan.json"),
    "a threshold": (lambda f: redo_plan(f, lambda p: p["policy"]["text"].update(threshold=0.9)), "plan.json"),
    "a key of the configuration": (lambda f: redo_plan(f, lambda p: p["config"].update(base_seed=7)), "plan.json"),
    "the list of shards": (lambda f: redo_plan(f, lambda p: p["shards"].pop()), "plan.json"),
    "a number as text": (lambda f: redo_plan(f, lambda p: p.update(requests="5")), "plan.json"),
    "parts as a list": (lambda f: redo_plan(f, lambda p: p.update(parts=[])), "plan.json"),
    "a base elsewhere": (lambda f: redo_plan(f, lambda p: p.update(base="/etc")), "plan.json"),
    "a part that is not text": (lambda f: redo_plan(f, lambda p: p["parts"].update(policy=7)), "plan.json"),
    "the plan is a list": (lambda f: (f / "plan.json").write_text("[]"), "plan.json"),
    "the plan is not UTF-8": (lambda f: (f / "plan.json").write_bytes(b"\xff\xfe\xff"), "plan.json"),
    "the plan is very deep": (lambda f: (f / "plan.json").write_text("[" * 100_000), "plan.json"),
    "the requests end early": (lambda f: os.truncate(f / "requests.parquet", 500), "requests.parquet"),
    "a byte of the requests": (lambda f: flip(f / "requests.parquet"), "requests.parquet"),
    "no requests": (lambda f: (f / "requests.parquet").unlink(), "requests.parquet"),
    "an event was edited": (lambda f: flip(parts(f)[0]), "events/"),
    "events were rewritten": (lambda f: redo_events(f, lambda e: e[0].update(reason="nothing")), "events"),
    "events were begun anew": (lambda f: redo_events(f, lambda e: e.pop(0)), "events"),
    "the last event is gone": (lambda f: parts(f)[-1].unlink(), "events/"),
    "no events": (lambda f: shutil.rmtree(f / "events"), "events"),
    "events without their head": (lambda f: (f / "events-head.json").unlink(), "events-head.json"),
    "events and head gone": (lambda f: [shutil.rmtree(f / "events"), (f / "events-head.json").unlink()], "events"),
    "an event of another kind": (lambda f: parts(f)[0].write_text("7\n"), "events/"),
    "the head is a list": (lambda f: (f / "events-head.json").write_text("[]"), "events-head.json"),
    "a marker": (lambda f: flip(next((f / "commits").iterdir())), "commits/"),
    "a marker is a folder": (lambda f: (f / "commits" / "x.json").mkdir(), "commits/x.json"),
    "a data file ends early": (lambda f: os.truncate(next((f / "samples").iterdir()), 900), "samples/"),
    "a data file is gone": (lambda f: next((f / "attempts").iterdir()).unlink(), "attempts/"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_while_a_run_was_stopped_is_found(plan: Plan, stopped: Path, open_loop: Open, change: str) -> None:
    do, where = CHANGES[change]
    do(stopped)
    before = contents(stopped)
    with pytest.raises(IntegrityError) as caught:
        run_local(plan, stopped, open_loop=open_loop)
    assert f"{stopped.name}/{where}" in caught.value.where, caught.value
    assert caught.value.fix and contents(stopped) == before, "nothing was drawn, nothing was written"
    found = verify_run(stopped)
    assert any(problem.where.startswith(where) for problem in found.problems), found.problems


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_in_a_sealed_run_is_found_on_resume(plan: Plan, sealed: Path, open_loop: Open, change: str) -> None:
    do, where = CHANGES[change]
    do(sealed)
    before = contents(sealed)
    with pytest.raises(IntegrityError) as caught:
        run_local(plan, sealed, open_loop=open_loop)
    assert f"{sealed.name}/{where}" in caught.value.where and contents(sealed) == before
    assert not verify_run(sealed).ok
    with pytest.raises(IntegrityError):
        failed_keys(sealed)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda f: (f / "run.json").unlink(), "run.json"),
        (lambda f: flip(f / "run.json"), "run.json"),
        (lambda f: (f / "run.json").write_text("{}"), "run.json"),
        (lambda f: next((f / "commits").iterdir()).unlink(), "commits/"),
    ],
)
def test_a_sealed_run_that_lost_its_statement_or_a_marker_is_not_sealed_again(
    plan: Plan, sealed: Path, open_loop: Open, change: Callable[[Path], Any], where: str
) -> None:
    change(sealed)
    before = contents(sealed)
    with pytest.raises(IntegrityError) as caught:
        run_local(plan, sealed, open_loop=open_loop)
    assert where in caught.value.where and contents(sealed) == before


def test_a_shard_of_another_run_of_the_same_plan_is_found(plan: Plan, stopped: Path, tmp_path: Path, open_loop: Open) -> None:
    donor = run_local(plan, tmp_path / "donor", open_loop=open_loop)
    open_shard = next(shard for shard in plan.shards if shard.shard_id not in committed(stopped))
    receipt = committed(donor.folder)[open_shard.shard_id]
    for name in [f"commits/{open_shard.shard_id}.json", *(file.path for file in receipt.files)]:
        shutil.copy(donor.folder / name, stopped / name)
    with pytest.raises(IntegrityError, match="is not this run's: its run is") as caught:
        run_local(plan, stopped, open_loop=open_loop)
    assert receipt.files[0].path in caught.value.where and "delete the commit marker" in caught.value.fix
    (stopped / "commits" / f"{open_shard.shard_id}.json").unlink()  # as the advice says
    assert run_local(plan, stopped, open_loop=open_loop).outcomes == {"accepted": 5} and verify_run(stopped).ok


def test_a_shard_laid_in_while_the_run_goes_is_not_sealed(plan: Plan, tmp_path: Path, open_loop: Open) -> None:
    (tmp_path / "space").touch()
    donor, run = run_local(plan, tmp_path / "donor", open_loop=open_loop), tmp_path / "run"
    last = plan.shards[-1].shard_id

    def lay_in(event: Event) -> None:
        if event.kind == "shard" and not (run / "commits" / f"{last}.json").exists():
            for name in [f"commits/{last}.json", *(file.path for file in committed(donor.folder)[last].files)]:
                shutil.copy(donor.folder / name, run / name)

    with pytest.raises(IntegrityError, match="is not this run's"):
        run_local(plan, run, lay_in, open_loop=open_loop)
    assert not (run / "run.json").exists()


def test_a_shard_that_went_away_while_the_run_goes_is_not_sealed_over(plan: Plan, tmp_path: Path, open_loop: Open) -> None:
    """So it looks to the driver when workers write to a folder that is not shared."""
    (tmp_path / "space").touch()

    def lose(event: Event) -> None:
        for marker in (tmp_path / "run" / "commits").glob("000000-*.json"):
            marker.unlink()

    with pytest.raises(RunStopped, match="1 committed shards are not in the run folder") as caught:
        run_local(plan, tmp_path / "run", lose, open_loop=open_loop)
    assert "every worker shares" in caught.value.fix and not (tmp_path / "run" / "run.json").exists()
    assert run_local(plan, tmp_path / "run", open_loop=open_loop).outcomes == {"accepted": 5}


def test_a_power_cut_between_statement_and_its_event_is_mended(plan: Plan, sealed: Path, open_loop: Open) -> None:
    redo_events(sealed, lambda events: events.pop())
    assert not verify_run(sealed).ok
    run_local(plan, sealed, open_loop=open_loop)
    assert verify_run(sealed).ok and [event["kind"] for event in read_events(sealed)][-1] == "run.sealed"


def test_a_power_cut_between_the_events_and_their_head_is_no_damage(plan: Plan, stopped: Path, open_loop: Open) -> None:
    head = (stopped / "events-head.json").read_bytes()
    append_event(stopped, "run.stopped", "runner", "again")
    (stopped / "events-head.json").write_bytes(head)
    run_local(plan, stopped, open_loop=open_loop)
    assert verify_run(stopped).ok
