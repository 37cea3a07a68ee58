"""The eraser's bench: its statistics by hand, and its bookkeeping."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import InputError
from jobs.erase.dataset import Row
from jobs.erase.save import save_adapter
from jobs.erase.train import Trained, Training
from jobs.lab.bench.degraded import degraded, jittered, mean_overlap, worse
from jobs.lab.bench.erase import bench, schedule
from jobs.lab.bench.erase_arms import (
    ALONE,
    ARMS,
    BOTH,
    CAPTIONED,
    CLEAN,
    ESD,
    FULL,
    HIDDEN,
    LONG,
    PLAIN,
    adapter_folder,
    trained,
)
from jobs.lab.bench.erase_data import compared, divided
from jobs.lab.bench.erase_ship import MAIN, ship
from jobs.lab.bench.esd import EsdTraining, erased_target, save_esd, train_esd
from jobs.lab.bench.measures import Measure, corrected, half_samples, kid, ratio
from pipeline.config import ModelConfig
from pipeline.model.load import load_model
from pipeline.steer.erase_tokens import check_box


def test_a_rate_is_corrected_for_its_detector() -> None:
    # 30 % seen by a detector of sensitivity .8 and specificity .9: (0.3 − 0.1) / 0.7 = 2/7
    found = corrected("c", Measure(id="m", value=0.3, low=0.1, high=0.5, n=40), 0.8, 0.9)
    assert (found.value, found.low, found.high) == (pytest.approx(2 / 7), 0.0, pytest.approx(4 / 7)) and found.n == 40
    assert corrected("c", Measure(id="m", value=1.0, low=0.9, high=1.0, n=40), 0.8, 0.9).value == 1.0  # never above everything
    blind = corrected("c", Measure(id="m", value=0.3, low=0.1, high=0.5, n=40), 0.2, 0.8)
    assert (blind.low, blind.high) == (0.0, 1.0)  # a coin says nothing


def test_a_ratio_counts_the_same_requests() -> None:
    clusters = [f"c{i // 3}" for i in range(60)]
    before, after = np.tile([1.0, 1.0, 0.0], 20), np.tile([1.0, 0.0, 0.0], 20)
    found = ratio("r", before, after, clusters, 2.0)
    assert (found.value, found.low, found.high, found.met) == (2.0, 2.0, 2.0, True)  # every cluster alike
    assert ratio("r", before, np.zeros(60), clusters).value == 80  # 40 before, none after: half a case stands in
    mixed = ratio("r", before, np.repeat([1.0, 0.0], 30), clusters)
    assert mixed.value == pytest.approx(40 / 30) and mixed.low < mixed.value < mixed.high


def test_kid_by_hand_and_in_expectation() -> None:
    x, y = np.array([[1.0], [-1.0]]), np.array([[1.0], [1.0]])
    # k(1, 1) = 8, k(1, −1) = 0: within x 0, within y 8, across (8 + 8 + 0 + 0) / 4 = 4 → 0 + 8 − 2·4 = 0
    assert kid(x, y) == pytest.approx(0.0)
    assert kid(np.array([[2.0], [2.0]]), y) == pytest.approx(125 + 8 - 2 * 27)
    rng = np.random.default_rng(0)
    same = [kid(rng.normal(size=(40, 8)), rng.normal(size=(60, 8))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)  # unbiased
    assert kid(rng.normal(1, 1, (40, 8)), rng.normal(size=(60, 8))) > 10 * np.std(same)


def test_halves_surround_the_whole() -> None:
    rng = np.random.default_rng(1)
    found = half_samples("k", rng.normal(0.5, 1, (80, 4)), rng.normal(size=(50, 4)), kid, scale=1000)
    assert found.low < found.value < found.high and found.better == "lower" and found.n == 80


def test_false_alarms_are_taken_off_both_sides_of_a_ratio() -> None:
    clusters = [f"c{i // 4}" for i in range(100)]
    before, after = np.tile([1.0, 1.0, 0.0, 0.0], 25), np.tile([1.0, 0.0, 0.0, 0.0], 25)
    assert ratio("r", before, after, clusters, alarms=0.05).value == pytest.approx((50 - 5) / (25 - 5))
    by_request = np.where(np.arange(len(before)) % 2 == 0, 0.1, 0.0)
    assert ratio("r", before, after, clusters, alarms=by_request).value == pytest.approx((50 - 5) / (25 - 5))
    assert ratio("r", before, after, clusters, alarms=0.25).value == pytest.approx((50 - 25) / 0.5)  # nothing left but alarms
    assert ratio("r", after, after, clusters, alarms=0.5).value == 0  # nothing to begin with


def test_every_arm_has_a_folder_of_its_own() -> None:
    folders = [adapter_folder(Path("w"), arm, seed) for arm in ARMS for seed in (0, 1)]
    assert len(set(folders)) == 2 * len(ARMS)
    for part in ("model", "data"):
        full = [arm.training for arm in ARMS if arm.part == part and arm.name == FULL]
        assert len(full) == 1 and isinstance(full[0], Training) and full[0].a < 1 and full[0].mode == "corners"


def test_the_oracles_alarms_are_taken_off_beside_those_on_clean_drawings() -> None:
    class Counted:
        """A bench whose pictures are their judge's scores."""

        marks = staticmethod(lambda pictures: pictures)
        found = staticmethod(lambda pictures: [{"watermark": []} if row[0] > 0.9 else {} for row in pictures])
        alarms = staticmethod(lambda kind: 0.0)

    before, after = np.zeros((40, 3)), np.zeros((40, 3))
    before[:20, 0], after[:4, 0], before[:2, 0] = 0.6, 0.6, 1.0
    oracle = np.zeros((40, 3))
    oracle[:4, 0] = 0.5  # flagged in one of two trainings
    captions = [f"c{i % 8}" for i in range(40)]
    of = {m.id: m for m in divided(Counted(), "x", before, after, captions, ("watermark",), oracle)}  # type: ignore[arg-type]
    assert len(of) == 4 and not any("qr" in name or "text" in name for name in of)
    assert of["plain / x, watermark, judge"].value == 20 / 4 and of["plain / x, watermark, judge"].met is False
    fair = of["plain / x, watermark, judge, the oracle's alarms subtracted"]
    assert fair.value == (20 - 2) / (4 - 2) and fair.goal is None
    assert of["plain / x, watermark, pipeline's detector"].value == 2 / 0.5
    plain = divided(Counted(), "x", before, after, captions, ("watermark",), None)  # type: ignore[arg-type]
    assert fair.id not in {m.id for m in plain}  # without an oracle there is nothing to take off


