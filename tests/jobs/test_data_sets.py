"""Data sets that grow by a run at a time: new requests, repeats, and their order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from index.errors import ClearanceError, PlanMismatch
from jobs.run.dataset.chain import Chain, Member, in_order, latest, member
from jobs.run.dataset.which import Which, which_run
from jobs.run.plan import Plan
from pipeline.config import RunConfig
from pipeline.notes import Note
from pipeline.outcome import Request, Stated
from pipeline.policy import Policy
from tests.jobs.data_sets import ROWS, call, config_of, draw, fine, grown, keys, project, three, write

FIXTURES = (project, three, grown)  # used by name


# --- only what is new ------------------------------------------------------------------------------------------------------


def test_more_prompts_draw_only_what_is_new(project: Path) -> None:
    base = project.parent
    draw(project, only_new=True)  # where nothing is there, all is new
    write(base, *ROWS, "owl,d")
    done = fine("run", project, "--only-new")
    assert "data set default (1 run): 1 of 4 requests are new, 3 are there" in done.output
    assert [keys(base / "set" / name) for name in ("0001", "0002")] == [["a", "b", "c"], ["d"]]
    first, second = (member(base / "set" / name) for name in ("0001", "0002"))
    assert first is not None and second is not None and second.parent == first.plan_sha256


def test_a_new_file_of_a_pattern_draws_only_its_rows(project: Path) -> None:
    base = project.parent
    (base / "in").mkdir()
    project.write_text('prompts = "in/*.csv"\nout = "set/{number}"\n')
    (base / "in" / "day-9.csv").write_text("prompt\ncat\nowl\n")
    draw(project)
    (base / "in" / "day-10.csv").write_text("prompt\nfox\n")
    draw(project, only_new=True)
    assert keys(base / "set" / "0002") == ["row-000002"]


@pytest.mark.parametrize("arguments", [["--only-new"], ["--only-failed"], ["--only-new", "--only-failed"]])
def test_nothing_to_draw_begins_no_run_and_is_no_error(project: Path, arguments: list[str]) -> None:
    write(project.parent, "cat,a")
    draw(project)
    done = fine("run", project, *arguments)
    assert "nothing to draw: no run was begun" in done.output
    assert [path.name for path in (project.parent / "set").iterdir()] == ["0001"]
    shown = json.loads(fine("run", project, *arguments, "--json").stdout)
    assert set(shown) == {"nothing_to_draw"}


def test_a_prompt_that_changed_under_its_key_is_refused(project: Path) -> None:
    draw(project)
    write(project.parent, "a dog,a", *ROWS[1:], "owl,d")
    refused = call("run", project, "--only-new")
    assert refused.exit_code == 2
    what = "1 of the requests that the data set holds are others now; the first is 'a': prompt 'cat' there and 'a dog' now"
    assert what in refused.stderr


def test_what_makes_a_request_another_is_named_with_both_values() -> None:
    old = Request(row_no=0, key="a", prompt="a red apple", seed=629, adapter="ink", stated=Stated(guidance_scale=7.5))
    chain = Chain(members=(Member(folder=Path("set/0001"), stored={}),))
    with patch.object(Chain, "_requests", lambda _: iter([("a", old)])), pytest.raises(PlanMismatch) as refused:
        chain.new([replace(old, adapter="ink:0.5", negative_prompt="blue", stated=Stated())])
    values = ("negative prompt '' there and 'blue' now", "adapter 'ink' there and 'ink:0.5' now")
    assert refused.value.what.endswith(f"'a': {', '.join(values)}, guidance_scale 7.5 there and unstated now")


def test_other_weights_than_those_of_the_run_before_are_noted() -> None:
    before = Member(folder=Path("set/0001"), stored={"identity": {"model_digest": "m", "adapters_sha256": "old"}})
    same = Plan(config=RunConfig(prompts="-"), policy=Policy(), base=Path(), requests=(), identity=before.stored["identity"])
    assert Which(folder=Path("set/0002"), before=before).notes_of(same) == []
    other = replace(same, identity={"model_digest": "m", "adapters_sha256": "new"})
    assert Which(folder=Path("set/0002"), before=before).notes_of(other) == [
        Note("model", "the adapters of this run are others than those of 0001, which it continues")
    ]
    assert Which(folder=Path("set/0001")).notes_of(other) == []


def test_rows_that_moved_are_refused(project: Path) -> None:
    (project.parent / "prompts.csv").write_text("prompt\ncat\nowl\n")
    draw(project)
    (project.parent / "prompts.csv").write_text("prompt\nfox\ncat\nowl\n")
    assert "add new ones at the end" in call("run", project, "--only-new").stderr


def test_a_mended_row_is_not_new_and_not_refused(project: Path) -> None:
    draw(project)
    write(project.parent, "cat,a", "a copy,b", "a bee,c")
    assert "0 of 3 requests are new, 3 are there" in fine("run", project, "--only-new").output


def test_new_and_failed_go_into_one_run(project: Path) -> None:
    draw(project)
    write(project.parent, "cat,a", "a copy,b", "a bee,c", "owl,d")
    draw(project, only_new=True, only_failed=True)
    assert keys(project.parent / "set" / "0002") == ["c", "d"]


def test_a_run_that_is_not_finished_comes_first(project: Path) -> None:
    draw(project)
    (project.parent / "set" / "0001" / "run.json").unlink()
    assert "Finish it with --resume first" in call("run", project, "--only-new").stderr


def test_a_further_run_is_resumed_although_the_prompts_grew(project: Path) -> None:
    base = project.parent
    draw(project)
    write(base, *ROWS, "owl,d", "disk-full,e", "fox,f")
    assert call("run", project, "--only-new").exit_code != 0
    (base / "space").touch()
    write(base, *ROWS, "owl,d", "disk-full,e", "fox,f", "bee,g")
    draw(project, only_new=True, resume=True)
    assert keys(base / "set" / "0002") == ["d", "e", "f"]
    draw(project, only_new=True, resume=True)
    assert keys(base / "set" / "0003") == ["g"]


def test_one_command_does_for_every_night(project: Path) -> None:
    """The first night draws all, a night without new prompts nothing, another what is new: each a run of one data set."""
    nightly = ("run", project, "--only-new", "--resume")
    write(project.parent, "cat,a", "owl,b")
    fine(*nightly)
    fine(*nightly)
    write(project.parent, "cat,a", "owl,b", "fox,c")
    fine(*nightly)
    runs = sorted((project.parent / "set").iterdir())
    assert [keys(run) for run in runs] == [["a", "b"], ["c"]]


def test_another_data_set_is_refused(project: Path) -> None:
    draw(project)
    project.write_text('dataset_id = "dogs"\n' + project.read_text())
    assert "belong to data set 'default', and the run file to 'dogs'" in call("run", project, "--only-new").stderr


def test_a_longer_list_without_the_option_is_told_of_it(project: Path) -> None:
    draw(project)
    write(project.parent, *ROWS, "owl,d")
    with pytest.raises(PlanMismatch) as caught:
        draw(project, "set/0001")
    assert "--only-new draws what is new" in caught.value.fix


def test_out_without_placeholder_needs_another_folder(project: Path) -> None:
    project.write_text('prompts = "prompts.csv"\nout = "run"\n')
    draw(project)
    refused = call("run", project, "--only-new")
    assert refused.exit_code == 2 and "--only-new writes a new run" in refused.stderr
    write(project.parent, *ROWS, "owl,d")
    draw(project, "more", only_new=True)
    assert keys(project.parent / "more") == ["d"]


# --- order -----------------------------------------------------------------------------------------------------------------


def run_of(name: str, plan: str, parent: str, at: float) -> Member:
    return Member(folder=Path(name), stored={"plan_sha256": plan, "parent": parent, "created_at": at, "config": {}})


def test_a_clock_that_was_set_back_does_not_change_the_order() -> None:
    first, second, third = run_of("a", "1", "", 300), run_of("b", "2", "1", 200), run_of("c", "3", "2", 100)
    assert in_order([third, first, second]) == [first, second, third]


def test_a_plan_that_was_run_twice_is_continued_by_what_began_after_it() -> None:
    monday, tuesday = run_of("mo", "1", "", 100), run_of("tu", "1", "", 200)
    more = run_of("tu-2", "2", "1", 250)
    every = [monday, tuesday, more]
    assert Chain.of(more, every).members == (tuesday, more)
    assert Chain.of(monday, every).members == (monday,)
    assert latest(every) == more


def test_two_repeats_of_one_run_belong_to_it() -> None:
    first, one, other = run_of("a", "1", "", 100), run_of("b", "2", "1", 200), run_of("c", "3", "1", 300)
    assert Chain.of(first, [other, one, first]).members == (first, one, other)


def test_only_failed_of_a_damaged_run_is_refused(project: Path) -> None:
    draw(project)
    path = project.parent / "set" / "0001" / "requests.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ClearanceError):
        which_run(config_of(project), project.parent, only_failed=True)
