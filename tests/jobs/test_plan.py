from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError, InputError, IntegrityError, PlanMismatch
from jobs.keys import c2pa_test_chain, new_keys
from jobs.run.folder import open_folder
from jobs.run.plan import Plan, read_policy, requests_of, run_place
from jobs.run.planning.bound import MODEL_KEYS_OF_LATER
from jobs.run.ray.actor import for_this_card
from pipeline.config import AdapterConfig, ColumnsConfig, GenerationConfig, GuardsConfig, MarksConfig, ModelConfig
from pipeline.policy import AboutPolicy, Policy
from pipeline.rungs import NegToMeRung, ReseedRung
from pipeline.settings import digest

PROMPTS = ["cat", "owl", "fox", "dog", "bee"]
MakePlan = Callable[..., Plan]


def test_shards_are_contiguous_and_named_by_their_first_row(make_plan: MakePlan) -> None:
    plan = make_plan(PROMPTS)
    assert [len(shard.requests) for shard in plan.shards] == [2, 2, 1]
    assert [shard.shard_id.split("-")[0] for shard in plan.shards] == ["000000", "000002", "000004"]
    assert sum((shard.requests for shard in plan.shards), ()) == plan.requests
    other = make_plan(["cat", "owl", "fox", "cow", "bee"])
    assert [a.shard_id == b.shard_id for a, b in zip(plan.shards, other.shards, strict=True)] == [True, False, True]


@pytest.mark.parametrize("settings", [
    {"workers": 4}, {"workers": "auto"}, {"device_share": 0.5}, {"deadline_seconds": 60}, {"max_error_rate": 1},
    {"out": "elsewhere"}, {"index": "moved"}, {"policy": "copied.toml"},
])  # fmt: skip
def test_digest_does_not_depend_on_who_and_where(make_plan: MakePlan, settings: dict[str, object]) -> None:
    assert make_plan(PROMPTS, **settings).plan_sha256 == make_plan(PROMPTS).plan_sha256


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("policy", {"rules": Policy(version="2")}),
        ("config", {"generation": GenerationConfig(steps=30)}),
        ("config", {"shard_size": 3}),
        ("requests", {"base_seed": 1}),
    ],
)
def test_digest_depends_on_what_is_drawn_and_allowed(make_plan: MakePlan, part: str, settings: dict[str, object]) -> None:
    plan, changed = make_plan(PROMPTS), make_plan(PROMPTS, **settings)
    assert changed.plan_sha256 != plan.plan_sha256
    assert changed.parts[part] != plan.parts[part]


def test_digest_depends_on_prompts_and_identity(make_plan: MakePlan) -> None:
    plan = make_plan(PROMPTS)
    assert make_plan([*PROMPTS[:-1], "ant"]).plan_sha256 != plan.plan_sha256
    assert replace(plan, identity={**plan.identity, "index_id": "other"}).plan_sha256 != plan.plan_sha256


