"""A sealed run whose small files became large parts: the same rows, digests and proofs, for every reader and command."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import storage
from index.errors import ClearanceError, InputError, IntegrityError, RunStopped
from jobs.by import By
from jobs.cli import main as cli
from jobs.compact import compact_run
from jobs.proof import receipt, sign
from jobs.retention import erase_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.compacted import PARTS_INDEX, parts_index
from pipeline.audit.content import compare
from pipeline.audit.events import append_event, read_events
from pipeline.audit.kept import kept_pictures
from pipeline.audit.ledger import attempt_rows, sample_rows, stated_roots
from pipeline.audit.requests import ended_requests
from pipeline.audit.shards import committed, markers
from pipeline.audit.stored import embeddings, rows_of
from pipeline.audit.verifier.clearance_verify import Run
from pipeline.audit.verify import verify
from tests.proofs import keys_in

WHO = By(role="operator", reason="fewer files")
PROMPTS = ("cat", "copy of an owl", "steered fox", "elk", "stubborn ape", "", "lemon", "copy of a bat")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compact")


@pytest.fixture
def run(shelf: Path, make_plan: Callable[..., Plan], open_loop: Callable[..., Any], tmp_path: Path) -> Path:
    """Four shards of two requests; signed."""
    if not (shelf / "run").exists():
        run_local(make_plan(PROMPTS), shelf / "run", open_loop=open_loop)
        sign(shelf / "run", keys_in(shelf / "keys"))
    return Path(shutil.copytree(shelf / "run", tmp_path / "run"))


@pytest.fixture
def small(shelf: Path, run: Path) -> Path:
    """The same run as it was."""
    return shelf / "run"


@pytest.fixture
def large(shelf: Path, run: Path, tmp_path: Path) -> Path:
    """The same run with one part a table."""
    return _compacted(shelf / "large", run, tmp_path / "large", 10**9)


@pytest.fixture
def compacted(shelf: Path, run: Path, tmp_path: Path) -> Path:
    """The same run with several parts."""
    return _compacted(shelf / "compacted", run, tmp_path / "compacted", 60_000)


def _compacted(kept: Path, run: Path, copy: Path, part_bytes: int) -> Path:
    if not kept.exists():
        shutil.copytree(run, kept)
        compact_run(kept, WHO, part_bytes=part_bytes)
    return Path(shutil.copytree(kept, copy))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_of(folder: Path, *names: str) -> list[Path]:
    return [path for name in names for path in sorted((folder / name).glob("*"))]


def sound(folder: Path) -> bool:
    """By both verifiers."""
    found, other = verify(folder), Run(str(folder)).verify()
    assert found.ok == (not other.problems), (found.problems, list(other.problems))
    return found.ok


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
    assert len(sizes) == 3 and max(sizes) < 90_000


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
    from jobs.run.lock import lease

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


# --- stopped at every step -------------------------------------------------------------------------------------------------


class Dying(storage.Disk):
    """A disk that fails at its N-th change of a name."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._step()
        super().replace(old, new, at=at)

    def link(self, old: str, new: str, *, at: int) -> None:
        self._step()
        super().link(old, new, at=at)

    def unlink(self, name: str, *, at: int) -> None:
        if not name.startswith(storage.TEMPORARY):
            self._step()
        super().unlink(name, at=at)


@pytest.fixture
def two_shards(make_plan: Callable[..., Plan], open_loop: Callable[..., Any], tmp_path: Path) -> Path:
    return run_local(make_plan(["cat", "copy", "steered fox"]), tmp_path / "short", open_loop=open_loop).folder


# 3 parts, the event, its head, the index, the card, then 7 small files.
STEPS = range(15) if os.environ.get("CLEARANCE_KILLS") else (2, 3, 4, 5, 6, 7, 10, 13, 14)


@pytest.mark.parametrize("steps", STEPS)
def test_stopped_anywhere_readers_see_every_row_once_and_the_next_time_it_ends(two_shards: Path, steps: int) -> None:
    folder = two_shards
    rows, small = list(sample_rows(folder, ["sample_id", "record_sha256"])), ("samples", "attempts", "kept", "commits")
    with storage.using(Dying(steps)), suppress(ClearanceError):
        compact_run(folder, WHO)
    left, switched = len(files_of(folder, *small)), parts_index(folder) is not None
    assert (switched, left) == (steps > 5, 7 - max(0, steps - 7))
    assert list(sample_rows(folder, ["sample_id", "record_sha256"])) == rows
    assert sound(folder) == (not switched or left == 0)
    if switched and left:
        assert all("clearance compact" in problem.what for problem in verify(folder).problems)
    done = compact_run(folder, WHO)
    assert sound(folder) and not files_of(folder, *small)
    assert len(files_of(folder, "parts")) == 4 and (done.event is None) == switched


