"""Train the world's own mark detector, the small network of 8×8 cells behind :mod:`guards.marks`, and write it for shipping."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from guards.mark_network import KINDS, SIDE, make_network, pool, pool_boxes, split, surest_boxes
from jobs.lab.world.autoencoder import to_input
from jobs.lab.world.mark_examples import Examples, training_examples
from jobs.lab.world.mark_measures import Judge, curve_table, evaluate, five, sources, tables
from jobs.lab.world.mark_training import averaged, fit


def loss_of(network: Any, x: Any, rows: Examples) -> Any:
    """Cross-entropy of every cell, half the cross-entropy of every picture (the pooled cells), and the boxes of marked cells.

    A box costs 1 - GIoU (Rezatofighi et al. 2019, equation 4), the mean over the cells that the picture's mark covers.
    """
    import torch
    from torch.nn import functional

    y = torch.from_numpy(rows.cells).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x)
    logits, boxes = split(out.float())
    entropy = functional.binary_cross_entropy_with_logits
    covered = y.amax(1)  # (B, 8, 8)
    truth = torch.from_numpy(rows.boxes)[:, :, None, None] / SIDE
    apart = ((1 - giou(boxes, truth)) * covered).sum((1, 2)) / covered.sum((1, 2)).clamp_min(1)
    marked = (covered.sum((1, 2)) > 0).sum().clamp_min(1)
    return entropy(logits, y) + 0.5 * entropy(pool(logits), y.flatten(2).amax(2)) + 0.1 * apart.sum() / marked


def giou(a: Any, b: Any) -> Any:
    """Generalised intersection over union of boxes (B, 4, …), x0, y0, x1, y1; in [-1, 1]."""
    import torch

    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp_min(0).prod(1)
    union = sum((box[:, 2:] - box[:, :2]).clamp_min(0).prod(1) for box in (a, b)) - shared
    return shared / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)


def train(
    work: Path,
    *,
    minutes: float,
    steps: int | None = None,
    examples: int = 60000,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train for a time budget (or a number of steps); the state goes to ``work/marks/state.pt``, from where it resumes."""
    import torch

    torch.manual_seed(seed)
    network = make_network()
    data = training_examples(work, count=examples, seed=seed, say=say)
    return fit(network, loss_of, data, work / "marks", minutes=minutes, steps=steps, batch=batch, rate=rate, seed=seed, say=say)


def judge_of(network: Any) -> Judge:
    """The network as :mod:`jobs.lab.world.mark_measures` takes it: pooled logits, and the surest boxes."""

    def look(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        found, places = [], []
        with torch.inference_mode():
            for at in range(0, len(pictures), 64):
                x = to_input(pictures[at : at + 64])
                logits, boxes = split(network(x))
                found.append(pool(logits).numpy())
                places.append(surest_boxes(network, x, pool(logits), pool_boxes(logits, boxes)).numpy())
        return np.concatenate(found), np.concatenate(places)

    return look


def export(work: Path, out: Path, *, count: int = 200, version: str = "stickers-marks 3") -> dict[str, Any]:
    """Write ``out``/model.safetensors (fp16), config.json and the card README.md from ``work/marks/state.pt``.

    The shipped weights are measured: the moving average after rounding to fp16. Returns the report.
    """
    from safetensors.torch import save

    half, training = averaged(work / "marks")
    network = make_network()
    network.load_state_dict({k: v.float() for k, v in half.items()}, strict=False)  # without the batch counters
    report = evaluate(judge_of(network.eval()), work, count=count)
    out.mkdir(parents=True, exist_ok=True)
    raw = save(half)
    (out / "model.safetensors").write_bytes(raw)
    card = {
        "architecture": "boxed cells",
        "version": version,
        "kinds": list(KINDS),
        "widths": [16, 32, 64, 128],
        "depth": 2,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights_sha256": hashlib.sha256(raw).hexdigest(),
        "operating_logits": report["operating_logits"],
        "calibrated_on": "stickers",  # the family of models whose pictures the operating points were measured on
        "licence": "Apache-2.0",
    }
    (out / "config.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_card(card, report, training, sources(work)), encoding="utf-8")
    return report


def _card(card: dict[str, Any], report: dict[str, Any], training: dict[str, Any], data: str) -> str:
    """The model card, with the numbers just measured."""
    last = training["curve"][-1]
    return f"""# Marks: watermark, QR code, text, logo

A fully convolutional network ({card["parameters"]:,} parameters, fp16 weights) that predicts for each cell of 8×8 pixels of a
64×64 picture whether a watermark, a QR code, text or a logo covers it, and where the mark ends. A box is that of the surest of
four quarter turns of the picture. Loaded by `guards.marks.MarksGuard`; licence Apache-2.0.

{five(report)}

## Training

    clearance lab world marks --work world

{training["steps"]:,} steps of 64 pictures in {last["minutes"]:.1f} minutes on a part of one shared CPU core, in one stage
(`jobs.lab.world.train_marks`; AdamW, peak rate 3e-3, seed 0; what ships is the moving average of the weights). The examples are
drawings with one synthetic mark, or none: three in ten marks are designs 0–2 of `jobs.erase.marks.overlays`, the others are all
different (`jobs.erase.marks.designs`, which lists what is held out and never drawn). Half of the examples took a
round trip through the world's autoencoder, with noise on the latents; all were blurred, rescaled, recoloured and made noisy
at random; a fifth bear a pattern or scribble that is no mark. Drawings that bear letters of their own were left out, except
where the world itself draws them.

{curve_table(training["curve"])}

{data}

## Measured

{tables(report)}

## Limits

It knows these drawings and marks on white: it is a guard for the embedded world, not a general watermark detector. Pictures
of other sizes are squeezed to 64×64, so small marks in large pictures are lost. A logo is told from a drawing's own parts by
its place and its flat inks; the world's model draws none, so what is found as a logo on its pictures is a false alarm.
Weights: sha256 `{card["weights_sha256"]}`.
"""
