"""A runtime that draws coloured squares instead of pictures, and plans for it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guards.base import Finding
from index.errors import ModelError, RunStopped
from index.fingerprint import pixel_digest
from index.reference import Match
from jobs.run.local_runner import run_local
from jobs.run.openers import Openers, using
from jobs.run.plan import Plan
from pipeline.audit.context import RunContext
from pipeline.audit.shards import committed
from pipeline.config import RunConfig
from pipeline.keys import Keys
from pipeline.marking.markers import marks_parts, open_markers
from pipeline.outcome import Attempt, Decision, Intervention, Outcome, Request, Sample, Verdict
from pipeline.policy import Policy, policy_digest
from tests.object_stores import s3_environment

IDENTITY = {"model_digest": "m" * 64, "index_id": "i" * 64}


class FakeOpeners(Openers):
    """Opens what it is given, and everything else as a command does."""

    def __init__(self, **given: Callable[..., Any]) -> None:
        for name, opener in given.items():
            assert hasattr(Openers, name), name
            setattr(self, name, opener)


@pytest.fixture
def opening() -> Iterator[Callable[..., None]]:
    """Put other openers in the place of those of the commands, for the rest of the test."""
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(using(FakeOpeners(**given)))


class FakeModeration:
    """Two at a time; the later and the earlier of them ends by turns."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime, self.sample = runtime, runtime.sample
        self.standing: list[Request] = []
        self.steps = 0

    @property
    def room(self) -> bool:
        return len(self.standing) < 2

    @property
    def busy(self) -> bool:
        return bool(self.standing)

    def submit(self, request: Request) -> list[Sample]:
        if request.problem:
            return [self.sample(request)]
        self.standing.append(request)
        return []

    def give_up(self, row_no: int, reason: str, message: str) -> list[Sample]:
        out = [request for request in self.standing if request.row_no == row_no]
        self.standing = [request for request in self.standing if request.row_no != row_no]
        now = {"started_at": time.time(), "finished_at": time.time()}
        return [Sample(request=r, outcome=Outcome.ERROR, reason=reason, error_message=message, **now) for r in out]

    def step(self) -> list[Sample]:
        self.steps += 1
        return [self.sample(self.standing.pop(-1 if self.steps % 2 else 0))]


class FakeRuntime:
    """Obeys words in the prompt: large, copy, stubborn, steered, disk-full, crash, lose, die-once, die-always."""

    def __init__(self, config: RunConfig, policy: Policy, base: Path) -> None:
        self.config, self.policy, self.base = config, policy, base
        self.markers = open_markers(config.marks, Keys.find(config.marks.keys, base=base))

    def identity(self) -> dict[str, str]:
        return IDENTITY | dict(self.markers.parts)

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext:
        return RunContext(
            run_id=run_id, dataset_id=self.config.dataset_id, plan_sha256=plan_sha256, model_id="fake", model_revision="",
            model_digest=IDENTITY["model_digest"], model_licence="Apache-2.0", scheduler="ddim", steps=20, guidance=3.0,
            dtype="float32", device_kind="cpu", rows=16, threads=1, index_id=IDENTITY["index_id"], embedder_id="e",
            calibration_id="c", copy_threshold=0.8, policy_id="p",
            policy_sha256=policy_digest(self.policy), policy_name="default", worker_id=worker_id, embedding_dim=4,
            retention_days=self.config.retention_days,
        )  # fmt: skip

    def sample(self, request: Request) -> Sample:
        now = {"started_at": time.time(), "finished_at": time.time()}
        if request.problem:
            code, message = request.problem
            return Sample(
                request=request, outcome=Outcome.ERROR, reason=code, error_class="InputError", error_message=message, **now
            )
        word = request.prompt
        if "disk-full" in word and not (self.base / "space").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        if "crash" in word:
            raise ZeroDivisionError("a bug")
        if "die-once" in word and not (self.base / "died").exists():
            (self.base / "died").touch()
            os._exit(1)
        if "die-always" in word:
            os._exit(1)
        if "copy" in word:
            attempts = (self._attempt(request, 0, 0.95, Verdict.REJECT),)
            return Sample(request=request, outcome=Outcome.REJECTED, reason="copy.protected", attempts=attempts, **now)
        if "stubborn" in word:
            attempts = (self._attempt(request, 0, 0.95, Verdict.STEER), self._attempt(request, 1, 0.9, Verdict.REJECT))
            return Sample(request=request, outcome=Outcome.REJECTED, reason="copy.protected", attempts=attempts, **now)
        if "steered" in word:
            attempts = (self._attempt(request, 0, 0.9, Verdict.STEER), self._attempt(request, 1, 0.4, Verdict.ACCEPT))
            steered = Outcome.ACCEPTED_AFTER_STEERING
            return Sample(request=request, outcome=steered, attempts=attempts, accepted_attempt=1, **now)
        attempts = (self._attempt(request, 0, 0.3, Verdict.ACCEPT),)
        return Sample(request=request, outcome=Outcome.ACCEPTED, attempts=attempts, accepted_attempt=0, **now)

    def _attempt(self, request: Request, number: int, similarity: float, verdict: Verdict) -> Attempt:
        picture = np.random.default_rng([request.seed, number]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        if "large" in request.prompt:
            picture = picture[:8, :8].repeat(32, 0).repeat(32, 1)
        reason = "" if verdict is Verdict.ACCEPT else "copy.protected"
        return Attempt(
            number=number,
            seed=request.seed,
            resumed_from_step=0,
            intervention=Intervention(kind="negtome", strength=0.9, ref_ids=("ref",)) if number else None,
            picture=picture,
            pixel_sha256=pixel_digest(picture),
            embedding=np.array([1, 0, 0, 0], dtype=np.float32),
            findings=(Finding(guard="copies", version="1", category="copy.protected", score=similarity, threshold=0.8),),
            nearest=(Match(ref_id="ref", title="red apple", similarity=similarity),),
            decision=Decision(verdict, reason),
            denoiser_evals=20.0,
            device_seconds=0.1,
        )


def open_fake(config: RunConfig, policy: Policy, base: Path) -> FakeModeration:
    return FakeModeration(FakeRuntime(config, policy, base))


def refuse(config: RunConfig, policy: Policy, base: Path) -> FakeModeration:
    raise ModelError("weights are missing", where="pipeline/weights", fix="Fetch them")


@pytest.fixture
def open_loop() -> Callable[..., FakeModeration]:
    return open_fake


@pytest.fixture
def open_refusing() -> Callable[..., FakeModeration]:
    return refuse


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Plan]:
    """Plan of the given prompts, two requests a shard."""
    return partial(_plan, tmp_path)


