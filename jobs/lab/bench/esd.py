"""Erased Stable Diffusion (arXiv 2303.07345), a control for erasers: the cross-attention unlearns the meaning of a word.

ESD-x: with the original weights θ* and a concept's words c, the trained network shall predict

    ε_θ(x_t, c, t) = ε_θ*(x_t, t) − η·(ε_θ*(x_t, c, t) − ε_θ*(x_t, t))

on pictures x_t that the model itself draws for c. Low-rank weights on the queries, keys, values and outputs of the
cross-attention are trained, which the engine adds to single rows; the paper trains the whole layers. The x_t are drawn once, by
the original network between noise and a picture of c; the paper's code draws them repeatedly from the trained network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.erase.save import sealed
from jobs.erase.train import add_lowrank, narrow
from pipeline.config import ModelConfig
from pipeline.steer.erase_adapter import FORMAT, LOWRANK, PREFIX, SETTINGS
from pipeline.steer.erase_tokens import WORDS

if TYPE_CHECKING:
    import torch

    from pipeline.model.interface import DiffusionModel

CROSS_ATTENTION = r".*attn2\.to_(q|k|v|out\.0)$"


@dataclass(frozen=True, kw_only=True)
class EsdTraining:
    """How ESD-x is trained.

    Attributes:
        words: the concepts' names, as a user would write them.
        strength: η.
        steps, batch: of the optimiser.
        rate: learning rate; low-rank weights take a larger one than whole layers (the paper's: 1e-5).
        rank: of the low-rank weights.
        drawn: pictures of every concept that the original network draws.
        sampling_steps, guidance: of those pictures.
        seed: of every random choice.
    """

    words: tuple[str, ...] = tuple(WORDS.values())
    strength: float = 1.0
    steps: int = 200
    batch: int = 16
    rate: float = 1e-3
    rank: int = 8
    drawn: int = 16
    sampling_steps: int = 20
    guidance: float = 3.0
    seed: int = 0


def erased_target(empty: torch.Tensor, named: torch.Tensor, strength: float) -> torch.Tensor:
    """ε_θ*(x_t) − η·(ε_θ*(x_t, c) − ε_θ*(x_t)); the same holds for every prediction that is affine in ε."""
    return empty - strength * (named - empty)


def train_esd(
    model: ModelConfig, how: EsdTraining, progress: Callable[[int, float], None] = lambda step, loss: None
) -> dict[str, torch.Tensor]:
    """Train; returns peft's low-rank state.

    Args:
        model: the base model.
        how: see :class:`EsdTraining`.
        progress: called with step and loss.
    """
    import dataclasses

    import torch
    from diffusers.models.attention_processor import AttnProcessor
    from peft.utils import get_peft_model_state_dict

    from pipeline.model.load import load_model

    base = load_model(dataclasses.replace(model, dtype="float32", compile="off"))
    network: Any = base.network
    pool = flights(base, how)
    texts = base.encode_prompts([*how.words, ""]).tokens
    torch.manual_seed(how.seed)  # of peft's initial weights
    network.set_attn_processor(AttnProcessor())
    parameters = list(add_lowrank(network, how.rank, CROSS_ATTENTION).values())
    optimiser = torch.optim.AdamW(parameters, lr=how.rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(how.steps):
        rng = np.random.default_rng([how.seed, step])
        chosen = rng.choice(len(pool), how.batch, replace=len(pool) < how.batch)
        latents = torch.stack([pool[i][0] for i in chosen])
        times = torch.tensor([pool[i][1] for i in chosen])
        named = torch.stack([texts[pool[i][2]] for i in chosen])
        with narrow(model.device):
            network.disable_adapters()
            with torch.no_grad():
                both = torch.cat([texts[-1].expand_as(named), named])
                original = network(latents.repeat(2, 1, 1, 1), times.repeat(2), both).sample.float()
            network.enable_adapters()
            target = erased_target(original[: how.batch], original[how.batch :], how.strength)
            loss = (network(latents, times, named).sample.float() - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        progress(step + 1, float(loss.detach()))
    return {name: value.detach().cpu() for name, value in get_peft_model_state_dict(network).items()}


def flights(base: DiffusionModel, how: EsdTraining) -> list[tuple[torch.Tensor, float, int]]:
    """x_t, t and the number of the concept, for every step of every picture that the original network draws of the words."""
    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory

    engine = Engine(base, rows=16, steps=how.sampling_steps, guidance_scale=how.guidance)
    texts = base.encode_prompts([*how.words, ""])
    flown = [
        Trajectory(
            tag=tag,
            latent=engine.initial_noise(how.seed * 100_000 + tag),
            step=0,
            context=texts[tag % len(how.words)],
            negative=texts[-1],
        )
        for tag in range(how.drawn * len(how.words))
    ]
    with narrow(str(next(base.network.parameters()).device)):  # type: ignore[attr-defined]
        engine.finish(flown)
    times = engine.sampler.timesteps
    return [(z, times[step], tag % len(how.words)) for tag, t in enumerate(flown) for step, z in sorted(t.ring.items())]


def save_esd(folder: Path, lowrank: dict[str, torch.Tensor], how: EsdTraining, *, base: str, base_digest: str) -> None:
    """Write the weights as an adapter folder without tokens."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    half = {f"{PREFIX}{name}": value.to(torch.float16).contiguous() for name, value in lowrank.items()}
    save_file(half, folder / LOWRANK)
    settings = {
        "format": FORMAT, "removal": "model", "base": base, "base_digest": base_digest, "vocabulary": None,
        "files": {LOWRANK: sealed(folder / LOWRANK)}, "places": {}, "training": {"method": "ESD-x", **asdict(how)},
    }  # fmt: skip
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
