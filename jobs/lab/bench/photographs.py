"""The second look on photographs: which of three kinds tells an edited copy from another picture, and at what cost.

Every work (:mod:`jobs.lab.bench.photographs_works`) is edited in five ways. An edited copy is compared with its work, and
with the nearest other work: the one that a network of ImageNet's classes puts nearest to it, often the neighbouring crop of the
same photograph. Thresholds are chosen on one half of the photographs and measured on the other. Photographs of the same scene
from elsewhere are counted apart: they are no copies, and to key points they nearly are.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.bench.held_out import precision_measure
from jobs.lab.bench.measures import Measure, clustered, publish, spread
from jobs.lab.bench.photographs_works import EDITS, PACKAGES, Work, views, works

FALSE_ALARMS = 0.01  # share of near misses that may reach the threshold, on the half that chooses it
KINDS = tuple(EDITS)[:5]
POOL = 320  # works among which the nearest other one is looked for
GOAL = 0.95  # average precision of the look that photographs need
Look = Callable[[np.ndarray, np.ndarray], float]


def looks(work: Path) -> dict[str, Look]:
    """The looks that are compared; the descriptor is an ImageNet network, written as TorchScript to ``work``."""
    from index.confirm import confirm
    from index.descriptor import Descriptor
    from index.keypoints import Keypoints

    return {"alignment": confirm, "keypoints": Keypoints(), "descriptor": Descriptor(imagenet_file(work))}


def imagenet_file(work: Path) -> Path:
    """EfficientNet-Lite0 without its classifier as TorchScript, with how pictures enter it: a descriptor for everybody."""
    import torch

    from jobs.lab.judges.trunk import MEAN, STD, Trunk

    work.mkdir(parents=True, exist_ok=True)
    path = work / "efficientnet-lite0.pt"
    if not path.exists():
        trunk = Trunk.open()
        traced = torch.jit.trace(lambda x: trunk._look(x)["pooled"], torch.zeros(1, 3, 224, 224))  # type: ignore[no-untyped-call]
        path.with_suffix(".json").write_text(json.dumps({"size": 224, "mean": MEAN, "std": STD}), encoding="utf-8")
        torch.jit.save(traced, str(path))  # type: ignore[no-untyped-call]
    return path


def bench(out: Path, *, packages: Path, work: Path, quick: bool = False, most: int = 300) -> None:
    """Measure and publish ``photographs``.

    Args:
        packages: one unpacked package a folder.
        work: finished works are kept here; a stopped bench goes on.
        most: works that are edited, spread over all photographs.
    """
    import cv2
    import torch

    from index.errors import InputError

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pool = spread_out(works(packages), 24 if quick else max(POOL, most))
    chosen = pool[:most]
    if len(chosen) < 2:
        fix = f"Unpack some of these packages there, each in a folder of its name: {', '.join(PACKAGES)}"
        raise InputError("holds no photographs that the bench knows", where=str(packages), fix=fix)
    rows = list(measured(pool, len(chosen), looks(work), work / f"rows-{len(pool)}.jsonl"))
    seen = _views(packages, chosen, looks(work))
    measures = [*summed(rows), *seen]
    more = {
        "works": len(chosen), "pool": len(pool), "photographs": len({w.photograph for w in chosen}),
        "kinds of edits": list(KINDS),
        "packages": {
            name: {"works": n, "licences": PACKAGES[name][0]} for name, n in Counter(w.package for w in chosen).items()
        },
    }  # fmt: skip
    publish("photographs", measures, out, seeds=(0,), quick=quick, more=more)


def spread_out(found: list[Work], most: int) -> list[Work]:
    """At most so many works, the first crop of every photograph first, then the second of every one."""
    nth: Counter[str] = Counter()
    ranked = []
    for place, one in enumerate(found):
        ranked.append((nth[one.photograph], place))
        nth[one.photograph] += 1
    return [found[place] for _, place in sorted(ranked)[:most]]


def measured(pool: list[Work], most: int, by: dict[str, Look], kept: Path) -> Iterator[dict[str, Any]]:
    """A row for every work and edit: scores of the copy and of the nearest other work, and every look's CPU time."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    done = {row["work"]: row for row in map(json.loads, lines)}
    yield from (edit for at, row in sorted(done.items()) if at < most for edit in row["edits"])
    if done.keys() >= set(range(most)):
        return
    descriptor: Any = by["descriptor"]
    from index.keypoints import Shown

    vectors = np.stack([descriptor.vector(Shown(one.picture)) for one in pool])
    with kept.open("a", encoding="utf-8") as stream:
        for at, one in enumerate(pool[:most]):
            if at in done:
                continue
            edits = []
            for kind in KINDS:
                rng = np.random.default_rng([0, at, KINDS.index(kind)])
                foreign = int(rng.choice([i for i, w in enumerate(pool) if w.photograph != one.photograph]))
                picture = EDITS[kind](one.picture, pool[foreign].picture, rng)
                alike = vectors @ descriptor.vector(Shown(picture))
                alike[[at, foreign] if kind == "inset" else [at]] = -1
                near = int(np.argmax(alike))
                row = {"kind": kind, "photograph": one.photograph, "sibling": pool[near].photograph == one.photograph}
                for name, look in by.items():
                    began = time.thread_time()
                    copy, miss = look(picture, one.picture), look(picture, pool[near].picture)
                    row[name] = {"copy": copy, "near": miss, "seconds": (time.thread_time() - began) / 2}
                edits.append(row)
            stream.write(json.dumps({"work": at, "edits": edits}) + "\n")
            stream.flush()
            yield from edits


