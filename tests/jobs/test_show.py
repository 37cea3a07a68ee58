"""``clearance show`` and ``report``: one request in full, pages, and a report that an event names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from index.errors import InputError, IntegrityError
from jobs.cli.main import app
from jobs.earlier import OtherRun, previous_run, runs_beside, unsteered
from jobs.report import report_run
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from jobs.show import lines, show_request, write_pages
from pipeline.audit.events import append_event, read_events
from pipeline.audit.layout import data_files
from pipeline.audit.ledger import sample_rows
from pipeline.audit.sections.entry import drawn_with
from pipeline.audit.stored import sample_files
from pipeline.config import RunConfig
from pipeline.policy import Policy
from tests.jobs.conftest import fake_identity
from tests.pipeline.test_stored import rewrite
from tests.tampering.forge import rewritten, table_of


@pytest.fixture
def run(make_plan: Any, run_of: Any, tmp_path: Path) -> Path:
    plan = make_plan(["accepted"] * 3 + ["steered", "review"])
    return Path(run_of(plan, tmp_path / "monday"))


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def first_key(folder: Path) -> str:
    return next(row["request_key"] for row in sample_rows(folder, ["request_key"]))


def test_a_request_is_found_by_key_and_by_the_beginning_of_its_id(run: Path) -> None:
    entry = show_request(run, first_key(run)).entry
    assert show_request(run, entry["sample_id"][:12]).entry["request_key"] == entry["request_key"]


def test_an_unknown_key_names_the_likely_slip(run: Path) -> None:
    key = first_key(run)
    with pytest.raises(InputError) as error:
        show_request(run, f"{key}x")
    assert key in error.value.fix


def test_a_key_that_cannot_be_typed_is_named_by_its_sample_id(run_of: Any, tmp_path: Path) -> None:
    """Its right-to-left character is shown escaped, and the escape is another key."""
    (tmp_path / "keys.csv").write_text("key,prompt\nrtl-\u202eevil,cat\n", encoding="utf-8")
    config = RunConfig(prompts="keys.csv")
    run = run_of(Plan.make(config, Policy(), tmp_path, identity=fake_identity(config, Policy(), tmp_path)), tmp_path / "run")
    sample_id = next(row["sample_id"] for row in sample_rows(run, ["sample_id"]))
    with pytest.raises(InputError) as error:
        show_request(run, "rtl-\\u202eevil")
    assert f"sample id {sample_id}" in error.value.fix
    assert show_request(run, sample_id).entry["request_key"] == "rtl-\u202eevil"


@pytest.mark.parametrize("table", ["samples", "attempts"])
def test_a_row_that_was_changed_is_not_shown(run: Path, table: str) -> None:
    key = first_key(run)
    rewrite(run, next(data_files(run, table)), "reason", "nothing at all", 0)
    with pytest.raises(IntegrityError, match="is not the file that was committed"):
        show_request(run, key)
    assert call("show", run, key).exit_code != 0


def test_every_attempt_and_finding_is_shown(run: Path) -> None:
    shown = show_request(run, first_key(run)).entry
    names = [name.strip() for name, _ in lines(shown)]
    assert "attempt 0" in names and "copies" in [name.lstrip("! ") for name in names]


def test_what_a_request_was_drawn_with_is_said_in_one_line() -> None:
    adapters = [{"name": "ink", "weight": 0.6}]
    row = {"attempts": 1, "scheduler": "euler_a, trailing", "steps": 4, "guidance": 0.0, "preset": "turbo"}
    row |= {"adapters": adapters, "group": {"id": "cat#1-4"}}
    group = "in the group cat#1-4, whose members push one another apart"
    assert drawn_with(row) == f"euler_a, trailing, 4 steps, guidance 0, preset turbo, adapter ink (weight 0.6), {group}"


def test_a_decision_after_the_run_is_in_force(run: Path) -> None:
    entry = show_request(run, first_key(run)).entry
    append_event(run, "review.decided", "counsel", "a likeness", samples=[entry["sample_id"]], details={"outcome": "rejected"})
    told = dict(lines(show_request(run, first_key(run)).entry))
    assert told["  in force now"] == "rejected" and "review.decided by counsel: a likeness" in told.values()


def test_where_nothing_was_compared_no_cosine_is_shown(run: Path) -> None:
    entry = show_request(run, first_key(run)).entry
    alone = {**entry["attempts"][0]["findings"][0], "score": -1.0, "triggered": False}
    entry["attempts"][0]["findings"] = [alone]
    values = [value for _, value in lines(entry)]
    assert any("nothing compared" in value for value in values) and not any("-1.000" in value for value in values)


def test_what_was_erased_is_listed(run: Path) -> None:
    from jobs.by import By
    from jobs.retention import erase_keys

    assert "  erased" not in dict(lines(show_request(run, first_key(run)).entry))
    erase_keys(run, [first_key(run)], ["picture"], By(role="privacy", reason="request 31"))
    told = dict(lines(show_request(run, first_key(run)).entry))
    assert told["  erased"] == "image, thumbnail"


def test_show_prints_json(run: Path) -> None:
    result = call("show", run, first_key(run), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["request_key"] == first_key(run)


def test_show_writes_a_page_of_its_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert call("show", run, first_key(run), "--out", out).exit_code == 0
    page = out.read_text(encoding="utf-8")
    assert "Clearance · one request" in page and "<script" not in page and "Attempt 0" in page


def test_pages_are_written_for_every_request_and_are_no_damage(run: Path) -> None:
    count, left_out = write_pages(run)
    assert not left_out and count == 5 == len(list((run / "pages").glob("*.html")))
    found = verify_run(run)
    assert found.ok and any("pages of 5 requests" in left.what for left in found.not_covered)


def test_no_page_is_written_from_a_changed_file(run: Path) -> None:
    path = run / next(sample_files(run))
    pq.write_table(rewritten(table_of(path), lambda rows: rows[0].update(reason="none"), rechain=True), path)
    result = call("report", run, "--pages")
    assert result.exit_code == 1 and f"no page of a request in {path}: is not the file that was committed" in result.stderr
    assert not list((run / "pages").glob(f"{first_key(run)}.html"))


def test_templates_are_loaded_for_the_first_page_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jinja2 import FileSystemLoader

    loaded: list[str] = []
    load = FileSystemLoader.load

    def counted(self: FileSystemLoader, environment: Any, name: str, *more: Any) -> Any:
        loaded.append(name)
        return load(self, environment, name, *more)

    monkeypatch.setattr(FileSystemLoader, "load", counted)
    write_pages(run)
    assert len(loaded) == len(set(loaded))


def test_an_unsigned_run_is_looked_at_without_the_libraries_of_key_services(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.audit.envelope import signed_by\n"
        "assert signed_by(Path(sys.argv[1])) == 'not signed'; sys.exit('securesystemslib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], timeout=60).returncode == 0


@pytest.mark.parametrize(("key", "name"), [
    ("cat 7", "cat 7.html"), ("a/b", "a%2Fb.html"), ("..", "abc.html"), ("x" * 300, "abc.html"), ("", "abc.html"),
])  # fmt: skip
def test_a_page_is_named_by_the_key_where_a_disk_takes_it(key: str, name: str) -> None:
    from jobs.show import Shown

    assert Shown(entry={"request_key": key, "sample_id": "abc"}, pictures={}).page_name == name


# --- the report ------------------------------------------------------------------------------------------------------------


def test_the_report_is_named_by_an_event(run: Path) -> None:
    report_run(run)
    event = read_events(run)[-1]
    assert event["kind"] == "run.reported" and set(event["digests"]) == {"report_html_sha256", "report_json_sha256"}


def test_verifying_says_that_a_report_is_as_written(run: Path) -> None:
    report_run(run)
    left = {problem.where: problem.what for problem in verify_run(run).not_covered}
    assert "names its digest" in left["report.html"] and "names its digest" in left["report.json"]


def test_verifying_finds_a_report_that_was_changed(run: Path) -> None:
    report_run(run)
    page = run / "report.html"
    page.write_bytes(page.read_bytes().replace(b"accepted", b"acceptea", 1))
    found = verify_run(run)
    assert not found.ok and [problem.where for problem in found.problems] == ["report.html"]


def test_a_changed_report_can_be_written_again(run: Path) -> None:
    report_run(run)
    (run / "report.html").write_text("mine", encoding="utf-8")
    _, content, _ = report_run(run)
    assert content["integrity"]["ok"] and verify_run(run).ok


def test_a_report_of_a_damaged_run_says_so_on_top_and_exits_with_1(run: Path) -> None:
    part = next((run / "samples").iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"X")
    result = call("report", run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert result.exit_code == 1 and "The record is not whole" in page[: page.index("<nav")]


def test_a_changed_plan_is_damage_in_the_report_too(run: Path) -> None:
    plan = run / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b'"shard_size": 2', b'"shard_size": 3'))
    assert call("report", run).exit_code == 1


# --- other runs of the data set --------------------------------------------------------------------------------------------


def other(folder: Path, started: float, **more: Any) -> OtherRun:
    return OtherRun(folder=folder, predicate={"started_at": started, "run_id": folder.name, **more})


@pytest.fixture
def three(tmp_path: Path) -> list[OtherRun]:
    made = []
    for name, started in (("late", 30.0), ("middle", 20.0), ("early", 10.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(name, encoding="utf-8")
        made.append(other(tmp_path / name, started, plan_sha256=f"plan-{name}"))
    return made


def test_the_run_before_is_the_latest_that_began_before_this_one(three: list[OtherRun]) -> None:
    found = previous_run({"started_at": 25.0}, three)
    assert found is not None and (found["folder"], found["named"]) == ("middle", False)


def test_a_run_that_this_one_names_comes_first(three: list[OtherRun]) -> None:
    found = previous_run({"started_at": 25.0, "plan": {"parent_plan_sha256": "plan-early"}}, three)
    assert found is not None and (found["folder"], found["named"]) == ("early", True)


def test_the_first_run_has_none_before_it(three: list[OtherRun]) -> None:
    assert previous_run({"started_at": 5.0}, three) is None


def test_only_runs_of_the_data_set_are_looked_at(run: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(run, run.parent / "tuesday")
    dataset = json.loads((run / "run.json").read_bytes())["predicate"]["dataset_id"]
    assert [found.folder for found in runs_beside(run, dataset)] == [twin.resolve()]
    assert runs_beside(run, "another") == []
    elsewhere = tmp_path / "another disk" / twin.name
    elsewhere.parent.mkdir()
    twin.rename(elsewhere)
    twin.symlink_to(elsewhere)
    (twin.parent / "nothing").symlink_to("nowhere")
    assert [found.folder.resolve() for found in runs_beside(run, dataset)] == [elsewhere.resolve()]


def test_an_unsteered_picture_of_the_same_seed_is_found(run: Path) -> None:
    shutil.copytree(run, run.parent / "tuesday")
    predicate = json.loads((run / "run.json").read_bytes())["predicate"]
    sample_id = show_request(run, first_key(run)).entry["sample_id"]
    others = runs_beside(run, predicate["dataset_id"])
    assert set(unsteered(predicate, others, [sample_id])) == {sample_id}


def test_a_run_of_another_model_has_no_picture_of_the_same_seed(run: Path) -> None:
    shutil.copytree(run, run.parent / "tuesday")
    predicate = json.loads((run / "run.json").read_bytes())["predicate"]
    sample_id = show_request(run, first_key(run)).entry["sample_id"]
    mine = {**predicate, "model": {**predicate["model"], "digest": "another"}}
    assert unsteered(mine, runs_beside(run, predicate["dataset_id"]), [sample_id]) == {}


def test_a_secret_salt_of_the_environment_checks_the_prompts_of_the_report(
    make_plan: Any, open_loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARANCE_SALT", "ab" * 32)
    folder = run_local(make_plan(["cat"]), tmp_path / "secret", open_loop=open_loop).folder
    assert call("report", folder).exit_code == 0
    stages = {
        stage["name"]: stage["state"] for stage in json.loads((folder / "report.json").read_bytes())["integrity"]["stages"]
    }
    assert stages["prompts"] == "pass"
