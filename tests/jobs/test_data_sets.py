"""Data sets that grow by a run at a time: names of run folders, new requests, repeats, and readers that see one data set."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from index.errors import ClearanceError, ConfigError, PlanMismatch
from jobs.cli import main as cli
from jobs.cli.arguments import every_run, runs_named
from jobs.run.chain import Chain, Member, in_order, latest, member
from jobs.run.local_runner import run_local
from jobs.run.out import Out
from jobs.run.plan import Plan
from jobs.run.stored_plan import plan_json_digest
from jobs.run.which import next_run, which_run
from pipeline.audit.ledger import sample_rows
from pipeline.config import RunConfig
from pipeline.policy import Policy
from pipeline.settings import read_toml
from tests.jobs.conftest import fake_identity, open_fake

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
ROWS = ["cat,a", "a copy,b", ",c"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def fine(*arguments: object) -> Result:
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_loop: Callable[..., Any], opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> Path:  # fmt: skip
    """A run file whose runtime is the fake one: an accepted request, a rejected one, and a row that cannot be drawn."""
    opening(loop=open_loop, identity=identity)
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def write_project(folder: Path) -> Path:
    write(folder, *ROWS)
    (folder / "run.toml").write_text('prompts = "prompts.csv"\nout = "set/{number}"\nshard_size = 2\n')
    return folder / "run.toml"


def write(folder: Path, *rows: str) -> None:
    (folder / "prompts.csv").write_text("\n".join(["prompt,key", *rows]) + "\n")


def draw(project: Path, out: str = "", **flags: bool) -> None:
    """`clearance run`, without the report and the check of the device that a command makes."""
    base = project.parent
    config = read_toml(RunConfig, project)
    which = which_run(config, base, out, **flags)  # type: ignore[arg-type]
    identity = fake_identity(config, Policy(), base)
    plan = Plan.make(config, Policy(), base, identity=identity, only=which.only, parent=which.parent)
    run_local(plan, which.folder, open_loop=open_fake, resume=flags.get("resume", False))


def keys(folder: Path) -> list[str]:
    return [row["request_key"] for row in sample_rows(folder, ["request_key"])]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: the first list; what was new; the mended row of the first."""
    base = tmp_path_factory.mktemp("three")
    project = write_project(base)
    draw(project)
    write(base, *ROWS, "owl,d", "fox,e")
    draw(project, only_new=True)
    write(base, "cat,a", "a copy,b", "a bee,c", "owl,d", "fox,e")
    draw(project, only_failed=True)
    return base


@pytest.fixture
def grown(project: Path, three: Path) -> Path:
    """The folder of those three runs, for the run file ``project``."""
    shutil.copytree(three, project.parent, dirs_exist_ok=True)
    return project.parent / "set"


# --- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "folder", "pattern"),
    [
        ("runs/monday", "runs/monday", ""),
        ("runs/{date}", "runs", "{date}"),
        ("{date}", ".", "{date}"),
        ("{dataset}/{number}", "cats/", "{number}"),
        ("runs/{dataset}-{date}/", "runs", "cats-{date}"),
        ("runs/{dataset}", "runs/cats", ""),
    ],
)
def test_placeholders_of_out(tmp_path: Path, out: str, folder: str, pattern: str) -> None:
    assert Out.of(out, tmp_path, "cats") == Out(tmp_path / folder, pattern)


