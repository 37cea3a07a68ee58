"""The engine denoises samples that stand at different steps, in calls of one fixed shape.

A sample owns one row, or two with classifier-free guidance (negative, conditional), and one more for every reference it is
pushed apart from. Rows without an owner are padding. Because the shape never changes, a sample's bytes do not depend on its
slot, its mates or the order of admission; it can be made again alone, years later. Every call is packed from scratch from all
waiting samples (:mod:`pipeline.engine.packing`), by the rows that each needs at its own step: a row that is not needed is free
at once, and a sample may miss a call.

A call holds samples of one size (h, w): each size has its own fixed shape (R, C, h, w) over the one model. Samples of different
numbers of steps and guidance scales share calls, because each has its own sampler and scale.

If the device's memory does not hold a call, the number of rows R is halved, and every sample continues from its latent.
R decides the last bits of a call. The promise is then: the same bytes for the same R at every step. Each trajectory
records the R it was drawn with (:attr:`pipeline.engine.trajectory.Trajectory.rows_from`).

The fixed shape also isolates failures: a sample that fails alone in a call ends, and no other (:mod:`pipeline.engine.isolate`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from index.errors import ConfigError, OutOfMemory
from index.padding import first_line, out_of_memory
from pipeline.engine.isolate import Failures, answers, mates_of, not_finite, shaped, steering
from pipeline.engine.packed_call import Denoise, packed_call, units
from pipeline.engine.packing import next_call, next_size, room
from pipeline.engine.readings import Call, Norms, Reading, pay
from pipeline.model.device import LESS
from pipeline.model.sampling.choose import make_sampler
from pipeline.model.sampling.sampler import counter_noise

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Size, Trajectory
    from pipeline.model.interface import DiffusionModel
    from pipeline.model.sampling.sampler import Sampler
    from pipeline.steer.features import FeatureCache


class Ended(NamedTuple):
    """The trajectories that a call ended.

    Attributes:
        finished: those that reached the last step.
        failed: those that failed for a reason of their own, with the error; the others are not affected.
    """

    finished: list[Trajectory]
    failed: Failures


class Filled(NamedTuple):
    """How full the calls of one size were.

    Attributes:
        calls: that were made.
        used: rows in them that had an owner.
        rows: all their rows.
    """

    calls: int = 0
    used: int = 0
    rows: int = 0


class Engine:
    """Denoises submitted trajectories, always ``rows`` rows at a time.

    Args:
        model: the diffusion model.
        rows: fixed number of rows per denoiser call.
        steps: denoising steps of samples that have no sampler of their own.
        guidance_scale: of samples that have none of their own: what the model combines a sample's two outputs with; for most
            classes w of classifier-free guidance, ε = ε_neg + w·(ε_text − ε_neg). A model with guidance inside takes it as an
            input, and w is ``true_guidance_scale``.
        true_guidance_scale: w of models with guidance inside.
        scheduler: the sampler's name; see :func:`pipeline.model.sampling.choose.make_sampler`.
        eta: η of DDIM.
        spacing: of the timesteps, if not the folder's own.
        guidance_until: share of the steps with classifier-free guidance; from then on a sample owns one row. Rounded to no step
            it is none, and a sample has no negative row at all.
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
        spacing: str = "",
        guidance_until: float = 1.0,
        references: int = 0,
    ) -> None:
        self.model, self.rows = model, rows
        self.guidance_scale = true_guidance_scale if model.distilled else guidance_scale
        self.least_rows = (2 if model.guided(self.guidance_scale) else 1) + references
        self.inner_guidance = guidance_scale
        self.sampler = make_sampler(model, steps, scheduler, eta=eta, spacing=spacing)
        self.steps, self._scheduler, self._eta, self._guidance_until = steps, scheduler, eta, guidance_until
        self._spacing = spacing
        self._samplers = {(model.latent_shape[1:], steps): self.sampler}
        self._waiting: list[Trajectory] = []
        self._running: list[Trajectory] = []  # those in the current call
        self._turns = 0
        self._passed_over = 0  # calls in a row that did not hold the oldest sample
        self.calls = 0
        self.rows_used = 0
        self.filled: dict[Size, Filled] = {}
        self.features: FeatureCache | None = None  # set it, and references are run once instead of beside every sample
        self.plain: Denoise | None = None  # set it, and it makes the calls in which nothing acts on single rows
        self.looked_at: Callable[[Trajectory], bool] = lambda t: False  # whether somebody is about to look at its norms
        self.late = model.device.type != "cpu"  # whether norms are read one call late; on the host there is nothing to wait for
        self._norms: list[Norms] = []  # of the last call, not asked for yet
        self._reading: Reading | None = None
        self._unpaid: list[Call] = []
        self._settled = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def full(self) -> bool:
        """Whether the waiting trajectories fill the next call."""
        return max(self._queued().values(), default=0) >= self.rows

    @property
    def room(self) -> bool:
        """Whether another request can be admitted; see :func:`pipeline.engine.packing.room`."""
        return room(self._queued().values(), self.rows)

    def _queued(self) -> Counter[Size]:
        """Rows under way, by size."""
        rows: Counter[Size] = Counter()
        for t in (*self._running, *self._waiting):
            rows[t.size] += t.rows()
        return rows

    @property
    def guided(self) -> bool:
        """Whether samples need a negative row, if they have no guidance scale of their own."""
        return self.guides(None)

    def guides(self, guidance_scale: float | None, steps: int | None = None) -> bool:
        """Whether a sample with that guidance scale and number of steps (None: the engine's) needs a negative row."""
        return self.asks_for_guidance(guidance_scale) and self.guided_steps(steps) > 0

    def asks_for_guidance(self, guidance_scale: float | None) -> bool:
        """Whether a sample with that guidance scale (None: the engine's) is guided in any step that has guidance."""
        return self.model.guided(self._combined(guidance_scale))

    def guided_steps(self, steps: int | None = None) -> int:
        """How many of so many steps (None: the engine's) have guidance: the first ones. A small share rounds to none."""
        return round(self._guidance_until * (steps or self.steps))

    def how_to_guide(self, stated: float | None = None, steps: int | None = None) -> str:
        """How a sample of that scale and number of steps (None: the engine's) gets a negative row; empty: it cannot."""
        if not self.model.guided(math.inf):
            return ""
        if self.asks_for_guidance(stated) and not self.guided_steps(steps):
            return f"Set generation.guidance_until above {0.5 / (own := steps or self.steps):g}, which is half a step of {own}"
        least = 0 if self.model.guided(0.5) else 1
        if stated is None or self.model.distilled:
            return f"Set generation.{'true_' if self.model.distilled else ''}guidance_scale above {least}"
        return f"Raise the row's guidance_scale above {least}" + (", or leave the field empty" if self.guided else "")

    def guidance_of(self, t: Trajectory) -> float:
        """The scale that the model combines a sample's two outputs with."""
        return self._combined(t.guidance_scale)

    def _combined(self, own: float | None) -> float:
        return self.guidance_scale if own is None or self.model.distilled else own

    def sampler_for(self, size: Size, steps: int | None = None) -> Sampler:
        """The sampler for latents of (h, w) positions and a number of steps (None: the engine's); each is made once.

        Raises:
            ConfigError: the model has no such schedule.
        """
        key = (size, steps or self.steps)
        if key not in self._samplers:
            self._samplers[key] = make_sampler(
                self.model, key[1], self._scheduler, eta=self._eta, positions=size, spacing=self._spacing
            )
        return self._samplers[key]

    def sampler_of(self, t: Trajectory) -> Sampler:
        """A sample's own sampler, or that of the engine for its size."""
        return self.sampler_for(t.size) if t.sampler is None else t.sampler

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
        step, sampler = trajectory.step, self.sampler_of(trajectory)
        absent = [n for n in range(step - sampler.needs_memory(step), step) if n not in trajectory.cleans]
        if absent:
            raise ValueError(f"{sampler.name} resumes at step {step} only with x̂0 of step {absent[-1]}: call resumed()")
        if trajectory.turn is None:
            trajectory.turn, self._turns = self._turns, self._turns + 1
        trajectory.sampler = sampler
        if trajectory.guided_until is None:
            trajectory.guided_until = self.guided_steps(len(sampler))
        trajectory.to(self.model.device)
        self._waiting.append(trajectory)

    def initial_noise(self, seed: int, sampler: Sampler | None = None, size: Size | None = None) -> torch.Tensor:
        """The latent a seed starts from, float32 (C, h, w): what diffusers draws with a CPU generator of that seed.

        Args:
            seed: the seed.
            sampler: that it is for; None: the engine's.
            size: (h, w) of the latent; None: the model's own.
        """
        import torch

        shape, scale = self.model.latent_shape, (sampler or self.sampler).initial_scale
        noise = torch.randn(shape[:1] + (size or shape[1:]), generator=torch.Generator().manual_seed(seed))
        return noise if scale == 1 else scale * noise

    def noise_like(self, t: Trajectory, seed: int) -> torch.Tensor:
        """The latent that a sample of this one's size and sampler starts from with another seed."""
        return self.initial_noise(seed, self.sampler_of(t), t.size)

    def make_call(self) -> Ended:
        """Make one denoiser call; no trajectory ends when memory ran out and R was halved.

        What fails for one sample alone (what steers it, its latent, the network on it) ends that sample; see
        :mod:`pipeline.engine.isolate`. The others keep their bytes. On an accelerator a latent that is not finite is found one
        call late (:mod:`pipeline.engine.readings`), but never after its sample has finished or a probe has looked at it.

        Raises:
            OutOfMemory: not even the fewest rows fit into memory.
            ConfigError: only parts of groups are left.
        """
        self._admit()
        if not self._running:
            return Ended([], [])
        try:
            answered, failed = answers(self._call, self._running)
        except Exception as error:
            self.make_room(error)
            return Ended([], [])
        late = self.settle()  # of the call before, now that the device has work
        found = {id(t) for t, _ in late}  # what is not finite may fail again here: its first failure counts
        failed = [*late, *((t, error) for t, error in failed if id(t) not in found)]
        ended = {id(t) for t, _ in failed}
        for t, output in answered:
            if id(t) in ended:
                continue
            try:
                self._advance(t, output)
            except Exception as error:
                failed.append((t, error))
        if self._norms:
            self._reading = Reading(self._norms, self._unpaid)
            self._norms, self._unpaid = [], []
        if not self.late or any(t.step == len(self.sampler_of(t)) or self.looked_at(t) for t in self._running):
            failed += self.settle()
        self._end([t for t, _ in failed])
        finished = [t for t in self._running if t.step == len(self.sampler_of(t))]
        self.withdraw(finished)
        bereft = mates_of(failed, (*self._running, *self._waiting))  # the call before may have held them, and not this one
        self._end([t for t, _ in bereft])
        return Ended(finished, [*failed, *bereft])

    def step(self) -> list[Trajectory]:
        """:meth:`make_call` for callers that need every sample; returns the finished ones.

        Raises:
            OutOfMemory, ConfigError: as there.
            whatever ended the first sample that failed.
        """
        ended = self.make_call()
        if ended.failed:
            raise ended.failed[0][1]
        return ended.finished

    def finish(self, trajectories: Sequence[Trajectory]) -> dict[int, torch.Tensor]:
        """Submit, and run to the end: tag → latent float32 (C, h, w)."""
        for trajectory in trajectories:
            self.submit(trajectory)
        done: dict[int, torch.Tensor] = {}
        while self.busy:
            done |= {trajectory.tag: trajectory.latent for trajectory in self.step()}
        return done

    def abandon(self) -> list[Trajectory]:
        """Give up the trajectories of the current call, or all waiting ones where none could be chosen; returns them."""
        if not self._running:
            self._running, self._waiting = self._waiting, []
        abandoned, self._running = self._running, []
        return abandoned

    @property
    def running(self) -> tuple[Trajectory, ...]:
        """The trajectories under way; after :meth:`make_call` each has just taken the step before its own."""
        return tuple(self._running)

    def take_out(self, tag: int) -> list[Trajectory]:
        """Take a sample out, whether it runs or waits; returns its trajectory. No call draws its group's mates without it."""
        out = [t for t in (*self._running, *self._waiting) if t.tag == tag]
        self._running = [t for t in self._running if t.tag != tag]
        self._waiting = [t for t in self._waiting if t.tag != tag]
        return out

    def take_out_group(self, group: str) -> list[Trajectory]:
        """Take out every member of a group that runs or waits; returns them."""
        out = [t for t in (*self._running, *self._waiting) if t.group and t.group.id == group]
        for t in out:
            self.take_out(t.tag)
        return out

    def withdraw(self, trajectories: Sequence[Trajectory]) -> None:
        """Take running trajectories out: ended, or to be resumed in another way; their rows are free at the next call."""
        out = {id(trajectory) for trajectory in trajectories}
        self._running = [t for t in self._running if id(t) not in out]

    def _end(self, trajectories: Sequence[Trajectory]) -> None:
        """Take trajectories out, running or waiting."""
        self.withdraw(trajectories)
        out = {id(trajectory) for trajectory in trajectories}
        self._waiting = [t for t in self._waiting if id(t) not in out]

    def settle(self) -> Failures:
        """Read the norms of the last call, if they were not read yet; returns the samples under way whose latent is not finite,
        each at the step that made it so."""
        if self._reading is None:
            return []
        reading, self._reading = self._reading, None
        found, now = reading.read(), time.perf_counter()
        pay(reading.calls, self._settled, now)
        self._settled = now
        failed: Failures = []
        under_way = {id(t) for t in (*self._running, *self._waiting)}
        for t, step, rows, change, guidance in found:
            if guidance is not None:
                t.guidance_norms.append(guidance)
            if math.isfinite(change):
                t.update_norms.append(change)
            elif id(t) in under_way:
                t.back_to(step)
                failed.append((t, not_finite(self._call, t, rows)))
        return failed

    def _admit(self) -> None:
        """Choose the trajectories of the next call, all of one size; a group as one, and only when all of it is there."""
        units_by_key = units(sorted((*self._running, *self._waiting), key=lambda t: t.turn or 0))
        ready = {key: unit for key, unit in units_by_key.items() if not (unit[0].group and len(unit) < unit[0].group.size)}
        if units_by_key and not ready:
            key, unit = next(iter(units_by_key.items()))
            self._running, self._waiting = unit, [t for other in units_by_key.values() if other is not unit for t in other]
            raise ConfigError(
                f"only {len(unit)} of its members were submitted", where=f"group {key!r}", fix="Submit all, then step"
            )
        queues: dict[Size, list[list[Trajectory]]] = {}  # by size, that of the oldest first
        for unit in ready.values():
            queues.setdefault(unit[0].size, []).append(unit)
        queued = [sum(t.rows() for unit in queue for t in unit) for queue in queues.values()]
        which = next_size(queued, self.rows, self._passed_over)
        self._passed_over = self._passed_over + 1 if which else 0
        standing = list(queues.values())[which] if queues else []
        needs = [(sum(t.rows() for t in unit), len(self.sampler_of(unit[0])) - unit[0].step) for unit in standing]
        self._running = [t for i in next_call(needs, self.rows) for t in standing[i]]
        running = {id(t) for t in self._running}
        self._waiting = [t for unit in units_by_key.values() for t in unit if id(t) not in running]

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
        self._waiting, self._running = [*self._waiting, *self._running], []

    def _call(self, samples: Sequence[Trajectory]) -> list[torch.Tensor]:
        """The network's output for each sample's own rows; its cost is shared out when it has been waited for."""
        began = time.perf_counter()
        outputs = packed_call(self.model, self.sampler, samples, self.rows, self.inner_guidance, self.plain)
        call = Call([(t, t.rows()) for t in samples], began)
        self.count(samples[0].size, sum(rows for _, rows in call.samples))
        self._unpaid.append(call)
        return outputs

    def count(self, size: Size, used: int) -> None:
        """Count a call of that size, with so many rows that had an owner."""
        self.calls += 1
        self.rows_used += used
        before = self.filled.get(size, Filled())
        self.filled[size] = Filled(before.calls + 1, before.used + used, before.rows + self.rows)

    def _advance(self, t: Trajectory, rows: torch.Tensor) -> None:
        """One step of the sampler from the network's output for the sample's own rows (1 or 2, C, h, w).

        Whether its latent is finite comes out when the norms are read: see :meth:`settle`.

        Raises:
            SteeringFailed, OutOfMemory: what steers it failed.
        """
        t.evals += t.rows() / (1 if t.negative is None else 2)
        output, norm, sampler = rows[-1], None, self.sampler_of(t)
        if len(rows) == 2:
            norm = (rows[1] - rows[0]).norm()
            if t.guide is None:
                output = self.model.combine(rows[0], rows[1], self.guidance_of(t))
            else:
                with steering("guidance", t.step):
                    output = shaped(t.guide(t.latent, rows[0], rows[1], t.step), rows[1])
        clean, noise = sampler.clean(t.latent, output, t.step)
        if t.nudge is not None:
            with steering("nudge", t.step):
                clean = shaped(t.nudge(clean, t.step, noise), clean)
        fresh = counter_noise(t.seed, t.step, tuple(clean.shape)).to(clean.device) if sampler.fresh else None
        before, older = t.cleans.get(t.step - 1), t.cleans.get(t.step - 2)
        latent = sampler.advance(clean, noise, t.step, before=before, older=older, fresh=fresh)
        self._norms.append(Norms(t, t.step, rows, (latent - t.latent).norm(), norm))
        t.ring[t.step], t.latent, t.clean = t.latent, latent, clean
        if sampler.correction:
            t.cleans[t.step] = clean
        if not t.rows_from or t.rows_from[-1][1] != self.rows:
            t.rows_from.append((t.step, self.rows))
        t.step += 1
