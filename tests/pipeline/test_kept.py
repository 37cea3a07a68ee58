"""Full pictures of what was not released: kept apart, committed with their shard, covered by verify; save of hard stops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guards.base import Finding
from index import storage
from index.errors import ClearanceError, RunStopped
from index.storage import Disk
from pipeline.audit.context import RunContext
from pipeline.audit.kept import kept_files, kept_pictures, kept_table
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.report import write_report
from pipeline.audit.shards import ShardReceipt, commit_shard, committed, sweep
from pipeline.audit.verify import verify
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, decode
from pipeline.outcome import Outcome, Sample, Verdict
from tests.pipeline.conftest import a_context, a_sample, an_attempt, drawing, every_outcome

Change = Callable[[list[dict[str, Any]]], None]


def commit(folder: Path, samples: list[Sample], context: RunContext, name: str = "00000") -> ShardReceipt:
    files = kept_files(samples, context)
    tables = sample_table(samples, context, name, kept=files), attempt_table(samples, context, name)
    return commit_shard(folder, name, *tables, kept_table(samples, files, context, name))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten samples: six released, one in review (key-006), one rejected (key-007), two errors."""
    commit(tmp_path / "run", every_outcome(), a_context())
    return tmp_path / "run"


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(p.where, p.what) for p in verify(folder).problems if p.where != "run.json"]


def test_the_held_pictures_are_kept_as_they_were_drawn(run: Path) -> None:
    drawn = {sample.request.key: sample.final.picture for sample in every_outcome() if sample.final is not None}
    kept = {one.request_key: one for one in kept_pictures(run)}
    assert sorted(kept) == ["key-006", "key-007"]
    for key, one in kept.items():
        assert one.data is not None and np.array_equal(decode(one.data)[0], drawn[key])


def test_a_kept_picture_names_its_origin(run: Path) -> None:
    kept = [*kept_pictures(run)]
    assert len(kept) == 2 and all(one.data and DIGITAL_SOURCE_TYPE.encode() in decode(one.data)[1] for one in kept)


def test_the_row_states_the_digest_of_the_kept_file(run: Path) -> None:
    stated = {row["request_key"] for row in sample_rows(run) if row["kept_sha256"] is not None}
    assert stated == {"key-006", "key-007"}
    assert verify(run).counts["kept_pictures"] == 2 and problems(run) == []


def test_no_reader_of_the_samples_sees_them(run: Path) -> None:
    table = pq.read_table(run / "samples")
    with_picture = [row["outcome"] for row in table.select(["image", "outcome"]).to_pylist() if row["image"] is not None]
    assert set(with_picture) == {"accepted", "accepted_after_steering"}


def test_a_reader_may_leave_the_pictures_out(run: Path) -> None:
    found = list(kept_pictures(run, pictures=False))
    assert [(one.request_key, one.attempt, one.data) for one in found] == [("key-006", 0, None), ("key-007", 1, None)]


def test_a_shard_without_held_samples_has_no_such_file(tmp_path: Path) -> None:
    receipt = commit(tmp_path, every_outcome()[:6], a_context())
    assert [file.table for file in receipt.files] == ["samples", "attempts"] and not (tmp_path / "kept").exists()


def test_they_can_be_switched_off(tmp_path: Path) -> None:
    commit(tmp_path, every_outcome(), a_context(keep_held=False))
    assert list(kept_pictures(tmp_path)) == [] and problems(tmp_path) == []


# --- hard stops ------------------------------------------------------------------------------------------------------------

UNSAFE = Finding(guard="unsafe", version="1", category="unsafe.nsfw", score=0.95, threshold=0.8)


def rejected(finding: Finding, actions: dict[str, str], tmp_path: Path, **changes: object) -> tuple[list[Any], Any]:
    """The kept pictures and the attempt's row of one rejected sample with that finding."""
    attempt = an_attempt(0, drawing(1, [90, 40, 160]), 0.3, Verdict.REJECT, reason=finding.category, findings=[finding])
    sample = a_sample(0, Outcome.REJECTED, [attempt], finding.category)
    commit(tmp_path, [sample], a_context(actions=actions, **changes))
    assert problems(tmp_path) == []
    return list(kept_pictures(tmp_path)), next(attempt_rows(tmp_path))


