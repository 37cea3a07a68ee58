"""Turn pictures and captions into unit vectors: the embedder protocol and its OpenCLIP implementation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from index.embedder_source import HUB, LOCAL, EmbedderSource, downloaded, folder_of, weights_folder
from index.errors import InputError, ModelError
from index.foreign_models import advice, kept_shut
from index.loading import loading
from index.padding import PaddedCalls

if TYPE_CHECKING:
    import torch


ROWS = 8  # of every network call, padded: so a vector never depends on its neighbours; fewer when memory runs out
LESS = "Use an embedder with smaller weights (the index must be built again with it), or a device with more memory"

__all__ = ["Embedder", "OpenCLIPEmbedder", "Preprocessing", "embed_each", "fitted", "weights_digest", "weights_folder"]


class Embedder(Protocol):
    """Maps pictures and captions into one space where near means alike.

    It may have ``fitted(picture)``: the picture in the size that the network takes, with the same vector to the last bit. Then
    pictures of different sizes share calls, and no large one waits in memory. It may have a ``source`` (see
    :class:`index.embedder_source.EmbedderSource`), which an index remembers.

    Attributes:
        embedder_id: digest of architecture, weights, preprocessing and dtype; an index is bound to it.
        dim: length of the vectors.
    """

    embedder_id: str
    dim: int

    def images(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 RGB (N, H, W, 3) → float32 (N, dim), unit length. A row does not depend on its neighbours."""
        ...

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Captions → float32 (N, dim), unit length."""
        ...


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the network's input.

    Attributes:
        size: height and width in pixels.
        mean, std: per channel, for values in [0, 1].
        interpolation: ``bicubic`` or ``bilinear``.
        fit: ``squash`` changes the aspect ratio; ``pad`` keeps it and fills up. open_clip's usual centre crop is not
            offered: a copy may sit in what it cuts away. For square pictures all three are the same.
        fill: grey level of the padding, 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    fit: str
    fill: int

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Values in [0, 1], float32 (N, 3, H, W) on any device → the network's input."""
        import torch

        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def fitted(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) → uint8 RGB of :attr:`size`; a picture of that size stays as it is."""
        if picture.shape[:2] == self.size:
            return picture
        from PIL import Image

        high, wide = self.size
        resample = Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC
        image = Image.fromarray(picture)
        if self.fit == "squash":
            return np.asarray(image.resize((wide, high), resample))
        factor = min(wide / image.width, high / image.height)
        inner = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        canvas = Image.new("RGB", (wide, high), (self.fill,) * 3)
        canvas.paste(image.resize(inner, resample), ((wide - inner[0]) // 2, (high - inner[1]) // 2))
        return np.asarray(canvas)


class OpenCLIPEmbedder:
    """Any open_clip model, in fp32. Open it with :meth:`open`.

    Args:
        model: open_clip model, in evaluation mode.
        tokenizer: captions → int64 (N, context).
        architecture: the model's configuration, part of the id.
        preprocessing: how pictures enter.
        device: where it runs.

    Attributes:
        source: what it was opened from, with absolute paths; None for one that was not opened by :meth:`open`.
        calls: of the picture tower; ``calls.shapes`` counts their rows. The last bits of a vector belong to the
            shape of its call.
    """

    def __init__(
        self, model: Any, tokenizer: Any, architecture: dict[str, Any], preprocessing: Preprocessing, *, device: str = "cpu"
    ) -> None:
        self.network = model.float().eval().requires_grad_(False).to(device)
        self._tokenizer, self.preprocessing, self.device = tokenizer, preprocessing, device
        self.source: EmbedderSource | None = None
        self.dim = int(architecture["embed_dim"])
        self.calls, self.text_calls = (PaddedCalls(ROWS, name, LESS) for name in ("embedder", "embedder's text tower"))
        identity = {
            "architecture": architecture,
            "weights": weights_digest(model.state_dict()),
            "preprocessing": [*preprocessing.size, *preprocessing.mean, *preprocessing.std, preprocessing.interpolation,
                              preprocessing.fit, preprocessing.fill],
            "dtype": "float32",
        }  # fmt: skip
        plain = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=list)
        self.embedder_id = "openclip-" + hashlib.sha256(plain.encode()).hexdigest()[:16]

    @classmethod
    @loading()
    def open(
        cls, model: str, pretrained: str = "", *, allow_download: bool = False, device: str = "cpu", base: Path | None = None
    ) -> OpenCLIPEmbedder:
        """Load an embedder.

        Args:
            model, pretrained: see :class:`index.embedder_source.EmbedderSource`.
            allow_download: whether weights may be fetched; what was fetched before may be used in any case.
            device: ``cpu`` or ``cuda``.
            base: folder that relative paths start from; None: the working folder.

        Raises:
            ModelError: unknown model, missing or unfit weights, or a download that was not allowed.
        """
        from index.torchvision_ops import ensure

        ensure()
        source = EmbedderSource(model, pretrained).starting_from(Path.cwd() if base is None else base)
        folder = folder_of(source.model, allow_download=allow_download)
        if folder is not None:
            embedder = cls._from_folder(folder, allow_download=allow_download, device=device)
        else:
            embedder = cls._from_architecture(source, allow_download=allow_download, device=device)
        embedder.source = source
        return embedder

    @classmethod
    def _from_architecture(cls, source: EmbedderSource, *, allow_download: bool, device: str) -> OpenCLIPEmbedder:
        import open_clip

        model, pretrained = source.model, source.pretrained
        architecture = None if model.startswith(HUB) else open_clip.get_model_config(model.replace("/", "-"))
        if architecture is None and not model.startswith(HUB):
            raise ModelError(
                "is neither a folder nor an architecture that open_clip knows", where=f"embedder {model!r}",
                fix="Name 'stickers', a folder with open_clip_config.json, or an architecture such as ViT-B-32",
            )  # fmt: skip
        if not model.startswith(HUB) and not pretrained:
            raise ModelError(
                "an architecture alone has no weights", where=f"embedder {model!r}", fix="Set pretrained to a checkpoint file"
            )
        settings: dict[str, Any] = {}
        if not allow_download and not (pretrained and Path(pretrained).is_file()):
            kept = None if model.startswith(HUB) else downloaded(model, pretrained)
            if kept is None:
                raise ModelError(
                    "its weights would have to be downloaded", where=f"embedder {source}",
                    fix="Allow it (allow_download, --allow-download), or name a checkpoint file or folder on this machine",
                )  # fmt: skip
            pretrained, settings = str(kept[0]), kept[1]
        try:
            with kept_shut(allow_download=allow_download):
                network, _, transform = open_clip.create_model_and_transforms(model, pretrained=pretrained or None, **settings)
                if architecture is None:
                    architecture = open_clip.get_model_config(model)
                tokenizer = _tokenizer(model, architecture or {})
            del transform  # its centre crop is replaced, see Preprocessing
            entering = _preprocessing(network.visual.preprocess_cfg)
            return cls(network, tokenizer, dict(architecture or {}), entering, device=device)
        except Exception as error:
            # open_clip, the hub and torch raise a dozen unrelated types here
            raise _unfit(f"embedder {source}", error) from error

    @classmethod
    def _from_folder(cls, folder: Path, *, allow_download: bool, device: str) -> OpenCLIPEmbedder:
        import open_clip

        path = folder / "open_clip_config.json"
        if not path.is_file():
            fix = "Name a folder in open_clip's format: open_clip_config.json and open_clip_model.safetensors"
            raise ModelError("has no open_clip_config.json", where=str(folder), fix=fix)
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")) and not any(folder.glob("*.pth")):
            raise ModelError(
                "has no weights", where=str(folder), fix="Put open_clip_model.safetensors beside the configuration"
            )
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            with kept_shut(allow_download=allow_download):
                network, _, _ = open_clip.create_model_and_transforms(LOCAL + str(folder))
                tokenizer = _tokenizer(LOCAL + str(folder), config["model_cfg"])
            return cls(network, tokenizer, config["model_cfg"], _preprocessing(network.visual.preprocess_cfg), device=device)
        except Exception as error:
            raise _unfit(str(folder), error) from error

    def fitted(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) of any size → the same in the network's size; :meth:`images` makes the same vector of both."""
        return self.preprocessing.fitted(picture)

    def images(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 RGB (N, H, W, 3) → float32 (N, dim), unit length. A row does not depend on its neighbours.

        Raises:
            InputError: another dtype or shape.
            ModelError: a vector is not finite.
            OutOfMemory: not even one picture fits into memory.
        """
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            what = f"pictures must be uint8 (N, H, W, 3), these are {pictures.dtype} {pictures.shape}"
            raise InputError(what, where="embedder", fix="Convert them to RGB bytes first")

        def run(rows: list[int]) -> torch.Tensor:
            entered = {row: self.preprocessing.fitted(pictures[row]) for row in dict.fromkeys(rows)}  # padding repeats a row
            return self._encode(self._seen, np.stack([entered[row] for row in rows]))

        return self._unit(self.calls, run, len(pictures))

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Captions → float32 (N, dim), unit length. Longer captions than the model's context are cut.

        Raises:
            ModelError: a vector is not finite.
            OutOfMemory: not even one caption fits into memory.
        """

        def run(rows: list[int]) -> torch.Tensor:
            return self._encode(self.network.encode_text, self._tokenizer([captions[row] for row in rows]).numpy())

        return self._unit(self.text_calls, run, len(captions))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float32 (N, 3, H, W) in [0, 1] → float32 (N, dim), not normalised: differentiable, for steering by gradients.

        The pictures are squashed to the embedder's size and normalised; nothing is padded, so the last bits are not those of
        :meth:`images`.
        """
        import torch

        x = torch.nn.functional.interpolate(pixels, self.preprocessing.size, mode="bilinear", antialias=True)
        return self.network.encode_image(self.preprocessing.normalised(x.to(self.device))).float().cpu()  # type: ignore[no-any-return]

    def _seen(self, shown: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, 3) in the network's size, on its device → float (N, dim): bytes travel, not floats."""
        pixels = shown.permute(0, 3, 1, 2).float().contiguous() / 255
        return self.network.encode_image(self.preprocessing.normalised(pixels))  # type: ignore[no-any-return]

    def _encode(self, encode: Any, batch: np.ndarray) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return encode(torch.from_numpy(batch).to(self.device)).float().cpu()  # type: ignore[no-any-return]

    def _unit(self, calls: PaddedCalls, run: Callable[[list[int]], torch.Tensor], count: int) -> np.ndarray:
        if not count:
            return np.empty((0, self.dim), np.float32)
        # In float64 and row by row, so that the length is one to the last bit that float32 can hold.
        wide = calls.run(run, count).numpy().astype(np.float64)
        length = np.sqrt(np.sum(wide * wide, axis=1, keepdims=True))
        if not (np.isfinite(length) & (length > 0)).all():  # such a vector is near to no reference: its picture would pass
            fix = "Draw the picture again; if others end so too, the embedder's weights are broken"
            raise ModelError("a vector has no direction: it is zero or not finite", where=calls.network, fix=fix)
        unit: np.ndarray = (wide / length).astype(np.float32)
        return unit


def embed_each(embedder: Embedder, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures uint8 RGB (H, W, 3) of any sizes → float32 (N, dim), each with the bytes it has alone, in full calls."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    entering = [fitted(embedder, picture) for picture in pictures]
    for place, picture in enumerate(entering):
        shapes.setdefault(picture.shape, []).append(place)
    vectors = np.empty((len(entering), int(embedder.dim)), np.float32)
    for places in shapes.values():
        vectors[places] = embedder.images(np.stack([entering[place] for place in places]))
    return vectors


def fitted(embedder: Embedder, picture: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) in the size that the embedder's network takes; as it is, where the embedder has no ``fitted``."""
    fit: Callable[[np.ndarray], np.ndarray] = getattr(embedder, "fitted", lambda picture: picture)
    return fit(picture)


def weights_digest(state: dict[str, Any]) -> str:
    """sha256 over the names, shapes and fp32 values of a state dictionary, whatever file they came from."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        value = (value.float() if value.is_floating_point() else value.to(torch.int64)).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _tokenizer(model: str, architecture: dict[str, Any]) -> Any:
    """open_clip's tokenizer of a model. The configuration may state arguments of transformers' own, also the one that runs code
    which lies beside it: ours comes last."""
    import open_clip

    of_transformers = bool((architecture.get("text_cfg") or {}).get("hf_tokenizer_name"))
    return open_clip.get_tokenizer(model, **({"trust_remote_code": False} if of_transformers else {}))


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    size = config["size"]
    pair = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    fit = "squash" if config.get("resize_mode") == "squash" else "pad"
    mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
    return Preprocessing(
        size=pair,
        mean=mean,
        std=std,
        interpolation=str(config.get("interpolation", "bicubic")),
        fit=fit,
        fill=int(config.get("fill_color") or 0),
    )


def _unfit(where: str, error: Exception) -> ModelError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    fix = advice(error) or "Check that configuration and weights belong together"
    if "download" in first.lower():  # open_clip names what it tried to fetch
        fix = "Look whether this machine has a network, or name weights on this machine with --pretrained FILE"
    return ModelError(f"cannot be loaded ({first})", where=where, fix=fix)
