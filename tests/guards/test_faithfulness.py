"""Whether a picture still shows what was asked: the range that is measured on an index, the score, what follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from guards.base import Finding
from guards.faithfulness import CATEGORY, FaithfulnessGuard, UsualRange
from guards.registry import describe
from index.embed import OpenCLIPEmbedder
from index.errors import ConfigError, InputError
from index.reference import Match
from pipeline.config import RunConfig
from pipeline.decide import decide
from pipeline.guard_settings import FaithfulnessPolicy
from pipeline.identity import guards_in_force
from pipeline.outcome import Verdict
from pipeline.policy import Policy
from pipeline.rungs import ReseedRung


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


class Axes:
    """An embedder to which every text is the first axis."""

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        return np.stack([unit(1, 0, 0) for _ in captions])


def at(cosine: float) -> np.ndarray:
    """A picture with this cosine to every text."""
    return unit(cosine, (1 - cosine**2) ** 0.5, 0)


def guard(shown: float = 0.6, other: float = 0.2, threshold: float = 0.5) -> FaithfulnessGuard:
    return FaithfulnessGuard(UsualRange(shown=shown, other=other), Axes(), threshold=threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cosine", "score"), [(0.6, 0.0), (0.9, 0.0), (0.4, 0.5), (0.2, 1.0), (-0.3, 1.0), (0.5, 0.25)])
def test_the_score_is_the_place_in_the_usual_range(cosine: float, score: float) -> None:
    assert guard().check("a cat", at(cosine)).score == pytest.approx(score, abs=1e-6)


def test_a_similarity_that_is_no_number_is_an_error() -> None:
    with pytest.raises(InputError, match="not a finite number"):
        guard().check("a cat", np.array([np.nan, 0, 1], np.float32))


def test_what_the_unsteered_picture_lacked_is_not_counted() -> None:
    assert guard().check("a cat", at(0.4), at(0.4)).score == pytest.approx(0.0, abs=1e-6)


def test_against_the_unsteered_picture_the_fall_is_measured() -> None:
    assert guard().check("a cat", at(0.3), at(0.4)).score == pytest.approx(0.5, abs=1e-6)


def test_an_unsteered_picture_beyond_the_range_asks_no_more() -> None:
    assert guard().check("a cat", at(0.6), at(0.9)).score == pytest.approx(0.0, abs=1e-6)


def test_a_prompt_that_the_embedder_does_not_know_is_not_judged() -> None:
    finding = guard().check("zxq", at(0.1), at(0.15))
    assert finding.score == 0.0
    assert "not judged" in finding.detail


def test_the_detail_has_the_numbers() -> None:
    assert guard().check("a cat", at(0.3)).detail == "similarity to the prompt 0.300, usual 0.600, of other pictures 0.200"


def test_a_lost_prompt_is_found() -> None:
    assert guard().check("a cat", at(0.25)).triggered


def test_the_prompt_is_not_in_the_finding() -> None:
    assert "secret" not in repr(guard().check("a secret plan", at(0.25)))


def titled(count: int) -> list[tuple[str, str]]:
    return [(f"r{i:02}", f"title {i}") for i in range(count)]


class Matching:
    """An embedder whose text of title i is axis i of 16; the work of that title is ``like`` it."""

    def __init__(self, like: float) -> None:
        self.like = like

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        return np.eye(16, dtype=np.float32)[[int(caption.split()[-1]) for caption in captions]]

    def compare(self, embedding: np.ndarray, ref_id: str) -> Match:
        own = int(embedding.argmax()) == int(ref_id[1:])
        return Match(ref_id=ref_id, title="", similarity=self.like if own else 0.1, rights_basis="", status="active")


def test_the_range_is_measured_on_titles_and_works() -> None:
    world = Matching(0.7)
    found = UsualRange.measured(titled(16), world, world.compare)  # type: ignore[arg-type]
    assert (found.shown, found.other, found.auc, found.pairs) == (0.7, 0.1, 1.0, 16)


def test_titles_that_do_not_describe_their_works_are_refused() -> None:
    world = Matching(0.1)
    with pytest.raises(ConfigError, match="do not describe its works"):
        UsualRange.measured(titled(16), world, world.compare)  # type: ignore[arg-type]


def test_too_few_titles_are_refused() -> None:
    world = Matching(0.7)
    with pytest.raises(ConfigError, match="has 7 works with a title"):
        UsualRange.measured(titled(7), world, world.compare)  # type: ignore[arg-type]


def test_without_an_index_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no index"):
        guards_in_force(RunConfig(prompts="-"), Policy(faithfulness=FaithfulnessPolicy(enabled=True)), "d", "")


def test_the_plan_binds_the_range_by_index_and_policy() -> None:
    def version(index: str, **settings: float) -> str:
        return FaithfulnessGuard.probe(FaithfulnessPolicy(**settings), embedder_id="e", index_id=index).version

    assert len({version("a"), version("b"), version("a", shown=0.5, other=0.1), version("a", shown=0.6, other=0.1)}) == 4
    assert version("a", shown=0.5, other=0.1) == version("b", shown=0.5, other=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shown": 0.5}, "needs faithfulness.other"), ({"other": 0.5}, "needs faithfulness.shown"),
     ({"shown": 0.1, "other": 0.1}, "is not above")],
)  # fmt: skip
def test_a_slip_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FaithfulnessPolicy(**settings)


@pytest.mark.parametrize(
    ("action", "verdict"), [("review", "review"), ("steer", "steer"), ("reject", "reject"), ("observe", "accept")]
)
def test_a_lost_prompt_is_answered_as_the_policy_wants(action: str, verdict: str) -> None:
    policy = Policy(faithfulness=FaithfulnessPolicy(enabled=True, action=action), ladder=(ReseedRung(),))  # type: ignore[arg-type]
    found = Finding(guard="faithfulness", version="1", category=CATEGORY, score=0.9, threshold=0.5)
    assert decide([found], 0, policy).verdict is Verdict(verdict)


def test_the_embedded_world_has_a_range(tmp_path: Path) -> None:
    from index.collect import read_references
    from index.shipped import STICKERS
    from index.store import ReferenceIndex

    embedder = OpenCLIPEmbedder.open("stickers")
    index = ReferenceIndex.build(tmp_path / "index", list(read_references(STICKERS / "references"))[:12], embedder)
    found = UsualRange.measured([(r.ref_id, r.title) for r in index.in_force()], embedder, index.compare)
    assert found.pairs == 12
    assert found.auc > 0.95
    assert found.shown > 0.4 > 0.1 > found.other


def test_doctor_lists_it() -> None:
    (line,) = [one for one in describe() if one.name == "faithfulness"]
    assert line.available
