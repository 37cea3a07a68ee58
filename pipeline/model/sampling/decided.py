"""What a run file leaves open and the folder of its model decides, and what a reader of the run should know of it.

A plan holds the numbers in full, so they are filled in once, when it is made. The notes are made then too: afterwards nothing
is open, and nobody could tell what was stated from what was filled in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.model.folder.components import read_index
from pipeline.model.folder.resolve import model_name
from pipeline.model.load import look_at, sides_of
from pipeline.model.sampling.presets import Facts, filled_in
from pipeline.notes import Note

if TYPE_CHECKING:
    from pipeline.model.families.latent import LatentDiffusion

# Words in the names of few-step models and LoRAs, and the preset that each is drawn with, where it is not a rectified flow.
FEW_STEPS = {"turbo": "turbo", "schnell": "turbo", "lightning": "lightning", "hyper": "hyper", "lcm": "lcm"}
_NAMED = re.compile(rf"(?<![a-z])(?i:({'|'.join(FEW_STEPS)}))(?![a-z])")  # "XL_turboSDE", and not "hyperrealistic"


def decided(config: RunConfig) -> tuple[RunConfig, list[Note]]:
    """The run file with everything stated that its preset or its model's folder decides, and notes; loads nothing.

    Raises:
        ModelError: the folder cannot be drawn with.
        ConfigError: a key contradicts the preset, or a side is one that the model cannot draw.
    """
    folder, cls, parts = look_at(config.model)
    _check_sides(config.model)
    facts = Facts.of_folder(folder, cls, parts.scheduler)
    drawn = filled_in(config.generation, facts)
    model, notes = _text_filled_in(config.model, cls, folder)
    names = [model_name(config.model), read_index(folder).get("_name_or_path"), *(one.path for one in config.adapters)]
    hints = [] if drawn.preset else few_step_hints(config.generation, facts, names)
    return dataclasses.replace(config, model=model, generation=drawn.generation), [*drawn.notes, *notes, *hints]


def few_step_hints(generation: GenerationConfig, facts: Facts, names: Iterable[Any]) -> list[Note]:
    """That a model or LoRA may be one of few steps, which no configuration says, and will be drawn in many.

    Args:
        generation: as the run file states it. Whoever states steps and guidance, or a preset, knows what the model is.
        facts: of the model's folder.
        names: of model and adapters; what is no text is passed over.
    """
    if generation.preset != "auto" or None not in (generation.steps, generation.guidance_scale):
        return []
    drawn = filled_in(generation, facts).generation
    how = f"it is drawn in {drawn.steps} steps with a guidance of {drawn.guidance_scale:g}"
    for name in (Path(name).name for name in names if isinstance(name, str)):  # not the folders above, nor a hub's owner
        if found := _NAMED.search(name):
            preset = "turbo" if facts.flow else FEW_STEPS[found[1].lower()]
            text = f"{name!r} has the name of a few-step model, and no file of the model's folder says so: {how}"
            return [
                Note("preset", f'{text}. generation.preset = "{preset}" draws it in few steps, "none" says that it is none')
            ]
    scheduler = facts.scheduler
    trailing = scheduler.get("timestep_spacing") == "trailing" and scheduler.get("_class_name") == "EulerDiscreteScheduler"
    if trailing and scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr"):
        text = f"the folder's scheduler has trailing timesteps, as those of few-step models (SD-Turbo, Lightning) have: {how}"
        return [Note("preset", f'{text}. generation.preset names one, or says "none"')]
    return []


def _check_sides(model: ModelConfig) -> None:
    """Refuse a side that does not fit before a model is loaded, which may take minutes."""
    rule = sides_of(model)
    for key in ("size", "width", "height"):
        side = getattr(model, key)
        if rule is not None and side is not None and (key != "size" or None in (model.width, model.height)):
            rule.fit(side, f"model.{key}")


def _text_filled_in(model: ModelConfig, cls: type[LatentDiffusion], folder: Path) -> tuple[ModelConfig, list[Note]]:
    """How many tokens of text are read, where a folder was trained with others than its class."""
    import json

    network = json.loads((folder / cls.denoiser / "config.json").read_text(encoding="utf-8"))
    usual = cls.defaults({"": read_index(folder), cls.denoiser: network}).text_tokens
    if model.text_tokens is not None or usual in (None, cls.text_tokens):
        return model, []
    text = f"the run file leaves model.text_tokens open, and such a {cls.pipeline} was trained with {usual}: {usual} are read"
    return dataclasses.replace(model, text_tokens=usual), [Note("generation", text)]
