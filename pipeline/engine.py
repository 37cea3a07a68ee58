"""The engine: a row packer that denoises samples standing at different steps in one call of fixed shape.

A sample owns one row, or two with classifier-free guidance (negative, conditional), and one more for every reference it is
pushed apart from. Rows nobody owns are padding. Because the shape never changes, a sample's bytes do not depend on its slot,
its mates or the order of admission; it can be made again alone, years later. So every call is packed anew from all standing
samples (:mod:`pipeline.packing`), by what each needs at its own step: rows return to the pool the moment they are not needed,
and a sample may sit a call out.

Where the device's memory does not hold a call, the number of rows R is halved and everybody goes on from the latent he has.
R decides the last bits of a call, so what is promised then is: the same bytes for the same R at every step, and each
trajectory keeps which R it was drawn with (:attr:`Trajectory.rows_from`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from index.errors import ConfigError, OutOfMemory
from index.padding import first_line, out_of_memory
from pipeline.model.families import LESS
from pipeline.model.lowrank import LowRank, RowAdapter, adapted
from pipeline.model.samplers import counter_noise, make_sampler
from pipeline.packing import next_call
from pipeline.steer.negtome import NegToMe, RowPush

if TYPE_CHECKING:
    import torch

    from pipeline.model.families import DiffusionModel
    from pipeline.steer.diversity import Group
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
        cleans: x̂0 of every step taken, for samplers with memory (2M): what a rollback restores it from, beside the ring.
        rows_from: (step, R): from that step on its calls had R rows, that of its references' features before its own. More than
            one entry only after memory ran out.
        turn: its place in the queue, given when it is submitted; a resumed one keeps its sample's.
        group: the declared group whose members push one another apart, or None; not together with ``push``. A next attempt
            stands alone: its mates have ended.
        member: its number in the group.
        guided_until: classifier-free guidance acts in steps below this one, and then the negative row goes back to the pool.
            The engine's own, unless set before.
        lowrank: low-rank weights for this sample's rows alone, each with its strength.
    """

    tag: int
    latent: torch.Tensor
    step: int
    context: torch.Tensor
    negative: torch.Tensor | None
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
        """This trajectory with what a resumed one inherits of its sample: seed, sampler's memory, turn, low-rank weights."""
        self.turn = last.turn
        self.seed, self.cleans = seed, {step: x0 for step, x0 in last.cleans.items() if step < self.step}
        self.lowrank = self.lowrank or last.lowrank
        return self