def test_a_run_on_an_object_store_is_compacted_there(
    make_plan: Callable[..., Plan], open_loop: Any, memory: str, tmp_path: Path
) -> None:
    plan, folder = make_plan(PROMPTS), storage.place(memory) / "run"
    run_local(plan, folder, open_loop=open_loop)
    before, roots = list(sample_rows(folder)), verify(folder).roots
    done = compact_run(folder, WHO, part_bytes=60_000)
    found = verify(folder)
    assert found.ok and found.roots == roots and list(sample_rows(folder)) == before
    assert done.removed == 15
    assert [entry.name for name in ("samples", "attempts", "kept", "commits") for entry in storage.entries(folder, name)] == []
    erase_keys(folder, ["row-000000"], (), WHO)
    assert verify(folder).ok and verify(folder).counts["erased"] > 4


def test_two_appends_at_one_moment_lose_no_event_on_an_object_store(memory: str) -> None:
    """A part is put if absent. Without hard links a local folder cannot promise it."""
    folder = storage.place(memory) / "run"
    append_event(folder, "run.started", "runner", "first")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append_event(folder, "run.noted", f"writer-{n}", "at once"), range(8)))
    events = read_events(folder)
    assert {event["actor"] for event in events} == {"runner", *(f"writer-{n}" for n in range(8))} and len(events) == 9


# --- afterwards ------------------------------------------------------------------------------------------------------------


def stored_bytes(folder: Path) -> bytes:
    """Every cell of the tables of a run, uncompressed."""
    import pyarrow.parquet as pq

    return b"".join(repr(pq.ParquetFile(p).read().to_pylist()).encode() for p in sorted(folder.rglob("*.parquet")))


def test_payloads_are_erased_in_parts(compacted: Path) -> None:
    rows = {row["request_key"]: row for row in sample_rows(compacted)}
    picture = repr(rows["row-000000"]["image"]["bytes"]).encode()
    assert picture in stored_bytes(compacted)
    erased = erase_keys(compacted, ["row-000000"], (), WHO)
    assert picture not in stored_bytes(compacted)
    assert erased.cells["image"] == erased.cells["thumbnail"] == 1
    assert sound(compacted)
    after = {row["request_key"]: row for row in sample_rows(compacted)}
    assert after["row-000000"]["image"] is None
    assert {key: row for key, row in after.items() if key != "row-000000"} == {
        key: row for key, row in rows.items() if key != "row-000000"
    }


def test_what_was_erased_before_stays_erased(run: Path) -> None:
    erase_keys(run, ["row-000000", "row-000001"], (), WHO)
    compact_run(run, WHO)
    assert sound(run) and verify_run(run).counts["erased"] > 4
    erase_keys(run, ["row-000002"], ("picture",), WHO)
    assert sound(run)


def test_an_erasure_reaches_what_a_stopped_compaction_left(run: Path, tmp_path: Path) -> None:
    picture = next(repr(row["image"]["bytes"]).encode() for row in sample_rows(run) if row["image"])
    key = next(row["request_key"] for row in sample_rows(run) if row["image"])
    for steps in (3, 6, 8):  # before the event, behind it, while the small files go
        folder = Path(shutil.copytree(run, tmp_path / f"stopped-{steps}"))
        with storage.using(Dying(steps)), suppress(ClearanceError):
            compact_run(folder, WHO)
        assert len(files_of(folder, "parts")) > 0
        erase_keys(folder, [key], (), WHO)
        assert picture not in stored_bytes(folder), steps
        assert sound(folder), steps


def test_a_hold_keeps_its_samples_in_parts_too(compacted: Path) -> None:
    assert call("hold", "set", compacted, "--key", "row-000000", "--matter", "m", "--by", "c", "--reason", "r").exit_code == 0
    with pytest.raises(InputError, match="legal hold"):
        erase_keys(compacted, ["row-000000"], (), WHO)
    assert sound(compacted)


def test_people_decide_about_a_compacted_run(compacted: Path, tmp_path: Path) -> None:
    done = call("review", "export", compacted, "--to", tmp_path / "review", "--random", "1")
    assert done.exit_code == 0, done.output
    assert sound(compacted)


