"""A whole and valid shard that is another run's is found: by verify, and before a run is sealed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import ClearanceError, IntegrityError
from pipeline.audit.context import Anchors, RunContext
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import run_predicate, sample_rows, seal, statement_bytes, statement_digest
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import ShardReceipt, commit_shard, committed
from pipeline.audit.verify import verify
from pipeline.outcome import Sample

Make = Callable[..., RunContext]

# What a shard's header states, and what the header of another run's states.
FOREIGN = {
    "run": {"run_id": "run-of-somebody"},
    "data set": {"dataset_id": "another"},
    "plan": {"plan_sha256": "00" * 32},
    "policy": {"policy_sha256": "00" * 32},
    "salt": {"salt": "3b7f" * 8},
}


def commit(folder: Path, samples: list[Sample], context: RunContext, name: str = "00000") -> ShardReceipt:
    return commit_shard(folder, name, sample_table(samples, context, name), attempt_table(samples, context, name))


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_shard_under_the_right_name_is_not_sealed(
    tmp_path: Path, samples: list[Sample], context: Make, what: str
) -> None:
    foreign = commit(tmp_path, samples, context(**FOREIGN[what]))
    with pytest.raises(IntegrityError, match=f"is not this run's: its {what} is") as caught:
        seal(tmp_path, run_predicate(context()))
    assert caught.value.where == f"{tmp_path}/{foreign.files[0].path}"
    assert not (tmp_path / "run.json").exists() and read_events(tmp_path) == []


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_shard_is_named_by_verify(tmp_path: Path, samples: list[Sample], context: Make, what: str) -> None:
    theirs = context(**FOREIGN[what])
    foreign = commit(tmp_path, samples, theirs)
    seal(tmp_path, run_predicate(theirs))
    statement = json.loads((tmp_path / "run.json").read_bytes())
    # The owner of the folder writes the statement of the run that it should have been.
    predicate = statement["predicate"] = {**statement["predicate"], **run_predicate(context())}
    predicate["statement_sha256"] = statement_digest(statement)
    (tmp_path / "run.json").write_bytes(statement_bytes(statement))
    found = [problem for problem in verify(tmp_path).problems if problem.where == foreign.files[0].path]
    assert any(f"is not this run's: its {what} is" in problem.what for problem in found)


@pytest.mark.parametrize(
    ("column", "value"),
    [("run_id", "other"), ("shard_id", "other"), ("worker_id", "other"), ("policy_sha256", "00"), ("dataset_id", "other")],
)
def test_a_row_that_contradicts_its_header_is_named(
    tmp_path: Path, samples: list[Sample], context: Make, column: str, value: str
) -> None:
    import pyarrow as pa

    from pipeline.audit.chain import chain_start, record_digest, table_header

    table, tries = sample_table(samples, context(), "00000"), attempt_table(samples, context(), "00000")
    rows, prev = table.to_pylist(), chain_start(table_header(table.schema))
    rows[3][column] = value
    for row in rows:  # a forger redoes the chain
        row["prev_sha256"] = prev
        prev = row["record_sha256"] = record_digest(row, prev)
    receipt = commit_shard(tmp_path, "00000", pa.Table.from_pylist(rows, schema=table.schema), tries)
    seal(tmp_path, run_predicate(context()))
    problems = {problem.where: problem.what for problem in verify(tmp_path).problems}
    assert list(problems) == [f"{receipt.files[0].path} row 3 column {column}"]
    assert "the file's header says" in problems[f"{receipt.files[0].path} row 3 column {column}"]


def test_a_shard_written_under_another_plan_file_or_other_events_is_named(
    tmp_path: Path, samples: list[Sample], context: Make
) -> None:
    (tmp_path / "plan.json").write_bytes(b"{}")
    append_event(tmp_path, "run.started", "runner", "started")
    commit(tmp_path, samples, context(anchors=Anchors("00" * 32, "11" * 32)))
    seal_problems = {p.where: p.what for p in verify(tmp_path).problems}
    assert "is not the plan that shard 00000 was written under" in seal_problems["plan.json"]
    assert "lacks the event that shard 00000 was written under" in seal_problems["events"]


def test_a_shard_without_its_files_is_not_sealed(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    receipt = commit(tmp_path, samples, context())
    (tmp_path / receipt.files[1].path).unlink()
    with pytest.raises(IntegrityError, match="is missing") as caught:
        seal(tmp_path, run_predicate(context()))
    assert receipt.files[1].path in caught.value.where


MARKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a text for a number": lambda m: m.update(rows="10"),
    "true for a number": lambda m: m.update(attempts=True),
    "no files": lambda m: m.update(files=[]),
    "a list of lists": lambda m: m.update(files=[[], []]),
    "a number of files": lambda m: m.update(files=7),
    "outcomes as a list": lambda m: m.update(outcomes=[]),
    "null": lambda m: m.update(shard_id=None),
    "a path elsewhere": lambda m: m["files"][0].update(path="../victim"),
    "an absolute path": lambda m: m["files"][0].update(path="/etc/passwd"),
    "another shard's file": lambda m: m["files"][0].update(path="samples/part-00001-0000000000000000.parquet"),
    "files in the other order": lambda m: m["files"].reverse(),
    "a further key": lambda m: m["files"][0].update(more=1),
}


@pytest.mark.parametrize("change", MARKERS)
def test_an_odd_marker_is_refused_even_with_a_digest_of_its_own(
    tmp_path: Path, samples: list[Sample], context: Make, change: str
) -> None:
    import hashlib

    commit(tmp_path, samples, context())
    path = tmp_path / "commits" / "00000.json"
    plain = json.loads(path.read_bytes())
    del plain["digest"]
    MARKERS[change](plain)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_bytes(json.dumps({**plain, "digest": digest}, sort_keys=True, indent=1).encode() + b"\n")
    with pytest.raises(IntegrityError, match=r"commits/00000\.json"):
        committed(tmp_path)
    assert any(problem.where == "commits/00000.json" for problem in verify(tmp_path).problems)


def test_verify_names_what_it_did_not_look_at(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").folder
    assert verify(run).ok and verify(run).not_covered == ()
    (run / "report.html").write_text("<p>1,000 % accepted")
    (run / "notes.txt").write_text("mine")
    (run / "plots" / "deep").mkdir(parents=True)
    (run / "elsewhere").symlink_to(tmp_path)
    (run / ".lease").write_text("held")
    (run / ".tmp-x").write_text("")
    os.mkfifo(run / "pipe")
    found = verify(run)
    left = {problem.where: problem.what for problem in found.not_covered}
    assert found.ok and sorted(left) == [".lease", ".tmp-x", "elsewhere", "notes.txt", "pipe", "plots", "report.html"]
    assert "clearance report" in left["report.html"] and "nothing behind it" in left["elsewhere"]
    assert "with 1 entry" in left["plots"]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
@pytest.mark.parametrize(
    "place", ["samples", "attempts", "commits", "commits/x", "samples/x", "run.json", "events", "events-head.json"]
)
def test_anything_in_the_place_of_a_file_or_folder_of_the_run_is_a_problem(
    make_run: Callable[..., Any], tmp_path: Path, place: str, kind: str
) -> None:
    run, outside = make_run(tmp_path / "run", shards=1).folder, tmp_path / "outside"
    if (run / place).is_dir() or (run / place).exists():
        shutil.move(run / place, outside)
    else:
        outside.mkdir()
    if kind == "link":
        (run / place).symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(run / place)
    else:
        (run / place).mkdir()
    found = verify(run)
    assert not found.ok and any(problem.where.startswith(place) for problem in found.problems), found.problems


def test_damaged_shards_can_be_left_out(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").folder
    whole = [row["request_key"] for row in sample_rows(run, ["request_key"])]
    (run / "commits" / "00000.json").write_bytes(b"{")
    with pytest.raises(ClearanceError):
        list(sample_rows(run, ["request_key"]))
    damaged: list[ClearanceError] = []
    assert [row["request_key"] for row in sample_rows(run, ["request_key"], damaged=damaged)] == whole[10:]
    assert [error.where for error in damaged] == [f"{run}/commits/00000.json"]
