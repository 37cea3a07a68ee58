"""Networks that are on the device only while they work: text encoders, which have nothing to do until the next shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def resident(networks: Iterable[Any], device: Any) -> Iterator[None]:
    """Inside, the networks are on the device; afterwards in the host's memory. Nothing moves where there are none."""
    there = list(networks)
    for network in there:
        network.to(device)
    try:
        yield
    finally:
        for network in there:
            network.to("cpu")
