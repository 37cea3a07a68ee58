"""Textual inversions: a word in prompts that stands for learned vectors of the CLIP text encoders.

Formats: A1111's (``emb_params``), diffusers' (the word is the tensor's name), and those for SDXL (``clip_l`` and ``clip_g``, or
``text_encoders_0`` and ``text_encoders_1``). The tokenizer and the encoders' tables stay as they are: see
:mod:`pipeline.model.adapters.reading`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from index.errors import ModelError
from pipeline.model.adapters.file import VECTORS, AdapterFile

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A textual inversion that fits the model.

    Attributes:
        file: what it was read from.
        vectors: text encoder → float32 (n, D); n is the same for all.
    """

    file: AdapterFile
    vectors: Mapping[str, torch.Tensor]

    @property
    def word(self) -> str:
        return self.file.name

    @property
    def length(self) -> int:
        """Tokens that the word stands for."""
        return len(next(iter(self.vectors.values())))

    @property
    def pattern(self) -> re.Pattern[str]:
        """Where the word stands in a prompt: alone, in capitals or not."""
        before, behind = (r"(?<!\w)" if self.word[0].isalnum() else "", r"(?!\w)" if self.word[-1].isalnum() else "")
        return re.compile(before + re.escape(self.word) + behind, re.IGNORECASE)


def load_embedding(found: AdapterFile, pipeline: Any) -> Embedding:
    """Read a textual inversion for a loaded diffusers pipeline.

    Raises:
        ModelError: the text encoders are of another kind or width, or the file has vectors for some of them only.
    """
    from safetensors.torch import load_file

    where = f"adapter {found.config.path}"
    encoders = clip_encoders(pipeline)
    others = [name for name in text_encoders(pipeline) if name not in encoders]
    if not encoders or others:
        what = f"words of one's own need CLIP text encoders, and a {type(pipeline).__name__} has others"
        raise ModelError(what, where=where, fix="Take the entry out, or use Stable Diffusion 1.x, 2.x or XL")
    stored = {name: value.float().reshape(-1, value.shape[-1]) for name, value in load_file(found.path).items()}
    named = {VECTORS.get(name) or "text_encoder": value for name, value in stored.items()}
    widths = {name: int(getattr(pipeline, name).get_input_embeddings().embedding_dim) for name in encoders}
    have = ", ".join(f"{name} {value.shape[1]}" for name, value in named.items())
    need = ", ".join(f"{name} {width}" for name, width in widths.items())
    if set(named) != set(widths) or any(named[name].shape[1] != width for name, width in widths.items()):
        what = f"has vectors of width {have}; the model's text encoders take {need}"
        fix = "Use a textual inversion that was trained for this class of models"
        raise ModelError(what, where=where, fix=fix)
    if len({len(value) for value in named.values()}) > 1:
        raise ModelError("has a different number of vectors for each text encoder", where=where, fix="Export the file again")
    return Embedding(file=found, vectors=named)


def text_encoders(pipeline: Any) -> dict[str, Any]:
    """Name → text encoder, of those that are there."""
    names = sorted(name for name in pipeline.components if name.startswith("text_encoder"))
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name) is not None}


def clip_encoders(pipeline: Any) -> dict[str, Any]:
    """Those of CLIP."""
    return {name: encoder for name, encoder in text_encoders(pipeline).items() if type(encoder).__name__.startswith("CLIPText")}
