"""Rows that state steps or a guidance scale, beside a preset of few-step models: refused where they contradict it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from index.errors import ClearanceError, ConfigError
from pipeline.config import RunConfig
from pipeline.notes import Note
from pipeline.outcome import Request


def held_to_preset(
    requests: Sequence[Request], config: RunConfig, notes: list[Note] | None = None, places: Mapping[str, str] | None = None
) -> list[Request]:
    """The requests, as error rows where what they state contradicts the preset that the run file names.

    Under ``auto`` they are drawn as they state, as the keys of the run file are, and a note counts them. A model that cannot be
    looked at decides nothing here: it is refused later.

    Args:
        requests: of the run. config: its run file. notes: receives that note.
        places: where the row of each request stands, by the request's key, as the reader of prompts found it.
    """
    g = config.generation
    own = [one for one in requests if one.problem is None and (one.stated.steps, one.stated.guidance_scale) != (None, None)]
    if not own or g.preset == "none":
        return list(requests)
    from pipeline.model.load import look_at
    from pipeline.model.sampling.presets import Facts, contradiction_of

    try:
        folder, cls, parts = look_at(config.model)
        facts = Facts.of_folder(folder, cls, parts.scheduler)
    except ClearanceError:
        return list(requests)

    @functools.cache
    def against(steps: int | None, guidance_scale: float | None) -> ConfigError | None:
        return contradiction_of(g, facts, steps=steps, guidance_scale=guidance_scale)

    wrong = {one.key: error for one in own if (error := against(one.stated.steps, one.stated.guidance_scale)) is not None}
    if g.preset == "auto":
        if wrong and notes is not None:
            (first, *_), many = wrong.values(), len(wrong)
            text = f"{many} of {len(requests)} requests are drawn as their rows state, against what the model's folder asks for"
            notes.append(Note("preset", f"{text}: {first.what}"))
        return list(requests)
    there = places or {}
    return [
        replace(one, problem=_problem(wrong[one.key], there.get(one.key, ""))) if one.key in wrong else one for one in requests
    ]


def _problem(error: ConfigError, place: str) -> tuple[str, str]:
    key = error.where.removeprefix("generation.")
    text = f"{error.what}; {error.fix[:1].lower()}{error.fix[1:]}"
    return ".".join(("input", f"bad_{key}")), f"{place}: {text}" if place else text
