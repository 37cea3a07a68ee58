"""Verifying comes in named stages: each passes, fails or is skipped on its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.events import append_event
from pipeline.audit.ledger import seal, statement_bytes, statement_digest
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import commit_shard, committed
from pipeline.audit.stage import STAGES, Findings, Problem, State
from pipeline.audit.verifier.clearance_verify import Run
from pipeline.audit.verify import Verification, verify
from pipeline.salt import salt_id
from tests.pipeline.conftest import FakeRun

Make = Callable[..., Any]


@pytest.fixture
def run(make_run: Make, tmp_path: Path) -> FakeRun:
    made: FakeRun = make_run(tmp_path / "run")
    return made


def states(found: Verification) -> dict[str, State]:
    return {stage.name: stage.state for stage in found.stages}


def failed(found: Verification) -> set[str]:
    return {stage.name for stage in found.stages if stage.state == "fail"}


def sentence(found: Verification, name: str) -> str:
    return next(stage.sentence for stage in found.stages if stage.name == name)


def restate(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the statement and redo the digest that it states of itself."""
    statement = json.loads((folder / "run.json").read_bytes())
    change(statement["predicate"])
    statement["predicate"]["statement_sha256"] = statement_digest(statement)
    (folder / "run.json").write_bytes(statement_bytes(statement))


def test_an_intact_run_passes_what_it_has_and_skips_what_it_lacks(run: FakeRun) -> None:
    found = verify(run.folder)
    assert tuple(states(found)) == STAGES
    skipped = {name for name, state in states(found).items() if state == "skip"}
    assert found.ok and skipped == {"signature", "time stamp"} and not failed(found)
    assert sentence(found, "signature") == "the run was not signed"
    assert sentence(found, "prompts") == "20 prompts match their commitments"


def test_a_run_that_was_not_sealed_skips_its_tree_and_fails_its_statement(
    tmp_path: Path, samples: list[Any], context: Make
) -> None:
    commit_shard(tmp_path, "0", sample_table(samples, context(), "0"), attempt_table(samples, context(), "0"))
    found = verify(tmp_path)
    assert failed(found) == {"statement"} and states(found)["tree"] == "skip" and states(found)["events"] == "skip"
    assert sentence(found, "tree") == "the run was not sealed"


def test_a_secret_salt_that_is_not_given_skips_the_prompts_and_they_do_not_pass(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "salted", shards=1, salt="3b7f" * 8)
    found = verify(run.folder)
    assert found.ok and states(found)["prompts"] == "skip" and "10 prompts were not compared" in sentence(found, "prompts")
    assert states(verify(run.folder, salt="3b7f" * 8))["prompts"] == "pass"


def test_a_salt_that_fits_no_commitment_is_named(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "salted", shards=1, salt="3b7f" * 8)
    said = sentence(verify(run.folder, salt="99" * 32), "prompts")
    assert f"the salt that was given, {salt_id('99' * 32)}, is that of none of them" in said
    small = Run(str(run.folder), "99" * 32).verify()
    assert "not the one that was given" in small.skip["prompts"]


def test_a_changed_byte_fails_the_files(run: FakeRun) -> None:
    path = sorted(run.folder.glob("samples/*.parquet"))[0]
    path.write_bytes(path.read_bytes() + b" ")
    found = verify(run.folder)
    assert "files" in failed(found) and "events" not in failed(found)
    assert found.stages[0].problems[0].where == path.relative_to(run.folder).as_posix()


def test_a_changed_root_fails_the_tree_alone(run: FakeRun) -> None:
    restate(run.folder, lambda predicate: predicate.update(merkle_root="00" * 32))
    run_sha = verify(run.folder)
    # The event of sealing names another statement, so stage statement fails as well; nothing else does.
    assert failed(run_sha) == {"tree", "statement"}


def test_changed_counts_fail_the_statement(run: FakeRun) -> None:
    restate(run.folder, lambda predicate: predicate.update(requested=21))
    assert failed(verify(run.folder)) == {"statement"}


