"""Data files are given out as they were committed, or as their last erasure left them, and in no other state."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from index import storage
from index.errors import ClearanceError, InputError, IntegrityError, RunStopped
from index.places.schemes import backend_of
from pipeline.audit.committed_files import CommittedFiles
from pipeline.audit.compact import compact, tidy
from pipeline.audit.compacted import PARTS_INDEX, index_bytes, parts_index
from pipeline.audit.erase import erase_payloads
from pipeline.audit.events import NewEvent, append_event, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.stored import sample_files
from pipeline.audit.verify import verify
from tests.tampering.forge import before_the_seal, cover, recommit, restate, rewritten, sha256, table_of


@pytest.fixture
def folder(tmp_path: Path, make_run: Callable[..., Any]) -> Path:
    return Path(make_run(tmp_path / "run").folder)


def opened(folder: Path, path: str) -> bytes:
    with CommittedFiles.of(folder).open(folder, path) as stream:
        return stream.read()


def refused(folder: Path, path: str) -> str:
    with pytest.raises(ClearanceError) as error:
        opened(folder, path)
    return f"{error.value.where}: {error.value.what}".removeprefix(f"{folder}/")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def erase(folder: Path, *columns: str) -> None:
    sample_id = next(row["sample_id"] for row in sample_rows(folder, ["sample_id"]))
    event = NewEvent(kind="", actor="privacy", reason="request 4")
    erase_payloads(folder, {sample_id: set(columns)}, event, known=len(read_events(folder)))


def compacted(folder: Path) -> None:
    event = NewEvent(kind="", actor="records", reason="fewer files")
    compact(folder, event, part_bytes=1, known=len(read_events(folder)))
    tidy(folder)


def test_what_was_committed_is_opened_at_its_beginning(folder: Path) -> None:
    files = CommittedFiles.of(folder)
    for path in sample_files(folder):
        for _ in range(2):
            with files.open(folder, path) as stream:
                assert stream.read() == (folder / path).read_bytes()


def test_one_byte_of_the_same_length_is_found(folder: Path) -> None:
    first, second = sample_files(folder)
    flip(folder / first)
    assert refused(folder, first) == f"{first}: the file was changed: its digest does not match its commit marker"
    assert opened(folder, second)


def test_a_file_that_no_marker_names_is_refused(folder: Path) -> None:
    path = next(sample_files(folder))
    (folder / "samples" / "part-other.parquet").write_bytes((folder / path).read_bytes())
    assert "belongs to no committed shard" in refused(folder, "samples/part-other.parquet")


def test_an_erased_file_is_the_one_that_the_event_names(folder: Path) -> None:
    path = next(sample_files(folder))
    before = (folder / path).read_bytes()
    erase(folder, "image")
    assert opened(folder, path) == (folder / path).read_bytes() != before
    (folder / path).write_bytes(before)
    assert "names as erased: the erasure was interrupted" in refused(folder, path)
    with pytest.raises(IntegrityError) as error:
        opened(folder, path)
    assert error.value.fix == f"Give `clearance retention apply {folder}`" and error.value.where == f"{folder}/{path}"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_marker_that_was_made_again_is_no_marker_of_the_sealed_run(folder: Path, sealed: bool) -> None:
    if not sealed:
        before_the_seal(folder)

    def change(table: Any) -> Any:
        return rewritten(table, lambda rows: rows[0].update(outcome="error"), rechain=True)

    recommit(folder, "00000", {"samples": change})
    first, second = sample_files(folder)
    if sealed:
        assert "which is not the marker that the run was sealed with" in refused(folder, first)
    else:
        assert opened(folder, first)  # nothing outside the shard tells of it before the seal
    assert opened(folder, second)


def test_a_statement_that_no_event_names_gives_out_nothing(folder: Path) -> None:
    restate(folder, lambda predicate: predicate.update(finished_at="2001-01-01T00:00:00+00:00"))
    with pytest.raises(IntegrityError, match="is not the statement that the last sealing event names"):
        CommittedFiles.of(folder)


def test_a_marker_that_cannot_be_read_costs_its_own_files_alone(folder: Path) -> None:
    first, second = sample_files(folder)
    (folder / "commits/00000.json").write_text(json.dumps({}))
    assert "belongs to no committed shard" in refused(folder, first)
    assert opened(folder, second)


def test_shards_of_another_plan_give_out_nothing(folder: Path) -> None:
    path = next(sample_files(folder))
    files = CommittedFiles.of(folder, {"plan_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="is not this run's: its plan is"):
        files.open(folder, path)


def put(folder: Path, name: str) -> Any:
    """A copy of the run on an object store."""
    place = storage.place(f"memory://committed-{name}/run")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        storage.write_file(place, path.relative_to(folder).as_posix(), path.read_bytes())
    return place


def test_an_object_is_fetched_once_and_hashed_as_it_is_read(folder: Path) -> None:
    place = put(folder, "once")
    path, files = next(sample_files(folder)), CommittedFiles.of(place)
    backend: Any = backend_of(place.store)  # type: ignore[attr-defined]
    before = backend.requests["get"]
    with files.open(place, path) as stream:
        assert stream.read() == (folder / path).read_bytes()
    assert backend.requests["get"] - before == 1


@pytest.mark.parametrize(
    "reader", ["committed_files.receipt_of", "binding.open_file", "ledger.read_file", "committed_files.open_file"]
)
def test_a_store_that_does_not_answer_damages_nothing(folder: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*names: Any, **more: Any) -> Any:
        raise InputError("the object store does not answer", where="memory://", fix="Check the network")

    place, path = put(folder, "away"), next(sample_files(folder))
    monkeypatch.setattr(f"pipeline.audit.{reader}", away)
    with pytest.raises(InputError, match="does not answer"):
        opened(place, path)


def test_a_full_temporary_folder_is_not_taken_for_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*streams: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place, path = put(folder, "full"), next(sample_files(folder))
    monkeypatch.setattr("pipeline.audit.committed_files.copyfileobj", full)
    with pytest.raises(RunStopped) as error:
        opened(place, path)
    assert error.value.where == tempfile.gettempdir() and "TMPDIR" in error.value.fix


def test_what_is_erased_while_a_run_is_read_is_read_as_it_is_then(folder: Path) -> None:
    files, path = CommittedFiles.of(folder), next(sample_files(folder))
    before = (folder / path).read_bytes()
    erase(folder, "image")
    with files.open(folder, path) as stream:
        assert stream.read() == (folder / path).read_bytes() != before


def test_a_file_that_an_erasure_has_not_reached_yet_is_asked_for_again(folder: Path) -> None:
    first, second = sample_files(folder)
    files, before = CommittedFiles.of(folder), (folder / first).read_bytes()
    erase(folder, "image")
    flip(folder / first)
    with pytest.raises(IntegrityError, match="the file was changed"):  # the events tell of an erasure, and not of this
        files.open(folder, first)
    (folder / first).write_bytes(before)
    with pytest.raises(RunStopped, match="while it is read"):
        files.open(folder, first)
    files.open(folder, second).close()


def test_a_run_that_is_compacted_while_it_is_read_is_not_called_damaged(folder: Path) -> None:
    first, second = sample_files(folder)
    files = CommittedFiles.of(folder)
    compacted(folder)
    for path in (first, second):
        with pytest.raises(RunStopped, match="Give the command again"):
            files.open(folder, path)
    for path in sample_files(folder):
        files.open(folder, path).close()


@pytest.mark.parametrize("large", [False, True])
def test_of_one_shard_only_what_belongs_to_it_is_read(folder: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        compacted(folder)
    read: list[str] = []

    def noted(place: Path, path: str, **more: Any) -> Any:
        read.append(path)
        return storage.open_file(place, path, **more)

    monkeypatch.setattr("pipeline.audit.binding.open_file", noted)
    files = CommittedFiles.of(folder, shards={"00001"})
    assert all("part-00001-" in path for path in read) and bool(read) is not large
    files.open(folder, [*sample_files(folder)][1]).close()
    if not large:
        with pytest.raises(IntegrityError, match="belongs to no committed shard"):
            files.open(folder, next(sample_files(folder)))


def near_nothing(rows: list[dict[str, Any]]) -> None:
    """Another embedding, with its digest."""
    vector = np.zeros(len(rows[0]["embedding"]), "<f2")
    rows[0].update(embedding=vector.tolist(), embedding_sha256=hashlib.sha256(vector.tobytes()).hexdigest())


def another_picture(rows: list[dict[str, Any]]) -> None:
    """The picture of another sample, under the digest of its own."""
    rows[0]["image"] = {**rows[0]["image"], "bytes": rows[1]["image"]["bytes"]}


@pytest.mark.parametrize(
    ("change", "what"), [(near_nothing, ": the chain does not end"), (another_picture, " row 0 column image: the stored bytes")]
)
def test_an_event_that_says_erased_explains_no_changed_row(folder: Path, change: Callable[..., Any], what: str) -> None:
    first, second = sample_files(folder)
    cover(folder, first, change)
    assert not verify(folder).ok
    assert refused(folder, first).startswith(f"{first}{what}")
    assert opened(folder, second)


def test_rows_are_recomputed_where_an_event_says_erased_and_nowhere_else(folder: Path, monkeypatch: Any) -> None:
    erase(folder, "image", "thumbnail", "prompt", "negative_prompt")
    read: list[int] = []
    monkeypatch.setattr("pipeline.audit.stage_rows.record_digest", lambda row, prev: read.append(1) or row["record_sha256"])
    first, second = sample_files(folder)
    files = CommittedFiles.of(folder)
    files.open(folder, second).close()
    assert not read
    for _ in range(2):
        files.open(folder, first).close()
    assert len(read) == pq.ParquetFile(folder / first).metadata.num_rows


def test_the_index_of_parts_explains_no_changed_row(folder: Path) -> None:
    compacted(folder)
    first, second = sample_files(folder)
    index = parts_index(folder)
    assert index is not None
    pq.write_table(rewritten(table_of(folder / first), near_nothing, rechain=True), folder / first)
    about = {"sha256": sha256(folder / first), "bytes": (folder / first).stat().st_size}
    parts = [replace(part, **about) if part.path == first else part for part in index.parts]
    data = index_bytes(parts, index.markers, index.slices)
    (folder / PARTS_INDEX).write_bytes(data)
    append_event(folder, "run.compacted", "records", "fewer files", index_sha256=hashlib.sha256(data).hexdigest())
    assert not verify(folder).ok
    assert f"{first} row 0 column prev_sha256" in refused(folder, first)
    assert opened(folder, second)
