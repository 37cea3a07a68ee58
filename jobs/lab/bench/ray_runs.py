"""Ray: two workers against one, what Ray adds to the work, and re-enqueueing through Ray Data beside warm workers.

Drawing is the embedded world's, with ordinary captions, nothing steered, no index, one thread a worker and no guard processes.
A worker that has opened its runtime draws two pictures of no run, to be warm, and waits for the others: the clock counts from
the last worker that is ready to the last commit. The start, until the last runtime is open, is a number of its own; it has Ray
in it, and not the command's own start and its plan.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.lab.bench.load import load_average, remark
from jobs.lab.bench.measures import Measure, publish

if TYPE_CHECKING:
    from jobs.run.event import Event
    from jobs.run.plan import Plan
    from pipeline.audit.context import RunContext
    from pipeline.config import RunConfig
    from pipeline.outcome import Request, Sample
    from pipeline.policy import Policy

SHARD = 8
WORK_SECONDS = 0.001  # of one attempt in the comparison with Ray Data
TWICE = 7  # every seventh row needs another attempt, of those every seventh one more, and so on
ROUNDS = 4


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure and publish ``ray``."""
    samples, rows = (16, 64) if quick else (160, 512)  # so many that the uneven end is small
    loads = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        plain = drawn(base / "local", samples, workers=1, runner="local")
        loads["one process"] = load_average()
        one = drawn(base / "one", samples, workers=1, runner="ray")
        loads["one worker"] = load_average()
        two = drawn(base / "two", samples, workers=2, runner="ray")
        loads["two workers"] = load_average()
        again = requeued(base / "again", rows)
        loads["Ray Data"] = load_average()
        measures = [
            _measure("pictures a second, one process without Ray", samples / plain.seconds, samples),
            _measure("pictures a second, one worker", samples / one.seconds, samples),
            _measure("pictures a second, two workers", samples / two.seconds, samples),
            _measure("two workers ÷ one", one.seconds / two.seconds, samples, 1.8),
            _measure("wall with Ray ÷ wall without, one worker, warm", one.seconds / plain.seconds, samples, 1.05, "lower"),
            _measure("start of Ray and one worker: seconds", started(base / "one", one), 1, 8.0, "lower"),
            _measure("start of Ray and two workers: seconds", started(base / "two", two), 2, 8.0, "lower"),
            _measure(f"{rows} rows of 1 ms, re-enqueued through Ray Data: seconds", again.ray_data, rows, better="lower"),
            _measure("the same rows, two warm workers, with commits: seconds", again.warm, rows, better="lower"),
            _measure("Ray Data ÷ warm workers", again.ray_data / again.warm, rows, 10.0),
            _measure("Ray Data ÷ workers with their start and the run's seal", again.ray_data / again.whole, rows),
        ]
    if quick:
        measures = [_without_goal(measure) for measure in measures]
    more = {"load_averages": loads, "remark": remark(loads, own={"two workers": 2.0, "Ray Data": 2.0}), "cpus": _cpus()}
    publish("ray", measures, out, seeds=[0], quick=quick, more=more)


def _measure(name: str, value: float, n: int, goal: float | None = None, better: str = "higher") -> Measure:
    return Measure(id=name, value=value, low=value, high=value, n=n, goal=goal, better=better)


def _without_goal(measure: Measure) -> Measure:
    from dataclasses import replace

    return replace(measure, goal=None)


def _cpus() -> int:
    from pipeline.model.device import cores

    return cores()


# --- drawing ---------------------------------------------------------------------------------------------------------------


