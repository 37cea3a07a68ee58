"""What the pool of a run on Ray makes of machines and workers that are lost, without a Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from index.errors import RunStopped
from jobs.run.plan import Plan
from jobs.run.ray import pool
from jobs.run.ray.actor import Opened
from jobs.run.ray.placement import Need
from jobs.run.ray.pool import Pool
from jobs.run.session import Session

LOST = "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died. Node Id: ab\n"
WAITED = f"{LOST}The actor never ran - it was cancelled before it started running."
KILLED = "The actor died unexpectedly before finishing this task.\nThe process is killed by SIGKILL"


class Machines:
    """A cluster of other machines."""

    own, answers = False, True

    def __init__(self) -> None:
        self.there: dict[str, Mapping[str, float]] = {"a": {"CPU": 1.0}}

    def ended(self) -> str:
        return ""

    def machines(self) -> dict[str, Mapping[str, float]]:
        return self.there


@pytest.fixture
def ray_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Have every future answer so, an exception by raising it."""
    from ray.exceptions import RayActorError

    def say(what: Any) -> None:
        def get(_: Any) -> Any:
            if isinstance(what, str):
                raise RayActorError(None, what)
            return what

        monkeypatch.setattr("ray.get", get)

    return say


@pytest.fixture
def hired(make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pool, list[str]]]:
    """A pool whose actors are numbers, and what its session reports."""
    said: list[str] = []
    session = Session(
        make_plan(["cat", "owl"]),
        tmp_path / "run",
        "ray",
        lambda event: said.append(f"{event.kind}: {event.detail}"),
        None,
        False,
    )
    made = Pool(session, Machines(), Need(1, 0), [0])  # type: ignore[arg-type]
    numbers = count()

    def hire(self: Pool, number: int) -> int:
        future = next(numbers)
        self.waiting[future] = pool._Seat(number=number, actor=None, worker_id=f"ray-{number}")
        return future

    monkeypatch.setattr(Pool, "_hire", hire)
    monkeypatch.setattr(Pool, "_let_go", lambda *_: None)
    yield made, said


def settle(made: Pool, number: int = 0) -> None:
    made._hire(number)
    future, seat = made.waiting.popitem()
    made._settle(future, seat)


def test_workers_that_waited_for_room_on_a_machine_that_is_lost_are_no_deaths(hired: Any, ray_says: Any) -> None:
    """Ray ends those it had chosen the machine for. Three of them stopped a run for want of memory."""
    made, said = hired
    ray_says(WAITED)
    for _ in range(20):
        settle(made)
    assert said == [] and not made.opening_deaths


def test_a_worker_that_loaded_its_models_on_a_machine_that_is_lost_is_the_machines(hired: Any, ray_says: Any) -> None:
    made, said = hired
    ray_says(LOST)
    for _ in range(9):
        settle(made)
    assert said == ["retried: worker ray-0 died while it loaded the models: its machine left the cluster"] * 9
    with pytest.raises(RunStopped, match="10 workers died while loading the models") as stopped:
        settle(made)
    assert "memory" not in stopped.value.fix and "machines leave the cluster" in stopped.value.fix


def test_only_deaths_since_a_worker_was_ready_stop_a_run(hired: Any, ray_says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = hired
    monkeypatch.setattr(made.session, "ready", lambda *_: None)
    monkeypatch.setattr(Pool, "_lease", lambda *_: None)
    for _ in range(5):
        ray_says(KILLED)
        settle(made)
        settle(made)
        ray_says(Opened(None, "a", -20))  # type: ignore[arg-type]
        settle(made)
    assert len(said) == 10
    ray_says(KILLED)
    with pytest.raises(RunStopped, match="3 workers died while loading the models") as stopped:
        for _ in range(3):
            settle(made)
    assert "logs" in stopped.value.fix


def test_a_run_whose_machines_all_left_says_that_it_waits(hired: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when some of its shards are committed already."""
    made, said = hired
    made.session.context = object()
    made.cluster.there = {"head": {}}
    monkeypatch.setattr(pool, "WAIT_SECONDS", -1.0)
    rounds = iter([[], []])

    def none_ready(self: Pool) -> list[Any]:
        try:
            return next(rounds)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(Pool, "_ready", none_ready)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert said[0].startswith("waiting: no worker is ready yet: no machine of the cluster has 1 CPU")
