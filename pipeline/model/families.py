"""Diffusion models behind one interface: what the engine needs from Stable Diffusion, and nothing else.

Every call has a fixed, padded number of rows: with a fixed shape a row's result does not depend on its neighbours
(byte for byte), with a varying one it does. Stable Diffusion 1.x and 2.x are here; SDXL, SD3 and Flux are not yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from index.errors import ModelError
from index.torchvision_ops import ensure
from pipeline.config import ModelConfig

if TYPE_CHECKING:
    import torch

TEXT_ROWS = 8  # rows of every text encoder call
PICTURE_ROWS = 8  # rows of every decoder and encoder call
STICKERS = Path(__file__).resolve().parents[1] / "weights" / "stickers"


class DiffusionModel(Protocol):
    """A latent diffusion model as the engine sees it.

    Attributes:
        family: the class it belongs to, e.g. ``sd``.
        digest: digest of configuration and weights.
        latent_shape: (C, h, w) of one latent.
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``.
        alphas_cumprod: ᾱ_t for every training timestep, float64 (T,).
    """

    family: str
    digest: str
    latent_shape: tuple[int, int, int]
    prediction_type: str
    alphas_cumprod: np.ndarray

    def timesteps(self, steps: int) -> list[int]:
        """The training timesteps visited in ``steps`` denoising steps, first to last."""
        ...

    def truncated(self, prompt: str) -> bool:
        """Whether the text encoder drops the prompt's end."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts → text embeddings (N, T, D), one by one in padded calls."""
        ...

    def denoise(self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Latents float32 (R, C, h, w), timesteps int64 (R,), context (R, T, D) → raw output float32 (R, C, h, w)."""
        ...

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents float32 (N, C, h, w) → pictures uint8 RGB (N, H, W, 3)."""
        ...

    def decode_size(self) -> tuple[int, int]:
        """Width and height of a decoded picture, in pixels."""
        ...

    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """Pictures uint8 RGB (N, H, W, 3) of the model's own size → latents float32 (N, C, h, w)."""
        ...

    def attention_blocks(self) -> list[tuple[str, Any]]:
        """Name and module of every transformer block whose tokens are picture positions."""
        ...


def resolve(config: ModelConfig) -> Path:
    """The folder of the configured model: the embedded world, a local folder, or a hub snapshot."""
    if config.path == "stickers":
        return STICKERS / "model"
    folder = Path(config.path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or config.path.startswith("."):
        raise ModelError("folder does not exist", where=config.path, fix="Name a diffusers folder, a hub id, or 'stickers'")
    from huggingface_hub import snapshot_download

    # One set of weights, in safetensors: hubs keep the same model in several precisions and formats.
    wanted = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
    unwanted = ["*.fp16.*", "*non_ema*", "safety_checker/*", "feature_extractor/*"]
    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision or None,
                local_files_only=not config.allow_download,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
            )
        )
    except Exception as error:
        fix = (
            "Check the id and the network"
            if config.allow_download
            else "Set model.allow_download = true to fetch it, or name a folder"
        )
        raise ModelError(f"the model is not on this machine ({type(error).__name__})", where=config.path, fix=fix) from error


