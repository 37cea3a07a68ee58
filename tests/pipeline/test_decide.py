from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from guards.base import Finding
from pipeline.decide import decide
from pipeline.outcome import Verdict
from pipeline.policy import CopiesPolicy, MarksPolicy, Policy, TextPolicy, UnsafePolicy
from pipeline.rungs import EraseRung, NegToMeRung, ReseedRung

ACTIONS = ["steer", "reject", "observe"]
GUARDS = {"copies": "copy.protected", "marks": "mark.qr", "text": "text.ocr", "unsafe": "unsafe.nsfw"}

finding = st.builds(
    lambda guard, score, confirmed: Finding(
        guard=guard, version="1", category=GUARDS[guard], score=score, threshold=0.5, confirmed=confirmed
    ),
    st.sampled_from(sorted(GUARDS)),
    st.floats(0, 1),
    st.booleans(),
)
policies = st.builds(
    lambda copies, marks, text, unsafe, rungs, mark_rungs, end: Policy(
        copies=CopiesPolicy(action=copies),
        marks=MarksPolicy(action=marks),
        text=TextPolicy(action=text),
        unsafe=UnsafePolicy(action=unsafe),
        ladder=(ReseedRung(),) * rungs,
        mark_ladder=(ReseedRung(),) * mark_rungs,
        when_exhausted=end,
    ),
    *[st.sampled_from(ACTIONS)] * 1,
    *[st.sampled_from([*ACTIONS, "review"])] * 3,
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from(["review", "rejected"]),
)


@given(st.lists(finding, max_size=5), st.integers(0, 4), policies, st.data())
def test_raising_a_score_never_accepts_more(findings: list[Finding], attempt: int, policy: Policy, data: st.DataObject) -> None:
    marked = data.draw(st.integers(0, attempt))
    before = decide(findings, attempt, policy, marked).verdict
    if not findings:
        assert before is Verdict.ACCEPT
        return
    which = data.draw(st.integers(0, len(findings) - 1))
    higher = data.draw(st.floats(findings[which].score, 2))
    raised = [*findings]
    raised[which] = dataclasses.replace(findings[which], score=higher)
    after = decide(raised, attempt, policy, marked).verdict
    if before is not Verdict.ACCEPT:
        assert after is not Verdict.ACCEPT
    if before is Verdict.REJECT and policy.ladder == policy.mark_ladder == ():
        assert after is Verdict.REJECT


@given(st.lists(finding, max_size=5), policies)
def test_ladders_end(findings: list[Finding], policy: Policy) -> None:
    marked = len(policy.mark_ladder)
    assert decide(findings, len(policy.ladder) + marked, policy, marked).verdict is not Verdict.STEER


def copy(score: float, confirmed: bool = True) -> Finding:
    return Finding(guard="copies", version="1", category="copy.protected", score=score, threshold=0.8, confirmed=confirmed)


def test_marks_have_a_ladder_of_their_own() -> None:
    policy = Policy(ladder=(NegToMeRung(),), mark_ladder=(EraseRung(), ReseedRung()))
    mark = Finding(guard="marks", version="1", category="mark.qr", score=0.9, threshold=0.5)
    assert decide([mark], 0, policy, 0) == decide([mark], 1, policy, 1)  # both rungs of the marks'
    assert decide([mark], 2, policy, 2).verdict is Verdict.REVIEW
    assert decide([mark], 2, policy, 1).verdict is Verdict.STEER  # one rung of each was climbed
    assert decide([copy(0.9)], 2, policy, 2).reason == "copy.protected"  # marks used up no rung of the copies'
    assert decide([copy(0.9)], 2, policy, 2).verdict is Verdict.STEER
    assert decide([copy(0.9), mark], 1, policy, 0).verdict is Verdict.REJECT  # erasing the mark would leave a copy
    assert decide([copy(0.9, confirmed=False), mark], 1, policy, 0).reason == "mark.qr"
    shared = Policy(ladder=(NegToMeRung(),))
    assert decide([mark], 0, shared).verdict is Verdict.STEER and decide([mark], 1, shared).verdict is Verdict.REVIEW
    words = Finding(guard="text", version="1", category="text.ocr", score=0.9, threshold=0.5)
    assert decide([words], 1, policy, 1).verdict is Verdict.STEER


def test_by_hand() -> None:
    policy = Policy(ladder=(NegToMeRung(),))
    assert decide([copy(0.79)], 0, policy).verdict is Verdict.ACCEPT
    assert decide([copy(0.8)], 0, policy).verdict is Verdict.STEER
    assert decide([copy(0.8)], 1, policy).verdict is Verdict.REJECT
    assert decide([copy(0.8, confirmed=False)], 1, policy).verdict is Verdict.REVIEW
    observe = dataclasses.replace(policy, copies=CopiesPolicy(action="observe"))
    assert decide([copy(0.99)], 0, observe).verdict is Verdict.ACCEPT
    unsafe = Finding(guard="unsafe", version="1", category="unsafe.nsfw", score=0.9, threshold=0.8)
    assert decide([copy(0.9), unsafe], 0, policy).reason == "unsafe.nsfw"


@given(st.lists(finding, max_size=5), st.integers(0, 4), policies)
def test_without_budget_nothing_is_steered(findings: list[Finding], attempt: int, policy: Policy) -> None:
    with_budget, without = decide(findings, attempt, policy), decide(findings, attempt, policy, another=False)
    assert without.verdict is not Verdict.STEER
    assert (with_budget.verdict is Verdict.ACCEPT) == (without.verdict is Verdict.ACCEPT)
