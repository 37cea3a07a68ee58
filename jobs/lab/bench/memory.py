"""Does a worker's memory grow with the samples that it draws?

One process makes a run of the embedded world: the model and the policy that ship, all guards in the process itself, an index
of the protected drawings, shards of the default size. Every prompt is another text. After each commit the kernel is asked for
the process's memory; and once more each time right after the worker has given freed memory back, which is what it holds on to.
What is kept on purpose is bounded, and is full before the first reading counts: the conditionings of 4,096 prompts are made
before the run, and the first tenth of the samples fills the rest.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.heap import Heap
from index.rate import Z95
from jobs.lab.bench.apart import run_apart
from jobs.lab.bench.measures import Measure, publish, share

if TYPE_CHECKING:
    from jobs.run.event import Event
    from pipeline.config import RunConfig
    from pipeline.policy import Policy

SAMPLES, STEPS = 10_000, 4
WARM = 0.1  # of the samples: their readings do not count
BLOCKS = 10  # of consecutive readings, each left out in turn: the interval of a slope
PROTECTED = 20  # one request of so many asks for a protected drawing
GOAL = 1.0  # MB for each thousand samples: a worker that draws a million would need a GB more than at its start
FIELDS = {"VmRSS": "resident", "RssAnon": "anonymous"}


def bench(out: Path, *, work: Path, quick: bool = False, samples: int = 0, minutes: float = 600.0) -> None:
    """Measure and publish ``memory``; a run that was stopped after ``minutes`` counts as far as it went."""
    import shutil

    asked = samples or (160 if quick else SAMPLES)
    shutil.rmtree(work, ignore_errors=True)  # the process is what is measured: another one cannot go on
    work.mkdir(parents=True)
    run_apart(f"from jobs.lab.bench.memory import measure; measure({str(work)!r}, {asked}, {minutes})")
    readings = [json.loads(line) for line in (work / "readings.jsonl").read_text(encoding="utf-8").splitlines()]
    ended = json.loads((work / "ended.json").read_text(encoding="utf-8"))
    publish("memory", list(measures(readings, ended, asked)), out, seeds=[0], quick=quick, more=_more(readings, ended))


def measures(readings: Sequence[dict[str, float]], ended: dict[str, Any], asked: int) -> Iterator[Measure]:
    """Slopes over the readings that count, with what the run did.

    Args:
        readings: ``samples`` and the megabytes of :data:`FIELDS`, in order; ``given_back`` where freed memory just was.
        ended: of :func:`measure`. asked: samples.
    """
    every = [one for one in readings if one["samples"] > WARM * asked]
    counted = [one for one in every if not one.get("given_back")]
    last = float(counted[-1]["samples"])
    yield Measure(id="samples of one process", value=last, low=last, high=last, n=len(counted), goal=asked)
    for field in FIELDS.values():
        yield _growth(f"{field} memory, MB more for each 1,000 samples", counted, field)
    if len(held := [one for one in every if one.get("given_back")]) >= 2 * BLOCKS:  # a short run has too few for a slope
        yield _growth(
            "resident memory right after freed memory was given back, MB more for each 1,000 samples", held, "resident"
        )
    peak = max(one["resident"] for one in counted)
    first = counted[0]["resident"]
    yield Measure(id="resident memory, MB, at the first reading that counts", value=first, low=first, high=first, n=1)
    yield Measure(id="resident memory, MB, the most", value=peak, low=peak, high=peak, n=len(counted), better="lower")
    outcomes = ended["outcomes"]
    yield share("accepted after steering", outcomes.get("accepted_after_steering", 0), sum(outcomes.values()))


def _growth(name: str, readings: Sequence[dict[str, float]], field: str) -> Measure:
    drawn, megabytes = (np.array([one[key] for one in readings], np.float64) for key in ("samples", field))
    value, low, high = slope(drawn, megabytes)
    goal = GOAL if field == "resident" else None
    return Measure(id=name, value=value, low=low, high=high, n=len(readings), goal=goal, better="lower")


def slope(drawn: np.ndarray, megabytes: np.ndarray) -> tuple[float, float, float]:
    """MB for each 1,000 samples by least squares, with a 95 % interval.

    Neighbouring readings are nearly the same reading. The interval is therefore the jackknife's over :data:`BLOCKS` blocks of
    consecutive readings: ± 1.96 √((b − 1)/b Σ (sᵢ − s̄)²), where sᵢ is the slope without block i.
    """

    def fitted(keep: np.ndarray) -> float:
        return float(1000 * np.polyfit(drawn[keep], megabytes[keep], 1)[0])

    every = np.arange(len(drawn))
    without = np.array([fitted(np.setdiff1d(every, block)) for block in np.array_split(every, BLOCKS)])
    reach = Z95 * float(np.sqrt((BLOCKS - 1) / BLOCKS * ((without - without.mean()) ** 2).sum()))
    value = fitted(every)
    return value, value - reach, value + reach


def _more(readings: Sequence[dict[str, float]], ended: dict[str, Any]) -> dict[str, Any]:
    """Twenty readings of each kind, for the eye, and what the run came to."""
    kinds: dict[str, list[dict[str, float]]] = {"readings": [], "right_after_giving_back": []}
    for one in readings:
        kinds["right_after_giving_back" if one.get("given_back") else "readings"].append(one)
    shown = {
        name: [kind[round(at)] for at in np.linspace(0, len(kind) - 1, min(20, len(kind)))] for name, kind in kinds.items()
    }
    return {**shown, **ended, "steps": STEPS}


# --- in the process that is measured -----------------------------------------------------------------------------------------


class Enough(Exception):
    """The minutes are over."""


class Readings:
    """A listener of a run that reads this process's memory after every commit and writes it down at once.

    Attributes:
        outcomes: samples of each outcome, as of the last commit.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self._path, self._until, self._done = path, time.monotonic() + 60 * minutes, 0
        self.outcomes: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if event.kind != "shard":
            return
        self.outcomes, self._done = dict(event.outcomes), event.done
        self._write()
        if time.monotonic() > self._until:
            raise Enough

    @contextlib.contextmanager
    def of(self, heap: type[Heap]) -> Iterator[None]:
        """Meanwhile read also right after a heap of this kind has given freed memory back."""
        give_back, write = heap.give_back, self._write

        def and_read(self: Heap) -> bool:
            if done := give_back(self):
                write(given_back=True)
            return done

        heap.give_back = and_read  # type: ignore[method-assign]
        try:
            yield
        finally:
            heap.give_back = give_back  # type: ignore[method-assign]

    def _write(self, **more: bool) -> None:
        one = {"samples": self._done, "processor_seconds": round(time.process_time(), 1), **memory(), **more}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(one) + "\n")