class Engine:
    """Denoises submitted trajectories, always ``rows`` rows at a time.

    Args:
        model: the diffusion model.
        rows: fixed number of rows per denoiser call.
        steps: denoising steps.
        guidance_scale: classifier-free guidance scale w: ε = ε_neg + w·(ε_text − ε_neg). A model with guidance inside is told
            it instead, and w is ``true_guidance_scale``.
        true_guidance_scale: w of models with guidance inside.
        scheduler: the sampler's name; see :func:`pipeline.model.samplers.make_sampler`.
        eta: η of DDIM.
        guidance_until: share of the steps with classifier-free guidance; from then on a sample owns one row.
        references: the most references a steered sample may come to be pushed apart from; halving leaves room for them.
    """

    def __init__(
        self,
        model: DiffusionModel,
        *,
        rows: int,
        steps: int,
        guidance_scale: float,
        true_guidance_scale: float = 1.0,
        scheduler: str = "auto",
        eta: float = 0.0,
        guidance_until: float = 1.0,
        references: int = 0,
    ) -> None:
        self.model, self.rows = model, rows
        self.guidance_scale = true_guidance_scale if model.distilled else guidance_scale
        self.least_rows = (2 if self.guided else 1) + references
        self.told_guidance = guidance_scale
        self.sampler = make_sampler(model, steps, scheduler, eta=eta)
        self.guided_until = round(guidance_until * len(self.sampler))
        self._waiting: list[Trajectory] = []
        self._running: list[Trajectory] = []  # those in the current call
        self._turns = 0
        self.calls = 0
        self.rows_used = 0
        self.features: FeatureCache | None = None  # set it, and references are run once instead of beside every sample

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def guided(self) -> bool:
        """Whether samples need a negative row."""
        return self.guidance_scale > 1

    def submit(self, trajectory: Trajectory) -> None:
        """Queue a trajectory. Raises ConfigError when it could never fit, ValueError when its sampler's memory is missing."""
        if trajectory.peak_rows() > self.rows:
            raise ConfigError(
                f"a sample needs {trajectory.peak_rows()} rows, the engine has {self.rows}",
                where="generation.rows",
                fix="Raise it, or steer with fewer references, or make groups smaller",
            )
        if trajectory.group and trajectory.push:
            raise ValueError("a sample is pushed from references or from its group's mates, not both")
        step = trajectory.step
        if self.sampler.needs_memory(step) and step - 1 not in trajectory.cleans:
            raise ValueError(f"{self.sampler.name} resumes at step {step} only with x̂0 of step {step - 1}: call resumed()")
        if trajectory.turn is None:
            trajectory.turn, self._turns = self._turns, self._turns + 1
        if trajectory.guided_until is None:
            trajectory.guided_until = self.guided_until
        self._waiting.append(trajectory)

    def initial_noise(self, seed: int) -> torch.Tensor:
        """The latent a seed starts from, float32 (C, h, w): what diffusers draws with a CPU generator of that seed."""
        import torch

        noise = torch.randn(self.model.latent_shape, generator=torch.Generator().manual_seed(seed))
        return noise if self.sampler.initial_scale == 1 else self.sampler.initial_scale * noise

    def step(self) -> list[Trajectory]:
        """Make one denoiser call; returns the trajectories that reached the end (none when memory ran out and R was halved).

        Raises:
            OutOfMemory: not even the fewest rows fit into memory.
        """
        self._admit()
        if not self._running:
            return []
        began = time.perf_counter()
        latents, timesteps, context, owners, pushes = self._pack()
        try:
            with self._pushing(pushes), self._adapting(owners):
                output = self.model.denoise(latents, timesteps, context, self.told_guidance)
        except (RuntimeError, MemoryError) as error:
            self.make_room(error)
            return []
        used = sum(t.rows() for t in self._running)
        seconds = (time.perf_counter() - began) / used
        self.calls += 1
        self.rows_used += used
        for trajectory, first in owners:
            trajectory.device_seconds += seconds * trajectory.rows()
            trajectory.evals += trajectory.rows() / (1 if trajectory.negative is None else 2)
            self._advance(trajectory, output[first : first + trajectory.own_rows])
        finished = [t for t in self._running if t.step == len(self.sampler)]
        self._running = [t for t in self._running if t.step < len(self.sampler)]
        return finished

    def finish(self, trajectories: Sequence[Trajectory]) -> dict[int, torch.Tensor]:
        """Submit, and run to the end: tag → latent float32 (C, h, w)."""
        for trajectory in trajectories:
            self.submit(trajectory)
        done: dict[int, torch.Tensor] = {}
        while self.busy:
            done |= {trajectory.tag: trajectory.latent for trajectory in self.step()}
        return done

    def abandon(self) -> list[Trajectory]:
        """Give up those in the current call (not who waits); returns them."""
        abandoned, self._running = self._running, []
        return abandoned

    @property
    def running(self) -> tuple[Trajectory, ...]:
        """Those under way; after :meth:`step` each has just taken the step before its own."""
        return tuple(self._running)

    def withdraw(self, trajectories: Sequence[Trajectory]) -> None:
        """Take running trajectories out, to be resumed in another way; their rows are free at the next call."""
        out = {id(trajectory) for trajectory in trajectories}
        self._running = [t for t in self._running if id(t) not in out]

    def _admit(self) -> None:
        """Choose who shares the next call, of all that stand; a group as one, and only when all of it is there."""
        units: dict[object, list[Trajectory]] = {}
        for t in sorted((*self._running, *self._waiting), key=lambda t: t.turn or 0):
            units.setdefault(t.group.id if t.group else id(t), []).append(t)
        ready = {key: unit for key, unit in units.items() if not (unit[0].group and len(unit) < unit[0].group.size)}
        if units and not ready:
            key, unit = next(iter(units.items()))
            self._running, self._waiting = unit, [t for other in units.values() if other is not unit for t in other]
            raise ConfigError(
                f"only {len(unit)} of its members were submitted", where=f"group {key!r}", fix="Submit all, then step"
            )
        standing = list(ready.values())
        chosen = next_call([(sum(t.rows() for t in unit), len(self.sampler) - unit[0].step) for unit in standing], self.rows)
        self._running = [t for i in chosen for t in standing[i]]
        running = {id(t) for t in self._running}
        self._waiting = [t for unit in units.values() for t in unit if id(t) not in running]

    def make_room(self, error: Exception) -> None:
        """After a denoiser call that failed: if memory ran out, half the rows from now on, but enough for every sample.

        Raises:
            OutOfMemory: there are no rows to give up.
            the error itself: it was another one.
        """
        if not out_of_memory(error):
            raise error
        fewer = max(self.rows // 2, self.least_rows, *(t.peak_rows() for t in (*self._running, *self._waiting)))
        if fewer >= self.rows:
            what = f"a call of {self.rows} rows does not fit into memory, and a sample needs them ({first_line(error)})"
            raise OutOfMemory(what, where="denoiser", fix=f"{LESS}; steering with fewer references needs fewer rows") from error
        self.rows = fewer
        self._waiting += self.abandon()

    def _pack(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[Trajectory, int]], list[RowPush]]:
        import torch

        latents: list[torch.Tensor] = []
        timesteps: list[float] = []
        context: list[torch.Tensor] = []
        owners: list[tuple[Trajectory, int]] = []
        pushes: list[RowPush] = []
        for t in self._running:
            first = len(latents)
            owners.append((t, first))
            context += [t.context] if t.negative is None or t.own_rows == 1 else [t.negative, t.context]
            latents += [t.latent] * t.own_rows
            if t.push and t.push.acts_at(t.step):
                count = t.push.references_at(t.step)
                references = tuple(range(len(latents), len(latents) + count))
                pushes += [RowPush(row, references, t.push, t.step, first) for row in range(first, len(latents))]
                latents += self.reference_latents(t.push, t.step)[:count]
                context += [t.push.context] * count
            timesteps += [self.sampler.timesteps[t.step]] * (len(latents) - first)
        for _ in range(self.rows - len(latents)):  # a constant row, so that nothing depends on leftovers
            latents.append(torch.zeros(self.model.latent_shape))
            context.append(torch.zeros_like(self._running[0].context))
            timesteps.append(0)
        pushes += _pushes_of_groups(owners)
        return torch.stack(latents), torch.tensor(timesteps), torch.stack(context), owners, pushes

    def reference_latents(self, push: NegToMe, step: int) -> list[torch.Tensor]:
        """The reference latents at the noise level of the step; clean where the push says so."""
        if push.noises is None:
            return list(push.latents)
        return [self.sampler.noised(z, noise, step) for z, noise in zip(push.latents, push.noises, strict=True)]

    def _pushing(self, pushes: list[RowPush]):  # type: ignore[no-untyped-def]
        from pipeline.steer.negtome import pushing

        return pushing(self.model.attention_blocks(), pushes)

    def _adapting(self, owners: list[tuple[Trajectory, int]]) -> AbstractContextManager[None]:
        """Low-rank weights on the rows of the samples that want them."""
        wanted: dict[tuple[int, float], tuple[LowRank, list[int]]] = {}
        for t, first in owners:
            for weights, strength in t.lowrank:
                wanted.setdefault((id(weights), strength), (weights, []))[1].extend(range(first, first + t.rows()))
        if not wanted:
            return nullcontext()
        rows = [RowAdapter(weights, strength, tuple(rows)) for (_, strength), (weights, rows) in wanted.items()]
        return adapted(self.model.network, rows)

    def _advance(self, t: Trajectory, rows: torch.Tensor) -> None:
        """One step of the sampler from the network's output for the sample's own rows (1 or 2, C, h, w)."""
        output = rows[-1]
        if len(rows) == 2:
            difference = output - rows[0]
            t.guidance_norms.append(float(difference.norm()))
            output = rows[0] + self.guidance_scale * difference
            if t.guide is not None:
                output = t.guide(t.latent, rows[0], rows[1], t.step)
        clean, noise = self.sampler.clean(t.latent, output, t.step)
        if t.nudge is not None:
            clean = t.nudge(clean, t.step, noise)
        fresh = counter_noise(t.seed, t.step, tuple(clean.shape)) if self.sampler.fresh else None
        t.ring[t.step] = t.latent
        t.latent = self.sampler.advance(clean, noise, t.step, before=t.cleans.get(t.step - 1), fresh=fresh)
        t.clean = clean
        t.update_norms.append(float((t.latent - t.ring[t.step]).norm()))
        if self.sampler.correction:
            t.cleans[t.step] = clean
        if not t.rows_from or t.rows_from[-1][1] != self.rows:
            t.rows_from.append((t.step, self.rows))
        t.step += 1


def _pushes_of_groups(owners: list[tuple[Trajectory, int]]) -> list[RowPush]:
    """Of every group in a call; ``owners``: its samples and the first row of each."""
    from pipeline.steer.diversity import GroupRow, group_pushes

    groups = {t.group.id: t.group for t, _ in owners if t.group}
    pushes: list[RowPush] = []
    for group in groups.values():
        rows = [
            GroupRow(first + i, group.id, t.member, i + 2 - t.own_rows, t.step)
            for t, first in owners
            if t.group and t.group.id == group.id
            for i in range(t.own_rows)
        ]
        pushes += group_pushes(rows, {group.id: group.size}, group.settings)
    return pushes
