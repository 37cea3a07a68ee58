from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.lab.bench.before_after import before_after, trios
from jobs.lab.bench.drawing import Drawn
from jobs.lab.bench.measures import Measure, clustered, publish, share, spread
from jobs.lab.bench.sheet import CAPTION, GAP, TILE, arrange, stack, strip
from jobs.lab.bench.world import copies_any, copies_own, right_in_five
from jobs.lab.judges.judges import Judges


def test_repeated_measurements_have_a_median_and_a_range() -> None:
    for values, median in (([3.0], 3.0), ([1.0, 4.0], 2.5), ([5.0, 1.0, 2.0], 2.0), ([1.0, 9.0, 2.0, 4.0], 3.0)):
        found = spread("m", values)
        assert (found.value, found.low, found.high, found.n) == (median, min(values), max(values), len(values))


def test_a_clustered_mean_knows_that_seeds_of_one_caption_are_not_independent() -> None:
    clusters = [f"c{i}" for i in range(20) for _ in range(10)]
    same = [float(i % 2) for i in range(20) for _ in range(10)]  # all seeds of a caption alike
    apart = [float(j % 2) for _ in range(20) for j in range(10)]  # every caption alike
    tied, free = clustered("m", same, clusters), clustered("m", apart, clusters)
    assert tied.value == free.value == 0.5
    assert tied.high - tied.low > 0.3 and free.high - free.low < 0.01
    assert clustered("m", same, clusters) == tied


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.15), (1.0, 0.85, 1.0)])
def test_never_and_always_have_an_interval_too(value: float, low: float, high: float) -> None:
    found = clustered("m", [value] * 40, [f"c{i // 2}" for i in range(40)])
    assert (found.value, found.low, found.high) == (value, pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("measure", "met"),
    [
        (Measure(id="m", value=0.9, low=0, high=1, n=9), None),
        (Measure(id="m", value=0.9, low=0, high=1, n=9, goal=0.8), True),
        (Measure(id="m", value=0.9, low=0, high=1, n=9, goal=0.8, better="lower"), False),
        (Measure(id="m", value=0.3, low=0, high=1, n=9, goal=0.15, most=0.4), True),
        (Measure(id="m", value=0.5, low=0, high=1, n=9, goal=0.15, most=0.4), False),
    ],
)
def test_goals(measure: Measure, met: bool | None) -> None:
    assert measure.met is met


def test_published_json_has_every_measure_and_whether_its_goal_was_met(tmp_path: Path) -> None:
    publish("x", [share("a", 3, 4, 0.9), share("b", 0, 0)], tmp_path, seeds=(1, 2), quick=True)
    body = json.loads((tmp_path / "x-quick.json").read_text())
    assert body["seeds"] == [1, 2] and [m["met"] for m in body["measures"]] == [False, None]
    assert {"id", "value", "low", "high", "n", "goal", "better", "met"} <= set(body["measures"][0])


def test_contact_sheets_keep_every_picture_in_its_place() -> None:
    red, blue = np.full((64, 64, 3), (255, 0, 0), np.uint8), np.full((64, 64, 3), (0, 0, 255), np.uint8)
    row = strip("apple", [red, None, blue])
    assert row.shape == (TILE + CAPTION, 3 * TILE, 3)
    assert (row[CAPTION + 5, 5] == (255, 0, 0)).all() and (row[CAPTION + 5, TILE + 5] == 255).all()
    laid = arrange([row] * 3, 2)
    assert laid.shape == (2 * (TILE + CAPTION), 6 * TILE + GAP, 3)
    assert (laid[-5, 2 * TILE + 5] == (0, 0, 255)).all() and (laid[-5, 5 * TILE] == 255).all()
    assert stack([("one", laid), ("two", row)]).size[0] == laid.shape[1] + 2 * GAP


