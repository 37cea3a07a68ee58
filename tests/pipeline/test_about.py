"""Who answers for a policy: shown and sealed, and no part of what the rules are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from index.undone import EDITS
from pipeline.config import RunConfig
from pipeline.policy import NEWER, AboutPolicy, Policy, policy_digest
from pipeline.settings import digest, from_dict, read_toml

ABOUT = {"owner": "head of data", "approver": "counsel", "approved_on": "2026-11-30"}


def test_an_approval_leaves_the_digest_of_the_rules() -> None:
    assert policy_digest(Policy(about=AboutPolicy(**ABOUT))) == policy_digest(Policy())


def test_a_rule_changes_the_digest() -> None:
    assert policy_digest(Policy(when_exhausted="rejected")) != policy_digest(Policy())


def test_the_digest_is_that_of_the_rules_before_there_were_later_keys() -> None:
    rules = dataclasses.asdict(Policy())
    for later in ("about", *NEWER):
        del rules[later]
    del rules["copies"]["second_look"], rules["copies"]["edits"], rules["early"]["steered"], rules["marks"]["logos"]
    assert policy_digest(Policy()) == digest(rules)


@pytest.mark.parametrize(
    ("rules", "before"),
    [
        ({}, "06f93cc3167aad683f7110b50886940a09bb9b3f3c3e515b40a6c42e00f17d98"),
        (
            {"ladder": [{"kind": "nudge"}], "early": {"enabled": True}},
            "42559e631006e9b0d5132a73e3829e8cda2321f32a555abbf125f18e5127bee0",
        ),
        ({"asked": {"text": "keep"}}, "ff201a8a33eaf5daff1a2f5e02b973f4498d96ae7d3cbca5c90d5bd4fdf28097"),
    ],
)
def test_a_run_of_before_can_be_resumed_under_its_policy(rules: dict[str, Any], before: str) -> None:
    """Digests that runs of before 2026-11-29 hold; a key that came later may not change them."""
    assert policy_digest(from_dict(Policy, rules, where="p")) == before


def test_later_keys_count_where_they_are_stated() -> None:
    rules: dict[str, Any] = {"ladder": [{"kind": "nudge"}], "early": {"enabled": True}}
    steered = rules | {"early": {"enabled": True, "steered": [0.5]}}
    coloured = rules | {"ladder": [{"kind": "nudge", "colours": "all"}]}
    logos: dict[str, Any] = rules | {"marks": {"logos": True}}
    asked = logos | {"asked": {"logo": "keep"}}
    undone = rules | {"copies": {"edits": ["inset"]}}
    every = (rules, steered, coloured, logos, asked, undone)
    assert len({policy_digest(from_dict(Policy, one, where="p")) for one in every}) == len(every)


def test_edits_are_those_that_can_be_undone_each_once() -> None:
    assert from_dict(Policy, {"copies": {"edits": list(EDITS)}}, where="p").copies.edits == EDITS
    with pytest.raises(ConfigError, match="'inset' stands there twice"):
        from_dict(Policy, {"copies": {"edits": ["inset", "turned", "inset"]}}, where="p")
    with pytest.raises(ConfigError, match="framed"):
        from_dict(Policy, {"copies": {"edits": ["framed"]}}, where="p")


def test_logos_are_not_kept_where_nothing_looks_for_them() -> None:
    with pytest.raises(ConfigError, match=r"asked\.logo.*no guard looks for logos.*marks\.logos = true"):
        from_dict(Policy, {"asked": {"logo": "keep"}}, where="p")


def test_a_date_of_toml_is_a_day(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[about]\nowner = "a"\napprover = "b"\napproved_on = 2026-11-30\n', encoding="utf-8")
    assert read_toml(Policy, path).about.approved_on == "2026-11-30"


def test_a_stored_policy_without_about_can_be_read() -> None:
    stored = dataclasses.asdict(Policy())
    del stored["about"]
    assert from_dict(Policy, stored, where="plan.json") == Policy()


@pytest.mark.parametrize("day", ["30.11.2026", "2026-11-31", "20261130", "soon", "2026-W01-1"])
def test_what_is_no_day_is_refused(day: str) -> None:
    with pytest.raises(ConfigError, match="is no day"):
        AboutPolicy(approver="b", approved_on=day)


def test_an_approval_needs_an_approver() -> None:
    with pytest.raises(ConfigError, match="has no approver"):
        AboutPolicy(approved_on="2026-11-30")


@pytest.mark.parametrize("value", [{"approved_on": 7}, {"ownr": "x"}])
def test_odd_keys_and_values_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_dict(Policy, {"about": value}, where="policy.toml")


def test_where_to_claim_is_no_part_of_the_plan() -> None:
    from jobs.run.plan import Plan

    plans = [
        Plan(config=RunConfig(prompts="p.csv", claims_contact=contact), policy=Policy(), base=Path(), requests=())
        for contact in ("", "claims@example.org")
    ]
    assert plans[0].plan_sha256 == plans[1].plan_sha256
