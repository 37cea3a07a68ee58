from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from index import storage
from index.calibrate import calibrate
from index.doctor import NOTE, PROBLEM, Fired, Remark, look_over
from index.embed import Embedder
from index.reference import NewReference
from index.store import ReferenceIndex
from tests.index.conftest import drawing, work


@pytest.fixture
def index(tmp_path: Path, embedder: Embedder) -> ReferenceIndex:
    """Four references; of the last nobody recorded whose it is."""
    works = [work(seed, rightsholder="A") for seed in range(3)]
    return ReferenceIndex.build(tmp_path / "index", [*works, work(3)], embedder)


def ref_of(index: ReferenceIndex, title: str) -> str:
    return next(reference.ref_id for reference in index.references() if reference.title == title)


def of_topic(found: list[Remark], topic: str) -> list[Remark]:
    return [remark for remark in found if remark.topic == topic]


def test_a_claim_of_which_nothing_is_recorded_is_named(index: ReferenceIndex) -> None:
    (found,) = of_topic(look_over(index), "rights")
    assert found.ref_ids == (ref_of(index, "work 3"),) and found.level == NOTE


def test_two_references_that_are_one_drawing_are_named_once(index: ReferenceIndex, embedder: Embedder) -> None:
    assert not of_topic(look_over(index), "twins")
    nearly = drawing(1).copy()
    nearly[0, 0] ^= 1
    index.add([NewReference(title="again", picture=nearly)], embedder)
    (found,) = of_topic(look_over(index), "twins")
    assert set(found.ref_ids) == {ref_of(index, "work 1"), ref_of(index, "again")}


def test_references_without_picture_are_counted(index: ReferenceIndex, embedder: Embedder) -> None:
    assert not of_topic(look_over(index), "pictures")
    index.add([work(9, keep_picture=False)], embedder)
    assert of_topic(look_over(index), "pictures")[0].what.startswith("of 1 of 5 references")


def test_a_reference_that_fires_on_harmless_pictures_comes_with_the_command_that_ends_it(index: ReferenceIndex) -> None:
    ref_id = ref_of(index, "work 1")
    fired = Fired(pictures=50)
    fired.both[ref_id], fired.near[ref_id] = 3, 4
    found = look_over(index, harmless=fired)
    assert found[0].level == PROBLEM and found[0].ref_ids == (ref_id,)
    assert "3 of 50 harmless pictures" in found[0].what
    assert found[0].fix == f'clearance index set-status {index.folder} {ref_id} allowed --reason "fires on harmless pictures"'


def test_what_the_second_look_cleared_is_no_problem(index: ReferenceIndex) -> None:
    fired = Fired(pictures=50)
    fired.near[ref_of(index, "work 1")] = 4
    (found,) = of_topic(look_over(index, harmless=fired), "harmless")
    assert found.level == NOTE


@pytest.mark.parametrize(("times", "named"), [(40, True), (4, False)])
def test_a_reference_near_many_pictures_of_runs_is_named(index: ReferenceIndex, times: int, named: bool) -> None:
    fired = Fired(pictures=200)
    fired.near[ref_of(index, "work 2")] = times
    assert bool(of_topic(look_over(index, runs=fired), "often")) is named


def test_a_reference_that_people_overrule_is_a_problem(index: ReferenceIndex) -> None:
    fired = Fired(pictures=200)
    fired.accepted[ref_of(index, "work 2")] = 2
    (found,) = of_topic(look_over(index, runs=fired), "overruled")
    assert found.level == PROBLEM and "people accepted 2 pictures" in found.what


def test_without_calibration_it_says_that_nobody_measured(index: ReferenceIndex) -> None:
    assert "no calibration was made" in of_topic(look_over(index), "calibration")[0].what


def _calibrated(index: ReferenceIndex, copies: int, index_id: str) -> None:
    cosine = np.r_[np.full(copies, 0.9), np.full(100 - copies, 0.1), np.linspace(0, 0.5, 100)]
    found = calibrate(index.embedder_id, cosine, np.arange(200) < 100, index_id=index_id)
    found.held_to(0.5, force=True).save(index.folder / "calibration.json")


def test_an_index_on_an_object_store_is_named_by_its_place(
    memory: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on this machine is a copy: nobody is told to calibrate that, or to change it."""
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    place = storage.place(memory) / "index"
    index = ReferenceIndex.build(place, [work(0), work(1)], embedder)
    again = f"clearance index calibrate {place} --works"
    assert of_topic(look_over(index), "calibration")[0].fix.startswith(again)
    fired = Fired(pictures=200)
    fired.accepted[ref_of(index, "work 1")] = 2
    assert f"set-status {place} " in of_topic(look_over(index, runs=fired), "overruled")[0].fix
    _calibrated(index, 95, "index-of-before")
    storage.write_file(place, "calibration.json", (index.folder / "calibration.json").read_bytes())
    (found,) = of_topic(look_over(index), "calibration")
    assert "the calibration was measured on another state" in found.what and found.fix.startswith(again)


def test_a_calibration_that_misses_too_much_is_a_problem(index: ReferenceIndex) -> None:
    _calibrated(index, 30, index.index_id)
    (found,) = of_topic(look_over(index), "calibration")
    assert found.level == PROBLEM and "of edited copies" in found.what


def test_a_good_calibration_of_this_state_is_not_mentioned(index: ReferenceIndex) -> None:
    _calibrated(index, 95, index.index_id)
    assert not of_topic(look_over(index), "calibration")


def test_a_calibration_of_another_state_is_named_with_its_age(index: ReferenceIndex) -> None:
    _calibrated(index, 95, "index-of-before")
    path = index.folder / "calibration.json"
    os.utime(path, (path.stat().st_mtime - 30 * 86_400,) * 2)
    (found,) = of_topic(look_over(index), "calibration")
    assert found.level == NOTE and "30 days old" in found.what


def test_a_damaged_calibration_is_a_problem(index: ReferenceIndex) -> None:
    (index.folder / "calibration.json").write_text("{}")
    assert of_topic(look_over(index), "calibration")[0].level == PROBLEM


def test_problems_come_first(index: ReferenceIndex) -> None:
    fired = Fired(pictures=50)
    fired.both[ref_of(index, "work 1")] = 3
    levels = [remark.level for remark in look_over(index, harmless=fired)]
    assert levels == sorted(levels, key=[PROBLEM, NOTE].index)
