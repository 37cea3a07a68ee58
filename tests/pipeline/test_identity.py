"""Everything that determines pictures and findings is named in every plan; a worker that differs is refused by that name."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.errors import PlanMismatch
from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.worker import Worker
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.identity import LIBRARIES, guards_in_force, identity_of, policy_in_force
from pipeline.policy import CodesPolicy, MarksPolicy, Policy, TextPolicy, UnsafePolicy
from pipeline.runtime import Runtime

SETTINGS: dict[str, Any] = {"generation": GenerationConfig(steps=2, rows=4)}


def a_run(model: Path | str) -> RunConfig:
    return RunConfig(prompts="prompts.csv", model=ModelConfig(path=str(model), dtype="float32"), **SETTINGS)


def actions(model: Path | str, policy: Policy, digest: str = "d") -> dict[str, str]:
    return {guard.name: guard.action for guard in guards_in_force(a_run(model), policy, digest, "")}


def test_a_mark_detector_acts_on_the_pictures_it_was_calibrated_on() -> None:
    assert actions("stickers", Policy())["marks"] == "steer"


def test_a_mark_detector_only_observes_another_model_and_notes_it(tiny_sd: Path) -> None:
    assert actions(tiny_sd, Policy())["marks"] == "observe"
    (marks,) = [g for g in guards_in_force(a_run(tiny_sd), Policy(), "d", "") if g.name == "marks"]
    assert "only observes" in marks.note and "'stickers'" in marks.note and "state its action" in marks.note


def test_an_action_that_the_policy_states_stands(tiny_sd: Path) -> None:
    policy = Policy(marks=MarksPolicy(action="reject"))
    assert actions(tiny_sd, policy)["marks"] == "reject"
    assert not any(guard.note for guard in guards_in_force(a_run(tiny_sd), policy, "d", ""))


def test_the_embedded_worlds_model_is_known_by_its_digest_wherever_it_lies() -> None:
    from index.shipped import STICKERS
    from pipeline.model.folder.digest import folder_digest

    assert actions("copied/elsewhere", Policy(), folder_digest(STICKERS / "model"))["marks"] == "steer"


def test_guards_that_know_every_model_act_on_every_model(tiny_sd: Path) -> None:
    found = actions(tiny_sd, Policy())
    assert (found["codes"], found["text"]) == ("steer", "steer")


def test_the_shipped_policy_leaves_the_marks_action_open() -> None:
    from jobs.run.plan import read_policy

    assert read_policy("default", Path()).marks.action is None
    assert read_policy("observe", Path()).marks.action == "observe"


def test_a_table_with_one_key_keeps_the_guards_own_defaults(tmp_path: Path) -> None:
    from pipeline.settings import read_toml

    (tmp_path / "p.toml").write_text("[unsafe]\nthreshold = 0.9\n[yolo]\nthreshold = 0.9\n[marks]\nthreshold = 0.9\n")
    policy = read_toml(Policy, tmp_path / "p.toml")
    assert (policy.unsafe.action, policy.unsafe.required) == ("reject", False)
    assert policy.yolo.enabled is False
    assert policy.marks.action is None


def test_an_open_action_is_settled_before_anything_is_decided(tiny_sd: Path) -> None:
    in_force = policy_in_force(Policy(), guards_in_force(a_run(tiny_sd), Policy(), "d", ""))
    assert (in_force.marks.action, in_force.yolo.action) == ("observe", "steer")
    assert policy_in_force(Policy(), ()).marks.action == "steer"


def test_the_identity_names_every_guard_with_its_weights(tmp_path: Path) -> None:
    parts = identity_of(a_run("stickers"), Policy(), base=tmp_path)
    codes = f"zxing-cpp {importlib.metadata.version('zxing-cpp')}"
    assert parts["guard.text.version"].endswith(f"PP-OCRv6-small+{codes}")
    assert parts["guard.marks.action"] == "steer"
    assert len(parts["guard.text.weights"]) == len(parts["guard.marks.weights"]) == 64
    assert parts["guard.codes.version"] == codes
    assert not [name for name in parts if name.startswith("guard.yolo")]  # not in force


def test_the_weights_of_the_recogniser_are_its_three_files() -> None:
    (text,) = [g for g in guards_in_force(a_run("stickers"), Policy(), "d", "") if g.name == "text"]
    assert len(text.weights) == 3
    assert all(len(digest) == 64 for digest in text.weights.values())


def test_the_copies_guard_is_named_with_embedder_and_second_look() -> None:
    (copies, *_) = guards_in_force(a_run("stickers"), Policy(), "d", "openclip-" + "e" * 16)
    assert copies.name == "copies"
    assert copies.weights["embedder"] == "openclip-" + "e" * 16
    assert copies.version.startswith("6+eeeeeeee+")
    assert len(copies.weights["second look"]) == 64


def test_the_identity_names_the_libraries_without_their_build(tmp_path: Path) -> None:
    parts = identity_of(a_run("stickers"), Policy(), base=tmp_path)
    assert {name.removeprefix("library.") for name in parts if name.startswith("library.")} == set(LIBRARIES)
    assert parts["library.torch"] == importlib.metadata.version("torch").split("+")[0]


def lean() -> Policy:
    """Without the guards that take long to open."""
    return Policy(text=TextPolicy(enabled=False), unsafe=UnsafePolicy(enabled=False), codes=CodesPolicy(allow=("CLR:",)))


@pytest.fixture
def plan(tmp_path: Path, tiny_sd: Path) -> Plan:
    (tmp_path / "prompts.csv").write_text("prompt\nred apple\n")
    return Plan.make(a_run(tiny_sd), lean(), tmp_path)


def test_a_runtime_has_the_identity_that_was_found_without_it(plan: Plan) -> None:
    runtime = Runtime.open(plan.config, plan.policy, base=plan.base)
    assert runtime.identity() == plan.identity
    assert runtime.policy.marks.action == "observe"
    assert runtime.context("r", "p", "w").actions["marks"] == "observe"
    assert runtime.context("r", "p", "w").policy_sha256 == plan.identity["policy_sha256"]


def test_a_guard_that_was_not_opened_is_not_in_force(plan: Plan) -> None:
    runtime = Runtime.with_looks(plan.config, plan.policy, [], ["marks: cannot be imported"], None, base=plan.base)
    assert not [name for name in runtime.identity() if name.startswith("guard.")]


@pytest.mark.parametrize(
    ("part", "there", "message"),
    [
        ("guard.codes.version", "zxing-cpp 1.0", r"guard\.codes\.version zxing-cpp 1\.0 there, zxing-cpp \d"),
        ("guard.marks.weights", "a" * 64, r"guard\.marks\.weights aaaaaaaa there, [0-9a-f]{8} here"),
        ("library.torch", "1.0", r"library\.torch 1\.0 there, 2"),
    ],
)
def test_a_worker_with_other_guards_or_libraries_is_refused_by_name(
    plan: Plan, tmp_path: Path, part: str, there: str, message: str
) -> None:
    other = replace(plan, identity={**plan.identity, part: there})
    folder, run_id = open_folder(tmp_path / "run", other)
    with pytest.raises(PlanMismatch, match=message):
        Worker(other, folder, run_id, "w0")


def test_resuming_with_another_recogniser_names_it(plan: Plan, tmp_path: Path) -> None:
    folder, _ = open_folder(tmp_path / "run", plan)
    run_local(plan, folder)
    newer = replace(plan, identity={**plan.identity, "guard.codes.version": "zxing-cpp 99.0"})
    with pytest.raises(PlanMismatch, match=r"guard\.codes\.version zxing-cpp \d\S+ there, zxing-cpp 99\.0 here"):
        open_folder(folder, newer, resume=True)


def test_the_plan_keeps_the_guards_and_binds_them(plan: Plan, tmp_path: Path) -> None:
    assert [guard["name"] for guard in plan.guards] == ["codes", "marks"]
    folder, _ = open_folder(tmp_path / "run", plan)
    assert Plan.load(folder).guards == plan.guards
    changed = replace(plan, guards=({**plan.guards[0], "note": "other"}, *plan.guards[1:]))
    assert changed.plan_sha256 != plan.plan_sha256
