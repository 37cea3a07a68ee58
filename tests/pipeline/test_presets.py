"""Presets of few-step models: what they fill in, what they refuse, when a folder asks for one; LCMs with guidance inside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from index.errors import ConfigError
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.model.load import load_model, look_at
from pipeline.model.sampling.choose import make_sampler
from pipeline.model.sampling.presets import PRESETS, Facts, filled_in
from pipeline.policy import Policy
from pipeline.runtime import Runtime

SD = Facts(pipeline="StableDiffusionXLPipeline", flow=False, scheduler={"_class_name": "EulerDiscreteScheduler"})
TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


def drawn(g: GenerationConfig) -> tuple[Any, ...]:
    return g.steps, g.guidance_scale, g.scheduler, g.timestep_spacing, g.eta


@pytest.mark.parametrize(
    ("preset", "steps", "expected"),
    [
        ("turbo", None, (4, 0.0, "euler_a", "trailing", 0.0)),
        ("turbo", 1, (1, 0.0, "euler_a", "trailing", 0.0)),
        ("lightning", 8, (8, 0.0, "euler", "trailing", 0.0)),
        ("lcm", None, (4, 1.0, "lcm", None, 0.0)),
        ("hyper", None, (4, 0.0, "ddim", "trailing", 0.0)),
        ("hyper", 1, (1, 0.0, "tcd", None, 1.0)),
        ("none", None, (20, 3.0, "auto", None, 0.0)),
        ("auto", None, (20, 3.0, "auto", None, 0.0)),
    ],
)
def test_a_preset_fills_in_what_is_open(preset: Any, steps: int | None, expected: tuple[Any, ...]) -> None:
    found = filled_in(GenerationConfig(preset=preset, steps=steps), SD)
    assert drawn(found.generation) == expected


NUMBERS = {
    "ZImagePipeline": (50, 5.0), "QwenImagePipeline": (50, 4.0), "PixArtSigmaPipeline": (20, 4.5), "SanaPipeline": (20, 4.5),
    "ChromaPipeline": (35, 5.0), "StableDiffusionPipeline": (20, 3.0), "FluxPipeline": (20, 3.0),
}  # fmt: skip


@pytest.mark.parametrize(("pipeline", "numbers"), NUMBERS.items())
def test_a_silent_run_file_has_the_numbers_of_its_class(tiny_model: Any, pipeline: str, numbers: tuple[int, float]) -> None:
    config = ModelConfig(path=str(tiny_model(pipeline)), dtype="float32")
    folder, cls, parts = look_at(config)
    looked_at, loaded = Facts.of_folder(folder, cls, parts.scheduler), Facts.of_model(load_model(config))
    found = [filled_in(GenerationConfig(), facts) for facts in (looked_at, loaded)]
    assert {(one.generation.steps, one.generation.guidance_scale) for one in found} == {numbers}
    assert [one.notes[0].topic for one in found] == ["generation"] * 2
    assert ["authors use" in one.notes[0].text for one in found] == [numbers == (20, 3.0)] * 2


def test_what_the_run_file_states_is_not_the_class_s() -> None:
    facts = Facts(pipeline="ChromaPipeline", flow=True, steps=35, guidance=5.0)
    found = filled_in(GenerationConfig(steps=7), facts)
    assert (found.generation.steps, found.generation.guidance_scale) == (7, 5.0)
    assert [note.text for note in found.notes] == [
        "the run file leaves them open, and ChromaPipeline is usually drawn so: guidance_scale 5"
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_filled_in_stays_as_it_is(preset: Any) -> None:
    once = filled_in(GenerationConfig(preset=preset), SD).generation
    assert filled_in(once, SD).generation == once


@pytest.mark.parametrize(
    ("keys", "where", "what", "fix"),
    [
        ({"preset": "lightning", "steps": 6}, "steps", "lightning is drawn in 2, 4 or 8 steps, not 6", "Set it to 4"),
        ({"preset": "turbo", "steps": 20}, "steps", "turbo is drawn in 1 to 4 steps, not 20", "Set it to 4"),
        ({"preset": "lcm", "steps": 9}, "steps", "lcm is drawn in 1 to 8 steps, not 9", "Set it to 8"),
        ({"preset": "turbo", "guidance_scale": 7.5}, "guidance_scale", "a guidance of at most 1, not 7.5", "Set it to 0"),
        ({"preset": "turbo", "scheduler": "ddim"}, "scheduler", "drawn with 'euler_a', not 'ddim'", 'Set it to "euler_a"'),
        ({"preset": "turbo", "timestep_spacing": "leading"}, "timestep_spacing", "'trailing' timesteps", "Leave it out"),
        ({"preset": "lcm", "timestep_spacing": "leading"}, "timestep_spacing", "a grid of its own", "Leave it out"),
        ({"preset": "hyper", "steps": 1, "eta": 0.3}, "eta", "an η of 1, not 0.3", "Leave it out"),
    ],
)
def test_what_contradicts_a_preset_is_refused(keys: dict[str, Any], where: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        filled_in(GenerationConfig(**keys), SD)
    assert refused.value.where == f"generation.{where}" and what in refused.value.what
    assert refused.value.fix.startswith(fix) and "remove generation.preset" in refused.value.fix


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        ({"scheduler": TURBO}, "turbo"),
        ({"scheduler": TURBO | {"timestep_spacing": "leading"}}, ""),
        ({"scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}}, ""),
        ({"scheduler": {"_class_name": "LCMScheduler"}}, "lcm"),
        ({"guidance_inside": True}, "lcm"),
        ({"flow": True, "distilled": True}, "turbo"),
        ({"flow": True}, ""),
    ],
)
def test_when_a_folder_asks_for_one(facts: dict[str, Any], asked: str) -> None:
    assert Facts(**({"pipeline": "P", "flow": False} | facts)).asks_for == asked


def test_the_run_file_wins_over_the_folder() -> None:
    facts = Facts(pipeline="StableDiffusionPipeline", flow=False, scheduler=TURBO)
    stated = GenerationConfig(steps=20, guidance_scale=5.0, scheduler="ddim")
    found = filled_in(stated, facts)
    assert found.generation == stated and found.preset == "turbo"


def test_what_a_folder_asks_for_is_noted() -> None:
    (note,) = filled_in(GenerationConfig(), Facts(pipeline="P", flow=False, scheduler=TURBO)).notes
    assert (note.topic, note.text) == (
        "preset",
        "the model's folder asks for turbo (adversarial distillation (SD-Turbo, SDXL-Turbo)): 4 steps, guidance 0, euler_a, "
        "trailing timesteps",
    )


@pytest.mark.parametrize(
    ("pipeline", "steps", "guidance"), [("ZImagePipeline", 9, 0), ("Flux2KleinPipeline", 4, 1), ("FluxPipeline", 4, 0)]
)
def test_turbo_of_flows(pipeline: str, steps: int, guidance: float) -> None:
    g = filled_in(GenerationConfig(preset="turbo"), Facts(pipeline=pipeline, flow=True)).generation
    assert drawn(g) == (steps, guidance, "flow_match_euler", None, 0.0)


@pytest.mark.parametrize(("pipeline", "guidance"), [("FluxPipeline", 3.5), ("Flux2Pipeline", 4.0)])
def test_a_few_step_lora_on_a_network_with_guidance_as_an_input_keeps_it(
    tiny_model: Any, pipeline: str, guidance: float
) -> None:
    """Turbo-Alpha and Hyper-FLUX are drawn in 8 steps with FLUX dev's guidance: without it the network was never trained."""
    folder, cls, parts = look_at(ModelConfig(path=str(tiny_model(pipeline))))
    facts = Facts.of_folder(folder, cls, parts.scheduler)
    assert drawn(filled_in(GenerationConfig(preset="turbo"), facts).generation) == (8, guidance, "flow_match_euler", None, 0.0)
    assert filled_in(GenerationConfig(preset="turbo", guidance_scale=2.5), facts).generation.guidance_scale == 2.5


