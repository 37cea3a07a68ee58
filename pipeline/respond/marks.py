"""The erasers of a run: the adapters, and their tokens and weights for a mark that a guard found.

A sample on which a guard found a mark is drawn again from the same noise, with the mark's name and place in the *negative*
conditioning (arXiv 2310.05873, section 3): ε = ε_neg + w·(ε_text − ε_neg) then leads away from it. Only that sample's rows
change; where an adapter has low-rank weights they act on those rows alone, and one without tokens has only them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from guards.base import Box
from index.errors import ConfigError
from pipeline.config import AdapterConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.file import SHIPPED, look_at_adapters
from pipeline.model.adapters.lowrank import LowRank
from pipeline.outcome import Adapter, Intervention
from pipeline.rungs import EraseRung
from pipeline.settings import digest
from pipeline.steer.erase_adapter import EraseAdapter, load_adapter, read_settings
from pipeline.steer.erase_tokens import overlap
from pipeline.steer.filters import rollback_step
from pipeline.steer.guidance import FOCUSED, FocusedGuidance, focus_mask

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning
    from pipeline.model.interface import DiffusionModel

TYPICAL = 0.3  # overlap from which two places of a training set count as one


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """The tokens in one sample's negative conditioning, and the low-rank weights with them.

    Attributes:
        tokens: names and places, in order; none where marks were hidden from the weights' loss.
        vectors: of the tokens, float32 (N, D).
        lowrank: low-rank weights for the sample's rows, each with its strength.
        adapters: digests of the adapters that act.
        strength: how far the negative conditioning goes from the plain one to the one with tokens; 1 all the way.
        places: the places of the marks, in fractions; a rung's ``focus`` acts there.
    """

    tokens: tuple[str, ...]
    vectors: torch.Tensor
    lowrank: tuple[tuple[LowRank, float], ...] = ()
    adapters: tuple[str, ...] = ()
    strength: float = 1.0
    places: tuple[Box, ...] = ()

    def same_as(self, other: Erasure) -> bool:
        """Whether the other one has the same tokens, strength and adapters."""
        equally_strong = self.strength == other.strength or not self.tokens  # the strength is that of the tokens
        return equally_strong and (self.tokens, self.adapters) == (other.tokens, other.adapters)


@dataclass(frozen=True)
class Erasers:
    """The adapters of a run, each with its configuration; the tokens of earlier ones come first.

    Attributes:
        loaded: the adapters.
        spared: concepts that are not erased, because the sample's prompt asks for them: no token names them, and an adapter
            without tokens that would erase them with the others is left out. Weights for *data removal* that act on every
            sample stay: without them the run would draw something else.
    """

    loaded: tuple[tuple[EraseAdapter, AdapterConfig], ...] = ()
    spared: frozenset[str] = frozenset()

    def sparing(self, concepts: Collection[str]) -> Erasers:
        """The same adapters, with these concepts spared."""
        return replace(self, spared=frozenset(concepts)) if concepts else self

    def _left_out(self, adapter: EraseAdapter, config: AdapterConfig) -> bool:
        if adapter.vocabulary is not None or self.spared.isdisjoint(adapter.concepts):
            return False
        return adapter.removal == "model" or not _always(adapter, config)

    @property
    def always_lowrank(self) -> tuple[tuple[LowRank, float], ...]:
        """Low-rank weights in force for every sample."""
        acting = ((a, c) for a, c in self.loaded if _always(a, c) and not self._left_out(a, c))
        return tuple((a.lowrank, c.weight) for a, c in acting if a.lowrank is not None)

    @property
    def concepts(self) -> set[str]:
        return {concept for adapter, _ in self.loaded for concept in adapter.concepts}

    def standing(self, room: int) -> Erasure | None:
        """The tokens in every sample's negative conditioning, of adapters whose ``tokens`` are "always"; None: none."""
        marks = {
            id(adapter): {
                concept: typical(adapter.places.get(concept, ())) for concept in adapter.concepts if concept not in self.spared
            }
            for adapter, config in self.loaded
            if config.tokens == "always" and adapter.vocabulary is not None
        }
        return self._erasure(marks, room, 1.0, flagged=False) if marks else None

    def recorded(self, standing: Erasure | None) -> tuple[Adapter, ...]:
        """As every audit row names them; tokens are those in every sample's negative conditioning."""
        return tuple(
            Adapter(
                name=adapter.name, kind=f"erase-{adapter.removal}", digest=adapter.digest, weight=config.weight,
                tokens=standing.tokens if standing is not None and config.tokens == "always" else (),
            )
            for adapter, config in self.loaded
            if not self._left_out(adapter, config)
        )  # fmt: skip

    def erasure_for(
        self, found: Mapping[str, Sequence[Box]], room: int, strength: float = 1.0, *, usual: bool = False
    ) -> Erasure | None:
        """The erasure for some marks; None where no adapter has any of them.

        Args:
            found: concept → boxes in fractions.
            room: the most tokens.
            strength: see :class:`Erasure`.
            usual: also name the places of such marks in the training set; the places found come first.
        """
        if not self.concepts & set(found):
            return None

        def places(adapter: EraseAdapter, concept: str) -> list[Box]:
            known = typical(adapter.places.get(concept, ()))
            return [*found[concept], *(known if usual else ())] if concept in found else known

        marks = {
            id(adapter): {
                concept: places(adapter, concept)
                for concept in adapter.concepts
                if (concept in found or config.tokens == "always") and concept not in self.spared
            }
            for adapter, config in self.loaded
        }
        erasure = self._erasure({key: some for key, some in marks.items() if some}, room, strength, flagged=True)
        boxes = dict.fromkeys(box for one in marks.values() for concept in one if concept in found for box in one[concept])
        return replace(erasure, places=tuple(boxes)) if erasure is not None and erasure.tokens else erasure

    def _erasure(
        self, marks: Mapping[int, Mapping[str, Sequence[Box]]], room: int, strength: float, *, flagged: bool
    ) -> Erasure | None:
        import torch

        tokens: list[str] = []
        vectors: list[torch.Tensor] = []
        lowrank: list[tuple[LowRank, float]] = []
        digests: list[str] = []
        for adapter, config in self.loaded:
            if id(adapter) not in marks or self._left_out(adapter, config):
                continue
            mine = adapter.vocabulary.phrase(marks[id(adapter)], room=room - len(tokens)) if adapter.vocabulary else ()
            weighs = flagged and adapter.lowrank is not None and not _always(adapter, config)
            if not mine and not (weighs and adapter.vocabulary is None):
                continue
            tokens += mine
            vectors += [adapter.embed(mine)] if mine else []
            digests.append(adapter.digest)
            if weighs and adapter.lowrank is not None:
                lowrank.append((adapter.lowrank, config.weight))
        if not digests:
            return None
        return Erasure(
            tokens=tuple(tokens),
            vectors=torch.cat(vectors) if vectors else torch.zeros(0, 0),
            lowrank=(*self.always_lowrank, *lowrank),
            adapters=tuple(digests),
            strength=strength,
        )


