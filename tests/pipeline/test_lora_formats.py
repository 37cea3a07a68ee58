"""The forms of LoRA files that diffusers converts, class by class: every layer finds a place, and a row gets peft's bytes.

Two formats cannot be tried on tiny models, because diffusers' converters know the real ones' widths or blocks: kohya's for
FLUX.1, and sgm's names for SDXL. Those files have the layers of the released networks, on the ``meta`` device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import AdapterConfig
from pipeline.model.adapters.file import check_base, look_at_adapter
from pipeline.model.adapters.lora import Lora, load_lora
from pipeline.model.adapters.lowrank import RowAdapter, adapted
from tests.pipeline.families import FAMILIES, load
from tests.pipeline.lora_files import TEXT, Pairs, clip_names, empty_pairs, kohya, pairs_for, write
from tests.pipeline.true_sizes import EVERY, built

State = dict[str, torch.Tensor]
HALVES = {
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "kohya": (".lora_down.weight", ".lora_up.weight"),
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
STREAMS = (*ATTENTION, "add_k_proj", "to_add_out", "img_mlp", "txt_mlp", "img_mod", "txt_mod")
ONE_BLOCK = ("layers.0.attention.to_", "layers.1.feed_forward")


def named(pairs: Pairs, prefix: str, halves: str = "peft", *, alpha: float | None = None, dots: bool = True) -> State:
    """Pairs under a prefix; ``dots``: else underscores stand in their place."""
    state: State = {}
    for name, both in pairs.items():
        key = prefix + (name if dots else name.replace(".", "_"))
        state |= dict(zip((key + end for end in HALVES[halves]), both, strict=True))
        state |= {} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)}
    return state


def a_pair(out: int, inward: int, *, rank: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(out)
    return 0.15 * torch.randn(rank, inward, generator=generator), 0.15 * torch.randn(out, rank, generator=generator)


def of_blocks(network: Any) -> Pairs:
    """Layers of FLUX.2 as its authors name them: q, k and v are one."""
    width, block, single = network.inner_dim, network.transformer_blocks[0], network.single_transformer_blocks[0].attn
    return {
        "double_blocks.0.img_attn.qkv": a_pair(3 * width, width),
        "double_blocks.0.img_attn.proj": a_pair(width, width),
        "double_blocks.0.img_mlp.0": a_pair(*block.ff.linear_in.weight.shape),
        "double_blocks.0.txt_mlp.2": a_pair(*block.ff_context.linear_out.weight.shape),
        "single_blocks.0.linear1": a_pair(*single.to_qkv_mlp_proj.weight.shape),
        "single_blocks.0.linear2": a_pair(*single.to_out.weight.shape),
    }


def texts(model: Any, *, prefix: str = "lora_te1") -> State:
    return kohya(prefix, clip_names(pairs_for(model.parts.text_encoder, TEXT)))


def fused(model: Any) -> Pairs:
    """Z-Image's q, k and v as one layer, as its authors' own code has them."""
    width = model.network.layers[0].attention.to_q.weight.shape[0]
    return {"layers.0.attention.qkv": a_pair(3 * width, width), "layers.0.attention.out": a_pair(width, width)}


def old_keys(state: State) -> State:
    return {name.replace("to_out.0", "out"): value for name, value in state.items()}


Written = Callable[[Any], State]
FORMATS: dict[str, dict[str, Written]] = {
    "sd": {
        "kohya with text": lambda m: kohya("lora_unet", pairs_for(m.network, ATTENTION)) | texts(m, prefix="lora_te"),
    },
    "sdxl": {
        "kohya without alpha": lambda m: named(pairs_for(m.network, ("ff.net",)), "lora_unet_", "kohya", dots=False),
        "kohya, all of a UNet's layers": lambda m: kohya(
            "lora_unet", pairs_for(m.network, ("conv_in", "conv_out", "samplers", "conv_shortcut", "conv2", "to_q"))
        ),
        "alpha with one axis": lambda m: {
            name: value.view(1) if "alpha" in name else value
            for name, value in kohya("lora_unet", pairs_for(m.network, ("to_q",))).items()
        },
        "peft with text": lambda m: named(pairs_for(m.network, ATTENTION), "unet.")
        | named(pairs_for(m.parts.text_encoder, TEXT), "text_encoder.")
        | named(pairs_for(m.parts.text_encoder_2, TEXT), "text_encoder_2."),
    },
    "sd3": {
        "peft with text": lambda m: named(pairs_for(m.network, ATTENTION), "transformer.")
        | named(pairs_for(m.parts.text_encoder, TEXT), "text_encoder.")
        | named(pairs_for(m.parts.text_encoder_2, TEXT), "text_encoder_2."),
    },
    "flux": {
        "ai-toolkit": lambda m: named(pairs_for(m.network, (*ATTENTION, "ff.net", "norm1.linear")), "transformer."),
        "ai-toolkit with alpha": lambda m: named(pairs_for(m.network, ATTENTION), "transformer.", alpha=2.0),
        "transformer, kohya's halves": lambda m: named(pairs_for(m.network, ATTENTION), "transformer.", "kohya"),
        "OneTrainer with text": lambda m: named(
            pairs_for(m.network, (*ATTENTION, "x_embedder", "context_embedder")), "lora_transformer_", "kohya", alpha=2.0,
            dots=False,
        ) | texts(m),
        "peft with text": lambda m: named(pairs_for(m.network, ATTENTION), "transformer.")
        | named(pairs_for(m.parts.text_encoder, TEXT), "text_encoder."),
    },
    "chroma": {"peft": lambda m: named(pairs_for(m.network, (*ATTENTION, "ff.net")), "transformer.")},
    "qwen_image": {
        "ai-toolkit": lambda m: named(pairs_for(m.network, STREAMS), "diffusion_model."),
        "diffusion_model, kohya's halves": lambda m: named(
            pairs_for(m.network, STREAMS), "diffusion_model.", "kohya", alpha=2.0
        ),
        "lightning": lambda m: named(pairs_for(m.network, STREAMS), "", "kohya", alpha=2.0),
        "default": lambda m: named(pairs_for(m.network, STREAMS), "", "default"),
        "kohya": lambda m: named(
            pairs_for(m.network, (*STREAMS, "img_in", "proj_out")), "lora_unet_", "kohya", alpha=2.0, dots=False
        ),
    },
    "z_image": {
        "ai-toolkit": lambda m: named(pairs_for(m.network, (*ATTENTION, "adaLN_modulation.0")), "diffusion_model."),
        "ai-toolkit with alpha": lambda m: named(pairs_for(m.network, ONE_BLOCK), "diffusion_model.", alpha=2.0),
        "diffusion_model, kohya's halves": lambda m: old_keys(
            named(pairs_for(m.network, ONE_BLOCK), "diffusion_model.", "kohya", alpha=2.0)
        ),
        "kohya": lambda m: named(pairs_for(m.network, ONE_BLOCK), "lora_unet_", "kohya", alpha=2.0, dots=False),
        "kohya, fused": lambda m: named(fused(m), "lora_unet_", "kohya", alpha=2.0, dots=False),
        "default": lambda m: named(pairs_for(m.network, ONE_BLOCK), "", "default"),
    },
    "flux2": {
        "ai-toolkit": lambda m: named(of_blocks(m.network), "diffusion_model."),
        "peft without its model's name": lambda m: named(of_blocks(m.network), "base_model.model."),
        "kohya": lambda m: named(of_blocks(m.network), "lora_unet_", "kohya", alpha=2.0, dots=False),
    },
    "sana": {"peft": lambda m: named(pairs_for(m.network, (*ATTENTION, "conv_inverted", "conv_point")), "transformer.")},
}  # fmt: skip
CASES = [(name, form) for name, forms in FORMATS.items() for form in forms]


def read(path: Path, model: Any) -> Lora:
    found = look_at_adapter(AdapterConfig(path=str(path)), base=Path())
    check_base(found, model.family, model.pipeline)
    return load_lora(found, model.parts, model.denoiser)


def call(model: Any) -> torch.Tensor:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    context = model.encode_prompts(["cat"])[0].expand(2)
    return model.denoise(latents, torch.full((2,), 500.0), context)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model_of(tiny_model: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda name: load(FAMILIES[name], tiny_model(FAMILIES[name].pipeline)))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_row_has_pefts_bytes(name: str, form: str, model_of: Callable[[str], Any], tmp_path: Path) -> None:
    model = model_of(name)
    path, plain = write(tmp_path / "style.safetensors", FORMATS[name][form](model)), call(model)
    lora = read(path, model)
    assert lora.denoiser is not None and sum(len(one.pairs) for _, one in lora.parts) >= lora.file.layers
    with adapted(model.network, [RowAdapter(lora.denoiser, 1.0, (1,))]):
        ours = call(model)
    with torch.inference_mode(False):
        model.parts.load_lora_weights(str(tmp_path), weight_name=path.name)
    model.network.requires_grad_(False)
    for part in lora.text:  # the same conditionings
        getattr(model.parts, part).disable_adapters()
    theirs = call(model)
    model.parts.unload_lora_weights()
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], theirs[1]) and not torch.equal(theirs[1], plain[1])


# --- the released networks -------------------------------------------------------------------------------------------------

LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "samplers.0.conv")
INSIDE = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection"}


def sgm(state: State) -> State:
    """The names that SDXL's layers have in its authors' code, and so in most files of the web."""

    def inward(found: re.Match[str]) -> str:
        return f"input_blocks_{3 * int(found[1]) + int(found[3]) + 1}_{int(found[2] == 'attentions')}_"

    def outward(found: re.Match[str]) -> str:
        return f"output_blocks_{3 * int(found[1]) + int(found[3])}_{int(found[2] == 'attentions')}_"

    out = State()
    for key, value in state.items():
        name = re.sub(r"down_blocks_(\d)_(resnets|attentions)_(\d)_", inward, key)
        name = re.sub(r"down_blocks_(\d)_downsamplers_0_conv", lambda m: f"input_blocks_{3 * int(m[1]) + 3}_0_op", name)
        name = re.sub(r"up_blocks_(\d)_(resnets|attentions)_(\d)_", outward, name)
        name = re.sub(r"up_blocks_(\d)_upsamplers_0_", lambda m: f"output_blocks_{3 * int(m[1]) + 2}_2_", name)
        for theirs, ours in (("attentions_0", "1"), ("resnets_0", "0"), ("resnets_1", "2")):
            name = name.replace(f"mid_block_{theirs}_", f"middle_block_{ours}_")
        for theirs, ours in INSIDE.items():
            name = name.replace(theirs, ours)
        out[name] = value
    return out


def flux_layers(*, width: int = 3072, double: int = 19, single: int = 38) -> Pairs:
    """All layers of FLUX.1's blocks that trainers train, as kohya names them."""
    shapes = {}
    for i in range(double):
        for side in ("img", "txt"):
            at = f"double_blocks_{i}_{side}"
            shapes |= {f"{at}_attn_qkv": (3, 1), f"{at}_attn_proj": (1, 1), f"{at}_mlp_0": (4, 1), f"{at}_mlp_2": (1, 4)}
            shapes |= {f"{at}_mod_lin": (6, 1)}
    for i in range(single):
        at = f"single_blocks_{i}"
        shapes |= {f"{at}_linear1": (7, 1), f"{at}_linear2": (1, 5), f"{at}_modulation_lin": (3, 1)}
    return {name: (torch.zeros(1, width * inward), torch.zeros(width * out, 1)) for name, (out, inward) in shapes.items()}


RELEASED: dict[str, tuple[str, Written, int, int]] = {  # → the network, the writer, pairs in the file, layers of the network
    "FLUX.1, kohya": ("Flux.1 dev", lambda _: kohya("lora_unet", flux_layers()), 304, 494),  # q, k, v and the rest apart
    "SDXL, kohya": ("SDXL", lambda m: kohya("lora_unet", empty_pairs(m.network, LINEAR + CONVOLUTIONS)), 788, 788),
    "SDXL, sgm": ("SDXL", lambda m: sgm(kohya("lora_unet", empty_pairs(m.network, LINEAR + CONVOLUTIONS))), 788, 788),
}


@pytest.mark.parametrize("form", RELEASED if EVERY else [*RELEASED][:1])
def test_every_layer_of_a_released_network_finds_its_place(form: str, tmp_path: Path) -> None:
    name, writer, pairs, layers = RELEASED[form]
    model, _ = built(name)
    lora = read(write(tmp_path / "style.safetensors", writer(model)), model)
    assert lora.file.layers == pairs
    assert lora.denoiser is not None and len(lora.denoiser.pairs) == layers
