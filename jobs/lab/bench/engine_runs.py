"""What the engine's benches share: a trajectory for a caption, running to the end, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.interface import DiffusionModel

ROWS, GUIDANCE = 16, 3.0
CAPTIONS = tuple(f"a {name}" for name in ("pear", "bear", "cat", "castle", "lion", "pizza", "taxi", "key"))


def engine(model: DiffusionModel, steps: int) -> Engine:
    """An engine as the default run file makes it."""
    from pipeline.engine.engine import Engine

    return Engine(model, rows=ROWS, steps=steps, guidance_scale=GUIDANCE)


def plain(e: Engine, tag: int, contexts: Sequence[torch.Tensor]) -> Trajectory:
    """Two rows: the tag's caption with the tag's seed. ``contexts``: of the captions, and of the empty prompt behind them."""
    from pipeline.engine.trajectory import Trajectory

    return Trajectory(
        tag=tag, latent=e.initial_noise(tag), step=0, context=contexts[tag % len(CAPTIONS)], negative=contexts[-1], seed=tag
    )


def contexts_of(model: DiffusionModel) -> list[torch.Tensor]:
    """Conditionings of all captions, and last of the empty prompt."""
    return list(model.encode_prompts([*CAPTIONS, ""]))


def digest(latent: torch.Tensor) -> str:
    """Of its bytes."""
    return hashlib.sha256(latent.numpy().tobytes()).hexdigest()