def test_the_readmes_picture_holds_the_first_seed_of_a_caption_that_copies_and_was_accepted() -> None:
    def sample(caption: str, seed: int, grey: int, *, copied: bool = False, accepted: bool = True) -> SimpleNamespace:
        found = (SimpleNamespace(guard="copies", triggered=copied),)
        final = SimpleNamespace(picture=np.full((64, 64, 3), grey, np.uint8), findings=found)
        request = SimpleNamespace(prompt=caption, seed=seed)
        return SimpleNamespace(request=request, final=final, accepted_attempt=1 if accepted else None)

    free = [sample("apple", 1, 1), sample("apple", 2, 2, copied=True), sample("apple", 3, 3, copied=True)]
    free += [sample("pear", 1, 4, copied=True), sample("corn", 1, 5)]
    ours = [sample("apple", 1, 11), sample("apple", 2, 12), sample("apple", 3, 13), sample("pear", 1, 14, accepted=False)]
    works = {name: np.zeros((64, 64, 3), np.uint8) for name in ("apple", "pear", "corn")}
    found = trios(Drawn(free), Drawn(ours), works)  # type: ignore[arg-type]
    assert [(caption, before[0, 0, 0], after[0, 0, 0]) for caption, _, before, after in found] == [("apple", 2, 12)]
    assert before_after(found * 4).size[1] > before_after(found).size[1]


class FakeJudges:
    """Thinks that the brightness of a picture is the number of its caption, and that equal pictures are copies."""

    names = ("red-apple", *(f"thing-{i}" for i in range(9)))
    kinds = ("watermark", "qr", "text")
    among_first = Judges.among_first
    settings = {"copies": {"operating_points": {"0.05": 0.6}}}  # noqa: RUF012

    def captions(self, pictures: np.ndarray) -> np.ndarray:
        return -np.abs(np.arange(10)[None] - pictures[:, :1, 0, 0].astype(float))

    def copies(self, pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
        return (pictures == references).all((1, 2, 3)).astype(np.float32) * 0.7


def drawn(*cases: tuple[str, int]) -> Drawn:
    """Samples with one attempt each: (caption, brightness)."""
    made = []
    for i, (caption, grey) in enumerate(cases):
        final = SimpleNamespace(
            picture=np.full((64, 64, 3), grey, np.uint8), nearest=(SimpleNamespace(ref_id="a"),), findings=()
        )
        made.append(SimpleNamespace(request=SimpleNamespace(prompt=caption, row_no=i), final=final))
    return Drawn(made)  # type: ignore[arg-type]


def test_a_caption_is_right_when_it_is_among_the_judges_first_five() -> None:
    found = right_in_five(FakeJudges(), drawn(("red apple", 0), ("red apple", 2), ("red apple", 9), ("thing 8", 9)))  # type: ignore[arg-type]
    assert found.tolist() == [True, True, False, True]


def test_copies_are_looked_for_among_own_and_nearest_references() -> None:
    works = {"red apple": np.full((64, 64, 3), 7, np.uint8), "thing 1": np.full((64, 64, 3), 3, np.uint8)}
    made = drawn(("red apple", 7), ("red apple", 3), ("thing 1", 3))
    assert copies_own(FakeJudges(), made, works).tolist() == [True, False, True]  # type: ignore[arg-type]
    runtime = SimpleNamespace(index=SimpleNamespace(picture=lambda _: works["thing 1"]))
    assert copies_any(FakeJudges(), made, runtime).tolist() == [False, True, True]  # type: ignore[arg-type]


def test_a_made_up_run_is_looked_at_and_its_planted_copies_are_found(tmp_path: Path) -> None:
    from index.calibrate import OperatingPoint
    from jobs.lab.bench.reaudit import HUES, LOOK_FROM, PLANTED, REFERENCES, THRESHOLD, Projected, make_run, references
    from jobs.reaudit.look import Standard, look

    make_run(tmp_path, 3000)
    point = OperatingPoint(threshold=THRESHOLD, look_from=LOOK_FROM)
    looked = look(tmp_path, Standard.of(references(), Projected(), point=point, k=3, hues=HUES))
    planted = set(json.loads((tmp_path / "planted.json").read_text()))
    assert looked.compared == 3000 and len(planted) == REFERENCES * PLANTED
    assert {seen.sample_id for seen in looked.hits} == planted


RESULTS = sorted((Path(__file__).parents[2] / "infra" / "docs" / "bench").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_verdict_of_a_result_is_what_its_number_says(path: Path) -> None:
    measures = json.loads(path.read_text(encoding="utf-8")).get("measures", [])
    assert measures, "a result file without measures"
    wrong = [
        m["id"]
        for m in measures
        if isinstance(m, dict) and m["met"] is not Measure(**{k: v for k, v in m.items() if k != "met"}).met
    ]
    assert wrong == []