def test_of_a_hard_stop_digests_alone_are_kept(tmp_path: Path) -> None:
    kept, row = rejected(UNSAFE, {"unsafe": "reject"}, tmp_path)
    assert (kept, row["thumbnail"], row["thumbnail_sha256"]) == ([], None, None)
    assert len(row["pixel_sha256"]) == 64


@pytest.mark.parametrize(
    ("finding", "actions", "changes"),
    [
        (dataclasses.replace(UNSAFE, confirmed=False), {"unsafe": "reject"}, {}),
        (dataclasses.replace(UNSAFE, score=0.1), {"unsafe": "reject"}, {}),
        (UNSAFE, {"unsafe": "review"}, {}),
        (UNSAFE, {"unsafe": "reject"}, {"hard_stop": ()}),
        (dataclasses.replace(UNSAFE, category="mark.qr", guard="codes"), {"codes": "reject"}, {}),
    ],
    ids=["unconfirmed", "below its threshold", "only reviewed", "not listed", "another category"],
)
def test_what_is_no_hard_stop_is_kept(tmp_path: Path, finding: Finding, actions: dict[str, str], changes: Any) -> None:
    kept, row = rejected(finding, actions, tmp_path, **changes)
    assert len(kept) == 1 and row["thumbnail"] is not None


def test_a_report_shows_a_hard_stop_without_a_picture(tmp_path: Path) -> None:
    rejected(UNSAFE, {"unsafe": "reject"}, tmp_path)
    assert "unsafe.nsfw" in write_report(tmp_path)[0].read_text(encoding="utf-8")


# --- whole and intact ------------------------------------------------------------------------------------------------------


def rewritten(run: Path, change: Change) -> None:
    """Rewrite the kept part with other rows, in the file's place."""
    path = next((run / "kept").iterdir())
    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def swap(rows: list[dict[str, Any]]) -> None:
    rows[0]["image"], rows[1]["image"] = rows[1]["image"], rows[0]["image"]


def lose(rows: list[dict[str, Any]]) -> None:
    rows[0]["image"] = None


@pytest.mark.parametrize(
    ("change", "what"),
    [(swap, "the stored bytes do not match their digest"), (lose, "the picture is missing"), (list.pop, "is not that of")],
    ids=["swapped", "lost", "row removed"],
)
def test_a_changed_kept_picture_is_found(run: Path, change: Change, what: str) -> None:
    rewritten(run, change)
    found = problems(run)
    assert any(where.startswith("kept/") and "digest does not match its commit marker" in text for where, text in found)
    assert any(what in text for _, text in found) or (change is list.pop and any("not kept" in text for _, text in found))


def test_a_removed_part_is_found(run: Path) -> None:
    path = next((run / "kept").iterdir())
    path.unlink()
    assert [f"kept/{path.name}"] == [where for where, what in problems(run) if "is missing" in what]


def test_a_stranger_among_them_is_found(run: Path) -> None:
    (run / "kept" / "more.parquet").write_bytes(b"not ours")
    assert ("kept/more.parquet", "belongs to no committed shard") in problems(run)


class Pulled(Disk):
    """A disk that is pulled out when the marker is to get its name."""

    def link(self, old: str, new: str, *, at: int) -> None:
        raise OSError(5, "pulled out")


def test_a_commit_that_fails_leaves_none(tmp_path: Path) -> None:
    with storage.using(Pulled()), pytest.raises(RunStopped):
        commit(tmp_path, every_outcome(), a_context())
    assert committed(tmp_path) == {} and list((tmp_path / "kept").iterdir()) == []


def test_the_sweep_removes_what_a_killed_commit_left(run: Path) -> None:
    part = next((run / "kept").iterdir())
    left = run / "kept" / "part-00001-0123456789abcdef-00000000.parquet"
    left.write_bytes(part.read_bytes())
    assert sweep(run) == [left] and part.exists()


def test_a_damaged_part_is_left_out_on_request(run: Path) -> None:
    next((run / "kept").iterdir()).write_bytes(b"no parquet")
    damaged: list[ClearanceError] = []
    assert list(kept_pictures(run, damaged=damaged)) == [] and len(damaged) == 1
