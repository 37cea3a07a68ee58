"""What the guards cost on the processor: milliseconds a picture at 512 and 1024 pixels, and whether two processes hide them.

The embedder is taken out, as if it ran on the device: pictures are shrunk for it and its vectors are searched for, and nothing
else of it is counted. The copies guard is measured twice in one run: as it is, and as its version 4 was (hues turned in full
size, every turn shrunk and embedded in a call of its own), which is kept here. Pictures are smooth noise with a few lines of
text, in calls of :data:`PICTURES`.

Whether a device waits is worked out from these times, because a processor that other work shares cannot show it: a call every
:data:`DEVICE_SECONDS` ends one picture, two processes with a processor each look at them, and the denoiser stops where as many
pictures wait as a run allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.bench.apart import run_apart
from jobs.lab.bench.measures import Measure, publish

SIDES, PICTURES, ROUNDS = (512, 1024), 4, 3
REFERENCES, DIM, NETWORK = 10_000, 512, 224
DEVICE_SECONDS, PROCESSES, DRAWN = 0.45, 2, 2000
COPIES_MS, WAITS = 40.0, 0.05


class Away:
    """An embedder on a device: it shrinks pictures here, and its vectors cost nothing."""

    embedder_id, dim = "away", DIM

    def __init__(self) -> None:
        from index.embed import Preprocessing

        self.fitted = Preprocessing(
            size=(NETWORK, NETWORK), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", fit="squash", fill=0
        ).fitted

    def images(self, pictures: np.ndarray) -> np.ndarray:
        small = [self.fitted(picture) for picture in pictures]
        vectors = np.stack([np.resize(picture[::32, ::32].ravel().astype(np.float32) - 128, DIM) for picture in small])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


class Far:
    """Ten thousand references in no particular direction, none of which is near."""

    embedder_id = "away"

    def __init__(self) -> None:
        vectors = np.random.default_rng(0).normal(0, 1, (REFERENCES, DIM)).astype(np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Any]]:
        from index.reference import Match

        scores = embeddings @ self.vectors.T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        return [
            [Match(ref_id=str(i), title="", similarity=float(row[i]), rights_basis="claim", status="active") for i in at]
            for row, at in zip(scores, best, strict=True)
        ]

    def picture(self, ref_id: str) -> None:
        return None


def version_4(guard: Any, pictures: np.ndarray) -> None:
    """What version 4 of the copies guard did with pictures that are near to nothing."""
    from index.colours import hue_shares, turn_hues

    guard.index.search(guard.embedder.images(pictures), guard.k)
    for share in hue_shares(guard.hues):
        turned = guard.embedder.images(np.stack([turn_hues(picture, share) for picture in pictures]))
        guard.index.search(turned, guard.k)


def pictures_of(side: int) -> np.ndarray:
    """uint8 (PICTURES, side, side, 3): noise at several sizes, and two lines of text."""
    import cv2

    shown = []
    for seed in range(PICTURES):
        rng = np.random.default_rng(seed)
        noise = (rng.normal(0, 1, (n, n, 3)) for n in (4, 16, 60))
        layers = [cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC) for layer in noise]
        picture = np.clip(128 + 30 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)
        for line in range(2):
            at = (side // 8, side // 3 * (1 + line))
            cv2.putText(picture, "a line of text", at, cv2.FONT_HERSHEY_SIMPLEX, side / 500, (255, 255, 255), 2)
        shown.append(picture)
    return np.stack(shown)


def cpu_ms(call: Callable[[], Any], rounds: int) -> list[float]:
    """Processor time of this process a picture, in ms, after one call that does not count."""
    call()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        spent.append(1000 * (time.process_time() - began) / PICTURES)
    return spent


def waiting(seconds: Sequence[float], processes: int = PROCESSES) -> float:
    """Share of its time that a denoiser waits: a picture every :data:`DEVICE_SECONDS`, and looks of these seconds in turn."""
    from pipeline.looking.looks import AHEAD

    free, ends, now, waited = [0.0] * processes, list[float](), 0.0, 0.0
    for number in range(DRAWN):
        now += DEVICE_SECONDS
        away = sorted(end for end in ends if end > now)
        if len(away) >= AHEAD * processes:  # it stops until one look has ended
            waited += away[0] - now
            now = away[0]
        first = min(range(processes), key=free.__getitem__)
        free[first] = max(free[first], now) + seconds[number % len(seconds)]
        ends = [*away, free[first]]
    return waited / now


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure and publish ``guards``, in a process of its own: every library has one thread."""
    print(run_apart(f"from jobs.lab.bench.guards import measure; measure({str(out)!r}, quick={quick!r})"), end="")


def measure(out: str, *, quick: bool) -> None:
    """Measure and publish in this process; ``out``: folder of the results."""
    import cv2
    import torch

    from guards.copies import CopiesGuard
    from index.calibrate import OperatingPoint
    from index.confirm import confirm
    from jobs.lab.bench.load import load_average
    from pipeline.opening import open_policy_guards
    from pipeline.policy import Policy

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    guards, skipped = open_policy_guards(Policy())
    copies = CopiesGuard(Far(), Away(), point=OperatingPoint(threshold=0.9), hues=12)  # type: ignore[arg-type]
    rounds, measures = 1 if quick else ROUNDS, list[Measure]()
    for side in SIDES:
        shown = pictures_of(side)
        calls: dict[str, Callable[[], Any]] = {guard.name: partial(guard.check, shown) for guard in guards}
        calls |= {"copies, version 4": partial(version_4, copies, shown), "copies": partial(copies.check, shown)}
        spent = {name: cpu_ms(call, rounds) for name, call in calls.items()}
        for name, values in spent.items():
            goal = COPIES_MS if name == "copies" else None
            measures.append(_median(f"{name}, {side} px: CPU ms a picture", values, goal))
        for name, look in (("alignment", confirm), ("keypoints", _anew)):
            near = [PICTURES * value for value in cpu_ms(partial(look, shown[0], shown[1]), rounds)]
            measures.append(_median(f"second look, {name}, {side} px: CPU ms a near picture", near))
        for name, left_out in (("version 4", "copies"), ("now", "copies, version 4")):
            each = [sum(v[i] for n, v in spent.items() if n != left_out) / 1000 for i in range(rounds)]
            measures.append(_median(f"all guards, {side} px, {name}: CPU ms a picture", [1000 * value for value in each]))
            goal = WAITS if name == "now" else None
            where = f"a device of {DEVICE_SECONDS:g} s a picture waits, two processes, {side} px, {name}"
            share = waiting(each)
            measures.append(Measure(id=where, value=share, low=share, high=share, n=DRAWN, goal=goal, better="lower"))
    more = {"load_average": load_average(), "guards left out": list(skipped), "guards": {g.name: g.version for g in guards}}
    publish("guards", measures, Path(out), seeds=(0,), quick=quick, more=more)


def _anew(picture: np.ndarray, reference: np.ndarray) -> float:
    """Key points of a picture and of a reference that no look has seen before."""
    from index.keypoints import Keypoints

    return Keypoints()(picture, reference)


def _median(name: str, values: Sequence[float], goal: float | None = None) -> Measure:
    return Measure(
        id=name, value=float(np.median(values)), low=min(values), high=max(values), n=len(values) * PICTURES, goal=goal,
        better="lower",
    )  # fmt: skip
