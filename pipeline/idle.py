"""Safeguards that a policy has rules for and that do not act: a check of the policy names them, and so does a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from pipeline.guard_settings import FaithfulnessPolicy, PromptPolicy, VisionLanguagePolicy
from pipeline.policy import Policy, action_of, guard_tables


def idle(policy: Policy) -> list[str]:
    """What of a policy has no effect, or lets everything through, or ends at once; one sentence each."""
    found = []
    acting, tables = actions(policy), guard_tables(policy)
    if {*acting.values(), *_beside(policy)} == {"observe"}:
        found.append("every guard only observes: whatever is found, the picture is released")
    if policy.copies.action == "steer" and not policy.ladder:
        found.append("copies.action = steer and there is no [[ladder]]: a copy is not drawn again, it ends at once")
    steered = [name for name, action in acting.items() if name != "copies" and action == "steer"]
    if steered and not policy.ladder and not policy.mark_ladder:
        ends = f"what {', '.join(steered)} find ends as {policy.when_exhausted} at once"
        found.append(f"action = steer and there is neither [[mark_ladder]] nor [[ladder]]: {ends}")
    for name, table in tables.items():
        if not table.enabled and dataclasses.replace(table, enabled=True) != _as_default(name, table):
            found.append(f"{name}.enabled = false: the other keys of this guard have no effect")
    return [*found, *_unused(policy)]


def actions(policy: Policy) -> dict[str, str]:
    """The action of every enabled guard that looks at pictures."""
    tables = guard_tables(policy)
    return {"copies": policy.copies.action} | {name: action_of(policy, name) for name in tables if tables[name].enabled}


def _beside(policy: Policy) -> Iterator[str]:
    """The actions of the guards that look at prompts, where they are enabled."""
    if policy.prompt.enabled:
        stated = (*(one.action for one in policy.blocked), policy.prompt.titles)
        near = [policy.prompt.near_action] if policy.prompt.near is not None else []
        yield from (action for action in (*stated, *near) if action != "off")
    if policy.faithfulness.enabled:
        yield policy.faithfulness.action


def _as_default(name: str, table: Any) -> Any:
    default = getattr(Policy(), name, None)
    return None if default is None else dataclasses.replace(default, enabled=True)


def _unused(policy: Policy) -> Iterator[str]:
    """Tables of brought guards that have no effect."""
    if policy.blocked and not policy.prompt.enabled:
        yield "there is [[blocked]], and prompt.enabled = false: no prompt is looked at"
    stated = dataclasses.replace(policy.prompt, enabled=True)
    if not policy.blocked and not policy.prompt.enabled and stated != PromptPolicy(enabled=True):
        yield "prompt.enabled = false: the other keys of this guard have no effect"
    if policy.prompt.near is None and policy.prompt.near_action != PromptPolicy().near_action and policy.prompt.enabled:
        yield "prompt.near_action has no effect without prompt.near: no prompt is compared with titles"
    if policy.prompt.enabled and policy.prompt.titles == "off" and policy.prompt.near is None and not policy.blocked:
        yield 'prompt.enabled = true, titles = "off", and there is neither prompt.near nor [[blocked]]: nothing is looked for'
    if policy.vision_language != VisionLanguagePolicy() and not policy.questions:
        yield "there is [vision_language], and no [[questions]]: the model is never asked"
    if not policy.faithfulness.enabled and policy.faithfulness != FaithfulnessPolicy():
        yield "faithfulness.enabled = false: the other keys of this guard have no effect"
    if policy.faithfulness.enabled and policy.faithfulness.action == "steer" and not policy.ladder:
        yield "faithfulness.action = steer and there is no [[ladder]]: a lost prompt is not drawn again, it ends at once"
