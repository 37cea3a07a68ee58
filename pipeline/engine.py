"""The engine: a row packer that denoises samples standing at different steps in one call of fixed shape.

A sample owns two rows (unconditional, conditional) and one more for every reference it is pushed apart from. Rows
nobody owns are padding. Because the shape never changes, a sample's bytes do not depend on its slot, its mates or the
order of admission; it can be made again alone, years later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from index.errors import ConfigError
from pipeline.model.samplers import DDIM
from pipeline.steer.negtome import NegToMe, RowPush

if TYPE_CHECKING:
    import torch

    from pipeline.model.families import DiffusionModel
    from pipeline.steer.features import FeatureCache

CleanHook = Callable[["torch.Tensor", int, "torch.Tensor"], "torch.Tensor"]
GuideHook = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", int], "torch.Tensor"]


@dataclass
class Trajectory:
    """One sample on its way from noise to picture.

    Attributes:
        tag: the caller's own handle.
        latent: float32 (C, h, w) at ``step``.
        step: the next denoising step to take.
        context: text embedding (T, D) of the prompt.
        negative: text embedding (T, D) of the negative prompt.
        push: negative token merging against reference latents, or None.
        nudge: maps (x̂0, step, ε) to a nudged x̂0, or None.
        guide: maps (latent, unconditional, conditional, step) to the guided raw output, in place of classifier-free guidance,
            or None.
        ring: the latent before every step taken; index = step. What a rollback resumes from.
        guidance_norms: ‖ε_text − ε_empty‖ per step, a free statistic.
        evals: denoiser evaluations spent, in guided steps.
        device_seconds: share of the device time of its calls.
    """

    tag: int
    latent: torch.Tensor
    step: int
    context: torch.Tensor
    negative: torch.Tensor
    push: NegToMe | None = None
    nudge: CleanHook | None = None
    guide: GuideHook | None = None
    ring: dict[int, torch.Tensor] = field(default_factory=dict)
    guidance_norms: list[float] = field(default_factory=list)
    evals: float = 0.0
    device_seconds: float = 0.0

    def rows(self) -> int:
        return 2 + (self.push.references_at(self.step) if self.push else 0)

    def peak_rows(self) -> int:
        return 2 + (len(self.push.latents) if self.push else 0)


class Engine:
    """Denoises submitted trajectories, always ``rows`` rows at a time.

    Args:
        model: the diffusion model.
        rows: fixed number of rows per denoiser call.
        steps: denoising steps.
        guidance_scale: classifier-free guidance scale w: ε = ε_neg + w·(ε_text − ε_neg).
    """

    def __init__(self, model: DiffusionModel, *, rows: int, steps: int, guidance_scale: float) -> None:
        self.model, self.rows, self.guidance_scale = model, rows, guidance_scale
        self.sampler = DDIM.for_model(model, steps)
        self._waiting: deque[Trajectory] = deque()
        self._running: list[Trajectory] = []
        self.calls = 0
        self.rows_used = 0
        self.features: FeatureCache | None = None  # set it, and references are run once instead of beside every sample

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, trajectory: Trajectory) -> None:
        """Queue a trajectory. Raises ConfigError when it could never fit."""
        if trajectory.peak_rows() > self.rows:
            raise ConfigError(
                f"a sample needs {trajectory.peak_rows()} rows, the engine has {self.rows}",
                where="generation.rows",
                fix="Raise it, or steer with fewer references",
            )
        self._waiting.append(trajectory)

    def initial_noise(self, seed: int) -> torch.Tensor:
        """The noise of a seed, float32 (C, h, w); the same as diffusers draws with a CPU generator of that seed."""
        import torch

        return torch.randn(self.model.latent_shape, generator=torch.Generator().manual_seed(seed))

    def step(self) -> list[Trajectory]:
        """Make one denoiser call; returns the trajectories that reached the end."""
        self._admit()
        if not self._running:
            return []
        began = time.perf_counter()
        latents, timesteps, context, owners, pushes = self._pack()
        with self._pushing(pushes):
            output = self.model.denoise(latents, timesteps, context)
        used = sum(t.rows() for t in self._running)
        seconds = (time.perf_counter() - began) / used
        self.calls += 1
        self.rows_used += used
        for trajectory, first in owners:
            trajectory.device_seconds += seconds * trajectory.rows()
            trajectory.evals += trajectory.rows() / 2
            self._advance(trajectory, output[first], output[first + 1])
        finished = [t for t in self._running if t.step == len(self.sampler)]
        self._running = [t for t in self._running if t.step < len(self.sampler)]
        return finished

    def abandon(self) -> list[Trajectory]:
        """Give up what is running (not what waits); returns it."""
        abandoned, self._running = self._running, []
        return abandoned

    def _admit(self) -> None:
        """Fill the free rows, first come first served, skipping over what does not fit."""
        free = self.rows - sum(t.peak_rows() for t in self._running)
        held: deque[Trajectory] = deque()
        while self._waiting and free >= 2:
            trajectory = self._waiting.popleft()
            if trajectory.peak_rows() <= free:
                free -= trajectory.peak_rows()
                self._running.append(trajectory)
            else:
                held.append(trajectory)
        self._waiting.extendleft(reversed(held))

    def _pack(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[Trajectory, int]], list[RowPush]]:
        import torch

        latents: list[torch.Tensor] = []
        timesteps: list[int] = []
        context: list[torch.Tensor] = []
        owners: list[tuple[Trajectory, int]] = []
        pushes: list[RowPush] = []
        for t in self._running:
            time_now, first = self.sampler.timesteps[t.step], len(latents)
            owners.append((t, first))
            latents += [t.latent, t.latent]
            context += [t.negative, t.context]
            if t.push and t.push.acts_at(t.step):
                count = t.push.references_at(t.step)
                latents += t.push.noised(self.sampler.alpha[t.step])[:count]
                context += [t.push.context] * count
                references = tuple(range(first + 2, first + 2 + count))
                pushes += [RowPush(row, references, t.push, t.step) for row in (first, first + 1)]
            timesteps += [time_now] * (len(latents) - first)
        for _ in range(self.rows - len(latents)):  # a constant row, so that nothing depends on leftovers
            latents.append(torch.zeros(self.model.latent_shape))
            context.append(torch.zeros_like(self._running[0].context))
            timesteps.append(0)
        return torch.stack(latents), torch.tensor(timesteps), torch.stack(context), owners, pushes

    def _pushing(self, pushes: list[RowPush]):  # type: ignore[no-untyped-def]
        from pipeline.steer.negtome import pushing

        return pushing(self.model.attention_blocks(), pushes)

    def _advance(self, t: Trajectory, negative: torch.Tensor, conditional: torch.Tensor) -> None:
        t.ring[t.step] = t.latent
        t.guidance_norms.append(float((conditional - negative).norm()))
        output = negative + self.guidance_scale * (conditional - negative)
        if t.guide is not None:
            output = t.guide(t.latent, negative, conditional, t.step)
        clean, noise = self.sampler.clean(t.latent, output, t.step)
        if t.nudge is not None:
            clean = t.nudge(clean, t.step, noise)
        t.latent = self.sampler.advance(clean, noise, t.step)
        t.step += 1
