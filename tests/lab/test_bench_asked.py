"""The bench of codes that a prompt asks for: prompts that ask, policies that differ in one key, right numbers on made data."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from guards.asked import asked_for
from jobs.lab.bench import asked
from pipeline.guard_settings import AskedPolicy
from pipeline.policy import kept_if_asked


def test_its_prompts_ask_and_its_policies_differ_in_one_key() -> None:
    assert asked_for(asked.ASKING.format("taco")) == {"qr"} and not asked_for("taco")
    act, keep = asked.policies().values()
    assert not kept_if_asked(act) and kept_if_asked(keep) == {"mark.qr"}
    assert dataclasses.replace(keep, asked=AskedPolicy()) == act


def test_every_caption_has_every_seed_once_and_a_noise_of_its_own() -> None:
    of, noises = asked.requests(["taco", "pizza"], (1, 2))
    assert of == ["taco", "pizza", "taco", "pizza"] and len(set(noises)) == 4


class Pictures:
    """A bench whose pictures are one number each: 1 has a code. A strength from .5 on removes it where nobody asks."""

    def __init__(self) -> None:
        self.empty = None

    def found(self, pictures: np.ndarray) -> list[dict[str, Any]]:
        return [{"qr": []} if picture[0, 0, 0] else {} for picture in pictures]

    def marks(self, pictures: np.ndarray) -> np.ndarray:
        return np.repeat(pictures[:, 0, 0, :1].astype(float), 3, 1)


def test_removal_and_loss_are_counted_on_pictures_that_had_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(_: Any, captions: list[str], noises: list[int], strength: float = 0.0) -> np.ndarray:
        code = [("taco" in c or "QR" in c) and not (strength >= 0.5 and "QR" not in c) for c in captions]
        return np.array(code, np.uint8)[:, None, None, None].repeat(3, 3)

    monkeypatch.setattr(asked, "drawn", drawn)
    b: Any = Pictures()
    by = {m.id: m for m in asked.by_strength(b, ["taco", "lion"], (1, 2))}
    removed, lost = (by[f"weights at 1: codes {what}, judge"] for what in (asked.REMOVED, asked.LOST))
    assert (removed.value, removed.n, removed.better) == (1.0, 2, "higher")
    assert (lost.value, lost.n, lost.better) == (0.0, 4, "lower")
    assert by[f"weights at 0.25: codes {asked.REMOVED}, judge"].value == 0.0
    some = {m.id: m.value for m in asked.drawn_if_asked(b, "some", ["taco", "lion"], (1,))}
    assert some["some: a code is drawn, not asked for, judge"] == 0.5
    assert some["some: a code is drawn, asked for in words, judge"] == 1.0
    assert some["some: … what asking adds, judge"] == 0.5


def test_a_run_is_counted_from_the_first_picture_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(*codes: int, outcome: str = "accepted") -> Any:
        tries = [SimpleNamespace(picture=np.full((1, 1, 3), code, np.uint8), pixel_sha256=str(code)) for code in codes]
        return SimpleNamespace(attempts=tries, outcome=outcome)

    ended = {
        ("act", True): [sample(1, 0), sample(0)], ("act", False): [sample(1, 0), sample(0)],
        ("keep", True): [sample(1), sample(0)], ("keep", False): [sample(1, 0), sample(1, outcome="review")],
    }  # fmt: skip
    b: Any = Pictures()
    by = {m.id: m for m in asked.counted(b, ended, ["taco", "lion"])}
    lost = {
        name: by[f'in a run, asked.qr = "{name}", asked for in words: a code is gone at the end, judge']
        for name in ("act", "keep")
    }
    assert (lost["act"].value, lost["keep"].value, lost["keep"].n) == (1.0, 0.0, 1)
    assert lost["keep"].goal == asked.GOAL and lost["keep"].met and lost["act"].goal is None
    assert by['in a run, asked.qr = "keep", not asked for: accepted'].value == 0.5
    assert by['in a run, asked.qr = "act", not asked for: pictures drawn for a request'].value == 1.5
    assert by["in a run, not asked for: every picture the same under both"].value == 0.5
