"""What a class of models declares about itself, on tiny random models: parts, conditionings, guidance, sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.conditioning import Conditioning, stack
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
    context = loaded.encode_prompts(["a cat", ""])
    z, time = torch.randn(2, *again.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    assert torch.equal(again.denoise(z, time, context), loaded.denoise(z, time, context))


def test_a_picture_that_is_not_square_equals_diffusers(folder: Path) -> None:
    """The denoiser takes height and width from the latents that it is shown."""
    model: Any = load_model(ModelConfig(path=str(folder), width=24, height=16, text_tokens=TOKENS, dtype="float32"))
    pipe, name = model._parts, type(model._parts).__name__
    pipe.set_progress_bar_config(disable=True)
    more = {"max_sequence_length": TOKENS} if name in ("StableDiffusion3Pipeline", "FluxPipeline") else {}
    with quiet():
        out = pipe("a red apple", num_inference_steps=STEPS, guidance_scale=3.0, height=16, width=24, output_type="latent",
                   generator=torch.Generator().manual_seed(1), **more).images  # fmt: skip
    theirs = pipe._unpack_latents(out, 16, 24, 2)[0] if name == "FluxPipeline" else out[0]
    assert torch.allclose(drawn(model), theirs, atol=2e-4, rtol=1e-3)


def test_conditionings_of_prompts_are_what_a_call_stacks(model: LatentDiffusion) -> None:
    both = model.encode_prompts(["a red apple", ""])
    assert stack(list(both)).equal(both) and both[0].expand(2)[1].equal(both[0])
    assert not any(part.any() for part in both[1].zeros().parts)
    assert both[0].towards(both[1], 1.0).nbytes == model.conditioning_bytes


def test_a_conditioning_has_the_denoisers_number_format(folder: Path) -> None:
    narrow: Any = load_model(ModelConfig(path=str(folder), size=16, text_tokens=TOKENS, dtype="bfloat16"))
    wide = load_model(config_of(folder)).encode_prompts(["a cat"])
    assert {part.dtype for part in narrow.encode_prompts(["a cat"]).parts} == {torch.bfloat16}
    assert narrow.conditioning_bytes == wide.nbytes // 2


def test_strength_of_an_erasure_moves_embeddings_and_keeps_the_others_mask() -> None:
    mask = torch.tensor([True, False])
    here, there = Conditioning(torch.zeros(2, 3)), Conditioning(torch.ones(2, 3), mask)
    mixed = here.towards(there, 0.25)
    assert mixed.mask is mask and torch.equal(mixed.tokens, torch.full((2, 3), 0.25))
