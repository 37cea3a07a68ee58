"""LoRA files in every shape that people bring: every layer finds its place, rows are peft's to the bit, the others plain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ModelError
from pipeline.config import AdapterConfig, ModelConfig
from pipeline.model.adapters.file import look_at_adapter
from pipeline.model.adapters.lora import Lora, fuse, load_lora
from pipeline.model.adapters.lowrank import RowAdapter, adapted
from pipeline.model.load import load_model

from .families import FAMILIES, load
from .lora_files import ALPHA, TEXT, TRANSFORMER, UNET, halves, kohya, kohya_file, old_style, pairs_for, write, xlabs

FORMATS: dict[str, tuple[str, Callable[[Path, Any], Path], int]] = {  # name → (model, writer, layers that it has)
    "kohya": ("tiny_sd", lambda path, pipe: kohya_file(path, pipe), 69),
    "kohya sdxl": ("tiny_sdxl", lambda path, pipe: kohya_file(path, pipe), 81),
    "diffusers old": ("tiny_sd", lambda path, pipe: write(path, old_style(pairs_for(pipe.unet, ("to_",)))), 32),
    "peft": ("tiny_sdxl", lambda path, pipe: write(path, halves("unet", pairs_for(pipe.unet, UNET))), 57),
    "peft sd3": ("tiny_sd3", lambda path, p: write(path, halves("transformer", pairs_for(p.transformer, TRANSFORMER))), 0),
    "xlabs": ("tiny_flux", lambda path, pipe: write(path, xlabs(pipe.transformer)), 7),
    "kohya flux": (
        "tiny_flux",
        lambda path, pipe: write(
            path,
            kohya("lora_unet", {"double_blocks.0.img_attn.proj": pairs_for(pipe.transformer, ("attn.to_out.0",)).popitem()[1]}),
        ),
        1,
    ),
}


@pytest.fixture(scope="module")
def kept() -> dict[tuple[str, str], Any]:
    """Models that reading a LoRA leaves as they were."""
    return {}


def fresh(request: pytest.FixtureRequest, name: str, dtype: str = "float32") -> Any:
    folder = request.getfixturevalue(name)
    return load_model(ModelConfig(path=str(folder), dtype=dtype, size=16))  # type: ignore[arg-type]


def loaded(request: pytest.FixtureRequest, name: str, dtype: str = "float32") -> Any:
    models = request.getfixturevalue("kept")
    if (name, dtype) not in models:
        models[name, dtype] = fresh(request, name, dtype)
    return models[name, dtype]


def read(path: Path, model: Any) -> Lora:
    return load_lora(look_at_adapter(AdapterConfig(path=str(path)), base=Path()), model.parts, model.denoiser)


def encoded(model: Any, prompts: list[str]) -> torch.Tensor:
    """Conditionings as plain numbers (N, …), pooled embeddings behind the tokens."""
    rows = [torch.cat([part.flatten().float() for part in one.parts]) for one in model.encode_prompts(prompts)]
    return torch.stack(rows)


def call(model: Any, rows: int = 4) -> torch.Tensor:
    latents = torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    context = model.encode_prompts(["cat"])[0].expand(rows)
    return model.denoise(latents, torch.full((rows,), 500.0), context)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float32") for kind in FORMATS), ("kohya", "bfloat16"), ("xlabs", "bfloat16")]
)
def test_rows_are_pefts_to_the_bit_and_the_others_plain(
    kind: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name, writer, layers = FORMATS[kind]
    model = loaded(request, name, dtype)
    before = {key: (id(module), type(module)) for key, module in model.network.named_modules()}
    path, plain = writer(tmp_path / "style.safetensors", model.parts), call(model)
    lora = read(path, model)
    assert sum(len(weights.pairs) for _, weights in lora.parts) == (layers or lora.file.layers)
    assert {key: (id(module), type(module)) for key, module in model.network.named_modules()} == before
    assert lora.denoiser is not None
    with adapted(model.network, [RowAdapter(lora.denoiser, 1.0, (1, 2))]):
        ours = call(model)
    assert torch.equal(call(model), plain)
    with torch.inference_mode(False):
        model.parts.load_lora_weights(str(tmp_path), weight_name=path.name)
    for part in lora.text:  # the same conditionings
        getattr(model.parts, part).disable_adapters()
    theirs = call(model)
    model.parts.unload_lora_weights()
    assert torch.equal(ours[[0, 3]], plain[[0, 3]])
    assert torch.equal(ours[[1, 2]], theirs[[1, 2]])
    assert not torch.equal(theirs, plain)


@pytest.mark.parametrize("name", ["flux2", "qwen_image", "z_image", "chroma", "sana"])
def test_newer_classes_take_pefts_files(name: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    family = FAMILIES[name]
    model: Any = load(family, tiny_model(family.pipeline))
    pairs = pairs_for(model.network, (*TRANSFORMER, "to_qkv"))
    path, plain = write(tmp_path / "style.safetensors", halves("transformer", pairs)), call(model)
    lora = read(path, model)
    assert lora.denoiser is not None and set(lora.denoiser.pairs) == set(pairs)
    with adapted(model.network, [RowAdapter(lora.denoiser, 1.0, (1, 2))]):
        ours = call(model)
    model.parts.load_lora_weights(str(tmp_path), weight_name=path.name)
    model.network.requires_grad_(False)  # torch multiplies a view (Sana's) in another way by weights that want gradients
    theirs = call(model)
    assert torch.equal(ours[[0, 3]], plain[[0, 3]])
    assert torch.equal(ours[[1, 2]], theirs[[1, 2]]) and not torch.equal(theirs, plain)


def test_classes_without_a_loader_are_refused_by_name(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    family = FAMILIES["pixart_sigma"]
    model: Any = load(family, tiny_model(family.pipeline))
    path = write(tmp_path / "style.safetensors", halves("transformer", pairs_for(model.network, TRANSFORMER)))
    with pytest.raises(ModelError, match="diffusers reads no LoRA for a PixArtSigmaPipeline"):
        read(path, model)


def test_a_scale_of_its_own_for_each_layer(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """diffusers 0.42 ignores the α of attention layers where a kohya file has several."""
    model = loaded(request, "tiny_sdxl")
    lora = read(kohya_file(tmp_path / "style.safetensors", model.parts, spread=3), model)
    for part, network in (("", model.network), ("text_encoder_2", model.parts.text_encoder_2)):
        weights = dict(lora.parts)[part]
        order = pairs_for(network, TEXT if part else UNET)
        assert [weights.scales[name] for name in order] == [(ALPHA + number % 3) / 3 for number in range(len(order))]


@pytest.mark.parametrize("strength", [0.7, -0.5])
def test_merged_is_what_rows_get(strength: float, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = fresh(request, "tiny_sd")
    lora = read(kohya_file(tmp_path / "style.safetensors", model.parts, text=False, spread=3), model)
    assert lora.denoiser is not None
    with adapted(model.network, [RowAdapter(lora.denoiser, strength, None)]):
        rows = call(model)
    fuse([(lora, strength)], {"": model.network})
    assert torch.allclose(call(model), rows, atol=2e-5)


def test_merging_is_diffusers_own(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ours, theirs = fresh(request, "tiny_sdxl"), fresh(request, "tiny_sdxl")
    path = kohya_file(tmp_path / "style.safetensors", ours.parts)
    names = ("text_encoder", "text_encoder_2")
    fuse([(read(path, ours), 0.8)], {"": ours.network} | {name: getattr(ours.parts, name) for name in names})
    theirs.parts.load_lora_weights(str(tmp_path), weight_name=path.name)
    theirs.parts.fuse_lora(lora_scale=0.8)
    theirs.parts.unload_lora_weights()
    for name in ("unet", *names):
        mine, other = (getattr(model.parts, name).state_dict() for model in (ours, theirs))
        assert all(torch.allclose(mine[key], other[key], atol=1e-6) for key in other)
    assert torch.allclose(encoded(ours, ["cat"]), encoded(theirs, ["cat"]), atol=1e-5)


def test_merging_twice_gives_the_same_bytes(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    models = [fresh(request, "tiny_sd", "bfloat16") for _ in range(2)]
    path = kohya_file(tmp_path / "style.safetensors", models[0].parts)
    for model in models:
        fuse([(read(path, model), 1.0)], {"": model.network})
    assert torch.equal(call(models[0]), call(models[1]))


# --- files that do not fit -------------------------------------------------------------------------------------------------


def test_a_layer_without_a_place_is_counted(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = loaded(request, "tiny_sd")
    state = halves("unet", pairs_for(model.network, ("to_q",)) | {"nowhere.to_q": (torch.ones(3, 32), torch.ones(32, 3))})
    with pytest.raises(ModelError, match=r"1 of its 9 layers have no place in this model \(first unet.nowhere.to_q"):
        read(write(tmp_path / "style.safetensors", state), model)


def test_a_file_that_failed_leaves_the_model_as_it_was(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = loaded(request, "tiny_sd")
    plain = call(model)
    state = halves("unet", {name: (down[:, :7], up) for name, (down, up) in pairs_for(model.network, ("to_q",)).items()})
    with pytest.raises(ModelError, match=r"does not fit this StableDiffusionPipeline.* size mismatch for "):
        read(write(tmp_path / "style.safetensors", state), model)
    assert torch.equal(call(model), plain)
    assert not [name for name, _ in model.network.named_modules() if "lora" in name]


@pytest.mark.parametrize("more", [{}, {"guidance_in_in_layer": (torch.ones(3, 8), torch.ones(8, 3))}], ids=["whole", "lost"])
def test_what_diffusers_leaves_out_does_not_hide_behind_a_fused_pair(
    more: Any, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """A fused pair of kohya's becomes three, so that there are more pairs than the file has and yet one is missing."""
    model: Any = load(FAMILIES["flux2"], tiny_model("Flux2KleinPipeline"))
    width = model.network.transformer_blocks[0].attn.to_q.weight.shape[1]
    fused = {"double_blocks_0_img_attn_qkv": (torch.ones(3, width), torch.ones(3 * width, 3))}
    path = write(tmp_path / "style.safetensors", kohya("lora_unet", fused | more))
    if more:
        with pytest.raises(ModelError, match=r"diffusers does not convert.*guidance_in_in_layer"):
            read(path, model)
    else:
        own = read(path, model).denoiser
        assert own is not None and len(own.pairs) == 3
