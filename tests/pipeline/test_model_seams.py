"""What a class of models declares about itself, on tiny random models: parts, conditionings, guidance, sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.families import load_model, model_classes
from pipeline.model.latent import LatentDiffusion, quiet

STEPS, TOKENS = 2, 24
FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def config_of(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), size=16, text_tokens=TOKENS, dtype="float32", **more)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentDiffusion:
    return load_model(config_of(folder))  # type: ignore[return-value]


def drawn(model: Any) -> torch.Tensor:
    e = Engine(model, rows=4, steps=STEPS, guidance_scale=3.0)
    text, empty = model.encode_prompts(["a red apple", ""])
    t = Trajectory(tag=0, latent=e.initial_noise(1), step=0, context=text, negative=empty if e.guided else None)
    return e.finish([t])[0]


def test_a_model_of_loaded_parts_draws_what_its_folder_draws(model: LatentDiffusion, folder: Path) -> None:
    parts = dict(model._parts.components)
    again = type(model).of(parts, config_of(folder), digest="d")
    assert torch.equal(drawn(again), drawn(model)) and again.digest == "d"


def test_a_model_without_text_encoders_still_denoises(tiny_sdxl: Path) -> None:
    loaded = load_model(config_of(tiny_sdxl))
    parts = {name: loaded._parts.components[name] for name in ("unet", "vae", "scheduler")}  # type: ignore[attr-defined]
    again = model_classes()["StableDiffusionXLPipeline"].of(parts, config_of(tiny_sdxl))
    again._token_shape = loaded._token_shape  # type: ignore[attr-defined]
    context = loaded.encode_prompts(["a cat", ""])
    z, time = torch.randn(2, *again.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    assert torch.equal(again.denoise(z, time, context), loaded.denoise(z, time, context))


def test_a_picture_that_is_not_square_equals_diffusers(folder: Path) -> None:
    """The denoiser takes height and width from the latents that it is shown."""
    model: Any = load_model(config_of(folder))
    pipe, name = model._parts, type(model._parts).__name__
    model.latent_shape = (model.latent_shape[0], 8, 12)
    pipe.set_progress_bar_config(disable=True)
    more = {"max_sequence_length": TOKENS} if name in ("StableDiffusion3Pipeline", "FluxPipeline") else {}
    with quiet():
        out = pipe("a red apple", num_inference_steps=STEPS, guidance_scale=3.0, height=16, width=24, output_type="latent",
                   generator=torch.Generator().manual_seed(1), **more).images  # fmt: skip
    theirs = pipe._unpack_latents(out, 16, 24, 2)[0] if name == "FluxPipeline" else out[0]
    assert torch.allclose(drawn(model), theirs, atol=2e-4, rtol=1e-3)