def rewritten(run: FakeRun, change: Callable[[list[dict[str, Any]]], Any]) -> Verification:
    """Change rows of the first shard and redo file, marker and statement, as the owner of the folder could."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = committed(run.folder)["00000"]
    tables = {file.table: pq.ParquetFile(run.folder / file.path).read() for file in first.files}
    predicate = json.loads((run.folder / "run.json").read_bytes())["predicate"]
    for name in (*(file.path for file in first.files), "commits/00000.json"):
        (run.folder / name).unlink()
    rows = tables["samples"].to_pylist()
    change(rows)
    commit_shard(run.folder, "00000", pa.Table.from_pylist(rows, schema=tables["samples"].schema), tables["attempts"])
    seal(run.folder, predicate)
    return verify(run.folder)


def test_a_changed_prompt_fails_the_prompts_alone(run: FakeRun) -> None:
    assert failed(rewritten(run, lambda rows: rows[0].update(prompt="another"))) == {"prompts"}


def test_a_removed_picture_fails_the_pictures_alone(run: FakeRun) -> None:
    assert failed(rewritten(run, lambda rows: rows[0].update(image=None))) == {"pictures"}


def test_a_changed_column_fails_the_chains_alone(run: FakeRun) -> None:
    assert failed(rewritten(run, lambda rows: rows[0].update(policy_name="another"))) == {"chains"}


@pytest.mark.parametrize(("column", "value"), [("started_at", 2**62), ("finished_at", -(2**62)), ("attempts", 2**31 - 1)])
def test_a_number_that_no_row_has_is_a_problem_and_no_crash(run: FakeRun, column: str, value: int) -> None:
    """A time outside of Python's, and a count of attempts of which no list fits into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = sorted((run.folder / "samples").iterdir())[0]
    table = pq.ParquetFile(path).read()
    place = table.schema.get_field_index(column)
    field, cells = table.schema.field(place), [value] * table.num_rows
    forged = pa.array(cells, pa.int64()).view(field.type) if column != "attempts" else pa.array(cells, field.type)
    pq.write_table(table.set_column(place, field, forged), path)
    assert failed(verify(run.folder)) >= {"files", "chains"}
    assert Run(str(run.folder)).verify().problems and not any(
        "to the end" in one[2] for one in Run(str(run.folder)).verify().problems
    )


def test_a_path_beside_a_picture_that_no_writer_gives_fails_the_pictures_alone(run: FakeRun) -> None:
    """It is in no digest of the rows."""
    assert failed(rewritten(run, lambda rows: rows[0]["image"].update(path="/etc/passwd"))) == {"pictures"}
    assert any("/etc/passwd" in what for _, _, what in Run(str(run.folder)).verify().problems)


def test_a_changed_event_fails_the_events(run: FakeRun, tmp_path: Path) -> None:
    append_event(run.folder, "run.noted", "reviewer", "fine")
    older = Path(shutil.copytree(run.folder, tmp_path / "older"))
    append_event(run.folder, "run.noted", "reviewer", "not fine")
    shutil.rmtree(run.folder / "events")
    shutil.copytree(older / "events", run.folder / "events")
    assert failed(verify(run.folder)) == {"events"}


def test_a_problem_from_outside_fails_its_stage(run: FakeRun) -> None:
    found = verify(run.folder).with_problem("files", Problem("plan.json", "is another"))
    assert not found.ok and failed(found) == {"files"} and sentence(found, "files") == "1 problem, in plan.json"
    again = found.with_problem("files", Problem("requests.parquet", "is another"))
    assert [problem.where for problem in again.stages[0].problems] == ["plan.json", "requests.parquet"]


def test_a_stage_of_which_nothing_is_known_is_skipped_and_never_passes() -> None:
    assert {stage.state for stage in Findings().stages(9)} == {"skip"}


def test_a_skipped_stage_with_a_problem_fails() -> None:
    found = Findings()
    found.compared("prompts", "all")
    found.skipped("prompts", "some were not")
    found.problem("prompts", "x row 1", "does not match")
    assert {stage.name: stage.state for stage in found.stages(9)}["prompts"] == "fail"
