"""How much of its time does the denoiser compute when guards look beside it, and when they look in its own thread?

The denoiser and the default policy's guards are the real ones. Which first pictures are flagged is drawn at random from their
latents, so that the rate is known; a second picture never is. The share is measured from the first finished picture on and
while there are requests to draw: before, no guard has anything to do, and at the end of a job the last verdicts have to be
waited for, however long the job was. The share of the whole job stands beside it.

On a machine with other work the clock is not the loop's alone. So every share is also given in processor time of the
denoiser's thread, which other work does not change and which does not see waiting.
"""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.lab.bench.measures import Measure, publish, spread

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.looking.activity import Activity
    from pipeline.looking.study import Study
    from pipeline.model.decoder import Decoder
    from pipeline.policy import Policy
    from pipeline.runtime import Runtime

RATES = (0.0, 0.15, 0.35)
GOALS = {0.0: 0.97, 0.15: 0.95}
WAITS, DEVICE_SECONDS = 0.05, 0.45
NAMES = ("apple", "car", "cat", "castle", "dog", "fish", "house", "key", "lemon", "pear", "robot", "tree")


class Flagging:
    """A looker that flags a share of first pictures as copies of their nearest reference, and nothing else."""

    def __init__(self, look: Callable[..., list[Study]], rate: float) -> None:
        self._look, self.rate, self.identity = look, rate, getattr(look, "identity", {})

    def __call__(self, latents: Sequence[Any], own: Sequence[Sequence[str]] = ()) -> list[Study]:
        import numpy as np

        studies = self._look(latents, own)
        drawn = [int(hashlib.sha256(np.asarray(z).tobytes()).hexdigest()[:8], 16) / 2**32 for z in latents]
        chosen = [chance < self.rate and not ids for chance, ids in zip(drawn, own, strict=True)]
        return [self._flagged(study, yes) for study, yes in zip(studies, chosen, strict=True)]

    def _flagged(self, study: Study, yes: bool) -> Study:
        def changed(finding: Any) -> Any:
            score = finding.threshold + 0.1 if yes and finding.category == "copy.protected" else finding.threshold - 0.1
            return dataclasses.replace(finding, score=score, confirmed=True, ref_id=study.nearest[0].ref_id)

        return dataclasses.replace(study, findings=tuple(changed(finding) for finding in study.findings))


def open_flagging(config: RunConfig, policy: Policy, base: Path, decoder: Decoder, rate: float) -> Flagging:
    """Open the guards of a process beside the denoiser."""
    from pipeline.looking.beside import open_looker

    return Flagging(open_looker(config, policy, base, decoder), rate)


@dataclasses.dataclass(kw_only=True)
class Job:
    """What one job came to.

    Attributes:
        busy: share of the clock in which the denoiser computed, in the middle of the job. whole: of the whole job.
        processor: share of the thread's processor time that was the denoiser's, in the middle.
        blocked: share of the clock in which the loop waited for a guard, in the middle.
        rate: accepted pictures a second. flagged: share of first pictures.
        digests: of all pictures, by request.
    """

    busy: float
    whole: float
    processor: float
    blocked: float
    rate: float
    flagged: float
    digests: dict[int, list[str]]


