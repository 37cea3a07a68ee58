"""The mean of an unfinished training, small enough to be committed, from which a new machine continues.

Matrices are kept as 8-bit integers with one scale per output channel, the rest as float16: half the size of float16 alone. The
rounding (a few thousandths of the largest weight) is gone after some steps of training. No shipped file is made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

STEPS = 127.0  # of a channel's largest weight
SCALE = ".scale"  # suffix of a matrix's name


def keep_mean(work: Path, file: Path) -> int:
    """Write the moving average of ``work/denoiser/state.pt`` into one file; returns the number of samples trained on."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(work / "denoiser" / "state.pt", weights_only=False)
    kept: dict[str, Any] = {}
    for part in ("unet", "text"):
        for name, weight in state[f"average_{part}"].items():
            kept |= _small(f"{part}.{name}", weight.detach().float())
    file.parent.mkdir(parents=True, exist_ok=True)
    seen = int(state["curve"][-1]["seen"]) if state["curve"] else 0
    save_file(kept, file, {"samples_seen": str(seen)})
    return seen


def read_mean(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dictionaries (float32) of the denoiser and of the text encoder."""
    from safetensors.torch import load_file

    kept = load_file(file)
    parts: dict[str, dict[str, Any]] = {"unet": {}, "text": {}}
    for key, value in kept.items():
        if key.endswith(SCALE):
            continue
        part, _, name = key.partition(".")
        scale = kept.get(key + SCALE)
        parts[part][name] = value.float() if scale is None else value.float() * scale.float()
    return parts["unet"], parts["text"]


def _small(name: str, weight: Any) -> dict[str, Any]:
    import torch

    if weight.ndim < 2:
        return {name: weight.half().contiguous()}
    largest = weight.abs().flatten(1).amax(1).clamp(min=1e-12)
    scale = (largest / STEPS).view(-1, *[1] * (weight.ndim - 1))
    return {name: (weight / scale).round().to(torch.int8).contiguous(), name + SCALE: scale.contiguous()}
