"""What a worker on Ray asks its cluster for, and how many such workers fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from index.counted import counted
from pipeline.config import RunConfig
from pipeline.model.device import cores

_ALMOST = 1e-6  # 0.1 is not a tenth: ten shares of it must fit on one GPU


@dataclass(frozen=True)
class Need:
    """What one worker asks for: whole CPUs for its threads and its guard processes, and a share of a GPU (0 for a model on the
    CPU)."""

    cpus: int
    gpus: float

    @classmethod
    def of(cls, config: RunConfig) -> Need:
        gpus = config.device_share if config.model.device.startswith("cuda") else 0.0
        return cls(cpus=config.generation.threads + guards_on_ray(config), gpus=gpus)

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many such workers one machine holds."""
        by_cpus = math.floor(resources.get("CPU", 0.0) / self.cpus + _ALMOST)
        if not self.gpus:
            return by_cpus
        # A share is of one GPU: two halves of different GPUs hold nothing.
        return min(by_cpus, math.floor(1 / self.gpus + _ALMOST) * math.floor(resources.get("GPU", 0.0)))

    def fits_in_all(self, machines: Iterable[Mapping[str, float]]) -> int:
        return sum(self.fits(resources) for resources in machines)

    def __str__(self) -> str:
        cpus = f"{counted(self.cpus, 'CPU')}"
        if not self.gpus:
            return cpus
        return f"{cpus} and {'a' if self.gpus == 1 else f'{self.gpus:g} of a'} GPU"


def guards_on_ray(config: RunConfig) -> int:
    """Guard processes of a worker on Ray: those that the run file counts. "auto" is none: what is free is Ray's to give."""
    return 0 if config.guards.workers == "auto" else config.guards.workers


def workers_here(config: RunConfig, shards: int, *, gpus: int) -> int:
    """Workers of a Ray that is started on this machine alone, for people: what "auto" comes to.

    Args:
        config: the run file. shards: that are open. gpus: of this machine.
    """
    if config.workers != "auto":
        return config.workers
    fits = Need.of(config).fits({"CPU": cores(), "GPU": gpus})
    return max(1, min(fits, shards))
