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

from guards.allowed import AllowList
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
    ``guidance_scale``, and classifier-free guidance on top is ``true_guidance_scale``, 1 for none. After ``guidance_until`` of
    the steps it stops, and a sample takes one row instead of two. ``scheduler`` "auto" is
    what the model's folder names, as far as it is one of the four, else "ddim"; ``eta`` belongs to "ddim".
    """

    steps: int = 20
    guidance_scale: float = 3.0
    true_guidance_scale: float = 1.0
    guidance_until: float = 1.0
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
class AdapterConfig:
    """An adapter that erases marks: a folder written by ``clearance erase train``, or "stickers:NAME", one that ships.

    ``weight`` is the strength of its low-rank weights, and ``lowrank`` says whose they are: every sample's ("always") or only
    those a mark was found on ("flagged"); "auto" is always for an adapter trained on a set that the model is to draw (data
    removal) and flagged for one that keeps the model from drawing marks (model removal). ``tokens`` likewise: the places of its
    training set in every sample's negative prompt, or the place where a mark was found in that sample's.
    """

    path: str
    weight: float = 1.0
    lowrank: Literal["auto", "always", "flagged"] = "auto"
    tokens: Literal["flagged", "always"] = "flagged"


@dataclass(frozen=True)
class RunConfig:
    """One run file.

    Relative paths are relative to the run file. ``prompts`` is Parquet, CSV, JSONL or text; ``index`` is an index
    folder; ``policy`` is a policy file, or the name of one that ships ("default", "observe"). ``adapters`` left out are
    those that ship for the model, if any do.
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
    adapters: tuple[AdapterConfig, ...] = ()

    def __post_init__(self) -> None:
        _at_least("samples_per_prompt", self.samples_per_prompt, 1)
        _at_least("shard_size", self.shard_size, 1)
        _at_least("workers", self.workers, 1)
        _at_least("generation.steps", self.generation.steps, 1)
        _at_least("generation.rows", self.generation.rows, 4)
        _at_least("generation.threads", self.generation.threads, 1)
        _between("generation.eta", self.generation.eta, 0, 1)
        _between("generation.guidance_until", self.generation.guidance_until, 0, 1)
        _between("model.text_tokens", self.model.text_tokens, 0, 512)
        _at_least("model.size", self.model.size, 0)


@dataclass(frozen=True)
class CopiesPolicy:
    """Copies. ``threshold`` 0 means: the calibrated operating point of the index. ``k``: references kept per attempt.

    ``hues``: into how many parts the circle of hues is cut to find copies in other colours; 1: they are not looked for.
    """

    threshold: float = 0.0
    confirm_threshold: float = 0.5
    k: int = 3
    hues: int = 12
    action: Literal["steer", "reject", "observe"] = "steer"

    def __post_init__(self) -> None:
        _between("copies.hues", self.hues, 1, 64)


@dataclass(frozen=True)
class GuardPolicy:
    """One other guard. ``required`` guards that cannot load stop the run; optional ones are recorded as skipped."""

    enabled: bool = True
    required: bool = True
    threshold: float = 0.5
    action: Literal["steer", "review", "reject", "observe"] = "steer"


@dataclass(frozen=True)
class CodesPolicy(GuardPolicy):
    """Decodable codes. ``allow``: our own codes, never flagged; addresses or plain texts, compared by :mod:`guards.allowed`."""

    allow: tuple[str, ...] = ()  # in a file also one text

    def __post_init__(self) -> None:
        AllowList(self.allow)


