"""Pictures pushed from a reference from their first step on, from the same noise as unsteered ones; kept part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.lab.bench.negtome_arms import Arm

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Trajectory
    from pipeline.steer.negtome import NegToMe

FEATURES = 3 << 29  # bytes of references' token features that are kept between forms


@dataclass(frozen=True)
class Ground:
    """Captions on which forms are measured.

    Attributes:
        name: in the tables.
        captions: each is drawn once with every seed.
        seeds: no other bench draws with them.
        protected: a picture's reference is the protected drawing, not the nearest one of its subject.
    """

    name: str
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    protected: bool = False

    @property
    def parts(self) -> list[tuple[int, ...]]:
        """Seeds that are drawn and kept together: a call has room for eight pictures, and few captions do not fill it."""
        return [self.seeds] if len(self.captions) <= 10 else [(seed,) for seed in self.seeds]

    def pictures(self, seeds: Sequence[int]) -> list[tuple[int, str, int]]:
        """(the caption's number, the caption, the picture's seed) of every picture of a part."""
        return [(i, caption, 1000 * seed + i) for seed in seeds for i, caption in enumerate(self.captions)]


class Drawer:
    """The opened model, embedder and judges, and the vendors' drawings.

    Args:
        folder: for the index.
        work: what was drawn is kept here.
        world: the built world.
        model: a diffusers folder that draws in place of the denoiser that ships.
    """

    def __init__(self, folder: Path, work: Path, world: Path, model: Path | None) -> None:
        from jobs.lab.bench.drawing import open_runtime, pictures_of
        from jobs.lab.judges.judges import Judges
        from jobs.lab.world.catalogue import concepts
        from jobs.lab.world.pictures import load
        from pipeline.steer.features import FeatureCache

        self.runtime, self.judges, self.work = open_runtime(folder, "observe", model=model), Judges.open(), work
        self.runtime.engine.features = FeatureCache(FEATURES)
        pixels, _, names = load(world)
        icons = {c.icon: c.caption for c in concepts() if c.protected_vendor is None and c.prone_to is None}
        own, protected = [i for i, name in enumerate(names) if name in icons], pictures_of(self.runtime)
        self.pixels = np.concatenate([pixels[own], np.stack(list(protected.values()))])
        self.subjects = np.array([icons[names[i]] for i in own] + list(protected))
        self.shielded = np.arange(len(self.pixels)) >= len(own)
        assert self.runtime.copies is not None
        self.embed = self.runtime.copies.embedder.images
        self.vectors, self.latents = self.embed(self.pixels), self.runtime.model.encode(self.pixels)

    def part(self, ground: Ground, seeds: tuple[int, ...], arm: Arm | None, *, control: bool = False) -> dict[str, np.ndarray]:
        """What is measured of one form's pictures of every caption with some seeds: kept, or drawn now.

        Args:
            ground, seeds: which pictures.
            arm: the form; None: unsteered.
            control: pushed from a random reference.

        Returns:
            ``reference`` (N,), its position among the drawings; of the picture ``cosine`` and ``judge`` (N,), its similarity to
            that reference and the probability of a copy of it; ``first five`` and ``first`` (N,): its caption's place;
            ``picture`` uint8 (N, S, S, 3).
        """
        stated = [self.runtime.model.digest, arm and arm.settings, ground.protected, ground.captions, seeds, control]
        place = self.work / f"{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:20]}.npz"
        if not place.exists():
            plain = self.part(ground, seeds, None) if arm else None
            found = self._measured(ground, seeds, arm, None if plain is None else plain["reference"], control)
            partial = place.with_suffix(".part.npz")
            np.savez_compressed(partial, **found)  # type: ignore[arg-type]
            partial.rename(place)
        with np.load(place) as kept:
            return {name: kept[name] for name in kept.files}

    def _measured(
        self, ground: Ground, seeds: tuple[int, ...], arm: Arm | None, references: np.ndarray | None, control: bool
    ) -> dict[str, np.ndarray]:
        todo = ground.pictures(seeds)
        captions = [caption for _, caption, _ in todo]
        if arm is None:
            pushes: list[NegToMe | None] = [None] * len(captions)
        else:
            assert references is not None
            other = [self.random(ground, i, seed) for i, _, seed in todo] if control else references
            self._push(arm, sorted({int(i) for i in other}))  # all at once: calls are full, and each finds its own kept
            pushes = [self._push(arm, [int(i)]) for i in other]
        pictures = self._drawn(captions, [seed for _, _, seed in todo], pushes)
        vectors = self.embed(pictures)
        if references is None:
            references = np.array([self.nearest(ground, caption, v) for caption, v in zip(captions, vectors, strict=True)])
        return {
            "reference": references,
            "cosine": (vectors * self.vectors[references]).sum(1),
            "judge": self.judges.copies(pictures, self.pixels[references]),
            "first five": self.judges.among_first(pictures, captions),
            "first": self.judges.among_first(pictures, captions, 1),
            "picture": pictures,
        }

    def nearest(self, ground: Ground, caption: str, vector: np.ndarray) -> int:
        """The drawing of a caption's subject that a picture's vector (D,) is nearest to."""
        own = np.flatnonzero((self.subjects == caption) & (self.shielded == ground.protected))
        return int(own[np.argmax(self.vectors[own] @ vector)])

    def random(self, ground: Ground, number: int, seed: int) -> int:
        """A drawing of another subject on the same ground: the same one in every form."""
        other = np.flatnonzero((self.subjects != ground.captions[number]) & (self.shielded == ground.protected))
        return int(np.random.default_rng(seed).choice(other))

    def _push(self, arm: Arm, references: Sequence[int]) -> NegToMe:
        """A form's push from some drawings, with their features."""
        from pipeline.engine.packed_call import reference_latents
        from pipeline.respond.negtome import reference_call
        from pipeline.steer.features import with_features
        from pipeline.steer.masks import foreground
        from pipeline.steer.negtome import NegToMe

        engine, model = self.runtime.engine, self.runtime.model
        assert engine.features is not None
        stated = arm.settings
        latents = tuple(self.latents[i] for i in references)
        noises = tuple(engine.initial_noise(i) for i in references) if stated.pop("noised") else None
        masks = tuple(foreground(z, self.runtime.references.centre) for z in latents) if stated.pop("masked") else None
        push = NegToMe(
            latents=latents, noises=noises, masks=masks, context=self.runtime.negative_context_of(""),
            from_step=stated.pop("first"), until_step=stated.pop("end"), **stated,
        )  # fmt: skip
        sampler = engine.sampler
        return with_features(
            push, [step for step in range(len(sampler)) if push.acts_at(step)], cache=engine.features, model=model.digest,
            of_steps=len(sampler), rows=engine.rows, places=model.sites(),
            noised=lambda settings, step: reference_latents(sampler, settings, step),
            denoise=lambda *rows: reference_call(engine, sampler, *rows),
        )  # fmt: skip

    def _drawn(self, captions: Sequence[str], seeds: Sequence[int], pushes: Sequence[NegToMe | None]) -> np.ndarray:
        import torch

        from pipeline.engine.trajectory import Trajectory

        engine, empty = self.runtime.engine, self.runtime.context_of("")
        drawn: list[Trajectory] = [
            Trajectory(
                tag=i, latent=engine.initial_noise(seeds[i]), step=0, context=self.runtime.context_of(caption), negative=empty,
                seed=seeds[i], push=pushes[i],
            )
            for i, caption in enumerate(captions)
        ]  # fmt: skip
        done: dict[int, torch.Tensor] = engine.finish(drawn)
        return self.runtime.model.decode(torch.stack([done[i] for i in range(len(captions))]))
