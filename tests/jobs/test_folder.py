"""A run's folder: made when work can begin, taken over where nothing was committed, and not believed when it was changed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import ClearanceError, IntegrityError, ModelError, PlanMismatch, RunStopped
from jobs.run.folder import failed_keys, open_folder, without_paths
from jobs.run.local_runner import run_local
from jobs.run.lock import lease
from jobs.run.plan import Plan
from jobs.run.session import Event
from jobs.run.stored_plan import stored_plan
from jobs.run.verdict import verify_run
from pipeline.audit.chain import canonical
from pipeline.audit.event_parts import events_schema
from pipeline.audit.events import EVENTS_START, append_event, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.shards import committed
from pipeline.policy import Policy

PROMPTS = ["cat", "owl", "disk-full", "dog", "fox"]
MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link, with what is in it; the lock's is left out."""
    found = (path for path in sorted(folder.rglob("*")) if path.name != ".lease" and (path.is_symlink() or not path.is_dir()))
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in found
    }


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(PROMPTS)


@pytest.fixture
def stopped(plan: Plan, tmp_path: Path, open_loop: Open) -> Path:
    """A run that stopped behind its first shard."""
    with pytest.raises(RunStopped):
        run_local(plan, tmp_path / "run", open_loop=open_loop)
    (tmp_path / "space").touch()
    assert len(committed(tmp_path / "run")) == 1
    return tmp_path / "run"


@pytest.fixture
def sealed(plan: Plan, stopped: Path, open_loop: Open) -> Path:
    run_local(plan, stopped, open_loop=open_loop)
    return stopped


# --- made when work can begin ----------------------------------------------------------------------------------------------


def test_a_failed_start_leaves_nothing(make_plan: MakePlan, tmp_path: Path, open_refusing: Open) -> None:
    with pytest.raises(ModelError, match="weights are missing"):
        run_local(make_plan(PROMPTS), tmp_path / "runs" / "one", open_loop=open_refusing)
    assert not (tmp_path / "runs").exists()


