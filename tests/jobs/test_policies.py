"""`clearance policy check|show|diff`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import storage
from jobs.cli import main as cli
from jobs.policies import named, slips, values
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan, read_policy, shipped_policies
from jobs.run.preflight.notes import idle_in_a_run
from pipeline.fields import keys
from pipeline.guard_settings import PromptPolicy
from pipeline.policy import Policy
from pipeline.settings import from_dict

STRICT = """\
name = "strict"
when_exhausted = "rejected"

[about]
owner = "head of data"

[copies]
threshold = 0.7
action = "reject"

[text]
action = "review"
least_signs = 3

[[mark_ladder]]
kind = "reseed"
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    (tmp_path / "strict.toml").write_text(STRICT)
    return tmp_path / "strict.toml"


def slips_of(**rules: Any) -> list[str]:
    rules = {"name": "own", "about": {"owner": "x"}, "ladder": [{"kind": "reseed"}], "unsafe": {"enabled": False}} | rules
    return slips(from_dict(Policy, rules, where="policy"))


# --- check -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_policies()))
def test_a_policy_that_ships_has_no_slip_but_a_missing_extra(name: str) -> None:
    found = [one for one in slips(read_policy(name, Path())) if "is not available on this machine" not in one]
    assert found == (["every guard only observes: whatever is found, the picture is released"] if name == "observe" else [])


OBSERVE = {name: {"action": "observe"} for name in ("copies", "marks", "codes", "text")}


@pytest.mark.parametrize(
    ("rules", "slip"),
    [
        ({"copies": {"threshold": 0.999}}, "copies.threshold = 0.999: hardly any picture reaches it"),
        (OBSERVE, "every guard only observes"),
        ({"ladder": []}, "copies.action = steer and there is no [[ladder]]"),
        ({"ladder": []}, "neither [[mark_ladder]] nor [[ladder]]: what marks, codes, text find ends as review at once"),
        (
            OBSERVE | {"copies": {"action": "reject"}, "ladder": [], "mark_ladder": [{"kind": "reseed"}]},
            "there is a [[mark_ladder]], and no guard but copies steers",
        ),
        (OBSERVE | {"copies": {"action": "reject"}}, "there is a [[ladder]], and no guard steers"),
        ({"text": {"enabled": False, "action": "review"}}, "text.enabled = false: the other keys of this guard have no effect"),
        ({"name": "default"}, "name = 'default' is that of a policy that ships, and the rules are others"),
        ({"about": {}}, "nobody is named who answers for it: about.owner"),
    ],
)
def test_likely_slips_are_named(rules: dict[str, Any], slip: str) -> None:
    assert any(slip in one for one in slips_of(**rules)), slips_of(**rules)


def test_an_ordinary_policy_has_no_slip() -> None:
    assert slips_of() == []


def test_check_refuses_what_a_run_would_refuse(strict: Path) -> None:
    strict.write_text(STRICT.replace("threshold = 0.7", "threshold = 70"))
    refused = call("policy", "check", strict)
    assert refused.exit_code == 2
    assert "line 8: copies.threshold" in refused.stderr and "Did you mean 0.7?" in refused.stderr


def test_check_of_a_good_policy(strict: Path) -> None:
    found = json.loads(call("policy", "check", strict, "--json").stdout)
    assert (found["ok"], len(found["sha256"])) == (True, 64)
    assert any("no guard steers" in one for one in found["notes"]) is False


def test_a_name_that_is_no_policy_lists_those_that_ship(tmp_path: Path) -> None:
    refused = call("policy", "show", "defualt")
    assert refused.exit_code == 2 and "one of default, observe" in refused.stderr


COLOUR = {"name": "colour", "model": "gone", "labels": "red"}
ASKED = {"vision_language": {"address": "http://127.0.0.1:9/v1", "model": "m", "key": "CLEARANCE_NO_SUCH_KEY"}}
QUESTION = {"name": "red", "ask": "Is it mostly red?"}


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"blocked": [{"words": "cat"}]}, "prompt.enabled = false: no prompt is looked at"),
        ({"prompt": {"near": 0.9}}, "prompt.enabled = false: the other keys"),
        ({"prompt": {"enabled": True, "near_action": "reject"}}, "prompt.near_action has no effect without prompt.near"),
        ({"prompt": {"enabled": True, "titles": "off"}}, "nothing is looked for"),
        ({"vision_language": {"model": "m"}}, "no [[questions]]: the model is never asked"),
        ({"faithfulness": {"threshold": 0.4}}, "faithfulness.enabled = false"),
        ({"faithfulness": {"enabled": True, "action": "steer"}, "ladder": []}, "a lost prompt is not drawn again"),
        ({"classifiers": [COLOUR | {"threshold": 0.99}]}, "classifier:colour.threshold = 0.99: hardly any picture"),
        ({"guards": [{"name": "nope"}]}, "nope is not available on this machine (no installed package brings it)"),
        ({"classifiers": [COLOUR]}, "classifier:colour is not available on this machine (guard classifier:colour: gone"),
        (
            ASKED | {"questions": [QUESTION]},
            "question:red is not available on this machine (guard question:red: the environment",
        ),
    ],
)
def test_slips_about_brought_guards_are_named(rules: dict[str, Any], sentence: str) -> None:
    assert [one for one in slips_of(**rules) if sentence in one]


