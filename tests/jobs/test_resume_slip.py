"""`--resume` with a folder that holds no run: a slip is refused, and a scheduled job begins its next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import InputError
from jobs.run.dataset.slip import refuse_slip
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.preflight import dry_run
from tests.jobs.data_sets import call


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(["cat"])


@pytest.fixture
def monday(plan: Plan, tmp_path: Path, open_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in runs/monday, below the current folder."""
    monkeypatch.chdir(tmp_path)
    return run_local(plan, tmp_path / "runs" / "monday", open_loop=open_loop).folder


@pytest.mark.parametrize("slip", ["runs/mondya", "runs/Monday", "runs/monda", "runs/on-monday", "run/monday", "runs/monday-"])
def test_a_slip_is_refused_with_the_folder_that_is_meant(plan: Plan, monday: Path, slip: str) -> None:
    folder = monday.parents[1] / slip
    with pytest.raises(InputError) as finished:
        refuse_slip(folder, plan, base=monday.parents[1])
    assert finished.value.where == str(folder)
    assert finished.value.what.startswith(f"no run to continue; {monday} holds a run of this plan (finished)")
    assert finished.value.fix == f"Write --out runs/monday; or leave out --resume, and a run begins in {folder.name}"
    (monday / "run.json").unlink()
    with pytest.raises(InputError, match="of this plan \\(not finished\\)"):
        refuse_slip(folder, plan, base=monday.parents[1])
    assert refuse_slip(monday, plan, base=monday.parents[1]) is False


def test_a_run_that_is_linked_there_is_meant_too(plan: Plan, monday: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    monday.rename(tmp_path / "disk" / "monday")
    monday.symlink_to(tmp_path / "disk" / "monday")
    with pytest.raises(InputError, match=f"{monday} holds a run of this plan"):
        refuse_slip(monday.with_name("mondya"), plan, base=tmp_path)


def test_a_folder_of_the_run_file_is_named_from_another_one(
    plan: Plan, monday: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match=f"{monday} holds a run of this plan") as caught:
        refuse_slip(here / "runs" / "monday", plan, named="runs/monday", base=monday.parents[1])
    assert caught.value.fix.startswith(f"Write --out {monday};")


@pytest.mark.parametrize(
    ("there", "new"),
    [("2026-11-28", "2026-11-29"), ("2026-11-28", "2026-11-28-2"), ("night-9", "night-10"), ("monday", "sunday"), ("a", "b")],
)
def test_a_scheduled_job_begins_the_next_run(plan: Plan, monday: Path, there: str, new: str) -> None:
    monday.rename(monday.with_name(there))
    assert refuse_slip(monday.with_name(new), plan, named=f"runs/{new}", base=monday.parents[1]) is True


def test_a_neighbour_of_another_plan_or_a_damaged_one_is_not_meant(
    plan: Plan, monday: Path, make_plan: Callable[..., Plan]
) -> None:
    assert refuse_slip(monday.with_name("mondya"), make_plan(["owl"]), base=monday.parents[1]) is True
    (monday / "plan.json").write_text("{}")
    assert refuse_slip(monday.with_name("mondya"), plan, base=monday.parents[1]) is True


def test_a_slip_on_an_object_store(plan: Plan, s3: str, open_loop: Callable[..., Any], tmp_path: Path) -> None:
    run_local(plan, storage.place(f"{s3}/runs/monday"), open_loop=open_loop)
    for slip in (f"{s3}/runs/mondya", f"{s3}/run/monday"):
        with pytest.raises(InputError) as caught:
            refuse_slip(storage.place(slip), plan, named=slip, base=tmp_path)
        assert caught.value.fix.startswith(f"Write --out {s3}/runs/monday;")


def test_the_command_line_says_it_in_run_and_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opening: Callable[..., None], identity: Callable[..., dict[str, str]],
    open_loop: Callable[..., Any],
) -> None:  # fmt: skip
    opening(loop=open_loop, identity=identity)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text("prompt,key\ncat,a\n")
    (tmp_path / "run.toml").write_text('prompts = "prompts.csv"\nout = "runs/monday"\n')
    began = call("run", "run.toml", "--resume")
    assert began.exit_code == 0
    assert f"note: resume: no run to continue: a new one begins in {tmp_path / 'runs' / 'monday'}" in began.stderr
    refused = call("run", "run.toml", "--out", "runs/mondya", "--resume")
    assert refused.exit_code == 2 and "fix: Write --out runs/monday" in refused.stderr
    assert not (tmp_path / "runs" / "mondya").exists()

    seen: list[Any] = []

    def looked(*_: Any, **more: Any) -> Any:
        seen.append((str(more["problem"]), [note.text for note in more["notes"] if note.topic == "resume"]))
        raise InputError("looked", where="", fix="")

    monkeypatch.setattr(dry_run, "preflight", looked)
    for out in ("runs/mondya", "runs/tuesday", "runs/monday"):
        assert call("run", "run.toml", "--out", out, "--resume", "--dry-run").exit_code == 2
    (slip, _), (none, begins), (_, continues) = seen
    assert "no run to continue; " in slip and none == "None"
    assert begins == [f"no run to continue: a new one begins in {tmp_path / 'runs' / 'tuesday'}"] and not continues
