"""Prompts for language models that serve as text encoders: as a chat's turn, and hidden states of one shape."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def as_chat(tokenizer: Any, prompt: str, *, thinking: bool) -> str:
    """A prompt as the user's turn, in the tokenizer's own template."""
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=thinking))


def hidden_states(
    tokenizer: Any, encoder: Any, texts: Sequence[str], *, length: int, layers: Sequence[int], device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Layers' outputs for texts that are padded, or cut, to one length.

    Args:
        tokenizer, encoder: of the model.
        texts: at least one.
        length: T.
        layers: indices among the hidden states, 0 the embeddings and −1 the last; several stand side by side.
        device: the encoder's.

    Returns:
        Hidden states (N, T, D), and which are the text's own tokens, bool (N, T).
    """
    found = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = found.attention_mask.to(device).bool()
    return states_of(encoder, found.input_ids.to(device), mask, layers), mask


def states_of(encoder: Any, ids: torch.Tensor, mask: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Layers' outputs for ids (N, T), side by side: (N, T, D)."""
    import torch

    # Words are not wanted: of 150,000 logits a token only one token's are worked out.
    more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(encoder.forward).parameters else {}
    out = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, **more).hidden_states
    return torch.cat([out[layer] for layer in layers], dim=-1)


def own_first(hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with every text's own tokens in front: some tokenizers pad on the left."""
    order = (~mask).int().argsort(dim=1, stable=True)
    return hidden.gather(1, order[..., None].expand_as(hidden)), mask.gather(1, order)
