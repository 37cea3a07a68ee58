"""Decide what to do with an attempt. Pure: findings, attempt number and policy in, decision out; no I/O, no torch, no clock.

Raising a score never turns a reject into an accept: a higher score can only add to the triggered findings, and every step
below looks for the most severe of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from guards.base import Finding, is_copy, is_mark, worst
from pipeline.outcome import Decision, Verdict
from pipeline.policy import ASKED, REWRITE, Policy, action_of


def decide(
    findings: Sequence[Finding], attempt: int, policy: Policy, marked: int = 0, *, another: bool = True,
    asked: Collection[str] = (),
) -> Decision:  # fmt: skip
    """Decide about attempt number ``attempt`` (0 is the first); ``marked`` earlier ones were steered for a mark, and
    ``another`` is whether the request's budget (``policy.max_evals``) has room for another one. ``asked``:
    categories of :func:`pipeline.policy.asked_and_kept`; their findings are only recorded.

    An action that a policy leaves open counts as ``steer``; :func:`pipeline.identity.policy_in_force` settles it for a run.

    * a confirmed finding whose action is ``reject`` rejects; an unconfirmed one goes to review;
    * with its ladder used up, a confirmed copy is rejected;
    * else a finding whose action is ``steer`` is steered while its ladder (a mark's or the other) has rungs left, and the
      budget room;
    * what remains then ends as ``policy.when_exhausted``;
    * a finding whose action is ``review`` goes to review; ``observe`` is only recorded.
    """
    by_action: dict[str, list[Finding]] = {"reject": [], "steer": [], "review": [], "observe": []}
    for finding in findings:
        if not finding.triggered:
            continue
        action = action_of(policy, finding.guard, finding.category, asked)
        if action not in (REWRITE, ASKED):  # a prompt that was rewritten is drawn: nothing is left to decide about
            by_action[action].append(finding)
    if final := worst([f for f in by_action["reject"] if f.confirmed]):
        return Decision(Verdict.REJECT, final.category)
    shared = not policy.mark_ladder  # marks climb the one ladder too

    def rungs_left(finding: Finding) -> bool:
        if not another:
            return False
        if shared or not is_mark(finding.category):
            return (attempt if shared else attempt - marked) < len(policy.ladder)
        return marked < len(policy.mark_ladder)

    copies = [f for f in by_action["steer"] if f.confirmed and is_copy(f.category)]
    if copy := worst([f for f in copies if not rungs_left(f)]):
        return Decision(Verdict.REJECT, copy.category)
    if open_case := worst([f for f in by_action["steer"] if rungs_left(f)]):
        return Decision(Verdict.STEER, open_case.category)
    if left := worst(by_action["steer"]):
        return Decision(Verdict.REVIEW if policy.when_exhausted == "review" else Verdict.REJECT, left.category)
    if doubtful := worst(by_action["reject"] + by_action["review"]):
        return Decision(Verdict.REVIEW, doubtful.category)
    return Decision(Verdict.ACCEPT)