def _always(adapter: EraseAdapter, config: AdapterConfig) -> bool:
    """Whether the adapter's low-rank weights act on every sample."""
    return config.lowrank == "always" or (config.lowrank == "auto" and adapter.removal == "data")


def typical(places: Sequence[Box]) -> list[Box]:
    """The places that represent the others: each one overlaps none of those before it."""
    kept: list[Box] = []
    for box in places:
        if all(overlap(box, other) < TYPICAL for other in kept):
            kept.append(box)
    return kept


def open_erasers(configured: Sequence[AdapterConfig], model: DiffusionModel, *, base: Path) -> Erasers:
    """Load the run file's adapters, or those that ship for this model.

    Raises:
        ModelError: an adapter is missing, broken or for another model.
        IntegrityError: its weights are not the ones it was saved with.
        ConfigError: an entry asks for low-rank weights or for tokens, and its adapter has none.
    """
    loaded = []
    for folder, config in adapter_folders(configured, model.digest, base=base):
        adapter = load_adapter(folder, model.digest)
        if adapter.lowrank is None and config.lowrank == "flagged":
            raise ConfigError("has no low-rank weights", where=f"adapter {config.path}: lowrank", fix="Leave the key out")
        if adapter.vocabulary is None and config.tokens == "always":
            fix = 'Leave the key out; lowrank = "always" has its weights act on every sample'
            raise ConfigError("has no tokens", where=f"adapter {config.path}: tokens", fix=fix)
        if adapter.lowrank is not None:
            adapter.lowrank.products(model.network)  # whether they fit is known before anything is drawn
        loaded.append((adapter, config))
    return Erasers(tuple(loaded))


