"""Few-step models are drawn as they were distilled: a preset fills in what the run file leaves open and refuses contradictions.

``generation.preset`` names one, or ``auto``: the one that the model's folder asks for. Under ``auto`` the keys of the run file
win, and nothing is refused. What is in force is written into the plan in full: a plan never depends on these tables.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError
from index.shipped import STICKERS
from pipeline.config import GUIDANCE, STEPS, GenerationConfig, Scheduler, Spacing
from pipeline.notes import Note

if TYPE_CHECKING:
    from pipeline.model.families.latent import LatentDiffusion

GUIDANCE_MOST = 100.0  # as generation.guidance_scale allows
NOT_DISTILLED = 'if the model is no such one, remove generation.preset, or set it to "none"'


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How the models of one kind are drawn.

    Attributes:
        steps: where the run file is silent. allowed: the numbers of steps that the model was distilled for.
        guidance: where the run file is silent. most_guidance: beyond it pictures burn.
        scheduler: a sampler's name. spacing: of its timesteps; None: the folder's own. eta: η of the sampler.
        why: the source of these numbers, for people.
    """

    steps: int
    allowed: tuple[int, ...]
    guidance: float
    most_guidance: float
    scheduler: Scheduler
    spacing: Spacing | None = None
    eta: float = 0.0
    why: str


