"""The filters before the guards, and where to go back to when one fires."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from index.errors import ConfigError
from pipeline.steer.cascade import Cascade, Fired, max_cosine, rollback_step, text_score

CENTRE = torch.full((4, 4, 4), 5.0)
REFERENCE = CENTRE + torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
FAR = CENTRE + torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
BOTH = Cascade(text_steps=2, text_threshold=3.0, likeness=((0.15, 0.7), (0.3, 0.8)))


def look(cascade: Cascade, step: int, norms: list[float], clean: torch.Tensor) -> Fired | None:
    return cascade.look(step, 20, norms, clean, [REFERENCE], CENTRE)


def test_the_cheap_stage_looks_first_and_once() -> None:
    assert look(BOTH, 0, [9.0], FAR) is None  # not all its steps are taken
    fired = look(BOTH, 1, [4.0, 4.0], FAR)
    assert fired == Fired("text", 1, 4.0, 3.0)
    assert look(BOTH, 1, [2.0, 3.0], FAR) is None and look(BOTH, 5, [9.0] * 6, FAR) is None


def test_the_likeness_stage_looks_at_its_steps_with_its_threshold() -> None:
    near = REFERENCE + 1.0 * torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3))
    score = max_cosine(near, [FAR, REFERENCE], CENTRE)
    assert 0.7 < score < 0.8
    quiet = [0.0] * 20
    assert [step for step in range(20) if look(BOTH, step, quiet[: step + 1], REFERENCE)] == [2, 5]
    assert [step for step in range(20) if look(BOTH, step, quiet[: step + 1], near)] == [2]
    assert look(BOTH, 2, quiet[:3], FAR) is None
    assert BOTH.look(2, 20, quiet[:3], REFERENCE, [], CENTRE) is None


def test_the_text_stage_can_arm_the_likeness_stage() -> None:
    armed = replace(BOTH, text_arms=True)
    assert look(armed, 1, [9.0, 9.0], REFERENCE) is None  # it does not fire itself
    assert look(armed, 2, [9.0, 9.0, 0.0], REFERENCE) is not None
    assert look(armed, 2, [1.0, 1.0, 0.0], REFERENCE) is None


def test_an_empty_cascade_never_fires_and_a_senseless_one_is_refused() -> None:
    assert all(look(Cascade(), step, [99.0] * 20, REFERENCE) is None for step in range(20))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Cascade(likeness=((1.5, 0.5),))
    with pytest.raises(ConfigError, match="nothing would ever"):
        Cascade(text_arms=True)


@given(norms=st.lists(st.floats(0, 100), min_size=2, max_size=6), more=st.floats(0, 50), at=st.integers(0, 1))
def test_a_larger_norm_never_calms_a_filter(norms: list[float], more: float, at: int) -> None:
    before = look(BOTH, 1, norms[:2], FAR)
    norms[at] += more
    assert before is None or look(BOTH, 1, norms[:2], FAR) is not None
    score = text_score(norms, 2)
    assert score is not None and text_score(norms[:1], 2) is None and text_score(norms, 0) is None


@given(
    steps=st.integers(1, 60),
    fraction=st.floats(0, 1),
    back=st.floats(0, 0.5),
    fired=st.one_of(st.none(), st.integers(0, 59)),
)
def test_every_failure_goes_back_earlier(steps: int, fraction: float, back: float, fired: int | None) -> None:
    fired = None if fired is None else min(fired, steps - 1)
    begins = [rollback_step(steps, n, resume_fraction=fraction, rollback=back, fired_at=fired) for n in range(1, 8)]
    assert all(0 <= begin < steps for begin in begins)
    assert all(later <= earlier for earlier, later in pairwise(begins))
    if back * steps >= 1:
        assert all(later < earlier or later == 0 for earlier, later in pairwise(begins))
    if fired is not None:
        assert begins[0] < fired or fired == 0
        assert fired <= steps / 2 or begins[0] <= 0.4 * steps
    elif back == 0:
        assert begins == [min(int(fraction * steps), steps - 1)] * 7


def test_where_a_probe_goes_back_to() -> None:
    assert [rollback_step(20, n, rollback=0.1, fired_at=5) for n in (1, 2, 3)] == [3, 1, 0]
    assert [rollback_step(20, n, rollback=0.1, fired_at=15) for n in (1, 2)] == [8, 6]  # too late: 40 % of the steps
    assert [rollback_step(20, n, resume_fraction=0.5, rollback=0.2) for n in (1, 2, 3, 4)] == [10, 6, 2, 0]