def summed(rows: list[dict[str, Any]]) -> list[Measure]:
    """Average precision, the operating point on the other half of the photographs, and cost, for every look."""
    names = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    photographs = sorted({row["photograph"] for row in rows})
    choosing = set(photographs[::2])
    measures: list[Measure] = []
    for name in names:
        copies, misses = (np.array([row[name][side] for row in rows]) for side in ("copy", "near"))
        of = [row["photograph"] for row in rows]
        label = np.repeat((True, False), len(rows))
        goal = GOAL if name == "keypoints" else None
        measures.append(precision_measure(f"{name}: average precision", np.r_[copies, misses], label, [*of, *of], goal))
        chooses = np.array([photograph in choosing for photograph in of])
        bar = threshold(misses[chooses])
        there = [photograph for photograph in of if photograph not in choosing]
        measures.append(
            clustered(f"{name}: copies found, at {FALSE_ALARMS:.0%} of the other half", copies[~chooses] >= bar, there)
        )
        measures.append(clustered(f"{name}: near misses flagged there", misses[~chooses] >= bar, there, better="lower"))
        by_kind: dict[str, list[int]] = defaultdict(list)
        for at in np.flatnonzero(~chooses):
            by_kind[rows[at]["kind"]].append(int(at))
        for kind, places in by_kind.items():
            measures.append(clustered(f"{name}: copies found, {kind}", copies[places] >= bar, [of[at] for at in places]))
        siblings = [at for at in np.flatnonzero(~chooses) if rows[at]["sibling"]]
        which = [of[at] for at in siblings]
        measures.append(clustered(f"{name}: neighbouring crops flagged", misses[siblings] >= bar, which, better="lower"))
        cost = [1000 * row[name]["seconds"] for row in rows]
        measures.append(
            spread(f"{name}: CPU ms a comparison", [float(np.median(cost[i::5])) for i in range(5)], better="lower")
        )
    return measures


def threshold(misses: np.ndarray) -> float:
    """The smallest score that at most :data:`FALSE_ALARMS` of these near misses reach; NaN (not judged) reaches none."""
    ordered = np.sort(np.nan_to_num(misses, nan=-np.inf))
    return float(np.nextafter(ordered[len(ordered) - int(FALSE_ALARMS * len(ordered)) - 1], np.inf))


def _views(packages: Path, chosen: list[Work], by: dict[str, Look]) -> list[Measure]:
    """The score of every look at another photograph of the same scene, the mean over the scenes."""
    first: dict[str, np.ndarray] = {}
    for one in chosen:
        first.setdefault(one.photograph, one.picture)
    pairs = [(name, picture, first[name]) for name, picture in views(packages) if name in first]
    if not pairs:
        return []
    of = [name for name, _, _ in pairs]
    return [
        clustered(f"{name}: score of another view of the same scene", [look(a, b) for _, a, b in pairs], of, better="lower")
        for name, look in by.items()
    ]