@pytest.mark.parametrize(
    ("out", "dataset_id", "what", "fix"),
    [
        ("runs/{time}", "cats", "there is no placeholder {time}", "Use {date}"),
        ("runs/{Date}", "cats", "there is no placeholder {Date}", "Did you mean {date}?"),
        ("runs/{}", "cats", "there is no placeholder {}", "Use {date}"),
        ("runs/{datset}", "cats", "there is no placeholder {datset}", "Did you mean {dataset}?"),
        ("{date}/run", "cats", "stand in the last part alone", 'out = "runs/{date}"'),
        ("r/{date}-{date}", "cats", "has a placeholder twice", "Keep one"),
        ("{dataset}", "org/cats", "'org/cats' cannot be a folder's name", "change dataset_id"),
        ("{dataset}", "..", "'..' cannot be a folder's name", "change dataset_id"),
    ],
)
def test_what_out_cannot_be_is_refused(tmp_path: Path, out: str, dataset_id: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Out.of(out, tmp_path, dataset_id)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_the_day_is_that_of_utc(tmp_path: Path) -> None:
    late = datetime(2026, 11, 29, 1, tzinfo=timezone(timedelta(hours=2)))
    assert Out(tmp_path, "{date}").today(late.astimezone(UTC)).name == "2026-11-28"
    assert Out(tmp_path, "{date}").today().name == datetime.now(UTC).strftime("%Y-%m-%d")


@pytest.mark.parametrize(
    ("pattern", "there", "name"),
    [
        ("{date}", [], "2026-11-28"),
        ("{date}", ["2026-11-28"], "2026-11-28-2"),
        ("{date}", ["2026-11-28", "2026-11-28-2", "2026-11-27-9"], "2026-11-28-3"),
        ("{number}", [], "0001"),
        ("{number}", ["0001", "0009", "notes", "12"], "0010"),
        ("{number}", ["9999"], "10000"),
        ("{date}-{number}", ["2026-11-27-0004"], "2026-11-28-0005"),
        ("cats.{date}", ["cats-2026-11-28"], "cats.2026-11-28"),
    ],
)
def test_a_new_run_gets_the_first_free_name(tmp_path: Path, pattern: str, there: list[str], name: str) -> None:
    for one in there:
        (tmp_path / one).mkdir()
    assert Out(tmp_path, pattern).next(NOON).name == name


# --- which run -------------------------------------------------------------------------------------------------------------


def config_of(project: Path) -> RunConfig:
    return read_toml(RunConfig, project)


def test_a_dated_run_is_of_today_and_refused_twice(project: Path) -> None:
    project.write_text(project.read_text().replace("{number}", "{date}"))
    draw(project)
    (folder,) = (project.parent / "set").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", folder.name)
    with pytest.raises(PlanMismatch, match="already holds this plan"):
        draw(project)


def test_resume_finds_the_latest_run_that_is_not_finished(project: Path) -> None:
    base = project.parent
    project.write_text(project.read_text().replace("{number}", "{date}"))
    for day in ("2026-11-26", "2026-11-27", "2026-11-28"):
        draw(project, f"set/{day}")
    for day in ("2026-11-26", "2026-11-27"):
        (base / "set" / day / "run.json").unlink()
    assert which_run(config_of(project), base, resume=True).folder.name == "2026-11-27"
    (base / "set" / "2026-11-27" / "run.json").write_text("{}")
    (base / "set" / "2026-11-26" / "run.json").write_text("{}")
    assert which_run(config_of(project), base, resume=True, now=NOON).folder.name == "2026-11-28"


def test_resume_begins_a_run_where_none_is_open(project: Path) -> None:
    base = project.parent
    assert which_run(config_of(project), base, resume=True).folder == base / "set" / "0001"


@pytest.mark.parametrize("pattern", ["{number}", "{date}"])
def test_the_next_run_of_a_data_set_is_what_is_new(project: Path, pattern: str) -> None:
    base = project.parent
    project.write_text(project.read_text().replace("{number}", pattern))
    assert next_run(config_of(project), base).only is None
    draw(project)
    assert next_run(config_of(project), base).nothing
    write(base, *ROWS, "owl,d")
    assert next_run(config_of(project), base).only == ["d"]
    tomorrow = next_run(config_of(project), base, datetime.now(UTC) + timedelta(days=1))
    assert (tomorrow.only is None) is (pattern == "{date}")  # a day's run draws the whole list, unless --only-new is set


def test_a_numbered_set_is_not_drawn_twice_by_accident(project: Path) -> None:
    draw(project)
    again = call("run", project)
    assert again.exit_code == 2
    assert "every request would be drawn again" in again.stderr and "--only-new" in again.stderr


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
    assert (
        "1 of the requests that the data set holds have another prompt or seed now; the first is 'a': 'cat'" in refused.stderr
    )


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


# --- readers ---------------------------------------------------------------------------------------------------------------


def test_status_counts_every_request_once_with_its_latest_outcome(project: Path, grown: Path) -> None:
    folder = grown
    for named in (project, folder):
        shown = json.loads(fine("status", named, "--json").stdout)
        assert shown["measures"]["requested"]["value"] == 5
        assert shown["outcomes_in_force"] == {"accepted": 4, "rejected": 1}
        assert shown["superseded"] == 1
        runs = [(run["name"], run["ended"], run["counted"]) for run in shown["runs"]]
        assert runs == [("0001", 3, 2), ("0002", 2, 2), ("0003", 1, 1)]
    text = fine("status", folder).output
    assert "data set default" in text and "1 rows that a later run has replaced" in text


def test_a_repeat_that_failed_again_is_in_force_and_can_be_repeated(project: Path) -> None:
    base = project.parent
    draw(project)
    draw(project, only_failed=True)
    shown = json.loads(fine("status", base / "set", "--json").stdout)
    assert shown["outcomes_in_force"] == {"accepted": 1, "error": 1, "rejected": 1}
    write(base, "cat,a", "a copy,b", "a bee,c")
    draw(project, only_failed=True)
    assert keys(base / "set" / "0003") == ["c"]


def test_export_writes_every_request_once(project: Path, grown: Path) -> None:
    folder = grown
    fine("export", project, "--to", "exported", "--only", "all", "--columns", "request_key,outcome")
    rows = pq.read_table(next((project.parent / "exported").rglob("*.parquet"))).to_pylist()
    assert [(row["request_key"], row["outcome"]) for row in rows] == [
        ("a", "accepted"), ("b", "rejected"), ("d", "accepted"), ("e", "accepted"), ("c", "accepted"),
    ]  # fmt: skip
    manifest = json.loads((project.parent / "exported" / "export.json").read_text())
    assert [len(manifest["runs"]), manifest["roots"], manifest["left_out"]] == [3, {}, {}]
    roots = [json.loads((folder / name / "run.json").read_text())["predicate"]["content_root"] for name in ("0001", "0003")]
    assert [manifest["runs"][place]["roots"]["content_root"] for place in (0, 2)] == roots
    assert roots[0] in (project.parent / "exported" / "README.md").read_text()


def test_an_export_of_one_run_stays_as_it_was(project: Path) -> None:
    draw(project)
    fine("export", project, "--to", "exported")
    manifest = json.loads((project.parent / "exported" / "export.json").read_text())
    assert manifest["roots"]["content_root"] and manifest["runs"] == []


def test_verify_looks_at_every_run(project: Path, grown: Path) -> None:
    folder = grown
    assert "intact: data set of 3 runs" in fine("verify", folder).output
    victim = next((folder / "0002" / "samples").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-9] + b"\0" * 9)
    damaged = call("verify", folder)
    assert damaged.exit_code == 1
    assert "0002: NOT INTACT" in damaged.output and "0001: intact" in damaged.output
    shown = json.loads(call("verify", folder, "--json").stdout)
    assert not shown["ok"] and list(shown["runs"]) == ["0001", "0002", "0003"]


