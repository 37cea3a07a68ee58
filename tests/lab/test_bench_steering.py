"""The steering bench: its arms, its counts, and the continuation of a stopped bench."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs.lab.bench.steering as steering
from jobs.lab.bench.forest import Panel, forest
from jobs.lab.bench.steering import contrasts, first_steered, of_arm, spread_over, table
from jobs.lab.bench.steering_arms import ARMS, BUDGET, MOST, STEPS, Arm
from jobs.lab.bench.steering_attempts import Attempts
from jobs.lab.bench.steering_ladder import of_ladder
from jobs.lab.world.catalogue import PROTECTED, TEMPLATED


def attempts(rows: list[dict[str, Any]]) -> Attempts:
    plain: dict[str, Any] = {
        "number": 0, "evals": 20.0, "cosine": 0.9, "judge": 0.9, "right": True, "steered": False, "flagged": True,
        "accepted": False, "features": np.zeros(8, np.float16), "pictures": np.zeros((4, 4, 3), np.uint8),
    }  # fmt: skip
    filled = [plain | {"steered": row.get("number", 0) > 0} | row for row in rows]
    return Attempts(**{name: np.array([row[name] for row in filled]) for name in Attempts.__dataclass_fields__})


CLEARED = {"cosine": 0.4, "judge": 0.1, "flagged": False, "accepted": True}
FOUND = attempts(
    [
        {"key": "cat#1"},
        {"key": "cat#1", "number": 1, "cosine": 0.5, "right": False},
        {"key": "cat#1", "number": 2, "evals": 15.0, **CLEARED},
        {"key": "dog#2"},
        {"key": "dog#2", "number": 1, "judge": 0.95, **{k: v for k, v in CLEARED.items() if k != "judge"}},
        {"key": "owl#3", **CLEARED},
    ]
)
CAUGHT = attempts([{"key": "ant#4", "steered": True, "evals": 22.0, **CLEARED}])


def test_arms_differ_in_their_rung_alone() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS) >= 16
    for arm in ARMS:
        policy = arm.policy()
        assert policy.max_evals == BUDGET and len(policy.ladder) == (MOST if arm.rung else 0)
        assert policy.marks.action == policy.text.action == policy.codes.action == "observe"
        kinds = {rung.kind for rung in policy.ladder}
        assert len(kinds) <= 1
        if kinds - {"reseed", "renoise"}:
            assert [rung.renew for rung in policy.ladder] == [False] + [True] * (MOST - 1)


def test_the_first_steered_picture_counts_or_the_only_one() -> None:
    assert list(zip(first_steered(FOUND).key, first_steered(FOUND).number, strict=True)) == [
        ("cat#1", 1), ("dog#2", 1), ("owl#3", 0),
    ]  # fmt: skip


def test_an_arm_is_counted_by_hand() -> None:
    found = {m.id.split(" · ")[1]: m.value for m in of_arm(Arm("x", ""), FOUND, np.ones((4, 8)))}
    assert found["first: similarity to the protected drawing"] == pytest.approx((0.5 + 0.4 + 0.4) / 3)
    assert found["first: flagged by the pipeline's rule"] == pytest.approx(1 / 3)
    assert found["first: caption in the judge's top 5"] == pytest.approx(2 / 3)
    assert found["budget: accepted"] == 1
    assert found["budget: accepted copies by the judge"] == pytest.approx(1 / 3)
    assert found["budget: evaluations per accepted"] == pytest.approx((20 + 20 + 15 + 20 + 20 + 20) / 3)


def test_the_ladder_is_counted_by_hand() -> None:
    plain = attempts([{"key": key} for key in ("cat#1", "dog#2", "owl#3")] + [{"key": "ant#4", "right": False}])
    found = {m.id.split(" · ")[1]: m for m in of_ladder(Attempts.of([FOUND, CAUGHT]), plain)}
    assert found["accepted"].value == 1 and found["accepted"].n == 4
    assert found["accepted copies, judge (1 % false alarms)"].value == pytest.approx(1 / 4)
    assert found["accepted copies, judge (1 % false alarms)"].met is False
    spent = (55 + 40 + 22) / 3 / STEPS  # of the three that were repaired, one of them caught in mid-flight
    assert found["evaluations per accepted picture, multiple of the steps, 15 % flagged"].value == pytest.approx(
        0.85 + 0.15 * spent
    )
    assert found["evaluations per repaired request, multiple of the steps"].value == pytest.approx(spent)
    assert found["caption kept, share of the unsteered (top 5)"].value == pytest.approx(4 / 3)  # right where it had not been
    assert found["unsteered: caption in the judge's top 5"].value == 3 / 4
    assert found["memorised verbatim: accepted"].n == 4 and "memorised template: accepted" not in found
    crab = attempts([{"key": "crab#5"}, {"key": "crab#5", "number": 1}])
    found = {m.id.split(" · ")[1]: m for m in of_ladder(Attempts.of([FOUND, crab]), plain)}
    assert found["memorised verbatim: accepted"].value == 1 and found["memorised template: accepted"].value == 0
    assert found["accepted"].goal == 0.98 and found["memorised verbatim: accepted"].goal is None


def test_some_captions_stand_for_both_kinds_of_memorisation() -> None:
    for count, templates in ((4, 1), (16, 3), (62, 10)):
        chosen = spread_over(PROTECTED, count)
        assert len(chosen) == count and sum(name in TEMPLATED for name in chosen) == templates
        assert chosen == [name for name in PROTECTED if name in chosen]


def test_negtomes_goals_are_ratios_to_the_unsteered_and_to_the_controls() -> None:
    def one(cosine: float) -> Attempts:
        return attempts([{"key": "cat#1", "cosine": cosine}, {"key": "dog#1", "cosine": cosine}])

    drawn = {"none": one(0.8), "NegToMe, ours": one(0.2), "NegToMe, released": one(0.7)}
    drawn["NegToMe, ours, random reference"] = one(0.8)
    found = [m.value for m in contrasts(drawn)]
    assert found[0] == pytest.approx(0.75) and found[1] == 0 and found[2] == pytest.approx(6) and found[3] > 1000


def test_arms_that_ended_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    class Drawn:
        samples = ()

    def draw(_runtime: object, _names: object, seeds: tuple[int, ...], _label: str) -> type[Drawn]:
        if seeds[0] == 3 and 3 not in drawn:
            drawn.append(3)
            raise KeyboardInterrupt
        drawn.append(seeds[0])
        return Drawn

    monkeypatch.setattr("jobs.lab.bench.drawing.draw", draw)
    monkeypatch.setattr(steering, "runtime_with", lambda *_: None)
    monkeypatch.setattr(steering, "examined", lambda *_: FOUND)
    policy = ARMS[1].policy()
    with pytest.raises(KeyboardInterrupt):
        steering.kept(tmp_path, None, "re-seed", policy, ["cat"], (1, 2, 3))  # type: ignore[arg-type]
    found = steering.kept(tmp_path, None, "re-seed", policy, ["cat"], (1, 2, 3))  # type: ignore[arg-type]
    assert drawn == [1, 2, 3, 3] and len(found.key) == 3 * len(FOUND.key)
    steering.kept(tmp_path, None, "re-seed", ARMS[2].policy(), ["cat"], (1,))  # type: ignore[arg-type]
    assert drawn == [1, 2, 3, 3, 1], "another policy is another arm, whatever its name"


def test_table_plot_and_sheet(tmp_path: Path) -> None:
    arms = [Arm("a & b", ""), Arm("<c>", "")]
    measures = [m for arm in arms for m in of_arm(arm, FOUND)]
    lines = table(arms, measures).splitlines()
    assert len(lines) == 4 and all(line.count("|") == 9 for line in lines)
    drawing = ET.fromstring(steering.plot(arms, measures))
    assert sum(1 for _ in drawing.iter("{http://www.w3.org/2000/svg}circle")) == 5 * 2  # none of these captions is a template
    assert "a & b" in [node.text for node in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert 'cx="250.0"' in forest(["x"], [Panel("p", [(-3.0, -4.0, 0.0)])]), "what lies outside the scale stays at its end"
    assert "circle" not in forest(["x"], [Panel("p", [None])])
    nothing = of_arm(arms[0], FOUND.where(~FOUND.accepted))
    assert table(arms[:1], nothing).splitlines()[2].endswith("| – | – |")
