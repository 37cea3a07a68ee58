"""Configuration is data: frozen, read from TOML, unknown keys refused, digested.

A run file says what to make and with what; the policy is a file of its own, because another person owns it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from index.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The diffusion model. ``path`` is "stickers" (the embedded world), a diffusers folder, or a hub id.

    ``variant`` names one of several sets of weights in the folder ("fp16"); ``size`` is the picture's side in pixels, 0 the
    model's own; ``text_tokens`` is how many tokens T5 takes, 0 the class's own (SD3 256, Flux 512; Flux schnell wants 256).
    """

    path: str = "stickers"
    revision: str = ""
    variant: str = ""
    size: int = 0
    text_tokens: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = "cpu"
    licence: str = ""
    allow_download: bool = False


@dataclass(frozen=True)
class GenerationConfig:
    """How pictures are drawn. ``rows`` is the fixed number of rows in every denoiser call; part of the plan.

    ``guidance_scale`` up to 1 switches classifier-free guidance off. Flux has guidance inside: it is told
    ``guidance_scale``, and classifier-free guidance on top is ``true_guidance_scale``, 1 for none. ``scheduler`` "auto" is
    what the model's folder names, as far as it is one of the four, else "ddim"; ``eta`` belongs to "ddim".
    """

    steps: int = 20
    guidance_scale: float = 3.0
    true_guidance_scale: float = 1.0
    scheduler: Literal["auto", "ddim", "euler", "dpmpp_2m", "flow_match_euler"] = "auto"
    eta: float = 0.0
    rows: int = 16
    threads: int = 1


@dataclass(frozen=True)
class EmbedderConfig:
    """The OpenCLIP embedder: ``model`` is "stickers", an OpenCLIP architecture, or local-dir:FOLDER; see open_clip."""

    model: str = "stickers"
    pretrained: str = ""
    allow_download: bool = False


@dataclass(frozen=True)
class RunConfig:
    """One run file.

    Relative paths are relative to the run file. ``prompts`` is Parquet, CSV, JSONL or text; ``index`` is an index
    folder; ``policy`` is a policy file, or the name of one that ships ("default", "observe").
    """

    prompts: str
    out: str = ""
    dataset_id: str = "default"
    base_seed: int = 0
    samples_per_prompt: int = 1
    shard_size: int = 16
    workers: int = 1
    index: str = ""
    policy: str = "default"
    image_format: Literal["webp", "png", "jpeg"] = "webp"
    retention_days: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)

    def __post_init__(self) -> None:
        _at_least("samples_per_prompt", self.samples_per_prompt, 1)
        _at_least("shard_size", self.shard_size, 1)
        _at_least("workers", self.workers, 1)
        _at_least("generation.steps", self.generation.steps, 1)
        _at_least("generation.rows", self.generation.rows, 4)
        _at_least("generation.threads", self.generation.threads, 1)
        _between("generation.eta", self.generation.eta, 0, 1)
        _between("model.text_tokens", self.model.text_tokens, 0, 512)
        _at_least("model.size", self.model.size, 0)


@dataclass(frozen=True)
class CopiesPolicy:
    """Copies. ``threshold`` 0 means: the calibrated operating point of the index. ``k``: references kept per attempt."""

    threshold: float = 0.0
    confirm_threshold: float = 0.5
    k: int = 3
    action: Literal["steer", "reject", "observe"] = "steer"


@dataclass(frozen=True)
class GuardPolicy:
    """One other guard. ``required`` guards that cannot load stop the run; optional ones are recorded as skipped."""

    enabled: bool = True
    required: bool = True
    threshold: float = 0.5
    action: Literal["steer", "review", "reject", "observe"] = "steer"


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder: what the next attempt does differently. See :mod:`pipeline.steer`."""

    kind: Literal["negtome", "nudge", "reseed"]
    resume_fraction: float = 0.0  # share of the steps kept from the failed attempt; 0 starts from its noise
    alpha: float = 0.9  # negtome: strength
    token_threshold: float = 0.65  # negtome: cosine above which a token is pushed
    window: float = 1.0  # share of the steps, from the start, in which steering acts
    step_size: float = 0.05  # nudge: relative to the norm of the predicted clean latent
    iterations: int = 5  # nudge: gradient steps per denoising step
    enough: float = -1.0  # nudge: cosine of the latents at which pushing stops; -1 pushes always
    references: int = 1  # nearest references steered away from


@dataclass(frozen=True)
class Policy:
    """What is allowed out, and what is done with the rest. Owned by a person, digested into every row.

    ``when_exhausted``: outcome of a request whose ladder is used up although only an unconfirmed finding remains.
    """

    name: str = "default"
    version: str = "1"
    copies: CopiesPolicy = field(default_factory=CopiesPolicy)
    marks: GuardPolicy = field(default_factory=GuardPolicy)
    codes: GuardPolicy = field(default_factory=GuardPolicy)
    text: GuardPolicy = field(default_factory=GuardPolicy)
    unsafe: GuardPolicy = field(default_factory=lambda: GuardPolicy(required=False, action="reject", threshold=0.8))
    yolo: GuardPolicy = field(default_factory=lambda: GuardPolicy(enabled=False))  # AGPL-3.0: only who asks for it gets it
    ladder: tuple[Rung, ...] = ()
    when_exhausted: Literal["review", "rejected"] = "review"


def digest(config: Any) -> str:
    """Digest of a configuration: sha256 of its canonical JSON, independent of key order in the file."""
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else config
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_toml(cls: type[T], path: Path) -> T:
    """Read a frozen configuration dataclass from a TOML file, refusing unknown keys and wrong types."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("file does not exist", where=str(path), fix="Name an existing TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML ({error})", where=str(path), fix="Mend that line") from None
    return from_dict(cls, data, where=str(path))


def from_dict(cls: type[T], data: dict[str, Any], *, where: str) -> T:
    """Build the dataclass from plain data; errors name the key."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {key!r}", where=where, fix=hint)
    values = {key: _convert(hints[key], value, where=f"{where}: {key}") for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError:
        missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory is dataclasses.MISSING]
        raise ConfigError(f"missing key {', '.join(map(repr, missing))}", where=where, fix="Add it") from None


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError("must be a table", where=where, fix=f"Write it as [{where.rsplit(': ', 1)[-1]}]")
        return from_dict(hint, value, where=where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(typing.get_args(hint)[0], item, where=f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(
                f"{value!r} is not allowed", where=where, fix=f"Use one of {', '.join(map(repr, typing.get_args(hint)))}"
            )
        return value
    if origin is types.UnionType:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"must be {hint.__name__}, not {type(value).__name__}", where=where, fix="Mend the value")
    return value


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"must be at least {least}, not {value}", where=name, fix="Raise it")


def _between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(f"must be from {least:g} to {most:g}, not {value:g}", where=name, fix="Mend the value")
