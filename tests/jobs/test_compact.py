"""A sealed run whose small files became large parts: the same rows, digests and proofs, in fewer files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import InputError, IntegrityError, RunStopped
from jobs.compact import compact_run
from jobs.proof import receipt
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.compacted import parts_index
from pipeline.audit.content import compare
from pipeline.audit.events import append_event, read_events
from pipeline.audit.kept import kept_pictures
from pipeline.audit.ledger import attempt_rows, sample_rows, stated_roots
from pipeline.audit.requests import ended_requests
from pipeline.audit.shards import committed, markers
from pipeline.audit.verifier.clearance_verify import Run
from tests.jobs.compacting import (
    WHO,
    compacted,
    contents,
    files_of,
    large,
    run,
    shelf,
    small,
    sound,
)
from tests.proofs import keys_in

FIXTURES = (compacted, large, run, shelf, small)  # used by name


# --- the same rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_bytes", [1, 60_000])
def test_every_row_is_read_as_before(run: Path, small: Path, part_bytes: int) -> None:
    compact_run(run, WHO, part_bytes=part_bytes)
    assert list(sample_rows(run)) == list(sample_rows(small))
    assert list(attempt_rows(run)) == list(attempt_rows(small))
    assert [picture.data for picture in kept_pictures(run)] == [picture.data for picture in kept_pictures(small)]
    assert [picture.shard_id for picture in kept_pictures(run)] == [picture.shard_id for picture in kept_pictures(small)]


def test_requests_have_their_own_attempts(large: Path, small: Path) -> None:
    columns = ["request_key", "outcome"], ["pixel_sha256", "thumbnail"]
    there = [(one.sample, one.attempts) for one in ended_requests(large, *columns)]
    assert there == [(one.sample, one.attempts) for one in ended_requests(small, *columns)]
    shard = markers(small)[1]
    there = [(one.sample, one.attempts) for one in ended_requests(large, *columns, shards={shard})]
    assert there == [(one.sample, one.attempts) for one in ended_requests(small, *columns, shards={shard})]


def test_the_roots_and_receipts_are_those_of_before(large: Path, small: Path) -> None:
    assert verify_run(large).roots == verify_run(small).roots == stated_roots(small)
    assert {name: one.marker for name, one in committed(large).items()} == {
        name: one.marker for name, one in committed(small).items()
    }
    assert compare(large, small).same


def test_statement_and_signature_are_the_same_bytes_and_pass(large: Path, small: Path, shelf: Path) -> None:
    from jobs.proof import trust_in
    from pipeline.keys import Keys

    for name in ("run.json", "run.dsse.json", "plan.json", "requests.parquet"):
        assert (large / name).read_bytes() == (small / name).read_bytes()
    states = {
        stage.name: stage.state for stage in verify_run(large, trust=trust_in(Keys(), shelf / "keys/statement.pub")).stages
    }
    assert states["signature"] == "pass"
    assert {state for name, state in states.items() if name != "time stamp"} == {"pass"}


def test_both_verifiers_count_what_they_counted_before(large: Path, small: Path) -> None:
    names = ("shards", "samples", "attempts", "kept", "pictures", "thumbnails", "embeddings", "prompts", "kept_pictures")
    before, after = verify_run(small).counts, verify_run(large).counts
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    other = Run(str(large)).verify()
    assert {name: other.counts[name] for name in names} == {name: before[name] for name in names}


def test_a_receipt_of_a_request_and_of_a_shard_is_still_made(large: Path, tmp_path: Path) -> None:
    keys = keys_in(tmp_path / "other-keys")
    assert receipt(large, keys, key="row-000000").data
    assert receipt(large, keys, shard=markers(large)[2]).data


# --- fewer files -----------------------------------------------------------------------------------------------------------


def test_the_small_files_are_gone_and_the_parts_few(run: Path, small: Path) -> None:
    done = compact_run(run, WHO)
    assert len(files_of(small, "samples", "attempts", "kept", "commits")) == done.removed == 15
    assert files_of(run, "samples", "attempts", "kept", "commits") == []
    assert [path.name.split("-")[0] for path in files_of(run, "parts")] == ["attempts", "index.parquet", "kept", "samples"]


def test_parts_have_row_groups_of_64_across_shards(make_plan: Callable[..., Plan], open_loop: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = run_local(make_plan(["cat"] * 70, shard_size=16), tmp_path / "long", open_loop=open_loop).folder
    compact_run(folder, WHO)
    file = pq.ParquetFile(next((folder / "parts").glob("samples-*")))
    assert [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)] == [64, 6]
    assert sound(folder)


def test_parts_come_to_the_size_that_is_asked_for(run: Path) -> None:
    compact_run(run, WHO, part_bytes=60_000)
    index = parts_index(run)
    assert index is not None
    sizes = [part.bytes for part in index.parts if part.table == "samples"]
    assert len(sizes) == 4 and max(sizes) < 90_000


def test_an_event_names_the_index_and_who_did_it(large: Path) -> None:
    event, index = read_events(large)[-1], parts_index(large)
    assert index is not None
    assert (event["kind"], event["actor"], event["digests"]["index_sha256"]) == ("run.compacted", "operator", index.sha256)
    assert event["details"] == {"files": 11, "parts": 3, "shards": 4}


def test_a_second_time_nothing_is_done(large: Path) -> None:
    before = contents(large)
    done = compact_run(large, WHO)
    assert (done.removed, done.event) == (0, None) and contents(large) == before


def test_the_card_leads_datasets_to_the_parts(large: Path, small: Path) -> None:
    datasets = pytest.importorskip("datasets")
    there = datasets.load_dataset(str(large), split="train", cache_dir=str(large.parent / "cache"))
    assert there["request_key"] == [row["request_key"] for row in sample_rows(small)]


# --- refusals --------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_sealed_is_refused(stopped: Path) -> None:
    before = contents(stopped)
    with pytest.raises(InputError, match="not sealed"):
        compact_run(stopped, WHO)
    assert contents(stopped) == before


@pytest.mark.parametrize("name", ["samples", "attempts", "kept", "commits"])
def test_a_run_that_does_not_verify_is_refused_and_kept_as_it_is(run: Path, name: str) -> None:
    path = files_of(run, name)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    before = contents(run)
    with pytest.raises(IntegrityError, match="does not verify"):
        compact_run(run, WHO)
    assert contents(run) == before


def test_a_run_that_another_process_holds_is_refused(run: Path) -> None:
    from jobs.run.lease.lock import lease

    with lease(run), pytest.raises(RunStopped):
        compact_run(run, WHO)
    assert not (run / "parts").exists()


def test_an_event_that_came_meanwhile_stops_it_before_anything_counts(run: Path, small: Path) -> None:
    def meanwhile(done: int, total: int) -> None:
        if done == total:
            append_event(run, "hold.set", "counsel", "a claim", details={"matter": "7"})

    with pytest.raises(RunStopped, match="another process"):
        compact_run(run, WHO, listen=meanwhile)
    assert parts_index(run) is None and list(sample_rows(run)) == list(sample_rows(small))
    assert sound(run)


@pytest.mark.parametrize("column", ["thumbnail", "thumbnail_sha256"])
def test_a_file_that_changed_since_the_run_was_verified_goes_into_no_part(run: Path, small: Path, column: str) -> None:
    """Its last row and its number of rows are the same: only its digest tells."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    victim = files_of(run, "attempts")[0]

    def meanwhile(done: int, total: int) -> None:
        if done == 4:  # the samples are in their part, the attempts are not
            table = pq.ParquetFile(victim).read()
            cells, field = table.column(column).to_pylist(), table.schema.field(column)
            cells[0] = {"bytes": b"another", "path": "x"} if column == "thumbnail" else "0" * 64
            place = table.schema.get_field_index(column)
            pq.write_table(table.set_column(place, field, pa.array(cells, field.type)), victim)

    with pytest.raises(IntegrityError, match="is not the file that was committed") as caught:
        compact_run(run, WHO, listen=meanwhile)
    assert caught.value.where == str(victim)
    assert parts_index(run) is None and [event["kind"] for event in read_events(run)] == [
        event["kind"] for event in read_events(small)
    ]
    assert len(files_of(run, "samples", "attempts", "kept", "commits")) == 15
