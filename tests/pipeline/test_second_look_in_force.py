"""Which second look a run takes: the one that its index was calibrated for, and a slip is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from index.calibrate import Calibration, OperatingPoint, calibrate
from index.errors import ConfigError, IndexMismatch, ModelError
from index.keypoints import keypoints_id
from jobs.reaudit.facts import point_of_plan
from pipeline.config import RunConfig
from pipeline.copy_check import CopyCheck, copy_check_record
from pipeline.opening import operating_point
from pipeline.policy import CopiesPolicy, Policy

CONFIG = RunConfig(prompts="p.csv", index="index")
COPY = np.arange(40) < 20
SCORES = COPY * 0.5 + np.linspace(0, 0.4, 40)


def calibrated(base: Path, look: str) -> Calibration:
    (base / "index").mkdir()
    found = calibrate("tiny", SCORES, COPY, confirm=SCORES, max_added_rate=0.1).looked_by(look, SCORES, COPY)
    found.save(base / "index" / "calibration.json")
    return found


def asking(look: str, **settings: object) -> Policy:
    return Policy(name="mine", copies=CopiesPolicy(second_look=look, **settings))  # type: ignore[arg-type]


def point(base: Path, policy: Policy) -> OperatingPoint:
    return operating_point(CONFIG, policy, "tiny", base=base)[1]


@pytest.mark.parametrize("asked", ["auto", "keypoints"])
def test_a_run_takes_the_look_that_its_index_was_calibrated_for(tmp_path: Path, asked: str) -> None:
    found = calibrated(tmp_path, "keypoints")
    assert point(tmp_path, asking(asked)) == found.point and found.point.look_id == keypoints_id()
    record = copy_check_record(CONFIG, asking(asked), "tiny", base=tmp_path)
    assert point_of_plan({"copy_check": record}, asking(asked), where="here") == found.point
    check = CopyCheck.read(record, "here")
    assert check is not None and check.second_look == "keypoints"


def test_a_record_of_a_run_from_before_is_of_alignment(tmp_path: Path) -> None:
    found = calibrated(tmp_path, "alignment")
    record = copy_check_record(CONFIG, asking("auto"), "tiny", base=tmp_path)
    old = {
        name: value for name, value in record.items() if name not in ("second_look", "second_look_id", "recoloured_threshold")
    }
    read = point_of_plan({"copy_check": old}, asking("auto"), where="here")
    assert read == dataclasses.replace(found.point, look_id="")


@pytest.mark.parametrize(
    ("has", "asked"), [("alignment", "keypoints"), ("keypoints", "alignment"), ("alignment", "descriptor:a.pt")]
)
def test_a_look_that_the_index_was_not_calibrated_for_is_refused(tmp_path: Path, has: str, asked: str) -> None:
    calibrated(tmp_path, has)
    with pytest.raises(ConfigError, match=rf"asks for the second look .*the index was calibrated for '{has}'") as refused:
        point(tmp_path, asking(asked))
    assert "clearance index calibrate index --second-look" in refused.value.fix


def test_a_threshold_of_the_policys_own_knows_alignment_alone(tmp_path: Path) -> None:
    assert point(tmp_path, asking("auto", threshold=0.8)).second_look == "alignment"
    with pytest.raises(ConfigError, match="has no operating point"):
        point(tmp_path, asking("keypoints", threshold=0.8))


def test_a_threshold_that_would_set_the_calibrated_look_aside_is_refused(tmp_path: Path) -> None:
    calibrated(tmp_path, "keypoints")
    with pytest.raises(ConfigError, match="sets the calibration aside, and with it the second look 'keypoints'") as refused:
        point(tmp_path, asking("auto", threshold=0.8))
    assert 'copies.second_look = "alignment"' in refused.value.fix
    assert point(tmp_path, asking("alignment", threshold=0.8)).second_look == "alignment"
    other = operating_point(CONFIG, asking("auto", threshold=0.8), "another embedder", base=tmp_path)[1]
    assert other.second_look == "alignment"  # the calibration beside the index is not of what it is searched with


def test_a_threshold_beside_an_index_calibrated_for_alignment_is_taken(tmp_path: Path) -> None:
    calibrated(tmp_path, "alignment")
    assert point(tmp_path, asking("auto", threshold=0.8)).threshold == 0.8


def test_a_descriptor_is_the_one_that_was_measured_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x12\x0bone network")
    found = calibrated(tmp_path, f"descriptor:{tmp_path / 'a.onnx'}")
    assert point(tmp_path, asking("auto")).look_id == found.second_look_id
    (tmp_path / "moved.onnx").write_bytes(b"\x12\x0bone network")
    assert point(tmp_path, asking("descriptor:moved.onnx")).second_look == f"descriptor:{tmp_path / 'moved.onnx'}"
    (tmp_path / "other.onnx").write_bytes(b"\x12\x0fanother network")
    with pytest.raises(IndexMismatch, match="not the one that was calibrated"):
        point(tmp_path, asking("descriptor:other.onnx"))
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        point(tmp_path, asking("auto"))


@pytest.mark.parametrize("look", ["aligment", "descriptor:", "sscd.pt"])
def test_a_look_that_does_not_exist_is_refused_in_the_policy(look: str) -> None:
    with pytest.raises(ConfigError, match="second look"):
        asking(look)
