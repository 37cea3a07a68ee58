"""The policy in the report: settings as words, ladders as the keys that differ from their defaults."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jobs.run.plan import read_policy
from pipeline.audit.policy_rows import ladders, policy_rows
from pipeline.audit.report import write_report
from pipeline.policy import Policy
from pipeline.settings import from_dict


def shipped() -> dict[str, Any]:
    return dataclasses.asdict(read_policy("default", Path()))


def test_a_rung_says_only_what_differs_from_its_defaults() -> None:
    (_, copies), (_, marks) = ladders(shipped())
    assert copies[0] == ("nudge", "window = 0.4, iterations = 20, enough = 0.5, colours = all")
    assert marks == [("erase", "focus = 4"), ("erase", "places = usual, focus = 4"), ("reseed", "all at their defaults")]


def test_a_key_that_this_version_does_not_know_is_shown() -> None:
    assert ladders({"ladder": [{"kind": "nudge", "zeal": 3}]})[0][1] == [("nudge", "zeal = 3")]


def test_an_empty_ladder_has_no_table() -> None:
    assert ladders({"ladder": [], "mark_ladder": [{"kind": "reseed"}]}) == [
        ("Mark ladder: what is done about marks", [("reseed", "all at their defaults")])
    ]


def test_without_a_policy_there_is_nothing_to_show() -> None:
    assert policy_rows(None) == [] and ladders(None) == []


def test_settings_are_words_and_ladders_are_not_among_them() -> None:
    rows = dict(policy_rows(shipped()))
    assert "ladder" not in rows and "mark_ladder" not in rows
    assert rows["early"].startswith("enabled = yes, signal = latent, probes = 0.1, 0.2, 0.3")


def test_an_absent_key_says_what_is_in_force() -> None:
    rows = dict(policy_rows(shipped()))
    assert rows["copies"].startswith("threshold = the calibrated operating point of the index, ")
    assert rows["max_evals"] == "as many as the ladders need"


def test_the_page_shows_both_ladders_and_no_python(make_run: Any, tmp_path: Path) -> None:
    path, _ = write_report(make_run(tmp_path / "run").folder)
    page = path.read_text(encoding="utf-8")
    assert "1. erase</th><td>focus = 4</td>" in page
    assert "&#39;kind&#39;" not in page and "{'kind'" not in page


def rows_of(**rules: Any) -> dict[str, str]:
    return dict(policy_rows(json.loads(json.dumps(dataclasses.asdict(from_dict(Policy, rules, where="policy"))))))


def test_every_entry_of_a_brought_guard_is_a_row() -> None:
    rows = rows_of(
        classifiers=[{"name": "red", "model": "m", "labels": ["a", "b"]}], blocked=[{"words": ["x", "y"]}, {"pattern": "z+"}]
    )
    assert rows["classifier red"].startswith("enabled = yes, required = yes, model = m, allow download = no, labels = a, b")
    assert rows["blocked no. 1"] == "words = x, y, action = reject"
    assert rows["blocked no. 2"] == "pattern = z+, action = reject"


def test_guards_that_a_policy_says_nothing_of_are_no_rows() -> None:
    assert not {"classifiers", "vision_language", "questions", "prompt", "blocked", "faithfulness"} & set(rows_of())


def test_no_value_is_shown_as_python() -> None:
    rows = rows_of(blocked=[{"words": ["x"]}], prompt={"enabled": True}, faithfulness={"enabled": True})
    assert not any(sign in value for value in rows.values() for sign in "{}[]'")
