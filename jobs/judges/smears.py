"""What the world's autoencoder and denoiser do to a picture, without the denoiser: the judges learn to see through it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

NOISE = 0.4  # largest standard deviation put on latents: what a generated picture's rough spots look like


@lru_cache(1)
def autoencoder(work: Path) -> Any:
    """The world's trained autoencoder.

    Raises:
        WorldError: it has not been trained yet.
    """
    from jobs.world.pictures import WorldError
    from jobs.world.train_marks import load_autoencoder

    found = load_autoencoder(work)
    if found is None:
        raise WorldError(f"{work / 'vae'} holds no autoencoder; run `clearance world vae --work {work}` first")
    return found


def smear(work: Path, pictures: np.ndarray, rng: np.random.Generator, *, noise: float = NOISE) -> np.ndarray:
    """Encode, jolt, decode: uint8 (N, 64, 64, 3); each picture with its own strength of noise."""
    return _decode(work, [pictures], np.ones((len(pictures), 1), np.float32), rng, noise)


def blend(work: Path, one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Decode latents between two drawings, the first weighing more: uint8 (N, 64, 64, 3)."""
    share = rng.uniform(0.5, 0.85, (len(one), 1)).astype(np.float32)
    return _decode(work, [one, other], np.concatenate([share, 1 - share], 1), rng, NOISE / 2)


def _decode(work: Path, stacks: list[np.ndarray], shares: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    import torch

    from jobs.world.train_marks import to_input

    vae, out, batch = autoencoder(work), np.empty_like(stacks[0]), 32
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for at in range(0, len(out), batch):
            part = slice(at, at + batch)
            latents = sum(
                torch.from_numpy(shares[part, k])[:, None, None, None] * vae.encode(to_input(stack[part])).latents.float()
                for k, stack in enumerate(stacks)
            )
            assert isinstance(latents, torch.Tensor)
            strength = torch.from_numpy(rng.uniform(0, noise, (len(latents), 1, 1, 1)).astype(np.float32))
            jolt = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
            shown = vae.decode(latents + strength * jolt).sample.float().clamp(-1, 1)
            out[part] = ((shown + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return out
