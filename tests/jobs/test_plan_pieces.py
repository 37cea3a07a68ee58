"""How a plan reaches the actors of Ray: beside the call, so that the driver owns nothing in Ray's store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.run.plan import Plan
from jobs.run.ray import actor

ray = pytest.importorskip("ray")


def test_a_plan_goes_along_in_pieces_that_ray_keeps_out_of_its_store(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "put", lambda _: pytest.fail("an object of the store"))
    monkeypatch.setattr(actor, "PIECE", 400)
    plan = make_plan([f"a cat with {number} tails" for number in range(300)])
    pieces = actor.pieces_of(plan)
    assert len(pieces) > 3 and all(isinstance(piece, bytes) and len(piece) <= 400 for piece in pieces)
    again = actor.joined(pieces)
    assert again.plan_sha256 == plan.plan_sha256 and list(again.requests) == list(plan.requests)


def test_a_very_large_plan_goes_through_the_store(make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda plan: ("stored", plan))
    monkeypatch.setattr(actor, "MOST_PIECES", 0)
    plan = make_plan(["cat"])
    (piece,) = actor.pieces_of(plan)
    assert piece == ("stored", plan) and actor.joined((plan,)) is plan
