"""What a run reports while it goes, to its display, its log and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["started", "worker", "sample", "shard", "retried", "waiting", "note", "finished"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a run reports while it goes.

    Attributes:
        kind: ``started`` and ``finished`` frame the run; ``worker`` a worker is ready; ``sample`` one request ended (local
            runner); ``shard`` a shard is committed; ``retried`` a worker died; ``waiting`` no worker is free yet; ``note``
            something worth knowing.
        done: requests that have ended, earlier sessions of a resumed run included.
        total: requests of the plan.
        outcomes: ended requests by outcome.
        detail: a sentence for people.
        run_id: the run's id.
        shards_open: shards of the plan that are not committed.
        shard, worker: which of them it is about; empty where it is about none.
    """

    kind: Kind
    done: int
    total: int
    outcomes: Mapping[str, int]
    detail: str = ""
    run_id: str = ""
    shards_open: int = 0
    shard: str = ""
    worker: str = ""


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""
