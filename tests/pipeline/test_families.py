"""One suite for all model classes, on tiny random models: the engine equals diffusers' own loop, and equals itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError, ModelError
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.families import load_model
from pipeline.model.interface import DiffusionModel
from pipeline.model.latent import picture_rows, quiet
from pipeline.steer.nudge import Nudge

STEPS = 4
TOKENS = 24  # of T5
PROMPT = "a red apple"
FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def config_of(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), size=16, text_tokens=TOKENS, **({"dtype": "float32"} | more))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionModel:
    return load_model(config_of(folder))


def make_engine(model: DiffusionModel, rows: int = 8, **more: Any) -> Engine:
    return Engine(model, rows=rows, steps=STEPS, guidance_scale=3.0, **more)


def plain(e: Engine, tag: int, prompt: str = "") -> Trajectory:
    texts = e.model.encode_prompts([prompt or f"{PROMPT} {tag}", ""])
    return Trajectory(
        tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1] if e.guided else None, seed=tag
    )


def finish(e: Engine, trajectories: list[Trajectory], stagger: bool = False) -> dict[int, torch.Tensor]:
    """Draw them; ``stagger`` submits one more before every call, so that the rows of a call stand at different steps."""
    done: dict[int, torch.Tensor] = {}
    coming = list(trajectories)
    while coming or e.busy:
        for _ in range(1 if stagger else len(coming)):
            if coming:
                e.submit(coming.pop(0))
        done |= {t.tag: t.latent for t in e.step()}
    return done


def theirs(folder: Path, seed: int, **more: Any) -> torch.Tensor:
    """The latent (C, h, w) at the end of diffusers' own pipeline."""
    import diffusers

    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    with quiet():
        pipe = getattr(diffusers, name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if "text_encoder_3" in pipe.components or name == "FluxPipeline":
        more["max_sequence_length"] = TOKENS
    with quiet():
        out = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, height=16, width=16, output_type="latent",
                   generator=torch.Generator().manual_seed(seed), **more).images  # fmt: skip
    return pipe._unpack_latents(out, 16, 16, 2)[0] if name == "FluxPipeline" else out[0]  # type: ignore[no-any-return]


def test_equals_diffusers_own_pipeline(model: DiffusionModel, folder: Path) -> None:
    e = make_engine(model)
    ours = finish(e, [plain(e, 5, PROMPT)])[5]
    assert torch.allclose(ours, theirs(folder, 5), atol=2e-4, rtol=1e-3)
    assert e.guided != model.distilled and e.rows_used == STEPS * (2 if e.guided else 1)


def test_flux_with_classifier_free_guidance_on_top(tiny_flux: Path) -> None:
    e = make_engine(load_model(config_of(tiny_flux)), true_guidance_scale=2.0)
    ours = finish(e, [plain(e, 5, PROMPT)])[5]
    assert e.guided and e.rows_used == 2 * STEPS
    assert torch.allclose(ours, theirs(tiny_flux, 5, true_cfg_scale=2.0, negative_prompt=""), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_do_not_depend_on_schedule_or_mates(folder: Path, dtype: str) -> None:
    model = load_model(config_of(folder, dtype=dtype))

    def some(e: Engine, order: tuple[int, ...]) -> list[Trajectory]:
        trajectories = [plain(e, tag) for tag in order]
        for t in trajectories:
            if t.tag == 1:
                z = torch.ones(model.latent_shape)
                t.nudge = Nudge(references=(z,), centre=torch.zeros_like(z), step_size=0.1, iterations=2, until_step=2)
            if t.tag == 2:  # one without classifier-free guidance among the guided
                t.negative = None
        return trajectories

    alone: dict[int, torch.Tensor] = {}
    for tag in range(5):
        e = make_engine(model)
        alone |= finish(e, some(e, (tag,)))
    for order, stagger in (((0, 1, 2, 3, 4), True), ((4, 2, 3, 0, 1), False)):
        e = make_engine(model)
        mixed = finish(e, some(e, order), stagger)
        assert all(torch.equal(mixed[tag], alone[tag]) for tag in range(5)), order


def test_conditionings_have_one_shape_and_do_not_depend_on_their_mates(model: DiffusionModel) -> None:
    prompts = ["a cat", "a lemon and a red apple " * 20, "", "a cat"]
    together = model.encode_prompts(prompts)
    assert together.shape == (4, *model.conditioning_shape) and together.dtype == torch.float32
    assert torch.equal(together[0], together[3]) and not torch.equal(together[0], together[1])
    assert torch.equal(together[1], model.encode_prompts(prompts[1:2])[0])
    assert [model.truncated(prompt) for prompt in prompts[:2]] == [False, True]


def test_pictures_and_latents_go_both_ways(model: DiffusionModel) -> None:
    latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    pictures = model.decode(latents)
    assert pictures.shape == (3, 16, 16, 3) and pictures.dtype.name == "uint8" and model.decode_size() == (16, 16)
    assert (model.decode(latents[1:2])[0] == pictures[1]).all()
    assert model.encode(pictures).shape == latents.shape
    assert model.attention_blocks()


def test_a_picture_decodes_as_in_diffusers(model: DiffusionModel, folder: Path) -> None:
    """Scaling and shift of the autoencoder, from the same latents."""
    import diffusers

    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        x = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample[0]
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)
    assert (torch.from_numpy(model.decode(latents)[0]).float() - expected).abs().max() <= 1


