"""A tiny model; and a made-up run built from real nouns: every outcome, drawings simple enough to recognise in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from guards.base import Finding
from index.fingerprint import pixel_digest
from index.reference import Match
from pipeline.audit.context import RunContext
from pipeline.audit.ledger import append_event, run_predicate, seal
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import commit_shard
from pipeline.config import ModelConfig
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.outcome import ACCEPTED, Attempt, Decision, Intervention, Outcome, Request, Sample, Verdict

THRESHOLD = 0.8
SIZE = 64


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype=request.param))


@pytest.fixture(scope="module")
def exact(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def drawing(shape: int, colour: Sequence[int], *, shift: float = 0.0, noise: int = 0) -> np.ndarray:
    """A disc, a square or a ring on white: uint8 (64, 64, 3)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    x = x - shift
    mask = (np.hypot(x, y) < 0.32, (abs(x) < 0.28) & (abs(y) < 0.28), abs(np.hypot(x, y) - 0.26) < 0.09)[shape % 3]
    picture = np.full((SIZE, SIZE, 3), 252, dtype=np.uint8)
    picture[mask] = colour
    inner = np.hypot(x + 0.08, y + 0.1) < 0.07
    picture[inner & mask] = np.minimum(np.asarray(colour) + 70, 255)
    if noise:
        jitter = np.random.default_rng(noise).integers(-10, 11, picture.shape)
        picture = np.clip(picture.astype(int) + jitter, 0, 255).astype(np.uint8)
    return picture


def an_attempt(
    number: int,
    picture: np.ndarray,
    similarity: float,
    verdict: Verdict,
    *,
    reason: str = "",
    kind: str = "",
    ref: int = 0,
    findings: Sequence[Finding] = (),
    skipped: Sequence[str] = (),
) -> Attempt:
    """One attempt whose copies finding follows from the similarity to reference ``ref``."""
    vector = np.random.default_rng(ref * 100 + number).normal(size=8).astype(np.float32)
    copies = Finding(
        guard="copies", version="1", category="copy.protected", score=similarity, threshold=THRESHOLD, ref_id=f"ref-{ref}"
    )
    return Attempt(
        number=number,
        seed=1000 + number,
        resumed_from_step=0 if number == 0 else 5,
        intervention=Intervention(kind=kind, strength=0.9, ref_ids=(f"ref-{ref}",)) if kind else None,
        picture=picture,
        pixel_sha256=pixel_digest(picture),
        embedding=vector / np.linalg.norm(vector),
        findings=(copies, *findings),
        nearest=(
            Match(
                ref_id=f"ref-{ref}",
                title=f"drawing {ref}",
                similarity=similarity,
                rights_basis="licensed",
                status="active",
                confirm=0.7,
            ),
            Match(ref_id="ref-99", title="other", similarity=0.2),
        ),
        decision=Decision(verdict, reason),
        denoiser_evals=20.0 if number == 0 else 17.5,
        device_seconds=1.25,
        skipped_guards=tuple(skipped),
    )


def qr(score: float) -> Finding:
    box = (0.1, 0.1, 0.4, 0.4) if score >= 0.5 else None
    return Finding(guard="codes", version="2", category="mark.qr", score=score, threshold=0.5, box=box)


