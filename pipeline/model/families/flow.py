"""Steps of rectified flows, shifted by the number of tokens; shared by the families that draw with them."""

from __future__ import annotations

from typing import Any

import numpy as np


def set_flow_steps(scheduler: Any, steps: int, mu: float) -> None:
    """Set a scheduler to even steps from 1 to 1/steps, shifted by μ; one that has sigmas of a flow itself keeps its own."""
    if scheduler.config.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, mu=mu)
    else:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def shift_of(config: Any, tokens: int, max_shift: float) -> float:
    """The logarithm μ of the time shift for a picture of that many tokens: linear between two anchors (diffusers' form)."""
    base_tokens, max_tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base = config.get("base_shift", 0.5)
    slope = (config.get("max_shift", max_shift) - base) / (max_tokens - base_tokens)
    return float(tokens * slope + (base - slope * base_tokens))