class Bench:
    """The opened runtime, used for every job in turn."""

    def __init__(self, folder: Path, requests: int) -> None:
        import torch

        from jobs.lab.bench.drawing import open_runtime
        from jobs.run.plan import read_policy
        from pipeline.config import GenerationConfig, GuardsConfig, RunConfig

        policy = read_policy("default", folder)
        self.policy = dataclasses.replace(
            policy, early=dataclasses.replace(policy.early, threshold=1.0)
        )  # looks, catches nothing
        generation, guards = GenerationConfig(threads=1), GuardsConfig(workers=0)
        self.config = RunConfig(prompts=("-",), index="index", generation=generation, guards=guards)
        self.folder, self.requests = folder, requests
        self.runtime: Runtime = open_runtime(folder, self.policy)
        if self.runtime.early is not None and self.runtime.early.latents is not None:
            self.runtime.early.latents.search([torch.zeros(self.runtime.model.latent_shape)], 1)  # once a worker

    @contextmanager
    def guards(self, rate: float, workers: int) -> Iterator[None]:
        """Guards that flag that share: in processes of their own, or (0 of them) in the denoiser's thread."""
        from pipeline.looking.activity import Activity
        from pipeline.looking.beside import looker_identity
        from pipeline.looking.pool import Pool

        runtime = self.runtime
        runtime.spent, runtime.pool = Activity(), None
        runtime.study = Flagging(runtime.looker, rate)  # type: ignore[method-assign, assignment]
        if not workers:
            yield
            return
        opening = partial(open_flagging, self.config, self.policy, self.folder, runtime.model.decoder, rate)
        identity = looker_identity(runtime.copies, runtime.guards)
        with closing(Pool(opening, workers, identity=identity, activity=runtime.spent)) as runtime.pool:
            if not runtime.pool.wait_ready():
                raise RuntimeError(runtime.spent.note)
            warm = [runtime.engine.initial_noise(i) for i in range(8)]
            for worker in range(workers):  # the first look of a process also chooses kernels
                runtime.pool.submit([worker], warm[worker : worker + 1], [[]])
            done = 0
            while done < workers:
                done += len(runtime.pool.answers(60.0))
            yield

    def job(self, rate: float, workers: int) -> Job:
        from pipeline.moderate import Moderation
        from pipeline.outcome import ACCEPTED, Request

        with self.guards(rate, workers):
            loop, spent, samples = Moderation(self.runtime), self.runtime.spent, []
            todo = [
                Request(row_no=i, key=str(i), prompt=f"a {NAMES[i % len(NAMES)]}", seed=1000 + i) for i in range(self.requests)
            ][::-1]
            loop.expect(request.prompt for request in reversed(todo))
            computed, real = [0.0], self.runtime.engine.make_call

            def timed() -> Any:
                start = time.thread_time()
                try:
                    return real()
                finally:
                    computed[0] += time.thread_time() - start

            self.runtime.engine.make_call = timed  # type: ignore[method-assign]
            began, start = time.perf_counter(), time.thread_time()
            first: dict[str, float] = {}
            middle: dict[str, float] = {}
            while todo or loop.busy:
                while loop.room and todo:
                    samples += loop.submit(todo.pop())
                now = _now(spent, computed[0], time.thread_time() - start)
                samples += loop.step()
                if not first and (spent.pictures or spent.deepest):
                    first = now
                if not todo and not middle:
                    after = _now(spent, computed[0], time.thread_time() - start)
                    middle = {name: after[name] - first[name] for name in after}
            del self.runtime.engine.make_call  # type: ignore[attr-defined]
            seconds, whole = time.perf_counter() - began, spent.plain()
        accepted = sum(sample.outcome in ACCEPTED for sample in samples)
        flagged = sum(len(sample.attempts) > 1 for sample in samples) / len(samples)
        return Job(
            busy=middle["computed"] / middle["elapsed"], whole=whole["busy"],
            processor=middle["denoiser"] / middle["thread"], blocked=middle["blocked"] / middle["elapsed"],
            rate=accepted / seconds, flagged=flagged,
            digests={s.request.row_no: [a.pixel_sha256 for a in s.attempts] for s in samples},
        )  # fmt: skip


