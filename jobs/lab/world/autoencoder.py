"""The world's autoencoder applied to latents with errors: generated pictures look smeared in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32


def load_autoencoder(work: Path) -> Any | None:
    """The world's autoencoder: finished, or the last checkpoint of its training; None where neither exists."""
    import torch

    from index.torchvision_ops import ensure

    ensure()
    folder = work / "vae"
    if (folder / "config.json").exists():
        from diffusers import AutoencoderTiny

        vae: Any = AutoencoderTiny.from_pretrained(folder)  # type: ignore[no-untyped-call]
    elif (folder / "state.pt").exists():
        from jobs.lab.world.train_vae import make_vae

        vae = make_vae()
        vae.load_state_dict(torch.load(folder / "state.pt", weights_only=False)["vae"])
    else:
        return None
    return vae.eval().to(memory_format=torch.channels_last)


def round_trip(vae: Any, pixels: np.ndarray, rng: np.random.Generator, *, noise: float) -> np.ndarray:
    """Encode and decode uint8 (N, 64, 64, 3), with up to ``noise`` standard deviations of noise on each picture's latents."""
    return blend(vae, [pixels], np.ones((len(pixels), 1), np.float32), rng, noise=noise)


def blend(vae: Any, stacks: list[np.ndarray], shares: np.ndarray, rng: np.random.Generator, *, noise: float) -> np.ndarray:
    """Decode weighted sums of latents with noise: K stacks of uint8 (N, 64, 64, 3), shares float32 (N, K) → one such stack."""
    import torch

    out = np.empty_like(stacks[0])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for at in range(0, len(out), BATCH):
            part = slice(at, at + BATCH)
            weights = torch.from_numpy(shares[part])[:, :, None, None, None]
            encoded = torch.stack([vae.encode(to_input(stack[part])).latents.float() for stack in stacks], 1)
            latents = (weights * encoded).sum(1)
            strength = torch.from_numpy(rng.uniform(0, noise, (len(latents), 1, 1, 1)).astype(np.float32))
            jolt = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
            shown = vae.decode(latents + strength * jolt).sample.float().clamp(-1, 1)
            out[part] = ((shown + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return out


def to_input(pixels: np.ndarray) -> Any:
    """uint8 (N, 64, 64, 3) → the network's float (N, 3, 64, 64) in [-1, 1]."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)