class Clock:
    """A listener of a run: when it began, when the last worker was ready, and when the last shard was committed."""

    def __init__(self) -> None:
        self.began = time.time()
        self.ready = self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.kind == "worker":
            self.ready = time.monotonic()
        if event.kind == "shard":
            self.last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds from the last worker that was ready to the last commit."""
        return self.last - self.ready


def drawn(base: Path, samples: int, *, workers: int, runner: str) -> Clock:
    """Draw ordinary captions; each worker begins when all of them are ready."""
    from jobs.demo import demo_prompts
    from jobs.run.local_runner import RUNNERS
    from jobs.run.plan import Plan, read_policy
    from pipeline.config import GenerationConfig, GuardsConfig, RunConfig

    base.mkdir(parents=True)
    captions = [prompt.prompt for prompt in demo_prompts(3 * samples) if prompt.kind == "ordinary"][:samples]
    (base / "prompts.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    config = RunConfig(
        prompts=("prompts.txt",), shard_size=SHARD, workers=workers, policy="observe", guards=GuardsConfig(workers=0),
        generation=GenerationConfig(threads=1),
    )  # fmt: skip
    plan = Plan.make(config, read_policy("observe", base), base)
    clock = Clock()
    result = RUNNERS[runner](plan, base / "run", clock, open_loop=partial(open_together, workers))
    assert result.requests == samples
    return clock


def open_together(workers: int, config: RunConfig, policy: Policy, base: Path) -> Any:
    """The real loop, warm; returns when so many workers have opened theirs."""
    import os

    from jobs.run.openers import openers
    from pipeline.outcome import Request

    loop = openers().loop(config, policy, base)
    (base / f"opened-{os.getpid()}").write_text(str(time.time()), encoding="ascii")
    for number in range(2):
        loop.submit(Request(row_no=-1 - number, key=f"warm-{number}", prompt="a cat", seed=number))
    while loop.busy:
        loop.step()
    together(base, workers)
    return loop


def started(base: Path, clock: Clock) -> float:
    """Seconds from nothing until the last worker had opened its runtime."""
    return max(float(path.read_text(encoding="ascii")) for path in base.glob("opened-*")) - clock.began


def together(base: Path, workers: int) -> None:
    """Wait until so many processes are here."""
    import os

    (base / f"ready-{os.getpid()}").touch()
    while len(list(base.glob("ready-*"))) < workers:
        time.sleep(0.02)


# --- re-enqueueing ---------------------------------------------------------------------------------------------------------


class Requeued:
    """Seconds for the same rows: through Ray Data, with warm workers, and with workers from their start to the seal."""

    def __init__(self, ray_data: float, warm: float, whole: float) -> None:
        self.ray_data, self.warm, self.whole = ray_data, warm, whole


def attempts_of(row: int) -> int:
    """Attempts that a row needs until it ends."""
    return next(count for count in range(1, ROUNDS + 1) if count == ROUNDS or row % TWICE**count)


def requeued(base: Path, rows: int) -> Requeued:
    """Both ways, on one Ray with two CPUs."""
    from jobs.run.ray.cluster import cluster
    from jobs.run.ray.placement import Need
    from jobs.run.ray.runner import run_ray

    plan, clock = _plan(base, rows), Clock()
    with cluster(Need(1, 0.0), 2):
        began = time.monotonic()
        result = run_ray(plan, base / "run", clock, open_loop=open_sleeping)
        whole = time.monotonic() - began
        assert result.requests == rows
        with _quiet_data():
            began = time.monotonic()
            ended = through_ray_data(rows)
            ray_data = time.monotonic() - began
        assert ended == list(range(rows))
    return Requeued(ray_data, clock.seconds, whole)


def through_ray_data(rows: int) -> list[int]:
    """Every row goes through a pool of two actors; those that need another attempt are enqueued again, until none is left."""
    import ray.data

    todo, ended = [{"row": row, "attempt": 1} for row in range(rows)], []
    while todo:
        blocks = max(1, min(8, len(todo) // 2))  # else a small round is one block, and one of the actors idle
        done = ray.data.from_items(todo, override_num_blocks=blocks).map_batches(_Work, concurrency=2, batch_size=16).take_all()
        ended += [one["row"] for one in done if one["ended"]]
        todo = [{"row": one["row"], "attempt": one["attempt"] + 1} for one in done if not one["ended"]]
    return sorted(ended)


class _Work:
    """One attempt of each row of a batch."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(WORK_SECONDS * len(batch["row"]))
        pairs = zip(batch["row"], batch["attempt"], strict=True)
        return {**batch, "ended": [bool(attempt >= attempts_of(int(row))) for row, attempt in pairs]}


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    import logging

    from ray.data import DataContext

    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    yield
    context.enable_progress_bars = before[0]
    logger.setLevel(before[1])


def _plan(base: Path, rows: int) -> Plan:
    from jobs.run.plan import Plan
    from pipeline.config import MarksConfig, RunConfig
    from pipeline.policy import Policy

    base.mkdir(parents=True)
    (base / "prompts.txt").write_text("\n".join(f"row {row}" for row in range(rows)) + "\n", encoding="utf-8")
    config = RunConfig(
        prompts=("prompts.txt",),
        shard_size=rows // 8,
        workers=2,
        max_error_rate=1.0,
        marks=MarksConfig(watermark="off", c2pa="off"),
    )
    return Plan.make(config, Policy(), base, identity=_Sleeping.parts)


class _Sleeping:
    """A loop and its runtime whose attempts are a sleep. Its samples hold no picture and end as errors, which costs least."""

    parts: dict[str, str] = {"model_digest": "0" * 64}  # noqa: RUF012

    def __init__(self) -> None:
        from pipeline.marking.markers import Markers

        self.runtime, self.markers = self, Markers()
        self._open: list[tuple[Request, int]] = []

    def identity(self) -> dict[str, str]:
        return self.parts

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext:
        from pipeline.audit.context import RunContext

        return RunContext(
            run_id=run_id, dataset_id="default", plan_sha256=plan_sha256, model_id="sleep", model_revision="",
            model_digest=self.parts["model_digest"], model_licence="", scheduler="ddim", steps=1, guidance=0.0, dtype="float32",
            device_kind="cpu", rows=16, threads=1, index_id="", embedder_id="", calibration_id="", copy_threshold=0.0,
            policy_id="", policy_sha256="", policy_name="default", worker_id=worker_id,
        )  # fmt: skip

    @property
    def room(self) -> bool:
        return len(self._open) < 16

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def submit(self, request: Request) -> list[Sample]:
        self._open.append((request, 1))
        return []

    def give_up(self, row_no: int, reason: str, message: str) -> list[Sample]:
        return []

    def close(self) -> None:
        """Nothing is open."""

    def step(self) -> list[Sample]:
        from pipeline.outcome import Outcome, Sample

        time.sleep(WORK_SECONDS)
        request, attempt = self._open.pop(0)
        if attempt < attempts_of(request.row_no):
            self._open.append((request, attempt + 1))
            return []
        now = time.time()
        error: dict[str, Any] = {"reason": "error.engine", "error_class": "Slept", "error_message": "this row slept"}
        return [Sample(request=request, outcome=Outcome.ERROR, **error, started_at=now, finished_at=now)]


def open_sleeping(config: RunConfig, policy: Policy, base: Path) -> Any:
    """The loop of :class:`_Sleeping`; returns when two workers are there."""
    together(base, 2)
    return _Sleeping()