def fake_identity(config: RunConfig, policy: Policy, base: Path) -> dict[str, str]:
    """What a plan binds of the fake runtime: model and index that are made up, and the marks that are real."""
    return IDENTITY | marks_parts(config.marks, Keys.find(config.marks.keys, base=base))


@pytest.fixture
def identity() -> Callable[..., dict[str, str]]:
    return fake_identity


def _plan(base: Path, prompts: Sequence[str], *, rules: Policy | None = None, **settings: Any) -> Plan:
    (base / "prompts.txt").write_text("\n".join(prompts) + "\n")
    config = RunConfig(**{"prompts": "prompts.txt", "shard_size": 2} | settings)
    return Plan.make(config, rules or Policy(), base, identity=fake_identity(config, rules or Policy(), base))


@pytest.fixture
def prompts() -> list[str]:
    """The prompts of ``plan``; a module may have others. The worker stops at "disk-full" until the file ``space`` exists."""
    return ["cat", "owl", "disk-full", "dog", "fox"]


@pytest.fixture
def plan(make_plan: Callable[..., Plan], prompts: list[str]) -> Plan:
    return make_plan(prompts)


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of the fakes lie that several tests begin with, by plan."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def made(made_runs: Path, open_loop: Callable[..., FakeModeration]) -> Callable[..., Path]:
    """Make a run of a plan, as ``how`` does in the folder that it is given: once a session, and a copy for every test."""

    def copied(plan: Plan, folder: Path, how: Callable[[Path], Any], what: str = "run") -> Path:
        if open_loop is not open_fake:
            how(folder)
            return folder
        about = f"{plan.plan_sha256} {plan.config} {plan.policy}"
        place = made_runs / what / hashlib.sha256(about.encode()).hexdigest()
        if not place.exists():
            how(place)
        return Path(shutil.copytree(place, folder, symlinks=True))

    return copied


@pytest.fixture
def run_of(made: Callable[..., Path], open_loop: Callable[..., FakeModeration]) -> Callable[[Plan, Path], Path]:
    """Run a plan to its end; the same plan is run once a session, and its folder copied."""
    return lambda plan, folder: made(plan, folder, lambda place: run_local(plan, place, open_loop=open_loop))


@pytest.fixture
def stop(plan: Plan, open_loop: Callable[..., FakeModeration]) -> Callable[[Path], None]:
    """Run ``plan`` in a folder until it stops with some of its shards committed; a resumed run ends."""

    def stop(folder: Path) -> None:
        with pytest.raises(RunStopped):
            run_local(plan, folder, open_loop=open_loop)
        (plan.base / "space").touch()
        assert 0 < len(committed(folder)) < len(plan.shards)

    return stop


@pytest.fixture
def stopped(plan: Plan, tmp_path: Path, made: Callable[..., Path], stop: Callable[[Path], None]) -> Path:
    """The folder of such a run."""
    folder = made(plan, tmp_path / "run", stop, "stopped")
    (tmp_path / "space").touch()
    return folder


@pytest.fixture
def seal(plan: Plan, open_loop: Callable[..., FakeModeration], stop: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run ``plan`` in a folder until it stops, and to its end."""

    def seal(folder: Path) -> None:
        stop(folder)
        run_local(plan, folder, open_loop=open_loop)

    return seal


@pytest.fixture
def sealed(plan: Plan, tmp_path: Path, made: Callable[..., Path], seal: Callable[[Path], None]) -> Path:
    folder = made(plan, tmp_path / "run", seal, "sealed")
    (tmp_path / "space").touch()
    return folder


@pytest.fixture(scope="session")
def small_ray(s3_endpoint: str) -> Iterator[None]:
    """Ray with two processors; its workers reach the S3 server of the tests."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The fakes live in this file, which no worker could import.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
        )
    yield
    ray.shutdown()