def a_sample(row: int, outcome: Outcome, attempts: Sequence[Attempt] = (), reason: str = "", **more: object) -> Sample:
    accepted = attempts[-1].number if outcome in ACCEPTED else None
    request = Request(row_no=row, key=f"key-{row:03d}", prompt=f"a drawing of thing {row}", negative_prompt="", seed=1000 + row)
    start = 1_760_000_000.0 + row
    return Sample(
        request=request, outcome=outcome, reason=reason, attempts=tuple(attempts), accepted_attempt=accepted,
        started_at=start, finished_at=start + 2.5, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def every_outcome(offset: int = 0, repeats: int = 1) -> list[Sample]:
    """Per repeat: 4 accepted, 2 accepted after steering, 1 review, 1 rejected, 1 error with and 1 without an attempt."""
    samples: list[Sample] = []
    for turn in range(repeats):
        at = offset + len(samples)
        rng = np.random.default_rng(at)

        def colour(rng: np.random.Generator = rng) -> list[int]:
            return [int(c) for c in rng.integers(40, 200, 3)]

        for i in range(4):
            picture = drawing(i, colour(), noise=at + i + 1)
            sim = 0.3 + 0.1 * i + 0.01 * turn
            samples.append(
                a_sample(at + i, Outcome.ACCEPTED, [an_attempt(0, picture, sim, Verdict.ACCEPT, ref=i, findings=[qr(0)])])
            )
        for i, kind in ((4, "negtome"), (5, "nudge")):
            paint = colour()
            first = an_attempt(
                0, drawing(i, paint), 0.96 - 0.01 * turn, Verdict.STEER, reason="copy.protected", ref=i, findings=[qr(0)]
            )
            steered = [
                an_attempt(1, drawing(i + 1, colour(), noise=i), 0.55, Verdict.ACCEPT, kind=kind, ref=i, findings=[qr(0)])
            ]
            if kind == "nudge":  # this one needs two rungs
                between = drawing(i, paint, shift=0.1)
                middle = an_attempt(
                    1, between, 0.88, Verdict.STEER, reason="copy.protected", kind="negtome", ref=i, findings=[qr(0)]
                )
                last = an_attempt(2, drawing(i + 1, colour()), 0.6, Verdict.ACCEPT, kind=kind, ref=i, findings=[qr(0)])
                steered = [middle, last]
            samples.append(a_sample(at + i, Outcome.ACCEPTED_AFTER_STEERING, [first, *steered]))
        marked = an_attempt(
            0, drawing(6, colour()), 0.4, Verdict.REVIEW, reason="mark.qr", ref=6, findings=[qr(0.9)], skipped=["unsafe"]
        )
        samples.append(a_sample(at + 6, Outcome.REVIEW, [marked], "mark.qr"))
        tries = [
            an_attempt(
                n, drawing(7, colour()), 0.95, Verdict.STEER, reason="copy.protected", ref=7, kind="negtome" if n else ""
            )
            for n in range(2)
        ]
        samples.append(a_sample(at + 7, Outcome.REJECTED, tries, "copy.protected"))
        failed = an_attempt(0, drawing(8, colour()), 0.9, Verdict.STEER, reason="copy.protected", ref=8)
        samples.append(
            a_sample(at + 8, Outcome.ERROR, [failed], "oom", error_class="MemoryError", error_message="no room left")
        )
        samples.append(
            a_sample(
                at + 9, Outcome.ERROR, reason="input.prompt_empty", error_class="InputError", error_message="empty <prompt>"
            )
        )
    return samples


def a_context(**changes: object) -> RunContext:
    values: dict[str, object] = {
        "run_id": "run-2026-10-09",
        "dataset_id": "stickers-demo",
        "plan_sha256": "a1" * 32,
        "model_id": "stickers",
        "model_revision": "1",
        "model_digest": "b2" * 32,
        "model_licence": "Apache-2.0",
        "scheduler": "ddim",
        "steps": 20,
        "guidance": 3.0,
        "dtype": "bfloat16",
        "device_kind": "cpu",
        "rows": 16,
        "threads": 1,
        "index_id": "c3" * 32,
        "embedder_id": "d4" * 32,
        "calibration_id": "e5" * 32,
        "copy_threshold": THRESHOLD,
        "policy_id": "default/1",
        "policy_sha256": "f6" * 32,
        "policy_name": "default",
        "software_version": "0.1.0",
        "worker_id": "worker-0",
    }
    return RunContext(**{**values, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class FakeRun:
    """A sealed run folder and what went into it."""

    folder: Path
    samples: list[Sample]
    context: RunContext


@pytest.fixture
def samples() -> list[Sample]:
    return every_outcome()


@pytest.fixture
def context() -> Callable[..., RunContext]:
    return a_context


@pytest.fixture
def make_run() -> Callable[..., FakeRun]:
    """A function (folder, shards=2, repeats=1) → a committed and sealed run with every outcome in each shard."""

    def make(folder: Path, shards: int = 2, repeats: int = 1, **changes: object) -> FakeRun:
        context, everything = a_context(**changes), []
        append_event(folder, "run.started", "runner", "started", plan_sha256=context.plan_sha256)
        for number in range(shards):
            part = every_outcome(number * repeats * 10, repeats)
            everything += part
            name = f"{number:05d}"
            commit_shard(folder, name, sample_table(part, context, name), attempt_table(part, context, name))
        policy = {
            "name": "default",
            "version": "1",
            "copies": {"threshold": 0.0, "action": "steer", "k": 3},
            "ladder": [{"kind": "negtome", "alpha": 0.9}, {"kind": "nudge", "step_size": 0.05}],
            "mark_ladder": [{"kind": "erase", "focus": 4.0, "strength": 1.0}, {"kind": "reseed"}],
        }
        seal(folder, run_predicate(context, policy=policy, requested=len(everything), started_at=1_760_000_000.0))
        return FakeRun(folder, everything, context)

    return make