PRESETS = {
    "turbo": Preset(
        steps=4, allowed=(1, 2, 3, 4), guidance=0.0, most_guidance=1.0, scheduler="euler_a", spacing="trailing",
        why="adversarial distillation (SD-Turbo, SDXL-Turbo)",
    ),
    "lightning": Preset(
        steps=4, allowed=(2, 4, 8), guidance=0.0, most_guidance=1.0, scheduler="euler", spacing="trailing",
        why="SDXL-Lightning: weights of 2, 4 or 8 steps, drawn with exactly as many",
    ),
    "lcm": Preset(
        steps=4, allowed=tuple(range(1, 9)), guidance=1.0, most_guidance=2.0, scheduler="lcm", why="LCM and LCM-LoRA",
    ),
    "hyper": Preset(
        steps=4, allowed=(2, 4, 8), guidance=0.0, most_guidance=1.0, scheduler="ddim", spacing="trailing",
        why="Hyper-SD: weights of 2, 4 or 8 steps, drawn with exactly as many",
    ),
}  # fmt: skip
ONE_STEP_HYPER = dataclasses.replace(PRESETS["hyper"], steps=1, allowed=(1,), scheduler="tcd", spacing=None, eta=1.0)
LCM_INSIDE = dataclasses.replace(PRESETS["lcm"], guidance=8.5, most_guidance=14.0)  # guidance is an input of the network
FLOW_TURBO = Preset(
    steps=4, allowed=tuple(range(1, 17)), guidance=0.0, most_guidance=1.0, scheduler="flow_match_euler",
    why="distilled flows (schnell, SD3.5-Turbo, klein, Z-Image-Turbo)",
)  # fmt: skip
# LoRAs of few steps for a network that takes the guidance scale as an input: without it, it was never trained.
EMBEDDED_TURBO = dataclasses.replace(
    FLOW_TURBO, steps=8, most_guidance=GUIDANCE_MOST,
    why="few-step LoRAs for a network that takes the guidance scale as an input (FLUX dev)",
)  # fmt: skip
# The classes that there were before a class had numbers of its own: a run file of theirs that states none keeps 20 steps and a
# guidance of 3, so that its runs can be continued and stay comparable.
FIRST = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
# Where a flow's own authors draw with other numbers, by the name of its pipeline.
TURBO_OF = {
    "ZImagePipeline": dataclasses.replace(FLOW_TURBO, steps=9),
    "Flux2KleinPipeline": dataclasses.replace(FLOW_TURBO, guidance=1.0),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model's folder says about how it is drawn.

    Attributes:
        pipeline: its class. flow: whether it is a rectified flow.
        scheduler: the scheduler's configuration.
        guidance_inside: an LCM whose network takes the guidance scale (``time_cond_proj_dim``).
        guidance_embedded: the guidance scale of a flow whose network takes it as an input (FLUX dev), as its class is drawn;
            None: it takes none.
        distilled: a flow that was distilled to few steps: ``is_distilled``, or a Flux.1 without guidance embeddings.
        steps, guidance: where neither run file nor preset states them.
        usual: the class's own steps and guidance, where those are other numbers; None: they are not, or it is the embedded
            world's model, which was made for them.
    """

    pipeline: str
    flow: bool
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    guidance_inside: bool = False
    guidance_embedded: float | None = None
    distilled: bool = False
    steps: int = STEPS
    guidance: float = GUIDANCE
    usual: tuple[int, float] | None = None

    @classmethod
    def of_folder(cls, folder: Path, model: type[LatentDiffusion], scheduler: Mapping[str, Any]) -> Facts:
        """Of a folder that was looked at; reads two JSON files."""
        from pipeline.model.folder.components import read_index

        network = json.loads((folder / model.denoiser / "config.json").read_text(encoding="utf-8"))
        found = cls._of(model, scheduler, network, read_index(folder))
        return dataclasses.replace(found, usual=None) if folder == STICKERS / "model" else found

    @classmethod
    def of_model(cls, model: Any) -> Facts:
        """Of a loaded model."""
        index = getattr(getattr(model, "_parts", None), "config", {})
        return cls._of(type(model), model.scheduler_config, model.network.config, index)

    @classmethod
    def _of(cls, model: Any, scheduler: Mapping[str, Any], network: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
        schnell = model.pipeline == "FluxPipeline" and network.get("guidance_embeds") is False
        usual, first = model.defaults({"": index, model.denoiser: network}), model.pipeline in FIRST
        return cls(
            steps=STEPS if first else usual.steps,
            guidance=GUIDANCE if first else usual.guidance,
            usual=(usual.steps, usual.guidance) if first else None,
            pipeline=model.pipeline,
            flow=model.flow,
            scheduler=scheduler,
            guidance_inside=network.get("time_cond_proj_dim") is not None,
            guidance_embedded=usual.guidance if network.get("guidance_embeds") else None,
            distilled=schnell or bool(index.get("is_distilled")),
        )

    @property
    def asks_for(self) -> str:
        """The preset that the folder asks for; empty: none."""
        if self.flow:
            return "turbo" if self.distilled else ""
        named = self.scheduler.get("_class_name")
        if self.guidance_inside or named == "LCMScheduler":
            return "lcm"
        trailing = self.scheduler.get("timestep_spacing") == "trailing"
        return "turbo" if named == "EulerAncestralDiscreteScheduler" and trailing else ""


@dataclass(frozen=True)
class InForce:
    """A generation table with every open key filled in, the preset in force (empty: none), and what to know of it."""

    generation: GenerationConfig
    preset: str = ""
    notes: tuple[Note, ...] = ()


def filled_in(generation: GenerationConfig, facts: Facts) -> InForce:
    """Fill in what a generation table leaves open: from its preset, else the class's own default.

    Raises:
        ConfigError: a key contradicts the preset, or the preset is not for this class of model.
    """
    if facts.guidance_inside and generation.preset == "none":
        what = 'the model was distilled for LCM sampling, and preset is "none"'
        raise ConfigError(what, where="generation.preset", fix='Set it to "lcm", or use its base model')
    chosen = facts.asks_for if generation.preset == "auto" else generation.preset.replace("none", "")
    if not chosen:
        return _as_usual(generation, facts)
    preset = _preset(chosen, generation, facts)
    stated = generation.preset != "auto"
    if stated:
        _refuse_contradictions(chosen, preset, generation)
    spacing = generation.timestep_spacing or preset.spacing
    if generation.scheduler not in ("auto", preset.scheduler):
        spacing = generation.timestep_spacing  # another sampler was chosen, on its own grid
    filled = dataclasses.replace(
        generation,
        steps=preset.steps if generation.steps is None else generation.steps,
        guidance_scale=preset.guidance if generation.guidance_scale is None else generation.guidance_scale,
        scheduler=preset.scheduler if generation.scheduler == "auto" else generation.scheduler,
        timestep_spacing=spacing,
        eta=preset.eta or generation.eta,
    )
    by = "generation.preset" if stated else "the model's folder"
    grid = f", {filled.timestep_spacing} timesteps" if filled.timestep_spacing else ""
    numbers = f"{filled.steps} steps, guidance {filled.guidance_scale:g}, {filled.scheduler}{grid}"
    text = f"{by} asks for {chosen} ({preset.why}): {numbers}"
    return InForce(filled, chosen, (Note("preset", text),))


def contradiction_of(
    generation: GenerationConfig, facts: Facts, *, steps: int | None, guidance_scale: float | None
) -> ConfigError | None:
    """Why a request may not have steps or a guidance scale of its own; None: it may, or there is no preset.

    Args:
        generation: the run file's table. facts: of the model's folder.
        steps, guidance_scale: that the request states; None: as the run file.
    """
    chosen = facts.asks_for if generation.preset == "auto" else generation.preset.replace("none", "")
    own = GenerationConfig(steps=steps, guidance_scale=guidance_scale)
    try:
        if chosen:
            _refuse_contradictions(chosen, _preset(chosen, generation, facts), own)
    except ConfigError as error:
        return error
    return None


def _as_usual(generation: GenerationConfig, facts: Facts) -> InForce:
    """Steps and guidance of the class where they are open; a note where they are not those of every run file of old."""
    open_keys = [key for key in ("steps", "guidance_scale") if getattr(generation, key) is None]
    numbers = {"steps": facts.steps, "guidance_scale": facts.guidance}
    filled = dataclasses.replace(
        generation,
        steps=facts.steps if generation.steps is None else generation.steps,
        guidance_scale=facts.guidance if generation.guidance_scale is None else generation.guidance_scale,
    )
    if not open_keys or (facts.pipeline in FIRST and facts.usual is None):
        return InForce(filled)
    shown = ", ".join(f"{key} {numbers[key]:g}" for key in open_keys)
    text = f"the run file leaves them open, and {facts.pipeline} is usually drawn so: {shown}"
    if facts.usual is not None:
        theirs = dict(zip(numbers, facts.usual, strict=True))
        others = ", ".join(f"{key} {theirs[key]:g}" for key in open_keys)
        text = f"the run file leaves them open, and gets what it always got: {shown}. {facts.pipeline}'s authors use {others}"
    return InForce(filled, notes=(Note("generation", text),))


def _preset(name: str, generation: GenerationConfig, facts: Facts) -> Preset:
    if facts.flow:
        if name == "turbo" and facts.guidance_embedded is not None:
            return dataclasses.replace(EMBEDDED_TURBO, guidance=facts.guidance_embedded)
        if name == "turbo":
            return TURBO_OF.get(facts.pipeline, FLOW_TURBO)
        what = f"{name} is for diffusion models, and {facts.pipeline} is a rectified flow"
        fix = (
            'Set it to "turbo" and state generation.steps; a schedule that its authors name (Qwen-Lightning: base_shift and '
            "max_shift of log 3) belongs into the folder's scheduler_config.json"
        )
        raise ConfigError(what, where="generation.preset", fix=fix)
    if name == "lcm" and facts.guidance_inside:
        return LCM_INSIDE
    return ONE_STEP_HYPER if name == "hyper" and generation.steps == 1 else PRESETS[name]


def _refuse_contradictions(name: str, preset: Preset, g: GenerationConfig) -> None:
    steps, guidance = g.steps, g.guidance_scale
    if steps is not None and steps not in preset.allowed:
        numbers = _numbers(preset.allowed)
        nearest = min(preset.allowed, key=lambda one: abs(one - steps))
        raise _contradiction("steps", f"{name} is drawn in {numbers} steps, not {steps}", f"Set it to {nearest}")
    if guidance is not None and guidance > preset.most_guidance:
        what = (
            f"{name} is drawn with a guidance of at most {preset.most_guidance:g}, not {guidance:g}: it was distilled with it"
        )
        raise _contradiction("guidance_scale", what, f"Set it to {preset.guidance:g}")
    if g.scheduler not in ("auto", preset.scheduler):
        what = f"{name} is drawn with {preset.scheduler!r}, not {g.scheduler!r}"
        raise _contradiction("scheduler", what, f'Set it to "{preset.scheduler}", or leave it out')
    if g.timestep_spacing is not None and g.timestep_spacing != preset.spacing:
        there = f"{preset.spacing!r} timesteps" if preset.spacing else "a grid of its own"
        raise _contradiction("timestep_spacing", f"{name} has {there}, not {g.timestep_spacing!r}", "Leave it out")
    if g.eta and g.eta != preset.eta:
        raise _contradiction("eta", f"{name} is drawn with an η of {preset.eta:g}, not {g.eta:g}", "Leave it out")


def _contradiction(key: str, what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=f"generation.{key}", fix=f"{fix}; {NOT_DISTILLED}")


def _numbers(allowed: tuple[int, ...]) -> str:
    if len(allowed) > 3 and allowed == tuple(range(allowed[0], allowed[-1] + 1)):
        return f"{allowed[0]} to {allowed[-1]}"
    return ", ".join(map(str, allowed[:-1])) + f" or {allowed[-1]}" if len(allowed) > 1 else str(allowed[0])
