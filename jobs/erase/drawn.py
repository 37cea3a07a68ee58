"""Captioned pictures that a model draws itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import InputError
from jobs.erase.captioned import Captioned

if TYPE_CHECKING:
    from pipeline.config import GenerationConfig, ModelConfig
    from pipeline.outcome import Request

DRAWN = 32  # pictures under way at a time


def drawn_source(
    prompts: Path, model: ModelConfig, generation: GenerationConfig, *, pictures: int, seed: int = 0
) -> Iterator[Captioned]:
    """Pictures that the model itself draws of prompts: the closest training set for a model that draws marks.

    Args:
        prompts: a prompt file, as runs read them; negative prompts count too.
        model: the model that is to lose its marks.
        generation: how it is drawn.
        pictures: of every prompt.
        seed: of the noise, where the file names none.

    Raises:
        InputError: a prompt that cannot be drawn, or none.
        ConfigError, ModelError: see :func:`pipeline.model.load.load_model` and :class:`pipeline.engine.engine.Engine`.
    """
    from jobs.run.prompts.requests import read_prompts

    requests = read_prompts(prompts, base_seed=seed, samples_per_prompt=pictures)
    if wrong := [request for request in requests if request.problem is not None]:
        reason, what = wrong[0].problem or ("", "")
        raise InputError(
            f"{what} ({reason})", where=f"{prompts}: {wrong[0].key}", fix="Write the prompt anew, or remove its row"
        )
    if not requests:
        raise InputError("holds no prompts", where=str(prompts), fix="Write at least one")
    return _drawn(requests, model, generation)


def _drawn(requests: Sequence[Request], model: ModelConfig, generation: GenerationConfig) -> Iterator[Captioned]:
    import torch

    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.load import load_model
    from pipeline.model.sampling.presets import Facts, filled_in

    network = load_model(model)
    drawn = filled_in(generation, Facts.of_model(network)).generation
    engine = Engine(
        network, rows=generation.rows, steps=drawn.drawn_steps, guidance_scale=drawn.drawn_guidance,
        true_guidance_scale=generation.true_guidance_scale, scheduler=drawn.scheduler,
        eta=drawn.eta, spacing=drawn.timestep_spacing or "",
    )  # fmt: skip
    for at in range(0, len(requests), DRAWN):
        some = requests[at : at + DRAWN]
        contexts, negatives = (
            network.encode_prompts(texts) for texts in ([r.prompt for r in some], [r.negative_prompt for r in some])
        )
        done = engine.finish(
            [
                Trajectory(
                    tag=i,
                    latent=engine.initial_noise(r.seed),
                    step=0,
                    context=contexts[i],
                    negative=negatives[i] if engine.guided else None,
                    seed=r.seed,
                )
                for i, r in enumerate(some)
            ]
        )
        pictures = network.decode(torch.stack([done[i] for i in range(len(some))]))
        for request, picture in zip(some, pictures, strict=True):
            yield Captioned(f"{request.key}@{request.seed}", request.prompt, picture)
