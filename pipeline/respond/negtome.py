"""The answer of negative token merging: the reference's tokens beside the sample's own, and tokens pushed away from them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.engine.engine import Engine
from pipeline.engine.isolate import steering
from pipeline.engine.packed_call import reference_latents
from pipeline.model.compiled import refuse_compiled
from pipeline.model.conditioning import Conditioning, stack
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, next_seed, reseed, resumed
from pipeline.rungs import NegToMeRung
from pipeline.steer.feature_memory import SiteShape, bytes_a_step, site_shapes
from pipeline.steer.features import with_features
from pipeline.steer.masks import foreground
from pipeline.steer.negtome import NegToMe

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Size, Trajectory
    from pipeline.model.sampling.sampler import Sampler


def answer(failed: Failed, rung: NegToMeRung, tools: Tools) -> NextTry:
    """Resume with tokens pushed away from those of the nearest references; without a reference, a new seed."""
    if not failed.latents:
        return reseed(failed, rung, tools)
    failed, again, until = resumed(failed, rung, tools)
    features = tools.engine.features
    again.push = _push(failed, rung, tools, again.step, until)
    if features is not None and again.push.features is not None:
        # Computed once, and charged to every sample that uses them: a row, and what its budget allows, depend on no company.
        again.evals += len(again.push.features) * len(failed.nearest(rung.references)[0]) / again.own_rows
        again.rows_from = [(again.step, tools.engine.rows)]
    return NextTry(
        again, Intervention(kind="negtome", strength=rung.alpha, ref_ids=failed.nearest(rung.references)[0]), failed.seed
    )


def _push(failed: Failed, rung: NegToMeRung, tools: Tools, begin: int, until: int) -> NegToMe:
    engine, (ref_ids, latents) = tools.engine, failed.nearest(rung.references)
    fixed = rung.noise == "fixed"
    sampler = engine.sampler_of(failed.last)
    noises = tuple(engine.noise_like(failed.last, next_seed(int(ref_id[:8], 16), 0)) for ref_id in ref_ids) if fixed else None
    masks = tuple(foreground(z, tools.centre) for z in latents) if rung.masked else None
    settings = replace(_settings(rung, tools.reference_context, until), latents=latents, noises=noises, masks=masks)
    refuse_compiled(engine.model.network, "token merging")
    steps = [step for step in range(begin, len(sampler)) if settings.acts_at(step)]
    if engine.features is None or _carries(settings, engine, failed.last, len(steps)):
        return settings
    while True:
        try:
            return with_features(
                settings, steps, cache=engine.features, model=engine.model.digest, of_steps=len(sampler),
                rows=engine.rows, places=engine.model.sites(),
                noised=lambda push, step: reference_latents(sampler, push, step),
                denoise=lambda *rows: reference_call(engine, sampler, *rows),
            )  # fmt: skip
        except Exception as error:
            with steering("references' features", begin):
                engine.make_room(error)  # all samples continue with fewer rows, and the features are computed with as many


def _settings(rung: NegToMeRung, context: Conditioning, until: int) -> NegToMe:
    """A rung's settings, without references."""
    return NegToMe(
        latents=(),
        noises=None,
        context=context,
        alpha=rung.alpha,
        threshold=rung.token_threshold,
        until_step=until,
        match=rung.match,
        placement=rung.placement,
        keep_norm=rung.keep_norm,
        form=rung.form,
        temperature=rung.temperature,
        attention=rung.attention,
        rows=rung.rows,
        where=rung.blocks,
        min_tokens=rung.min_tokens,
        precision=rung.precision,
    )


def _carries(settings: NegToMe, engine: Engine, last: Trajectory, steps: int) -> bool:
    """Whether the references are carried as rows, because their features would take more memory than one attempt may.

    The bytes of the picture and the evaluations counted are the same. A call too small for the rows keeps features.
    """
    assert engine.features is not None
    if engine.features.most is None or (1 if last.negative is None else 2) + len(settings.latents) > engine.rows:
        return False
    each = bytes_a_step(_shapes(engine, settings.context, last.size), settings, engine.model.device)
    return each * steps * len(settings.latents) > engine.features.most


def _shapes(engine: Engine, context: Conditioning, size: Size) -> tuple[SiteShape, ...]:
    assert engine.features is not None
    if size not in engine.features.shapes:
        try:
            engine.features.shapes[size] = site_shapes(engine.model, context, size)
        except Exception:  # a network whose shapes depend on numbers: its features are kept, and the dry run says so
            engine.features.shapes[size] = ()
    return engine.features.shapes[size]


def feature_note(rung: NegToMeRung, engine: Engine, context: Conditioning, number: int) -> str:
    """A sentence on the memory that a rung's token features would take, where it is more than one attempt may; else empty.

    Args:
        rung, number: of the ladder, from 1.
        engine: with a feature cache.
        context: any conditioning of its model.
    """
    if engine.features is None or engine.features.most is None:
        return ""
    shapes, settings = _shapes(engine, context, engine.model.latent_shape[1:]), _settings(rung, context, 1)
    if not shapes:
        return f"rung {number} (negtome): the memory of its token features cannot be worked out for this class of model"
    each = bytes_a_step(shapes, settings, engine.model.device)
    steps = max(1, round(rung.window * len(engine.sampler)))
    need = each * steps * rung.references
    if need <= engine.features.most:
        return ""
    fits = engine.rows >= (2 if engine.guided else 1) + rung.references
    then = (
        "so its references are drawn as further rows of the calls, which costs time and no memory"
        if fits
        else f"and {engine.rows} rows a call have no room for its references: they are kept all the same; memory may run out"
    )
    return (
        f"rung {number} (negtome) would keep {need / 2**20:,.0f} MiB of token features for one attempt ({each / 2**20:,.0f} "
        f"MiB a step and reference, {steps} steps, references: {rung.references}), and feature_mib allows "
        f"{engine.features.most / 2**20:,.0f}: {then}. Set feature_mib higher, or min_tokens or blocks of the rung"
    )


def reference_call(
    engine: Engine, sampler: Sampler, latents: list[torch.Tensor], steps: list[int], contexts: list[Conditioning]
) -> torch.Tensor:
    """One denoiser call of reference rows alone, of one size and at steps of one sampler, padded as the engine pads."""
    import torch

    pad = engine.rows - len(latents)
    device, times = engine.model.device, [sampler.time(step, engine.model.device) for step in steps]
    output = engine.model.denoise(
        torch.stack(latents + [torch.zeros_like(latents[0])] * pad).to(device),
        torch.stack(times + [torch.zeros_like(times[0])] * pad),
        stack(contexts + [contexts[0].zeros()] * pad), engine.inner_guidance,
    )  # fmt: skip
    engine.count((int(latents[0].shape[-2]), int(latents[0].shape[-1])), len(latents))
    return output
