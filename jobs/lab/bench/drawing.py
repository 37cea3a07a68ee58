"""Drawing on the embedded world for all benches: a runtime with a policy, captions with seeds, the protected drawings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.outcome import Sample
    from pipeline.policy import Policy
    from pipeline.runtime import Runtime


@dataclass(frozen=True)
class Drawn:
    """The samples of one runtime. Of each sample the accepted picture counts, or the last one where none was accepted."""

    samples: list[Sample]

    @property
    def pictures(self) -> np.ndarray:
        return np.stack([s.final.picture for s in self.samples])  # type: ignore[union-attr]

    @property
    def captions(self) -> list[str]:
        return [s.request.prompt for s in self.samples]

    def flagged(self, guard: str) -> np.ndarray:
        """bool (N,): whether the guard triggered on the picture that counts."""
        return np.array([any(f.guard == guard and f.triggered for f in s.final.findings) for s in self.samples])  # type: ignore[union-attr]

    def only(self, keep: Sequence[bool] | np.ndarray) -> Drawn:
        return Drawn([s for s, k in zip(self.samples, keep, strict=True) if k])


def open_runtime(folder: Path, policy: str | Policy, *, model: Path | None = None) -> Runtime:
    """A runtime on the embedded world with a policy, given as an object or by name; its index is built in ``folder``.

    ``model`` is a diffusers folder that draws in place of the one that ships.

    torch uses one thread: the pictures do not depend on the number of cores, and two benches can run side by side.
    """
    from index.collect import read_references
    from index.embed import OpenCLIPEmbedder
    from index.shipped import STICKERS
    from index.store import ReferenceIndex
    from jobs.run.plan import read_policy
    from pipeline.config import GenerationConfig, GuardsConfig, ModelConfig, RunConfig
    from pipeline.runtime import Runtime

    if not (folder / "index").exists():
        ReferenceIndex.build(folder / "index", read_references(STICKERS / "references"), OpenCLIPEmbedder.open("stickers"))
    drawn_with = ModelConfig() if model is None else ModelConfig(path=str(model))
    generation, alone = GenerationConfig(threads=1), GuardsConfig(workers=0)  # and no process beside it
    config = RunConfig(prompts=("-",), index="index", model=drawn_with, generation=generation, guards=alone)
    return Runtime.open(config, read_policy(policy, folder) if isinstance(policy, str) else policy, base=folder)


def draw(runtime: Runtime, names: Sequence[str], seeds: Iterable[int], label: str) -> Drawn:
    """Every caption with every seed, in order of seed and name."""
    from rich.progress import track

    from pipeline.moderate import moderate
    from pipeline.outcome import Request

    requests = [
        Request(row_no=i, key=f"{name}#{seed}", prompt=name.replace("-", " "), seed=1000 * seed + i)
        for seed in seeds
        for i, name in enumerate(names)
    ]
    done = list(track(moderate(runtime, requests), label, total=len(requests)))
    return Drawn(sorted(done, key=lambda s: (s.request.seed, s.request.row_no)))


def no_copies(world: Path) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, np.ndarray]]]:
    """Drawings of the built world that copy no protected one, with names: of the same subjects by others; of other subjects."""
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import load

    pixels, vendors, names = load(world)
    protected = {c.icon: c.protected_vendor for c in concepts() if c.protected_vendor}
    ordinary = {c.icon for c in concepts()} - set(protected)
    same = [i for i, name in enumerate(names) if name in protected and vendors[i] != protected[name]]
    other = [i for i, name in enumerate(names) if name in ordinary]
    return [(names[i], pixels[i]) for i in same], [(names[i], pixels[i]) for i in other]


def pictures_of(runtime: Runtime) -> dict[str, np.ndarray]:
    """Caption → the protected drawing."""
    index = runtime.index
    assert index is not None
    found = {r.title: index.picture(r.ref_id) for r in index.references()}
    return {title: picture for title, picture in found.items() if picture is not None}
