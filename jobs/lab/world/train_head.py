"""Train the latent head: x̂0 and noise level → the embedding of the finished picture; write it with its settings.

    loss = (1 − cos(f(x̂0), e)) + λ·mean over references r of (f(x̂0)·r − e·r)²

The first term places the vector. The second corrects its cosines to the references, the only values that a probe reads. Few
examples suffice because they are augmented: latents are shifted, mirrored (the embedder takes both for the same drawing) and
made noisy, and some are mixed with others of the same step, since an early x̂0 is a mean of the pictures still possible.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.world.flights import STEPS

LIKENESS_WEIGHT = 10.0
WIDTHS = (32, 64, 128)
MIRRORED, MIXED, NOISE = 0.3, 0.3, 0.4  # shares of the examples; noise in standard deviations of the latents


def train(
    work: Path, *, minutes: float, batch: int = 128, rate: float = 2e-3, seed: int = 0, steps: int | None = None
) -> list[dict[str, float]]:
    """Train on what :mod:`jobs.lab.world.head_data` collected, for a time budget or a number of steps; resumes.

    The state is ``work/head/state.pt``. The rate is constant after the warm-up and falls to zero over the last half.

    Returns:
        The curve: step, minutes, mean loss.
    """
    import torch

    from index.embed import OpenCLIPEmbedder
    from jobs.lab.world.head_data import examples
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model
    from pipeline.model.sampling.choose import make_sampler
    from pipeline.respond.latent_head import make_network, network_input

    torch.manual_seed(seed)
    data = examples(work)
    embedder = OpenCLIPEmbedder.open("stickers")
    references = torch.from_numpy(embedder.images(reference_pictures()))
    signal = torch.tensor(make_sampler(load_model(ModelConfig()), STEPS).signal, dtype=torch.float32)
    clean = torch.from_numpy(data.clean)
    step_of, target = torch.from_numpy(data.step), torch.from_numpy(data.target)
    network = make_network(clean.shape[1], clean.shape[2], target.shape[1], WIDTHS)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.1)
    path = work / "head" / "state.pt"
    curve: list[dict[str, float]] = []
    step, spent, running = 0, 0.0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=False)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        curve, step, spent = state["curve"], state["step"], state["spent"]

    def save() -> None:
        state = {
            "network": network.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve, "step": step,
            "spent": time.time() - start, "examples": len(clean), "batch": batch,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    start, saved = time.time() - spent, time.time()
    while True:
        share = step / steps if steps else (time.time() - start) / (60 * minutes)
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * min(1.0, (1 - share) / 0.5)
        chosen = torch.from_numpy(np.random.default_rng([seed, step]).integers(len(clean), size=batch))
        x, e = augmented(clean[chosen].float(), target[chosen], step_of[chosen], np.random.default_rng([seed, step, 1]))
        f = torch.nn.functional.normalize(network(network_input(x, signal[step_of[chosen]])), dim=1)
        likeness = ((f @ references.T - e @ references.T) ** 2).mean()
        loss = (1 - (f * e).sum(1)).mean() + LIKENESS_WEIGHT * likeness
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            curve.append({"step": step, "minutes": round((time.time() - start) / 60, 3), "loss": round(running, 5)})
            print(json.dumps(curve[-1]), flush=True)
        if time.time() - saved > 60:
            save()
            saved = time.time()
    save()
    return curve


def augmented(x: Any, target: Any, steps: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Shift, mirror, add noise and mix: x̂0 (N, C, h, w) and targets (N, E) → the same shapes, targets of unit length."""
    import torch

    down, across = (int(v) for v in rng.integers(-1, 2, 2))
    x = torch.roll(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), (down, across), (2, 3))[:, :, 1:-1, 1:-1]
    mirrored = torch.from_numpy(rng.random(len(x)) < MIRRORED).view(-1, 1, 1, 1)
    x = torch.where(mirrored, x.flip(3), x)
    spread = torch.from_numpy(rng.uniform(0, NOISE, (len(x), 1, 1, 1)).astype(np.float32)) * x.std()
    x = x + spread * torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
    order = torch.argsort(steps, stable=True)  # neighbours in this order have the same noise level
    mate = torch.empty_like(order)
    mate[order] = torch.roll(order, 1)
    share = torch.from_numpy(np.where(rng.random(len(x)) < MIXED, rng.beta(0.5, 0.5, len(x)), 1.0).astype(np.float32))
    x = share.view(-1, 1, 1, 1) * x + (1 - share.view(-1, 1, 1, 1)) * x[mate]
    return x, torch.nn.functional.normalize(share[:, None] * target + (1 - share[:, None]) * target[mate], dim=1)


def reference_pictures() -> np.ndarray:
    """The shipped reference drawings, uint8 (N, H, W, 3), without the protected subjects that the head must not see."""
    from index.collect import read_references
    from index.shipped import STICKERS
    from jobs.lab.world.flights import subjects

    _, unseen, _ = subjects()
    return np.stack([work.picture for work in read_references(STICKERS / "references") if work.title not in unseen])


def export(work: Path, target: Path) -> dict[str, Any]:
    """Write ``head.safetensors`` (fp16) and ``head.json`` into ``target``.

    Returns:
        The content of ``head.json``.
    """
    import torch
    from safetensors.torch import save_file

    from index.embed import OpenCLIPEmbedder
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model

    state = torch.load(work / "head" / "state.pt", weights_only=False)
    weights = {name: value.half().contiguous() for name, value in state["network"].items()}
    model, embedder = load_model(ModelConfig()), OpenCLIPEmbedder.open("stickers")
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "head.safetensors", metadata={"format": "pt"})
    (target / "head.safetensors").chmod(0o644)
    settings = {
        "model_digest": model.digest,
        "embedder_id": embedder.embedder_id,
        "sha256": hashlib.sha256((target / "head.safetensors").read_bytes()).hexdigest(),
        "channels": model.latent_shape[0],
        "side": model.latent_shape[1],
        "dim": embedder.dim,
        "widths": list(WIDTHS),
        "parameters": sum(value.numel() for value in weights.values()),
        "training": {
            "steps": state["step"], "minutes": round(state["spent"] / 60, 1), "examples": state["examples"],
            "batch": state["batch"], "curve": state["curve"][:: max(1, len(state["curve"]) // 20)],
        },
    }  # fmt: skip
    (target / "head.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return settings
