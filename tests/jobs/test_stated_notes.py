"""What a dry run notes of guidance that the model does not have, and of marks that prompts ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.run.preflight.stated_notes import PROMPTS_READ, asked_notes, unguided_notes
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.guard_settings import AskedPolicy
from pipeline.model.load import load_model
from pipeline.outcome import Request
from pipeline.policy import Policy
from pipeline.rungs import NegativeRung
from pipeline.runtime import Runtime


@pytest.mark.parametrize(
    ("pipeline", "guidance", "true", "expected"),
    [
        ("FluxPipeline", 3.0, 2.0, []),
        ("StableDiffusionPipeline", 3.0, 1.0, []),
        ("StableDiffusionPipeline", 3.0, 2.0, ["generation.true_guidance_scale = 2 has no effect: it is for Flux and LCMs"]),
        ("FluxPipeline", 3.0, 1.0, ["Set generation.true_guidance_scale above 1"]),
        ("ZImagePipeline", 0.0, 1.0, ["Set generation.guidance_scale above 0"]),
        ("Flux2Pipeline", 3.0, 2.0, ["has no effect: this class of model has no", "Use another kind of rung"]),
    ],
)
def test_guidance_that_a_model_does_not_have_is_noted(
    pipeline: str, guidance: float, true: float, expected: list[str], tiny_model: Callable[[str], Path]
) -> None:
    model = ModelConfig(path=str(tiny_model(pipeline)), dtype="float32", size=16, text_tokens=240)
    generation = GenerationConfig(steps=2, rows=4, guidance_scale=guidance, true_guidance_scale=true)
    config = RunConfig(prompts="-", model=model, generation=generation)
    runtime = Runtime(config, Policy(ladder=(NegativeRung(),)), load_model(model))
    notes = [note.text for note in unguided_notes((), runtime, guidance)]
    assert len(notes) == len(expected) and all(wanted in note for wanted, note in zip(expected, notes, strict=True))


def test_prompts_that_ask_for_marks_are_counted_with_what_follows() -> None:
    prompts = ("a red apple", "an apple with a QR code", "a QR code", 'a sign "OPEN"', "no text")
    todo = [Request(row_no=i, key=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]
    todo.append(Request(row_no=5, key="5", prompt="a QR code", problem=("input.seed", "no seed")))
    code, text = asked_notes(todo, Policy(asked=AskedPolicy(qr="keep")))
    assert code.text.startswith("2 of 5 prompts ask for a QR code: nothing follows") and 'asked.qr = "keep"' in code.text
    assert text.text.startswith("1 of 5 prompts ask for text: it is treated as a mark that nobody asked for")
    assert not asked_notes(todo[:1], Policy())
    many = asked_notes([todo[1]] * (PROMPTS_READ + 5), Policy())
    assert many[0].text.startswith(f"{PROMPTS_READ} of the first {PROMPTS_READ:,} prompts ask for a QR code")
