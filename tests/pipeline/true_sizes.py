"""Denoisers of the sizes that are released, without weights: on the ``meta`` device, where shapes alone are worked out.

A mode that sees every operation counts what would wait for an accelerator: copies from it, numbers read from it, and copies to
it, also those that an operation makes unseen because one of its arguments is on the host.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import ModelConfig
from pipeline.model.conditioning import Conditioning
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.families.registry import model_classes
from pipeline.model.libraries import quiet

META = torch.device("meta")
EVERY = bool(os.environ.get("CLEARANCE_TRUE_SIZES"))  # every size and every count, as `make nightly` has them; else a few
SDXL: dict[str, Any] = dict(
    sample_size=128,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    cross_attention_dim=2048,
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SD35_LARGE: dict[str, Any] = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=38,
    attention_head_dim=64,
    num_attention_heads=38,
    joint_attention_dim=4096,
    caption_projection_dim=2432,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=192,
    qk_norm="rms_norm",
)
FLUX1_DEV: dict[str, Any] = dict(
    patch_size=1,
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
)


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        **more,
    )


def _on_host(scheduler: Any, **more: Any) -> Any:
    with torch.device("cpu"):
        return scheduler(**more)


def _sdxl() -> tuple[str, dict[str, Any], Conditioning]:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    parts = {"unet": UNet2DConditionModel(**SDXL), "vae": _vae(), "scheduler": _on_host(EulerDiscreteScheduler)}
    return "StableDiffusionXLPipeline", parts, _context((77, 2048), pooled=1280)


def _sd35() -> tuple[str, dict[str, Any], Conditioning]:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    vae = _vae(latent_channels=16, shift_factor=0.0609)
    parts = {
        "transformer": SD3Transformer2DModel(**SD35_LARGE),
        "vae": vae,
        "scheduler": _on_host(FlowMatchEulerDiscreteScheduler, shift=3.0),
    }
    return "StableDiffusion3Pipeline", parts, _context((333, 4096), pooled=2048)


def _flux1() -> tuple[str, dict[str, Any], Conditioning]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    vae = _vae(latent_channels=16, shift_factor=0.1159)
    scheduler = _on_host(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True)
    return (
        "FluxPipeline",
        {"transformer": FluxTransformer2DModel(**FLUX1_DEV), "vae": vae, "scheduler": scheduler},
        _context((512, 4096), pooled=768),
    )


def _qwen_image() -> tuple[str, dict[str, Any], Conditioning]:
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    scheduler = _on_host(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True, shift_terminal=0.02)
    vae = AutoencoderKLQwenImage(base_dim=24, num_res_blocks=1)
    parts = {"transformer": QwenImageTransformer2DModel(), "vae": vae, "scheduler": scheduler}
    tokens = Conditioning(torch.empty(512, 3584, dtype=torch.bfloat16), torch.empty(512, dtype=torch.bool))
    return "QwenImagePipeline", parts, tokens


def _flux2() -> tuple[str, dict[str, Any], Conditioning]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    scheduler = _on_host(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True)
    vae = AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    parts = {"transformer": Flux2Transformer2DModel(), "vae": vae, "scheduler": scheduler}
    return "Flux2Pipeline", parts, Conditioning(torch.empty(512, 15360, dtype=torch.bfloat16))


def _context(tokens: tuple[int, int], pooled: int) -> Conditioning:
    return Conditioning(torch.empty(*tokens, dtype=torch.bfloat16), pooled=torch.empty(pooled, dtype=torch.bfloat16))


RELEASED: dict[str, tuple[Callable[[], tuple[str, dict[str, Any], Conditioning]], float]] = {
    "SDXL": (_sdxl, 2.57),
    "SD 3.5 large": (_sd35, 8.06),
    "Flux.1 dev": (_flux1, 11.90),
    "Qwen-Image": (_qwen_image, 20.43),
    "FLUX.2 dev": (_flux2, 32.22),
}
"""Name → how to make it, and its parameters in thousands of millions."""


def built(name: str) -> tuple[LatentDiffusion, Conditioning]:
    """The model at 1024 × 1024 in bfloat16, and a conditioning of its shape."""
    with META:
        pipeline, parts, context = RELEASED[name][0]()
    config = ModelConfig(path="-", device="meta", dtype="bfloat16", size=1024)
    with quiet():
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(torch.bfloat16)
    return model_classes()[pipeline].of(parts, config), context


class Waits(TorchDispatchMode):
    """Counts what would wait for an accelerator, and what is copied to it.

    Attributes:
        counts: ``copies from``, ``numbers read``, ``copies to``, and ``hidden copies to``: an operation with arguments in both
            places.
        bytes: of the first and the third.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode an operation made of others comes here whole, a copy to a device among them
                return func.decompose(*args, **kwargs)
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = {x.device.type for x in tensors if x.ndim}
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero") and any(x.is_meta for x in tensors):
            self.counts["numbers read"] += 1
            return torch.zeros(0, tensors[0].ndim, dtype=torch.int64, device=META) if name == "aten::nonzero" else 1
        if name == "aten::index" and any(i is not None and i.is_meta and i.dtype is torch.bool for i in args[1]):
            self.counts["numbers read"] += 1  # how many are True
            return args[0].new_empty(0, *args[0].shape[1:])
        if name in ("aten::_to_copy", "aten::copy_"):
            source, target = tensors[-1], torch.device(kwargs.get("device") or tensors[0].device)
            if source.is_meta and target.type == "cpu":
                self._count("copies from", source)
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            if not source.is_meta and target.type == "meta":
                self._count("copies to", source)
                return func(*args, **kwargs)
        if here == {"cpu", "meta"}:
            self.counts["hidden copies to"] += 1
        return func(*args, **kwargs)

    @property
    def waited(self) -> dict[str, int]:
        """What the host waits for: copies from the device and numbers read."""
        return {
            what: count for what, count in self.counts.items() if not what.endswith("copies to") or what.startswith("hidden")
        }

    def _count(self, what: str, tensor: torch.Tensor) -> None:
        self.counts[what] += 1
        self.bytes[what] += tensor.nbytes
