"""The filters before the guards, and where to go back to when one fires."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.steer.filters import max_cosine, rollback_step, text_score

CENTRE = torch.full((4, 4, 4), 5.0)
REFERENCE = CENTRE + torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
FAR = CENTRE + torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))


def test_likeness_is_the_nearest_references_and_taken_from_the_centre() -> None:
    near = REFERENCE + torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3))
    assert 0.7 < max_cosine(near, [FAR, REFERENCE], CENTRE) < 0.8
    assert max_cosine(near, [FAR, REFERENCE], CENTRE) == max_cosine(near, [REFERENCE], CENTRE) > max_cosine(near, [FAR], CENTRE)
    assert max_cosine(near, [FAR], torch.zeros_like(CENTRE)) > 0.9, "what all latents share would look like likeness"


@given(norms=st.lists(st.floats(0, 100), min_size=2, max_size=6), more=st.floats(0.1, 50), at=st.integers(0, 1))
def test_the_text_score_is_the_mean_of_the_first_steps_and_waits_for_them(norms: list[float], more: float, at: int) -> None:
    before = text_score(norms, 2)
    assert before == (norms[0] + norms[1]) / 2
    norms[at] += more
    after = text_score(norms, 2)
    assert after is not None and before is not None and after > before
    assert text_score(norms[:1], 2) is None and text_score(norms, 0) is None


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