def test_verify_names_a_run_that_draws_again_what_was_no_error(project: Path) -> None:
    base = project.parent
    draw(project)
    draw(project, "set/0002")  # by hand: every request again
    stored = json.loads((base / "set" / "0002" / "plan.json").read_text())
    first = json.loads((base / "set" / "0001" / "plan.json").read_text())
    assert stored["parent"] == ""  # so it is a data set of its own
    stored |= {"parent": first["plan_sha256"]}
    stored |= {"plan_json_sha256": plan_json_digest(stored)}
    (base / "set" / "0002" / "plan.json").write_text(json.dumps(stored))
    found = call("verify", base / "set")
    assert found.exit_code == 1
    assert "0001: later runs have 2 requests again that were no errors: 'a' ended there as accepted" in found.output


def test_report_writes_those_of_the_runs_and_one_of_the_data_set(project: Path, grown: Path) -> None:
    folder = grown
    fine("report", folder)
    content = json.loads((folder / "report.json").read_text())
    assert (content["measures"]["requested"]["value"], content["superseded"], content["damaged"]) == (5, 1, {})
    page = (folder / "report.html").read_text()
    assert [f'href="{name}/report.html"' in page for name in ("0001", "0002", "0003")] == [True] * 3
    assert all((folder / name / "report.html").is_file() for name in ("0001", "0002", "0003"))
    assert "<script" not in page and "4 accepted, 1 rejected" in page


