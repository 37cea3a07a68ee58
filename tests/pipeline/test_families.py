"""Folders of each class of model: what is loaded of them, what is refused. What all classes share: test_every_family.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from index.errors import ConfigError, ModelError
from pipeline.config import ModelConfig
from pipeline.model.decoder import picture_rows
from pipeline.model.folder.resolve import resolve
from pipeline.model.load import load_model
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


def config_of(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), size=16, text_tokens=24, **({"dtype": "float32"} | more))


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(FAMILIES[request.param].pipeline)


def as_diffusers_draws(folder: Path, family: Family, **absent: None) -> bool:
    """Whether a plain picture is the one of diffusers' pipeline, to within one of 255."""
    e = engine_of(family, model := load(family, folder), guided=False)
    ours = pixels(model, finish(e, [sample(e, 2, PROMPT)])[2])
    theirs = drawn_by(diffusers_pipeline(folder, family.pipeline, **absent), family, 2, guided=False)
    return bool((ours - theirs).abs().max() < 5e-4)


def test_one_of_several_sets_of_weights(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    assert list((tmp_path / "half" / "unet").glob("*.fp16.safetensors"))
    again = load_model(config_of(tmp_path / "half", variant="fp16")).encode_prompts(["a cat"])
    assert again.equal(load_model(config_of(tiny_sd)).encode_prompts(["a cat"]))
    with pytest.raises(ModelError, match=r'there is "fp16"\. Set model\.variant = "fp16"'):
        load_model(config_of(tmp_path / "half"))


def test_another_size_can_be_drawn(tiny_sd3: Path) -> None:
    model = load(FAMILIES["sd3"], tiny_sd3, size=24)
    e = engine_of(FAMILIES["sd3"], model)
    assert model.latent_shape == (4, 12, 12) and model.decode_size() == (24, 24)
    assert model.decode(finish(e, [sample(e, 1)])[1][None]).shape == (1, 24, 24, 3)
    with pytest.raises(ConfigError, match=r"model\.size: 18 is not a multiple of 4"):
        load_model(ModelConfig(path=str(tiny_sd3), size=18))


def test_sd3_without_t5_equals_diffusers(tiny_sd3: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    absent = {"text_encoder_3": None, "tokenizer_3": None}
    StableDiffusion3Pipeline.from_pretrained(tiny_sd3, **absent).save_pretrained(tmp_path / "light")
    assert as_diffusers_draws(tmp_path / "light", FAMILIES["sd3"], **absent)


def test_flux_schnell_takes_no_guidance(tiny_flux: Path, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    pipe = FluxPipeline.from_pretrained(tiny_flux)
    torch.manual_seed(0)
    schnell = FluxTransformer2DModel.from_config(dict(pipe.transformer.config) | {"guidance_embeds": False})
    pipe.register_modules(transformer=schnell, scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(tmp_path / "schnell")
    assert as_diffusers_draws(tmp_path / "schnell", FAMILIES["flux"])


@pytest.mark.parametrize("what", ["tokenizer", "vae"])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, what: str) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(broken / what)
    with pytest.raises(ModelError, match=f"model_index.json names {what}, which is not there"):
        load_model(config_of(broken))
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {what: [None, None]}))
    with pytest.raises(ModelError, match=f"has no {what}"):
        load_model(config_of(broken))


def test_broken_folders_are_refused_with_advice(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ModelError, match=r"class KandinskyPipeline cannot be run.*FluxPipeline"):
        load_model(ModelConfig(path=str(tmp_path)))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_model(ModelConfig(path=str(tmp_path)))
    broken = shutil.copytree(tiny_sd, tmp_path / "cut")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.safetensors: .* cut short \(1000 bytes"):
        load_model(config_of(broken))
    weights.unlink()  # pickled weights are not read: they can run code, and the digest would not cover them
    with pytest.raises(ModelError, match=r"unet: holds no weights \(diffusion_pytorch_model\.safetensors\)"):
        load_model(config_of(broken))


def test_models_that_need_more_than_text_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.register_modules(unet=UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 9}))
    pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="takes 9 channels"):
        load_model(config_of(tmp_path / "other"))


