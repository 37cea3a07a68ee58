"""A probe of steered samples: what steering makes of a sample is looked at in mid-flight, and never accepted there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guards.base import Finding
from guards.copies import Examination
from index.errors import ConfigError
from index.reference import Match
from pipeline.audit.records import attempt_table
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.moderate import moderate
from pipeline.outcome import Outcome, Request, Sample
from pipeline.policy import EarlyPolicy, Policy
from pipeline.rungs import NudgeRung
from pipeline.runtime import Runtime
from pipeline.settings import from_dict

from .loop import REF, Index, sha

LADDER = (NudgeRung(step_size=0.1), NudgeRung(step_size=0.2, renew=True), NudgeRung(step_size=0.3, renew=True))
NEVER = EarlyPolicy(enabled=True, signal="latent", probes=(0.2,), threshold=1.0)  # no unsteered sample is caught
LOOK = replace(NEVER, steered=(0.6,))
Flags = Callable[[np.ndarray, Sequence[str]], bool]


class Copies:
    """A copies guard that flags what a test names: by the picture and its own references; an unsteered one has none."""

    k = 3
    embedder = SimpleNamespace(embedder_id="embedder")

    def __init__(self, flags: Flags) -> None:
        self.index, self.flags, self.looks = Index(), flags, 0

    def likeness(self, picture: np.ndarray, own: Sequence[str]) -> tuple[Match, float] | None:
        self.looks += 1
        return (Match(ref_id=REF, title="grey", similarity=0.6, confirm=0.6), 0.5) if self.flags(picture, own) else None

    def examine(self, pictures: np.ndarray, own: Sequence[Sequence[str]] = ()) -> list[Examination]:
        return [examination(0.95 if self.flags(*one) else 0.1) for one in zip(pictures, own, strict=True)]


def examination(score: float) -> Examination:
    finding = Finding(guard="copies", version="1", category="copy.protected", score=score, threshold=0.8, ref_id=REF)
    return Examination(np.ones(4, np.float32) / 2, (Match(ref_id=REF, title="grey", similarity=score),), (finding,))


def steered(_: np.ndarray, own: Sequence[str]) -> bool:
    """Every picture, steered or not."""
    return True


def unsteered(_: np.ndarray, own: Sequence[str]) -> bool:
    return not own


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def drawn(model: DiffusionModel, copies: Copies, early: EarlyPolicy, ladder: tuple[NudgeRung, ...] = LADDER) -> list[Sample]:
    config = RunConfig(prompts="-", index="-", generation=GenerationConfig(steps=5, rows=8))
    requests = [Request(row_no=i, key=f"key-{i}", prompt=f"a red apple {i}", seed=i) for i in range(3)]
    policy = Policy(ladder=ladder, early=early)
    opened = Runtime(config, policy, model, copies=copies, index=copies.index, calibration_id="c", threshold=0.8)  # type: ignore[arg-type]
    return sorted(moderate(opened, requests), key=lambda s: s.request.row_no)


def test_what_returns_to_its_reference_takes_the_next_rung_at_once(model: DiffusionModel) -> None:
    """The last rung's picture alone is finished, and decided about: no probe can steer it any more."""
    for sample in drawn(model, Copies(steered), LOOK):
        assert sample.outcome is Outcome.REJECTED
        first, last = sample.attempts
        assert (first.denoiser_evals, first.caught, first.intervention) == (5, (), None)
        assert [(c.step, c.signal, c.score, c.threshold, c.denoiser_evals) for c in last.caught] == [
            (3, "picture", 0.6, 0.5, 3)
        ] * 2
        assert [match.ref_id for match in last.caught[0].nearest] == [REF]
        assert last.intervention is not None and last.intervention.kind == "nudge"
        assert last.denoiser_evals == 3 + 3 + 5  # instead of 5 + 5 + 5
    finished = drawn(model, Copies(steered), NEVER)
    assert [s.denoiser_evals for s in finished] == [20] * 3 and [len(s.attempts) for s in finished] == [4] * 3