def test_an_arm_is_held_against_arms_trained_as_long() -> None:
    class Counted:
        """A bench whose pictures are their judge's scores, and nothing else."""

        marks = staticmethod(lambda pictures: pictures)
        found = staticmethod(lambda pictures: [{} for _ in pictures])
        alarms = staticmethod(lambda kind: 0.0)
        features = staticmethod(lambda pictures: pictures)

    def flagged(count: int) -> np.ndarray:
        return np.stack([np.repeat([1.0, 0.0], [count, 40 - count])] + [np.zeros(40)] * 2, 1)

    ours, plain = HIDDEN + ALONE, PLAIN + ALONE
    drawn = {plain: flagged(12), ours: flagged(6), CLEAN: flagged(2), plain + LONG: flagged(20), ours + LONG: flagged(5)}
    drawn |= {CLEAN + LONG: flagged(1)}
    captions = [f"c{i % 8}" for i in range(40)]
    of = {m.id: m.value for m in compared(Counted(), drawn, captions, {"c0": np.zeros((1, 3))})}  # type: ignore[arg-type]
    assert of[f"plain / {ours}, watermark, judge"] == 12 / 6 and of[f"plain / {ours + LONG}, watermark, judge"] == 20 / 5
    fair = ", watermark, judge, the oracle's alarms subtracted"
    assert of[f"plain / {ours}{fair}"] == (12 - 2) / (6 - 2) and of[f"plain / {ours + LONG}{fair}"] == (20 - 1) / (5 - 1)
    beside = {name.partition(" / ")[2] for name in of if name.startswith(f"{ours + LONG}: subject right")}
    assert beside == {CLEAN + LONG, plain + LONG}


