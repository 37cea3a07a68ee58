"""Prompts share calls of the text encoder, and their conditionings have the bytes that each has alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.contexts import TOGETHER, Contexts
from pipeline.model.load import load_model

PROMPTS = [f"a red apple {i}" for i in range(11)]


class Encoder:
    def __init__(self, bad: str = "") -> None:
        self.bad, self.calls = bad, list[list[str]]()

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        self.calls.append(list(prompts))
        if self.bad in prompts:
            raise ValueError(self.bad)
        return torch.tensor([[float(len(prompt)), float(prompt.split()[-1])] for prompt in prompts])


def test_expected_prompts_share_calls() -> None:
    encoder = Encoder()
    contexts = Contexts(encoder, 100)
    contexts.expect(PROMPTS)
    assert [contexts(prompt)[1].item() for prompt in PROMPTS] == list(range(11))
    assert [len(call) for call in encoder.calls] == [TOGETHER, 11 - TOGETHER]


def test_a_prompt_that_cannot_be_encoded_is_the_only_one_that_fails() -> None:
    contexts = Contexts(Encoder(bad=PROMPTS[2]), 100)
    contexts.expect(PROMPTS)
    assert contexts(PROMPTS[0])[1] == 0 and contexts(PROMPTS[1])[1] == 1
    with pytest.raises(ValueError, match="a red apple 2"):
        contexts(PROMPTS[2])
    assert contexts(PROMPTS[3])[1] == 3


def test_no_more_are_kept_than_asked_for() -> None:
    encoder = Encoder()
    contexts = Contexts(encoder, 2)
    contexts.expect(PROMPTS)
    assert [contexts(prompt)[1].item() for prompt in PROMPTS] == list(range(11)) and len(contexts._kept) == 2


def test_company_does_not_change_a_conditioning(tiny_sd: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    together = Contexts(model.encode_prompts, 100)
    together.expect(PROMPTS)
    for prompt in PROMPTS:
        assert together(prompt).equal(Contexts(model.encode_prompts, 100)(prompt))
