from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from jobs import doctor


def weights(folder: Path) -> Path:
    world = folder / "world"
    world.mkdir()
    (world / "model.safetensors").write_bytes(b"weights")
    (world / "digests.json").write_text(json.dumps({"model.safetensors": hashlib.sha256(b"weights").hexdigest()}))
    return world


def test_weights_that_match(tmp_path: Path) -> None:
    weights(tmp_path)
    [line] = doctor.check_weights(tmp_path)
    assert line.state == "ok" and "1 files" in line.what


@pytest.mark.parametrize("harm", ["change", "remove", "garble", "nothing"])
def test_weights_that_do_not(tmp_path: Path, harm: str) -> None:
    if harm != "nothing":
        world = weights(tmp_path)
        if harm == "change":
            (world / "model.safetensors").write_bytes(b"other")
        elif harm == "remove":
            (world / "model.safetensors").unlink()
        else:
            (world / "digests.json").write_text("{")
    [line] = doctor.check_weights(tmp_path)
    assert line.state == "missing" and "restore" in line.what


def test_the_names_are_claimed_by_nobody_else() -> None:
    assert doctor.strangers() == {}


def test_a_stranger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor.metadata, "packages_distributions", lambda: {"index": ["clearance", "card-index"], "numpy": ["numpy"]}
    )
    assert doctor.strangers() == {"index": ["card-index"]}


def test_everything_is_examined(tmp_path: Path) -> None:
    weights(tmp_path)
    lines = doctor.examine(tmp_path)
    topics = {line.topic for line in lines}
    assert {"python", "clearance", "torch", "cpu", "import names", "guard codes", "guard text", "weights world"} <= topics
    assert all(line.what and line.state in ("ok", "note", "missing") for line in lines)
    assert [line for line in lines if line.state == "missing"] == []


def test_a_package_that_is_too_old_is_missing() -> None:
    [line] = doctor.packages(["numpy>=999"], [])
    assert line.state == "missing"
    assert ">=999 is required: pip install 'numpy>=999'" in line.what


def test_a_package_for_other_pythons_is_not_asked_for() -> None:
    assert list(doctor.packages(["no-such-package; python_version < '3'"], [])) == []


def test_a_package_of_an_extra_counts_for_that_extra_alone() -> None:
    required = ["numpy>=2; extra == 'one'", "no-such-package; extra == 'two' and python_version >= '3'"]
    assert [(line.topic, line.state) for line in doctor.packages(required, ["one", "two"])] == [
        ("extra one", "ok"),
        ("extra two", "note"),
    ]


def test_a_missing_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    required = ["torch>=2", "no-such-package>=1", 'no-such-extra; extra == "yolo"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    states = {line.topic: line.state for line in doctor.examine(tmp_path)}
    assert (states["torch"], states["no-such-package"], states["extra yolo"]) == ("ok", "missing", "note")