def adapter_folders(configured: Sequence[AdapterConfig], model_digest: str, *, base: Path) -> list[tuple[Path, AdapterConfig]]:
    """Folder and settings of every eraser of a run."""
    named = [(found.path, found.config) for found in look_at_adapters(configured, base=base) if found.kind == "eraser"]
    if named:
        return named
    shipped = sorted(path.parent for path in SHIPPED.glob("*/adapter.json"))
    fitting = [folder for folder in shipped if read_settings(folder)[0]["base_digest"] == model_digest]
    own = [folder for folder in fitting if read_settings(folder)[0]["removal"] == "model"]  # others are for sets of their own
    return [(folder, AdapterConfig(path=str(folder))) for folder in own]


def adapters_digest(configured: Sequence[AdapterConfig], model_digest: str, *, base: Path) -> str:
    """Digest of a run's adapters, without loading them; empty when there are none."""
    erasers = [read_settings(folder)[1] for folder, _ in adapter_folders(configured, model_digest, base=base)]
    others = [found.digest for found in look_at_adapters(configured, base=base) if found.kind != "eraser"]
    return digest([*erasers, *others]) if erasers or others else ""


def negative_conditioning(
    model: DiffusionModel, text: str, erasure: Erasure | None, context_of: Callable[[str], Conditioning]
) -> Conditioning:
    """The conditioning of a negative prompt with the words of an erasure behind it."""
    plain = context_of(text)
    if erasure is None or not erasure.tokens:
        return plain
    full = model.encode_words(text, erasure.vectors)
    return full if erasure.strength == 1 else plain.towards(full, erasure.strength)


def erase(
    engine: Engine, last: Trajectory, rung: EraseRung, erasure: Erasure, negative: Conditioning | None, *, seed: int
) -> tuple[Trajectory, Intervention]:
    """The next trajectory of a sample on which a mark was found, from the same noise, and what to record.

    The push of the failed attempt away from references stays in force: erasing a mark must not bring back a copy.

    Args:
        engine: gives the sample's sampler and the noise of the seed.
        last: the finished trajectory of the failed attempt.
        rung: its ``focus`` guides more strongly at the erasure's places.
        erasure: what to leave out.
        negative: :func:`negative_conditioning` of it; None where the model is drawn without guidance.
        seed: in force.

    Raises:
        ConfigError: the model is drawn without guidance, which has no negative conditioning, and there are tokens for it.
    """
    if last.negative is None and erasure.tokens:
        advice = engine.how_to_guide(last.guidance_scale, len(engine.sampler_of(last)))
        fix = f"{advice}, or leave the rung out" if advice else "Leave the rung out: this model never has a negative row"
        raise ConfigError("the sample is drawn without a negative row", where='mark_ladder, kind = "erase"', fix=fix)
    guide = None
    if rung.focus != 1 and erasure.places and last.negative is not None:
        shape = (last.latent.shape[-2], last.latent.shape[-1])
        guide = FocusedGuidance(
            scale=engine.guidance_of(last), focus=rung.focus, mask=focus_mask(erasure.places, shape),
            until_step=round(FOCUSED * len(engine.sampler_of(last))), combine=engine.model.combine,
        )  # fmt: skip
    begin = rollback_step(len(engine.sampler_of(last)), 1, resume_fraction=rung.resume_fraction)
    if last.push is not None or last.nudge is not None:  # steered away from a copy: that stays, from the step it began at
        begin = max(begin, last.rows_from[0][0] if last.rows_from else 0)
    begin = max((step for step in last.ring if step <= begin), default=0)
    latent = last.ring[begin] if begin in last.ring else engine.noise_like(last, seed)
    earlier = {step: z for step, z in last.ring.items() if step < begin}
    again = Trajectory(
        tag=last.tag,
        latent=latent,
        step=begin,
        context=last.context,
        negative=negative,
        push=last.push,
        nudge=last.nudge,
        guide=guide,
        ring=earlier,
        lowrank=erasure.lowrank,
    )
    return again, Intervention(kind="erase", strength=erasure.strength, tokens=erasure.tokens, adapters=erasure.adapters)
