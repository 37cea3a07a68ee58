"""The guard of prompts: block lists, patterns, titles, nearness; what is rejected, reviewed and rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from guards.prompt import EMPTIED, NEAR_TITLES, PromptGuard, PromptUnread
from guards.registry import describe
from index.embed import OpenCLIPEmbedder
from index.errors import ConfigError
from pipeline.guard_settings import BlockedPolicy, PromptPolicy
from pipeline.policy import Policy
from pipeline.settings import from_dict

TITLES = [("r1", "red apple"), ("r2", "teddy bear")]


class Words:
    """An embedder whose texts are counts of letters."""

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        rows = np.array([[1 + caption.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for caption in captions], float)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def guard(*blocked: dict[str, Any], titles: Sequence[tuple[str, str]] = (), **settings: Any) -> PromptGuard:
    policy = PromptPolicy(enabled=True, **settings)
    return PromptGuard.open(policy, [BlockedPolicy(**one) for one in blocked], titles=titles, embedder=Words())  # type: ignore[arg-type]


def triggered(made: PromptGuard, prompt: str) -> list[str]:
    return [finding.category for finding in made.check(prompt).findings if finding.triggered]


def test_a_blocked_word_rejects() -> None:
    look = guard({"words": "Bomb"}).check("a b0mb in a field")
    assert look.rejected == "prompt.blocked.reject"


def test_another_prompt_is_drawn_as_it_stands() -> None:
    look = guard({"words": "bomb"}).check("a bombastic  poem")
    assert (look.rejected, look.drawn) == ("", "a bombastic  poem")


def test_every_category_is_reported() -> None:
    made = guard({"words": "bomb"}, {"words": "gun", "action": "review"}, titles=TITLES, near=0.9)
    found = made.check("a cat").findings
    assert [finding.category for finding in found] == list(made.categories)
    assert not any(finding.triggered for finding in found)


def test_a_finding_names_the_rule_and_not_the_prompt() -> None:
    (finding,) = [f for f in guard({"words": ["Bomb"]}).check("my secret b.o.m.b plan").findings if f.triggered]
    assert finding.detail == "Bomb"


@pytest.mark.parametrize("action", ["reject", "review", "rewrite", "observe"])
def test_the_category_ends_in_the_action(action: str) -> None:
    assert triggered(guard({"words": "bomb", "action": action}), "a bomb here") == [f"prompt.blocked.{action}"]


def test_only_reject_rejects() -> None:
    assert guard({"words": "bomb", "action": "review"}).check("a bomb").rejected == ""


def test_a_title_is_found_with_its_reference() -> None:
    (finding,) = [f for f in guard(titles=TITLES).check("a Red-Apple").findings if f.triggered]
    assert (finding.category, finding.ref_id, finding.detail) == ("prompt.title.review", "r1", "red apple")


def test_titles_may_be_off() -> None:
    made = PromptGuard.open(PromptPolicy(enabled=True, titles="off"), titles=TITLES)
    assert triggered(made, "a red apple") == []


def test_rewriting_puts_the_policys_words_there() -> None:
    look = guard({"words": "Mickey", "action": "rewrite", "instead": "a mouse"}).check("M1ckey, in a red car")
    assert (look.drawn, look.rejected) == ("a mouse, in a red car", "")


def test_rewriting_may_take_words_out() -> None:
    assert guard({"words": "Mickey", "action": "rewrite"}).check("the Mickey mouse").drawn == "the mouse"


def test_what_comes_to_light_by_rewriting_is_found_too() -> None:
    look = guard({"words": "x", "action": "rewrite"}, {"words": "red apple"}).check("a red x apple")
    assert look.rejected == "prompt.blocked.reject"


def test_a_prompt_of_which_nothing_is_left_is_rejected() -> None:
    look = guard({"words": "Mickey", "action": "rewrite"}).check("Mickey!")
    assert look.rejected == EMPTIED


def test_a_rewriting_without_an_end_is_rejected() -> None:
    look = guard({"words": "cat", "action": "rewrite", "instead": "a cat"}).check("cat")
    assert look.rejected == EMPTIED


def test_a_pattern_is_searched_in_plain_letters() -> None:
    assert guard({"pattern": r"\bin the style of \w+"}).check("a cat IN THE STYLE ÔF Pícasso").rejected


def test_a_pattern_rewrites_at_its_place() -> None:
    rule = {"pattern": r"\s*in the style of \w+", "action": "rewrite"}
    assert guard(rule).check("a cat in the style of Pícasso, red").drawn == "a cat, red"


@pytest.mark.parametrize("prompt", ["un café noir", "un cafe\u0301 noir", "UN CAFÉ NOIR", "un ca\u200bfé noir"])
def test_a_pattern_with_an_accent_is_found(prompt: str) -> None:
    assert guard({"pattern": "café"}).check(prompt).rejected


def test_a_pattern_of_another_script_is_found() -> None:
    assert guard({"pattern": r"\bзорро\b"}).check("портрет ЗОРРО").rejected


def test_a_pattern_that_takes_too_long_is_an_error() -> None:
    with pytest.raises(PromptUnread, match="took longer than"):
        guard({"pattern": r"(a|aa)+$"}).check("a" * 60 + "!")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": "a*"}, "matches the empty text"),
        ({"words": ["cat", "--"]}, "holds no letter"),
        ({}, "needs words or a pattern"),
        ({"words": "cat", "pattern": "cat"}, "needs words or a pattern, and not both"),
        ({"words": "cat", "instead": "dog"}, "has no effect with action = 'reject'"),
        ({"words": "cat", "action": "steer"}, "action"),
    ],
)
def test_a_slip_in_a_rule_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Policy, {"prompt": {"enabled": True}, "blocked": [rule]}, where="policy.toml")


def test_replacing_titles_needs_rewrite() -> None:
    with pytest.raises(ConfigError, match="has no effect with titles = 'review'"):
        PromptPolicy(instead="fruit")


def test_nearness_is_measured_and_named() -> None:
    made = guard(titles=TITLES, near=0.95, near_action="reject")
    look = made.check("the red apples")
    (finding,) = [f for f in look.findings if f.category == "prompt.near.reject"]
    assert finding.score == pytest.approx(float(Words().texts(["the red apples"])[0] @ Words().texts(["red apple"])[0]))
    assert finding.detail == "red apple"


def test_nearness_below_the_threshold_is_recorded_only() -> None:
    assert guard(titles=TITLES, near=0.999, near_action="reject").check("a quick fox").rejected == ""


def test_nearness_without_an_index_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no index"):
        PromptGuard.open(PromptPolicy(enabled=True, near=0.9))


def test_too_many_titles_to_compare_are_refused() -> None:
    many = [(str(n), f"title {n}") for n in range(NEAR_TITLES + 1)]
    with pytest.raises(ConfigError, match="4,097 titles"):
        guard(titles=many, near=0.9)


def test_words_of_many_titles_are_looked_for() -> None:
    many = [(str(n), f"work no {n}") for n in range(50_000)]
    (finding,) = [f for f in guard(titles=many).check("like Work No 49999").findings if f.triggered]
    assert finding.ref_id == "49999"


def test_the_version_changes_with_the_rules_and_the_index() -> None:
    one, other = BlockedPolicy(words="cat"), BlockedPolicy(words="dog")
    settings = PromptPolicy(enabled=True)
    versions = {PromptGuard.probe(settings, [rule], index_id=i).version for rule in (one, other) for i in ("a", "b")}
    assert len(versions) == 4


def test_the_version_of_the_open_guard_is_the_probed_one() -> None:
    settings = PromptPolicy(enabled=True)
    assert PromptGuard.open(settings, index_id="a").version == PromptGuard.probe(settings, index_id="a").version


def test_doctor_lists_it() -> None:
    (line,) = [one for one in describe() if one.name == "prompt"]
    assert line.available


def test_on_the_embedded_world_titles_separate_protected_from_ordinary_captions() -> None:
    """Of the ordinary subjects one holds a title as a word: a fire engine, and "fire" is protected."""
    from jobs.demo import WORDINGS
    from jobs.lab.world.catalogue import MARK_PRONE, ORDINARY, PROTECTED

    made = PromptGuard.open(PromptPolicy(enabled=True), titles=[(name, name.replace("-", " ")) for name in PROTECTED])
    others = [*ORDINARY, *(name for group in MARK_PRONE.values() for name in group)]
    found = {
        name: sum(bool(triggered(made, wording.format(name.replace("-", " ")))) for wording in WORDINGS)
        for name in [*PROTECTED, *others]
    }
    assert {found[name] for name in PROTECTED} == {len(WORDINGS)}
    assert [name for name in others if found[name]] == ["fire-engine"]


def test_on_the_embedded_world_nearness_separates_as_the_reference_states() -> None:
    """Captions at or above each cosine, of 372 protected and 360 ordinary ones."""
    from jobs.demo import WORDINGS
    from jobs.lab.world.catalogue import MARK_PRONE, ORDINARY, PROTECTED

    embedder = OpenCLIPEmbedder.open("stickers")
    subjects = {
        "protected": list(PROTECTED),
        "ordinary": [*ORDINARY, *(name for group in MARK_PRONE.values() for name in group)],
    }
    titles = embedder.texts([name.replace("-", " ") for name in PROTECTED])
    captions = {kind: [w.format(n.replace("-", " ")) for n in names for w in WORDINGS] for kind, names in subjects.items()}
    best = {kind: (embedder.texts(texts) @ titles.T).max(1) for kind, texts in captions.items()}
    assert {kind: len(scores) for kind, scores in best.items()} == {"protected": 372, "ordinary": 360}
    assert [int((best["protected"] >= cosine).sum()) for cosine in (0.9, 0.8, 0.7)] == [372, 372, 372]
    assert [int((best["ordinary"] >= cosine).sum()) for cosine in (0.9, 0.8, 0.7)] == [0, 6, 42]


def test_the_embedders_text_tower_measures_nearness() -> None:
    embedder = OpenCLIPEmbedder.open("stickers")
    settings = SimpleNamespace(titles="off", instead="", near=0.9, near_action="review")
    made = PromptGuard.open(settings, titles=TITLES, embedder=embedder)
    score = {prompt: made.check(prompt).findings[0].score for prompt in ("a red apple", "a whale")}
    assert score["a red apple"] > 0.9 > score["a whale"]