def test_a_report_of_a_damaged_data_set_is_no_success(project: Path, grown: Path) -> None:
    folder = grown
    path = folder / "0001" / "run.json"
    path.write_text(path.read_text().replace('"requested": 3', '"requested": 4'))
    done = call("report", folder)
    assert done.exit_code == 1 and "run 0001 is damaged" in done.stderr
    assert 'class="bad"' in (folder / "report.html").read_text()


def test_a_command_for_one_run_refuses_several(project: Path, grown: Path) -> None:
    folder = grown
    done = call("receipt", folder, "--key", "a")
    assert done.exit_code == 2
    assert "names a data set of 3 runs, and this command takes one run" in done.stderr
    assert f"the latest is {folder / '0003'}" in done.stderr


def test_show_finds_a_request_in_the_run_that_is_in_force(project: Path, grown: Path) -> None:
    folder = grown
    repeated = fine("show", folder, "c", "--json")
    assert json.loads(repeated.stdout)["outcome"] == "accepted"
    assert repeated.stderr.startswith("run 0003; runs that hold it too, with an outcome no longer in force: 0001")
    assert fine("show", project, "d", "--json").stderr == "run 0002\n"
    assert "owl" in fine("show", folder, "d").output
    assert call("show", folder, "nobody").exit_code == 2


def test_a_data_set_may_lie_on_an_object_store(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, uri = project.parent, f"memory://{project.parent.name}/set"
    monkeypatch.setenv("CLEARANCE_CACHE", str(base / "cache"))
    project.write_text(project.read_text().replace("set/{number}", uri + "/{date}"))
    draw(project)
    write(base, *ROWS, "owl,d")
    draw(project, only_new=True)
    shown = json.loads(fine("status", uri, "--json").stdout)
    assert shown["measures"]["requested"]["value"] == 4
    assert [run["ended"] for run in shown["runs"]] == [3, 1]
    assert json.loads(fine("status", project, "--json").stdout)["runs"] == shown["runs"]
    assert len(every_run([uri])) == 2
    fine("export", project, "--to", "exported")
    assert len(pq.read_table(next((base / "exported").rglob("*.parquet")))) == 2


def test_one_run_of_a_pattern_is_that_run(project: Path) -> None:
    draw(project)
    assert runs_named(project) == (None, project.parent / "set" / "0001", project.parent)
    assert "3 of 3 ended" in fine("status", project.parent / "set").output


def test_independent_runs_are_no_data_set(project: Path) -> None:
    base = project.parent
    for day in ("2026-11-27", "2026-11-28"):
        draw(project, f"set/{day}")
    refused = call("status", base / "set")
    assert refused.exit_code == 2 and "holds 2 runs, which do not all continue one another" in refused.stderr
    project.write_text(project.read_text().replace("{number}", "{date}"))
    assert runs_named(project)[1].name == "2026-11-28"  # a run file names the latest


def test_a_run_whose_parent_is_missing_is_named(project: Path, grown: Path) -> None:
    folder = grown
    shutil.rmtree(folder / "0002")
    refused = call("status", folder)
    assert refused.exit_code == 2 and "the run that it continues is not there" in refused.stderr


def test_a_pattern_without_a_run_says_so(project: Path) -> None:
    assert "there is no run yet" in call("status", project).stderr
    assert "no run yet whose errors could be repeated" in call("run", project, "--only-failed").stderr


def test_a_folder_without_runs_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert "not a run folder" in call("status", tmp_path).stderr


def test_a_claim_on_a_folder_of_runs_reaches_every_one(project: Path, grown: Path) -> None:
    folder = grown
    single, absent = str(folder / "0001"), str(folder / "nowhere")
    assert every_run([str(folder)]) == [str(folder / name) for name in ("0001", "0002", "0003")]
    assert every_run([single, absent]) == [single, absent]


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
