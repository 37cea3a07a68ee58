"""One call of the denoiser in its true size: SDXL's UNet (2.57 billion numbers, random) at 1024 px, in bfloat16 on the CPU.

It takes 6 GB of memory and minutes, so it runs with ``CLEARANCE_REAL_SIZE=1`` only (``make nightly``). Tiny models cannot show
what it shows: that the shapes of the real one go through, that numbers stay finite in bfloat16, and what memory a call takes.
"""

from __future__ import annotations

import os
import resource
import time

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.conditioning import Conditioning
from pipeline.model.families.sdxl import StableDiffusionXL
from pipeline.model.libraries import quiet

MEMORY = 8 * 2**30  # bytes that the process may have taken at its peak
BLOCK = 2**20  # random numbers, repeated: making 2.57 billion takes longer than the call


def sdxl_unet() -> torch.nn.Module:
    """Of the configuration of SDXL base 1.0, weights random with the variance that keeps a layer's output at unit scale."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=128,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    with quiet():  # diffusers warns of a conversion that has nothing to round yet
        network = network.to(torch.bfloat16)
    network.to_empty(device="cpu")
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:  # biases, and weights of norms
                parameter.fill_(float("norm" in name and name.endswith("weight")))
                continue
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), BLOCK):
                flat[start : start + BLOCK] = block[: flat.numel() - start]
            flat.mul_(parameter[0].numel() ** -0.5)
    return network


def small_autoencoder() -> torch.nn.Module:
    """Of few channels, but with a latent position for 8×8 pixels, as the real one."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )


@pytest.mark.skipif("CLEARANCE_REAL_SIZE" not in os.environ, reason="takes 6 GB and minutes; set CLEARANCE_REAL_SIZE")
@pytest.mark.timeout(3600)
def test_one_call_of_sdxl_at_1024_pixels() -> None:
    from diffusers import EulerDiscreteScheduler

    began = time.perf_counter()
    parts = {"unet": sdxl_unet(), "vae": small_autoencoder(), "scheduler": EulerDiscreteScheduler(steps_offset=1)}
    model = StableDiffusionXL.of(parts, ModelConfig(path="sdxl", dtype="bfloat16"))
    assert sum(p.numel() for p in model.network.parameters()) == 2_567_463_684
    assert model.latent_shape == (4, 128, 128) and model.decode_size() == (1024, 1024)
    assert len(model.sites()) == 4 * 70  # two placements after each of two attentions
    e = Engine(model, rows=1, steps=30, guidance_scale=1.0)
    text = torch.Generator().manual_seed(1)
    tokens, pooled = (torch.randn(shape, generator=text).to(torch.bfloat16) for shape in ((77, 2048), (1280,)))
    noise = e.initial_noise(1)
    sample = Trajectory(tag=1, latent=noise, step=0, context=Conditioning(tokens, pooled=pooled), negative=None)
    e.submit(sample)
    built = time.perf_counter()
    e.make_call()
    done = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(f"\nbuilt in {built - began:.0f} s, the call took {done - built:.0f} s, memory at its peak {memory / 2**30:.1f} GiB")
    assert sample.step == 1 and sample.clean is not None and sample.clean.isfinite().all()
    assert (sample.latent - noise).norm() > 0
    assert memory < MEMORY