def test_a_start_whose_disk_is_full_leaves_nothing(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    class Full(storage.Disk):
        def replace(self, old: str, new: str, *, at: int) -> None:
            if new == "plan.json":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().replace(old, new, at=at)

    with storage.using(Full()), pytest.raises(RunStopped, match="disk is full"):
        run_local(make_plan(PROMPTS), tmp_path / "run", open_loop=open_loop)
    assert not (tmp_path / "run").exists()


def test_the_folder_is_there_when_the_worker_is_ready(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    seen: list[tuple[str, bool]] = []

    def opened(*arguments: Any) -> Any:
        seen.append(("opening", (tmp_path / "run").exists()))
        return open_loop(*arguments)

    def listen(event: Event) -> None:
        seen.append((event.kind, (tmp_path / "run" / "plan.json").exists()))

    run_local(make_plan(["cat"]), tmp_path / "run", listen, open_loop=opened)
    assert seen[:3] == [("started", False), ("opening", False), ("worker", True)]


def test_nothing_is_written_before_the_folder_is_held(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    """The loser of a race finds another plan and leaves it as it is."""
    ours, theirs = make_plan(PROMPTS), make_plan(["bee"])
    written: dict[str, Any] = {}

    def overtaken(*arguments: Any) -> Any:
        open_folder(tmp_path / "run", theirs)
        written.update(contents(tmp_path / "run"))
        return open_loop(*arguments)

    with pytest.raises(RunStopped, match="another run began in this folder meanwhile"):
        run_local(ours, tmp_path / "run", open_loop=overtaken)
    assert contents(tmp_path / "run") == written and Plan.load(tmp_path / "run") == theirs


def test_a_folder_that_is_held_is_not_written_to(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    (tmp_path / "run").mkdir()
    with lease(tmp_path / "run"):
        with pytest.raises(RunStopped, match="another run is writing"):
            run_local(make_plan(PROMPTS), tmp_path / "run", open_loop=open_loop)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lease"]


# --- taken over ------------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_taken(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    (tmp_path / "run").mkdir()
    assert run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop, resume=False).outcomes == {"accepted": 1}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_without_a_commit_is_taken_over_with_a_note(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, resume: bool
) -> None:
    old = make_plan(["disk-full"])
    with pytest.raises(RunStopped):
        run_local(old, tmp_path / "run", open_loop=open_loop)
    before = stored_plan(tmp_path / "run")
    (tmp_path / "run" / "samples").mkdir()
    (tmp_path / "run" / "samples" / "part-000000-x-0123456789abcdef.parquet").write_bytes(b"left by a killed worker")
    plan, events = make_plan(["cat"], rules=Policy(version="2")), list[Event]()
    run_local(plan, tmp_path / "run", events.append, open_loop=open_loop, resume=resume)
    notes = [event.detail for event in events if event.kind == "note"]
    assert len(notes) == 1 and "nothing was committed" in notes[0] and "policy" in notes[0]
    after = stored_plan(tmp_path / "run")
    assert after["run_id"] != before["run_id"] and after["plan_sha256"] == plan.plan_sha256
    first = read_events(tmp_path / "run")[0]
    assert first["kind"] == "run.started" and len(first["digests"]["replaced_sha256"]) == 64
    assert verify_run(tmp_path / "run").ok


@pytest.mark.parametrize("foreign", ["thesis.txt", "samples/notes.txt", "plots/", "commits/readme"])
def test_a_folder_with_other_files_is_not_taken_over(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, foreign: str
) -> None:
    folder, _ = open_folder(tmp_path / "run", make_plan(PROMPTS))
    (folder / foreign).parent.mkdir(exist_ok=True)
    (folder / foreign).mkdir() if foreign.endswith("/") else (folder / foreign).write_text("years of work")
    before = contents(folder)
    with pytest.raises(PlanMismatch, match="another plan"):
        run_local(make_plan(["cat"]), folder, open_loop=open_loop)
    assert contents(folder) == before


def test_a_folder_with_a_commit_is_not_taken_over(make_plan: MakePlan, stopped: Path, open_loop: Open) -> None:
    before = contents(stopped)
    with pytest.raises(PlanMismatch, match="another plan"):
        run_local(make_plan(["cat"]), stopped, open_loop=open_loop)
    assert contents(stopped) == before


def test_a_file_in_the_folders_place_is_refused(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(PlanMismatch, match="is a file, not a folder"):
        run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop)


# --- changed while it was stopped ------------------------------------------------------------------------------------------


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


# --- paths -----------------------------------------------------------------------------------------------------------------


def test_no_path_of_the_machine_is_in_the_plan(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(["cat"])
    config = dataclasses.replace(
        plan.config,
        prompts=str(tmp_path / "prompts.txt"),
        out=str(tmp_path / "run"),
        index=str(tmp_path / "works" / "index"),
        policy="/etc/policies/mine.toml",
        model=dataclasses.replace(plan.config.model, path="/srv/models/sd15"),
        embedder=dataclasses.replace(plan.config.embedder, model=f"local-dir:{tmp_path}/clip", pretrained="/srv/clip.bin"),
    )
    moved = dataclasses.replace(plan, config=config)
    folder, _ = open_folder(tmp_path / "run", moved)
    stored = stored_plan(folder)
    assert (stored["config"]["prompts"], stored["config"]["index"], stored["base"]) == ("prompts.txt", "works/index", "..")
    assert (stored["config"]["policy"], stored["config"]["model"]["path"]) == ("mine.toml", "sd15")
    assert (stored["config"]["embedder"]["model"], stored["config"]["embedder"]["pretrained"]) == ("local-dir:clip", "clip.bin")
    assert str(tmp_path) not in (folder / "plan.json").read_text() and "/srv" not in (folder / "plan.json").read_text()
    assert moved.plan_sha256 == plan.plan_sha256 == Plan.load(folder).plan_sha256


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/data/a/run/samples/x: is missing", "samples/x: is missing"),
        ("in /data/a", "in a"),
        ("cannot open '/srv/models/unet.bin' (/usr/lib/python3/x.py)", "cannot open 'unet.bin' (x.py)"),
        ("see https://example.org/a/b and 3/4 of it", "see https://example.org/a/b and 3/4 of it"),
    ],
)
def test_messages_keep_names_and_lose_folders(text: str, kept: str) -> None:
    assert without_paths(text, Path("/data/a/run"), Path("/data/a")) == kept


def test_an_error_row_names_no_folder_of_the_machine(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    def opened(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        fails = loop.sample

        def sample(request: Any) -> Any:
            made = fails(request)
            return dataclasses.replace(made, error_message=f"{tmp_path}/index/3.npy is gone") if request.problem else made

        loop.sample = sample
        return loop

    result = run_local(make_plan(["cat", "", "owl"]), tmp_path / "run", open_loop=opened)
    messages = [row["error_message"] for row in sample_rows(result.folder) if row["outcome"] == "error"]
    assert messages == ["index/3.npy is gone"]


def test_the_reason_of_a_stop_names_no_folder(stopped: Path, tmp_path: Path) -> None:
    reason = read_events(stopped)[-1]["reason"]
    assert "No space left" in reason and str(tmp_path) not in reason


def test_errors_of_the_folder_are_clearance_errors(tmp_path: Path) -> None:
    with pytest.raises(ClearanceError, match="not a run folder"):
        stored_plan(tmp_path)


# --- a disk that fails -----------------------------------------------------------------------------------------------------


class FailsOnce(storage.Disk):
    """The n-th system call fails; all calls are counted."""

    def __init__(self, number: int = 0, error: int = errno.EIO) -> None:
        self.number, self.error, self.calls = number, error, 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.number:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        self._call()
        return super().open(name, flags, mode, at=at)

    def fsync(self, handle: int) -> None:
        self._call()

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._call()
        super().replace(old, new, at=at)

    def link(self, old: str, new: str, *, at: int) -> None:
        self._call()
        super().link(old, new, at=at)

    def make_folder(self, name: str, *, at: int | None = None) -> None:
        self._call()
        super().make_folder(name, at=at)


def test_whatever_system_call_fails_is_a_sentence_and_nothing_is_lost(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    plan, counted = make_plan(["cat", "", "a steered owl"]), FailsOnce()
    with storage.using(counted):
        run_local(plan, tmp_path / "whole", open_loop=open_loop)
    assert counted.calls > 150
    errors = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS]
    stops = 0
    for number in range(1, counted.calls + 1, 7):
        folder = tmp_path / str(number)
        with storage.using(FailsOnce(number, errors[number % len(errors)])):
            try:
                run_local(plan, folder, open_loop=open_loop)
            except ClearanceError as error:
                stops += 1
                assert error.where.startswith(str(tmp_path)) and error.fix and "Errno" not in error.what, error
        kept = dict(committed(folder))
        result = run_local(plan, folder, open_loop=open_loop)
        assert [row["request_key"] for row in sample_rows(folder)] == [request.key for request in plan.requests]
        assert kept.items() <= committed(folder).items() and result.outcomes["accepted"] == 1
        assert verify_run(folder).ok, (number, verify_run(folder).problems)
    assert stops > 15


def test_a_folder_that_cannot_be_written_is_refused_before_models_are_loaded(
    make_plan: MakePlan, tmp_path: Path, open_refusing: Open
) -> None:
    class Forbidden(storage.Disk):  # the tests may run as root, who may write anywhere
        def writable(self, folder: Path) -> bool:
            return False

    with storage.using(Forbidden()), pytest.raises(RunStopped, match="permission denied") as caught:
        run_local(make_plan(["cat"]), tmp_path / "runs" / "one", open_loop=open_refusing)
    assert caught.value.where == str(tmp_path) and "--out" in caught.value.fix
