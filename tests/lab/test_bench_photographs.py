"""``clearance lab bench photographs``: works, edits, and what is counted; on pictures made here."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from index.errors import InputError
from jobs.lab.bench.photographs import FALSE_ALARMS, bench, spread_out, summed, threshold
from jobs.lab.bench.photographs_works import EDITS, PACKAGES, SIDE, Work, views, works


def noise(seed: int, high: int, wide: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(cv2.resize(rng.integers(0, 256, (high // 16, wide // 16, 3), dtype=np.uint8), (wide, high)), np.uint8)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    made = {"mate-backgrounds/Dune.jpg": (1200, 1920), "opencv-doc/graf1.png": (480, 600), "opencv-doc/graf3.png": (480, 600)}
    made |= {"scikit-learn/china.jpg": (427, 640), "mate-backgrounds/no-photograph.png": (480, 600)}
    for place, size in made.items():
        package, name = place.split("/")
        (tmp_path / package / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(len(name), *size)).save(tmp_path / package / "deep" / name)
    return tmp_path


def test_large_photographs_become_crops_that_do_not_overlap(packages: Path) -> None:
    found = works(packages)
    assert [(work.package, work.photograph) for work in found].count(("mate-backgrounds", "Dune")) == 6  # 2 down, 3 across
    assert {work.photograph for work in found} == {"china", "Dune", "graf1"} and set(PACKAGES) > {w.package for w in found}
    assert all(max(work.picture.shape) <= SIDE for work in found)
    dune = np.asarray(Image.open(packages / "mate-backgrounds" / "deep" / "Dune.jpg"))
    small = cv2.resize(dune[600:, 1280:], found[-1].picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    last = [work.picture for work in found if work.photograph == "Dune"][-1]
    assert last.shape != small.shape or np.abs(last.astype(int) - small).mean() < 3
    assert [name for name, _ in views(packages)] == ["graf1"]


def test_a_package_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no photographs"):
        bench(tmp_path, packages=tmp_path, work=tmp_path / "work")


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_is_another_picture_and_follows_its_seed(kind: str) -> None:
    a, b = noise(1, 320, 480), noise(2, 300, 300)
    first, again = (EDITS[kind](a, b, np.random.default_rng(5)) for _ in range(2))
    assert first.dtype == np.uint8 and np.array_equal(first, again)
    assert first.shape != a.shape or np.abs(first.astype(int) - a).mean() > 5


def test_works_are_spread_over_photographs() -> None:
    found = [Work(picture=noise(1, 16, 16), photograph=name, package="p") for name in "aaab"]
    assert [work.photograph for work in spread_out(found, 3)] == ["a", "b", "a"]


def test_the_threshold_lets_no_more_near_misses_through_than_it_may() -> None:
    misses = np.random.default_rng(0).uniform(0, 1, 1000)
    assert (misses >= threshold(misses)).sum() == FALSE_ALARMS * 1000
    misses[:100] = np.nan  # not judged: no false alarm
    assert (misses >= threshold(misses)).sum() == FALSE_ALARMS * 1000


def test_thresholds_are_chosen_on_one_half_and_measured_on_the_other() -> None:
    scores = ({"copy": 0.9, "near": i / 100, "seconds": 0.01} for i in range(40))
    rows = [{"kind": "worn", "photograph": f"p{i:02}", "sibling": i % 4 == 1, "look": of} for i, of in enumerate(scores)]
    found = {measure.id: measure for measure in summed(rows)}
    assert found["look: average precision"].value == 1 and found["look: copies found, at 1% of the other half"].n == 20
    assert found["look: copies found, at 1% of the other half"].value == 1
    assert found["look: near misses flagged there"].value == 0.05  # of p00, p02 … p38 none may reach it; of the others p39 does
    assert found["look: CPU ms a comparison"].value == pytest.approx(10)
