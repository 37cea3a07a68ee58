"""Train the world's autoencoder: diffusers' AutoencoderTiny, f4, four latent channels.

The loss pulls the latents to zero mean and unit variance per channel, so that the pipeline needs no scaling constants. A little
noise is added to them, so that the decoder tolerates the denoiser's small errors.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np


def make_vae() -> Any:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(64, 64, 64), decoder_block_out_channels=(64, 64, 64),
        num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(3, 2, 1), latent_channels=4,
        latent_magnitude=3, latent_shift=0.5, scaling_factor=1.0,
    )  # fmt: skip


def train(
    work: Path, *, minutes: float, batch: int = 32, rate: float = 1e-3, seed: int = 0, device: str = "cpu"
) -> dict[str, Any]:
    """Train for a time budget, checkpointing into ``work/vae``; resumes. Returns the curve with held-out PSNR (dB)."""
    import torch
    import torch.nn.functional as F
    from PIL import Image

    from index.torchvision_ops import ensure

    ensure()
    from jobs.erase.marks.overlays import LEARNED, overlay
    from jobs.lab.world.pictures import held_out, load
    from jobs.lab.world.variants import jitter

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pixels, _, names = load(work)
    train_ids = np.array([i for i, n in enumerate(names) if not held_out(n)])
    from jobs.lab.world.catalogue import concepts

    inside = {c.icon for c in concepts()}
    world_ids = np.array([i for i, n in enumerate(names) if n in inside])
    test = torch.from_numpy(pixels[[i for i, n in enumerate(names) if held_out(n)]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = make_vae().to(device, memory_format=torch.channels_last)
    folder = work / "vae"
    curve: list[dict[str, float]] = []
    spent = 0.0
    optimiser = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=False)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        curve, spent = state["curve"], state["spent"]
    folder.mkdir(parents=True, exist_ok=True)
    start, seen, saved = time.time() - spent, int(curve[-1]["seen"]) if curve else 0, time.time()
    step = 0
    while (elapsed := time.time() - start) < 60 * minutes:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * max(0.02, 1 - elapsed / (60 * minutes)) ** 0.7
        pool = world_ids if rng.random() < 0.5 else train_ids
        pictures = []
        for i in rng.choice(pool, batch):
            picture = Image.fromarray(pixels[i])
            if rng.random() < 0.5:
                picture = jitter(picture, rng)
            if rng.random() < 0.2:
                picture, _ = overlay(picture, LEARNED[int(rng.integers(3))], rng)
            pictures.append(np.asarray(picture))
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            latents = vae.encode(x).latents.float()
            noisy = latents + 0.04 * torch.randn_like(latents)
            out = vae.decode(noisy).sample.float()
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        loss = F.mse_loss(out, x) * 4 + F.l1_loss(out, x) + 0.1 * (mean.square().mean() + (std - 1).square().mean())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seen += batch
        step += 1
        if step % 200 == 0 or time.time() - start >= 60 * minutes:
            with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
                shown = test[:: max(1, len(test) // 96)].to(device)
                again = vae.decode(vae.encode(shown).latents).sample.float().clamp(-1, 1)
            psnr = float((10 * torch.log10(4 / (again - shown).square().mean((1, 2, 3)))).mean())
            curve.append({"seen": seen, "minutes": (time.time() - start) / 60, "loss": float(loss), "psnr": psnr})
            print(json.dumps(curve[-1]), flush=True)
        if time.time() - saved > 120:
            _save(vae, optimiser, curve, time.time() - start, folder)
            saved = time.time()
    _save(vae, optimiser, curve, time.time() - start, folder)
    vae.save_pretrained(folder)
    return {"curve": curve}


def _save(vae: Any, optimiser: Any, curve: list[dict[str, float]], spent: float, folder: Path) -> None:
    import torch

    state = {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve, "spent": spent}
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").rename(folder / "state.pt")