def test_arms_differ_in_one_thing() -> None:
    """The ablation adds one thing at a time: names, then geometry, then re-weighting."""
    for part in ("model", "data"):
        of = {arm.name: arm.training for arm in ARMS if arm.part == part}
        full = of[FULL]
        assert isinstance(full, Training) and full.a == 0.5 and full.mode == "corners" and full.removal == part
        assert of["name + geometry"] == dataclasses.replace(full, a=1.0)
        assert of["name"] == dataclasses.replace(full, a=1.0, mode="none")
        if part == "model":
            more = of[BOTH]
            assert isinstance(more, Training) and more.rank and not full.rank
            assert (more.a, more.mode, more.grid, more.concepts) == (full.a, full.mode, full.grid, full.concepts)
            assert of["name + geometry + low-rank weights"] == dataclasses.replace(more, a=1.0)
            assert of["name + low-rank weights"] == dataclasses.replace(more, a=1.0, mode="none")
            for alone, behind in ((f"{FULL}, tokens learned alone", FULL), (BOTH, f"{BOTH}, tokens learned behind captions")):
                assert of[alone] == dataclasses.replace(of[behind], alone=more.alone)  # type: ignore[type-var]
                assert of[behind].alone == CAPTIONED  # type: ignore[union-attr]
        else:
            assert of[HIDDEN] == dataclasses.replace(full, hidden=1.0)
    data = {arm.name: arm for arm in ARMS if arm.part == "data"}
    assert data[PLAIN].training == data[CLEAN].training and data[PLAIN].dataset != data[CLEAN].dataset
    for name in (HIDDEN, PLAIN):
        assert data[name + ALONE].training == data[name].training and data[name + ALONE].dataset == "new-watermarked"


def test_what_others_are_compared_with_is_trained_first() -> None:
    once, thrice = schedule(1), schedule(3)
    assert thrice[: len(once)] == once and {seed for _, seed in once} == {0} and len(once) == len(ARMS)
    assert [arm.name for arm, _ in once[:4]] == [HIDDEN, BOTH, HIDDEN, FULL]
    more = [(arm.part, arm.name, seed) for arm, seed in thrice[len(once) :]]
    assert len(more) == len(set(more)) and {seed for _, _, seed in more} == {1, 2}
    assert all(arm.main for arm, _ in thrice[len(once) :])


# --- a worse detector -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.02, 1), st.floats(0.02, 1), st.floats(0, 3), st.integers(0, 999))
def test_jittered_boxes_stay_in_the_picture(x: float, y: float, w: float, h: float, amount: float, seed: int) -> None:
    box = (x, y, min(1.0, x + w), min(1.0, y + h))
    moved = jittered(box, amount, np.random.default_rng(seed).standard_normal(4))
    check_box(moved, (1, 1))
    assert jittered(box, 0.0, np.ones(4)) == box


def test_a_detector_is_degraded_to_the_given_overlap() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for i in range(300):
        x, y = (float(v) for v in rng.uniform(0, 0.6, 2))
        marks = {"qr": [(x, y, x + 0.4, y + 0.4)]} if i % 3 else {}
        rows.append(Row(name=str(i), caption="c", stored=np.zeros((4, 4, 3), np.uint8), marks=marks, found=marks))
    seen, amount, reached = degraded(rows, 0.4, seed=1)
    assert reached == pytest.approx(0.4, abs=0.01) and amount > 0
    assert mean_overlap([r.found for r in seen], [r.marks for r in rows]) == reached
    assert [bool(r.found) for r in seen] == [bool(r.marks) for r in rows] and [r.marks for r in seen] == [r.marks for r in rows]
    assert worse([r.found for r in rows], amount, 1) == [r.found for r in seen]
    as_it_is, none, whole = degraded(rows, 1.0)
    assert none == 0 and whole == 1 and [r.found for r in as_it_is] == [r.found for r in rows]


