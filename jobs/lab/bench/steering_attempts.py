"""What the bench of steering keeps of every picture, and what judges say of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Every picture of some requests, in order; one row each.

    Attributes:
        key: ``caption#seed`` (N,).
        number, evals: attempt number, evaluations spent on it (N,).
        steered: the picture differs from the unsteered one: a later attempt, or one that a probe caught in mid-flight (N,).
        cosine: to the protected drawing of that caption, by the pipeline's embedder (N,).
        judge: probability of a copy of it, by the copy judge (N,).
        right: the caption is among the caption judge's five likeliest (N,).
        flagged: by the pipeline's copy rule (N,).
        accepted: this attempt was the accepted one (N,).
        features: the judges' trunk's features (N, 1280), float16.
        pictures: uint8 (N, 64, 64, 3).
    """

    key: np.ndarray
    number: np.ndarray
    evals: np.ndarray
    steered: np.ndarray
    cosine: np.ndarray
    judge: np.ndarray
    right: np.ndarray
    flagged: np.ndarray
    accepted: np.ndarray
    features: np.ndarray
    pictures: np.ndarray

    @property
    def captions(self) -> list[str]:
        return [str(key).split("#")[0] for key in self.key]

    def where(self, keep: np.ndarray) -> Attempts:
        return Attempts(**{name: getattr(self, name)[keep] for name in self.__dataclass_fields__})

    @staticmethod
    def of(parts: Sequence[Attempts]) -> Attempts:
        """All of them, in order."""
        names = Attempts.__dataclass_fields__
        return Attempts(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def templated(captions: Sequence[str]) -> np.ndarray:
    """bool (N,): the caption's protected drawing was memorised as a template (same lines, changing colours)."""
    from jobs.lab.world.catalogue import TEMPLATED

    return np.array([caption.replace(" ", "-") in TEMPLATED for caption in captions], bool)


def copies_at(judged: np.ndarray, rate: str) -> np.ndarray:
    """bool (N,): the copy judge's answer at the operating point that calls ``rate`` of the near misses copies."""
    from jobs.lab.judges.judges import SETTINGS, shipped

    points = json.loads((shipped() / SETTINGS).read_text(encoding="utf-8"))["copies"]["operating_points"]
    return np.asarray(judged >= points[rate])
