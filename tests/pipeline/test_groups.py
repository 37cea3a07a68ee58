"""Declared groups in the engine: mates push one another apart, step together, and depend on no other sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from index.errors import ConfigError
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.interface import DiffusionModel
from pipeline.steer.diversity import Group
from pipeline.steer.negtome import NegToMe

STEPS = 4


def engine(model: DiffusionModel, rows: int = 8) -> Engine:
    return Engine(model, rows=rows, steps=STEPS, guidance_scale=3.0)


def single(e: Engine, tag: int) -> Trajectory:
    texts = e.model.encode_prompts(["a red apple", ""])
    return Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1])


def grouped(e: Engine, name: str, tags: list[int], *, alpha: float = 0.9, guided: bool = True) -> list[Trajectory]:
    context = e.model.encode_prompts([""])[0]
    group = Group(name, len(tags), NegToMe(latents=(), noises=None, context=context, alpha=alpha, threshold=0.1, until_step=3))
    members = [single(e, tag) for tag in tags]
    for number, t in enumerate(members):
        t.group, t.member = group, number
        t.negative = t.negative if guided else None
    return members


@pytest.mark.parametrize("guided", [True, False])
def test_a_group_has_the_same_bytes_alone_and_among_others(model: DiffusionModel, guided: bool) -> None:
    alone = (e := engine(model)).finish(grouped(e, "a", [1, 2, 3], guided=guided))
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [4, 2, 5, 0, 3, 1]):
        e = engine(model)
        trajectories = [*grouped(e, "a", [1, 2, 3], guided=guided), single(e, 10), *grouped(e, "b", [20, 21])]
        mixed = e.finish([trajectories[i] for i in order])
        assert all(torch.equal(mixed[tag], alone[tag]) for tag in alone)
        assert torch.equal(mixed[10], (other := engine(model)).finish([single(other, 10)])[10])


def test_its_bytes_depend_on_its_members(exact: DiffusionModel) -> None:
    def first(*tags: int, alpha: float = 0.9) -> torch.Tensor:
        e = engine(exact)
        return e.finish(grouped(e, "a", list(tags), alpha=alpha))[1]

    e = engine(exact)
    plain = e.finish([single(e, 1)])[1]
    assert not torch.equal(first(1, 2), first(1, 3)) and not torch.equal(first(1, 2), plain)
    assert torch.equal(first(1, 2, alpha=0.0), plain)
    assert torch.equal(first(1), plain)  # nobody to be pushed from


def test_mates_move_apart(exact: DiffusionModel) -> None:
    """Two near noises end further apart than they would alone."""
    near = {}
    for alpha in (0.0, 0.9):
        e = engine(exact)
        members = grouped(e, "a", [1, 2], alpha=alpha)
        members[1].latent = members[0].latent + 0.3 * members[1].latent
        done = e.finish(members)
        near[alpha] = float((done[1] - done[2]).norm())
    assert near[0.9] > near[0.0]


def test_a_group_goes_in_whole_and_sits_out_whole(exact: DiffusionModel) -> None:
    e = engine(exact, rows=6)
    late, members = single(e, 9), grouped(e, "a", [1, 2, 3])
    for t in (late, *members):
        e.submit(t)
    while e.busy:
        e.step()
        assert len({t.step for t in members}) == 1
    assert all(t.step == STEPS for t in (late, *members)) and e.calls == 2 * STEPS


def test_half_the_rows_must_hold_a_group(exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    e, real = engine(exact, rows=16), exact.denoise

    def small(latents: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(latents) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(latents, *args)

    alone = (other := engine(exact, rows=6)).finish(grouped(other, "a", [1, 2, 3]))
    monkeypatch.setattr(exact, "denoise", small)
    done = e.finish(grouped(e, "a", [1, 2, 3]))
    assert e.rows == 6 and all(torch.equal(done[tag], alone[tag]) for tag in alone)


def test_what_cannot_be_is_refused(exact: DiffusionModel) -> None:
    e = engine(exact, rows=4)
    with pytest.raises(ConfigError, match="needs 6 rows"):
        e.submit(grouped(e, "a", [1, 2, 3])[0])
    both = grouped(e, "a", [1, 2])[0]
    both.push = NegToMe(latents=(), noises=None, context=both.context, alpha=0.9, threshold=0.5, until_step=3)
    with pytest.raises(ValueError, match="not both"):
        e.submit(both)
    first, _second = grouped(e, "a", [1, 2])
    e.submit(single(e, 3))
    e.submit(first)
    for _ in range(STEPS):
        e.step()  # others do not wait for the missing one
    with pytest.raises(ConfigError, match="only 1 of its members"):
        e.step()
    assert e.abandon() == [first] and not e.busy
