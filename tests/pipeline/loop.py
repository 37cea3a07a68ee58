"""What tests of the loop share: stand-ins for index and guards around a tiny random model, and a few requests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from guards.base import Finding
from guards.copies import Examination
from index.reference import Match, Reference
from pipeline.config import GenerationConfig, RunConfig
from pipeline.model.interface import DiffusionModel
from pipeline.moderate import moderate
from pipeline.outcome import Outcome, Request, Sample
from pipeline.policy import CopiesPolicy, Policy
from pipeline.rungs import NegToMeRung, NudgeRung
from pipeline.runtime import Runtime

LADDER = (NegToMeRung(token_threshold=0.0), NudgeRung(step_size=0.1, resume_fraction=0.4))
POLICY = Policy(copies=CopiesPolicy(), ladder=LADDER)
REF = hashlib.sha256(b"reference").hexdigest()[:16]


class Index:
    """Stands in for the reference index: one reference with a picture."""

    embedder_id, index_id = "embedder", "index"

    def references(self) -> list[Reference]:
        return [Reference(ref_id=REF, title="grey", content_sha256="", pdq="")]

    def in_force(self) -> Iterator[Reference]:
        return iter(self.references())

    matching = 1

    def __len__(self) -> int:
        return 1

    def ids(self) -> Iterator[str]:
        return iter([REF])

    def keeps(self, ref_id: str) -> bool:
        return True

    def picture(self, ref_id: str) -> np.ndarray:
        return np.full((16, 16, 3), 128, np.uint8)


class Copies:
    """A copies guard that flags the pictures a test names by digest."""

    def __init__(self, flags: Callable[[np.ndarray], bool], confirmed: bool = True, category: str = "copy.protected") -> None:
        self.flags, self.confirmed, self.category = flags, confirmed, category
        self.examined: list[tuple[str, list[str]]] = []  # picture, its own references

    def examine(self, pictures: np.ndarray, own: Sequence[Sequence[str]] = ()) -> list[Examination]:
        self.examined += [(sha(picture), list(ids)) for picture, ids in zip(pictures, own, strict=True)]
        out = []
        for picture in pictures:
            score = 0.95 if self.flags(picture) else 0.1
            finding = Finding(
                guard="copies",
                version="1",
                category=self.category,
                score=score,
                threshold=0.8,
                confirmed=self.confirmed,
                ref_id=REF,
            )
            out.append(
                Examination(np.ones(4, np.float32) / 2, (Match(ref_id=REF, title="grey", similarity=score),), (finding,))
            )
        return out


class Failing:
    name, version, categories = "marks", "1", ("mark.qr",)

    def __init__(self, bad: set[str]) -> None:
        self.bad = bad

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        if any(sha(p) in self.bad for p in pictures):
            raise ValueError("cannot look at this one")
        return [[Finding(guard="marks", version="1", category="mark.qr", score=0.0, threshold=0.5)] for _ in pictures]


def sha(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def runtime(model: DiffusionModel, copies: object, guards: Sequence[object] = (), policy: Policy = POLICY) -> Runtime:
    config = RunConfig(prompts="-", index="-", generation=GenerationConfig(steps=5, rows=8))
    return Runtime(
        config, policy, model, copies=copies, guards=guards, index=Index(), calibration_id="calibration", threshold=0.8
    )  # type: ignore[arg-type]


def requests(count: int = 5) -> list[Request]:
    return [Request(row_no=i, key=f"key-{i}", prompt=f"a red apple {i}", seed=i) for i in range(count)]


def by_key(samples: Sequence[Sample]) -> dict[str, Sample]:
    assert len({s.request.key for s in samples}) == len(samples)
    return {s.request.key: s for s in samples}


def undisturbed(model: DiffusionModel) -> dict[str, str]:
    """Key → digest of the picture, when no sample is flagged and nothing fails."""
    done = by_key(list(moderate(runtime(model, Copies(lambda _: False)), requests())))
    assert all(s.outcome is Outcome.ACCEPTED and len(s.attempts) == 1 for s in done.values())
    return {key: s.attempts[0].pixel_sha256 for key, s in done.items()}