def memory() -> dict[str, float]:
    """Megabytes of this process as Linux counts them: resident, mapped files included, and anonymous."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {name: round(int(lines[field].split()[0]) / 1024, 1) for field, name in FIELDS.items()}


def prompts(samples: int) -> list[str]:
    """Captions, each with its number: no two are the same. One of :data:`PROTECTED` asks for a protected drawing."""
    from jobs.demo import demo_prompts

    every = demo_prompts(3 * samples)
    kinds = {kind: iter([one.prompt for one in every if one.kind == kind]) for kind in ("protected", "ordinary")}
    chosen = ("ordinary" if row % PROTECTED else "protected" for row in range(samples))
    return [f"{next(kinds[kind])}, {row}" for row, kind in enumerate(chosen)]


def measure(folder: str, samples: int, minutes: float) -> None:
    """Make the run in ``folder``; its readings go to ``readings.jsonl``, what it came to into ``ended.json``."""
    from jobs.demo import build_index
    from jobs.run.local_runner import run_local
    from jobs.run.openers import openers
    from jobs.run.plan import Plan, read_policy
    from pipeline.config import GenerationConfig, GuardsConfig, RunConfig

    base, kept = Path(folder), [0]
    (base / "prompts.txt").write_text("\n".join(prompts(samples)) + "\n", encoding="utf-8")
    config = RunConfig(
        prompts=("prompts.txt",), index="index", guards=GuardsConfig(workers=0),
        generation=GenerationConfig(steps=STEPS, threads=1),
    )  # fmt: skip
    build_index(base / "index", config, lambda _: None)
    plan = Plan.make(config, read_policy("default", base), base)

    def opened(config: RunConfig, policy: Policy, place: Path) -> Any:
        loop = openers().loop(config, policy, place)
        kept[0] = fill(loop.runtime)
        return loop

    listener = Readings(base / "readings.jsonl", minutes)
    with contextlib.suppress(Enough), listener.of(Heap):
        run_local(plan, base / "run", listener, open_loop=opened)
    ended = {"outcomes": listener.outcomes, "asked": samples, "prompts_kept": kept[0]}
    (base / "ended.json").write_text(json.dumps(ended) + "\n", encoding="utf-8")


def fill(runtime: Any) -> int:
    """Encode as many prompts as the runtime keeps, so that those of the run replace them; returns their number."""
    most: int = runtime.contexts.most
    texts = [f"a thing, {number}" for number in range(most)]
    runtime.contexts.expect(texts)
    for text in texts:
        runtime.context_of(text)
    return most