def test_embeddings_and_chosen_rows_are_read_from_parts(compacted: Path, small: Path) -> None:
    there, before = ([one for batch in embeddings(folder, 4) for one in batch.ids.to_pylist()] for folder in (compacted, small))
    assert there == before
    wanted = {row["sample_id"] for row in sample_rows(small) if row["outcome"] == "rejected"}
    rows = [row for _, _, row in rows_of(compacted, wanted, ["sample_id", "outcome", "findings"])]
    assert rows == [row for _, _, row in rows_of(small, wanted, ["sample_id", "outcome", "findings"])] != []


def test_the_pictures_of_held_samples_are_found(compacted: Path) -> None:
    from pipeline.audit.pictures import COLUMNS, pictures_of

    held = [(path, row) for path, _, row in rows_of(compacted, {r["sample_id"] for r in sample_rows(compacted)}, COLUMNS)]
    shown = {row["sample_id"]: pictures_of(compacted, path, [row])[row["sample_id"]] for path, row in held}
    outcomes = {row["sample_id"]: row["outcome"] for row in sample_rows(compacted)}
    assert {outcomes[one]: picture.exact or picture.why for one, picture in shown.items()} == {
        "accepted": True, "accepted_after_steering": True, "rejected": True, "error": "no picture was made",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_an_export_is_the_one_of_the_small_files(compacted: Path, small: Path, tmp_path: Path, form: str) -> None:
    for name, folder in (("small", small), ("large", compacted)):
        done = call("export", folder, "--to", tmp_path / name, "--format", form, "--only", "all")
        assert done.exit_code == 0, done.output
    before, after = ({p.name for p in (tmp_path / name).rglob("*") if p.is_file()} for name in ("small", "large"))
    assert before == after != set()
    stated = [json.loads((tmp_path / name / "export.json").read_text())["files"] for name in ("small", "large")]
    assert stated[0] == stated[1]


@pytest.mark.parametrize("command", [["status"], ["report"], ["show", "row-000001"], ["verify"], ["retention", "show"]])
def test_commands_work_on_a_compacted_run(compacted: Path, command: list[str]) -> None:
    name, *more = command
    done = call(name, *more, compacted) if name == "retention" else call(name, compacted, *more)
    assert done.exit_code == 0, done.output


def test_a_resumed_run_that_is_compacted_has_nothing_to_do(
    compacted: Path, make_plan: Callable[..., Plan], open_loop: Callable[..., Any]
) -> None:
    before = contents(compacted)
    result = run_local(make_plan(PROMPTS), compacted, open_loop=open_loop, resume=True)
    assert result.requests == len(PROMPTS) and contents(compacted) == before


def test_the_command_says_what_it_did(run: Path) -> None:
    done = call("compact", run)
    assert done.exit_code == 0 and "3 parts with" in done.output and "15 small files were removed" in done.output
    again = call("compact", run, "--json")
    assert json.loads(again.output)["removed"] == 0


# --- tampering -------------------------------------------------------------------------------------------------------------


def index_edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The index with other columns, written by its own writer, with a digest that no event names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / PARTS_INDEX)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), folder / PARTS_INDEX)


def moved_on(columns: dict[str, Any]) -> None:
    columns["samples_first"][1] += 1


def another_header(columns: dict[str, Any]) -> None:
    columns["samples_header"][0] = columns["samples_header"][1]


def a_shard_less(columns: dict[str, Any]) -> None:
    for values in columns.values():
        del values[1]


def no_rows(columns: dict[str, Any]) -> None:
    columns["attempts_part"][0] = None


def exchanged(columns: dict[str, Any]) -> None:
    for name in ("samples_part", "samples_first", "samples_rows"):
        columns[name][0], columns[name][1] = columns[name][1], columns[name][0]


@pytest.mark.parametrize("change", [moved_on, another_header, a_shard_less, no_rows, exchanged])
@pytest.mark.parametrize("named", [False, True])
def test_another_index_is_found(large: Path, change: Callable[[dict[str, Any]], None], named: bool) -> None:
    """Also where a further event names it: the chains and the statement do not go with it."""
    index_edited(large, change)
    if named:
        append_event(large, "run.compacted", "forger", "again", index_sha256=storage.digest_of(large, PARTS_INDEX))
    assert not sound(large)


