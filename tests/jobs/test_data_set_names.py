"""Names of the run folders of a data set, and which of them a command means."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from index.errors import ConfigError, PlanMismatch
from jobs.run.dataset.out import Out
from jobs.run.dataset.which import next_run, which_run
from tests.jobs.data_sets import ROWS, call, config_of, draw, grown, project, three, write

FIXTURES = (project, three, grown)  # used by name
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


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