def test_what_stays_away_keeps_every_byte(model: DiffusionModel) -> None:
    looked, plain = Copies(unsteered), Copies(unsteered)
    probed, before = drawn(model, looked, LOOK), drawn(model, plain, NEVER)
    assert (looked.looks, plain.looks) == (3, 0)  # each steered sample once, and no unsteered one
    for one, other in zip(probed, before, strict=True):
        assert one.outcome is other.outcome is Outcome.ACCEPTED_AFTER_STEERING
        assert [a.pixel_sha256 for a in one.attempts] == [a.pixel_sha256 for a in other.attempts]
        assert one.denoiser_evals == other.denoiser_evals == 10 and not any(a.caught for a in one.attempts)


def test_one_sample_caught_leaves_its_mates_bytes(model: DiffusionModel) -> None:
    alone = drawn(model, Copies(unsteered), NEVER)
    returning: set[str] = set()

    def second_once(picture: np.ndarray, own: Sequence[str]) -> bool:
        """Unsteered pictures, and the first that a probe sees."""
        if own and not returning:
            returning.add(sha(picture))
        return not own or sha(picture) in returning

    done = drawn(model, Copies(second_once), LOOK)
    hit = [s for s in done if s.attempts[1].caught]
    assert len(hit) == 1 and hit[0].outcome is Outcome.ACCEPTED_AFTER_STEERING
    assert [s.attempts[1].pixel_sha256 for s in done if s is not hit[0]] == [
        s.attempts[1].pixel_sha256 for s in alone if s.request.key != hit[0].request.key
    ]


def test_a_look_that_fails_costs_no_picture_and_is_named(model: DiffusionModel) -> None:
    class Broken(Copies):
        def likeness(self, picture: np.ndarray, own: Sequence[str]) -> tuple[Match, float] | None:
            raise RuntimeError("the index is gone")

    before = drawn(model, Copies(unsteered), NEVER)
    done = drawn(model, Broken(unsteered), LOOK)
    assert [s.attempts[1].pixel_sha256 for s in done] == [s.attempts[1].pixel_sha256 for s in before]
    assert [s.attempts[1].skipped_guards for s in done] == [("early: RuntimeError: the index is gone",)] * 3


def test_the_budget_holds_for_it_too(model: DiffusionModel) -> None:
    """What a catch would send into an attempt that the budget has no room for is finished instead."""
    config = RunConfig(prompts="-", index="-", generation=GenerationConfig(steps=5, rows=8))
    copies = Copies(steered)
    policy = Policy(ladder=LADDER, early=LOOK, max_evals=12.0)
    opened = Runtime(config, policy, model, copies=copies, index=copies.index, calibration_id="c", threshold=0.8)  # type: ignore[arg-type]
    (done,) = moderate(opened, [Request(row_no=0, key="key", prompt="a red apple", seed=0)])
    assert done.denoiser_evals == 10 and not any(a.caught for a in done.attempts)


def test_the_row_names_what_it_was_caught_by(model: DiffusionModel, context: Callable[..., object]) -> None:
    rows = attempt_table(drawn(model, Copies(steered), LOOK)[:1], context(), "0").to_pylist()  # type: ignore[arg-type]
    assert [[c["signal"] for c in row["caught"]] for row in rows] == [[], ["picture", "picture"]]


def test_it_needs_early_detection() -> None:
    with pytest.raises(ConfigError, match=r"early\.steered.*has no effect"):
        from_dict(Policy, {"early": {"steered": [0.5]}}, where="p")
    with pytest.raises(ConfigError, match=r"early\.steered no\. 1"):
        from_dict(Policy, {"early": {"enabled": True, "steered": [50]}}, where="p")
    assert from_dict(Policy, {"early": {"enabled": True, "steered": [0.5]}}, where="p").early.steered == (0.5,)
