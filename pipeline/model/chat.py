"""Prompts for language models that serve as text encoders: as a chat's turn, and hidden states of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def as_chat(tokenizer: Any, prompt: str, *, thinking: bool) -> str:
    """A prompt as the user's turn, in the tokenizer's own template."""
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=thinking))


def hidden_states(
    tokenizer: Any, encoder: Any, texts: Sequence[str], *, length: int, layer: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer's output for texts that are padded, or cut, to one length.

    Args:
        tokenizer, encoder: of the model.
        texts: at least one.
        length: T.
        layer: index among the hidden states: 0 the embeddings, −1 the last.
        device: the encoder's.

    Returns:
        Hidden states (N, T, D) with each text's own tokens first, and which those are, bool (N, T).
    """
    found = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = found.attention_mask.to(device).bool()
    out = encoder(input_ids=found.input_ids.to(device), attention_mask=mask, output_hidden_states=True)
    hidden = out.hidden_states[layer]
    first = (~mask).int().argsort(dim=1, stable=True)  # some tokenizers pad on the left
    return hidden.gather(1, first[..., None].expand_as(hidden)), mask.gather(1, first)