def native_dtype() -> str:
    """``bfloat16`` where the CPU has instructions for it, else ``float32``: emulated bfloat16 is many times slower."""
    import torch

    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def folder_digest(folder: Path) -> str:
    """Digest of a diffusers folder: every .json, .txt and .safetensors file, by name and content."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".txt", ".safetensors"} and path.is_file():
            with path.open("rb") as file:
                lines.append(f"{path.relative_to(folder).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    if not lines:
        raise ModelError("holds no model files", where=str(folder), fix="Name a diffusers folder with safetensors weights")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_digests(folder: Path) -> None:
    """Compare a shipped folder with its ``digests.json`` (path → sha256); folders without one are not checked."""
    listing = folder / "digests.json"
    if not listing.exists():
        return
    for name, expected in json.loads(listing.read_text(encoding="utf-8")).items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        if found != expected:
            raise ModelError(
                f"digest is {found[:12]}, the card says {expected[:12]}",
                where=str(path),
                fix="Restore the file from the repository",
            )


def load_model(config: ModelConfig) -> DiffusionModel:
    """Load the configured model for inference. No download unless ``allow_download`` says so."""
    folder = resolve(config)
    index = folder / "model_index.json"
    if not index.exists():
        raise ModelError("has no model_index.json", where=str(folder), fix="Name a folder saved by a diffusers pipeline")
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ModelError(
            f"pipelines of class {kind} cannot be run yet", where=str(folder), fix="Use a Stable Diffusion 1.x or 2.x model"
        )
    check_digests(folder.parent)
    return StableDiffusion(folder, config)


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet2DConditionModel, AutoencoderKL or AutoencoderTiny."""

    family = "sd"

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        import torch

        ensure()
        from diffusers import StableDiffusionPipeline

        self._dtype = getattr(torch, config.dtype)
        self._device = torch.device(config.device)
        with _quiet():
            try:
                parts = StableDiffusionPipeline.from_pretrained(
                    folder, safety_checker=None, requires_safety_checker=False, feature_extractor=None, dtype=torch.float32
                )
            except Exception as error:
                raise ModelError(f"diffusers cannot load it: {error}", where=str(folder), fix="Check the folder") from error
            self.unet = parts.unet.to(self._device, self._dtype).eval().requires_grad_(False)
        self._torch = torch
        self._tokenizer, self._scheduler = parts.tokenizer, parts.scheduler
        self._text = parts.text_encoder.to(self._device).eval().requires_grad_(False)
        self._vae = parts.vae.to(self._device).eval().requires_grad_(False)
        self._scaling = float(parts.vae.config.scaling_factor)
        side = int(self.unet.config.sample_size)
        self._pixels_per_latent = int(parts.vae_scale_factor)
        self.latent_shape = (int(self.unet.config.in_channels), side, side)
        self.prediction_type = str(self._scheduler.config.prediction_type)
        self.alphas_cumprod = np.asarray(self._scheduler.alphas_cumprod, dtype=np.float64)
        self.digest = folder_digest(folder)

    def timesteps(self, steps: int) -> list[int]:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self._scheduler.config)
        scheduler.set_timesteps(steps)
        return [int(t) for t in scheduler.timesteps]

    def truncated(self, prompt: str) -> bool:
        ids = self._tokenizer(prompt, truncation=False, verbose=False).input_ids
        return len(ids) > int(self._tokenizer.model_max_length)

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        torch = self._torch
        ids = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.inference_mode():
            return _padded(lambda x: self._text(x.to(self._device))[0], ids, TEXT_ROWS)

    def denoise(self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        with self._torch.inference_mode():
            out = self.unet(
                latents.to(self._device, self._dtype), timesteps.to(self._device), context.to(self._device, self._dtype)
            )
            return out.sample.float().cpu()  # type: ignore[no-any-return]

    def denoise_tensor(self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """As :meth:`denoise`, differentiable and unpadded, for steering by gradients."""
        inputs = (latents.to(self._device, self._dtype), timesteps.to(self._device), context.to(self._device, self._dtype))
        return self.unet(*inputs).sample.float().cpu()  # type: ignore[no-any-return]

    def decode_tensor(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 (N, C, h, w) → pictures float32 (N, 3, H, W) around [−1, 1], differentiable and unpadded."""
        return self._vae.decode(latents.to(self._device) / self._scaling).sample.float().cpu()  # type: ignore[no-any-return]

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        torch = self._torch
        with torch.inference_mode():
            out = _padded(
                lambda x: self._vae.decode(x.to(self._device) / self._scaling).sample.float().cpu(), latents, PICTURE_ROWS
            )
        pixels = ((out.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().numpy()

    def decode_size(self) -> tuple[int, int]:
        side = self.latent_shape[1] * self._pixels_per_latent
        return side, side

    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        torch = self._torch

        def run(x: Any) -> Any:
            out = self._vae.encode(x.to(self._device))
            latents = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
            return latents.float().cpu() * self._scaling

        x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            return _padded(run, x, PICTURE_ROWS)

    def attention_blocks(self) -> list[tuple[str, Any]]:
        from diffusers.models.attention import BasicTransformerBlock

        return [(name, module) for name, module in self.unet.named_modules() if isinstance(module, BasicTransformerBlock)]


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no remarks while a model loads: diffusers remarks that AutoencoderTiny is not AutoencoderKL, and the like."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    kits = (diffusers_logging, transformers_logging)
    levels = [kit.get_verbosity() for kit in kits]
    bars = [kit.is_progress_bar_enabled() for kit in kits]
    for kit in kits:
        kit.set_verbosity_error()
        kit.disable_progress_bar()
    try:
        yield
    finally:
        for kit, level, bar in zip(kits, levels, bars, strict=True):
            kit.set_verbosity(level)
            if bar:
                kit.enable_progress_bar()


def _padded(call: Any, rows: torch.Tensor, size: int) -> torch.Tensor:
    """Apply ``call`` to blocks of exactly ``size`` rows, the last one padded by repeating its first row."""
    import torch

    blocks = []
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        pad = size - len(block)
        full = torch.cat([block, block[:1].expand(pad, *block.shape[1:])]) if pad else block
        blocks.append(call(full.contiguous())[: len(block)])
    return torch.cat(blocks)
