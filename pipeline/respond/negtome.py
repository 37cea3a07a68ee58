"""The answer of negative token merging: the reference's tokens beside the sample's own, and tokens pushed away from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engine.engine import Engine
from pipeline.engine.isolate import steering
from pipeline.engine.packed_call import reference_latents
from pipeline.model.conditioning import Conditioning, stack
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, next_seed, reseed, resumed
from pipeline.rungs import NegToMeRung
from pipeline.steer.features import with_features
from pipeline.steer.masks import foreground
from pipeline.steer.negtome import NegToMe

if TYPE_CHECKING:
    import torch

    from pipeline.model.sampler import Sampler


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
    settings = NegToMe(
        latents=latents,
        noises=noises,
        context=tools.reference_context,
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
        masks=tuple(foreground(z, tools.centre) for z in latents) if rung.masked else None,
    )
    if engine.features is None:
        return settings
    steps = [step for step in range(begin, len(sampler)) if settings.acts_at(step)]
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