def _now(spent: Activity, denoiser: float, thread: float) -> dict[str, float]:
    """Seconds so far: of the clock by :class:`pipeline.looking.activity.Activity`, and of the thread's processor time."""
    return {
        "elapsed": spent.elapsed, "computed": spent.computed, "blocked": spent.blocked, "denoiser": denoiser, "thread": thread,
    }  # fmt: skip


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure and publish ``beside``."""
    from jobs.lab.bench.load import load_average

    with tempfile.TemporaryDirectory() as folder:
        at, measures, loads = Bench(Path(folder), 28 if quick else 48), list[Measure](), {"opened": load_average()}
        for rate in RATES[:1] if quick else RATES:
            serial, beside = at.job(rate, 0), at.job(rate, 1)
            measures += _compared(rate, serial, beside)
            loads[f"{rate:.0%} flagged"] = load_average()
        measures += _calls(at, 1 if quick else 5)
        loads["calls"] = load_average()
        measures.append(_device(at, 24 if quick else 40))
        loads["device"] = load_average()
    print("load average: " + ", ".join(f"{part} {load:.1f}" for part, load in loads.items()))
    publish("beside", measures, out, seeds=(1000,), quick=quick, more={"load_average": loads})


def _compared(rate: float, serial: Job, beside: Job) -> list[Measure]:
    """The two loops of one rate side by side."""
    where = f"at {rate:.0%} flags".replace("%", " %")

    def one(name: str, value: float, goal: float | None = None, better: str = "higher") -> Measure:
        return Measure(
            id=f"{name}, {where}", value=value, low=value, high=value, n=len(beside.digests), goal=goal, better=better
        )

    same = sum(beside.digests[row] == digests for row, digests in serial.digests.items())
    return [
        one("denoiser busy, guards beside", beside.busy, GOALS.get(rate)),
        one("denoiser busy, guards in its thread", serial.busy),
        one("processor time that is the denoiser's, guards beside", beside.processor, GOALS.get(rate)),
        one("processor time that is the denoiser's, guards in its thread", serial.processor),
        one("waiting for guards, guards beside", beside.blocked, better="lower"),
        one("denoiser busy over the whole job, its end included, guards beside", beside.whole),
        one("denoiser busy over the whole job, its end included, guards in its thread", serial.whole),
        one("accepted pictures a second, beside ÷ in its thread", beside.rate / serial.rate),
        one("first pictures flagged", beside.flagged),
        one("requests with the same pictures", same / len(serial.digests), 1.0),
    ]  # fmt: skip


def _calls(at: Bench, rounds: int) -> list[Measure]:
    """A call of the denoiser while guards look in a thread, and while they do in a process, against a call alone; in turn."""
    import torch

    runtime, model = at.runtime, at.runtime.model
    rows, stamps = torch.randn(16, *model.latent_shape), torch.full((16,), 500)
    context = model.encode_prompts([""])[0].expand(16)
    latents = [runtime.engine.initial_noise(i) for i in range(8)]

    def call() -> float:
        began = time.perf_counter()
        model.denoise(rows, stamps, context, 1.0)
        return time.perf_counter() - began

    def median() -> float:
        return statistics.median(call() for _ in range(4))

    ratios: dict[str, list[float]] = {"a thread": [], "a process": []}
    with at.guards(0.0, 1):
        pool = runtime.pool
        assert pool is not None
        for _ in range(rounds):
            alone = median()
            stop = threading.Event()

            def looking(stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    runtime.looker(latents, [[]] * 8)

            thread = threading.Thread(target=looking, daemon=True)
            thread.start()
            ratios["a thread"].append(median() / alone)
            stop.set()
            thread.join()
            for look in range(6):
                pool.submit(range(8 * look, 8 * look + 8), latents, [[]] * 8)
            ratios["a process"].append(median() / alone)
            done = 0
            while done < 48:
                done += len(pool.answers(60.0))
    return [spread(f"a denoiser call while guards look in {name} ÷ alone", found) for name, found in ratios.items()]


def _device(at: Bench, requests: int) -> Measure:
    """A denoiser on a device of its own: each call sleeps. Two guard processes have the processors."""
    import torch

    model, real = at.runtime.model, at.runtime.model.denoise

    def sleeping(latents: torch.Tensor, *_: object) -> torch.Tensor:
        time.sleep(DEVICE_SECONDS)
        return torch.zeros_like(latents)

    model.denoise = sleeping  # type: ignore[method-assign, assignment]
    at.requests, before = requests, at.requests
    try:
        job = at.job(0.0, 2)
    finally:
        model.denoise, at.requests = real, before  # type: ignore[method-assign]
    waits = 1 - job.busy
    name = f"a device of {DEVICE_SECONDS:g} s a call waits, two guard processes"
    return Measure(id=name, value=waits, low=waits, high=waits, n=requests, goal=WAITS, better="lower")
