"""How each class of model is drawn by both sides, for the suite over all of them: by the engine, and by diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.conditioning import Conditioning
from pipeline.model.interface import DiffusionModel
from pipeline.model.libraries import quiet
from pipeline.model.load import load_model
from pipeline.model.sampling.sampler import counter_noise

STEPS, SCALE = 4, 3.0
PROMPT, NEGATIVE = "a red apple", "a cat"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One class of model.

    Attributes:
        pipeline: diffusers' class.
        negative: the suite's negative prompt.
        takes_negative: there is classifier-free guidance at all.
        unasked: diffusers guides where no negative prompt is given, too: away from the empty one.
        side: width and height of its pictures, in pixels.
        tokens: how many tokens of text it is given; where diffusers' call takes a number, that one too.
        asks: further arguments of diffusers' call.
        guided: those with classifier-free guidance and a negative prompt.
        plain: those without.
        engine: the engine's arguments with classifier-free guidance.
        engine_plain: the engine's arguments without.
        noise: the module of diffusers' scheduler that draws fresh noise every step: the engine's is handed in instead.
    """

    pipeline: str
    negative: str = NEGATIVE
    takes_negative: bool = True
    unasked: bool = True
    side: int = 16
    tokens: int = 24
    asks: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": SCALE, "negative_prompt": NEGATIVE})
    plain: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    engine: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": SCALE})
    engine_plain: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    noise: str = ""

    def tokens_of(self, model: DiffusionModel) -> int:
        """How many tokens the denoiser makes of a picture."""
        _, height, width = model.latent_shape
        patch: int = model.patch  # type: ignore[attr-defined]
        return height // patch * (width // patch)

    @property
    def wide(self) -> tuple[int, int]:
        """Width and height of another size."""
        return 2 * self.side, self.side


OF_T5 = {"max_sequence_length": 24}
UNCLEANED = {"use_resolution_binning": False, "clean_caption": False}  # of the size asked for, prompts as they are
FAMILIES = {
    "sd": Family(pipeline="StableDiffusionPipeline"),
    "sdxl": Family(pipeline="StableDiffusionXLPipeline"),
    "sd3": Family(pipeline="StableDiffusion3Pipeline", asks=OF_T5),
    "flux": Family(
        pipeline="FluxPipeline",
        unasked=False,
        asks=OF_T5,
        guided={"guidance_scale": SCALE, "true_cfg_scale": 2.0, "negative_prompt": NEGATIVE},
        plain={"guidance_scale": SCALE},
        engine={"guidance_scale": SCALE, "true_guidance_scale": 2.0},
        engine_plain={"guidance_scale": SCALE},
    ),
    "flux2": Family(
        pipeline="Flux2KleinPipeline",
        tokens=64,
        negative="",  # diffusers' pipeline takes no other
        asks={"max_sequence_length": 64},
        guided={"guidance_scale": SCALE},
    ),
    "flux2_dev": Family(
        pipeline="Flux2Pipeline",
        tokens=240,  # of a tokenizer of bytes, which makes a long text of the system message
        asks={"max_sequence_length": 240},
        takes_negative=False,
        guided={"guidance_scale": SCALE},
    ),
    "qwen_image": Family(
        pipeline="QwenImagePipeline",
        unasked=False,
        side=32,
        tokens=320,  # of a tokenizer of bytes, which makes a long text of the instruction
        asks={"max_sequence_length": 320},
        guided={"true_cfg_scale": SCALE, "negative_prompt": NEGATIVE},
        plain={"true_cfg_scale": 1.0},
    ),
    "z_image": Family(
        pipeline="ZImagePipeline",
        tokens=64,
        asks={"max_sequence_length": 64},
        plain={"guidance_scale": 0.0},
        engine_plain={"guidance_scale": 0.0},
    ),
    "pixart_sigma": Family(pipeline="PixArtSigmaPipeline", asks=OF_T5 | UNCLEANED),
    "pixart_alpha": Family(pipeline="PixArtAlphaPipeline", asks=OF_T5 | UNCLEANED),
    "sana": Family(pipeline="SanaPipeline", side=32, asks=OF_T5 | UNCLEANED),
    "chroma": Family(pipeline="ChromaPipeline", asks=OF_T5),
    "sd_lcm": Family(
        pipeline="LatentConsistencyModelPipeline",
        takes_negative=False,
        guided={"guidance_scale": SCALE},
        noise="diffusers.schedulers.scheduling_lcm",
    ),
}


