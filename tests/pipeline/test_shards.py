from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import ClearanceError, IntegrityError, RunStopped
from index.storage import Disk
from pipeline.audit import shards as shard
from pipeline.audit.context import RunContext
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import ShardReceipt, commit_shard, committed, sweep, write_parquet
from pipeline.audit.verify import verify
from pipeline.outcome import Sample

Make = Callable[..., RunContext]


def tables(samples: Sequence[Sample], context: RunContext, name: str = "00000") -> tuple[Any, Any]:
    return sample_table(samples, context, name), attempt_table(samples, context, name)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_table_has_the_storage_of_its_own_columns(samples: list[Sample], context: Make) -> None:
    """The layouts are worked out once a process: one table's must not serve another, nor the same with fewer columns."""
    for table in (*tables(samples, context()), sample_table(samples, context(), "00000").select(["request_key", "prompt"])):
        options = shard.parquet_options(table.schema)
        assert {path.split(".")[0] for path in options["compression"]} == set(table.column_names)
        assert {*options["use_dictionary"], *options["write_statistics"]} <= set(options["compression"])


def test_commit_and_read_back(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    import pyarrow.parquet as pq

    made = tables(samples, context())
    receipt = commit_shard(tmp_path, "00000", *made)
    assert committed(tmp_path) == {"00000": receipt}
    assert (receipt.rows, receipt.attempts) == (10, 13)
    assert receipt.outcomes == {"accepted": 4, "accepted_after_steering": 2, "error": 2, "rejected": 1, "review": 1}
    for file, table in zip(receipt.files, made, strict=True):
        read = pq.read_table(tmp_path / file.path, partitioning=None)
        assert read.equals(table) and table.schema.metadata.items() <= read.schema.metadata.items()
        assert all(field.metadata[b"doc"] for field in read.schema)
        assert file.chain_head == table.column("record_sha256")[-1].as_py()
    assert sorted(files(tmp_path)) == sorted(["commits/00000.json", *(f.path for f in receipt.files)])


def test_same_table_same_bytes(samples: list[Sample], context: Make) -> None:
    for table, again in zip(tables(samples, context()), tables(samples, context()), strict=True):
        first, second = io.BytesIO(), io.BytesIO()
        write_parquet(table, first)
        write_parquet(again, second)
        assert first.getvalue() == second.getvalue()


def test_parquet_settings(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    import pyarrow.parquet as pq

    receipt = commit_shard(tmp_path, "0", *tables(samples, context()))
    group = pq.ParquetFile(tmp_path / receipt.files[0].path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED" and columns["prompt"].compression == "ZSTD"
    assert columns["outcome"].has_dictionary_page and not columns["sample_id"].has_dictionary_page
    assert columns["request_key"].is_stats_set and not columns["image.bytes"].is_stats_set


def test_a_shard_of_errors_only(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    receipt = commit_shard(tmp_path, "0", *tables(samples[-1:], context()))
    assert (receipt.rows, receipt.attempts) == (1, 0)
    assert len(files(tmp_path)) == 3


def test_replay_keeps_the_first_commit(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    first = commit_shard(tmp_path, "0", *tables(samples, context(), "0"))
    before = files(tmp_path)
    assert commit_shard(tmp_path, "0", *tables(samples[:3], context(worker_id="late"), "0")) == first
    assert files(tmp_path) == before


class Rival(Disk):
    """Another worker commits the same shard between our data files and our marker."""

    def __init__(self, commit: Callable[[], ShardReceipt]) -> None:
        self.commit, self.receipts = commit, list[ShardReceipt]()

    def link(self, old: str, new: str, *, at: int) -> None:
        if not self.receipts:
            with storage.using(Disk()):
                self.receipts.append(self.commit())
        super().link(old, new, at=at)


@pytest.mark.parametrize("same", [True, False])
def test_two_workers_race_for_one_shard(tmp_path: Path, samples: list[Sample], context: Make, same: bool) -> None:
    theirs = tables(samples, context(worker_id="mine" if same else "rival"), "0")
    rival = Rival(lambda: commit_shard(tmp_path, "0", *theirs))
    with storage.using(rival):
        receipt = commit_shard(tmp_path, "0", *tables(samples, context(worker_id="mine"), "0"))
    assert receipt == rival.receipts[0] == committed(tmp_path)["0"]
    assert sorted(files(tmp_path)) == sorted(["commits/0.json", *(f.path for f in receipt.files)])


class Failing(Disk):
    """A disk whose fsync of the n-th file fails."""

    def __init__(self, number: int, error: int) -> None:
        self.number, self.error, self.files = number, error, 0

    def fsync(self, handle: int) -> None:
        self.files += stat.S_ISREG(os.fstat(handle).st_mode)
        if self.files == self.number:
            raise OSError(self.error, os.strerror(self.error))
        super().fsync(handle)


FAILURES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the storage failed",
    errno.ESTALE: "the network folder went away",
}


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("error", FAILURES)
def test_a_failing_disk_leaves_nothing(tmp_path: Path, samples: list[Sample], context: Make, error: int, call: int) -> None:
    made = tables(samples, context())
    with storage.using(Failing(call, error)), pytest.raises(RunStopped, match=FAILURES[error]) as caught:
        commit_shard(tmp_path, "0", *made)
    assert "--resume" in caught.value.fix and caught.value.where == str(tmp_path)
    assert files(tmp_path) == {} and committed(tmp_path) == {}
    assert commit_shard(tmp_path, "0", *made).rows == 10


def test_a_folder_that_cannot_be_made(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClearanceError, match="cannot be written"):
        commit_shard(tmp_path / "file", "0", *tables(samples, context()))


def test_sweep_removes_leftovers_only(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    commit_shard(tmp_path, "0", *tables(samples, context(), "0"))
    kept = files(tmp_path)
    orphan = commit_shard(tmp_path, "1", *tables(samples, context(), "1"))
    (tmp_path / "commits" / "1.json").unlink()  # as if killed before the marker
    torn = tmp_path / "samples" / f"{shard.TEMPORARY}part-2-ab"
    torn.write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert set(sweep(tmp_path)) == {torn, *(tmp_path / f.path for f in orphan.files)}
    assert files(tmp_path) == {**kept, "notes.txt": b"mine"}
    assert sweep(tmp_path / "absent") == []


def test_changed_marker_is_refused(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    commit_shard(tmp_path, "0", *tables(samples, context()))
    marker = tmp_path / "commits" / "0.json"
    marker.write_bytes(marker.read_bytes().replace(b'"rows": 10', b'"rows": 11'))
    with pytest.raises(IntegrityError, match=r"commits/0\.json"):
        committed(tmp_path)
    marker.write_bytes(b"[]")
    with pytest.raises(IntegrityError):
        committed(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_shard_id_must_be_a_file_name(tmp_path: Path, samples: list[Sample], context: Make, name: str) -> None:
    with pytest.raises(ClearanceError, match="file name"):
        commit_shard(tmp_path, name, *tables(samples, context()))


def test_unsealed_run_is_not_verified(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    commit_shard(tmp_path, "00000", *tables(samples, context()))
    problems = verify(tmp_path).problems
    assert [p.where for p in problems] == ["run.json"]


def test_a_sweep_reads_the_markers_that_came_since(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    commit_shard(tmp_path, "0", *tables(samples, context(), "0"))
    known = committed(tmp_path)
    commit_shard(tmp_path, "1", *tables(samples, context(), "1"))
    (tmp_path / "samples" / "part-2-left.parquet").write_bytes(b"left")
    there = files(tmp_path)
    assert sweep(tmp_path, known=known) == [tmp_path / "samples/part-2-left.parquet"]
    assert sorted(files(tmp_path)) == sorted(set(there) - {"samples/part-2-left.parquet"})
    (tmp_path / "commits" / "0.json").unlink()  # a receipt of a marker that is gone keeps nothing
    assert {path.name.split("-")[1] for path in sweep(tmp_path, known=known)} == {"0"}
