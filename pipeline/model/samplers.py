"""Deterministic samplers as tables: each row of a batch may stand at its own step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from index.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pipeline.model.families import DiffusionModel


@dataclass(frozen=True)
class DDIM:
    """DDIM with η = 0 (Song et al. 2021, eq. 12) for ε-, v- and x0-prediction, as lookup tables over the steps.

    Attributes:
        timesteps: training timestep of every step, first to last.
        alpha: ᾱ at every step.
        alpha_next: ᾱ after every step; 1 after the last.
        prediction_type: what the network predicts.
    """

    timesteps: tuple[int, ...]
    alpha: tuple[float, ...]
    alpha_next: tuple[float, ...]
    prediction_type: str

    @classmethod
    def for_model(cls, model: DiffusionModel, steps: int) -> DDIM:
        if model.prediction_type not in {"epsilon", "v_prediction", "sample"}:
            raise ConfigError(
                f"DDIM cannot use {model.prediction_type!r} predictions", where="generation.scheduler", fix="Use another"
            )
        timesteps = model.timesteps(steps)
        alpha = [float(model.alphas_cumprod[t]) for t in timesteps]
        return cls(tuple(timesteps), tuple(alpha), (*alpha[1:], 1.0), model.prediction_type)

    def __len__(self) -> int:
        return len(self.timesteps)

    def clean(self, z: torch.Tensor, output: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Split a latent into its predicted clean latent x̂0 and noise ε: (C, h, w) and raw output → two (C, h, w)."""
        a, s = math.sqrt(self.alpha[step]), math.sqrt(1 - self.alpha[step])
        if self.prediction_type == "epsilon":
            return (z - s * output) / a, output
        if self.prediction_type == "sample":
            return output, (z - a * output) / s
        return a * z - s * output, a * output + s * z

    def advance(self, x0: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """The latent after ``step``: √ᾱ'·x̂0 + √(1−ᾱ')·ε."""
        return math.sqrt(self.alpha_next[step]) * x0 + math.sqrt(1 - self.alpha_next[step]) * noise
