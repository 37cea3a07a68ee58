"""Folders of tiny random models, of the classes that the real ones have: built offline, in well under a second each.

They prove arithmetic (schedules, packing, guidance, scaling, masks), not pictures. :data:`BUILDERS` names a builder for every
diffusers pipeline; the fixtures that build each once a session are in ``tests/conftest.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

WORDS = ["red-apple", "cat", "lemon"]
SIDE = 16  # pixels of the pictures of Stable Diffusion, SDXL, SD3 and Flux; latents are 8×8
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def stable_diffusion(folder: Path) -> Path:
    """One CLIP, a UNet."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer = _clip_tokenizer(folder / "words")
    torch.manual_seed(0)
    return _saved(folder, StableDiffusionPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=32),
        vae=_autoencoder(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ))  # fmt: skip


def latent_consistency(folder: Path) -> Path:
    """As Stable Diffusion, with the guidance scale as an input of the UNet and a consistency model's scheduler."""
    import torch
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    tokenizer = _clip_tokenizer(folder / "words")
    torch.manual_seed(0)
    network = _unet(cross_attention_dim=32, time_cond_proj_dim=10)
    torch.nn.init.normal_(network.time_embedding.cond_proj.weight, std=0.5)
    return _saved(folder, LatentConsistencyModelPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=network,
        vae=_autoencoder(),
        scheduler=LCMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ))  # fmt: skip


def stable_diffusion_xl(folder: Path) -> Path:
    """Two text encoders, a pooled embedding, size conditions, the scheduler of SDXL base."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = _clip_tokenizer(folder / "words")
    torch.manual_seed(1)
    return _saved(folder, StableDiffusionXLPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, projected=True),
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        vae=_autoencoder(),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    ))  # fmt: skip


def stable_diffusion_3(folder: Path) -> Path:
    """Three text encoders, joint attention, a shifted flow."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = _clip_tokenizer(folder / "words")
    torch.manual_seed(2)
    t5 = _t5(64)
    return _saved(folder, StableDiffusion3Pipeline(
        text_encoder=_clip(tokenizer, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, projected=True),
        tokenizer_2=tokenizer,
        text_encoder_3=t5["text_encoder"],
        tokenizer_3=t5["tokenizer"],
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ),
        vae=_autoencoder(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ))  # fmt: skip


def flux(folder: Path) -> Path:
    """Of dev's kind: guidance embedded, dynamic shift. It needs a size: Flux has none of its own."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = _clip_tokenizer(folder / "words")
    torch.manual_seed(3)
    t5 = _t5(32)
    return _saved(folder, FluxPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5["text_encoder"],
        tokenizer_2=t5["tokenizer"],
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=_autoencoder(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ))  # fmt: skip


def qwen_image(folder: Path) -> Path:
    """Two streams, Qwen2.5-VL's text, an autoencoder of four latent channels that normalises each; pictures divide by 8."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(4)
    tokenizer = _qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{text}|>")
        for name, text in {
            "vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad",
        }.items()
    }  # fmt: skip
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
        "vocab_size": len(tokenizer),
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    return _saved(folder, QwenImagePipeline(
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=24,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 1.0, 0.7],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=8192,
            max_shift=0.9,
            shift_terminal=0.02,
            use_dynamic_shifting=True,
        ),
    ))  # fmt: skip


def z_image(folder: Path) -> Path:
    """Refiners and layers over [image, text], Qwen3's text at its own length."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Model

    torch.manual_seed(5)
    tokenizer = _qwen_tokenizer()
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    for name in ("x_pad_token", "cap_pad_token"):  # diffusers leaves both unset: they come with the weights
        torch.nn.init.normal_(getattr(network, name).data)
    return _saved(folder, ZImagePipeline(
        text_encoder=Qwen3Model(_qwen3(tokenizer, layers=2)),
        tokenizer=tokenizer,
        transformer=network,
        vae=_autoencoder(shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ))  # fmt: skip


def flux_2_klein(folder: Path) -> Path:
    """Of the kind that is not distilled: Qwen3's layers 9, 18 and 27, latents of 2×2 patches, a batch norm between."""
    import torch
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(6)
    tokenizer = _qwen_tokenizer()
    encoder = Qwen3ForCausalLM(_qwen3(tokenizer, layers=28))
    parts = _flux_2(guidance_embeds=False)
    return _saved(folder, Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer, is_distilled=False, **parts))


def flux_2_dev(folder: Path) -> Path:
    """As klein, with the guidance scale embedded, and Mistral 3's layers 10, 20 and 30 behind a processor."""
    import torch
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    torch.manual_seed(11)
    tokenizer = _qwen_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>{% endfor %}"
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    text = {"model_type": "mistral", "num_hidden_layers": 31, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    vision = {"model_type": "pixtral", "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Mistral3Config(
        text_config=text | size, vision_config=vision | size, image_token_index=tokenizer.convert_tokens_to_ids("[IMG]")
    )
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=template)
    parts = _flux_2(guidance_embeds=True)
    return _saved(folder, Flux2Pipeline(text_encoder=Mistral3ForConditionalGeneration(config), tokenizer=processor, **parts))


