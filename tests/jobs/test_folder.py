"""A run's folder: made when work can begin, taken over where nothing was committed, and without paths of the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import ClearanceError, ModelError, PlanMismatch, RunStopped
from jobs.run.event import Event, ignore
from jobs.run.folder import open_folder, without_paths
from jobs.run.lease.lock import lease
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.planning.stored_plan import stored_plan
from jobs.run.session import Session
from jobs.run.verdict import verify_run
from pipeline.audit.events import read_events
from pipeline.audit.ledger import sample_rows
from pipeline.policy import Policy

from .run_folders import contents

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


# --- made when work can begin ----------------------------------------------------------------------------------------------


def test_a_failed_start_leaves_nothing(make_plan: MakePlan, tmp_path: Path, open_refusing: Open) -> None:
    with pytest.raises(ModelError, match="weights are missing"):
        run_local(make_plan(["cat"]), tmp_path / "runs" / "one", open_loop=open_refusing)
    assert not (tmp_path / "runs").exists()


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
    ours, theirs = make_plan(["cat"]), make_plan(["bee"])
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
            run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop)
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
    folder, _ = open_folder(tmp_path / "run", make_plan(["owl"]))
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


def test_the_reason_of_a_stop_counts_what_is_committed_in_the_folder(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    """A worker may have committed shards that the session was not told of when a signal came."""
    plan = make_plan(["cat", "owl", "fox"], shard_size=1)
    folder = run_local(plan, tmp_path / "run", open_loop=open_loop).folder
    session = Session(plan, folder, "local", ignore, open_loop, True)
    assert session._reason(KeyboardInterrupt()) == "SIGINT: 3 of 3 shards are committed"


def test_errors_of_the_folder_are_clearance_errors(tmp_path: Path) -> None:
    with pytest.raises(ClearanceError, match="not a run folder"):
        stored_plan(tmp_path)
