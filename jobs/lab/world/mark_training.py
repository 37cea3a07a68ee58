"""The training loop of the mark detectors and their judge: batches, smeared anew; a moving average; checkpoints; a curve.

Every step draws its batch from its own generator, seeded by (seed, step): two trainings with one seed take the same first steps
whatever their budgets, and a resumed training uses the batches that an uninterrupted one would have used.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import ConfigError
from jobs.lab.world.autoencoder import to_input
from jobs.lab.world.mark_examples import Examples, smear

Loss = Callable[[Any, Any, Examples], Any]
"""(network, pictures float (B, 3, 64, 64) in [-1, 1], the examples of this batch) → a scalar tensor."""


def fit(
    network: Any,
    loss_of: Loss,
    data: Examples,
    folder: Path,
    *,
    minutes: float,
    steps: int | None,
    batch: int,
    rate: float,
    seed: int,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train until the budget is spent, with AdamW; the state goes to ``folder/state.pt``, from where it resumes.

    The rate warms up over 100 steps, stays, and falls along a cosine over the second half of the budget.

    Args:
        network: as built from ``seed``; when a state exists, its weights are replaced.
        loss_of: the loss of one batch.
        data: examples, drawn once.
        folder: where the state is kept.
        minutes: time budget, including the time before a resume; used when ``steps`` is None.
        steps: number of steps in all.
        batch: pictures per step.
        rate: peak learning rate.
        seed: of the batches and their smearing.
        say: where progress goes.

    Returns:
        steps, batch, seed, examples and the curve (step, minutes, mean loss of the last fifty steps).
    """

    def loss_at(network: Any, rng: np.random.Generator) -> Any:
        at = np.sort(rng.integers(0, len(data), batch))
        rows = Examples(data.pictures[at], data.kinds[at], data.boxes[at], data.cells[at])
        return loss_of(network, smear(to_input(rows.pictures), rng), rows)

    done = loop(network, loss_at, folder, minutes=minutes, steps=steps, rate=rate, seed=seed, say=say)
    return {"steps": done["steps"], "batch": batch, "seed": seed, "examples": len(data), "curve": done["curve"]}


def loop(
    network: Any,
    loss_at: Callable[[Any, np.random.Generator], Any],
    folder: Path,
    *,
    minutes: float,
    steps: int | None,
    rate: float,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The loop itself; ``loss_at`` draws a step's batch from the step's generator and gives its loss. Arguments as :func:`fit`.

    Returns:
        steps and the curve.
    """
    import torch

    if minutes <= 0 and not steps:
        raise ConfigError("no training budget", where="mark training", fix="Give minutes or steps above zero")
    network = network.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02, fused=True)
    average = copy.deepcopy(network).requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, float]] = []
    step, spent, total = 0, 0.0, 0.0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        curve, step, spent, total = state["curve"], state["step"], state["spent"], state["total"]
        say(f"resumes after step {step}")

    def save() -> None:
        kept = {"network": network.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(
            {**kept, "curve": curve, "step": step, "spent": time.monotonic() - start, "total": total}, folder / "state.tmp"
        )
        (folder / "state.tmp").rename(folder / "state.pt")

    start, saved = time.monotonic() - spent, time.monotonic()
    while (share := step / steps if steps else (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            falling = 0.5 + 0.5 * float(np.cos(np.pi * max(0.0, 2 * share - 1)))
            group["lr"] = rate * min(1.0, (step + 1) / 100) * falling
        rng = np.random.default_rng([seed, step])
        loss = loss_at(network, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        total += float(loss.detach())
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            now = network.state_dict()
            for key, value in average.state_dict().items():
                value.lerp_(now[key], 1 - decay) if value.is_floating_point() else value.copy_(now[key])
        if step % 50 == 0:
            curve.append({"step": step, "minutes": round((time.monotonic() - start) / 60, 3), "loss": round(total / 50, 5)})
            total = 0.0
            say(json.dumps(curve[-1]))
        if time.monotonic() - saved > 60:
            save()
            saved = time.monotonic()
    save()
    return {"steps": step, "curve": curve}


def averaged(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The moving average of a training's weights as fp16 tensors (as they are shipped), and its curve and steps."""
    import torch

    state = torch.load(folder / "state.pt", weights_only=True)
    half = {key: value.half().contiguous() for key, value in state["average"].items() if value.is_floating_point()}
    return half, {"steps": state["step"], "curve": state["curve"]}
