"""Z-Image and Z-Image-Turbo: a transformer over one stream of image and text, with Qwen3 as text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.model.conditioning import Conditioning
from pipeline.model.families.chat import as_chat, hidden_states, own_first
from pipeline.model.families.defaults import Defaults
from pipeline.model.families.flow import set_flow_steps, shift_of
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, stream_sites

if TYPE_CHECKING:
    import torch

NATIVE_PIXELS = 1024
MULTIPLE = 32  # tokens of image and of text are padded to a multiple of it, by tokens that were learned and are attended to


class ZImage(LatentDiffusion):
    """A conditioning holds Qwen3's last hidden states but one and the mask of the prompt's own tokens.

    The picture's positions begin behind the caption's, whose length differs by row. diffusers pads a call to its longest
    caption, so that a row's last bits depend on its mates. Here every caption is masked within the full length, and the
    positions are worked out row by row on the device.
    """

    family = "z_image"
    pipeline = "ZImagePipeline"
    denoiser = "transformer"
    denoiser_class = "ZImageTransformer2DModel"
    required = ("tokenizer", "text_encoder")
    narrow = ("text_encoder",)
    patch = 2
    flow = True
    text_tokens = 512
    usual = Defaults(steps=50, guidance=5.0, text_tokens=512, size=1024)  # Turbo, which no file tells apart, wants 9 and 0

    def _native(self) -> Any:
        return NATIVE_PIXELS // self._pixels_per_latent

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer, self._text_tokens)]

    def _written(self, prompt: str) -> str:
        return as_chat(self._parts.tokenizer, prompt, thinking=True)

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        (tokenizer, length), texts = self._tokenizers()[0], [self._written(prompt) for prompt in prompts]
        encoder = self._parts.text_encoder
        found = hidden_states(tokenizer, encoder, texts, length=length, layers=(-2,), device=self._device)
        return Conditioning(*own_first(*found))

    def _set_timesteps(self, scheduler: Any, steps: int, positions: tuple[int, int]) -> None:
        height, width = positions
        set_flow_steps(scheduler, steps, shift_of(scheduler.config, (height // 2) * (width // 2), 1.15))

    def guided(self, scale: float) -> bool:
        return scale > 0

    def combine(self, negative: torch.Tensor, conditional: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """ε_text + w·(ε_text − ε_neg): w is one less than in most classes."""
        return conditional + scale * (conditional - negative)

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        torch, network = self._torch, self.network
        context = context.to(self._device, self._dtype)
        z = latents.to(self._device, self._dtype)
        rows, channels, height, width = z.shape
        h, w = height // 2, width // 2
        self.layout.image = slice(0, h * w)
        time = network.t_embedder((1000 - timesteps.to(self._device)) / 1000 * network.t_scale).type_as(z)
        text, counts, length = self._text(context)
        patches = z.view(rows, channels, h, 2, w, 2).permute(0, 2, 4, 3, 5, 1).reshape(rows, h * w, -1)
        image = network.all_x_embedder["2-1"](patches)
        rest = -(h * w) % MULTIPLE
        image = torch.cat([image, network.x_pad_token.expand(rows, rest, -1)], dim=1)
        places = torch.zeros(rows, image.shape[1], 3, dtype=torch.int64, device=self._device)
        places[:, : h * w, 0] = length[:, None] + 1
        places[:, : h * w, 1] = torch.arange(h, device=self._device).repeat_interleave(w)
        places[:, : h * w, 2] = torch.arange(w, device=self._device).repeat(h)
        turns = self._turns(places)
        for block in network.noise_refiner:
            image = block(image, None, turns, time)
        lines = torch.zeros(rows, text.shape[1], 3, dtype=torch.int64, device=self._device)
        lines[..., 0] = torch.where(counts, torch.arange(1, text.shape[1] + 1, device=self._device), 0)
        text_turns = self._turns(lines)
        for block in network.context_refiner:
            text = block(text, counts, text_turns)
        stream, turns = torch.cat([image, text], dim=1), torch.cat([turns, text_turns], dim=1)
        counts = torch.cat([counts.new_ones(rows, image.shape[1]), counts], dim=1)
        for block in network.layers:
            stream = block(stream, counts, turns, time)
        out = network.all_final_layer["2-1"](stream[:, : h * w], c=time)
        out = out.view(rows, h, w, 2, 2, channels).permute(0, 5, 1, 3, 2, 4).reshape(z.shape)
        return -out.float()  # type: ignore[no-any-return]

    def _text(self, context: Conditioning) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedded captions (R, T, D), T a multiple of 32; which tokens are attended to (R, T); how many those are (R,)."""
        torch, network = self._torch, self.network
        assert context.mask is not None
        own = torch.nn.functional.pad(context.mask, (0, -context.mask.shape[1] % MULTIPLE))
        tokens = torch.nn.functional.pad(context.tokens, (0, 0, 0, own.shape[1] - context.tokens.shape[1]))
        text = torch.where(own[..., None], network.cap_embedder(tokens), network.cap_pad_token)
        length = own.sum(1).clamp(min=1)  # padding rows have no token of their own, and attention needs one
        length = length + -length % MULTIPLE
        return text, torch.arange(own.shape[1], device=self._device) < length[:, None], length

    def _turns(self, places: torch.Tensor) -> torch.Tensor:
        """Positions (R, N, 3) → their rotations (R, N, …)."""
        found = self.network.rope_embedder(places.flatten(0, 1))
        return found.view(*places.shape[:2], -1)  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        """All blocks but those of text alone (context_refiner), which are of the same class."""
        from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

        found = stream_sites(self.network, ZImageTransformerBlock, "ffn_norm1", "attention", layout=self.layout)
        return [site for site in found if not site.name.startswith("context_refiner")]
