"""What the arithmetic starts from: each number with where it comes from, and a run of one's own in place of the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import ConfigError, InputError


@dataclass(frozen=True)
class Known:
    """A number and where it comes from."""

    value: float
    source: str


MLPERF = "MLPerf Inference v5.1, SDXL offline (1024², 20 steps, fp8), others' submissions: this engine was not measured on it"
DEVICES = {  # pictures a second
    "h200": Known(2.40, f"{MLPERF}; 2.33 to 2.40"),
    "h100": Known(2.26, MLPERF),
    "b200": Known(4.07, f"{MLPERF}; the best"),
}
_ENGINE = "infra/docs/bench/engine.json"
_BY_HAND = "measured by hand on one Zen 5 core, a picture of 1024² with noise"
DEFAULTS: Mapping[str, Known] = {
    "steps": Known(20, "MLPerf's"),
    "rows": Known(16, "default of the run file"),
    "shard_size": Known(16, "default of the run file"),
    "flagged": Known(0.15, "assumed: it depends on prompts and index; --run takes yours"),
    "again": Known(0.15, f"as the first time, as {_ENGINE} has it"),
    "tries": Known(6, "assumed: five rungs"),
    "caught": Known(0.9, f"assumed by {_ENGINE}: nine flags of ten are seen early"),
    "probe_at": Known(0.25, f"{_ENGINE}"),
    "back": Known(3, "steps that a probe sends a sample back, 2 to 4"),
    "from_step": Known(8, "steps kept of a flagged picture that is drawn again, at most 40 %"),
    "reference_rows": Known(0, "default ladder: nudging takes no row; token merging takes 1"),
    "guard_seconds": Known(
        0.46, f"text .42 (no words in it), unsafe .02, codes .01, marks .01, of a processor: {_BY_HAND}; --run takes yours"
    ),
    "embed_seconds": Known(0, "the embedder is on the device; on a processor 1.1, ViT-B-32 in 12 hues, by hand"),
    "picture_seconds": Known(0.25, f"marking, encoding and reading back, lossless WebP: {_BY_HAND}"),
    "picture_bytes": Known(2.0e6, f"lossless WebP: {_BY_HAND}; photographs take less"),
    "row_bytes": Known(8192, "jobs/run/preflight/estimate.py"),
    "deaths": Known(0.01, "assumed, of a worker in an hour: one in a hundred hours"),
    "restart_seconds": Known(60, "assumed: replacing a worker and loading SDXL"),
    "looks": Known(13, "searches of the index for a picture: the picture in 12 hues, and a probe; copies.edits adds up to 50"),
    "queries_per_core": Known(1401, "bench index, 1,000,000 references of 512 numbers, in batches; 3,750 at 200,000"),
    "anonymous_bytes": Known(
        64, "of a reference, in a worker's own memory: the most it may be; bench index found 36 at 200,000, 13 at 1,000,000"
    ),
    "mapped_bytes": Known(2353, "of a reference, on disk and in the page cache once for a node: bench index, 512 float32"),
}  # fmt: skip
WHOLE = ("steps", "rows", "shard_size", "tries", "back", "from_step", "reference_rows")
SHARES = ("flagged", "again", "caught", "probe_at")
LEAST = {"steps": 1, "rows": 2, "shard_size": 1, "tries": 1, "rate": 1e-6, "queries_per_core": 1}  # of the others 0
MOST_OF_ALL = 1e12  # of every number; beyond, products stop being numbers
MOST = {**dict.fromkeys(SHARES, 1), "steps": 1000, "rows": 1024, "shard_size": 10_000, "tries": 65, "reference_rows": 64}


def given(name: str, text: str, known: Mapping[str, Known]) -> Known:
    """Another value for an input, from text.

    Raises:
        ConfigError: there is no such input, or the text is no number that it can have.
    """
    where = f"--set {name}"
    if name not in known:
        raise ConfigError(f"there is no input {name!r}", where="--set", fix=f"One of {', '.join(known)}")
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no number", where=where, fix=f"Write --set {name}=0.5") from None
    least, most = LEAST.get(name, 0), MOST.get(name, MOST_OF_ALL)
    if not least <= value <= most:  # false for NaN
        fix = f"Give a number from {least:g} to {most:g}"
        raise ConfigError(f"{text} is out of range", where=where, fix=fix)
    if name in WHOLE and value != int(value):
        raise ConfigError(f"{text} is no whole number", where=where, fix="Give a whole number")
    return Known(value, "--set")


def of_run(folder: Path) -> dict[str, Known]:
    """What a run of one's own says in place of the defaults.

    Raises:
        InputError: nothing was accepted in it, so that it says nothing of what a picture costs.
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    from jobs.run.planning.stored_plan import stored_plan
    from pipeline.audit.numbers import Counts, count_into
    from pipeline.audit.shards import committed

    counts, guards = Counts(), _GuardTime()
    count_into([counts, guards], folder, attempt_columns=["guard_seconds"])
    if not counts.accepted or not counts.device_seconds:
        fix = "Name a run that accepted pictures and drew them with a model"
        raise InputError("no picture was accepted in this run", where=str(folder), fix=fix)
    config: Mapping[str, Any] = stored_plan(folder)["config"]
    steps, receipts = int(config["generation"]["steps"]), committed(folder).values()
    size = sum(file.bytes for receipt in receipts for file in receipt.files)
    source = f"run {stored_plan(folder)['run_id']}, {counts.requested} requests"
    found = {
        "steps": float(steps),
        "rows": float(config["generation"]["rows"]),
        "shard_size": float(config["shard_size"]),
        "flagged": counts.flagged / counts.generated if counts.generated else 0.0,
        "guard_seconds": guards.seconds / counts.pictures,
        "embed_seconds": 0.0,
        "picture_bytes": size / counts.accepted,
        "row_bytes": 0.0,
        # A step of one picture takes a share of a call; the calls of a device follow each other.
        "rate": counts.evals / steps / counts.device_seconds,
    }
    return {name: Known(value, source) for name, value in found.items()}


class _GuardTime:
    """Seconds of all guards, over the attempts of a run."""

    seconds = 0.0

    def add(self, sample: Mapping[str, Any], attempts: Any) -> None:
        self.seconds += sum(float(one["seconds"]) for attempt in attempts for one in attempt["guard_seconds"] or ())
