"""Guards that a re-audit judges from rows, and those that it names as not judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.policies import slips
from jobs.reaudit.rows import OtherGuards
from pipeline.guard_settings import (
    AskedPolicy,
    BlockedPolicy,
    CodesPolicy,
    FaithfulnessPolicy,
    PromptPolicy,
    QuestionPolicy,
    TextPolicy,
    UnsafePolicy,
    VisionLanguagePolicy,
)
from pipeline.policy import CopiesPolicy, Policy

BOMB = (BlockedPolicy(words=("bomb",)),)
ASKED = Policy(
    prompt=PromptPolicy(enabled=True),
    blocked=BOMB,
    faithfulness=FaithfulnessPolicy(enabled=True),
    vision_language=VisionLanguagePolicy(address="http://127.0.0.1:1/v1", model="tiny"),
    questions=(QuestionPolicy(name="red", ask="Is it mostly red?"),),
)


def unknown(then: Policy, now: Policy) -> dict[str, str]:
    return OtherGuards(then, now).unknown


def test_the_same_rules_need_no_picture() -> None:
    assert unknown(ASKED, ASKED) == {}
    assert not OtherGuards(ASKED, ASKED).differ


@pytest.mark.parametrize("name", ["prompt", "faithfulness", "question:red"])
def test_a_guard_that_did_not_run_then_is_named(name: str) -> None:
    assert unknown(Policy(), ASKED)[name] == "did not run then"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("prompt", {"blocked": (*BOMB, BlockedPolicy(words=("knife",)))}),
        ("prompt", {"prompt": PromptPolicy(enabled=True, titles="reject")}),
        ("faithfulness", {"faithfulness": FaithfulnessPolicy(enabled=True, of="all")}),
        ("question:red", {"questions": (QuestionPolicy(name="red", ask="Is it mostly green?"),)}),
        ("question:red", {"vision_language": replace(ASKED.vision_language, model="other")}),
        ("text", {"text": TextPolicy(least_signs=2)}),
        ("codes", {"codes": CodesPolicy(allow=("https://example.org",))}),
    ],
)
def test_a_guard_with_settings_that_decide_what_it_sees_is_named(name: str, changes: dict[str, Any]) -> None:
    now = replace(ASKED, **changes)
    assert unknown(ASKED, now) == {name: "ran with other settings then"}
    assert OtherGuards(ASKED, now).differ


@pytest.mark.parametrize(
    "changes",
    [
        {"unsafe": UnsafePolicy(threshold=0.1, action="review")},
        {"faithfulness": FaithfulnessPolicy(enabled=True, threshold=0.2, action="reject")},
        {"vision_language": replace(ASKED.vision_language, seconds=5.0, most_calls=9)},
    ],
)
def test_another_threshold_action_or_budget_needs_no_picture(changes: dict[str, Any]) -> None:
    assert unknown(ASKED, replace(ASKED, **changes)) == {}


def finding(guard: str, category: str, score: float) -> dict[str, Any]:
    common = {"version": "1", "threshold": 0.5, "confirmed": True, "ref_id": "", "triggered": score >= 0.5}
    return common | {"guard": guard, "category": category, "score": score}


@pytest.mark.parametrize(
    ("found", "category"),
    [
        (finding("faithfulness", "caption.lost", 0.3), "caption.lost"),
        (finding("prompt", "prompt.blocked.review", 1.0), "prompt.blocked.review"),
        (finding("faithfulness", "caption.lost", 0.1), ""),
        (finding("prompt", "prompt.blocked.rewrite", 1.0), ""),
    ],
)
def test_findings_about_prompts_are_judged_again(found: dict[str, Any], category: str) -> None:
    now = replace(ASKED, faithfulness=FaithfulnessPolicy(enabled=True, threshold=0.2, action="reject"))
    row = {"sample_id": "s", "request_key": "k", "findings": [found]}
    assert [change.category for change in OtherGuards(ASKED, now)._judged(row, "accepted")] == ([category] if category else [])


@pytest.mark.parametrize(
    ("action", "keeps", "category"),
    [("asked", True, ""), ("asked", False, "mark.qr"), ("steer", True, "mark.qr")],  # rows do not tell that a prompt asked
)
def test_a_mark_that_was_asked_for_stays_under_a_policy_that_keeps_it(action: str, keeps: bool, category: str) -> None:
    now = replace(ASKED, asked=AskedPolicy(qr="keep" if keeps else "act"))
    row = {"sample_id": "s", "request_key": "k", "findings": [finding("codes", "mark.qr", 1.0) | {"action": action}]}
    assert [change.category for change in OtherGuards(ASKED, now)._judged(row, "accepted")] == ([category] if category else [])
    assert OtherGuards(ASKED, now).differ is keeps


def test_a_policy_that_rejects_prompts_does_not_only_observe() -> None:

    quiet = Policy(
        copies=CopiesPolicy(action="observe"),
        unsafe=UnsafePolicy(action="observe"),
        text=TextPolicy(action="observe"),
        codes=CodesPolicy(action="observe"),
        marks=replace(Policy().marks, action="observe"),
    )
    said = "every guard only observes"
    assert any(said in slip for slip in slips(quiet))
    assert not any(said in slip for slip in slips(replace(quiet, prompt=PromptPolicy(enabled=True), blocked=BOMB)))
