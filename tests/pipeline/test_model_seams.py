"""What a class of models declares about itself, on tiny random models: parts, conditionings, guidance, sites."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.conditioning import Conditioning, stack
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.families.refused import REFUSED, why_refused
from pipeline.model.families.registry import model_classes
from pipeline.model.load import load_model
from pipeline.model.sampling.choose import make_sampler
from tests.pipeline.families import (
    FAMILIES,
    PROMPT,
    Family,
    diffusers_pipeline,
    drawn_by,
    engine_of,
    finish,
    load,
    pixels,
    sample,
)

TOKENS = 24


def config_of(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), size=16, text_tokens=TOKENS, dtype="float32", **more)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(family.pipeline)


@pytest.fixture(scope="module")
def model(family: Family, folder: Path) -> LatentDiffusion:
    return load(family, folder)  # type: ignore[return-value]


def test_a_model_of_loaded_parts_draws_what_its_folder_draws(family: Family, model: LatentDiffusion, folder: Path) -> None:
    config = ModelConfig(path=str(folder), size=family.side, text_tokens=family.tokens, dtype="float32")
    again = type(model).of(dict(model._parts.components), config, digest="d")
    first, second = (finish(e := engine_of(family, one, steps=2), [sample(e, 1)])[1] for one in (model, again))
    assert torch.equal(first, second) and again.digest == "d"


def test_a_model_without_text_encoders_still_denoises(tiny_sdxl: Path) -> None:
    loaded = load_model(config_of(tiny_sdxl))
    parts = {name: loaded._parts.components[name] for name in ("unet", "vae", "scheduler")}  # type: ignore[attr-defined]
    again = model_classes()["StableDiffusionXLPipeline"].of(parts, config_of(tiny_sdxl))
    context = loaded.encode_prompts(["a cat", ""])
    z, time = torch.randn(2, *again.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    assert torch.equal(again.denoise(z, time, context), loaded.denoise(z, time, context))


def test_conditionings_of_prompts_are_what_a_call_stacks(model: LatentDiffusion) -> None:
    both = model.encode_prompts(["a red apple", ""])
    assert stack(list(both)).equal(both) and both[0].expand(2)[1].equal(both[0])
    assert not any(part.any() for part in both[1].zeros().parts)
    assert both[0].towards(both[1], 1.0).nbytes == model.conditioning_bytes


def test_a_conditioning_has_the_denoisers_number_format(family: Family, folder: Path) -> None:
    narrow, wide = (load(family, folder, dtype).encode_prompts(["a cat"]) for dtype in ("bfloat16", "float32"))
    assert narrow.tokens.dtype == torch.bfloat16 and narrow.tokens.nbytes == wide.tokens.nbytes // 2
    assert narrow.pooled is None or narrow.pooled.dtype == torch.bfloat16
    assert narrow.mask is None or narrow.mask.equal(wide.mask)


def test_strength_of_an_erasure_moves_embeddings_and_keeps_the_others_mask() -> None:
    mask = torch.tensor([True, False])
    here, there = Conditioning(torch.zeros(2, 3)), Conditioning(torch.ones(2, 3), mask)
    mixed = here.towards(there, 0.25)
    assert mixed.mask is mask and torch.equal(mixed.tokens, torch.full((2, 3), 0.25))


# --- what single classes declare --------------------------------------------------------------------------------------------


def test_a_distilled_flux_2_takes_one_row_and_no_guidance(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("Flux2KleinPipeline"), tmp_path / "klein")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"is_distilled": True}))
    family = FAMILIES["flux2"]
    model = load(family, folder)
    e = engine_of(family, model)
    ours = pixels(model, finish(e, [sample(e, 5, PROMPT)])[5])
    expected = drawn_by(diffusers_pipeline(folder, family.pipeline), family, 5)
    assert not e.guided and e.rows_used == len(e.sampler)
    assert (ours - expected).abs().max() < 5e-4


def test_z_image_has_guidance_from_a_scale_of_zero_on(tiny_model: Callable[[str], Path]) -> None:
    model = load(FAMILIES["z_image"], tiny_model("ZImagePipeline"))
    assert [model.guided(scale) for scale in (0.0, 0.5, 1.0)] == [False, True, True]
    negative, conditional = torch.zeros(4, 2, 2), torch.ones(4, 2, 2)
    assert torch.equal(model.combine(negative, conditional, 0.5), torch.full((4, 2, 2), 1.5))


def test_z_images_blocks_of_text_alone_have_no_sites(tiny_model: Callable[[str], Path]) -> None:
    model = load(FAMILIES["z_image"], tiny_model("ZImagePipeline"))
    assert {site.block.split(".")[0] for site in model.sites()} == {"noise_refiner", "layers"}


def test_qwen_image_keeps_the_length_of_every_token(tiny_model: Callable[[str], Path]) -> None:
    model = load(FAMILIES["qwen_image"], tiny_model("QwenImagePipeline"))
    negative, conditional = (torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(2))
    guided = model.combine(negative, conditional, 4.0)
    lengths, expected = (torch.nn.functional.pixel_unshuffle(x, 2).norm(dim=0) for x in (guided, conditional))
    assert torch.allclose(lengths, expected, rtol=1e-5) and not torch.allclose(guided, conditional)


def test_flux_2s_schedule_depends_on_size_and_steps(tiny_model: Callable[[str], Path]) -> None:
    model = load(FAMILIES["flux2"], tiny_model("Flux2KleinPipeline"))
    levels = {make_sampler(model, steps, positions=size).noise[1] for steps in (4, 8) for size in ((4, 4), (32, 32))}
    assert len(levels) == 4


def test_every_class_names_the_multiple_of_its_pictures_sides(folder: Path, model: LatentDiffusion) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert type(model).multiple_of(config) == model._pixels_per_latent * model.patch


@pytest.mark.parametrize("pipeline", REFUSED)
def test_refused_classes_are_not_among_those_that_are_drawn(pipeline: str) -> None:
    assert pipeline not in model_classes() and why_refused(pipeline)


@pytest.mark.parametrize(
    ("pipeline", "configs", "steps", "guidance"),
    [
        ("StableDiffusionXLPipeline", {}, 50, 5.0),
        ("FluxPipeline", {"transformer": {"guidance_embeds": True}}, 28, 3.5),
        ("FluxPipeline", {"transformer": {"guidance_embeds": False}}, 4, 0.0),
        ("Flux2Pipeline", {}, 50, 4.0),
        ("Flux2KleinPipeline", {"": {"is_distilled": False}}, 50, 4.0),
        ("Flux2KleinPipeline", {"": {"is_distilled": True}}, 4, 1.0),
        ("PixArtSigmaPipeline", {}, 20, 4.5),
        ("SanaPipeline", {}, 20, 4.5),
        ("ChromaPipeline", {"transformer": {}}, 35, 5.0),
    ],
)
def test_a_class_knows_how_its_folders_are_usually_drawn(
    pipeline: str, configs: dict[str, dict[str, bool]], steps: int, guidance: float
) -> None:
    found = model_classes()[pipeline].defaults(configs)
    assert (found.steps, found.guidance) == (steps, guidance)


@pytest.mark.parametrize(
    ("pipeline", "side", "size"),
    [
        ("PixArtSigmaPipeline", 256, 2048),
        ("PixArtAlphaPipeline", 64, 512),
        ("SanaPipeline", 16, 512),
        ("SanaPipeline", 128, 4096),
    ],
)
def test_the_size_of_a_folder_follows_its_networks(pipeline: str, side: int, size: int) -> None:
    assert model_classes()[pipeline].defaults({"transformer": {"sample_size": side}}).size == size


def test_every_class_has_defaults_that_it_could_be_drawn_with(family: Family, model: LatentDiffusion) -> None:
    found = type(model).defaults({})
    assert found.size % 64 == 0 and found.text_tokens in (None, type(model).text_tokens)


def test_every_class_of_diffusers_that_draws_from_text_is_drawn_with_or_refused_with_a_reason() -> None:
    """A new version of diffusers brings new ones: each gets a reason, or a class of ours."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    named = {kind.__name__ for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    assert len(named) > 30
    assert sorted(name for name in named if name not in model_classes() and not why_refused(name)) == []
