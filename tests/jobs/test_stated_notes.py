"""What a dry run notes of guidance that the model does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.run.preflight.stated_notes import unguided_notes
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.model.load import load_model
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
