"""Diffusion models behind one interface: what the engine needs of a model, which classes there are, and how one is found.

The class is read from the folder's ``model_index.json``: Stable Diffusion 1.x and 2.x (:mod:`pipeline.model.sd`), SDXL
(:mod:`pipeline.model.sdxl`), SD3 (:mod:`pipeline.model.sd3`) and Flux (:mod:`pipeline.model.flux`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from index.errors import ModelError
from pipeline.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from pipeline.outcome import PaddedRows

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline folder that are not loaded
LESS = 'Draw smaller pictures (model.size), choose model.dtype = "bfloat16", or use a device with more memory'
STICKERS = Path(__file__).resolve().parents[1] / "weights" / "stickers"


class DiffusionModel(Protocol):
    """A latent diffusion model as the engine sees it.

    A *conditioning* is one float32 tensor per prompt, of a fixed shape; only the model reads what is in it (token embeddings,
    and for some classes pooled ones). Every network call has a fixed, padded number of rows: with a fixed shape a row's result
    does not depend on its neighbours (byte for byte), with a varying one it does.

    Attributes:
        family: ``sd``, ``sdxl``, ``sd3`` or ``flux``.
        digest: digest of configuration and weights.
        latent_shape: (C, h, w) of one latent.
        conditioning_shape: of one conditioning.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``.
        scheduler_config: the folder's scheduler configuration.
        distilled: guidance is inside the network (Flux), so that a sample owns one row instead of two.
        network: the denoiser itself, a torch module whose tensors have the call's rows first.
    """

    family: str
    digest: str
    latent_shape: tuple[int, int, int]
    conditioning_shape: tuple[int, ...]
    prediction_type: str
    scheduler_config: Mapping[str, Any]
    distilled: bool
    network: Any

    def scheduled(self, scheduler: Any, steps: int, **changes: Any) -> Any:
        """A diffusers scheduler of that class, of this model's configuration (and changes), set to ``steps`` steps."""
        ...

    def truncated(self, prompt: str) -> bool:
        """Whether every text encoder drops the prompt's end."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts → conditionings (N, …), one by one in padded calls."""
        ...

    def word_room(self) -> int:
        """How many learned tokens a prompt has room for; 0 where this class of model takes none."""
        ...

    def encode_words(self, text: str, vectors: torch.Tensor) -> torch.Tensor:
        """The conditioning of text ⊕ learned tokens with these vectors (n, D).

        Raises:
            ConfigError: this class of model knows no new tokens, or they do not fit its text encoder.
        """
        ...

    def denoise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, guidance: float = 1.0
    ) -> torch.Tensor:
        """One call of the denoiser.

        Args:
            latents: float32 (R, C, h, w).
            timesteps: int64 or float32 (R,).
            context: conditionings (R, …).
            guidance: the scale that a network with guidance inside is told; others ignore it.

        Returns:
            Raw output float32 (R, C, h, w).
        """
        ...

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents float32 (N, C, h, w) → pictures uint8 RGB (N, H, W, 3).

        Raises:
            ModelError: the decoder's output is not finite.
        """
        ...

    def padded_rows(self) -> PaddedRows:
        """Rows that the calls of text encoder, encoder and decoder have had so far; more than one after memory ran out. Of the
        other networks it says nothing."""
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
    return _from_hub(config)


def _from_hub(config: ModelConfig) -> Path:
    """The snapshot of a hub id, from this machine's cache or, where the configuration allows it, downloaded."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str] | None) -> Path:
        unwanted = ["*.fp16.*", "*non_ema*"] if not config.variant else ["*non_ema*"]
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision or None,
                local_files_only=not config.allow_download,
                allow_patterns=patterns,
                ignore_patterns=unwanted,
            )
        )

    try:
        folder = fetch(["model_index.json"])
        if not config.allow_download:
            return folder
        # Hubs keep the same model in several precisions and formats: one set of weights, in safetensors, of the parts in use.
        weights = f"*.{config.variant}*.safetensors" if config.variant else "*.safetensors"
        wanted = [f"{part}/{kind}" for part in components(folder) for kind in ("*.json", "*.txt", "*.model", weights)]
        return fetch(["model_index.json", *wanted])
    except ModelError:
        raise
    except Exception as error:
        fix = (
            "Check the id and the network"
            if config.allow_download
            else "Set model.allow_download = true to fetch it, or name a folder"
        )
        raise ModelError(f"the model is not on this machine ({type(error).__name__})", where=config.path, fix=fix) from error


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's ``model_index.json``."""
    path = folder / "model_index.json"
    if not path.exists():
        raise ModelError("has no model_index.json", where=str(folder), fix="Name a folder saved by a diffusers pipeline")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"is not JSON ({error})", where=str(path), fix="Restore the file") from None
    if not isinstance(index, dict):
        raise ModelError("is not a table of components", where=str(path), fix="Restore the file")
    return index


def components(folder: Path) -> list[str]:
    """Names of the folders a pipeline is made of, without those that are never run here."""
    parts = [name for name, value in read_index(folder).items() if isinstance(value, list) and value[0] is not None]
    return [name for name in parts if name not in UNUSED]


def native_dtype() -> str:
    """``bfloat16`` where the CPU has instructions for it, else ``float32``: emulated bfloat16 is many times slower."""
    import torch

    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def folder_digest(folder: Path) -> str:
    """Digest of a diffusers folder: every .json, .txt, .model and .safetensors file, by name and content."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".txt", ".model", ".safetensors"} and path.is_file():
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
    """Load the configured model for inference. No download unless ``allow_download`` says so.

    Raises:
        ModelError: the folder is not there, broken or of a class that is not known.
    """
    from pipeline.model.flux import Flux
    from pipeline.model.sd import StableDiffusion
    from pipeline.model.sd3 import StableDiffusion3
    from pipeline.model.sdxl import StableDiffusionXL

    classes = {cls.pipeline: cls for cls in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)}
    folder = resolve(config)
    kind = read_index(folder).get("_class_name")
    if kind not in classes:
        raise ModelError(f"pipelines of class {kind} cannot be run", where=str(folder), fix=f"Use one of {', '.join(classes)}")
    for part in components(folder):
        if not (folder / part).is_dir():
            raise ModelError(
                f"model_index.json names {part}, which is not there", where=str(folder / part), fix="Restore the folder"
            )
    check_digests(folder.parent)
    return classes[kind](folder, config)