@dataclass(frozen=True)
class EarlyPolicy:
    """Early detection: looking at samples in mid-flight, which may only lead to steering. See :mod:`pipeline.steer.early`.

    ``probes``: at which shares of the steps. ``threshold`` 0 means: the calibrated ones. ``arm``: a reference that the prompt
    is near to catches more easily. ``rollback``: share of the steps by which a caught sample goes back before it is steered.
    """

    enabled: bool = False
    signal: Literal["latent", "head", "decode"] = "latent"
    probes: tuple[float, ...] = (0.1, 0.2, 0.3)
    threshold: float = 0.0
    arm: bool = True
    rollback: float = 0.05

    def __post_init__(self) -> None:
        for share in self.probes:
            _between("early.probes", share, 0.001, 0.999)
        _between("early.threshold", self.threshold, 0, 1)
        _between("early.rollback", self.rollback, 0, 1)


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder: what the next attempt does differently. See :mod:`pipeline.steer`.

    A key that its kind does not use is refused, so that nobody believes it does something.
    """

    kind: Literal["negtome", "nudge", "reseed", "renoise", "negative", "delayed_cfg", "prompt", "amg", "spell"]
    resume_fraction: float = 0.0  # share of the steps kept from the failed attempt; 0 starts from its noise
    renew: bool = False  # start from new noise instead of the failed attempt's
    alpha: float = 0.9  # negtome: strength
    token_threshold: float = 0.65  # negtome: cosine above which a token is pushed
    window: float = 1.0  # share of the steps, from the start, in which steering acts
    step_size: float = 0.05  # nudge: relative to the norm of the predicted clean latent
    iterations: int = 5  # nudge: gradient steps per denoising step; prompt: of the optimiser
    enough: float = -1.0  # nudge, amg: cosine at which pushing stops; -1 pushes always
    references: int = 1  # nearest references steered away from
    rollback: float = 0.0  # share of the steps by which each later attempt resumes earlier
    target: Literal["nearest", "random"] = "nearest"  # random: the control, a reference that has nothing to do with it
    match: Literal["paper", "released", "soft"] = "paper"  # negtome: axis of the match, or kernel-weighted
    placement: Literal["paper", "released"] = "paper"  # negtome: after the residual, or before it
    form: Literal["paper", "unit", "kernel"] = "paper"  # negtome: how the push grows with the similarity
    keep_norm: bool = True  # negtome: pushed tokens keep their norm
    attention: Literal["last", "both"] = "last"  # negtome: after cross-attention, or after self-attention as well
    rows: Literal["both", "conditional"] = "both"  # negtome: which rows of a guided sample are pushed
    blocks: str = ""  # negtome: only blocks whose name starts so
    min_tokens: int = 0  # negtome: only blocks with at least so many image tokens
    masked: bool = False  # negtome: match only where a reference differs from the centre
    noise: Literal["fixed", "none"] = "fixed"  # negtome: the reference row's noise; none feeds the clean latent
    precision: Literal["float32", "bfloat16"] = "float32"  # negtome: of the matching
    space: Literal["clean", "noisy", "embedder"] = "clean"  # nudge: the predicted clean latent, the noisy one, or its embedding
    push: float = 1.0  # nudge: weight of the undesired
    pull: float = 0.0  # nudge: weight of the desired, the caption's embedding
    keep: float = 0.1  # nudge: weight of staying where it was
    weights: Literal["softmax", "mean", "nearest"] = "softmax"  # nudge: over the references
    temperature: float = 0.1  # nudge: of that softmax; negtome: of the soft match
    normalise: Literal["cosine", "none"] = "cosine"  # nudge: likeness is a cosine, or a dot product
    penalty: Literal["l2_squared", "l2"] = "l2_squared"  # nudge: how far it went
    solver: Literal["steps", "closed_form"] = "steps"  # nudge: gradient steps, or the printed objective's minimum
    centred: bool = True  # nudge: likeness is taken from the mean of the references
    direction: Literal["gradient", "random"] = "gradient"  # nudge: random is the control, as far but anywhere
    strength: float = 1.0  # amg: despecification; spell: overcompensation
    deduplicate: bool = True  # amg: the nearest reference's title takes the negative prompt's place
    radius: float = 0.8  # spell: relative to the reference's distance from the centre
    learning_rate: float = 0.1  # prompt: of AdamW
    norm_target: float = 3.0  # prompt: norm of the difference that text makes, at which it stops

    def __post_init__(self) -> None:
        if self.kind not in _RUNG_KEYS:
            raise ConfigError(f"{self.kind!r} is no kind", where="ladder: kind", fix=f"Use one of {', '.join(_RUNG_KEYS)}")
        used = _RUNG_KEYS[self.kind]
        for f in dataclasses.fields(self)[1:]:
            if f.name not in used and getattr(self, f.name) != f.default:
                fix = f"Leave it out; this kind knows {', '.join(sorted(used))}" if used else "Leave it out; it knows no keys"
                raise ConfigError(f"{f.name!r} means nothing to kind {self.kind!r}", where=f"ladder: {f.name}", fix=fix)
        for name, low, high in _RUNG_RANGES:
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"must be {low:g} to {high:g}, not {getattr(self, name):g}", where=f"ladder: {name}", fix="Mend it"
                )
        for wrong, name, what, fix in self._contradictions():
            if wrong:
                raise ConfigError(what, where=f"ladder: {name}", fix=fix)

    def _contradictions(self) -> tuple[tuple[bool, str, str, str], ...]:
        """What each key allows alone, but not together: (whether it is so, key, what is wrong, fix)."""
        released, embedder = self.match == "released", self.space == "embedder"
        closed, nudge = self.solver == "closed_form", self.kind == "nudge"
        kept = self.resume_fraction > 0
        return (
            (self.renew and kept, "renew", "nothing of the failed attempt is kept with new noise", "Set resume_fraction = 0"),
            (released and self.references > 1, "match", "the released axis knows one reference", "Set references = 1"),
            (released and self.masked, "match", "the released axis knows no mask", "Set masked = false"),
            (self.pull > 0 and not embedder, "pull", "only the embedder knows what is desired", 'Set space = "embedder"'),
            (embedder and closed, "solver", "the embedder's space has no closed form", 'Set solver = "steps"'),
            (embedder and self.normalise == "none", "normalise", "embeddings have unit length", 'Set normalise = "cosine"'),
            (closed and self.keep == 0, "keep", "the closed form divides by it", "Set it above 0"),
            (closed and self.normalise == "cosine", "solver", "only dot products have a closed form", 'Set normalise = "none"'),
            (closed and self.weights != "mean", "weights", "the closed form takes the mean", 'Set weights = "mean"'),
            (nudge and self.push == 0 and self.pull == 0, "push", "nothing pushes and nothing pulls", "Raise one of them"),
        )


_RESUMED = {"resume_fraction", "renew", "rollback", "window", "references", "target"}
_NUDGED = {"step_size", "iterations", "enough", "keep", "centred", "temperature", "weights"}
_RUNG_KEYS: dict[str, set[str]] = {
    "reseed": set(),
    "renoise": {"resume_fraction", "rollback"},
    "negative": {"renew", "references", "target"},
    "delayed_cfg": {"renew", "window"},
    "prompt": {"renew", "iterations", "learning_rate", "norm_target"},
    "negtome": _RESUMED
    | {"alpha", "token_threshold", "match", "placement", "form", "keep_norm", "attention", "rows", "blocks", "min_tokens"}
    | {"masked", "noise", "precision", "temperature"},
    "nudge": _RESUMED | _NUDGED | {"space", "push", "pull", "normalise", "penalty", "solver", "direction"},
    "amg": _RESUMED | _NUDGED | {"strength", "deduplicate"},
    "spell": _RESUMED | {"radius", "strength"},
}
_RUNG_RANGES = (
    ("resume_fraction", 0, 1), ("rollback", 0, 1), ("window", 0, 1), ("references", 1, 64), ("iterations", 0, 1000),
    ("step_size", 0, 10), ("enough", -1, 1), ("token_threshold", -1, 1), ("alpha", -100, 100), ("min_tokens", 0, 1 << 20),
    ("push", 0, 1000), ("pull", 0, 1000), ("keep", 0, 1000), ("temperature", 1e-4, 100), ("strength", 0, 1000),
    ("radius", 0, 100), ("learning_rate", 1e-6, 10), ("norm_target", 0, 1e6),
)  # fmt: skip


@dataclass(frozen=True)
class MarkRung:
    """One rung of the mark ladder: what is done about a watermark, a QR code or a text that nobody asked for.

    ``erase`` draws again from the same noise with the mark's name and place in the negative conditioning (see
    :mod:`pipeline.steer.erasers`); ``strength`` 1 says it as it was learned, 0 says nothing. ``places`` "usual" says, beside
    the place where it was found, those where such marks stood in the training set: driven from one place a mark comes back
    at another. ``focus`` is how many times as strong guidance is at these places. Where no adapter has a name for the mark,
    or the same was said before, it is a ``reseed``.
    """

    kind: Literal["erase", "reseed", "renoise"]
    strength: float = 1.0  # erase
    places: Literal["found", "usual"] = "found"  # erase
    focus: float = 1.0  # erase
    resume_fraction: float = 0.0  # erase, renoise: share of the steps kept from the failed attempt

    def __post_init__(self) -> None:
        used = {"erase": ("strength", "places", "focus", "resume_fraction"), "renoise": ("resume_fraction",), "reseed": ()}.get(
            self.kind
        )
        if used is None:
            fix = "Use erase, reseed or renoise; the others need a reference"
            raise ConfigError(f"{self.kind!r} is no kind of answer to a mark", where="mark_ladder: kind", fix=fix)
        for name, default, high in (("strength", 1.0, 100), ("focus", 1.0, 100), ("resume_fraction", 0.0, 1)):
            if name not in used and getattr(self, name) != default:
                what = f"{name!r} means nothing to kind {self.kind!r}"
                raise ConfigError(what, where=f"mark_ladder: {name}", fix="Leave it out")
            _between(f"mark_ladder: {name}", getattr(self, name), 0, high)
        if self.places not in ("found", "usual") or (self.places == "usual" and "places" not in used):
            what = f"{self.places!r} means nothing to kind {self.kind!r}"
            raise ConfigError(what, where="mark_ladder: places", fix="found or usual, with erase")


@dataclass(frozen=True)
class Policy:
    """What is allowed out, and what is done with the rest. Owned by a person, digested into every row.

    ``when_exhausted``: outcome of a request whose ladder is used up although only an unconfirmed finding remains.
    ``mark_ladder`` is climbed by samples on which a mark was found, ``ladder`` by those too near to a reference; where it is
    empty a mark is answered with new seeds, as often as ``ladder`` has rungs. ``max_evals``: denoiser evaluations a request may
    spend; no attempt is begun that a full picture's steps could take beyond it; 0: as many as the ladders ask for.
    """

    name: str = "default"
    version: str = "1"
    copies: CopiesPolicy = field(default_factory=CopiesPolicy)
    marks: GuardPolicy = field(default_factory=GuardPolicy)
    codes: CodesPolicy = field(default_factory=CodesPolicy)
    text: GuardPolicy = field(default_factory=GuardPolicy)
    unsafe: GuardPolicy = field(default_factory=lambda: GuardPolicy(required=False, action="reject", threshold=0.8))
    yolo: GuardPolicy = field(default_factory=lambda: GuardPolicy(enabled=False))  # AGPL-3.0: only who asks for it gets it
    early: EarlyPolicy = field(default_factory=EarlyPolicy)
    ladder: tuple[Rung, ...] = ()
    mark_ladder: tuple[MarkRung, ...] = ()
    when_exhausted: Literal["review", "rejected"] = "review"
    max_evals: float = 0.0

    def __post_init__(self) -> None:
        _between("max_evals", self.max_evals, 0, 1e9)


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
    if hint == tuple[str, ...] and isinstance(value, str):
        value = [value] if value else []
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