def test_a_run_notes_that_a_safeguard_is_idle() -> None:
    """What `policy check` says of it, a run and a dry run say as well; of a policy that ships its name says it."""
    blocked = {"name": "own", "blocked": [{"words": "cat"}], "ladder": [{"kind": "reseed"}], "yolo": {"threshold": 0.4}}
    found = idle_in_a_run(from_dict(Policy, blocked, where="policy"))
    assert found == [
        "yolo.enabled = false: the other keys of this guard have no effect",
        "there is [[blocked]], and prompt.enabled = false: no prompt is looked at",
    ]
    assert idle_in_a_run(from_dict(Policy, OBSERVE | {"name": "own", "unsafe": {"enabled": False}}, where="policy"))
    for name in shipped_policies():
        assert idle_in_a_run(read_policy(name, Path())) == []
        assert idle_in_a_run(replace(read_policy(name, Path()), prompt=PromptPolicy(near=0.9)))


# --- show ------------------------------------------------------------------------------------------------------------------


def shown(name: str | Path) -> dict[str, tuple[str, str, bool]]:
    return {one.key: (one.value, one.source, one.differs) for one in values(named(str(name), Path.cwd()))}


def test_show_says_where_each_value_comes_from(strict: Path) -> None:
    found = shown(strict)
    assert found["copies.threshold"] == ("0.7", "line 8", True)
    assert found["text.action"] == ('"review"', "line 12", True)
    assert found["text.least_signs"] == ("3", "line 13", False)  # stated, and what it would be anyway
    assert found["copies.k"] == ("3", "default", False)
    assert found["marks.action"][0].startswith("steer on the family of models")
    assert found["mark_ladder no. 1: kind"] == ('"reseed"', "line 16", True)


def test_what_differs_comes_first(strict: Path) -> None:
    differs = [one.differs for one in values(named(str(strict), Path.cwd()))]
    assert differs == sorted(differs, reverse=True) and True in differs and False in differs


def test_every_key_of_a_policy_is_shown(strict: Path) -> None:
    plain = {".".join(map(str, key.loc)) for key in keys(Policy) if key.shape in ("value", "list") and 0 not in key.loc}
    assert plain <= set(shown(strict))


def test_a_run_file_shows_the_policy_that_it_names(strict: Path) -> None:
    run_file = strict.with_name("run.toml")
    run_file.write_text('prompts = "p.csv"\npolicy = "strict.toml"\n')
    assert shown(run_file) == shown(strict)


def test_show_on_the_terminal(strict: Path) -> None:
    lines = call("policy", "show", strict).output.splitlines()
    assert lines[1] == "other than without the key:"
    assert lines.index("as without the key:") > lines.index("other than without the key:") + 5


# --- diff ------------------------------------------------------------------------------------------------------------------


def test_the_same_rules_are_no_difference(strict: Path) -> None:
    copy = strict.with_name("copy.toml")
    copy.write_text(STRICT.replace('"strict"', '"other"').replace("head of data", "someone else"))
    done = call("policy", "diff", strict, copy)
    assert done.exit_code == 0 and "the same rules" in done.output


def test_a_difference_is_named_and_exits_with_1(strict: Path) -> None:
    other = strict.with_name("other.toml")
    other.write_text(STRICT.replace("threshold = 0.7", "threshold = 0.75"))
    done = call("policy", "diff", strict, other, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["changes"] == [{"key": "copies.threshold", "before": "0.7", "now": "0.75"}]
    assert "copies.threshold" in call("policy", "diff", strict, other).output


def test_a_policy_against_that_of_a_finished_run(
    strict: Path, make_plan: Callable[..., Plan], open_loop: Callable[..., Any]
) -> None:
    run = strict.with_name("run")
    run_local(make_plan(["cat"], rules=read_policy(str(strict), Path())), run, open_loop=open_loop)
    assert call("policy", "diff", run, strict).exit_code == 0
    changed = json.loads(call("policy", "diff", run, "default", "--json").stdout)
    assert {"key": "copies.action", "before": "reject", "now": "steer"} in changed["changes"]
    assert shown(run)["copies.threshold"] == ("0.7", "plan.json of the run", True)


def test_a_policy_on_an_object_store(strict: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    storage.write_file(storage.place(f"memory://{tmp_path.name}"), "strict.toml", STRICT.encode())
    uri = f"memory://{tmp_path.name}/strict.toml"
    assert shown(uri) == shown(strict)
    assert call("policy", "diff", uri, strict).exit_code == 0


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = call("policy", "show", tmp_path)
    assert done.exit_code == 2 and "is a folder, and no run" in done.stderr
