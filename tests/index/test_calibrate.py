"""Thresholds from labelled scores: the limit holds, the intervals are Wilson's, the file is bound to its numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from index.calibrate import NEVER, Calibration, calibrate
from index.errors import InputError, IntegrityError
from index.precision import average_precision
from index.rate import Rate


def scores(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    copy = rng.random(n) < 0.4
    return np.where(copy, rng.normal(0.85, 0.06, n), rng.normal(0.5, 0.12, n)), copy


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.5])
def test_the_threshold_is_the_smallest_that_keeps_the_limit(limit: float) -> None:
    similarity, copy = scores()
    found = calibrate("e", similarity, copy, max_false_positive_rate=limit)
    misses = similarity[~copy]
    assert (misses >= found.threshold).mean() <= limit
    lower = misses[misses < found.threshold].max()
    assert (misses >= lower).mean() > limit  # any smaller threshold that changes anything breaks the limit
    assert found.false_positive_rate.hits == int((misses >= found.threshold).sum())
    assert found.recall.hits == int((similarity[copy] >= found.threshold).sum()) and found.recall.n == int(copy.sum())
    assert found.precision.n == found.recall.hits + found.false_positive_rate.hits


def test_tied_near_misses_stay_below_the_threshold() -> None:
    similarity, copy = np.array([0.9, 0.8, 0.8, 0.8, 0.3]), np.array([True, False, False, False, True])
    found = calibrate("e", similarity, copy, max_false_positive_rate=0.34)
    assert 0.8 < found.threshold <= 0.9 and found.false_positive_rate.hits == 0 and found.recall.hits == 1


def test_the_second_look_can_only_remove() -> None:
    similarity, copy = scores()
    confirm = np.where(copy, 0.9, 0.2)
    found = calibrate("e", similarity, copy, confirm=confirm, max_false_positive_rate=0.2)
    assert found.confirmed_recall == found.recall
    assert found.confirmed_false_positive_rate is not None and found.confirmed_false_positive_rate.hits == 0
    assert found.false_positive_rate.hits > 0


def test_wilson_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    rate = Rate.of(81, 263)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    assert Rate.of(0, 20).low == 0 and round(Rate.of(0, 20).high, 4) == 0.1611
    assert Rate.of(20, 20).high == 1 and Rate.of(0, 0) == Rate(value=0.0, low=0.0, high=1.0, hits=0, n=0)


def test_average_precision() -> None:
    # By hand: hits at ranks 1 and 3 of 4 → (1/1 + 2/3) / 2.
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0], bool)) == pytest.approx(5 / 6)
    assert average_precision(np.array([0.5, 0.5]), np.array([1, 0], bool)) == 0.5
    similarity, copy = scores()
    assert average_precision(similarity, copy) > average_precision(-similarity, copy)


def test_the_curve_falls_from_loose_to_strict() -> None:
    found = calibrate("e", *scores())
    assert found.curve[0][0] > found.curve[-1][0] and found.curve[-1][1:] == (1.0, 1.0)
    recalls = [point[1] for point in found.curve]
    assert recalls == sorted(recalls)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    similarity, copy = scores()
    found = calibrate("openclip-1", similarity, copy, confirm=similarity, index_id="index-1", source="here")
    found.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == found
    assert calibrate("openclip-1", similarity, copy, confirm=similarity, index_id="index-1", source="here") == found
    assert calibrate("openclip-2", similarity, copy).calibration_id != found.calibration_id


def test_an_edited_threshold_is_found(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibrate("e", *scores()).save(path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, "threshold": 0.99}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="calibration_id"):
        Calibration.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"threshold": 1}', "\x00"])
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"c\.json.*is not a calibration"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("similarity", "copy"),
    [
        ([0.1, 0.2], [True, True]),
        ([0.1, 0.2], [False, False]),
        ([0.1], [True, False]),
        ([np.nan, 1.0], [True, False]),
        ([], []),
    ],
)
def test_unusable_pairs_are_refused(similarity: list[float], copy: list[bool]) -> None:
    with pytest.raises(InputError):
        calibrate("e", np.array(similarity, float), np.array(copy, bool))


def test_the_second_look_alone_adds_no_more_than_it_may() -> None:
    similarity, copy = scores()
    rng = np.random.default_rng(1)
    confirm = np.clip(np.where(copy, rng.normal(0.8, 0.2, len(copy)), rng.normal(0.4, 0.2, len(copy))), 0, 1)
    plain = calibrate("e", similarity, copy, confirm=confirm, max_false_positive_rate=0.01)
    both = calibrate("e", similarity, copy, confirm=confirm, max_false_positive_rate=0.01, max_added_rate=0.02)
    assert plain.either_recall is None and plain.point.alone_threshold == NEVER
    assert both.threshold == plain.threshold and both.recall == plain.recall
    assert both.either_recall is not None and both.either_false_positive_rate is not None
    assert both.either_recall.hits > both.recall.hits
    added = both.either_false_positive_rate.hits - both.false_positive_rate.hits
    assert 0 < added <= 0.02 * (~copy).sum()
    assert both.point.look_from <= both.threshold and (similarity[copy] >= both.look_from).mean() >= 0.98


def test_an_operating_point_survives_the_file(tmp_path: Path) -> None:
    similarity, copy = scores()
    found = calibrate("e", similarity, copy, confirm=copy * 0.9, max_added_rate=0.01)
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found and Calibration.load(tmp_path / "c.json").point == found.point


def test_the_veto_loses_no_more_copies_than_it_may() -> None:
    similarity, copy = scores()
    rng = np.random.default_rng(2)
    confirm = np.clip(np.where(copy, rng.normal(0.7, 0.2, len(copy)), rng.normal(0.1, 0.1, len(copy))), 0, 1)
    rates = {"max_false_positive_rate": 0.3, "max_added_rate": 0.0}
    free, strict = (calibrate("e", similarity, copy, confirm=confirm, max_vetoed_rate=v, **rates) for v in (0.0, 0.05))
    assert free.veto_below == 0 < strict.veto_below <= 0.25
    for found in (free, strict):
        assert found.either_recall is not None and found.either_false_positive_rate is not None
    assert free.either_recall.hits - strict.either_recall.hits <= 0.05 * free.recall.hits
    assert strict.either_false_positive_rate.hits < free.either_false_positive_rate.hits


# --- an operating point that flags too little -----------------------------------------------------------------------------


def blind(copies: int = 40) -> Calibration:
    """An embedder to which copies and near misses look alike."""
    rng = np.random.default_rng(3)
    return calibrate("blind", rng.uniform(0, 1, 2 * copies), np.arange(2 * copies) < copies, max_false_positive_rate=0.01)


def test_an_operating_point_that_flags_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"flags 1 of 40 \(.*; the interval's lower end must reach 50\s%") as refused:
        blind().held_to(0.5)
    assert "--force" in refused.value.fix
    assert "--false-alarms" not in refused.value.fix  # no rate up to 20 % would do


def test_a_refusal_names_the_false_alarms_that_would_do() -> None:
    rng = np.random.default_rng(0)
    copy = np.arange(800) < 400
    similarity = np.where(copy, rng.normal(0.7, 0.1, 800), rng.normal(0.5, 0.1, 800))
    with pytest.raises(InputError, match=r"--false-alarms 0\.[01]\d*, which flags (5|6)\d") as refused:
        calibrate("e", similarity, copy, max_false_positive_rate=0.01).held_to(0.5)
    share = float(refused.value.fix.split("--false-alarms ")[1].split(",")[0])
    calibrate("e", similarity, copy, max_false_positive_rate=share).held_to(0.5)


def test_too_few_copies_to_know_are_refused_with_that_advice() -> None:
    few = calibrate("e", np.array([0.9, 0.9, 0.9, 0.1]), np.array([True, True, True, False]))
    assert few.recall.value == 1 and few.recall.low == pytest.approx(0.4385, abs=1e-4)
    with pytest.raises(InputError) as refused:
        few.held_to(0.5)
    assert refused.value.fix.startswith("Compare more than 3 copies (--copies")


def test_what_was_forced_stays_on_record(tmp_path: Path) -> None:
    forced = blind().held_to(0.5, force=True)
    assert forced.forced is True
    assert forced.calibration_id != blind().calibration_id
    forced.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == forced
    stored = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    (tmp_path / "c.json").write_text(json.dumps({**stored, "forced": False}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="calibration_id"):
        Calibration.load(tmp_path / "c.json")


def test_a_good_operating_point_keeps_what_it_was_held_to() -> None:
    good = calibrate("e", *scores()).held_to(0.5)
    assert (good.min_recall, good.forced) == (0.5, False)
    assert good.summary()["recall"] == {
        "value": 132 / 143,
        "low": good.recall.low,
        "high": good.recall.high,
        "hits": 132,
        "n": 143,
    }


def test_files_from_before_the_least_recall_are_still_read() -> None:
    """The fields came later; a file without them keeps its id."""
    shipped = Calibration.load(Path(__file__).parents[2] / "pipeline" / "weights" / "stickers" / "calibration.json")
    assert (shipped.min_recall, shipped.forced) == (0.0, False)


@pytest.mark.parametrize(
    "changed",
    [
        {"threshold": 85.0}, {"threshold": float("nan")}, {"threshold": "0.8"}, {"threshold": True}, {"veto_below": 1.5},
        {"forced": "no"}, {"curve": [["a", 0, 0]]}, {"curve": [[0, 0]]}, {"curve": 3}, {"recall": None}, {"recall": [1]},
        {"recall": {"value": 2.0, "low": 0.0, "high": 1.0, "hits": 1, "n": 1}}, {"embedder_id": 5}, {"more": 1},
    ],
)  # fmt: skip
def test_odd_values_are_refused_even_under_a_matching_digest(tmp_path: Path, changed: dict[str, object]) -> None:
    from dataclasses import asdict

    stored = {**asdict(calibrate("e", *scores())), **changed, "calibration_id": ""}
    told = {name: value for name, value in stored.items() if (name, value) not in [("min_recall", 0.0), ("forced", False)]}
    plain = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    stored["calibration_id"] = "calibration-" + hashlib.sha256(plain.encode()).hexdigest()[:16]
    (tmp_path / "c.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(InputError, match="is not a calibration"):
        Calibration.load(tmp_path / "c.json")


def test_a_folder_in_the_place_of_a_calibration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").mkdir()
    with pytest.raises(InputError, match="is not a calibration"):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(InputError, match="cannot be written"):
        calibrate("e", *scores()).save(tmp_path / "gone" / "c.json")


def test_a_calibration_is_of_one_look_and_keeps_what_was_compared(tmp_path: Path) -> None:
    from index.calibrate import agrees_from
    from index.keypoints import keypoints_id
    from index.second_look import compared

    rng = np.random.default_rng(4)
    copy = np.arange(200) < 100
    similarity, looked = copy * 0.4 + rng.normal(0.4, 0.1, 200), copy * 0.5 + rng.uniform(0, 0.3, 200)
    agrees = agrees_from("keypoints", looked, copy, at_most=0.02)
    assert (looked[~copy] >= agrees).sum() == 2 and agrees_from("alignment", looked, copy, at_most=0.02) == 0.5
    worth = compared({"alignment": rng.uniform(0, 1, 200), "keypoints": looked}, copy, [f"w{i % 50}" for i in range(200)])
    found = calibrate("e", similarity, copy, confirm=looked, confirm_threshold=agrees, max_added_rate=0.01)
    kept = found.looked_by("keypoints", looked, copy, worth)
    assert kept.point.second_look == "keypoints" and kept.point.look_id == keypoints_id()
    assert max(agrees, looked[~copy].max()) <= kept.point.recoloured_threshold < looked[copy].max()
    kept.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == kept
    assert [look[0] for look in kept.looks] == ["alignment", "keypoints"] and kept.looks[1][4] > 0
    assert found.looked_by("alignment", looked, copy).point.recoloured_threshold == 0.8