@pytest.mark.parametrize("preset", ["lightning", "lcm", "hyper"])
def test_presets_of_diffusion_are_not_for_flows(preset: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"generation\.preset: .* is for diffusion models, and QwenImagePipeline is a rectified"
    ):
        filled_in(GenerationConfig(preset=preset), Facts(pipeline="QwenImagePipeline", flow=True))


def test_spacing_of_timesteps(tiny_sd: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    made = {spacing: make_sampler(model, 4, "euler_a", spacing=spacing) for spacing in ("trailing", "linspace", "")}
    assert made["trailing"].timesteps == (999.0, 749.0, 499.0, 249.0)
    assert made["linspace"].timesteps == (999.0, 666.0, 333.0, 0.0)
    assert [one.name for one in made.values()] == ["euler_a, trailing", "euler_a, linspace", "euler_a"]


def test_a_flow_has_no_timesteps_to_spread() -> None:
    model: Any = SimpleNamespace(
        prediction_type="flow_prediction", scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler"}
    )
    with pytest.raises(ConfigError, match=r"generation\.timestep_spacing"):
        make_sampler(model, 4, spacing="trailing")


def with_scheduler(folder: Path, to: Path, scheduler: dict[str, Any], **index: Any) -> Path:
    """A copy of a folder with another scheduler, and other entries in its index."""
    shutil.copytree(folder, to)
    named = {"scheduler": ["diffusers", scheduler["_class_name"]]}
    for part, values in (("scheduler/scheduler_config.json", scheduler), ("model_index.json", named | index)):
        (to / part).write_text(json.dumps(json.loads((to / part).read_text()) | values))
    return to


def test_a_turbo_folder_is_drawn_as_one(tiny_sd: Path, tmp_path: Path) -> None:
    folder = with_scheduler(tiny_sd, tmp_path / "m", TURBO)
    config = RunConfig(prompts="-", model=ModelConfig(path=str(folder), dtype="float32"))
    runtime = Runtime(config, Policy(), load_model(config.model))
    context = runtime.context("run", "a" * 64, "w")
    assert (context.preset, context.steps, context.guidance) == ("turbo", 4, 0.0)
    assert context.scheduler == "euler_a, trailing" and not runtime.engine.guided


def test_the_embedded_world_asks_for_none() -> None:
    folder, cls, parts = look_at(ModelConfig())
    found = filled_in(GenerationConfig(), Facts.of_folder(folder, cls, parts.scheduler))
    assert (found.preset, drawn(found.generation)) == ("", (20, 3.0, "auto", None, 0.0))


@pytest.fixture(scope="module")
def lcm(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model with guidance as an input of its UNet."""
    from diffusers import UNet2DConditionModel

    to = tmp_path_factory.mktemp("lcm") / "m"
    scheduler = {"_class_name": "LCMScheduler", "original_inference_steps": 50}
    folder = with_scheduler(tiny_sd, to, scheduler)
    torch.manual_seed(0)
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"time_cond_proj_dim": 9}
    network = UNet2DConditionModel.from_config(config)
    torch.nn.init.normal_(network.time_embedding.cond_proj.weight, std=0.5)
    shutil.rmtree(folder / "unet")
    network.save_pretrained(folder / "unet")
    return load_model(ModelConfig(path=str(folder), dtype="float32"))


def test_guidance_inside_equals_diffusers(lcm: Any) -> None:
    from diffusers import LatentConsistencyModelPipeline

    scales = torch.tensor([1.0, 2.5, 8.5])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(lcm._parts, scales - 1, embedding_dim=9)
    assert torch.allclose(lcm._timestep_condition(scales, 3), theirs, atol=1e-5)


def test_it_moves_the_answer_of_its_own_row(lcm: Any) -> None:
    from pipeline.model.conditioning import stack

    latents, times = torch.randn(2, *lcm.latent_shape), torch.full((2,), 500)
    context = stack([lcm.encode_prompts(["a cat"])[0]] * 2)
    low, mixed = (lcm.denoise(latents, times, context, scale) for scale in (1.0, torch.tensor([1.0, 9.0])))
    assert torch.equal(low[0], mixed[0]) and not torch.equal(low[1], mixed[1])


def test_an_lcm_owns_one_row_and_takes_its_own_preset(lcm: Any) -> None:
    runtime = Runtime(RunConfig(prompts="-", model=ModelConfig(dtype="float32")), Policy(), lcm)
    context = runtime.context("run", "a" * 64, "w")
    assert (context.preset, context.steps, context.guidance, context.scheduler) == ("lcm", 4, 8.5, "lcm")
    assert not runtime.engine.guided


def test_an_lcm_without_its_preset_is_refused(lcm: Any) -> None:
    with pytest.raises(ConfigError, match=r"generation\.preset: the model was distilled for LCM sampling"):
        filled_in(GenerationConfig(preset="none"), Facts.of_model(lcm))
