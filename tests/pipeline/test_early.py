"""Early detection on a tiny random model: a probe may only steer, and a sample that is not caught keeps every byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

from guards.base import Finding
from guards.copies import Examination
from index.errors import ConfigError, ModelError
from index.reference import Match, Reference
from index.shipped import STICKERS
from pipeline.audit.records import attempt_table
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.engine.trajectory import Trajectory
from pipeline.model.folder.digest import folder_digest
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.moderate import moderate
from pipeline.outcome import Caught, Outcome, Request, Sample
from pipeline.policy import CopiesPolicy, EarlyPolicy, Policy
from pipeline.respond.early import (
    HEAD,
    TURNED,
    EarlyDetector,
    Level,
    Thresholds,
    early_id,
    probe_steps,
    wanted,
)
from pipeline.respond.latent_head import LatentHead, make_network
from pipeline.respond.reference_latents import ReferenceLatents
from pipeline.rungs import NudgeRung, Rung
from pipeline.runtime import Runtime
from pipeline.settings import from_dict

from . import loop
from .loop import REF

LADDER = (NudgeRung(step_size=0.1), NudgeRung(step_size=0.2, resume_fraction=0.4))
DIM = 16  # of a head; a matrix product with fewer columns may have other last bits in another row, on some processors
EARLY = EarlyPolicy(enabled=True, signal="decode", probes=(0.2, 0.4), threshold=0.5, rollback=0.2)


class Embedder:
    """A picture's embedding is its mean colour, a caption's its length."""

    embedder_id, dim = "embedder", 3

    def images(self, pictures: np.ndarray) -> np.ndarray:
        means = pictures.reshape(len(pictures), -1, 3).mean(1) - 127.4
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        return np.array([[1.0, 0, 0] if "apple" in caption else [0, 1.0, 0] for caption in captions], np.float32)


class Index(loop.Index):
    """One reference; how near a vector comes to it is up to the test."""

    def __init__(self, near: Callable[[np.ndarray], bool]) -> None:
        self.near, self.searched = near, 0

    def references(self) -> list[Reference]:
        return [Reference(ref_id=REF, title="red apple", content_sha256="", pdq="")]

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Match]]:
        self.searched += len(embeddings)
        return [[Match(ref_id=REF, title="red apple", similarity=0.9 if self.near(v) else 0.1)] for v in embeddings]


class Copies:
    """A copies guard that never flags, or flags what a test names."""

    k = 3

    def __init__(self, near: Callable[[np.ndarray], bool], flags: Callable[[np.ndarray], bool] = lambda _: False) -> None:
        self.index, self.embedder, self.flags = Index(near), Embedder(), flags
        self.point = SimpleNamespace(threshold=0.8)

    def examine(self, pictures: np.ndarray, own: Sequence[Sequence[str]] = ()) -> list[Examination]:
        out = []
        for picture in pictures:
            score = 0.95 if self.flags(picture) else 0.1
            finding = Finding(guard="copies", version="1", category="copy.protected", score=score, threshold=0.8, ref_id=REF)
            out.append(
                Examination(np.ones(4, np.float32) / 2, (Match(ref_id=REF, title="red apple", similarity=score),), (finding,))
            )
        return out


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def runtime(model: DiffusionModel, copies: Copies, early: EarlyPolicy = EARLY, ladder: tuple[Rung, ...] = LADDER) -> Runtime:
    config = RunConfig(prompts="-", index="-", generation=GenerationConfig(steps=5, rows=8))
    policy = Policy(ladder=ladder, early=early)
    return Runtime(config, policy, model, copies=copies, index=copies.index, calibration_id="calibration", threshold=0.8)  # type: ignore[arg-type]


def requests(count: int = 4) -> list[Request]:
    return [Request(row_no=i, key=f"key-{i}", prompt=f"a red apple {i}", seed=i) for i in range(count)]


def by_key(samples: Sequence[Sample]) -> dict[str, Sample]:
    return {s.request.key: s for s in samples}


def sha(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def unprobed(model: DiffusionModel) -> dict[str, Sample]:
    return by_key(list(moderate(runtime(model, Copies(lambda _: True), EarlyPolicy()), requests())))


@pytest.fixture(scope="module")
def probed(model: DiffusionModel) -> tuple[dict[str, Sample], np.ndarray]:
    """Every sample is probed and none is caught; and the second sample at the first probe."""
    copies, seen = Copies(lambda _: False), []
    search = copies.index.search
    copies.index.search = lambda vectors, k: [seen.append(vectors.copy()), search(vectors, k)][1]  # type: ignore[func-returns-value, method-assign]
    return by_key(list(moderate(runtime(model, copies), requests()))), seen[0][1]


def only(vector: np.ndarray) -> Callable[[np.ndarray], bool]:
    return lambda v: bool(np.array_equal(v, vector))


def test_a_sample_that_is_not_caught_keeps_every_byte(
    model: DiffusionModel, unprobed: dict[str, Sample], probed: tuple[dict[str, Sample], np.ndarray]
) -> None:
    looked_at, vector = probed
    mate_caught = by_key(list(moderate(runtime(model, Copies(only(vector))), requests())))
    assert mate_caught["key-1"].attempts[0].caught and not mate_caught["key-2"].attempts[0].caught
    for key in unprobed:
        before, after = unprobed[key].attempts[0], looked_at[key].attempts[0]
        assert after.pixel_sha256 == before.pixel_sha256 and after.denoiser_evals == before.denoiser_evals == 5
        assert after.guidance_norms == before.guidance_norms and len(after.update_norms) == 5
        if key != "key-1":
            assert mate_caught[key].attempts[0].pixel_sha256 == before.pixel_sha256


def test_a_caught_sample_is_rolled_back_and_steered_and_pays_for_it(
    model: DiffusionModel, unprobed: dict[str, Sample], probed: tuple[dict[str, Sample], np.ndarray]
) -> None:
    done = by_key(list(moderate(runtime(model, Copies(only(probed[1]))), requests())))["key-1"]
    assert done.outcome is Outcome.ACCEPTED_AFTER_STEERING and len(done.attempts) == 1
    attempt = done.attempts[0]
    (caught,) = attempt.caught
    assert (caught.step, caught.signal, caught.score, caught.threshold) == (1, "decode", 0.9, 0.5)
    assert caught.denoiser_evals == 1 and attempt.resumed_from_step == 0 and attempt.denoiser_evals == 1 + 5
    assert attempt.intervention is not None
    assert (attempt.intervention.kind, attempt.intervention.ref_ids) == ("nudge", (REF,))
    assert attempt.pixel_sha256 != unprobed["key-1"].attempts[0].pixel_sha256


def test_caught_later_it_goes_back_from_there(model: DiffusionModel) -> None:
    early = replace(EARLY, probes=(0.6,))
    done = list(moderate(runtime(model, Copies(lambda _: True), early), requests(2)))
    assert [(s.attempts[0].resumed_from_step, s.attempts[0].denoiser_evals) for s in done] == [(2, 3 + 3)] * 2
    assert all(len(s.attempts[0].update_norms) == 3 for s in done)


def test_only_the_finished_picture_is_decided_about(model: DiffusionModel) -> None:
    """A catch uses up a rung like a finished copy does; what the last rung gives is looked at like any other picture."""
    done = list(moderate(runtime(model, Copies(lambda _: True, lambda _: True)), requests(2)))
    assert [s.outcome for s in done] == [Outcome.REJECTED] * 2
    for s in done:
        assert [len(a.caught) for a in s.attempts] == [1, 0]
        assert [a.intervention and a.intervention.kind for a in s.attempts] == ["nudge", "nudge"]
        assert s.attempts[1].resumed_from_step == 2 and s.denoiser_evals == (1 + 5) + 3
    cleared = list(moderate(runtime(model, Copies(lambda _: True)), requests(2)))
    assert all(s.outcome is Outcome.ACCEPTED_AFTER_STEERING for s in cleared)


def test_no_probe_without_a_ladder_or_when_only_observing(model: DiffusionModel) -> None:
    copies = Copies(lambda _: True)
    assert runtime(model, copies, ladder=()).early is None
    assert not wanted(Policy(copies=CopiesPolicy(action="observe"), ladder=LADDER, early=EARLY))
    assert not wanted(Policy(ladder=LADDER)) and wanted(Policy(ladder=LADDER, early=EARLY))


def test_a_probe_that_fails_costs_no_picture(model: DiffusionModel, unprobed: dict[str, Sample]) -> None:
    def broken(_: np.ndarray) -> bool:
        raise RuntimeError("the index is gone")

    done = by_key(list(moderate(runtime(model, Copies(broken)), requests())))
    assert {key: s.attempts[0].pixel_sha256 for key, s in done.items()} == {
        key: s.attempts[0].pixel_sha256 for key, s in unprobed.items()
    }
    assert all(
        s.attempts[0].skipped_guards == ("early: RuntimeError: the index is gone",) and s.outcome is Outcome.ACCEPTED
        for s in done.values()
    )


def test_a_probe_that_fails_on_one_sample_looks_at_the_others(
    model: DiffusionModel, probed: tuple[dict[str, Sample], np.ndarray]
) -> None:
    """Who is caught beside it is caught at the same step, and drawn in the same bytes."""
    unlucky = only(probed[1])

    def near(vector: np.ndarray, *, fails: bool) -> bool:
        if fails and unlucky(vector):
            raise RuntimeError("cannot look at this one")
        return not unlucky(vector)

    usual = by_key(list(moderate(runtime(model, Copies(lambda v: near(v, fails=False))), requests())))
    done = by_key(list(moderate(runtime(model, Copies(lambda v: near(v, fails=True))), requests())))
    for key in ("key-0", "key-2", "key-3"):
        assert [c.step for c in done[key].attempts[0].caught] == [c.step for c in usual[key].attempts[0].caught] == [1]
        assert done[key].attempts[0].pixel_sha256 == usual[key].attempts[0].pixel_sha256
    assert done["key-1"].attempts[0].skipped_guards == ("early: RuntimeError: cannot look at this one",)
    assert not any(done[key].attempts[0].skipped_guards for key in ("key-0", "key-2", "key-3"))


def test_an_interrupted_try_is_in_the_attempts_row(model: DiffusionModel, context: Callable[..., object]) -> None:
    done = list(moderate(runtime(model, Copies(lambda _: True)), requests(1)))
    (row,) = attempt_table(done, context(), "0").to_pylist()  # type: ignore[arg-type]
    (caught,) = row["caught"]
    assert (caught["step"], caught["signal"], caught["ref_ids"], caught["denoiser_evals"]) == (1, "decode", [REF], 1.0)
    assert row["intervention"]["kind"] == "nudge" and row["attempt"] == 0 and row["denoiser_evals"] == 6
    assert len(row["guidance_norms"]) == len(row["update_norms"]) == 5


def test_the_free_statistics_match_their_definition(model: DiffusionModel) -> None:
    engine = runtime(model, Copies(lambda _: False)).engine
    texts = model.encode_prompts(["a pear", ""])
    engine.submit(Trajectory(tag=0, latent=engine.initial_noise(3), step=0, context=texts[0], negative=texts[1]))
    (t,) = [t for _ in range(5) for t in engine.step()]
    latents = [*(t.ring[i] for i in range(5)), t.latent]
    assert t.update_norms == [float((b - a).norm()) for a, b in pairwise(latents)]
    assert t.clean is not None and len(t.guidance_norms) == 5


def test_probe_steps() -> None:
    assert probe_steps((0.15, 0.3), 20) == {3, 6}
    assert probe_steps((0.01, 0.99), 5) == {1}  # after the last step the picture itself is looked at
    assert probe_steps((0.5,), 1) == frozenset()
    with pytest.raises(ConfigError, match=r"early\.probes no\. 2"):
        from_dict(Policy, {"early": {"probes": [0.2, 1.5]}}, where="p")
    assert from_dict(EarlyPolicy, {"probes": [0.25]}, where="p").probes == (0.25,)


def test_thresholds_follow_the_noise_level() -> None:
    t = Thresholds((Level(0.1, 0.6, 0.4), Level(0.5, 0.8, 0.5)), arm_from=0.7)
    between, beyond = t.at(0.3), t.at(0.9)
    assert between is not None and beyond is not None
    assert (between.threshold, between.armed) == (pytest.approx(0.7), pytest.approx(0.45))
    assert beyond.threshold == 0.8 and t.at(0.05) is None  # noisier than anything calibrated: nothing catches


def test_an_armed_reference_catches_more_easily(model: DiffusionModel) -> None:
    copies = Copies(lambda v: bool(v[0] > 0.99))
    sampler = runtime(model, copies).engine.sampler
    thresholds = Thresholds((Level(0.0, 0.95, 0.8),), arm_from=0.5)
    policy = EarlyPolicy(enabled=True, probes=(0.4,))
    detector = EarlyDetector(policy, model, sampler, copies, None, thresholds)  # type: ignore[arg-type]
    assert detector.arm(["red apple", "a pear"]) == [frozenset({REF}), frozenset()]
    detector.place = lambda cleans, steps: np.array([[1.0, 0, 0]] * len(cleans), np.float32)  # type: ignore[method-assign]
    z = torch.zeros(model.latent_shape)
    flights = [Trajectory(tag=i, latent=z, step=2, context=z, negative=z, clean=z) for i in range(2)]
    one, other = detector.look(flights, ["red apple", "a pear"])
    assert one is not None and one.armed and one.threshold == 0.8 and other is None
    text = Thresholds((Level(0.0, 2.0, 1.5, text_weight=0.1),), arm_from=0.5)
    scored = EarlyDetector(policy, model, sampler, copies, None, thresholds, text)  # type: ignore[arg-type]
    scored.place = detector.place  # type: ignore[method-assign]
    for norms, is_caught in (([5.0, 7.0], True), ([5.0, 5.0], False)):  # 0.9 + 0.1 · mean against 1.5
        flight = Trajectory(tag=0, latent=z, step=2, context=z, negative=z, clean=z, guidance_norms=norms)
        (hit,) = scored.look([flight], ["red apple"])
        assert (hit is not None) == is_caught and (hit is None or (hit.signal, hit.score) == ("decode+text", 0.9 + 0.1 * 6))
    unarmed = EarlyDetector(EarlyPolicy(enabled=True, arm=False), model, sampler, copies, None, thresholds)  # type: ignore[arg-type]
    assert unarmed.arm(["red apple"]) == [frozenset()]


def test_latents_are_compared_with_the_references_own(model: DiffusionModel) -> None:
    latents = list(torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(4)))
    index = Copies(lambda _: True).index
    index.references = lambda: [  # type: ignore[method-assign]
        Reference(ref_id="a", title="apple", content_sha256="", pdq=""),
        Reference(ref_id="b", title="pear", content_sha256="", pdq=""),
        Reference(ref_id="c", title="fig", content_sha256="", pdq="", status="retired"),
    ]
    of = dict(zip("abc", latents, strict=True))
    centre = torch.stack(latents).mean(0)
    assert ReferenceLatents.possible(index)  # type: ignore[arg-type]
    near = ReferenceLatents(index, of.get, lambda: centre)  # type: ignore[arg-type]
    (first,), (second,) = ([hit.match for hit in row] for row in near.search([latents[1], 2 * latents[0] - centre], 1))
    assert (first.ref_id, second.ref_id) == ("b", "a")
    assert first.similarity == pytest.approx(1) and second.similarity == pytest.approx(1)  # the deviation's length is nothing
    assert {hit.match.ref_id for hit in near.search([latents[2]], 3)[0]} == {"a", "b"}  # a retired one forbids nothing
    green = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(5))
    colours = {"a": [green], "b": []}
    (hit,), (plain,) = ReferenceLatents(index, of.get, lambda: centre, colours.__getitem__).search([green, latents[0]], 1)  # type: ignore[arg-type]
    assert (hit.match.ref_id, hit.turned) == ("a", True) and hit.match.similarity == pytest.approx(1)
    assert (plain.match.ref_id, plain.turned) == ("a", False)
    assert len(ReferenceLatents(index, of.get, lambda: centre, colours.__getitem__).search([green], 3)[0]) == 2  # type: ignore[arg-type]
    index.keeps = lambda ref_id: False  # type: ignore[method-assign]
    assert not ReferenceLatents.possible(index)  # type: ignore[arg-type]


def test_a_sample_caught_by_other_colours_is_steered_away_from_all_of_them(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    references: dict[str, list[int]] = {}
    for signal in ("latent", "latent" + TURNED):
        seen, pushed = runtime(model, Copies(lambda _: False)), references.setdefault(signal, [])
        hit = Caught(
            step=1, signal=signal, score=0.9, threshold=0.5, nearest=(Match(ref_id=REF, title="red apple", similarity=0.9),)
        )
        assert seen.early is not None
        monkeypatch.setattr(seen.early, "look", lambda due, prompts, hit=hit: [hit for _ in due])
        submit = seen.engine.submit
        monkeypatch.setattr(
            seen.engine, "submit", lambda t, n=pushed, s=submit: (n.append(len(t.nudge.references) if t.nudge else 0), s(t))
        )
        assert all(s.outcome is Outcome.ACCEPTED_AFTER_STEERING for s in moderate(seen, requests(1)))
    assert references == {"latent": [0, 1], "latent" + TURNED: [0, 12]}


@pytest.mark.parametrize(("colours", "references"), [("copied", 1), ("all", 12)])
def test_a_rung_may_push_from_all_colours_of_what_was_copied_in_none(
    model: DiffusionModel, colours: Literal["copied", "all"], references: int
) -> None:
    seen = runtime(model, Copies(lambda _: True), ladder=(NudgeRung(step_size=0.1, colours=colours),))
    submitted, submit = [], seen.engine.submit
    seen.engine.submit = lambda t: (submitted.append(t), submit(t))[1]  # type: ignore[func-returns-value, method-assign]
    (done,) = moderate(seen, requests(1))
    assert len(done.attempts[0].caught) == 1
    assert [len(t.nudge.references) for t in submitted if t.nudge] == [references]


def test_by_latents_a_sample_is_caught_and_without_a_calibration_decoded(model: DiffusionModel) -> None:
    copies = Copies(lambda _: False)
    seen = runtime(model, copies, EarlyPolicy(enabled=True, probes=(0.2,), threshold=0.001))
    assert seen.early is not None and seen.early.kind == "latent"
    hits = [a.caught for s in moderate(seen, requests(4)) for a in s.attempts]
    assert all(c[0].signal == "latent" for c in hits if c)
    plain = runtime(model, copies, EarlyPolicy(enabled=True, probes=(0.2,)))
    assert plain.early is not None and plain.early.kind == "decode"


# --- the head --------------------------------------------------------------------------------------------------------------


def a_head(folder: Path, model_digest: str = "m", embedder_id: str = "e") -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = make_network(4, 8, DIM, (8, 8, 8))
    save_file(network.state_dict(), folder / "head.safetensors")
    sha256 = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    told = {"model_digest": model_digest, "embedder_id": embedder_id, "sha256": sha256, "channels": 4, "side": 8, "dim": DIM}
    (folder / "head.json").write_text(json.dumps({**told, "widths": [8, 8, 8]}))
    return folder


def test_the_head_belongs_to_one_model_and_one_embedder(tmp_path: Path) -> None:
    a_head(tmp_path)
    assert LatentHead.open(tmp_path, "m", "e") is not None
    assert LatentHead.open(tmp_path, "another", "e") is None and LatentHead.open(tmp_path, "m", "another") is None
    assert LatentHead.open(tmp_path / "nowhere", "m", "e") is None
    policy = Policy(ladder=LADDER, early=replace(EARLY, signal="latent"))
    assert early_id(policy, "m", "e", tmp_path).startswith("latent-")
    assert early_id(policy, "m", "x", tmp_path) == "decode" and early_id(Policy(), "m", "e", tmp_path) == ""
    (tmp_path / "head.safetensors").write_bytes(b"changed")
    with pytest.raises(ModelError, match="digest"):
        LatentHead.open(tmp_path, "m", "e")


def test_a_row_of_the_head_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    head = LatentHead.open(a_head(tmp_path), "m", "e")
    assert head is not None
    cleans = list(torch.randn(11, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    signals = [0.1 + 0.05 * i for i in range(11)]
    together = head(cleans, signals)
    for i in range(11):
        assert np.array_equal(head(cleans[i : i + 1], signals[i : i + 1])[0], together[i])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert not np.array_equal(head(cleans[:1], [0.9]), head(cleans[:1], [0.1]))  # the noise level matters


def test_with_a_head_of_its_own_nothing_is_decoded(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies(lambda _: True)
    sampler = runtime(model, copies).engine.sampler
    a_head(tmp_path, model.digest, "embedder")
    detector = EarlyDetector.open(replace(EARLY, signal="head"), model, sampler, copies, tmp_path)  # type: ignore[arg-type]
    fallback = EarlyDetector.open(EARLY, model, sampler, copies, tmp_path / "nowhere")  # type: ignore[arg-type]
    assert (detector.kind, fallback.kind) == ("head", "decode")
    of_policy, of_guard = (
        EarlyDetector(policy, model, sampler, copies, None, None).level(1, text=True)  # type: ignore[arg-type]
        for policy in (EARLY, EarlyPolicy())
    )
    assert of_policy and of_guard and (of_policy.threshold, of_guard.threshold) == (0.5, 0.8) and fallback.thresholds is None
    z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(model, "decode", lambda _: pytest.fail("decoded"))
    assert detector.place([z], [1]).shape == (1, DIM)
    (hit,) = detector.look([Trajectory(tag=0, latent=z, step=2, context=z, negative=z, clean=z)], ["a pear"])
    assert hit is not None and hit.signal == "head"


def test_the_shipped_head_is_small_and_belongs_to_what_ships() -> None:
    told = json.loads((HEAD / "head.json").read_text(encoding="utf-8"))
    assert told["model_digest"] == folder_digest(STICKERS / "model")
    assert told["parameters"] <= 1_000_000 and (HEAD / "head.safetensors").stat().st_size <= 4_000_000
    head = LatentHead.open(HEAD, told["model_digest"], told["embedder_id"])
    assert head is not None and sum(p.numel() for p in head.network.parameters()) == told["parameters"]
    for kind in ("latent", "head", "decode", "head+text", "decode+text"):
        thresholds = Thresholds.load(HEAD / "thresholds.json", kind, told["model_digest"], told["embedder_id"])
        assert thresholds is not None
        assert all(
            0 < level.armed <= level.threshold and (level.text_weight > 0) == kind.endswith("text")
            for level in thresholds.levels
        )
    assert Thresholds.load(HEAD / "thresholds.json", "head", "another", told["embedder_id"]) is None