@pytest.fixture
def forged(large: Path) -> Iterator[Callable[[Callable[[Any], Any]], None]]:
    """Another samples part of the first shards, which its index and a further event name."""

    def forge(change: Callable[[Any], Any]) -> None:
        import pyarrow.parquet as pq

        from pipeline.audit.compacted import index_bytes
        from pipeline.audit.shards import write_parquet

        index = parts_index(large)
        assert index is not None
        path = large / index.parts[0].path
        table = change(pq.ParquetFile(path).read())
        with path.open("wb") as stream:
            write_parquet(table, stream)
        first = type(index.parts[0])(
            table="samples", path=index.parts[0].path, sha256=storage.digest_of(large, index.parts[0].path),
            bytes=path.stat().st_size, rows=index.parts[0].rows,
        )  # fmt: skip
        data = index_bytes((first, *index.parts[1:]), index.markers, index.slices)
        (large / PARTS_INDEX).write_bytes(data)
        append_event(large, "run.compacted", "forger", "again", index_sha256=storage.digest_of(large, PARTS_INDEX))

    yield forge
    assert not sound(large)


def test_a_forged_column_is_found_in_a_part(forged: Any, large: Path) -> None:
    import pyarrow as pa

    def change(table: Any) -> Any:
        reasons = table.column("reason").to_pylist()
        place = table.schema.get_field_index("reason")
        return table.set_column(place, table.schema.field(place), pa.array(["forged", *reasons[1:]]))

    forged(change)
    assert any("row 0 column record_sha256" in problem.where for problem in verify_run(large).problems)


def test_exchanged_rows_are_found_in_a_part(forged: Any) -> None:
    forged(lambda table: table.take([1, 0, *range(2, table.num_rows)]))


def test_an_exchanged_picture_is_found_in_a_part(forged: Any, large: Path) -> None:
    import pyarrow as pa

    def change(table: Any) -> Any:
        place = table.schema.get_field_index("image")
        images = table.column("image").to_pylist()
        last = next(image for image in reversed(images) if image)
        return table.set_column(place, table.schema.field(place), pa.array([last, *images[1:]], table.schema.field(place).type))

    forged(change)
    assert any("row 0 column image" in problem.where for problem in verify_run(large).problems)


def test_a_row_less_is_found_in_a_part(forged: Any) -> None:
    forged(lambda table: table.slice(1))


@pytest.mark.parametrize(
    ("which", "how"),
    [("samples", "bit"), ("samples", "gone"), ("attempts", "cut"), ("kept", "empty"), ("kept", "link"), ("index", "bit"),
     ("index", "gone"), ("index", "empty"), ("index", "link")],
)  # fmt: skip
def test_a_damaged_part_is_found_and_named(compacted: Path, tmp_path: Path, which: str, how: str) -> None:
    path = next((compacted / "parts").glob(f"{which}*"))
    data = path.read_bytes()
    if how == "bit":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[:-9])
    else:
        path.unlink()
        if how == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
    problems = verify_run(compacted).problems
    assert not sound(compacted)
    # Without the index the rows themselves are what is missing.
    named = ("commits/", "run.json") if (which, how) == ("index", "gone") else (f"parts/{path.name}",)
    assert any(problem.where.startswith(named) for problem in problems), problems


def test_a_file_among_the_parts_is_found(compacted: Path) -> None:
    shutil.copy(next((compacted / "parts").glob("samples-*")), compacted / "parts" / "samples-00009-00000000.parquet")
    assert not sound(compacted)


def test_a_small_file_that_was_put_back_is_found(compacted: Path, small: Path) -> None:
    path = files_of(small, "samples")[0]
    shutil.copy(path, compacted / "samples" / path.name)
    assert not sound(compacted)
    compact_run(compacted, WHO)
    assert sound(compacted)


def test_an_old_copy_of_an_erased_part_is_found(compacted: Path) -> None:
    before = contents(compacted)
    erase_keys(compacted, ["row-000000"], (), WHO)
    for name, data in before.items():
        if name.startswith("parts/"):
            (compacted / name).write_bytes(data)
    problems = verify_run(compacted).problems
    assert not sound(compacted) and any("names as erased" in problem.what for problem in problems)


def test_the_small_files_put_back_in_the_place_of_erased_parts_are_found(compacted: Path, small: Path) -> None:
    """Otherwise a copy from before the compaction would bring back what was erased since."""
    erase_keys(compacted, ["row-000000"], (), WHO)
    shutil.rmtree(compacted / "parts")
    for name in ("samples", "attempts", "kept", "commits"):
        shutil.copytree(small / name, compacted / name, dirs_exist_ok=True)
    assert not sound(compacted)
