"""The rungs of a policy's ladders: what the next attempt does differently. One small class a kind, each with its own keys.

``METHODS`` are the steering methods that ship: they answer a picture that is too near to a reference. :mod:`pipeline.methods`
adds those of other packages. ``MarkRung`` answers an unwanted mark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from pipeline.fields import choice, flag, line, number
from pipeline.settings import contradiction, settings

KIND = "what the next attempt does differently"


class Rung(Protocol):
    """One entry of a policy's ladder, of any kind."""

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class SteeringMethod:
    """What a steering method declares.

    Attributes:
        rung: its keys in a policy: a class made by :func:`pipeline.settings.settings`, with ``kind: Literal["its kind"]``.
        answer: the function that answers a failed attempt, (failed, rung, tools) → NextTry, see
            :mod:`pipeline.respond.copies`; or its place, "module:name", which is imported when it is first needed.
    """

    rung: type[Any]
    answer: Callable[..., Any] | str

    @property
    def kind(self) -> str:
        """The kind of its rungs."""
        return str(self.rung.__pydantic_fields__["kind"].default)


@settings
class ReseedRung:
    """A new seed, and nothing else: best of N."""

    kind: Literal["reseed"] = choice("reseed", KIND)


@settings
class RenoiseRung:
    """Fresh noise on the failed picture, and nothing else: the control of every rollback."""

    kind: Literal["renoise"] = choice("renoise", KIND)
    resume_fraction: float = number(0.0, 0, 1, "share of the steps kept from the failed attempt; 0: all noise")
    rollback: float = number(0.0, 0, 1, "share of the steps by which each later attempt resumes earlier")


@settings
class FromReferences:
    """Keys of the kinds that need the sample's nearest references."""

    renew: bool = flag(False, "start from new noise instead of the failed attempt's")
    references: int = number(1, 1, 64, "nearest references steered away from")
    target: Literal["nearest", "random"] = choice(
        "nearest", "random: the control, a reference that has nothing to do with the sample"
    )


@settings
class NegativeRung(FromReferences):
    """The references' titles behind the negative prompt; the model is drawn with guidance."""

    kind: Literal["negative"] = choice("negative", KIND)


@settings
class Resumed(FromReferences):
    """Keys of the kinds that steer, from where the failed attempt is resumed."""

    resume_fraction: float = number(0.0, 0, 1, "share of the steps kept from the failed attempt; 0 starts from its noise")
    rollback: float = number(0.0, 0, 1, "share of the steps by which each later attempt resumes earlier")
    window: float = number(1.0, 0, 1, "share of the steps, from where it resumes, in which steering acts")

    def __post_init__(self) -> None:
        if self.renew and self.resume_fraction > 0:
            what = "renew starts from new noise, and so nothing of the failed attempt is kept"
            raise contradiction("renew", what, "Remove resume_fraction, or remove renew")


@settings
class NegToMeRung(Resumed):
    """Negative token merging (arXiv 2412.01339): tokens are pushed away from the reference's."""

    kind: Literal["negtome"] = choice("negtome", KIND)
    alpha: float = number(0.9, -100, 100, "strength α")
    token_threshold: float = number(0.65, -1, 1, "cosine above which a token is pushed")
    match: Literal["paper", "released", "soft"] = choice("paper", "axis of the match, or kernel-weighted")
    placement: Literal["paper", "released"] = choice("paper", "push after the residual, or before it")
    form: Literal["paper", "unit", "kernel"] = choice("paper", "how the push grows with the similarity")
    keep_norm: bool = flag(True, "pushed tokens keep their norm")
    attention: Literal["last", "both"] = choice("last", "push after cross-attention, or after self-attention as well")
    rows: Literal["both", "conditional"] = choice("both", "which rows of a guided sample are pushed")
    blocks: str = line("", "push only in blocks whose name starts with this")
    min_tokens: int = number(0, 0, 1 << 20, "push only in blocks with at least so many image tokens")
    masked: bool = flag(False, "match only where a reference differs from the centre")
    noise: Literal["fixed", "none"] = choice("fixed", "the reference row's noise; none feeds the clean latent")
    precision: Literal["float32", "bfloat16"] = choice("float32", "number format of the matching")
    temperature: float = number(0.1, 1e-4, 100, "temperature of the soft match")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.match == "released" and self.references > 1:
            raise contradiction("match", "the released axis knows one reference", "Set references = 1, or use another match")
        if self.match == "released" and self.masked:
            raise contradiction("match", "the released axis knows no mask", "Set masked = false, or use another match")


