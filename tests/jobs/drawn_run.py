"""A run whose pictures are drawings that ship, looked at by the real copies guard: everything of a run but the denoiser."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guards.base import Finding
from guards.copies import CopiesGuard
from index.bound_embedder import embedder_of
from index.calibrate import Calibration
from index.colours import turn_hues
from index.embed import OpenCLIPEmbedder
from index.fingerprint import pixel_digest
from index.reference import NewReference
from index.shipped import STICKERS
from index.store import ReferenceIndex
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.context import RunContext
from pipeline.config import RunConfig
from pipeline.copy_check import copy_check_record
from pipeline.decide import decide
from pipeline.marking.markers import Markers
from pipeline.outcome import Attempt, Outcome, Request, Sample, Verdict
from pipeline.policy import CopiesPolicy, Policy, policy_digest

PROTECTED = ("anchor", "avocado", "banana", "bell", "butterfly")  # what the index holds
OTHERS = ("ant", "bat", "bicycle", "bread", "cactus", "lemon")  # what nobody has claimed yet
OBSERVE = Policy(name="observe", copies=CopiesPolicy(action="observe", hues=12))
STRICT = Policy(name="strict", copies=CopiesPolicy(action="steer", hues=12))


@cache
def drawing(name: str) -> np.ndarray:
    """A drawing that ships, uint8 RGB."""
    return np.asarray(Image.open(STICKERS / "references" / f"{name}.png").convert("RGB"))


def jittered(name: str, seed: int) -> np.ndarray:
    """The same drawing, placed a little differently."""
    from jobs.lab.world.variants import jitter

    return np.asarray(jitter(Image.fromarray(drawing(name)), np.random.default_rng(seed)))


def pictures() -> dict[str, np.ndarray]:
    """What the run draws, by key: copies, copies in other colours, and drawings of other subjects."""
    found = {f"copy-{name}": jittered(name, seed) for seed, name in enumerate(PROTECTED)}
    found |= {
        f"colour-{name}": turn_hues(drawing(name), share)
        for name, share in zip(PROTECTED, (0.2, 0.35, 0.5, 0.65, 0.8), strict=True)
    }
    found |= {f"other-{name}": drawing(name) for name in OTHERS}
    return found | {f"moved-{name}": jittered(name, 40 + seed) for seed, name in enumerate(OTHERS)}


def remembering(embedder: OpenCLIPEmbedder) -> OpenCLIPEmbedder:
    """The embedder, which looks at the same bytes once: a vector does not depend on its neighbours (tests/index/test_embed)."""
    known: dict[tuple[Any, bytes], np.ndarray] = {}
    look = embedder.images

    def images(shown: np.ndarray) -> np.ndarray:
        keys = [(picture.shape, picture.tobytes()) for picture in shown]
        new = {key: picture for key, picture in zip(keys, shown, strict=True) if key not in known}
        if new:
            known.update(zip(new, look(np.stack(list(new.values()))), strict=True))
        return np.stack([known[key] for key in keys]) if keys else look(shown)

    embedder.images = images  # type: ignore[method-assign]
    return embedder


def make_index(folder: Path, names: Sequence[str] = PROTECTED) -> tuple[ReferenceIndex, OpenCLIPEmbedder]:
    """An index of drawings that ship, with their pictures, and its embedder, which remembers."""
    works = [NewReference(title=name, picture=drawing(name), rights_basis="licensed", keep_picture=True) for name in names]
    embedder = OpenCLIPEmbedder.open("stickers")
    index = ReferenceIndex.build(folder, works, embedder)
    return index, remembering(embedder_of(index))


class Drawn:
    """A loop that ends every request with the drawing of its key, as the guard and the policy judge it."""

    def __init__(self, guard: CopiesGuard, config: RunConfig, policy: Policy, shown: Mapping[str, np.ndarray]) -> None:
        self.guard, self.config, self.policy, self.shown = guard, config, policy, shown
        self.standing: list[Request] = []
        self.runtime = self

    room = True
    markers = Markers()

    @property
    def busy(self) -> bool:
        return bool(self.standing)

    def submit(self, request: Request) -> list[Sample]:
        self.standing.append(request)
        return []

    def step(self) -> list[Sample]:
        return [self._ended(self.standing.pop(0))]

    def identity(self) -> dict[str, str]:
        return identity_of(self.guard.index)

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext:
        return RunContext(
            run_id=run_id, dataset_id=self.config.dataset_id, plan_sha256=plan_sha256, model_id="drawn", model_revision="",
            model_digest="m" * 64, model_licence="Apache-2.0", scheduler="ddim", steps=20, guidance=3.0, dtype="float32",
            device_kind="cpu", rows=16, threads=1, index_id=self.guard.index.index_id, embedder_id=self.guard.index.embedder_id,
            calibration_id="c", copy_threshold=self.guard.point.threshold, policy_id="p",
            policy_sha256=policy_digest(self.policy), policy_name=self.policy.name, worker_id=worker_id,
            embedding_dim=self.guard.index.dim,
        )  # fmt: skip

    def _ended(self, request: Request) -> Sample:
        picture = self.shown[request.key]
        seen = self.guard.examine(picture[None])[0]
        mark = Finding(guard="marks", version="1", category="mark.watermark", score=0.3, threshold=0.5)
        decision = decide(seen.findings, 0, self.policy)
        attempt = Attempt(
            number=0, seed=request.seed, resumed_from_step=0, intervention=None, picture=picture,
            pixel_sha256=pixel_digest(picture), embedding=seen.embedding, findings=(*seen.findings, mark), nearest=seen.nearest,
            decision=decision, denoiser_evals=20.0, device_seconds=0.1,
        )  # fmt: skip
        outcome = {Verdict.ACCEPT: Outcome.ACCEPTED, Verdict.REVIEW: Outcome.REVIEW}.get(decision.verdict, Outcome.REJECTED)
        return Sample(
            request=request, outcome=outcome, reason=decision.reason, attempts=(attempt,),
            accepted_attempt=0 if outcome is Outcome.ACCEPTED else None, started_at=time.time(), finished_at=time.time(),
        )  # fmt: skip


def identity_of(index: ReferenceIndex) -> dict[str, str]:
    return {"model_digest": "m" * 64, "embedder_id": index.embedder_id, "index_id": index.index_id}


def draw(
    base: Path, index: ReferenceIndex, embedder: OpenCLIPEmbedder, *, policy: Policy = OBSERVE, out: str = "run",
    shown: Mapping[str, np.ndarray] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Make a run of drawings and seal it; returns its folder."""
    shown = shown or pictures()
    rows = "\n".join(f"{key},a drawing of {key}" for key in shown)
    (base / f"{out}.csv").write_text(f"key,prompt\n{rows}\n", encoding="utf-8")
    config = RunConfig(**{"prompts": f"{out}.csv", "shard_size": 8, "index": "index", "dataset_id": "drawn"} | settings)
    plan = Plan.make(config, policy, base, identity=identity_of(index))
    record = copy_check_record(config, policy, index.embedder_id, base=base)
    in_force = {"name": "copies", "version": "4", "weights": {}, "action": policy.copies.action, "note": ""}
    plan = dataclasses.replace(plan, copy_check=record, guards=(in_force,))
    point = Calibration.load(STICKERS / "calibration.json").point
    guard = CopiesGuard(index, embedder, point=point, k=policy.copies.k, hues=policy.copies.hues)
    open_loop: Callable[..., Any] = lambda config, policy, base: Drawn(guard, config, policy, shown)  # noqa: E731
    run_local(plan, base / out, open_loop=open_loop)
    return base / out
