"""Keys of a run file about sampler and model, and the refusals of values that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.policy import GuardPolicy, Policy, remarks
from pipeline.settings import from_dict, read_toml

EXAMPLES = Path(__file__).resolve().parents[2] / "infra" / "examples"


def read(tmp_path: Path, text: str) -> RunConfig:
    (tmp_path / "run.toml").write_text(f'prompts = "p.csv"\n{text}\n', encoding="utf-8")
    return read_toml(RunConfig, tmp_path / "run.toml")


def test_sampler_and_model_keys(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert (config.generation.scheduler, config.generation.eta, config.generation.true_guidance_scale) == ("auto", 0.0, 1.0)
    assert (config.model.size, config.model.variant, config.model.text_tokens) == (None, "", None)
    assert read(tmp_path, '[generation]\nscheduler = "ddim"\neta = 1').generation.eta == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[generation]\nscheduler = "dpm"', r"generation: scheduler|'dpm' is not allowed.*'dpmpp_2m'"),
        ("[generation]\neta = 1.5", r"generation\.eta: must be from 0 to 1, not 1\.5"),
        ("[model]\ntext_tokens = 600", r"model\.text_tokens: must be from 1 to 512, not 600"),
        ("[model]\nsize = -8", r"model\.size: must be from 8 to 4096, not -8"),
        ("[generation]\nsampler = 1", r"unknown key 'sampler'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(("name", "scheduler"), [("run-sdxl.toml", "dpmpp_2m"), ("run-flux.toml", "auto")])
def test_examples_of_other_classes(name: str, scheduler: str) -> None:
    config = read_toml(RunConfig, EXAMPLES / name)
    assert config.generation.scheduler == scheduler and config.model.device == "cuda" and config.model.allow_download


def test_another_class_in_python_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="codes: must be a CodesPolicy, not a GuardPolicy"):
        Policy(codes=GuardPolicy())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "remark"),
    [
        ({"copies": {"threshold": 1}}, "copies.threshold = 1: hardly any picture reaches it"),
        ({"marks": {"threshold": 0.99}}, "marks.threshold = 0.99: hardly any picture reaches it"),
        ({"copies": {"threshold": 0.8, "confirm_threshold": 1}}, "copies.confirm_threshold = 1: the second look hardly ever"),
        ({"early": {"enabled": True, "threshold": 1}}, "early.threshold = 1: hardly any sample reaches it"),
        ({"prompt": {"enabled": True, "near": 0.99}}, "prompt.near = 0.99: hardly any prompt is so near"),
        ({"text": {"least_signs": 100}}, "text.least_signs = 100: hardly any word is so long"),
        ({"guards": [{"name": "own", "threshold": 0.999}]}, "own.threshold = 0.999: hardly any picture reaches it"),
        (
            {"prompt": {"enabled": True}, "blocked": [{"words": "napalm, bomb"}]},
            "blocked.words has 'napalm, bomb', which is one",
        ),
        ({"unsafe": {"threshold": 0.001}}, "unsafe.threshold = 0.001: nearly every picture reaches it"),
    ],
)
def test_a_threshold_that_leaves_a_guard_nothing_to_do_is_remarked_on(settings: dict[str, Any], remark: str) -> None:
    (found,) = remarks(from_dict(Policy, settings, where="policy"))
    assert found.startswith(remark)


@pytest.mark.parametrize(
    "settings", [{}, {"copies": {"threshold": 0.85}}, {"codes": {"threshold": 1}}, {"yolo": {"enabled": False, "threshold": 1}}]
)
def test_other_thresholds_are_not(settings: dict[str, Any]) -> None:
    assert remarks(from_dict(Policy, settings, where="policy")) == []


@pytest.mark.parametrize(
    ("ladder", "rung", "message"),
    [
        ("ladder", {"kind": "erase"}, r"ladder no\. 1: kind: 'erase' is not allowed"),
        ("mark_ladder", {"kind": "nudge"}, r"mark_ladder no\. 1: kind: 'nudge' is not allowed"),
        ("mark_ladder", {"kind": "reseed", "strength": 0.5}, r"strength: 'strength' means nothing to kind 'reseed'"),
        ("mark_ladder", {"kind": "erase", "resume_fraction": 1.5}, r"resume_fraction: must be from 0 to 1"),
        ("mark_ladder", {"kind": "reseed", "focus": 2.0}, r"focus: 'focus' means nothing to kind 'reseed'"),
        ("mark_ladder", {"kind": "reseed", "places": "usual"}, r"places: 'places' means nothing to kind 'reseed'"),
    ],
)
def test_each_ladder_has_its_own_kinds(ladder: str, rung: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Policy, {ladder: [rung]}, where="policy")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("heun", "euler"), ("DPM++ 2M Karras", "dpmpp_2m"), ("dpmpp_2m_sde_karras", "dpmpp_2m_sde"),
        ("euler_ancestral", "euler_a"),
        ("PNDMScheduler", "ddim"), ("EulerAncestralDiscreteScheduler", "euler_a"), ("DEISMultistepScheduler", "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"), ("HeunDiscreteScheduler", "euler"), ("plms", "ddim"), ("uni_pc", "unipc"),
        ("DPM++ SDE", "dpmpp_2m_sde"), ("FlowMatchEulerDiscreteScheduler", "flow_match_euler"), ("lcm ", "lcm"),
        ("KDPM2AncestralDiscreteScheduler", "euler_a"), ("LMSDiscreteScheduler", "euler"), ("UniPCMultistepScheduler", "unipc"),
    ],
)  # fmt: skip
def test_a_sampler_of_another_program_is_refused_with_the_nearest(name: str, ours: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'prompts = "p.txt"\n[generation]\nscheduler = "{name}"\n')
    with pytest.raises(ConfigError, match=rf"generation\.scheduler: '.*' is not among them\. Use '{ours}', the nearest"):
        read_toml(RunConfig, tmp_path / "run.toml")
