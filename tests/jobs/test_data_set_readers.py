"""Readers that see the runs of a data set as one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.by import By
from jobs.cli.arguments import every_run, runs_named
from jobs.compact import compact_run
from jobs.run.planning.stored_plan import plan_json_digest
from tests.jobs.data_sets import ROWS, call, draw, fine, grown, keys, project, three, write

FIXTURES = (project, three, grown)  # used by name


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
    assert "data set default" in text and "1 row that a later run has replaced" in text


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


def test_verify_names_the_runs_that_it_looked_at(project: Path, grown: Path) -> None:
    statement = (grown / "0002" / "run.json").read_bytes()
    run_id, digest = json.loads(statement)["predicate"]["run_id"], hashlib.sha256(statement).hexdigest()
    shown = json.loads(fine("verify", grown, "--json").stdout)["runs"]["0002"]
    one = json.loads(fine("verify", grown / "0002", "--json").stdout)
    for found in (shown, one):
        assert (found["folder"], found["run_id"], found["anchors"]["run_sha256"]) == (str(grown / "0002"), run_id, digest)
    assert f"run {run_id} in {grown / '0002'}" in fine("verify", grown / "0002").output


@pytest.mark.parametrize("named", ["folder", "run file"])
@pytest.mark.parametrize("gone", [("plan.json",), ("plan.json", "run.json", "commits", "events"), ("plan.json", "samples")])
def test_a_run_without_its_plan_is_left_out_of_no_set(project: Path, grown: Path, gone: tuple[str, ...], named: str) -> None:
    for name in gone:
        path = grown / "0002" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for command in ("verify", "status"):
        refused = call(command, grown if named == "folder" else project)
        assert refused.exit_code == 2 and f"{grown}/0002/plan.json: is missing" in refused.stderr
    assert [Path(name).name for name in every_run([str(grown)])] == ["0001", "0002", "0003"]


def test_a_run_that_is_just_beginning_is_no_run_of_the_set_yet(project: Path, grown: Path) -> None:
    (grown / "0004").mkdir()
    for name in (".lease", "requests.parquet"):  # what a run writes before plan.json
        (grown / "0004" / name).write_bytes(b"")
    assert "intact: data set of 3 runs" in fine("verify", grown).output
    assert len(every_run([str(grown)])) == 3


def test_no_run_inside_a_damaged_one_takes_its_place(project: Path, grown: Path) -> None:
    shutil.copytree(grown / "0001", grown.parent / "backup")
    shutil.move(grown.parent / "backup", grown / "0001" / "backup")
    (grown / "0001" / "plan.json").unlink()
    damaged = call("verify", grown / "0001")
    assert damaged.exit_code == 1 and "NOT INTACT" in damaged.output
    assert every_run([str(grown / "0001")]) == [str(grown / "0001")]


def test_a_folder_of_runs_may_be_called_as_a_folder_of_a_run_is(project: Path, grown: Path) -> None:
    (grown / "0001").rename(grown / "samples")
    (grown / "0002").rename(grown / "commits")
    assert "intact: data set of 3 runs" in fine("verify", grown).output


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


def test_the_page_of_a_data_set_parts_today_from_the_end_of_the_runs(project: Path, grown: Path) -> None:
    """A claim changes what is in force, and no count of what the runs made; parts of a count are told from counts."""
    from pipeline.audit.events import append_event
    from pipeline.audit.ledger import sample_rows

    last = next(row for row in sample_rows(grown / "0003", ["sample_id", "outcome"]) if row["outcome"] == "accepted")
    details = {"claim": "claim-12"}
    append_event(grown / "0003", "sample.quarantined", "counsel", "a claim", samples=[last["sample_id"]], details=details)
    fine("report", grown)
    page = (grown / "report.html").read_text()
    today, _, ended = page.partition("<h2>When the runs ended</h2>")
    assert "3 accepted, 1 quarantined, 1 rejected. 1 waits for a person." in today.partition("<h2>In force today</h2>")[2]
    assert '<tr><th scope="row">accepted</th><td class="n">4</td></tr>' in ended
    assert '<tr class="part"><th scope="row">after steering</th>' in ended
    assert page.count("<th") - page.count("<thead") == page.count("<th scope=") and page.count("<table") == page.count(
        "<caption"
    )


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


def test_likely_slips_are_looked_for_in_the_last_run_alone(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key of a run is compared; of a hundred runs that took minutes, and all but one answer was dropped."""
    compared: list[list[str]] = []

    def close(key: str, keys: Any, n: int) -> list[str]:
        compared.extend([[*keys]] if keys else [])
        return [*keys][:1]

    monkeypatch.setattr("jobs.show.get_close_matches", close)
    fine("show", grown, "c")  # in the last run, and not in the one before
    assert compared == []
    refused = call("show", grown, "nobody")
    assert refused.exit_code == 2 and "Did you mean" in refused.stderr
    assert len(compared) == 1


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


