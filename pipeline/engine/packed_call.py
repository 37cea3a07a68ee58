"""One denoiser call: rows packed from samples that stand at different steps, each with its own steering attached.

Every call has the same number of rows; those without an owner are padding. So a sample's answer depends neither on its place
nor on the other samples of the call, byte for byte (a declared group's depends on its members).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from pipeline.model.adapters.lowrank import LowRank, RowAdapter, adapted
from pipeline.model.compiled import refuse_compiled
from pipeline.model.conditioning import Conditioning, stack
from pipeline.steer.diversity import GroupRow, group_pushes
from pipeline.steer.negtome import NegToMe, RowPush, pushing

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.interface import DiffusionModel
    from pipeline.model.sampling.sampler import Sampler

Denoise = Callable[["torch.Tensor", "torch.Tensor", Conditioning, "float | torch.Tensor"], "torch.Tensor"]
Owners = list[tuple["Trajectory", int]]  # samples and the first row of each


def packed_call(
    model: DiffusionModel,
    sampler: Sampler,
    samples: Sequence[Trajectory],
    rows: int,
    inner_guidance: float,
    plain: Denoise | None = None,
) -> list[torch.Tensor]:
    """Run the denoiser once for some samples, each at its own step.

    Args:
        model, sampler: of the engine; the sampler is for samples without their own.
        samples: at least one, all of one size; together they own at most ``rows`` rows.
        rows: of the call.
        inner_guidance: the scale that a network with guidance inside takes, for samples without their own and for references.
        plain: makes the calls in which nothing acts on single rows, with the model's own bytes; None: the model.

    Returns:
        Of each sample the raw output for its own rows, float32 (1 or 2, C, h, w), the unconditional one first.
    """
    import torch

    latents: list[torch.Tensor] = []
    timesteps: list[torch.Tensor] = []
    context: list[Conditioning] = []
    guidance = [inner_guidance] * rows
    owners: Owners = []
    pushes: list[RowPush] = []
    for t in samples:
        first, own_sampler = len(latents), t.sampler or sampler
        if t.guidance_scale is not None:
            guidance[first : first + t.own_rows] = [t.guidance_scale] * t.own_rows
        owners.append((t, first))
        context += [t.context] if t.negative is None or t.own_rows == 1 else [t.negative, t.context]
        latents += [t.latent] * t.own_rows
        if t.push and t.push.acts_at(t.step):
            count = t.push.references_at(t.step)
            references = tuple(range(len(latents), len(latents) + count))
            pushes += [
                RowPush(row=row, references=references, settings=t.push, step=t.step, owner=first)
                for row in t.push.pushed(first, len(latents))
            ]
            latents += reference_latents(own_sampler, t.push, t.step)[:count]
            context += [t.push.context] * count
        timesteps += [own_sampler.time(t.step, t.latent.device)] * (len(latents) - first)
    for _ in range(rows - len(latents)):  # a constant row, so that nothing depends on leftovers
        latents.append(torch.zeros_like(latents[0]))
        context.append(samples[0].context.zeros())
        timesteps.append(torch.zeros_like(timesteps[0]))
    pushes += _pushes_of_groups(owners)
    if pushes:
        refuse_compiled(model.network, "token merging")
    adapters = _adapters(owners)
    denoise = model.denoise if pushes or adapters or plain is None else plain
    with pushing(model.sites() if pushes else (), pushes), adapted(model.network, adapters) if adapters else nullcontext():
        scales = guidance[0] if len(set(guidance)) == 1 else torch.tensor(guidance)
        output = denoise(torch.stack(latents), torch.stack(timesteps), stack(context), scales)
    return [output[first : first + t.own_rows] for t, first in owners]


def reference_latents(sampler: Sampler, push: NegToMe, step: int) -> list[torch.Tensor]:
    """The reference latents at the noise level of the step; clean where the push is set so."""
    if push.noises is None:
        return list(push.latents)
    return [sampler.noised(z, noise, step) for z, noise in zip(push.latents, push.noises, strict=True)]


def units(samples: Sequence[Trajectory]) -> dict[object, list[Trajectory]]:
    """The units of failure: every sample alone, a declared group as one; in the order given."""
    found: dict[object, list[Trajectory]] = {}
    for t in samples:
        found.setdefault(t.group.id if t.group else id(t), []).append(t)
    return found


def _adapters(owners: Owners) -> list[RowAdapter]:
    """Low-rank weights on the samples' own rows, not on those of their references: features of references, which may stand for
    these rows, are worked out once for all samples, without any.

    In rounded numbers (x + a) + b is not (x + b) + a. So every sample's adapters are added in its own order, whoever shares the
    call: first those that stand first with their samples, then those that stand second. Within such a turn each row has one.
    """
    wanted: dict[tuple[int, int, float], tuple[LowRank, list[int]]] = {}
    for t, first in owners:
        for turn, (weights, strength) in enumerate(t.lowrank):
            rows = range(first, first + t.own_rows)
            wanted.setdefault((turn, id(weights), strength), (weights, []))[1].extend(rows)
    turns = sorted(wanted.items(), key=lambda one: one[0][0])
    return [RowAdapter(weights, strength, tuple(rows)) for (_, _, strength), (weights, rows) in turns]


def _pushes_of_groups(owners: Owners) -> list[RowPush]:
    """Of every group in a call."""
    groups = {t.group.id: t.group for t, _ in owners if t.group}
    pushes: list[RowPush] = []
    for group in groups.values():
        rows = [
            GroupRow(row=first + i, group=group.id, member=t.member, branch=i + 2 - t.own_rows, step=t.step)
            for t, first in owners
            if t.group and t.group.id == group.id
            for i in range(t.own_rows)
        ]
        pushes += group_pushes(rows, {group.id: group.size}, group.settings)
    return pushes
