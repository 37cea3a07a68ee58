"""A run made for counting: one request of every kind, and what each count of it has to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Finding
from index.fingerprint import pixel_digest
from index.reference import Match
from pipeline.audit.context import RunContext
from pipeline.audit.ledger import append_event, run_predicate, seal
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import commit_shard
from pipeline.outcome import ACCEPTED, Attempt, Caught, Decision, Intervention, Outcome, Request, Sample, Verdict

THRESHOLD = 0.8
FAR = Match(ref_id="far", title="a far drawing", similarity=0.3)
CONTEXT = {
    "run_id": "run-0", "dataset_id": "counted", "plan_sha256": "a1" * 32, "model_id": "stickers", "model_revision": "1",
    "model_digest": "b2" * 32, "model_licence": "Apache-2.0", "scheduler": "ddim", "steps": 20, "guidance": 3.0,
    "dtype": "float32", "device_kind": "cpu", "rows": 16, "threads": 1, "index_id": "c3" * 32, "embedder_id": "d4" * 32,
    "calibration_id": "e5" * 32, "copy_threshold": THRESHOLD, "policy_id": "mixed@1", "policy_sha256": "f6" * 32,
    "policy_name": "mixed", "software_version": "0.1.0", "worker_id": "worker-0",
}  # fmt: skip


def finding(category: str, score: float, threshold: float = THRESHOLD) -> Finding:
    guard = {"mark": "marks"}.get(category.split(".")[0], category.split(".")[0])
    return Finding(guard=guard, version="1", category=category, score=score, threshold=threshold)


def copies(score: float) -> Finding:
    return Finding(guard="copies", version="1", category="copy.protected", score=score, threshold=THRESHOLD, ref_id="ref")


def attempt(number: int, verdict: Verdict, findings: Sequence[Finding], nearest: Sequence[Match], **more: Any) -> Attempt:
    picture = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    values: dict[str, Any] = {
        "number": number,
        "seed": 7 + number,
        "resumed_from_step": 0,
        "picture": picture,
        "embedding": np.zeros(0, np.float32),
        "intervention": Intervention(kind="nudge", strength=0.9, ref_ids=("ref",)) if number else None,
        "denoiser_evals": 20.0,
        "device_seconds": 1.0,
        "pixel_sha256": pixel_digest(picture),
    }
    return Attempt(**values | {"findings": tuple(findings), "nearest": tuple(nearest), "decision": Decision(verdict)} | more)


def sample(row: int, outcome: Outcome, attempts: Sequence[Attempt] = (), reason: str = "") -> Sample:
    accepted = attempts[-1].number if outcome in ACCEPTED else None
    return Sample(
        request=Request(row_no=row, key=f"key-{row}", prompt=f"thing {row}", negative_prompt="", seed=row),
        outcome=outcome,
        reason=reason,
        attempts=tuple(attempts),
        accepted_attempt=accepted,
        started_at=1.8e9 + row,
        finished_at=1.8e9 + row + 2,
    )


def one_of_each() -> list[Sample]:
    """A run whose policy steers copies, sends words to a person, and only observes marks: one request of every kind."""
    accept, steer = Verdict.ACCEPT, Verdict.STEER
    near = Match(ref_id="ref", title="the near drawing", similarity=0.91, confirm=0.01)
    allowed = Match(ref_id="free", title="a drawing that is allowed", similarity=0.99, status="allowed")
    caught = Caught(
        step=3,
        signal="latent",
        score=0.9,
        threshold=0.7,
        nearest=(Match(ref_id="ref", title="the near drawing", similarity=0.9),),
    )
    copied, clear = [copies(0.95), finding("mark.qr", 0.1, 0.5)], [copies(0.3), finding("mark.qr", 0.1, 0.5)]
    hit = Match(ref_id="ref", title="the near drawing", similarity=0.95, confirm=0.9)
    return [
        sample(0, Outcome.ACCEPTED, [attempt(0, accept, clear, [FAR])]),
        sample(
            1,
            Outcome.ACCEPTED,
            [attempt(0, accept, [copies(0.62)], [near, Match(ref_id="other", title="", similarity=0.62), FAR])],
        ),
        sample(2, Outcome.ACCEPTED, [attempt(0, accept, [copies(0.3), finding("mark.qr", 0.9, 0.5)], [FAR])]),
        sample(
            3,
            Outcome.ACCEPTED_AFTER_STEERING,
            [
                attempt(
                    0,
                    accept,
                    clear,
                    [FAR],
                    intervention=Intervention(kind="nudge", strength=1.0, ref_ids=("ref",)),
                    caught=(caught,),
                )
            ],
        ),
        sample(
            4,
            Outcome.ACCEPTED_AFTER_STEERING,
            [
                attempt(0, steer, copied, [hit]),
                attempt(1, accept, [copies(0.5)], [Match(ref_id="ref", title="the near drawing", similarity=0.5)]),
            ],
        ),
        sample(5, Outcome.ERROR, [attempt(0, steer, copied, [hit])], "oom"),
        sample(6, Outcome.ERROR, reason="input.empty_prompt"),
        sample(
            7, Outcome.REVIEW, [attempt(0, Verdict.REVIEW, [copies(0.3), finding("text.ocr", 0.9, 0.5)], [FAR])], "text.ocr"
        ),
        sample(
            8,
            Outcome.REJECTED,
            [attempt(0, steer, copied, [hit]), attempt(1, Verdict.REJECT, copied, [hit])],
            "copy.protected",
        ),
        sample(9, Outcome.ACCEPTED, [attempt(0, accept, [copies(-1.0)], [allowed])]),
    ]


def commit(folder: Path, samples: Sequence[Sample], shard: str = "0") -> Path:
    """Commit the samples as one shard, unsealed."""
    context = RunContext(**CONTEXT)  # type: ignore[arg-type]
    commit_shard(folder, shard, sample_table(samples, context, shard), attempt_table(samples, context, shard))
    return folder


def sealed(folder: Path, samples: Sequence[Sample], **predicate: Any) -> Path:
    """Commit the samples in two shards, and seal them."""
    append_event(folder, "run.started", "runner", "started")
    middle = len(samples) // 2
    for shard, part in enumerate((samples[:middle], samples[middle:])):
        commit(folder, part, str(shard))
    seal(folder, run_predicate(RunContext(**CONTEXT), **predicate))  # type: ignore[arg-type]
    return folder
