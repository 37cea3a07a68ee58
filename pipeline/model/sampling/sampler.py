"""A sampler is a set of tables: every row of a batch takes its own step by looking its numbers up.

All samplers keep the latent at step i in the form z_i = a_i·x0 + s_i·ε, split the network's output into x̂0 and ε̂, and take

    z_{i+1} = A_i·x̂0 + S_i·ε̂ + c_i·(x̂0_i − x̂0_{i−1}) + d_i·(x̂0_{i−1} − x̂0_{i−2}) + τ_i·n_i

with numbers looked up by i: c is the second-order correction of 2M and UniPC, d that of UniPC's corrector (0 elsewhere), τ·n
the counter-based noise of those that add some. For a deterministic sampler of first order A_i = a_{i+1} and S_i = s_{i+1}.
Diffusion samplers keep z variance preserving (a² + s² = 1), flow matching has a = 1 − σ, s = σ; so the latent is at the same
time the network's input, and diffusers' scaling of Euler's input by 1/√(σ² + 1) is built in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One sampler over a fixed number of steps, as lookup tables.

    Every method takes one latent (C, h, w) and a step, or a batch (B, C, h, w) and a tensor of B steps.

    Attributes:
        name: what the audit calls it.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``: what the network predicts.
        timesteps: the network's input at each step, first to last.
        signal, noise: a_i and s_i before each step. The noise level a rollback to step i resumes at.
        signal_next, noise_next: A_i and S_i, the weights of x̂0 and ε̂ after each step.
        correction: c_i; empty for samplers without memory.
        older: d_i; empty for samplers that remember at most one x̂0.
        fresh: τ_i; empty for deterministic samplers.
        initial_scale: what unit noise is multiplied by to start from.
        clip: x̂0 is clamped to ±clip; 0 does not.
    """

    name: str
    prediction_type: str
    timesteps: tuple[int, ...] | tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    signal_next: tuple[float, ...]
    noise_next: tuple[float, ...]
    correction: tuple[float, ...] = ()
    older: tuple[float, ...] = ()
    fresh: tuple[float, ...] = ()
    initial_scale: float = 1.0
    clip: float = 0.0
    _times: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.timesteps)

    def time(self, step: int, device: torch.device) -> torch.Tensor:
        """The network's input at a step, a scalar of a table that is copied to the device once."""
        if device not in self._times:
            import torch

            self._times[device] = torch.tensor(self.timesteps, device=device)
        return self._times[device][step]

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, step: Any) -> torch.Tensor:
        """A clean latent at the noise level before ``step``: a·x0 + s·ε."""
        z: torch.Tensor = _at(self.signal, step, x0) * x0 + _at(self.noise, step, x0) * noise
        return z

    def clean(self, z: torch.Tensor, output: torch.Tensor, step: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Split a latent by the network's raw output into the predicted clean latent x̂0 and noise ε̂."""
        a, s = _at(self.signal, step, z), _at(self.noise, step, z)
        if self.prediction_type == "epsilon":
            x0, noise = (z - s * output) / a, output
        elif self.prediction_type == "sample":
            x0, noise = output, (z - a * output) / s
        elif self.prediction_type == "flow_prediction":  # v = ε − x0 (rectified flow)
            x0, noise = z - s * output, z + a * output
        else:  # v = a·ε − s·x0 (Salimans & Ho 2022, eq. D.2)
            x0, noise = a * z - s * output, a * output + s * z
        return (x0.clamp(-self.clip, self.clip) if self.clip else x0), noise

    def needs_memory(self, step: int) -> int:
        """Of how many steps before it ``step`` uses the x̂0: 0, 1 or 2."""
        if self.older and self.older[step] != 0:
            return 2
        return int(bool(self.correction) and self.correction[step] != 0)

    def advance(
        self,
        x0: torch.Tensor,
        noise: torch.Tensor,
        step: Any,
        *,
        before: torch.Tensor | None = None,
        older: torch.Tensor | None = None,
        fresh: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The latent after ``step``.

        Args:
            x0, noise: x̂0 (steered or not) and ε̂ at this step.
            step: the step taken.
            before: x̂0 of the step before, for samplers with memory; any tensor in the first step.
            older: x̂0 of the step before that, for those that remember two; any tensor in the first two steps.
            fresh: unit noise for samplers that add some; see :func:`counter_noise`.
        """
        z: torch.Tensor = _at(self.signal_next, step, x0) * x0 + _at(self.noise_next, step, x0) * noise
        if self.correction and before is not None:
            z = z + _at(self.correction, step, x0) * (x0 - before)
        if self.older and before is not None and older is not None:
            z = z + _at(self.older, step, x0) * (before - older)
        if self.fresh and fresh is not None:
            z = z + _at(self.fresh, step, x0) * fresh
        return z


def _at(table: Sequence[float], step: Any, like: torch.Tensor) -> Any:
    """The table's number at a step, or a column (B, 1, 1, 1) of them for a tensor of steps."""
    if isinstance(step, int):
        return table[step]
    import torch

    return torch.tensor(table, dtype=like.dtype)[step].view(-1, *(1,) * (like.ndim - 1))


def counter_noise(seed: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise float32 that depends on (seed, step) alone: Philox with both as its key, so a rollback repeats it."""
    import torch

    generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, step], dtype=np.uint64)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