# --- ESD --------------------------------------------------------------------------------------------------------------------


def test_esd_turns_the_word_round() -> None:
    empty, named = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert erased_target(empty, named, 1.0).tolist() == [-1.0, 3.0] and erased_target(empty, named, 0.0).tolist() == [1.0, 2.0]


def test_esd_learns_its_target_in_cross_attention_alone(tiny_sd: Path, tmp_path: Path) -> None:
    model, losses = ModelConfig(path=str(tiny_sd), dtype="float32"), []
    how = EsdTraining(words=("a mark",), steps=12, batch=4, rank=2, drawn=2, sampling_steps=3, rate=1e-2)
    lowrank = train_esd(model, how, lambda step, loss: losses.append(loss))
    assert lowrank and all(".attn2.to_" in name for name in lowrank)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    base = load_model(model)
    arm = next(arm for arm in ARMS if arm.name == ESD)
    folder = adapter_folder(tmp_path, arm, 0)
    save_esd(folder, lowrank, how, base="tiny", base_digest=base.digest)
    [(found, seed, adapter)] = trained(tmp_path, base.digest, "model")
    assert (found, seed, adapter.vocabulary) == (arm, 0, None) and adapter.lowrank is not None
    assert adapter.lowrank.products(base.network)  # it fits the network it was trained on
    again = train_esd(model, how)
    assert all(torch.equal(lowrank[name], again[name]) for name in lowrank)


def test_what_ships_is_what_was_measured(tmp_path: Path) -> None:
    for part in ("model", "data"):
        arm = next(arm for arm in ARMS if arm.part == part and arm.name == MAIN[part])
        assert isinstance(arm.training, Training)
        trained_here = Trained(
            vectors={"<qr>": torch.ones(3)},
            lowrank={"m.lora_A.weight": torch.ones(1, 2)},
            curve=[],
            seconds=60,
            pictures=9,
            marked=9,
        )
        save_adapter(
            adapter_folder(tmp_path, arm, 0), trained_here, arm.training, [], base="b", base_digest="d" * 64, dataset={}
        )
    measures = [
        Measure(id=f"{part} removal · {name}: marked, judge", value=0.125, low=0.1, high=0.2, n=9)
        for part, main in MAIN.items() for name in (main, f"{main}, flagged drawn again", f"{main}, seed 1", "name", "none")
    ]  # fmt: skip
    marks, subjects = ship(tmp_path, measures, tmp_path / "world")
    assert (marks.name, subjects.name) == ("marks", "twelve-subjects")
    first, second = (folder / "README.md" for folder in (marks, subjects))
    assert first.read_text().startswith("# marks\n") and first.read_text().count("0.125") == 4  # two on top, and in the table
    assert f"model removal · {HIDDEN}: marked" in first.read_text() and "model removal · none" in first.read_text()
    assert second.read_text().count("0.125") == 2 and f"data removal · {HIDDEN}: marked" in second.read_text()
    listed = json.loads((tmp_path / "world" / "digests.json").read_text())
    assert set(listed) == {
        f"adapters/{name}/{file}"
        for name in ("marks", "twelve-subjects")
        for file in ("adapter.json", "tokens.safetensors", "pytorch_lora_weights.safetensors")
    }  # fmt: skip


def test_one_part_and_some_arms_are_trained_alone(tmp_path: Path) -> None:
    chosen = schedule(3, "data", [PLAIN, HIDDEN])
    assert [(arm.part, arm.name, seed) for arm, seed in chosen] == [
        ("data", name, seed) for seed in range(3) for name in (HIDDEN, PLAIN)
    ]
    assert {arm.part for arm, _ in schedule(1, "model")} == {"model"}
    with pytest.raises(InputError, match="there is no arm 'plane'"):
        schedule(1, "data", ["plane"])
    with pytest.raises(InputError, match="both parts"):
        bench(tmp_path, tmp_path / "work", tmp_path, part="data", shipped=True)
    assert not (tmp_path / "work").exists()