def test_plan_survives_pickle_and_folder(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan([*PROMPTS, "", "fin"], rules=Policy(ladder=(NegToMeRung(alpha=0.5), ReseedRung())))
    folder, run_id = open_folder(tmp_path / "run", plan)
    assert Plan.load(folder) == plan == pickle.loads(pickle.dumps(plan))
    assert Plan.load(folder).plan_sha256 == plan.plan_sha256 and plan.requests[5].problem
    assert open_folder(folder, plan, resume=True) == (folder, run_id)


def test_folder_of_the_same_plan_needs_resume(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(PROMPTS)
    open_folder(tmp_path / "run", plan)
    with pytest.raises(PlanMismatch, match="--resume"):
        open_folder(tmp_path / "run", plan)


@pytest.mark.parametrize("resume", [False, True])
def test_folder_of_another_plan_is_refused_with_what_changed(make_plan: MakePlan, tmp_path: Path, resume: bool) -> None:
    folder, _ = open_folder(tmp_path / "run", make_plan(PROMPTS))
    (folder / "commits").mkdir()
    (folder / "commits" / "000000-00000000.json").touch()  # something was committed; without it the plan may be replaced
    with pytest.raises(PlanMismatch, match="another plan") as caught:
        open_folder(tmp_path / "run", make_plan(PROMPTS, rules=Policy(version="2")), resume=resume)
    assert "changed: policy" in caught.value.what and "requests" not in caught.value.what


def test_a_run_is_resumed_under_the_policy_it_began_with(make_plan: MakePlan, tmp_path: Path) -> None:
    """The policy's file, or the policy that ships, was changed since: the folder itself stands for what it was."""
    rules = Policy(version="1", ladder=(NegToMeRung(alpha=0.5), ReseedRung()), about=AboutPolicy(owner="Ada"))
    folder, run_id = open_folder(tmp_path / "run", make_plan(PROMPTS, rules=rules))
    (folder / "commits").mkdir()
    (folder / "commits" / "000000-00000000.json").touch()
    with pytest.raises(PlanMismatch, match="another plan") as caught:
        open_folder(folder, make_plan(PROMPTS, rules=Policy(version="2")), resume=True)
    assert f"--resume --policy {folder}" in caught.value.fix
    kept = read_policy("run", tmp_path)
    assert kept == rules == read_policy(str(folder), Path())
    assert open_folder(folder, make_plan(PROMPTS, rules=kept), resume=True) == (folder, run_id)
    with pytest.raises(PlanMismatch) as caught:  # more changed than the policy: it alone does not help
        open_folder(folder, make_plan([*PROMPTS, "ant"], rules=Policy(version="2")), resume=True)
    assert "--policy" not in caught.value.fix
    (folder / "plan.json").write_text((folder / "plan.json").read_text().replace("0.5", "0.9"))
    with pytest.raises(IntegrityError, match="was changed"):
        read_policy("run", tmp_path)


def test_a_folder_that_holds_no_run_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    with pytest.raises(ConfigError, match="there is no policy 'rules'"):
        read_policy("rules", tmp_path)


def test_folder_with_other_files_is_left_alone(make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(PlanMismatch, match="not empty"):
        open_folder(tmp_path / "home", make_plan(PROMPTS))
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


def test_changed_plan_file_is_noticed(make_plan: MakePlan, tmp_path: Path) -> None:
    folder, _ = open_folder(tmp_path / "run", make_plan(PROMPTS))
    stored = json.loads((folder / "plan.json").read_text())
    stored["policy"]["copies"]["threshold"] = 0.99
    (folder / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(IntegrityError, match="policy"):
        Plan.load(folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(IntegrityError):
        Plan.load(folder)


def test_a_plan_that_an_older_version_made_is_named_as_one(make_plan: MakePlan, tmp_path: Path) -> None:
    folder, _ = open_folder(tmp_path / "run", make_plan(PROMPTS))
    stored = json.loads((folder / "plan.json").read_text())
    stored["policy"]["copies"]["threshold"] = 0.0  # what once meant the calibrated one
    (folder / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(IntegrityError, match=r"copies\.threshold: must be above 0") as caught:
        Plan.load(folder)
    assert "Another version made it" in caught.value.fix


def test_restriction_to_keys(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(PROMPTS)
    part = Plan.make(
        plan.config, plan.policy, tmp_path, identity=plan.identity, only=["row-000003", "row-000001"], parent="abc"
    )
    assert part.requests == (plan.requests[1], plan.requests[3])
    assert part.parts["parent"] == "abc"
    with pytest.raises(InputError, match="no longer in the prompts"):
        Plan.make(plan.config, plan.policy, tmp_path, identity=plan.identity, only=["gone"])


def test_output_uris(tmp_path: Path) -> None:
    assert run_place("runs/a", tmp_path) == tmp_path / "runs/a"
    assert run_place("file:///data/a", tmp_path) == Path("/data/a")
    assert str(run_place("s3://bucket/a", tmp_path)) == "s3://bucket/a"
    with pytest.raises(ConfigError, match="nothing here opens ftp://"):
        run_place("ftp://bucket/a", tmp_path)
    with pytest.raises(ConfigError, match="--out"):
        run_place("", tmp_path)


def test_marks_are_bound_and_the_place_of_keys_is_not(make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    plain, off = make_plan(PROMPTS), make_plan(PROMPTS, marks=MarksConfig(c2pa="off"))
    assert make_plan(PROMPTS, marks=MarksConfig(keys="keys")).plan_sha256 == plain.plan_sha256
    moved = MarksConfig(keys=str(tmp_path), c2pa="off", signer="awskms:somewhere")
    assert make_plan(PROMPTS, marks=moved).plan_sha256 == off.plan_sha256 != plain.plan_sha256


def test_whether_pictures_are_signed_is_bound_and_the_certificate_is_not(make_plan: MakePlan, tmp_path: Path) -> None:
    new_keys(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "renewed")
    for name, data in c2pa_test_chain().items():
        (tmp_path / "renewed" / name).write_bytes(data)
    plans = [make_plan(PROMPTS, marks=MarksConfig(keys=name)) for name in ("one", "renewed")]
    assert plans[0].plan_sha256 == plans[1].plan_sha256 != make_plan(PROMPTS).plan_sha256
    assert plans[0].parts["marks.c2pa"] == "signed by a test certificate"


def test_a_plan_that_says_nothing_of_marks_has_the_digest_of_before(make_plan: MakePlan) -> None:
    """A run that an earlier version began can be read and resumed."""
    settings = asdict(make_plan(PROMPTS).config)
    for name in (
        "workers",
        "device_share",
        "feature_mib",
        "deadline_seconds",
        "max_error_rate",
        "out",
        "prompts",
        "columns",
        "index",
        "policy",
        "embedder",
        "guards",
        "claims_contact",
        "metrics",
        "marks",
        "keep",
        "retention_days_held",
    ):
        del settings[name]
    for name in ("path", "allow_download", "text_encoders", "graphs", *MODEL_KEYS_OF_LATER):
        del settings["model"][name]
    for name in ("diversity", "preset", "prompt_weighting", "timestep_spacing"):
        del settings["generation"][name]
    assert make_plan(PROMPTS).parts["config"] == digest(settings)


def test_a_run_folder_keeps_the_name_of_the_keys_alone(make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "secret place" / "keys").mkdir(parents=True)
    plan = replace(make_plan(PROMPTS, marks=MarksConfig(keys=str(tmp_path / "secret place" / "keys"))), base=tmp_path / "other")
    assert plan.portable(tmp_path)["config"]["marks"]["keys"] == "keys"
    served = replace(plan, config=replace(plan.config, marks=MarksConfig(signer="awskms:our-account")))
    assert served.portable(tmp_path)["config"]["marks"]["signer"] == ""


@pytest.mark.parametrize(
    ("guards", "bound"),
    [({"workers": 2}, False), ({"deadline_seconds": 5.0}, False), ({"device": "cpu"}, False), ({"device": "cuda"}, True)],
)
def test_a_plan_binds_the_device_of_guards_and_not_how_many_processes_there_are(
    make_plan: MakePlan, guards: dict[str, Any], bound: bool
) -> None:
    changed = make_plan(PROMPTS, guards=GuardsConfig(**guards))
    assert (changed.plan_sha256 != make_plan(PROMPTS).plan_sha256) is bound


def test_a_worker_of_ray_on_another_card_has_the_same_plan(make_plan: MakePlan) -> None:
    """The rows that it writes name the plan; with another digest they would be another run's."""
    plan = make_plan(PROMPTS, model=ModelConfig(device="cuda:1"), guards=GuardsConfig(device="cuda:2"))
    there = for_this_card(plan)
    assert there.config.model.device == "cuda" and there.plan_sha256 == plan.plan_sha256
    assert plan.plan_sha256 != make_plan(PROMPTS).plan_sha256


# --- adapters --------------------------------------------------------------------------------------------------------------


def with_adapters(make_plan: MakePlan, *adapters: AdapterConfig) -> Plan:
    plan = make_plan(PROMPTS)
    return replace(plan, config=replace(plan.config, adapters=adapters))


def test_a_plan_binds_what_an_adapter_does_and_not_where_it_lies(make_plan: MakePlan) -> None:
    one = with_adapters(make_plan, AdapterConfig(path="a/style.safetensors", name="style"))
    assert with_adapters(make_plan, AdapterConfig(path="b/s.safetensors", name="style")).parts == one.parts
    for changed in ({"weight": 0.5}, {"rows": "named"}, {"name": "other"}):
        entry = AdapterConfig(**({"path": "a/style.safetensors", "name": "style"} | changed))
        assert with_adapters(make_plan, entry).parts["config"] != one.parts["config"]


def test_a_plan_of_erasers_has_the_digest_of_before_there_were_others(make_plan: MakePlan) -> None:
    assert AdapterConfig(path="eraser").bound == {"weight": 1.0, "lowrank": "auto", "tokens": "flagged"}


def test_the_adapters_of_rows_are_bound_and_come_back(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(PROMPTS)
    styled = replace(plan, requests=(replace(plan.requests[0], adapter="style:0.8"), *plan.requests[1:]))
    assert styled.parts["requests"] != plan.parts["requests"]
    folder, _ = open_folder(tmp_path / "run", styled)
    assert [request.adapter for request in Plan.load(folder).requests][:2] == ["style:0.8", ""]


def test_a_column_of_adapters_needs_adapters(make_plan: MakePlan, tmp_path: Path) -> None:
    config = replace(make_plan(PROMPTS).config, columns=ColumnsConfig(adapter="look"))
    with pytest.raises(ConfigError, match="names 'look', and no adapter is for rows that name it"):
        requests_of(config, tmp_path)


@pytest.mark.parametrize(("name", "fix"), [("defualt", "Write default"), ("my-polcy.toml", "Write my-policy.toml")])
def test_a_policy_with_a_slip_in_its_name_is_guessed(tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / "my-policy.toml").write_text('name = "p"\nversion = "1"\n')
    with pytest.raises(ConfigError) as caught:
        read_policy(name, tmp_path)
    assert caught.value.fix == f"{fix}, or one of default, observe"
    with pytest.raises(ConfigError) as caught:
        read_policy("strict", tmp_path)
    assert caught.value.fix == "Name a policy file, or one of default, observe"
