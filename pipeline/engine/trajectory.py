"""One sample on its way from noise to picture: its step, its steering, and the latents that a next attempt may resume from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from pipeline.model.adapters.lowrank import LowRank
    from pipeline.model.conditioning import Conditioning
    from pipeline.model.sampling.sampler import Sampler
    from pipeline.steer.diversity import Group
    from pipeline.steer.negtome import NegToMe

Size = tuple[int, int]


@runtime_checkable
class OnDevice(Protocol):
    """A hook that holds tensors, and can be had with them on a device."""

    def to(self, device: torch.device) -> Any:
        """The same there; nothing is copied where they are there already."""
        ...


CleanHook = Callable[["torch.Tensor", int, "torch.Tensor"], "torch.Tensor"]
GuideHook = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", int], "torch.Tensor"]


@dataclass(kw_only=True)
class Trajectory:
    """One sample on its way from noise to picture.

    Attributes:
        tag: the caller's own handle.
        latent: float32 (C, h, w) at ``step``.
        step: the next denoising step to take.
        context: conditioning of the prompt.
        negative: conditioning of the negative prompt; None for one row without classifier-free guidance.
        push: negative token merging against reference latents, or None.
        nudge: maps (x̂0, step, ε) to a nudged x̂0, or None.
        guide: maps (latent, unconditional, conditional, step) to the guided raw output, in place of classifier-free guidance,
            or None.
        ring: the latent before every step taken; index = step. What a rollback resumes from.
        guidance_norms: ‖ε_text − ε_empty‖ per step, a free statistic; empty without classifier-free guidance.
        update_norms: ‖z_{i+1} − z_i‖ per step, another one.
        clean: x̂0 (C, h, w) of the last step taken, steered or not: what probes look at.
        evals: denoiser evaluations spent, in steps of an unsteered sample.
        device_seconds: share of the device time of its calls.
        seed: with the step, the key of the noise that samplers with η > 0 add.
        cleans: x̂0 of every step taken, for samplers with memory (2M, UniPC): what a rollback restores it from, beside the ring.
        rows_from: (step, R): from that step on its calls had R rows, that of its references' features before its own. More than
            one entry only after memory ran out.
        turn: its place in the queue, given when it is submitted; a resumed one keeps its sample's.
        group: the declared group whose members push one another apart, or None; not together with ``push``. A next attempt
            stands alone: its mates have ended.
        member: its number in the group.
        guided_until: classifier-free guidance acts in steps below this one, and then the negative row goes back to the pool.
            The engine's own, unless set before.
        lowrank: low-rank weights for this sample's rows alone, each with its strength.
        sampler: its sampler, for its number of steps and the size of its latent. The engine's own, unless set before.
        guidance_scale: in place of the engine's own; None: that.
    """

    tag: int
    latent: torch.Tensor
    step: int
    context: Conditioning
    negative: Conditioning | None
    push: NegToMe | None = None
    nudge: CleanHook | None = None
    guide: GuideHook | None = None
    ring: dict[int, torch.Tensor] = field(default_factory=dict)
    guidance_norms: list[float] = field(default_factory=list)
    update_norms: list[float] = field(default_factory=list)
    clean: torch.Tensor | None = None
    evals: float = 0.0
    device_seconds: float = 0.0
    seed: int = 0
    cleans: dict[int, torch.Tensor] = field(default_factory=dict)
    rows_from: list[tuple[int, int]] = field(default_factory=list)
    turn: int | None = None
    group: Group | None = None
    member: int = 0
    guided_until: int | None = None
    lowrank: tuple[tuple[LowRank, float], ...] = ()
    sampler: Sampler | None = None
    guidance_scale: float | None = None

    @property
    def size(self) -> Size:
        """(h, w) of its latent. A call holds samples of one size."""
        return int(self.latent.shape[-2]), int(self.latent.shape[-1])

    def to(self, device: torch.device) -> None:
        """Take its latents, and those of what steers it, to the device of the network, where they stay."""
        self.latent = self.latent.to(device)
        self.ring = {step: z.to(device) for step, z in self.ring.items()}
        self.cleans = {step: z.to(device) for step, z in self.cleans.items()}
        if self.push is not None:
            self.push = self.push.to(device)
        if isinstance(self.nudge, OnDevice):
            self.nudge = self.nudge.to(device)
        if isinstance(self.guide, OnDevice):
            self.guide = self.guide.to(device)

    def back_to(self, step: int) -> None:
        """As it was before a step that it has taken, to find out why that step failed."""
        if step in self.ring:
            self.step, self.latent = step, self.ring.pop(step)
            self.cleans.pop(step, None)

    @property
    def own_rows(self) -> int:
        """Rows of its own at its step, references aside."""
        skipped = self.guided_until is not None and self.step >= self.guided_until
        return 1 if self.negative is None or skipped else 2

    def rows(self) -> int:
        return self.own_rows + (self.push.references_at(self.step) if self.push else 0)

    def peak_rows(self) -> int:
        """The most rows that a call has to hold for it, those of its group included."""
        alone = (1 if self.negative is None else 2) + (len(self.push.latents) if self.push else 0)
        return alone * self.group.size if self.group else alone

    def resumed(self, last: Trajectory, seed: int) -> Trajectory:
        """This trajectory with the values that a resumed one inherits: seed, sampler and its memory, guidance scale, turn,
        low-rank weights."""
        self.turn, self.sampler, self.guidance_scale = last.turn, last.sampler, last.guidance_scale
        self.seed, self.cleans = seed, {step: x0 for step, x0 in last.cleans.items() if step < self.step}
        self.lowrank = self.lowrank or last.lowrank
        return self
