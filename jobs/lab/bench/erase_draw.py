"""Model, detectors and judges of the eraser's bench, opened once, and its pictures, kept in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Box, Finding
from index.fingerprint import pixel_digest
from jobs.lab.bench.measures import Measure, clustered
from jobs.lab.judges.own_marks import KINDS

if TYPE_CHECKING:
    import torch

    from guards.marks import MarksGuard
    from jobs.lab.judges.judges import Judges
    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import GuideHook
    from pipeline.model.conditioning import Conditioning
    from pipeline.model.interface import DiffusionModel
    from pipeline.respond.marks import Erasure
    from pipeline.steer.erase_adapter import EraseAdapter

STEPS, GUIDANCE, ROWS = 20, 3.0, 16
WORDS = "watermark, QR code, text"  # the control: the names that a user would write
SLD_WARMUP = 7 / 50  # of the steps; the published "strong" setting
Found = list[dict[str, list[Any]]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to draw.

    Attributes:
        captions, seeds: of each.
        negatives, contexts: conditionings of each.
        lowrank: weights for all of them, with strengths.
        places: boxes of each picture in which guidance is ``focus`` times as strong; empty: none.
        safe: Safe Latent Diffusion against :data:`WORDS`.
    """

    captions: list[str]
    seeds: list[int]
    negatives: list[Conditioning]
    contexts: list[Conditioning]
    lowrank: tuple[Any, ...] = ()
    places: Sequence[Sequence[Box]] = ()
    focus: float = 1.0
    safe: bool = False