# --- runs of which some are compacted --------------------------------------------------------------------------------------


@pytest.fixture(params=["0001", "0003"])
def partly(request: pytest.FixtureRequest, grown: Path) -> Path:
    """The data set with one run compacted: the first, or the repeat that is in force."""
    compact_run(grown / request.param, By(role="operator", reason="fewer files"))
    return grown


def test_status_counts_a_compacted_run_as_before(project: Path, partly: Path) -> None:
    shown = json.loads(fine("status", partly, "--json").stdout)
    assert (shown["measures"]["requested"]["value"], shown["superseded"]) == (5, 1)
    assert shown["outcomes_in_force"] == {"accepted": 4, "rejected": 1}
    assert [(run["name"], run["ended"], run["counted"]) for run in shown["runs"]] == [
        ("0001", 3, 2),
        ("0002", 2, 2),
        ("0003", 1, 1),
    ]


def test_verify_looks_into_the_parts(project: Path, partly: Path) -> None:
    assert "intact: data set of 3 runs" in fine("verify", partly).output
    (victim,) = partly.glob("*/parts/samples-*.parquet")
    victim.write_bytes(victim.read_bytes()[:-9] + b"\0" * 9)
    damaged = call("verify", partly)
    assert damaged.exit_code == 1 and f"{victim.parts[-3]}: NOT INTACT" in damaged.output


@pytest.mark.parametrize("compacted", [("0001",), ("0003",), ("0001", "0002", "0003")])
def test_an_export_is_that_of_the_small_files(project: Path, grown: Path, compacted: tuple[str, ...]) -> None:
    def exported(to: str) -> list[dict[str, Any]]:
        fine("export", grown, "--to", to, "--only", "all", "--columns", "request_key,outcome,image")
        return pq.read_table(next((project.parent / to).rglob("*.parquet"))).to_pylist()

    before = exported("small")
    for name in compacted:
        compact_run(grown / name, By(role="operator", reason="fewer files"))
    assert exported("large") == before and [row["request_key"] for row in before] == ["a", "b", "d", "e", "c"]


def test_a_report_is_that_of_the_small_files(project: Path, partly: Path) -> None:
    fine("report", partly)
    content = json.loads((partly / "report.json").read_text())
    assert (content["measures"]["requested"]["value"], content["superseded"], content["damaged"]) == (5, 1, {})
    assert "4 accepted, 1 rejected" in (partly / "report.html").read_text()


def test_further_runs_see_the_requests_of_a_compacted_one(project: Path, partly: Path) -> None:
    write(project.parent, "cat,a", "a copy,b", "a bee,c", "owl,d", "fox,e", "emu,f")
    draw(project, only_new=True)
    assert keys(partly / "0004") == ["f"]
    assert json.loads(fine("show", partly, "c", "--json").stdout)["outcome"] == "accepted"
