"""New words for a text encoder: they stand behind its table, change no other prompt, and have so much room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError
from pipeline.config import ModelConfig
from pipeline.model.load import load_model


def test_new_words_change_no_other_prompt(exact: Any) -> None:
    before = exact.encode_prompts(["a red apple"])
    with_word = exact.encode_words("a red apple", torch.full((1, 32), 0.3))
    assert exact.encode_prompts(["a red apple"]).equal(before)
    assert with_word.tokens.shape == before[0].tokens.shape and not with_word.equal(before[0])
    assert exact.encode_words("a red apple", torch.zeros(0, 32)).equal(before[0])
    table = exact.word_table.weight
    known = exact.encode_prompts(["cat"])[0]  # the same vectors under new ids are the same words
    ids = exact.word_ids("cat")[1:-1]
    words = [i for i in ids.tolist() if i != exact.word_ids("")[1]]
    assert exact.encode_words("", table[words]).equal(known)


def test_what_does_not_fit_is_cut_from_the_text(exact: Any) -> None:
    room, tokens = exact.word_room(), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    long = exact.word_ids("a red apple " * 30, range(5))
    assert len(long) == room + 2 and (long >= exact.word_table.num_embeddings).sum() == 5
    assert exact.encode_words("a red apple " * 30, tokens).isfinite()
    with pytest.raises(ConfigError, match="do not fit"):
        exact.encode_words("", torch.zeros(room + 1, 32))


def test_other_classes_refuse_tokens(tiny_sdxl: Path) -> None:
    other = load_model(ModelConfig(path=str(tiny_sdxl), dtype="float32"))
    assert other.word_room() == 0
    with pytest.raises(ConfigError, match="sdxl"):
        other.encode_words("", torch.zeros(1, 32))
