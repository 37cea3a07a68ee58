"""Shared by all model classes: loading a diffusers folder, padded calls, text, latents to pictures and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from index.errors import ClearanceError, ConfigError, ModelError
from index.padding import PaddedCalls
from index.torchvision_ops import ensure
from pipeline.config import ModelConfig
from pipeline.model.codec import Codec
from pipeline.model.combine import classifier_free
from pipeline.model.compiled import compile_blocks
from pipeline.model.conditioning import Conditioning, concatenate, scales_of
from pipeline.model.decoder import Decoder, PictureCalls, picture_rows
from pipeline.model.device import LESS
from pipeline.model.families.attention import choose_attention
from pipeline.model.families.defaults import Configs, Defaults
from pipeline.model.families.resident import resident
from pipeline.model.folder.components import UNUSED, read_index
from pipeline.model.folder.digest import folder_digest
from pipeline.model.libraries import quiet, reason
from pipeline.model.sides import Sides
from pipeline.model.sites import Layout, Site
from pipeline.outcome import PaddedRows

if TYPE_CHECKING:
    import torch

TEXT_ROWS = 8  # rows of every text encoder call, until memory runs out: see index.padding


class LatentDiffusion(ABC):
    """A diffusers pipeline folder, loaded for inference; subclasses call its denoiser and text encoders.

    Denoiser and T5 have the configured number format; CLIP text encoders and autoencoder stay float32, because they cost
    little and overflow in float16.
    """

    family: str
    pipeline: ClassVar[str]  # diffusers' class name
    denoiser: ClassVar[str]  # "unet" or "transformer"
    denoiser_class: ClassVar[str]  # diffusers' class name
    required: ClassVar[tuple[str, ...]]  # parts besides denoiser, scheduler and autoencoder
    narrow: ClassVar[tuple[str, ...]] = ()  # text encoders in the denoiser's number format
    patch: ClassVar[int] = 1  # latent positions per token side; pictures must divide by it
    flow: ClassVar[bool] = False  # a rectified flow: predicts ε − x0, whatever the scheduler's configuration names
    text_tokens: ClassVar[int] = 256  # of T5
    usual: ClassVar[Defaults]  # how it is usually drawn
    codec_class: ClassVar[type[Codec]] = Codec  # of its autoencoder
    settings: ClassVar[dict[str, Any]] = {}  # further arguments of from_pretrained
    distilled: bool = False
    waits_for_host: ClassVar[bool] = False  # diffusers' denoiser copies something from the host in every call
    negatives_differ: bool = False  # whether "negative" matters to _encode

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """A folder's model.

        Raises:
            ModelError: diffusers cannot load it, or it is of a form that is not supported.
        """
        import torch

        ensure()
        import diffusers

        absent = [name for name, value in read_index(folder).items() if isinstance(value, list) and value[0] is None]
        dtypes = {"default": torch.float32, "vae": getattr(torch, config.vae_dtype)}
        dtypes |= dict.fromkeys((cls.denoiser, *cls.narrow), getattr(torch, config.dtype))
        with quiet():
            try:
                parts = getattr(diffusers, cls.pipeline).from_pretrained(
                    folder,
                    dtype=dtypes,
                    variant=config.variant or None,
                    use_safetensors=True,
                    local_files_only=True,
                    **dict.fromkeys(set(absent) - set(UNUSED)),
                    **cls.settings,
                )
            except Exception as error:
                saved_by = read_index(folder).get("_diffusers_version", "an unknown version")
                fix = "Restore the folder: copy or download it again"
                if saved_by != diffusers.__version__:
                    here = f"It was saved by diffusers {saved_by}, here is {diffusers.__version__}"
                    fix = f"{here}: save it again with this one, or restore the folder"
                raise ModelError(f"diffusers cannot load it: {reason(error)}", where=str(folder), fix=fix) from error
        return cls(parts, config, digest=folder_digest(folder), where=str(folder))

    @classmethod
    def of(cls, parts: Mapping[str, Any], config: ModelConfig, *, digest: str = "") -> Self:
        """A model of parts that are there already; nothing is read from disk.

        Args:
            parts: component name → object, as in ``model_index.json``. Denoiser, autoencoder and scheduler are needed. Without
                text encoders it encodes no prompts.
            config: device, number format and size; its path is not looked at.
            digest: what :attr:`digest` is to be.
        """
        import inspect

        import diffusers

        kind = getattr(diffusers, cls.pipeline)
        accepted = inspect.signature(kind.__init__).parameters.values()
        missing = {p.name: None for p in accepted if p.default is p.empty and p.name != "self"}
        with quiet():
            whole = kind(**(missing | cls.settings | dict(parts)))
        return cls(whole, config, digest=digest, where=cls.pipeline)

    def __init__(self, parts: Any, config: ModelConfig, *, digest: str, where: str) -> None:
        """Of a diffusers pipeline object; :meth:`load` and :meth:`of` make one. ``where`` is for messages."""
        import torch

        ensure()
        self._torch, self._parts, self.digest = torch, parts, digest
        self._device, self._dtype = torch.device(config.device), getattr(torch, config.dtype)
        offload = config.text_encoders == "offload" and self._device.type != "cpu"
        self._away: list[Any] = []  # text encoders that are on the device only while they work
        for name, part in self._parts.components.items():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                if offload and name.startswith("text_encoder"):
                    self._away.append(part)
                else:
                    part.to(self._device)
        self.network: Any = getattr(self._parts, self.denoiser)
        self.layout = Layout()
        self._sites: list[Site] | None = None
        self.scheduler_config: Mapping[str, Any] = self._parts.scheduler.config
        predicts = str(self.scheduler_config.get("prediction_type", "epsilon"))
        self.prediction_type = "flow_prediction" if self.flow else predicts
        self._text_tokens = config.text_tokens or self.text_tokens
        self.autoencoder = self._parts.vae
        if config.vae_tiling:
            self.autoencoder.enable_tiling()
        choose_attention(self.network, config.attention)
        if config.compile == "blocks":
            compile_blocks(self.network, self.sites())
        self.codec = self.codec_class(self.autoencoder, where)
        takes, has = self._channels(), self.codec.channels
        if takes != has:
            raise ModelError(
                f"its {self.denoiser} takes {takes} channels, its autoencoder has {has}",
                where=where,
                fix="Models that are shown a picture (inpainting, depth) are not supported: use one that draws from text",
            )
        self._guidance_width: int | None = self.network.config.get("time_cond_proj_dim")
        if self._guidance_width is not None:  # an LCM: guidance is an input of its UNet, and a sample owns one row
            self.distilled = True
        self._pixels_per_latent = int(self._parts.vae_scale_factor) * self.codec.packing
        self._snap = config.snap
        self.latent_shape = self.shape_of(config.width or config.size, config.height or config.size)
        width, height = self.decode_size()
        self.text_calls = PaddedCalls(TEXT_ROWS, "text encoder", LESS)
        rows, positions = picture_rows(width * height), self.latent_shape[1:]
        self.encode_calls = PictureCalls(positions, rows, "autoencoder's encoder")
        self.decode_calls = PictureCalls(positions, rows, "decoder")
        self.decoder = Decoder(self.codec, device=self._device, calls=self.decode_calls, pixels=self._pixels_per_latent)
        self.conditioning_bytes = 0
        if any(getattr(parts, name, None) is None for name in self.required):
            return
        try:
            self.conditioning_bytes = self.encode_prompts([""]).nbytes
        except ClearanceError:
            raise
        except Exception as error:
            what = f"its text encoders do not work: {reason(error)}"
            fix = "Tokenizers and text encoders must be of the same model: restore these parts of the folder"
            raise ModelError(what, where=where, fix=fix) from error

    @property
    def parts(self) -> Any:
        """The diffusers pipeline that holds the parts."""
        return self._parts

    # Declared by each subclass.

    @classmethod
    def defaults(cls, configs: Configs) -> Defaults:
        """How a folder with these configurations is usually drawn; some hold a distilled form of the class."""
        return cls.usual

    def _channels(self) -> int:
        return int(self.network.config.in_channels)

    def _native(self) -> Any:
        """Side of the latents the model was trained on."""
        return self.network.config.sample_size

    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Every tokenizer, and how many tokens are kept of it."""
        return [(self._parts.tokenizer, int(self._parts.tokenizer.model_max_length))]

    def _written(self, prompt: str) -> str:
        """The text that the tokenizers are given for a prompt."""
        return prompt

    @property
    def device(self) -> torch.device:
        return self._device  # type: ignore[no-any-return]

    @abstractmethod
    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        """The prompts of one call → conditionings."""

    @abstractmethod
    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """As :meth:`denoise`, differentiable, for steering by gradients."""

    @abstractmethod
    def _find_sites(self) -> list[Site]:
        """As :meth:`sites`."""

    def _set_timesteps(self, scheduler: Any, steps: int, positions: tuple[int, int]) -> None:
        """Set a scheduler to so many steps for latents of (h, w) positions."""
        scheduler.set_timesteps(steps)

    # Shared by all.

    def _timestep_condition(self, guidance: float | torch.Tensor, rows: int) -> torch.Tensor | None:
        """Guidance scale w as an LCM's UNet takes it (Luo et al. 2023, sec. 4.2): the sinusoid of 1000·(w − 1), (rows, width).

        None for networks without such an input.
        """
        if self._guidance_width is None:
            return None
        torch, half = self._torch, self._guidance_width // 2
        scale = scales_of(guidance, rows, self._device)
        rates = torch.exp(torch.arange(half, dtype=torch.float32, device=self._device) * -(math.log(10_000) / (half - 1)))
        angles = 1000 * (scale - 1)[:, None] * rates[None]
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return torch.nn.functional.pad(waves, (0, self._guidance_width - 2 * half)).to(self._dtype)  # type: ignore[no-any-return]

    def _numbers(self, rows: int, *numbers: float) -> torch.Tensor:
        """The same numbers for every row, float32 (rows, len(numbers)), made on the device and not copied to it."""
        torch = self._torch
        columns = [torch.full((rows, 1), number, dtype=torch.float32, device=self._device) for number in numbers]
        return torch.cat(columns, dim=1)  # type: ignore[no-any-return]

    def shape_of(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        native, rule = self._native(), Sides(self._pixels_per_latent * self.patch, self._snap)
        positions = list(native) if isinstance(native, (list, tuple)) else [native, native]
        for i, (name, pixels) in enumerate((("height", height), ("width", width))):
            if pixels is not None:
                where = "model.size" if width == height else f"model.{name}"
                positions[i] = rule.fit(pixels, where) // self._pixels_per_latent
        return self._channels(), int(positions[0]), int(positions[1])

    @classmethod
    def multiple_of(cls, autoencoder: Mapping[str, Any]) -> int | None:
        """Pixels that a side of a picture is a multiple of, from the autoencoder's configuration; None: known when loaded."""
        blocks = autoencoder.get("block_out_channels") or autoencoder.get("decoder_block_out_channels")
        return 2 ** (len(blocks) - 1) * cls.codec_class.packing * cls.patch if isinstance(blocks, list) else None

    def scheduled(self, scheduler: Any, steps: int, *, positions: tuple[int, int] | None = None, **changes: Any) -> Any:
        try:
            with quiet():
                built = scheduler.from_config(self.scheduler_config, **changes)
                self._set_timesteps(built, steps, positions or self.latent_shape[1:])
        except Exception as error:
            raise ConfigError(
                f"{scheduler.__name__} cannot make {steps} steps of this model's schedule: {error}",
                where="generation.scheduler",
                fix="Use another sampler or number of steps",
            ) from error
        return built

    def truncated(self, prompt: str) -> bool:
        return all(
            len(tokenizer(self._written(prompt), truncation=False, verbose=False).input_ids) > kept
            for tokenizer, kept in self._tokenizers()
        )

    def encode_prompts(self, prompts: Sequence[str], *, negative: bool = False) -> Conditioning:
        def run(rows: list[int]) -> Conditioning:
            return self._encode([prompts[i] for i in rows], negative).to(self._device, self._dtype)

        with self._torch.inference_mode(), quiet(), resident(self._away, self._device):
            return self.text_calls.run(run, len(prompts), concatenate)

    def padded_rows(self, latent: torch.Tensor | None = None) -> PaddedRows:
        positions = self.latent_shape[1:] if latent is None else (int(latent.shape[-2]), int(latent.shape[-1]))
        pixels = positions[0] * positions[1] * self._pixels_per_latent**2
        encode, decode = (calls.at(positions, pixels).shapes for calls in (self.encode_calls, self.decode_calls))
        return PaddedRows(self.text_calls.shapes, encode, decode)

    def word_room(self) -> int:
        """How many learned tokens a prompt has room for."""
        return 0

    def encode_words(self, text: str, vectors: torch.Tensor) -> Conditioning:
        raise ConfigError(
            f"new tokens are not known to models of class {self.family}", where="erase", fix="Use Stable Diffusion 1.x or 2.x"
        )

    def guided(self, scale: float) -> bool:
        return scale > 1

    def combine(self, negative: torch.Tensor, conditional: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        return classifier_free(negative, conditional, scale)

    def denoise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        with self._torch.inference_mode():
            return self.denoise_tensor(latents, timesteps, context, guidance)

    def decode_size(self, positions: tuple[int, int] | None = None) -> tuple[int, int]:
        height, width = positions or self.latent_shape[1:]
        return width * self._pixels_per_latent, height * self._pixels_per_latent

    def decode_tensor(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 (N, C, h, w) → pictures float32 (N, 3, H, W) around [−1, 1], differentiable and unpadded."""
        return self.decoder.tensor(latents)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        return self.decoder(latents, self.decode_tensor)

    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        torch = self._torch

        x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        height, width = x.shape[-2:]
        calls = self.encode_calls.at((height // self._pixels_per_latent, width // self._pixels_per_latent), height * width)
        with torch.inference_mode():
            return calls.run(lambda rows: self.codec.from_pixels(x[rows].to(self._device)).cpu(), len(x))

    def sites(self) -> Sequence[Site]:
        if self._sites is None:
            self._sites = self._find_sites()
        return self._sites
