"""The simulation against what can be worked out by hand, and the arithmetic on top of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index.errors import ConfigError, InputError
from jobs.capacity.arithmetic import Order, capacity
from jobs.capacity.inputs import DEFAULTS, DEVICES, LEAST, MOST, MOST_OF_ALL, Known, given, of_run
from jobs.capacity.simulate import Machine, Outcome, Work, simulate
from jobs.cli import main as cli
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine(
    rate=2.0, steps=20, rows=16, reference_rows=0, guard_seconds=0.1, guard_processors=2, commit_seconds=0, deaths=0,
    restart_seconds=60,
)  # fmt: skip
WORK = Work(
    requests=2000, shard_size=16, flagged=0, again=0, tries=4, caught=0, probe_at=0.25, back=3, from_step=8
)  # fmt: skip


def outcome(workers: int = 2, *, machine: dict[str, Any] | None = None, work: dict[str, Any] | None = None) -> Outcome:
    return simulate(replace(MACHINE, **(machine or {})), replace(WORK, **(work or {})), workers=workers)


def test_without_flags_a_worker_yields_its_plain_speed() -> None:
    found = outcome()
    assert found.evaluations == 1 and found.busy == pytest.approx(1, abs=0.005) and found.yield_ == pytest.approx(1, abs=0.01)


def test_flags_without_a_probe_cost_the_steps_that_are_drawn_again() -> None:
    found = outcome(work={"flagged": 0.2, "again": 0.0, "requests": 6000})
    assert found.evaluations == pytest.approx(1 + 0.2 * 12 / 20, rel=0.01)
    assert found.yield_ == pytest.approx(1 / found.evaluations, rel=0.02)


def test_a_probe_makes_a_flag_cost_the_steps_back_alone() -> None:
    found = outcome(work={"flagged": 0.2, "again": 0.0, "caught": 1.0, "requests": 6000})
    assert found.evaluations == pytest.approx(1 + 0.2 * 3 / 20, rel=0.01)


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 12, 19, 20, 50])
@pytest.mark.parametrize("caught", [0.0, 0.9])
def test_pictures_of_few_steps_are_drawn_again_from_two_fifths_at_most(steps: int, caught: float) -> None:
    """From the eighth step of four it never ended; of eight, every picture drawn again was caught once more."""
    found = outcome(machine={"steps": steps}, work={"flagged": 0.2, "again": 0.0, "caught": caught, "requests": 6000})
    again = steps - min(8, int(0.4 * steps))
    back = min(3, max(1, round(0.25 * steps)))  # no further than its beginning
    each = caught * back + (1 - caught) * again
    assert found.accepted == found.requests and found.evaluations == pytest.approx(1 + 0.2 * each / steps, rel=0.02)


def test_calls_that_hold_every_request_yield_what_they_draw() -> None:
    found = outcome(4, machine={"rows": 10_000, "guard_seconds": 0}, work={"requests": 1000})
    assert found.yield_ == pytest.approx(found.requests / found.seconds / 8)


def test_a_reference_row_costs_half_an_evaluation_a_step() -> None:
    found = outcome(machine={"reference_rows": 1}, work={"flagged": 0.2, "again": 0.0, "requests": 6000})
    assert found.evaluations == pytest.approx(1 + 0.2 * 12 / 20 * 1.5, rel=0.01)


def test_what_is_flagged_in_every_try_is_held_back() -> None:
    found = outcome(work={"flagged": 1.0, "again": 1.0, "tries": 2, "requests": 320})
    assert found.accepted == 0 and found.requests > 300


def test_a_commit_beside_the_denoiser_costs_nothing_while_it_keeps_up() -> None:
    found = outcome(machine={"commit_seconds": 6.0})  # 16 pictures take 8 s
    assert found.yield_ == pytest.approx(1, rel=0.02)


def test_commits_that_are_slower_than_the_denoiser_are_what_a_night_takes() -> None:
    found = outcome(machine={"commit_seconds": 16.0})
    assert found.yield_ == pytest.approx(1 / 2, rel=0.05) and found.busy == pytest.approx(0.5, rel=0.08)


def test_guards_that_are_too_slow_are_what_a_night_takes() -> None:
    found = outcome(machine={"guard_seconds": 1.0, "guard_processors": 1})
    assert found.yield_ == pytest.approx(1 / 2.0, rel=0.03)  # one picture a second and worker


def test_workers_that_die_lose_open_shards_and_no_request() -> None:
    calm, deadly = outcome(4), outcome(4, machine={"deaths": 30})
    assert deadly.deaths > 3 and 0 < deadly.redrawn <= deadly.deaths * 64
    assert deadly.requests >= 0.95 * 2000 and deadly.requests == deadly.accepted
    assert deadly.yield_ < calm.yield_ and deadly.commits == -(-deadly.requests // 16)


def test_any_number_of_workers_yields_the_same() -> None:
    few = outcome(2, work={"flagged": 0.15, "again": 0.15, "requests": 4000})
    many = outcome(8, work={"flagged": 0.15, "again": 0.15, "requests": 16_000})
    assert many.yield_ == pytest.approx(few.yield_, rel=0.02)


def test_the_same_arguments_give_the_same_outcome() -> None:
    assert outcome(work={"flagged": 0.3, "again": 0.3}) == outcome(work={"flagged": 0.3, "again": 0.3})


def steps_of(**order: Any) -> dict[str, str]:
    found = capacity(Order(**{"pictures": 1_000_000, "hours": 8, "references": 200_000} | order), INPUTS)
    return {step.name: step.value for step in found.steps}


INPUTS = {"rate": DEVICES["h200"], **DEFAULTS}


def test_a_thousand_times_the_pictures_take_a_thousand_times_the_devices() -> None:
    one, thousand = (capacity(Order(pictures=n, hours=8, references=0), INPUTS).devices for n in (10**7, 10**10))
    assert thousand == pytest.approx(1000 * one, rel=0.01)


def test_devices_cost_and_bytes_follow_from_the_steps() -> None:
    steps = steps_of(price=3.6)
    each = float(steps["a device draws"].split()[0].replace(",", ""))
    assert int(steps["devices"]) == -(-1_000_000 // int(each))
    seconds = float(steps["device seconds"].split()[0])
    assert seconds == pytest.approx(8 * 3600 / each, abs=0.006)
    assert float(steps["cost"].split()[0]) == pytest.approx(3.6 * seconds / 3600, rel=0.01)
    # A million accepted pictures take a few requests more; each shard of 16 has three objects.
    assert steps["bytes"] == "2.0 TB" and int(steps["objects"].replace(",", "")) == pytest.approx(187_500, rel=0.01)


def test_an_index_takes_what_its_references_take() -> None:
    steps = steps_of(references=1_000_000_000)
    assert steps["index, a worker"] == "64.0 GB" and steps["search"].startswith("16 parts")


def test_every_input_names_its_source_and_its_place_in_the_repository_exists() -> None:
    import re

    for name, known in (INPUTS | DEVICES).items():
        assert known.source, name
        assert all((ROOT / place).exists() for place in re.findall(r"(?:infra|jobs)/[\w/.]+\w", known.source))


@pytest.fixture
def run(make_plan: Callable[..., Plan], tmp_path: Path, run_of: Callable[..., Path]) -> Path:
    return run_of(make_plan(["cat", "a steered owl", "a copy", "fox"]), tmp_path / "run")


def test_a_run_gives_its_own_numbers(run: Path) -> None:
    found = of_run(run)
    assert found["rate"].value == pytest.approx(10)  # 20 steps in a tenth of a second, wholly its own
    assert found["flagged"].value == 0.5 and found["steps"].value == 20
    assert "4 requests" in found["rate"].source


def test_a_run_without_pictures_is_refused(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Any) -> None:
    run_local(make_plan(["a copy"]), tmp_path / "run", open_loop=open_loop)
    with pytest.raises(InputError, match="no picture was accepted"):
        of_run(tmp_path / "run")


def test_the_command_prints_and_has_json_and_names_a_wrong_input(run: Path) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["capacity", *arguments], terminal_width=200)

    assert "device seconds" in call("--pictures", "1000").stdout
    plain = json.loads(call("--run", str(run), "--set", "deaths=0", "--json").stdout)
    assert plain["inputs"]["rate"]["value"] == pytest.approx(10) and plain["inputs"]["deaths"]["source"] == "--set"
    wrong = call("--set", "flaged=0.1")
    assert wrong.exit_code == 2 and "there is no input 'flaged'" in wrong.stderr
    assert call("--set", "flagged=much").exit_code == 2


@pytest.mark.parametrize(
    ("name", "number", "what"),
    [("rate", "0", "out of range"), ("rate", "nan", "out of range"), ("shard_size", "0", "out of range"),
     ("flagged", "1.5", "out of range"), ("picture_seconds", "-1", "out of range"), ("steps", "20.5", "no whole number")],
)  # fmt: skip
def test_numbers_that_an_input_cannot_have_are_refused(name: str, number: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        given(name, number, INPUTS)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["--set", "flagged=1", "--set", "again=1"], "not one of"), (["--hours", "inf"], "inf is out of range"),
     (["--hours", "nan"], "greater than or equal"), (["--price", "inf"], "inf is out of range"),
     (["--pictures", "1" + "0" * 400], "is out of range"), (["--references", "1" + "0" * 400], "is out of range"),
     (["--set", "rows=2", "--set", "reference_rows=1"], "takes 3 rows, a call has 2"),
     (["--set", "deaths=1e9"], "die 1e+09 times an hour"), (["--set", "guard_seconds=1e300"], "out of range"),
     (["--set", "steps=1e9"], "out of range"), (["--set", "hours=-1"], "no input")],
)  # fmt: skip
def test_what_has_no_answer_is_refused(arguments: list[str], what: str) -> None:
    done = CliRunner().invoke(cli.app, ["capacity", *arguments], terminal_width=200)
    assert done.exit_code == 2 and what in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [*INPUTS])
def test_every_input_has_an_answer_or_a_refusal_at_its_ends(name: str) -> None:
    least, most = LEAST.get(name, 0), MOST.get(name, MOST_OF_ALL)
    few = {**INPUTS, "steps": Known(2, "test")}
    for number in (least, most if name != "steps" else 40):
        try:
            found = capacity(Order(pictures=10**6, hours=8, references=10), {**few, name: given(name, str(number), INPUTS)})
        except ConfigError:
            continue
        assert found.devices > 0 and "nan" not in str(found.steps), number


def test_a_run_may_be_named_by_its_run_file(run: Path) -> None:
    (run.parent / "run.toml").write_text('prompts = "p.txt"\nout = "run"\n')
    plain = json.loads(CliRunner().invoke(cli.app, ["capacity", "--run", str(run.parent / "run.toml"), "--json"]).stdout)
    assert plain["inputs"]["rate"]["value"] == pytest.approx(10)


def test_what_an_index_takes_is_what_its_bench_found() -> None:
    """At a million references, rounded; the memory of a worker is a limit that the bench keeps."""
    facts = json.loads((ROOT / "infra" / "docs" / "bench" / "index.json").read_text())
    measured = {one["id"]: one["value"] for one in facts["measures"]}
    assert DEFAULTS["queries_per_core"].value == round(measured["1,000,000: queries in a second, in batches"])
    assert f"{round(measured['200,000: queries in a second, in batches']):,} at 200,000" in DEFAULTS["queries_per_core"].source
    for size in ("200,000", "1,000,000"):
        found = measured[f"{size}: anonymous memory, bytes a reference"]
        assert DEFAULTS["anonymous_bytes"].value >= found and f"{found:.2g} at {size}" in DEFAULTS["anonymous_bytes"].source
