"""How each class of model is usually drawn: the values of its authors' or diffusers' own examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What suits a folder of a class.

    Attributes:
        steps: denoising steps.
        guidance: the guidance scale; what it means is the class's (:meth:`pipeline.model.interface.DiffusionModel.combine`).
        text_tokens: of T5 or the language model; None where the class has neither.
        size: a picture's side in pixels.
    """

    steps: int
    guidance: float
    text_tokens: int | None
    size: int


Configs = Mapping[str, Mapping[str, Any]]
"""Part of the folder → its configuration; ``""``: that of ``model_index.json``."""
