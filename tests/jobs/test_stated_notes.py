"""What a dry run notes of guidance that the model does not have, and of marks that prompts ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.run.preflight.notes import erase_notes, guidance_notes
from jobs.run.preflight.stated_notes import PROMPTS_READ, asked_notes, length_notes, stated_notes, unguided_notes
from pipeline.config import DiversityConfig, GenerationConfig, ModelConfig, RunConfig
from pipeline.guard_settings import AskedPolicy
from pipeline.model.adapters.prompt_weights import weighted
from pipeline.model.load import load_model
from pipeline.outcome import Request, Stated
from pipeline.policy import Policy
from pipeline.rungs import EraseRung, NegativeRung, ReseedRung
from pipeline.runtime import Runtime

OWN = [(0, "a", None), (1, "b", 1.0), (2, "c", 7.5), (3, "d", 0.0)]  # row, key, its own guidance scale


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


def test_rows_that_turn_guidance_off_are_noted_beside_a_negative_rung(tiny_model: Callable[[str], Path]) -> None:
    model = ModelConfig(path=str(tiny_model("StableDiffusionPipeline")), dtype="float32", size=16)
    config = RunConfig(prompts="-", model=model, generation=GenerationConfig(steps=2, rows=4, guidance_scale=3.0))
    runtime = Runtime(config, Policy(ladder=(NegativeRung(),)), load_model(model))
    todo = [Request(row_no=i, key=key, prompt="a cat", stated=Stated(guidance_scale=scale)) for i, key, scale in OWN]
    (note,) = unguided_notes(todo, runtime, 3.0)
    assert note.text == (
        "rung 1 (negative) needs a negative row, and 2 of 4 requests have none at the guidance_scale of their rows; "
        "the first is 'b', at 1: those that it steers end as error rows"
    )
    assert unguided_notes(todo[:1], runtime, 3.0) == []


def test_a_share_of_guidance_that_rounds_to_no_step_is_noted(tiny_model: Callable[[str], Path]) -> None:
    model = ModelConfig(path=str(tiny_model("StableDiffusionPipeline")), dtype="float32", size=16)
    drawn = GenerationConfig(steps=4, rows=4, guidance_scale=3.0, guidance_until=0.1)
    todo = [
        Request(row_no=i, key=str(i), prompt="a cat", negative_prompt="blurry", stated=Stated(steps=steps))
        for i, steps in enumerate((None, 20))
    ]
    (note,) = guidance_notes(drawn, todo)
    assert note.text == (
        "generation.guidance_until = 0.1 of 4 steps rounds to none: guidance acts in no step in 1 of 2 requests, and negative "
        "prompts have no effect there. Set it above 0.125"
    )
    assert not guidance_notes(drawn, todo[1:]) and not guidance_notes(replace(drawn, guidance_until=1.0), todo)
    unasked = replace(drawn, guidance_scale=1.0)  # guidance would act at no share
    assert not guidance_notes(unasked, todo) and not guidance_notes(unasked, []) and guidance_notes(drawn, [])
    assert not guidance_notes(drawn, todo, distilled=True)
    assert guidance_notes(replace(drawn, true_guidance_scale=2.0), todo, distilled=True)
    runtime = Runtime(
        RunConfig(prompts="-", model=model, generation=drawn), Policy(ladder=(NegativeRung(),)), load_model(model)
    )
    rung, negative = (note.text for note in unguided_notes(todo, runtime, 3.0))
    assert rung.endswith("Set generation.guidance_until above 0.125, which is half a step of 4")
    assert negative == "1 of 2 rows have a negative prompt, which has no effect without guidance"
    own = replace(runtime.config, generation=replace(drawn, steps=20))
    other = Runtime(own, Policy(ladder=(NegativeRung(),)), load_model(model))
    short = [replace(one, stated=Stated(steps=2)) for one in todo[:1]]
    rung, negative = (note.text for note in unguided_notes(short, other, 3.0))
    assert "1 of 1 requests has none at the guidance_scale or steps of their rows; the first is '0', of 2 steps" in rung


def test_prompts_that_are_cut_or_cannot_be_read_are_noted() -> None:
    def truncated(prompt: str) -> bool:
        return len(weighted(prompt).text) > 77

    prompts = ("(a cat:1.3)", "(a cat:99)", "a dog " * 40, "(" * 60 + "a" + ")" * 60)
    todo = [Request(row_no=i, key=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]
    todo.append(Request(row_no=4, key="4", prompt="a dog", negative_prompt="(a cat:99)"))
    guided = {"on": True}
    engine = SimpleNamespace(guides=lambda scale, steps: guided["on"])
    runtime: Any = SimpleNamespace(truncated=truncated, engine=engine, adapters=SimpleNamespace(plain=weighted))
    notes = [note.text for note in length_notes(todo, runtime)]
    assert notes[0].startswith("2 of 5 requests will end as error rows: prompt: the weight 99 is not from 0 to 10")
    assert notes[1].startswith("1 of 5 requests will end as error rows: prompt: brackets stand more than 50 deep")
    guided["on"] = False  # nobody reads negative prompts then
    assert length_notes(todo, runtime)[0].text.startswith("1 of 5 requests will end as error rows: prompt: the weight")
    assert notes[2:] == ["1 of 5 prompts are longer than the text encoder takes: their ends are cut off"]


def test_a_group_that_its_own_scale_makes_too_large_is_noted(tiny_model: Callable[[str], Path]) -> None:
    model = ModelConfig(path=str(tiny_model("StableDiffusionPipeline")), dtype="float32", size=16)
    drawn = GenerationConfig(steps=2, rows=4, guidance_scale=1.0, diversity=DiversityConfig(size=4))
    config = RunConfig(prompts="-", samples_per_prompt=4, model=model, generation=drawn)
    runtime = Runtime(config, Policy(ladder=()), load_model(model))
    member = Request(row_no=0, key="a#1", prompt="a", stated=Stated(guidance_scale=7.5), group="a#1-4", group_size=4)
    (note,) = stated_notes([member, replace(member, key="b", group="", group_size=0)], runtime)
    assert note.text.startswith("1 of 2 requests will end as error rows: generation.rows: a call has 4 rows, and a group of 4")


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


@pytest.mark.parametrize(
    ("until", "resume", "steps", "notes"),
    [
        (0.5, 0.5, None, 1),
        (0.5, 0.4, None, 0),
        (0.5, 0.0, None, 0),
        (1.0, 0.9, None, 0),
        (0.5, 0.45, 2, 0),
        (0.0, 0.5, None, 0),
    ],
)
def test_an_eraser_that_begins_behind_the_guidance_is_noted(until: float, resume: float, steps: int | None, notes: int) -> None:
    drawn = GenerationConfig(steps=20, guidance_scale=5.0, guidance_until=until)
    policy = Policy(mark_ladder=(ReseedRung(), EraseRung(resume_fraction=resume)))
    asked = [Request(row_no=0, key="a", prompt="a", negative_prompt="", seed=0, stated=Stated(steps=steps))]
    found = erase_notes(drawn, asked, policy)
    assert len(found) == notes
    assert not found or "rung 2 (erase) begins at step 10 of 20, and guidance acts in the first 10" in found[0].text


def test_an_eraser_is_told_where_guidance_ends_in_so_few_steps() -> None:
    """Half of five steps is two: below 0.5 it might begin behind them all the same."""
    drawn = GenerationConfig(steps=5, guidance_scale=5.0, guidance_until=0.5)
    [note] = erase_notes(drawn, [], Policy(mark_ladder=(EraseRung(resume_fraction=0.45),)))
    assert note.text.endswith("Lower its resume_fraction below 0.4")
    assert not erase_notes(drawn, [], Policy(mark_ladder=(EraseRung(resume_fraction=0.39),)))
