"""LoRA files for tiny random models, in the formats that trainers write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
ALPHA = 2.0
UNET = ("attn", "ff.net", "proj_in", "resnets.0.conv1", "time_emb_proj")  # linear layers, and convolutions of 3×3 (LoCon)
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TRANSFORMER = ("to_q", "to_k", "to_v", "to_out.0")


def pairs_for(network: Any, names: tuple[str, ...], *, rank: int = 3, seed: int = 0, size: float = 0.15) -> Pairs:
    """Random pairs for the layers whose names hold one of these."""
    generator, pairs = torch.Generator().manual_seed(seed), Pairs()
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and any(part in name for part in names):
            shape = module.weight.shape
            down = size * torch.randn(rank, *shape[1:], generator=generator)
            pairs[name] = (down, size * torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator))
    return pairs


def empty_pairs(network: Any, names: tuple[str, ...]) -> Pairs:
    """Of rank 1 and zeros, for the layers whose names hold one of these."""
    pairs = Pairs()
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and any(part in name for part in names):
            out, *rest = module.weight.shape
            pairs[name] = torch.zeros(1, *rest), torch.zeros(out, 1, *[1] * (len(rest) - 1))
    return pairs


def kohya(prefix: str, pairs: Pairs, *, spread: int = 1) -> dict[str, torch.Tensor]:
    """kohya's names, with an α that is not the rank; with a ``spread`` above 1 it differs from layer to layer."""
    state = {}
    for number, (name, (down, up)) in enumerate(pairs.items()):
        key, alpha = f"{prefix}_{name.replace('.', '_')}", torch.tensor(ALPHA + number % spread)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
    return state


def clip_names(pairs: Pairs) -> Pairs:
    """CLIP's layers as older files name them."""
    return {name if name.startswith("text_model.") else f"text_model.{name}": both for name, both in pairs.items()}


def halves(prefix: str, pairs: Pairs) -> dict[str, torch.Tensor]:
    """peft's names, which diffusers writes today."""
    state = {}
    for name, (down, up) in pairs.items():
        state |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
    return state


def old_style(pairs: Pairs) -> dict[str, torch.Tensor]:
    """diffusers' names of 2023: the layers of attention processors."""
    state = {}
    for name, (down, up) in pairs.items():
        for end in ("to_q", "to_k", "to_v", "to_out.0"):
            if name.endswith(end):
                key = f"unet.{name.removesuffix(end)}processor.{end.removesuffix('.0')}_lora"
                state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return state


def xlabs(transformer: Any, *, rank: int = 3) -> dict[str, torch.Tensor]:
    """XLabs' names for Flux: fused q, k and v of the double blocks."""
    width, generator = transformer.inner_dim, torch.Generator().manual_seed(1)

    def pair(key: str, out: int) -> dict[str, torch.Tensor]:
        down, up = (0.15 * torch.randn(*shape, generator=generator) for shape in ((rank, width), (out, rank)))
        return {f"{key}.down.weight": down, f"{key}.up.weight": up}

    at = "double_blocks.0.processor"
    return pair(f"{at}.qkv_lora1", 3 * width) | pair(f"{at}.proj_lora1", width) | pair(f"{at}.qkv_lora2", 3 * width)


def write(path: Path, state: Mapping[str, torch.Tensor], **stated: str) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=stated or None)
    return path


def kohya_file(path: Path, pipeline: Any, *, text: bool = True, seed: int = 0, spread: int = 1, **stated: str) -> Path:
    """A kohya file for a pipeline with a UNet: denoiser and, where wanted, every CLIP text encoder."""
    state = kohya("lora_unet", pairs_for(pipeline.unet, UNET, seed=seed), spread=spread)
    second = getattr(pipeline, "text_encoder_2", None)
    encoders = {"lora_te" if second is None else "lora_te1": pipeline.text_encoder, "lora_te2": second} if text else {}
    for number, (prefix, encoder) in enumerate(encoders.items()):
        if encoder is not None:
            state |= kohya(prefix, clip_names(pairs_for(encoder, TEXT, seed=seed + 7 + number)), spread=spread)
    return write(path, state, **stated)