@settings
class Nudging(Resumed):
    """Keys of the kinds that move the predicted latent by gradient steps."""

    step_size: float = number(0.05, 0, 10, "length of a gradient step, relative to ‖x̂0‖")
    iterations: int = number(5, 0, 1000, "gradient steps per denoising step")
    enough: float = number(-1.0, -1, 1, "cosine of the latents at which pushing stops; -1 pushes always")
    keep: float = number(0.1, 0, 1000, "weight of staying near the latent as predicted")
    weights: Literal["softmax", "mean", "nearest"] = choice("softmax", "how the references are weighed")
    temperature: float = number(0.1, 1e-4, 100, "temperature of the softmax over the references")
    centred: bool = flag(True, "similarity is measured from the mean of the references")


@settings
class NudgeRung(Nudging):
    """The predicted clean latent is nudged away from the references (arXiv 2408.15450)."""

    kind: Literal["nudge"] = choice("nudge", KIND)
    space: Literal["clean", "noisy", "embedder"] = choice(
        "clean",
        "the predicted clean latent, the noisy one (not where it is noise alone, as in a flow's first step), or its embedding",
    )
    push: float = number(1.0, 0, 1000, "weight of pushing away from the references")
    pull: float = number(0.0, 0, 1000, "weight of pulling towards the caption's embedding")
    normalise: Literal["cosine", "none"] = choice("cosine", "similarity is a cosine, or a dot product")
    penalty: Literal["l2_squared", "l2"] = choice("l2_squared", "penalty on the distance moved")
    solver: Literal["steps", "closed_form"] = choice("steps", "gradient steps, or the minimum of the paper's objective")
    direction: Literal["gradient", "random"] = choice("gradient", "random: the control, equally far in a random direction")
    colours: Literal["copied", "all"] = choice(
        "copied", "other colours of the references to be pushed from as well: those of references copied in one, or of all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for wrong, key, what, fix in self._contradictions():
            if wrong:
                raise contradiction(key, what, fix)

    def _contradictions(self) -> tuple[tuple[bool, str, str, str], ...]:
        """What each key allows alone, but not together: (whether it is so, key, what is wrong, what to do)."""
        embedder, closed = self.space == "embedder", self.solver == "closed_form"
        return (
            (self.pull > 0 and not embedder, "pull", "only the embedder knows what is desired", 'Set space = "embedder"'),
            (embedder and closed, "solver", "the embedder's space has no closed form", 'Set solver = "steps"'),
            (embedder and self.normalise == "none", "normalise", "embeddings have unit length", 'Set normalise = "cosine"'),
            (closed and self.keep == 0, "keep", "the closed form divides by it", "Set it above 0"),
            (closed and self.normalise == "cosine", "solver", "only dot products have a closed form", 'Set normalise = "none"'),
            (closed and self.weights != "mean", "weights", "the closed form takes the mean", 'Set weights = "mean"'),
            (self.push == 0 and self.pull == 0, "push", "nothing pushes and nothing pulls", "Set push or pull above 0"),
        )


@settings
class EraseRung:
    """From the same noise again, with the mark's name and place in the negative conditioning.

    See :mod:`pipeline.respond.marks`. Driven from one place a mark may come back at another. Where no adapter has a name for
    the mark, or the same was tried before, the rung is a re-seed.
    """

    kind: Literal["erase"] = choice("erase", KIND)
    strength: float = number(1.0, 0, 100, "how far the negative conditioning goes towards the one with tokens; 1 all the way")
    places: Literal["found", "usual"] = choice(
        "found", "name only the places where the mark was found, or also those where such marks stood in the training set"
    )
    focus: float = number(
        1.0, 0, 100,
        "how many times as strong guidance is at these places (and an eighth of a side around them) in the first half of the "
        "steps; 1: as everywhere",
    )  # fmt: skip
    resume_fraction: float = number(0.0, 0, 1, "share of the steps kept from the failed attempt; 0 starts from its noise")


MarkRung = EraseRung | ReseedRung | RenoiseRung
MarkLadderRung = Annotated[MarkRung, Field(discriminator="kind")]

METHODS = (
    SteeringMethod(rung=ReseedRung, answer="pipeline.respond.copies:reseed"),
    SteeringMethod(rung=RenoiseRung, answer="pipeline.respond.copies:renoise"),
    SteeringMethod(rung=NegativeRung, answer="pipeline.respond.copies:negative"),
    SteeringMethod(rung=NegToMeRung, answer="pipeline.respond.negtome:answer"),
    SteeringMethod(rung=NudgeRung, answer="pipeline.respond.nudge:answer"),
)