def _flux_2(*, guidance_embeds: bool) -> dict[str, Any]:
    """Denoiser, autoencoder and scheduler."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=[4] * 4,
        guidance_embeds=guidance_embeds,
    )
    return {"transformer": transformer, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}


def pixart_sigma(folder: Path) -> Path:
    """T5's tokens with their mask, a learned σ in half of the output's channels, the scheduler of PixArt-Σ."""
    from diffusers import PixArtSigmaPipeline

    return _pixart(folder, PixArtSigmaPipeline, sample_size=32, use_additional_conditions=False)


def pixart_alpha(folder: Path) -> Path:
    """As PixArt-Σ, with the picture's size and its ratio as conditions, which PixArt-α takes at 1024 px."""
    from diffusers import PixArtAlphaPipeline

    return _pixart(folder, PixArtAlphaPipeline, sample_size=128, use_additional_conditions=True)


def _pixart(folder: Path, pipeline: Any, **more: Any) -> Path:
    import torch
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    torch.manual_seed(7)
    return _saved(folder, pipeline(
        **_t5(32),
        transformer=PixArtTransformer2DModel(
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=6 if more["use_additional_conditions"] else 4,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=48 if more["use_additional_conditions"] else 32,
            out_channels=8,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            num_embeds_ada_norm=1000,
            **more,
        ),
        vae=_autoencoder(),
        scheduler=DPMSolverMultistepScheduler(),
    ))  # fmt: skip


def sana(folder: Path) -> Path:
    """Linear attention, Gemma's text behind an instruction, DPM-Solver++ 2M on the sigmas of a flow; pictures divide by 2."""
    import torch
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(8)
    tokenizer = _gemma_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    kinds, scales, layers = ("ResBlock", "EfficientViTBlock"), ((), (5,)), (1, 1)
    return _saved(folder, SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(config),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=32,
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=kinds,
            decoder_block_types=kinds,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            encoder_layers_per_block=layers,
            decoder_layers_per_block=layers,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
    ))  # fmt: skip


def chroma(folder: Path) -> Path:
    """As Flux, without pooled embedding, with T5's mask, and classifier-free guidance."""
    import torch
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    from pipeline.model.libraries import quiet

    torch.manual_seed(9)
    t5 = _t5(32)
    with quiet():
        network = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        )
    return _saved(folder, ChromaPipeline(
        **t5,
        transformer=network,
        vae=_autoencoder(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ))  # fmt: skip


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
    "Flux2KleinPipeline": flux_2_klein,
    "Flux2Pipeline": flux_2_dev,
    "PixArtSigmaPipeline": pixart_sigma,
    "PixArtAlphaPipeline": pixart_alpha,
    "SanaPipeline": sana,
    "ChromaPipeline": chroma,
    "LatentConsistencyModelPipeline": latent_consistency,
}
"""By the pipeline that a folder's ``model_index.json`` names: a function (folder) → the model's folder in it."""


# --- parts -----------------------------------------------------------------------------------------------------------------


def _saved(folder: Path, pipeline: Any) -> Path:
    from pipeline.model.libraries import quiet

    with quiet():
        pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    from jobs.lab.world.tokenizer import make_tokenizer

    make_tokenizer(folder, WORDS)
    return CLIPTokenizer.from_pretrained(folder)


def _clip(tokenizer: Any, *, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    end = tokenizer.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=32,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int) -> dict[str, Any]:
    """A tokenizer of single letters and an encoder of one layer."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in ["▁", *LETTERS])]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=64)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config)}


def _qwen_tokenizer(*more: str) -> Any:
    """Of single bytes, with the marks of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    names = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    tokenizer = Qwen2Tokenizer(
        vocab={name: number for number, name in enumerate(names)},
        merges=[],
        model_max_length=2048,
        extra_special_tokens=["<|im_start|>", "<|im_end|>", *more],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _qwen3(tokenizer: Any, *, layers: int) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )


def _gemma_tokenizer() -> Any:
    """Of single letters, and of whole words for the long instruction that stands before Sana's prompts."""
    from diffusers import SanaPipeline
    from transformers import GemmaTokenizer

    instruction = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    names = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS])
    merges: dict[tuple[str, str], None] = {}
    for word in re.findall("[a-z]{3,}", " ".join(instruction)):
        for end in range(len(word)):  # ▁, ▁p, ▁pr, ▁pro, …
            merges["▁" + word[:end], word[end]] = None
            names["▁" + word[: end + 1]] = None
    return GemmaTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=list(merges))


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **more,
    )


def _autoencoder(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=0.5,
        **more,
    )