def test_an_empty_negative_prompt_is_zeros_where_sdxl_sets_it(tiny_sdxl: Path, tmp_path: Path) -> None:
    assert not load_model(config_of(tiny_sdxl)).encode_prompts(["", "a cat"])[0].tokens.any()
    other = shutil.copytree(tiny_sdxl, tmp_path / "xl")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    assert load_model(config_of(other)).encode_prompts([""]).tokens.any()


def test_only_the_parts_in_use_are_downloaded(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _id, **more: calls.append(more) or str(tiny_sd))
    assert resolve(ModelConfig(path="somebody/model", revision="main")) == tiny_sd
    assert len(calls) == 1 and calls[0]["local_files_only"] and calls[0]["revision"] == "main"
    calls.clear()
    resolve(ModelConfig(path="somebody/model", allow_download=True, variant="fp16"))
    assert calls[0]["allow_patterns"] == ["model_index.json"] and not calls[1]["local_files_only"]
    assert "unet/*.fp16*.safetensors" in calls[1]["allow_patterns"] and "unet/*.safetensors" not in calls[1]["allow_patterns"]
    assert not any(pattern.startswith("safety_checker") for pattern in calls[1]["allow_patterns"])


def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str]) -> list[dict[str, Any]]:
    """A hub that has these files: each call writes those that its patterns ask for; the calls."""
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def fetch(_id: str, *, allow_patterns: list[str], ignore_patterns: list[str], **more: Any) -> str:
        calls.append({"allow_patterns": allow_patterns, **more})
        for name in files:
            if any(fnmatch(name, one) for one in allow_patterns) and not any(fnmatch(name, one) for one in ignore_patterns):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                index = (
                    {"unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "tokenizer": ["transformers", "T"]}
                    if name == "model_index.json"
                    else {}
                )
                (tmp_path / name).write_text(json.dumps(index))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: files)
    return calls


PARTS = ["model_index.json", "unet/config.json", "vae/config.json", "tokenizer/config.json"]
TWO_PRECISIONS = [
    "unet/m.safetensors",
    "unet/m.fp16-00001-of-00002.safetensors",
    "unet/m.bf16.safetensors",
    "vae/m.safetensors",
]


@pytest.mark.parametrize(
    ("variant", "expected"), [("", [TWO_PRECISIONS[0], TWO_PRECISIONS[3]]), ("fp16", [TWO_PRECISIONS[1], TWO_PRECISIONS[3]])]
)
def test_one_set_of_weights_is_downloaded_and_plain_ones_where_a_part_has_no_other(
    variant: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SD3's T5 lies on the hub in fp16 too, in pieces: 9 GB that no run would open."""
    hub(monkeypatch, tmp_path, PARTS + TWO_PRECISIONS)
    resolve(ModelConfig(path="somebody/model", allow_download=True, variant=variant))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors")) == sorted(expected)


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ("m.fp16.safetensors", r'there is "fp16"\. Set model\.variant = "fp16"'),
        ("m.bin", r"as safetensors; m\.bin is pickled"),
    ],
)
def test_a_hub_without_plain_weights_says_what_it_has(
    weights: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub(monkeypatch, tmp_path, [*PARTS, f"unet/{weights}", "vae/m.safetensors"])
    with pytest.raises(ModelError, match=rf"somebody/model: the hub has no weights of its unet.*{what}"):
        resolve(ModelConfig(path="somebody/model", allow_download=True))


@pytest.mark.parametrize(
    ("tensor", "pipeline"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "StableDiffusionXLPipeline"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "StableDiffusion3Pipeline"),
        ("double_blocks.0.img_attn.qkv.weight", "FluxPipeline"),
        ("cond_stage_model.transformer.x", "StableDiffusionPipeline"),
    ],
)
def test_a_whole_checkpoint_is_refused_with_the_class_that_opens_it(tensor: str, pipeline: str, tmp_path: Path) -> None:
    save_file({tensor: torch.zeros(1)}, tmp_path / "pony.safetensors")
    with pytest.raises(ModelError, match=rf'{pipeline}\.from_single_file\("pony\.safetensors"\)'):
        resolve(ModelConfig(path=str(tmp_path / "pony.safetensors")))


def test_large_pictures_are_decoded_in_smaller_calls() -> None:
    assert [picture_rows(side * side) for side in (16, 64, 512, 1024, 2048)] == [8, 8, 4, 1, 1]