def test_denoiser_and_decoder_have_gradients(model: DiffusionModel) -> None:
    """For steering by gradients: in the conditioning, and in the latent."""
    context = model.encode_prompts(["a cat"]).clone().requires_grad_(True)
    z = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    e = make_engine(model)
    time = torch.tensor(e.sampler.timesteps[:1])
    model.denoise_tensor(z, time, context, 3.0).square().sum().backward()  # type: ignore[attr-defined]
    assert context.grad is not None and context.grad.any() and z.grad is not None and z.grad.any()
    rows = [x.detach().repeat(8, *(1,) * (x.ndim - 1)) for x in (z, time, context)]
    assert torch.equal(model.denoise_tensor(*rows, 3.0), model.denoise(*rows, 3.0))  # type: ignore[attr-defined]
    x = torch.randn(1, *model.latent_shape, requires_grad=True)
    model.decode_tensor(x).sum().backward()  # type: ignore[attr-defined]
    assert x.grad is not None and x.grad.any()


def test_one_of_several_sets_of_weights(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    assert list((tmp_path / "half" / "unet").glob("*.fp16.safetensors"))
    again = load_model(config_of(tmp_path / "half", variant="fp16")).encode_prompts(["a cat"])
    assert torch.equal(again, load_model(config_of(tiny_sd)).encode_prompts(["a cat"]))
    with pytest.raises(ModelError, match=r'there is "fp16"\. Set model\.variant = "fp16"'):
        load_model(config_of(tmp_path / "half"))


def test_another_size_can_be_drawn(tiny_sd3: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd3), dtype="float32", size=24, text_tokens=TOKENS))
    e = make_engine(model)
    assert model.latent_shape == (4, 12, 12) and model.decode_size() == (24, 24)
    assert model.decode(finish(e, [plain(e, 1)])[1][None]).shape == (1, 24, 24, 3)
    with pytest.raises(ConfigError, match=r"model\.size: 18 is not a multiple of 4"):
        load_model(ModelConfig(path=str(tiny_sd3), size=18))


def test_sd3_without_t5_equals_diffusers(tiny_sd3: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3, text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "light")
    e = make_engine(load_model(config_of(tmp_path / "light")))
    pipe.set_progress_bar_config(disable=True)
    out = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, height=16, width=16, output_type="latent",
               generator=torch.Generator().manual_seed(2), max_sequence_length=TOKENS).images  # fmt: skip
    assert torch.allclose(finish(e, [plain(e, 2, PROMPT)])[2], out[0], atol=2e-4, rtol=1e-3)


def test_flux_schnell_takes_no_guidance(tiny_flux: Path, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    pipe = FluxPipeline.from_pretrained(tiny_flux)
    torch.manual_seed(0)
    schnell = FluxTransformer2DModel.from_config(dict(pipe.transformer.config) | {"guidance_embeds": False})
    pipe.register_modules(transformer=schnell, scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(tmp_path / "schnell")
    e = make_engine(load_model(config_of(tmp_path / "schnell")))
    assert torch.allclose(finish(e, [plain(e, 2, PROMPT)])[2], theirs(tmp_path / "schnell", 2), atol=2e-4, rtol=1e-3)


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
    for change, message in (({"in_channels": 9}, "takes 9 channels"), ({"time_cond_proj_dim": 8}, "LCM")):
        pipe.register_modules(unet=UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 4} | change))
        pipe.save_pretrained(tmp_path / "other")
        with pytest.raises(ModelError, match=message):
            load_model(config_of(tmp_path / "other"))


def test_an_empty_negative_prompt_is_zeros_where_sdxl_sets_it(tiny_sdxl: Path, tmp_path: Path) -> None:
    assert not load_model(config_of(tiny_sdxl)).encode_prompts(["", "a cat"])[0].any()
    other = shutil.copytree(tiny_sdxl, tmp_path / "xl")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    assert load_model(config_of(other)).encode_prompts([""]).any()


def test_only_the_parts_in_use_are_downloaded(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from pipeline.model.folder import resolve

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _id, **more: calls.append(more) or str(tiny_sd))
    assert resolve(ModelConfig(path="somebody/model", revision="main")) == tiny_sd
    assert len(calls) == 1 and calls[0]["local_files_only"] and calls[0]["revision"] == "main"
    calls.clear()
    resolve(ModelConfig(path="somebody/model", allow_download=True, variant="fp16"))
    assert calls[0]["allow_patterns"] == ["model_index.json"] and not calls[1]["local_files_only"]
    assert "unet/*.fp16*.safetensors" in calls[1]["allow_patterns"] and "unet/*.safetensors" not in calls[1]["allow_patterns"]
    assert not any(pattern.startswith("safety_checker") for pattern in calls[1]["allow_patterns"])


def test_large_pictures_are_decoded_in_smaller_calls() -> None:
    assert [picture_rows(side * side) for side in (16, 64, 512, 1024, 2048)] == [8, 8, 4, 1, 1]