def load(family: Family, folder: Path, dtype: str = "float32", **more: Any) -> DiffusionModel:
    return load_model(
        ModelConfig(path=str(folder), dtype=dtype, **({"size": family.side, "text_tokens": family.tokens} | more))
    )


def engine_of(family: Family, model: DiffusionModel, *, steps: int = STEPS, guided: bool = True) -> Engine:
    return Engine(model, rows=8, steps=steps, **(family.engine if guided else family.engine_plain))


_TEXTS: WeakKeyDictionary[DiffusionModel, dict[tuple[str, bool], Conditioning]] = WeakKeyDictionary()


def text(model: DiffusionModel, prompt: str, *, negative: bool = False) -> Conditioning:
    """A prompt's conditioning, encoded once a model: a call of the text encoders costs as much as one of the denoiser."""
    known = _TEXTS.setdefault(model, {})
    if (prompt, negative) not in known:
        known[prompt, negative] = model.encode_prompts([prompt], negative=negative)[0]
    return known[prompt, negative]


def sample(e: Engine, seed: int, prompt: str = "", *, size: tuple[int, int] | None = None, **more: Any) -> Trajectory:
    """One that begins, with the suite's negative prompt where the engine is guided; ``size``: width and height in pixels."""
    positions = (e.model.shape_of(*size) if size else e.model.latent_shape)[1:]
    sampler = e.sampler_for(positions)
    context = text(e.model, prompt or f"{PROMPT} {seed}")
    negative = text(e.model, FAMILIES[e.model.family].negative, negative=True) if e.guided else None
    noise = e.initial_noise(seed, sampler, positions)
    given = {"context": context, "negative": negative} | more
    return Trajectory(tag=seed, seed=seed, latent=noise, step=0, sampler=sampler, **given)


def finish(e: Engine, trajectories: Sequence[Trajectory], *, stagger: bool = False) -> dict[int, torch.Tensor]:
    """Tag → latent at the end; ``stagger`` submits one more before every call, so that a call's rows stand at different
    steps."""
    done: dict[int, torch.Tensor] = {}
    coming = list(trajectories)
    while coming or e.busy:
        for _ in range(1 if stagger else len(coming)):
            if coming:
                e.submit(coming.pop(0))
        done |= {t.tag: t.latent for t in e.step()}
    return done


def pixels(model: DiffusionModel, latent: torch.Tensor) -> torch.Tensor:
    """The picture of a latent (C, h, w) in 0 … 1, float32 (3, H, W), not rounded."""
    with torch.inference_mode():
        return (model.decode_tensor(latent[None])[0] / 2 + 0.5).clamp(0, 1)  # type: ignore[attr-defined,no-any-return]


def diffusers_pipeline(folder: Path, pipeline: str, **more: Any) -> Any:
    import diffusers

    with quiet():
        pipe = getattr(diffusers, pipeline).from_pretrained(folder, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def handed(family: Family, seed: int) -> Iterator[None]:
    """Inside, diffusers' scheduler takes the engine's fresh noise of each step in place of its own."""
    if not family.noise:
        yield
        return
    steps = count()

    def fresh(shape: Sequence[int], **_: Any) -> torch.Tensor:
        return counter_noise(seed, next(steps), tuple(shape[1:]))[None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{family.noise}.randn_tensor", fresh)
        yield


def drawn_by(pipe: Any, family: Family, seed: int, *, guided: bool = True, size: tuple[int, int] | None = None) -> torch.Tensor:
    """The picture of diffusers' own pipeline in 0 … 1, float32 (3, H, W), not rounded; ``size``: width and height."""
    width, height = size or (family.side, family.side)
    asks = {"width": width, "height": height} | family.asks | (family.guided if guided else family.plain)
    with quiet(), handed(family, seed):
        found = pipe(
            prompt=PROMPT,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **asks,
        )
    return found.images[0]  # type: ignore[no-any-return]
