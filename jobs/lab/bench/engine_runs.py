"""Shared by the engine's benches: an engine, a trajectory for a caption, the digest of a latent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.conditioning import Conditioning
    from pipeline.model.interface import DiffusionModel

ROWS, GUIDANCE = 16, 3.0
CAPTIONS = tuple(f"a {name}" for name in ("pear", "bear", "cat", "castle", "lion", "pizza", "taxi", "key"))


def engine(model: DiffusionModel, steps: int) -> Engine:
    """An engine with the settings of the default run file."""
    from pipeline.engine.engine import Engine

    return Engine(model, rows=ROWS, steps=steps, guidance_scale=GUIDANCE)


def plain(e: Engine, tag: int, contexts: Sequence[Conditioning]) -> Trajectory:
    """A guided sample (two rows): the tag's caption and seed. ``contexts``: those of the captions, then the empty prompt's."""
    from pipeline.engine.trajectory import Trajectory

    return Trajectory(
        tag=tag, latent=e.initial_noise(tag), step=0, context=contexts[tag % len(CAPTIONS)], negative=contexts[-1], seed=tag
    )


def contexts_of(model: DiffusionModel) -> list[Conditioning]:
    """The conditionings of all captions, then that of the empty prompt."""
    return list(model.encode_prompts([*CAPTIONS, ""]))


def digest(latent: torch.Tensor) -> str:
    """SHA-256 of the latent's bytes."""
    return hashlib.sha256(latent.numpy().tobytes()).hexdigest()