class Bench:
    """Model, detectors and judges; pictures are kept in ``work``.

    Attributes:
        rungs: the default policy's erasing answers to a mark.
    """

    def __init__(self, work: Path, world: Path) -> None:
        import torch

        from guards.marks import MarksGuard
        from jobs.lab.judges.judges import Judges
        from jobs.run.plan import read_policy
        from pipeline.config import ModelConfig
        from pipeline.model.load import load_model
        from pipeline.rungs import EraseRung

        torch.use_deterministic_algorithms(True)
        self.work, self.world = work, world
        self.model: DiffusionModel = load_model(ModelConfig())
        self.guard: MarksGuard = MarksGuard()
        self.judges: Judges = Judges.open()
        self.empty = self.model.encode_prompts([""])[0]
        self._seen: dict[tuple[str, str], Any] = {}
        self.rungs = [rung for rung in read_policy("default", Path()).mark_ladder if isinstance(rung, EraseRung)]

    def draw(self, job: Job) -> np.ndarray:
        """uint8 (N, H, W, 3), in the job's order; drawn once, afterwards read from the folder."""
        import torch

        from pipeline.engine.engine import Engine
        from pipeline.engine.trajectory import Trajectory

        if not job.captions:
            width, height = self.model.decode_size()
            return np.zeros((0, height, width, 3), np.uint8)
        path = self.work / "drawn" / f"{self._key(job)[:24]}.npz"
        if path.exists():
            return np.load(path)["pictures"]  # type: ignore[no-any-return]
        engine = Engine(self.model, rows=ROWS, steps=STEPS, guidance_scale=GUIDANCE)
        done = engine.finish(
            [
                Trajectory(
                    tag=i,
                    latent=engine.initial_noise(s),
                    step=0,
                    context=job.contexts[i],
                    negative=job.negatives[i],
                    seed=s,
                    lowrank=job.lowrank,
                    guide=self._guide(engine, job, i),
                )
                for i, s in enumerate(job.seeds)
            ]
        )
        pictures = self.model.decode(torch.stack([done[i] for i in range(len(job.seeds))]))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path.with_suffix(".tmp.npz"), pictures=pictures)
        path.with_suffix(".tmp.npz").rename(path)
        return pictures

    def _key(self, job: Job) -> str:
        parts = [self.model.digest, STEPS, GUIDANCE, ROWS, job.captions, job.seeds]
        if job.focus != 1 and job.places:
            parts += [job.focus, [list(map(tuple, boxes)) for boxes in job.places]]
        parts += [("strength", strength) for _, strength in job.lowrank if strength != 1]
        key = hashlib.sha256(repr(tuple(parts + ["SLD"] * job.safe)).encode())
        weights = (w for low, _ in job.lowrank for both in low.pairs.values() for w in both)
        conditionings = (part for one in (*job.negatives, *job.contexts) for part in one.parts)
        for tensor in (*conditionings, *weights):
            key.update(tensor.float().numpy().tobytes())
        return key.hexdigest()

    def _guide(self, engine: Engine, job: Job, number: int) -> GuideHook | None:
        """The job's guidance, in place of the engine's own."""
        from jobs.lab.steering.safe_guidance import SafeGuidance
        from pipeline.steer.guidance import FOCUSED, FocusedGuidance, focus_mask

        if job.safe:
            unsafe = self.model.encode_prompts([WORDS])

            def unsafe_of(latent: torch.Tensor, step: int) -> torch.Tensor:
                import torch

                return self.model.denoise(latent[None], torch.tensor([engine.sampler.timesteps[step]]), unsafe)[0]

            def noise_of(latent: torch.Tensor, raw: torch.Tensor, step: int) -> torch.Tensor:
                return engine.sampler.clean(latent, raw, step)[1]

            return SafeGuidance(
                scale=GUIDANCE,
                unsafe_of=unsafe_of,
                noise_of=noise_of,
                warmup=round(SLD_WARMUP * STEPS),
                combine=self.model.combine,
            )
        if job.focus != 1 and job.places and job.places[number]:
            shape = (self.model.latent_shape[1], self.model.latent_shape[2])
            return FocusedGuidance(
                scale=GUIDANCE, focus=job.focus, mask=focus_mask(job.places[number], shape), until_step=round(FOCUSED * STEPS),
                combine=self.model.combine,
            )  # fmt: skip
        return None

    def job(
        self, captions: list[str], seeds: list[int], negatives: Sequence[Conditioning], lowrank: Any = None, **more: Any
    ) -> Job:
        contexts = [self.model.encode_prompts([caption])[0] for caption in captions]
        return Job(
            captions=captions,
            seeds=seeds,
            negatives=list(negatives),
            contexts=contexts,
            lowrank=((lowrank, 1.0),) if lowrank is not None else (),
            **more,
        )

    def _looked(self, what: str, pictures: np.ndarray, look: Callable[[np.ndarray], Sequence[Any]]) -> list[Any]:
        """What ``look`` finds on each picture; arms share most of their pictures, and each picture is looked at once."""
        keys = [(what, pixel_digest(picture)) for picture in pictures]
        new = list({key: i for i, key in enumerate(keys) if key not in self._seen}.values())
        if new:
            self._seen.update(zip([keys[i] for i in new], look(pictures[new]), strict=True))
        return [self._seen[key] for key in keys]

    def found(self, pictures: np.ndarray) -> Found:
        """Concept → boxes that the pipeline's detector finds on each picture."""
        from pipeline.steer.erase_tokens import marks_found

        return [marks_found(findings) for findings in self._looked("found", pictures, self.guard.check)]

    def marks(self, pictures: np.ndarray) -> np.ndarray:
        """The judge's (N, 3), see :meth:`Judges.marks`."""
        return np.array(self._looked("marks", pictures, lambda some: list(self.judges.marks(some)))).reshape(-1, len(KINDS))

    def alarms(self, kind: str) -> float:
        """The share of the world's clean drawings, smeared, on which the judge sees a mark of this kind, or ``any``."""
        return float(self.judges.settings["marks"]["measured"]["world_clean_smeared"][kind][0])

    def marked(self, pictures: np.ndarray) -> np.ndarray:
        """Whether the judge finds a mark of any kind, bool (N,)."""
        return np.asarray(np.max(self.marks(pictures) >= 0.5, axis=1))

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """The judge's (N, 1280), see :meth:`Judges.features`."""
        return np.array(self._looked("features", pictures, lambda some: list(self.judges.features(some))))

    def among_first(self, pictures: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Whether each caption is among its picture's likeliest five, see :meth:`Judges.among_first`."""
        scores = self._looked("captions", pictures, lambda some: list(self.judges.captions(some)))
        at = {name.replace("-", " "): i for i, name in enumerate(self.judges.names)}
        return np.array([(row > row[at[caption]]).sum() < 5 for row, caption in zip(scores, captions, strict=True)], bool)

    def yolo(self, pictures: np.ndarray) -> list[list[Finding]] | None:
        """The independent YOLO detector's findings; None without its extra."""
        from guards.yolo import YoloMarksGuard
        from index.errors import GuardUnavailable

        try:
            return self._looked("yolo", pictures, YoloMarksGuard().check)
        except GuardUnavailable:
            return None

    def erasure(self, adapter: EraseAdapter, marks: Mapping[str, Sequence[Any]], *, usual: bool) -> Erasure | None:
        """The adapter's tokens for these marks; with ``usual``, also for the usual places."""
        from pipeline.config import AdapterConfig
        from pipeline.respond.marks import Erasers

        return Erasers(((adapter, AdapterConfig(path=adapter.name)),)).erasure_for(marks, self.model.word_room(), usual=usual)

    def negative(self, adapter: EraseAdapter, marks: Mapping[str, Sequence[Any]], *, usual: bool = False) -> Conditioning:
        """The empty negative prompt ⊕ the adapter's tokens for these marks."""
        return self._encoded(self.erasure(adapter, marks, usual=usual))

    def _encoded(self, erasure: Erasure | None) -> Conditioning:
        return self.empty if erasure is None or not erasure.tokens else self.model.encode_words("", erasure.vectors)

    def by_rung(self, adapter: EraseAdapter, found: Found, rung: int = 0) -> tuple[list[Conditioning], dict[str, Any]]:
        """The adapter's part of a rung of the default policy: negatives, and a job's ``places`` and ``focus``."""
        usual = self.rungs[rung].places == "usual"
        erasures = [self.erasure(adapter, marks, usual=usual) for marks in found]
        negatives = [self._encoded(one) for one in erasures]
        return negatives, {"places": [() if one is None else one.places for one in erasures], "focus": self.rungs[rung].focus}

    def standing(self, adapter: EraseAdapter) -> Conditioning:
        """The empty negative prompt ⊕ the tokens of the places that marks had in the adapter's training set."""
        from pipeline.config import AdapterConfig
        from pipeline.respond.marks import Erasers

        erasers = Erasers(((adapter, AdapterConfig(path=adapter.name, tokens="always")),))
        return self._encoded(erasers.standing(self.model.word_room()))

    def shown(self, pictures: np.ndarray) -> np.ndarray:
        """Encoded and decoded by the autoencoder: what a perfect denoiser would give."""
        return self.model.decode(self.model.encode(pictures))


def marked_shares(b: Bench, name: str, pictures: np.ndarray, captions: Sequence[str]) -> list[Measure]:
    """The share of the pictures with any mark, by each installed detector."""
    own, judge = np.array([bool(marks) for marks in b.found(pictures)]), b.marked(pictures)
    seen = {"pipeline's detector": own, "judge": judge, "both agree": np.logical_and(own, judge)}
    if (yolo := b.yolo(pictures)) is not None:
        seen["YOLO"] = np.array([any(f.triggered for f in one) for one in yolo])
    return [clustered(f"{name}: marked, {detector}", found, captions) for detector, found in seen.items()]


def prefixed(part: str, measure: Measure) -> Measure:
    """The measure under its part of the table."""
    import dataclasses

    return dataclasses.replace(measure, id=f"{part} · {measure.id}")
