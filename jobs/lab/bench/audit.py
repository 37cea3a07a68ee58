"""What the audit costs: beside drawing, beside writing the same bytes plainly, and when it is verified by the small verifier.

Shares are of processor time, which other work on the machine disturbs little; the writer's ratios are of wall time, measured
one after the other. The synthetic run has rows of the product's own columns around random bytes in place of pictures:
nothing here decodes them.
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.load import load_average, remark
from jobs.lab.bench.measures import Measure, publish, spread

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.run.worker import LoopLike, RuntimeLike
    from pipeline.audit.context import RunContext
    from pipeline.config import RunConfig
    from pipeline.outcome import Request, Sample
    from pipeline.policy import Policy

SHARE, WRITER, MEGABYTES = 0.03, 0.80, 500.0  # goals
ROWS = 64
SIZES = {"1_mb": 1_000_000, "100_kb": 100_000}  # bytes of a picture; the goal is for the first


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure all three and publish them as ``audit.json``."""
    loads: dict[str, float] = {}
    measures: list[Measure] = []
    more: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        found, more["seconds"] = cost(base / "drawn", samples=4 if quick else 24)
        measures.append(found)
        loads["drawing"] = load_average()
        measures += writer(base / "written", pairs=2 if quick else 9)
        loads["writing"] = load_average()
        for name, size in SIZES.items():
            folder = synthetic_run(base / name, size, shards=1 if quick else 3)
            measures += verifier(folder, name, repeats=2 if quick else 5, goal=MEGABYTES if name == "1_mb" else None)
        loads["verifying"] = load_average()
    publish("audit", measures, out, seeds=(0,), quick=quick, more={**more, "remark": remark(loads)})


# --- beside drawing --------------------------------------------------------------------------------------------------------


class TimedLoop:
    """A loop whose own processor time is counted: drawing, guards and decisions, and nothing of the audit."""

    def __init__(self, loop: LoopLike) -> None:
        self._loop, self.seconds = loop, 0.0

    @property
    def runtime(self) -> RuntimeLike:
        return self._loop.runtime

    @property
    def room(self) -> bool:
        return self._loop.room

    @property
    def busy(self) -> bool:
        return self._loop.busy

    def submit(self, request: Request) -> list[Sample]:
        return self._timed(lambda: self._loop.submit(request))

    def step(self) -> list[Sample]:
        return self._timed(self._loop.step)

    def give_up(self, row_no: int, reason: str, message: str) -> list[Sample]:
        return self._loop.give_up(row_no, reason, message)

    def _timed(self, do: Callable[[], list[Sample]]) -> list[Sample]:
        began = time.process_time()
        samples = do()
        self.seconds += time.process_time() - began
        return samples


def cost(base: Path, *, samples: int) -> tuple[Measure, dict[str, float]]:
    """Processor time of a run beside its drawing, as a share of its drawing, on the embedded world with keys.

    Everything of a run that is no drawing counts as audit: book-keeping, marks with C2PA, digests, chains, commits, events,
    the seal and its signature. Drawing is without a reference index and is not steered, which makes the share larger.
    """
    from jobs.demo import demo_prompts
    from jobs.keys import new_keys

    base.mkdir(parents=True)
    new_keys(base / "keys")
    prompts = [prompt.prompt for prompt in demo_prompts(max(3, samples))][:samples]
    _drawn(base / "warm", base / "keys", prompts[:2])  # imports and first calls belong to no picture
    total, drawing = _drawn(base / "run", base / "keys", prompts)
    audit = total - drawing
    share = Measure(
        id="audit.share_of_drawing",
        value=audit / drawing,
        low=audit / drawing,
        high=audit / drawing,
        n=samples,
        goal=SHARE,
        better="lower",
    )
    return share, {"drawing": round(drawing, 3), "audit": round(audit, 3), "audit_per_sample": round(audit / samples, 5)}


