"""What a silent run file is drawn with is said, once, where the plan is made: afterwards nothing is open any more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from jobs.run.plan import in_full
from pipeline.config import AdapterConfig, GenerationConfig, ModelConfig, RunConfig
from pipeline.model.sampling.decided import decided
from pipeline.notes import Note

TinyModel = Callable[[str], Path]


def run(folder: Path | str, *, generation: GenerationConfig | None = None, adapter: str = "", **model: Any) -> RunConfig:
    adapters = (AdapterConfig(path=adapter),) if adapter else ()
    return RunConfig(
        prompts="p.txt",
        model=ModelConfig(path=str(folder), **model),
        generation=generation or GenerationConfig(),
        adapters=adapters,
    )


def told(config: RunConfig) -> dict[str, str]:
    notes: list[Note] = []
    whole = in_full(config, notes)
    assert in_full(whole, again := []) == whole
    assert [note for note in again if note.topic == "generation"] == []  # nothing is open, and nothing is said twice
    return {note.topic: note.text for note in notes}


def changed(folder: Path, to: Path, **files: dict[str, Any]) -> Path:
    """A copy of a folder with other values in its JSON files; ``part__file`` is ``part/file.json``."""
    shutil.copytree(folder, to)
    for name, values in files.items():
        path = to / f"{name.replace('__', '/')}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return to


def test_the_numbers_of_a_class_are_said_where_the_plan_is_made(tiny_model: TinyModel) -> None:
    text = told(run(tiny_model("QwenImagePipeline")))["generation"]
    assert text == "the run file leaves them open, and QwenImagePipeline is usually drawn so: steps 50, guidance_scale 4"


def test_classes_that_keep_their_old_numbers_name_those_of_their_authors(tiny_model: TinyModel) -> None:
    text = told(run(tiny_model("StableDiffusionXLPipeline"), generation=GenerationConfig(steps=30)))["generation"]
    assert text == (
        "the run file leaves them open, and gets what it always got: guidance_scale 3. StableDiffusionXLPipeline's authors use "
        "guidance_scale 5"
    )
    assert told(run("stickers")) == {}  # made for these numbers


def test_schnell_reads_as_many_tokens_as_it_was_trained_with(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = changed(tiny_model("FluxPipeline"), tmp_path / "m", transformer__config={"guidance_embeds": False})
    whole, notes = decided(run(folder))
    assert (whole.model.text_tokens, whole.generation.steps) == (256, 4)
    assert any("trained with 256" in note.text for note in notes)
    assert decided(run(folder, text_tokens=100))[0].model.text_tokens == 100
    assert decided(run(tiny_model("FluxPipeline")))[0].model.text_tokens is None  # dev: the class's 512


@pytest.mark.parametrize(
    ("pipeline", "how", "preset"),
    [
        ("ZImagePipeline", {"name": "Tongyi-MAI/Z-Image-Turbo"}, "turbo"),
        ("StableDiffusion3Pipeline", {"name": "sd3.5-large-turbo"}, "turbo"),
        ("QwenImagePipeline", {"adapter": "Qwen-Image-Lightning-8steps-V1.1.safetensors"}, "turbo"),
        ("StableDiffusionXLPipeline", {"name": "sdxl_lightning_4step"}, "lightning"),
        ("StableDiffusionXLPipeline", {"name": "DreamshaperXL_TurboSDE"}, "turbo"),
        ("StableDiffusionXLPipeline", {"adapter": "Hyper-SDXL-8steps-lora.safetensors"}, "hyper"),
        ("StableDiffusionPipeline", {"adapter": "lcm-lora-sdv1-5.safetensors"}, "lcm"),
        ("StableDiffusionXLPipeline", {"name": "hyperrealism-xl"}, ""),
        ("StableDiffusionXLPipeline", {"name": "calcmodel"}, ""),
        ("StableDiffusionXLPipeline", {"adapter": "turbo/ink.safetensors"}, ""),
    ],
)
def test_a_name_of_a_few_step_model_is_pointed_at(
    tiny_model: TinyModel, pipeline: str, how: dict[str, Any], preset: str
) -> None:
    """Nothing is chosen by a name: the folder of Z-Image-Turbo is, but for its weights, that of Z-Image."""
    folder, numbers = tiny_model(pipeline), {"steps": 20, "guidance_scale": 3.0}
    text = told(run(folder, **how)).get("preset", "")
    assert f'generation.preset = "{preset}"' in text if preset else text == ""
    for stated in (GenerationConfig(preset="none"), GenerationConfig(**numbers)):
        assert "preset" not in told(run(folder, generation=stated, **how))


@pytest.mark.parametrize(
    ("scheduler", "hinted"),
    [
        ({}, True),
        ({"timestep_spacing": "leading"}, False),
        ({"prediction_type": "v_prediction"}, False),
        ({"rescale_betas_zero_snr": True}, False),
    ],
)
def test_trailing_timesteps_are_pointed_at(
    tiny_model: TinyModel, tmp_path: Path, scheduler: dict[str, Any], hinted: bool
) -> None:
    """SD-Turbo's folder names Euler with trailing timesteps; so do folders of many steps with zero terminal SNR."""
    euler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "epsilon"}
    index = {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    folder = changed(
        tiny_model("StableDiffusionPipeline"), tmp_path / "m", scheduler__scheduler_config=euler | scheduler, model_index=index
    )
    assert ("trailing timesteps" in told(run(folder)).get("preset", "")) == hinted


def test_where_the_folder_asks_for_a_preset_nothing_is_pointed_at(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = changed(tiny_model("FluxPipeline"), tmp_path / "m", transformer__config={"guidance_embeds": False})
    assert told(run(folder, name="FLUX.1-schnell"))["preset"].startswith("the model's folder asks for turbo")


@pytest.mark.parametrize("sides", [{"width": 33}, {"height": 18, "size": 16}, {"size": 18}])
def test_a_side_that_cannot_be_drawn_is_refused_before_the_model_is_loaded(
    tiny_model: TinyModel, sides: dict[str, int]
) -> None:
    folder = tiny_model("FluxPipeline")
    key, side = next(iter(sides.items()))
    with pytest.raises(ConfigError, match=rf"^model\.{key}: {side} is not a multiple of 4"):
        in_full(run(folder, **sides))
    assert in_full(run(folder, snap=True, **sides)).model.snap
    assert in_full(run(folder, width=16, height=32, size=33)).model.size == 33  # which nothing is drawn with
