"""The secret salt of prompt commitments: from the environment or the folder of keys, in no file of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index.errors import ConfigError, PlanMismatch
from jobs.cli.main import app
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.commitments import prompt_commitment
from pipeline.audit.context import RunContext
from pipeline.audit.ledger import sample_rows
from pipeline.config import RunConfig
from pipeline.identity import identity_of
from pipeline.keys import Keys
from pipeline.policy import CodesPolicy, Policy, TextPolicy, UnsafePolicy
from pipeline.runtime import Runtime
from pipeline.salt import PART, VARIABLE, salt_id, salt_in, salt_parts, secret_salt
from tests.jobs.conftest import FakeModeration, FakeRuntime, fake_identity

SALT, OTHER = "5a" * 32, "a5" * 32


class SaltedRuntime(FakeRuntime):
    """The fake with the salt that a real runtime would have here."""

    def identity(self) -> dict[str, str]:
        return super().identity() | salt_parts(secret_salt(Keys()))

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext:
        return replace(super().context(run_id, plan_sha256, worker_id), salt=secret_salt(Keys()))


def open_salted(config: RunConfig, policy: Policy, base: Path) -> FakeModeration:
    return FakeModeration(SaltedRuntime(config, policy, base))


@pytest.fixture(autouse=True)
def no_salt() -> Iterator[None]:
    before = os.environ.pop(VARIABLE, None)
    yield
    os.environ.pop(VARIABLE, None)
    if before is not None:
        os.environ[VARIABLE] = before


@pytest.fixture
def plan(tmp_path: Path) -> Callable[[], Plan]:
    """Makes the plan that the environment gives now."""
    (tmp_path / "prompts.txt").write_text("a cat\nan owl\na copy\na disk-full fox\n")

    def make() -> Plan:
        config = RunConfig(prompts="prompts.txt", shard_size=1)
        identity = fake_identity(config, Policy(), tmp_path) | salt_parts(secret_salt(Keys()))
        return Plan.make(config, Policy(), tmp_path, identity=identity)

    return make


def ran(plan: Callable[[], Plan], folder: Path) -> Path:
    (folder.parent / "space").touch()
    return run_local(plan(), folder, open_loop=open_salted).folder


def test_no_file_of_a_run_holds_the_salt(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    folder = ran(plan, tmp_path / "run")
    forms = (SALT.encode(), SALT.upper().encode(), bytes.fromhex(SALT))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path.name for path in files if any(form in path.read_bytes() for form in forms)] == []


def test_prompts_are_committed_to_under_it(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    folder = ran(plan, tmp_path / "run")
    assert [row["prompt_commit"] for row in sample_rows(folder)] == [
        prompt_commitment(prompt, "", SALT) for prompt in ("a cat", "an owl", "a copy", "a disk-full fox")
    ]


def test_verify_needs_it_for_the_prompts_alone(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    folder = ran(plan, tmp_path / "run")
    states = {salt: {s.name: s.state for s in verify_run(folder, salt).stages} for salt in (None, SALT, OTHER)}
    assert [states[salt]["prompts"] for salt in (None, SALT, OTHER)] == ["skip", "pass", "skip"]
    assert all(verify_run(folder, salt).ok for salt in (None, SALT, OTHER))


@pytest.mark.parametrize("now", ["", OTHER], ids=["none", "another"])
def test_a_resume_with_another_salt_is_refused_by_its_id(plan: Callable[[], Plan], tmp_path: Path, now: str) -> None:
    os.environ[VARIABLE] = SALT
    with pytest.raises(Exception, match="No space left"):
        run_local(plan(), tmp_path / "run", open_loop=open_salted)
    os.environ[VARIABLE] = now
    with pytest.raises(PlanMismatch) as refused:
        run_local(plan(), tmp_path / "run", open_loop=open_salted)
    here = salt_id(now) if now else "the public one"
    assert refused.value.what == f"the prompts of this run are recorded under another salt: {salt_id(SALT)} there, {here} here"
    assert "CLEARANCE_SALT" in refused.value.fix and SALT not in str(refused.value)


def test_a_resume_with_the_same_salt_goes_on(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    with pytest.raises(Exception, match="No space left"):
        run_local(plan(), tmp_path / "run", open_loop=open_salted)
    folder = ran(plan, tmp_path / "run")
    assert verify_run(folder, SALT).problems == ()


def test_a_worker_without_it_is_refused(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    made = plan()
    del os.environ[VARIABLE]
    with pytest.raises(PlanMismatch, match=PART):
        run_local(made, tmp_path / "run", open_loop=open_salted)


def test_the_environment_stands_before_the_folder_of_keys(tmp_path: Path) -> None:
    (tmp_path / "salt").write_text(OTHER + "\n")
    (tmp_path / "salt").chmod(0o600)
    keys = Keys(tmp_path)
    assert secret_salt(keys, {}) == OTHER and secret_salt(keys, {VARIABLE: SALT}) == SALT and secret_salt(Keys(), {}) == ""


@pytest.mark.parametrize(("text", "what"), [("no hex", "is not hexadecimal"), ("abcd", "has 2 bytes, at least 16 are needed")])
def test_what_is_no_salt_is_refused_and_not_shown(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "salt").write_text(text)
    for ask in (lambda: secret_salt(Keys(), {VARIABLE: text}), lambda: salt_in(tmp_path / "salt")):
        with pytest.raises(ConfigError) as refused:
            ask()
        assert refused.value.what == what and text not in str(refused.value).replace("secrets.token_hex", "")


def test_the_command_takes_it_from_a_file(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    folder = ran(plan, tmp_path / "run")
    del os.environ[VARIABLE]
    (tmp_path / "salt").write_text(SALT)
    without = CliRunner().invoke(app, ["verify", str(folder)], env={"COLUMNS": "300"})
    given = CliRunner().invoke(app, ["verify", str(folder), "--salt-file", str(tmp_path / "salt")], env={"COLUMNS": "300"})
    assert "skip  prompts" in without.stdout and "pass  prompts" in given.stdout
    assert (without.exit_code, given.exit_code) == (0, 0)


def test_the_report_takes_it_from_the_environment(plan: Callable[[], Plan], tmp_path: Path) -> None:
    os.environ[VARIABLE] = SALT
    folder = ran(plan, tmp_path / "run")
    shown = CliRunner().invoke(app, ["report", str(folder), "--json"])
    stages = {stage["name"]: stage["state"] for stage in json.loads(shown.stdout)["integrity"]["stages"]}
    assert stages["prompts"] == "pass"


def test_its_id_is_the_one_that_a_folder_of_keys_shows(tmp_path: Path) -> None:
    (tmp_path / "salt").write_text(SALT)
    (tmp_path / "salt").chmod(0o600)
    assert Keys(tmp_path).ids()["salt"] == salt_id(SALT)


def test_a_real_runtime_has_the_salt_and_its_id(tmp_path: Path, tiny_sd: Path) -> None:
    from pipeline.config import ModelConfig

    os.environ[VARIABLE] = SALT
    policy: Any = Policy(text=TextPolicy(enabled=False), unsafe=UnsafePolicy(enabled=False), codes=CodesPolicy(enabled=False))
    config = RunConfig(prompts="p.txt", model=ModelConfig(path=str(tiny_sd), dtype="float32"))
    found, runtime = identity_of(config, policy, base=tmp_path), Runtime.open(config, policy, base=tmp_path)
    assert found[PART] == runtime.identity()[PART] == salt_id(SALT)
    assert runtime.context("r", "p", "w").prompt_salt == SALT
    del os.environ[VARIABLE]
    assert PART not in identity_of(config, policy, base=tmp_path)