def _drawn(base: Path, keys: Path, prompts: list[str]) -> tuple[float, float]:
    """Processor seconds of a run after everything is open, and of its drawing alone."""
    from jobs.run.local_runner import run_local
    from jobs.run.openers import openers
    from jobs.run.plan import Plan, read_policy
    from pipeline.config import GenerationConfig, MarksConfig, RunConfig

    base.mkdir()
    (base / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    config = RunConfig(
        prompts=("prompts.txt",),
        shard_size=12,
        generation=GenerationConfig(steps=20, guidance_scale=3.0, rows=16, threads=1),
        marks=MarksConfig(keys=str(keys)),
    )
    plan = Plan.make(config, read_policy("observe", base), base)
    loops: list[TimedLoop] = []
    opened = [0.0]

    def open_loop(config: RunConfig, policy: Policy, place: Path) -> TimedLoop:
        loops.append(TimedLoop(openers().loop(config, policy, place)))
        opened[0] = time.process_time()
        return loops[0]

    run_local(plan, base / "run", open_loop=open_loop)
    return time.process_time() - opened[0], loops[0].seconds


# --- beside writing --------------------------------------------------------------------------------------------------------


def writer(base: Path, *, pairs: int) -> Iterator[Measure]:
    """Committing a shard against writing its pictures one after the other into a file, and against that with their digest.

    The ratio depends on the storage: a shard costs processor time beside the writing, and slow storage hides it. So that time
    is measured too, and with it the speed of storage below which the goal is met.
    """
    base.mkdir(parents=True)
    context = _context()
    plain, digested, extra = list[float](), list[float](), list[float]()
    for number in range(pairs + 1):
        alone, both, shard = _written(base, number, context)
        if number:  # the first one loads libraries
            plain.append(alone[0] / shard[0])
            digested.append(both[0] / shard[0])
            extra.append(1000 * (shard[1] - alone[1]) / (ROWS * SIZES["1_mb"] / 1e6))
    yield spread("writer.of_plain_concatenation", plain, WRITER)
    yield spread("writer.of_concatenation_with_digest", digested)
    yield spread("writer.extra_ms_per_mb", extra)
    most = [1000 * (1 - WRITER) / WRITER / one for one in extra]
    yield spread("writer.goal_met_below_mb_per_second", most)


Clocks = tuple[float, float]  # wall and processor seconds


def _written(base: Path, number: int, context: RunContext) -> tuple[Clocks, Clocks, Clocks]:
    """The same pictures plainly, plainly with their digest, and in a shard."""
    from pipeline.audit.records import attempt_table
    from pipeline.audit.shards import commit_shard

    table, shard_id = _table(number, SIZES["1_mb"], context), f"{number:05d}"
    pictures = [cell["bytes"].as_py() for cell in table.column("image")]
    attempts = attempt_table([], context, shard_id)
    return (
        _clocks(lambda: _plainly(base / "plain", pictures)),
        _clocks(lambda: _plainly(base / "digested", pictures, digest=True)),
        _clocks(lambda: commit_shard(base / "run", shard_id, table, attempts)),
    )


def _clocks(do: Callable[[], Any]) -> Clocks:
    wall, processor = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - wall, time.process_time() - processor


def _plainly(path: Path, pictures: list[bytes], *, digest: bool = False) -> None:
    made = hashlib.sha256()
    with path.open("wb") as stream:
        for picture in pictures:
            stream.write(picture)
            if digest:
                made.update(picture)
        stream.flush()
        os.fsync(stream.fileno())


# --- when it is verified ---------------------------------------------------------------------------------------------------


def verifier(folder: Path, name: str, *, repeats: int, goal: float | None = None) -> Iterator[Measure]:
    """Megabytes of data files that the small verifier takes in a second of one processor, beside digesting them once.

    Every picture is digested twice, in its file and by itself, so half of Python's own SHA-256 is the most there can be. The
    ``sha256sum`` of some systems does without the processor's instructions for it, and is slower than either.
    """
    from pipeline.audit.verifier.clearance_verify import Run

    paths = sorted(folder.glob("samples/*.parquet"))
    size = sum(path.stat().st_size for path in paths) / 1e6
    speeds, shares, outside, rows = list[float](), list[float](), list[float](), list[float]()
    for _ in range(repeats):
        began = time.process_time()
        run = Run(str(folder)).verify()
        seconds = time.process_time() - began
        if run.problems:
            raise RuntimeError(f"the synthetic run does not verify: {next(iter(run.problems))}")
        speeds.append(size / seconds)
        shares.append(_clocks(lambda: [_digest(path) for path in paths])[1] / seconds)
        outside.append(_child_seconds(["sha256sum", *map(str, paths)]) / seconds)
        rows.append(run.counts["samples"] / seconds)
    yield spread(f"verifier.{name}.mb_per_second", speeds, goal)
    yield spread(f"verifier.{name}.of_one_digest", shares)
    yield spread(f"verifier.{name}.of_sha256sum", outside)
    yield spread(f"verifier.{name}.rows_per_second", rows)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _child_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def synthetic_run(folder: Path, size: int, *, shards: int) -> Path:
    """A sealed run of random bytes in place of pictures."""
    from pipeline.audit.events import append_event
    from pipeline.audit.ledger import run_predicate, seal
    from pipeline.audit.records import attempt_table
    from pipeline.audit.shards import commit_shard

    folder.mkdir(parents=True)
    context = _context()
    append_event(folder, "run.started", "bench", "started")
    for number in range(shards):
        shard_id = f"{number:05d}"
        commit_shard(folder, shard_id, _table(number, size, context), attempt_table([], context, shard_id))
    seal(folder, run_predicate(context, requested=shards * ROWS))
    return folder


def _table(number: int, size: int, context: RunContext) -> pa.Table:
    """Rows as a run writes them for requests that are in review, with random bytes of that size as pictures."""
    from pipeline.audit.chain import chained, header
    from pipeline.audit.records import sample_table
    from pipeline.outcome import Outcome, Request, Sample

    rng, first = np.random.default_rng(number), number * ROWS
    samples = [
        Sample(request=Request(row_no=first + n, key=f"key-{first + n}", prompt="a drawing", seed=n), outcome=Outcome.REVIEW)
        for n in range(ROWS)
    ]
    table = sample_table(samples, context, f"{number:05d}")
    rows = table.to_pylist()
    for row in rows:
        data = rng.bytes(size)
        image = {"bytes": data, "path": f"{row['sample_id']}.png"}
        row.update(image=image, media_type="image/png", file_sha256=hashlib.sha256(data).hexdigest())
    plain = table.schema.remove_metadata()
    return chained(iter(rows), plain, header("samples", f"{number:05d}", context))


def _context() -> RunContext:
    from pipeline.audit.context import RunContext

    return RunContext(
        run_id="bench", dataset_id="bench", plan_sha256="00" * 32, model_id="bench", model_revision="1", model_digest="22" * 32,
        model_licence="none", scheduler="ddim", steps=20, guidance=3.0, dtype="float32", device_kind="cpu", rows=16, threads=1,
        index_id="", embedder_id="", calibration_id="", copy_threshold=0.8, policy_id="bench", policy_sha256="11" * 32,
        policy_name="bench",
    )  # fmt: skip
