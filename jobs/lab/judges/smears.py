"""Smears like those of the world's autoencoder and denoiser, made without the denoiser; the judges are fitted on them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

NOISE = 0.4  # largest standard deviation of the noise on latents; it looks like the rough spots of a generated picture


@lru_cache(1)
def autoencoder(work: Path) -> Any:
    """The world's trained autoencoder.

    Raises:
        WorldError: it has not been trained yet.
    """
    from jobs.lab.world.autoencoder import load_autoencoder
    from jobs.lab.world.pictures import WorldError

    found = load_autoencoder(work)
    if found is None:
        raise WorldError(f"{work / 'vae'} holds no autoencoder; run `clearance lab world vae --work {work}` first")
    return found


def smear(work: Path, pictures: np.ndarray, rng: np.random.Generator, *, noise: float = NOISE) -> np.ndarray:
    """Encode, add noise, decode: uint8 (N, 64, 64, 3); each picture with its own strength of noise."""
    from jobs.lab.world.autoencoder import round_trip

    return round_trip(autoencoder(work), pictures, rng, noise=noise)


def blend(work: Path, one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Decode latents between two drawings, the first weighing more: uint8 (N, 64, 64, 3)."""
    from jobs.lab.world.autoencoder import blend as decode

    share = rng.uniform(0.5, 0.85, (len(one), 1)).astype(np.float32)
    return decode(autoencoder(work), [one, other], np.concatenate([share, 1 - share], 1), rng, noise=NOISE / 2)
