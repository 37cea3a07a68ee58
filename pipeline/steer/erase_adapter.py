"""Adapters that erase marks: a folder with new tokens, low-rank weights where there are any, and a card, bound by digests.

adapter.json                      what it is, for which model, digests of the rest
tokens.safetensors                one vector a token (float32); for diffusers: load_textual_inversion, token by token
pytorch_lora_weights.safetensors  low-rank weights of the denoiser, if any; for diffusers: load_lora_weights
README.md                         the card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes this one below Python 3.12

from guards.base import Box
from index.errors import IntegrityError, ModelError
from pipeline.model.adapters.lowrank import LowRank
from pipeline.steer.erase_tokens import Vocabulary

if TYPE_CHECKING:
    import torch

SETTINGS, TOKENS, LOWRANK = "adapter.json", "tokens.safetensors", "pytorch_lora_weights.safetensors"
FORMAT = 1
PREFIX = "unet."
Removal = Literal["data", "model"]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Words(TypedDict):
    concepts: Annotated[list[Name], Field(min_length=1)]
    mode: Literal["bins", "corners"] | None
    grid: Annotated[int, Field(ge=1, le=64)]


class _Card(TypedDict):
    """The keys of adapter.json; further ones are for people."""

    format: int
    removal: Removal
    base: NotRequired[str]
    base_digest: Name
    vocabulary: _Words | None
    concepts: NotRequired[list[Name]]
    files: dict[Literal["tokens.safetensors", "pytorch_lora_weights.safetensors"], Name]
    places: NotRequired[dict[Name, list[tuple[Share, Share, Share, Share]]]]


_CARD = TypeAdapter(_Card)


@dataclass(frozen=True, kw_only=True)
class EraseAdapter:
    """One loaded adapter.

    Attributes:
        name: the folder's.
        digest: of adapter.json, which holds the digests of the weights.
        removal: ``model``: the base model is polluted; tokens, and low-rank weights for the samples drawn again, if any;
            ``data``: low-rank weights and tokens, learned from a polluted set.
        base_digest: of the model it was trained for.
        vocabulary: its tokens; None where marks were hidden from the loss, and for plain fine-tuning.
        vectors: token → float32 (D,).
        lowrank: low-rank weights of the denoiser, or None.
        places: boxes (fractions) by concept, as they were found in the training set: where marks tend to be.
        settings: the content of adapter.json.
    """

    name: str
    digest: str
    removal: Removal
    base_digest: str
    vocabulary: Vocabulary | None
    vectors: Mapping[str, torch.Tensor]
    lowrank: LowRank | None = None
    places: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        """The marks it leaves out: those its tokens name, or those hidden from its low-rank weights."""
        return self.vocabulary.concepts if self.vocabulary is not None else tuple(self.settings.get("concepts", ()))

    def embed(self, tokens: Sequence[str]) -> torch.Tensor:
        """Vectors (N, D) of its tokens."""
        import torch

        return torch.stack([self.vectors[token] for token in tokens])


def read_settings(folder: Path) -> tuple[dict[str, Any], str]:
    """The content of adapter.json, and the folder's digest, without loading weights.

    Raises:
        ModelError: no adapter there, one of another format, or a value that cannot be what its key means.
    """
    path = folder / SETTINGS
    try:
        raw = path.read_bytes()
        settings = json.loads(raw)
    except FileNotFoundError:
        fix = "Name a folder written by `clearance erase train`"
        raise ModelError(f"has no {SETTINGS}", where=str(folder), fix=fix) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(path), fix="Restore the file") from None
    if isinstance(settings, dict) and settings.get("format") != FORMAT:
        what = f"has format {settings.get('format')}, not {FORMAT}"
        raise ModelError(what, where=str(path), fix="Train the adapter again with this version")
    if wrong := _wrong(settings):
        raise ModelError(wrong, where=str(path), fix="Restore the file, or train the adapter again with this version")
    return settings, hashlib.sha256(raw).hexdigest()


def _wrong(settings: Any) -> str:
    """The first value of adapter.json that is not what its key means; empty when all are."""
    try:
        _CARD.validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return ""


def load_adapter(folder: Path, base_digest: str) -> EraseAdapter:
    """Load an adapter for the model of that digest.

    Raises:
        ModelError: not an adapter, or one for another model.
        IntegrityError: its weights are not the ones it was saved with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    settings, digest = read_settings(folder)
    if settings["base_digest"] != base_digest:
        base = settings.get("base") or "another model"
        raise ModelError(
            f"was trained for {base} ({settings['base_digest'][:12]}), this model is {base_digest[:12]}", where=str(folder),
            fix="Train it on this model (`clearance erase train`), or name the model it belongs to",
        )  # fmt: skip
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for file, expected in settings["files"].items():
        path = folder / file
        raw = path.read_bytes() if path.is_file() else b""
        found = hashlib.sha256(raw).hexdigest() if raw else "missing"
        if found != expected:
            what = f"digest is {found[:12]}, {SETTINGS} records {expected[:12]}"
            raise IntegrityError(what, where=str(path), fix="Restore the file")
        try:
            stored[file] = load(raw)
        except SafetensorError as error:
            raise IntegrityError(f"cannot be read ({error})", where=str(path), fix="Restore the file") from None
    words = settings["vocabulary"]
    vocabulary = Vocabulary(tuple(words["concepts"]), words["mode"], words["grid"]) if words else None
    vectors = {token: vector.float() for token, vector in stored.get(TOKENS, {}).items()}
    if vocabulary is not None and (absent := set(vocabulary.tokens) - set(vectors)):
        raise ModelError(f"lacks the token {min(absent)}", where=str(folder / TOKENS), fix="Train it again")
    return EraseAdapter(
        name=folder.name,
        digest=digest,
        removal=settings["removal"],
        base_digest=base_digest,
        vocabulary=vocabulary,
        vectors=vectors,
        lowrank=lowrank_of(stored[LOWRANK], folder.name) if LOWRANK in stored else None,
        places={concept: [tuple(box) for box in boxes] for concept, boxes in settings.get("places", {}).items()},
        settings=settings,
    )


def lowrank_of(state: Mapping[str, torch.Tensor], name: str) -> LowRank:
    """peft's names (``unet.…lora_A.weight``) → module name → (A, B)."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in sorted(state.items()):  # safetensors reads a file in an order of its own
        module, _, half = key.removeprefix(PREFIX).partition(".lora_")
        halves.setdefault(module, {})[half.removesuffix(".weight")] = value
    if broken := [module for module, both in halves.items() if set(both) != {"A", "B"}]:
        raise ModelError(f"{broken[0]} has no pair of low-rank weights", where=f"adapter {name}", fix="Train it again")
    return LowRank(name, {module: (both["A"], both["B"]) for module, both in halves.items()})
