"""Copies of the world's drawings: edited as a person would edit them, and smeared as the world's autoencoder does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.edits import edit as edited


def edit(picture: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An edited copy (:func:`index.edits.edit`), one in five with one of the world's marks on it."""
    return edited(picture, inside, rng, mark=_mark)


def _mark(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    from jobs.erase.marks.overlays import LEARNED, overlay

    kind = str(rng.choice(LEARNED, p=(0.4, 0.2, 0.4)))
    designs = (0, 1) if kind == "qr" else (0, 1, 2)  # the third QR design covers the whole drawing
    return np.asarray(overlay(Image.fromarray(picture), kind, rng, designs)[0])


def smear(work: Path, pixels: np.ndarray, *, seed: int = 0) -> np.ndarray | None:
    """Every drawing once through the world's autoencoder with noisy latents (cached); None before the autoencoder exists."""
    import torch

    path, state = work / "smeared.npy", work / "vae" / "state.pt"
    if path.exists() and len(cached := np.load(path)) == len(pixels):
        return np.asarray(cached)
    if not state.exists():
        return None
    from index.torchvision_ops import ensure

    ensure()
    from jobs.lab.world.train_vae import make_vae

    vae = make_vae()
    vae.load_state_dict(torch.load(state, weights_only=False)["vae"])
    vae.eval()
    out = np.empty_like(pixels)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for at in range(0, len(pixels), 64):
            x = torch.from_numpy(pixels[at : at + 64]).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = vae.encode(x).latents.float()
            strength = 0.35 * torch.rand(len(x), 1, 1, 1, generator=noise)
            latents = latents + strength * torch.randn(latents.shape, generator=noise)
            y = vae.decode(latents).sample.float().clamp(-1, 1)
            out[at : at + 64] = ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    np.save(path, out)
    return out
