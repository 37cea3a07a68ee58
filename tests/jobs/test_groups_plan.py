"""Groups in the plan: who is in one, where shards are cut, what a further run makes of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from jobs.run.folder import open_folder
from jobs.run.plan import Plan
from jobs.run.planning.bound import bound
from jobs.run.planning.groups import in_groups, pieces_of, require_rows, whole_groups
from jobs.run.preflight.stated_notes import groups_in_words
from pipeline.config import DiversityConfig, GenerationConfig, RunConfig
from pipeline.notes import Note
from pipeline.outcome import Request, Stated
from pipeline.policy import Policy
from pipeline.settings import digest


def requests(prompts: int = 2, samples: int = 4) -> list[Request]:
    keys = [f"p{i}#{n + 1}" for i in range(prompts) for n in range(samples)]
    return [Request(row_no=row, key=key, prompt=key[:2], seed=row) for row, key in enumerate(keys)]


def config(samples: int = 4, shard: int = 16, size: int = 2, **generation: Any) -> RunConfig:
    drawn = GenerationConfig(diversity=DiversityConfig(size=size), **generation)
    return RunConfig(prompts="p.txt", samples_per_prompt=samples, shard_size=shard, generation=drawn)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "p.txt").write_text("a cat\na dog\nan owl\n", encoding="utf-8")
    return tmp_path


def plan(project: Path, given: RunConfig, **more: Any) -> Plan:
    return Plan.make(given, Policy(), project, identity={"model_digest": "m"}, **more)


def test_samples_of_a_prompt_are_put_into_groups() -> None:
    groups = [(one.group, one.member, one.group_size) for one in in_groups(requests(1), 2)]
    assert groups == [("p0#1-2", 0, 2), ("p0#1-2", 1, 2), ("p0#3-4", 0, 2), ("p0#3-4", 1, 2)]


def test_without_a_size_there_are_no_groups() -> None:
    assert in_groups(requests(), 0) == requests()


def test_a_bad_row_is_in_no_group() -> None:
    bad = [Request(row_no=i, key=f"x#{i + 1}", prompt="", problem=("input.empty_prompt", "empty")) for i in range(2)]
    assert [one.group for one in in_groups(bad, 2)] == ["", ""]


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8])
def test_no_shard_cuts_a_group(size: int) -> None:
    whole = in_groups(requests(3, 8), 4)
    pieces = pieces_of(whole, size)
    assert [one for piece in pieces for one in piece] == whole
    assert max(map(len, pieces)) <= size
    assert len({(one.group, number) for number, piece in enumerate(pieces) for one in piece}) == 6


def test_shards_without_groups_are_cut_as_before() -> None:
    assert [len(piece) for piece in pieces_of(requests(2, 5), 4)] == [4, 4, 2]


def test_a_request_without_all_of_its_group_stands_alone() -> None:
    left = [one for one in in_groups(requests(1), 2) if one.key != "p0#1"]
    assert [one.group for one in whole_groups(left)] == ["", "p0#3-4", "p0#3-4"]


def test_a_further_run_says_how_many_stand_alone(project: Path) -> None:
    notes: list[Note] = []
    made = plan(project, config(), only=["row-000000#1", "row-000001#1", "row-000001#2"], notes=notes)
    assert [one.group for one in made.requests] == ["", "row-000001#1-2", "row-000001#1-2"]
    assert Note("diversity", "drawn without all of their group, so that each stands alone: 1 request") in notes


def test_a_plan_gives_its_groups_back(project: Path, tmp_path: Path) -> None:
    made, folder = plan(project, config(size=4, samples=4)), tmp_path / "run"
    open_folder(folder, made)
    assert Plan.load(folder).requests == made.requests and Plan.load(folder).shards == made.shards


def test_groups_are_part_of_the_plan(project: Path) -> None:
    two, four = plan(project, config(size=2)), plan(project, config(size=4))
    assert two.parts["requests"] != four.parts["requests"] and two.parts["config"] != four.parts["config"]


def test_a_plan_without_groups_keeps_its_digest(project: Path) -> None:
    plain = RunConfig(prompts="p.txt", samples_per_prompt=4)
    assert plan(project, config(size=0)).plan_sha256 == plan(project, plain).plan_sha256


def with_window(project: Path, **diversity: float) -> Plan:
    drawn = GenerationConfig(diversity=DiversityConfig(size=2, **diversity))  # type: ignore[arg-type]
    return plan(project, RunConfig(prompts="p.txt", samples_per_prompt=4, generation=drawn))


def test_where_the_window_begins_is_part_of_the_plan(project: Path) -> None:
    assert with_window(project, window_from=0.3).parts["config"] != with_window(project).parts["config"]


def test_a_window_from_the_first_step_has_the_digest_of_before_there_was_the_key(project: Path) -> None:
    made = with_window(project, window_from=0.0)
    settings = bound(made.config)
    assert "window_from" not in settings["generation"]["diversity"] and made.parts["config"] == digest(settings)


def test_a_folder_gives_its_window_back(project: Path, tmp_path: Path) -> None:
    made, folder = with_window(project, window_from=0.3), tmp_path / "late"
    open_folder(folder, made)
    assert Plan.load(folder).config.generation.diversity.window_from == 0.3


@pytest.mark.parametrize(
    ("made", "what", "fix"),
    [
        (
            {"samples": 6, "size": 4},
            "samples_per_prompt is 6, which is no multiple of a group of 4",
            "samples_per_prompt = 8 or 4",
        ),
        ({"samples": 1, "size": 4}, "samples_per_prompt is 1, which", "Set samples_per_prompt = 4"),
        ({"samples": 8, "size": 8, "shard": 4}, "a shard holds 4 requests, and a group of 8", "shard_size = 8 or more"),
        ({"size": 1}, "a group of one has nobody", "Set it to 2 or more"),
    ],
)
def test_what_makes_no_groups_is_refused(made: dict[str, int], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(**made)
    assert what in refused.value.what and fix in refused.value.fix


def test_calls_that_hold_no_group_are_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"generation\.rows: a call has 16 rows, and a group of 10 takes 20"):
        require_rows(config(samples=10, size=10))
    require_rows(config(samples=10, size=10, guidance_until=0.0))  # no step is guided: one row a member
    with pytest.raises(ConfigError, match="takes 20"):
        require_rows(config(samples=10, size=10, guidance_until=0.1, steps=6))
    require_rows(config(samples=10, size=10, guidance_until=0.1, steps=4))


def test_a_row_that_is_guided_by_its_own_scale_needs_two_rows_a_member() -> None:
    given = config(samples=10, size=10, guidance_scale=1.0)
    own = [replace(one, stated=Stated(guidance_scale=7.5)) for one in in_groups(requests(1, 10), 10)]
    what = r"a call has 16 rows, and a group of 10 takes 20 \(2 a member, with the guidance_scale 7\.5 of 'p0#1'\)"
    with pytest.raises(ConfigError, match=what):
        require_rows(given, own)
    require_rows(given, [replace(one, group="", member=0, group_size=0) for one in own])
    require_rows(given, in_groups(requests(1, 10), 10))


def test_the_dry_run_counts_groups_by_the_steps_of_their_rows(project: Path) -> None:
    (project / "p.csv").write_text("prompt,steps\na cat,\na dog,6\nan owl,\n", encoding="utf-8")
    made = plan(project, replace(config(size=4), prompts="p.csv"))
    told = "2 groups of 4 push apart in the first 4 of 4 steps, 1 group of 4 pushes apart in the first 6 of 6 steps;"
    assert groups_in_words(made, 4).startswith(told)


def test_calls_that_hold_a_group_are_not() -> None:
    require_rows(config(samples=8, size=8))
    require_rows(config(samples=10, size=10, guidance_scale=1.0))
