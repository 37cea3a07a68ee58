"""Flights: samples of the world's model, with the predicted clean latent (x̂0) of every early step and the finished picture.

Captions are of three kinds. *plain*: a protected subject alone, nearly always copied. *mixed*: a protected subject and another
thing in one caption, half-memorised: some seeds copy and others do not, so that only a signal of the sample itself can separate
them. *ordinary*: subjects with nothing to copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.model.interface import DiffusionModel

STEPS, KEPT = 20, 10  # x̂0 is kept for the first half of the steps
UNSEEN_EVERY = 5  # every fifth protected subject is left out of the head's training


@dataclass(frozen=True, kw_only=True)
class Flight:
    """One sample to record: its caption, the protected subject in it ("" where there is none), seed, guidance scale."""

    kind: str
    caption: str
    subject: str
    seed: int
    guidance: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was recorded of N flights.

    Attributes:
        clean: x̂0 float16 (N, kept, C, h, w).
        text_norms: ‖ε_text − ε_empty‖ float32 (N, steps).
        update_norms: ‖z_{i+1} − z_i‖ float32 (N, steps).
        score_changes: ‖d_i − d_{i−1}‖ float32 (N, steps), d being the difference whose norm text_norms is; first 0.
        pictures: uint8 (N, H, W, 3).
        seconds: spent in the denoiser, over all flights.
    """

    clean: np.ndarray
    text_norms: np.ndarray
    update_norms: np.ndarray
    score_changes: np.ndarray
    pictures: np.ndarray
    seconds: float


def subjects() -> tuple[list[str], list[str], list[str]]:
    """Captions of protected subjects for the head's training, of those left out of it, and of ordinary subjects."""
    from jobs.lab.world.catalogue import concepts

    protected = [c.caption for c in concepts() if c.protected_vendor]
    unseen = protected[UNSEEN_EVERY - 1 :: UNSEEN_EVERY]
    ordinary = [c.caption for c in concepts() if not c.protected_vendor]
    return [c for c in protected if c not in unseen], unseen, ordinary


def mixed(subject: str, other: str, turn: int) -> str:
    """A caption of two things; the first one is drawn more often."""
    return f"{subject} and {other}" if turn % 2 == 0 else f"{other} and {subject}"


def training_flights(count: int, seed: int) -> list[Flight]:
    """Flights for training and calibrating the head: a fifth plain, half mixed, the rest ordinary; captions in templates."""
    from jobs.lab.world.catalogue import TEMPLATES

    rng = np.random.default_rng(seed)
    seen, _, ordinary = subjects()
    flights = []
    for i in range(count):
        kind = str(rng.choice(["plain", "mixed", "ordinary"], p=[0.2, 0.5, 0.3]))
        subject, other = str(rng.choice(seen)), str(rng.choice(ordinary))
        template, guidance = str(rng.choice(list(TEMPLATES))), float(rng.choice([2.0, 3.0, 3.0, 4.0]))
        named = {"plain": subject, "mixed": mixed(subject, other, int(rng.integers(2))), "ordinary": other}[kind]
        caption = template.format(named) if kind != "mixed" else named
        flights.append(
            Flight(
                kind=kind,
                caption=caption,
                subject="" if kind == "ordinary" else subject,
                seed=10_000_000 + 100_000 * seed + i,
                guidance=guidance,
            )
        )
    return flights


class _Guided:
    """Classifier-free guidance of a scale of the sample's own, and how far its direction moves from one step to the next."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.changes: list[float] = []
        self._before: Any = None

    def __call__(self, latent: Any, unconditional: Any, conditional: Any, step: int) -> Any:
        difference = conditional - unconditional
        self.changes.append(0.0 if self._before is None else float((difference - self._before).norm()))
        self._before = difference
        return unconditional + self.scale * difference


def watch(model: DiffusionModel, flights: Sequence[Flight], *, steps: int = STEPS, kept: int = KEPT, rows: int = 16) -> Watched:
    """Draw the flights in the engine, unsteered, and record x̂0 and the norms on the way."""
    import torch

    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory

    engine = Engine(model, rows=rows, steps=steps, guidance_scale=3.0)
    context = {text: model.encode_prompts([text])[0] for text in dict.fromkeys([*(f.caption for f in flights), ""])}
    guides = [_Guided(f.guidance) for f in flights]
    clean = np.zeros((len(flights), kept, *model.latent_shape), np.float16)

    def recorder(row: int) -> Any:
        def record(x0: torch.Tensor, step: int, noise: torch.Tensor) -> torch.Tensor:
            if step < kept:
                clean[row, step] = x0.numpy()
            return x0

        return record

    for row, f in enumerate(flights):
        engine.submit(
            Trajectory(
                tag=row,
                latent=engine.initial_noise(f.seed),
                step=0,
                context=context[f.caption],
                negative=context[""],
                nudge=recorder(row),
                guide=guides[row],
                seed=f.seed,
            )
        )
    done: dict[int, Trajectory] = {}
    while engine.busy:
        done |= {t.tag: t for t in engine.step()}
    ordered = [done[row] for row in range(len(flights))]
    return Watched(
        clean=clean,
        text_norms=np.array([t.guidance_norms for t in ordered], np.float32),
        update_norms=np.array([t.update_norms for t in ordered], np.float32),
        score_changes=np.array([guide.changes for guide in guides], np.float32),
        pictures=model.decode(torch.stack([t.latent for t in ordered])),
        seconds=sum(t.device_seconds for t in ordered),
    )
