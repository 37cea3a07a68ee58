"""What tests of steering methods share: a drawn picture of a tiny random model, and what a rung makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.load import load_model
from pipeline.policy import Policy
from pipeline.respond.copies import Failed, Tools, Words, retry
from pipeline.rungs import Rung
from pipeline.settings import from_dict
from pipeline.steer.embedder_space import EmbedderSpace

STEPS, ROWS, SEED = 5, 8, 3


def engine_of(folder: Path) -> Engine:
    return Engine(load_model(ModelConfig(path=str(folder), dtype="float32")), rows=ROWS, steps=STEPS, guidance_scale=3.0)


def first_of(engine: Engine) -> Trajectory:
    """The first attempt, drawn to its end."""
    texts = engine.model.encode_prompts(["a red apple", ""])
    return run(engine, Trajectory(tag=1, latent=engine.initial_noise(SEED), step=0, context=texts[0], negative=texts[1]))


def rung_of(kind: str, **keys: Any) -> Rung:
    return from_dict(Policy, {"ladder": [{"kind": kind, **keys}]}, where="policy").ladder[0]


def run(engine: Engine, t: Trajectory) -> Trajectory:
    engine.submit(t)
    while engine.busy:
        engine.step()
    return t


def again(
    engine: Engine, last: Trajectory, rung: Rung, *, attempt: int = 1, found: int = 3, space: EmbedderSpace | None = None
) -> tuple[Trajectory, Any, int]:
    latents = [torch.randn(engine.model.latent_shape, generator=torch.Generator().manual_seed(70 + i)) for i in range(found)]
    latents = [0.5 * z + 0.5 * last.latent for z in latents]
    words = Words(
        caption="a red apple", negative_prompt="a dog", titles=["cat", "lemon"][:found],
        encode=lambda text: engine.model.encode_prompts([text])[0],
    )  # fmt: skip
    ref_ids = ["00000001", "00000002", "00000003"][:found]
    failed = Failed(last=last, seed=SEED, attempt=attempt, ref_ids=ref_ids, latents=latents, words=words)
    tools = Tools(
        engine=engine, reference_context=last.negative, centre=torch.zeros(engine.model.latent_shape),
        embedder_space=(lambda: space) if space is not None else None,
    )  # fmt: skip
    found_next = retry(failed, rung, tools)
    return found_next.trajectory, found_next.intervention, found_next.seed
