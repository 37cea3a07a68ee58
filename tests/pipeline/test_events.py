"""The events of a run: parts that are chained, created once, and whose every change is found and named."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import ClearanceError, InputError, IntegrityError, RunStopped
from index.storage import Disk, using
from pipeline.audit.chain import canonical
from pipeline.audit.event_parts import read_part
from pipeline.audit.events import EVENTS_START, NewEvent, append_event, append_events, read_events, scan_events
from pipeline.audit.shards import sweep
from pipeline.audit.verify import verify

HEAD = "events-head.json"


def part(folder: Path, first: int) -> Path:
    return folder / "events" / f"{first:08d}.parquet"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five events in three parts: 0 and 1, 2, 3 and 4."""
    folder = tmp_path / "run"
    several = [NewEvent(kind="run.noted", actor="runner", reason=f"note {n}") for n in range(2)]
    append_events(folder, several)
    append_event(folder, "review.decided", "reviewer", "fine", person="p7", samples=["s1", "s2"], details={"outcome": "x"})
    append_events(folder, several)
    return folder


def test_an_append_writes_one_part_and_rewrites_none(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in files(run) if name != HEAD}
    append_event(run, "hold.set", "counsel", "a claim")
    after = {name: (run / name).read_bytes() for name in files(run) if name != HEAD}
    assert set(after) - set(before) == {"events/00000005.parquet"}
    assert {name: after[name] for name in before} == before


def test_events_come_back_as_they_were_appended(run: Path) -> None:
    made = append_event(
        run, "payload.erased", "officer", "on request", person="p1", samples=["s3"], details={"n": [1, None, 2.5]}, before="aa"
    )
    assert read_events(run)[-1] == made
    assert (made["seq"], made["actor"], made["person"], made["samples"]) == (5, "officer", "p1", ["s3"])
    assert made["details"] == {"n": [1, None, 2.5]} and made["digests"] == {"before": "aa"}
    assert [event["seq"] for event in read_events(run)] == [0, 1, 2, 3, 4, 5]


def test_any_parquet_reader_opens_a_part(run: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(part(run, 2)).read().to_pylist()
    assert rows[0]["kind"] == "review.decided" and rows[0]["samples"] == ["s1", "s2"]


def test_half_a_character_in_a_message_does_not_stop_an_append(tmp_path: Path) -> None:
    append_event(tmp_path, "run.stopped", "runner", "file \udcff is gone")
    assert read_events(tmp_path)[0]["reason"] == "file \\udcff is gone"


@pytest.mark.parametrize(
    ("kind", "actor", "details"),
    [("Started", "runner", {}), ("run.started", " ", {}), ("run.started", "runner", {"x": object()})],
)
def test_what_is_no_event_is_refused(tmp_path: Path, kind: str, actor: str, details: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        append_event(tmp_path, kind, actor, "why", details=details)
    assert files(tmp_path) == []


def test_an_append_reads_the_last_part_alone(run: Path) -> None:
    """So its cost does not grow with the events: here the parts before the last cannot even be read."""
    for first in (0, 2):
        part(run, first).write_bytes(b"not read")
    assert append_event(run, "run.noted", "runner", "x")["seq"] == 5
    assert scan_events(run)[1], "the full check finds it"


# --- tampering -------------------------------------------------------------------------------------------------------------


def relink(run: Path) -> None:
    shutil.move(part(run, 2), run.parent / "outside")
    part(run, 2).symlink_to(run.parent / "outside")


def swap(run: Path) -> None:
    one, other = part(run, 0).read_bytes(), part(run, 3).read_bytes()
    part(run, 0).write_bytes(other)
    part(run, 3).write_bytes(one)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def exchange(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def reissue(run: Path) -> None:
    """Edit an event and redo its digest, as the owner of the folder could."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(part(run, 2)).read()
    row = table.to_pylist()[0] | {"reason": "another", "digests": {}}
    del row["record_sha256"]
    row["record_sha256"] = hashlib.sha256(canonical(row)).hexdigest()
    pq.write_table(pa.Table.from_pylist([row | {"digests": []}], schema=table.schema), part(run, 2))


def twice(run: Path) -> None:
    """Name a digest twice; the event's own digest is over the one that a mapping keeps, and still fits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(part(run, 2)).read()
    row = table.to_pylist()[0] | {"digests": [("run_sha256", "another"), ("run_sha256", "this")]}
    body = {name: value for name, value in row.items() if name != "record_sha256"} | {"digests": {"run_sha256": "this"}}
    row["record_sha256"] = hashlib.sha256(canonical(body)).hexdigest()
    pq.write_table(pa.Table.from_pylist([row], schema=table.schema), part(run, 2))
    with pytest.raises(IntegrityError, match="there twice"):
        read_part(run, "events/00000002.parquet")


TAMPERINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the first part is gone": (lambda f: part(f, 0).unlink(), "events/00000002.parquet"),
    "a part in the middle is gone": (lambda f: part(f, 2).unlink(), "events/00000003.parquet"),
    "the last part is gone": (lambda f: part(f, 3).unlink(), "events/00000003.parquet"),
    "two parts are exchanged": (swap, "events/00000000.parquet"),
    "a part is there twice": (lambda f: shutil.copy(part(f, 3), part(f, 5)), "events/00000005.parquet"),
    "a part has another name": (lambda f: part(f, 2).rename(part(f, 7)), "events/00000007.parquet"),
    "an event was edited and its digest redone": (reissue, "events/00000002.parquet"),
    "a digest is named twice": (twice, "events/00000002.parquet"),
    "the first byte of a part": (lambda f: flip(part(f, 2), 0), "events/00000002.parquet"),
    "a byte of the footer": (lambda f: flip(part(f, 2), -40), "events/00000002.parquet"),
    "a part is empty": (lambda f: part(f, 2).write_bytes(b""), "events/00000002.parquet"),
    "a link in a part's place": (relink, "events/00000002.parquet"),
    "a folder in a part's place": (lambda f: (part(f, 2).unlink(), part(f, 2).mkdir()), "events/00000002.parquet"),
    "a file of somebody else": (lambda f: (f / "events" / "notes.txt").write_text("x"), "events/notes.txt"),
    "the head is gone": (lambda f: (f / HEAD).unlink(), HEAD),
    "the head counts fewer": (lambda f: exchange(f / HEAD, b'"count":5', b'"count":4'), "events/"),
    "the head is empty": (lambda f: (f / HEAD).write_bytes(b"{}"), HEAD),
    "the first part and the head are gone": (lambda f: [(f / HEAD).unlink(), part(f, 0).unlink()], "events/00000002.parquet"),
    "all but the last part are gone": (
        lambda f: [(f / HEAD).unlink(), part(f, 0).unlink(), part(f, 2).unlink()],
        "events/00000003.parquet",
    ),
    "the folder is gone": (lambda f: shutil.rmtree(f / "events"), "events/"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERINGS)
def test_tampering_is_found_and_named(run: Path, what: str) -> None:
    change, where = TAMPERINGS[what]
    change(run)
    _, problems = scan_events(run)
    assert any(place.startswith(where) for place, _ in problems), problems
    with pytest.raises(IntegrityError):
        read_events(run)


LOST = [
    "the last part is gone",
    "the head is gone",
    "the head is empty",
    "the folder is gone",
    "all but the last part are gone",
]


@pytest.mark.parametrize("what", LOST)
def test_nothing_is_appended_to_events_that_lost_their_end(run: Path, what: str) -> None:
    TAMPERINGS[what][0](run)
    before = files(run)
    with pytest.raises(IntegrityError) as caught:
        append_event(run, "run.noted", "runner", "x")
    assert caught.value.fix and files(run) == before


def test_every_character_of_the_head_file_is_covered(run: Path) -> None:
    """The name of the last part too: a head that names another part, with a digest of its own, is found."""
    path = run / "events-head.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert scan_events(run)[1], whole[place : place + 9]


def test_every_byte_of_every_part_is_covered(run: Path) -> None:
    for first in (0, 2, 3):
        whole = part(run, first).read_bytes()
        for at in range(0, len(whole), 97):
            flip(part(run, first), at)
            assert any(where.startswith(f"events/{first:08d}") for where, _ in scan_events(run)[1]), (first, at)
            part(run, first).write_bytes(whole)
    assert scan_events(run)[1] == []


# --- crashes and races -----------------------------------------------------------------------------------------------------


class StopsAt(Disk):
    """A disk that is pulled out at the n-th name it gives to a file."""

    def __init__(self, number: int) -> None:
        self.left = number

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "pulled out")

    def link(self, old: str, new: str, *, at: int) -> None:
        self._count()
        super().link(old, new, at=at)

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._count()
        super().replace(old, new, at=at)


@pytest.mark.parametrize("events", [0, 1, 2])
def test_a_crash_between_part_and_head_loses_nothing(tmp_path: Path, events: int) -> None:
    for number in range(events):
        append_event(tmp_path, "run.noted", "runner", f"before {number}")
    with using(StopsAt(1)), pytest.raises(RunStopped):
        append_event(tmp_path, "hold.set", "counsel", "a claim")
    assert [event["kind"] for event in read_events(tmp_path)] == ["run.noted"] * events + ["hold.set"]
    append_event(tmp_path, "run.noted", "runner", "after")
    assert len(read_events(tmp_path)) == events + 2
    part(tmp_path, events + 1).unlink()
    assert scan_events(tmp_path)[1], "the head names the last event again"


def test_a_crash_before_the_part_leaves_no_event(run: Path) -> None:
    with using(StopsAt(0)), pytest.raises(RunStopped):
        append_event(run, "hold.set", "counsel", "a claim")
    assert len(read_events(run)) == 5 and append_event(run, "hold.set", "counsel", "a claim")["seq"] == 5


def _append_many(folder: Path, name: str, count: int) -> None:
    for number in range(count):
        append_event(folder, "run.noted", name, str(number))


@pytest.mark.parametrize("begun", [False, True])
def test_processes_that_append_at_the_same_moment_lose_no_event(tmp_path: Path, begun: bool) -> None:
    if begun:
        append_event(tmp_path, "run.started", "runner", "x")
    spawn = multiprocessing.get_context("fork")
    names = ["one", "two", "three"]
    writers = [spawn.Process(target=_append_many, args=(tmp_path, name, 12)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    events = read_events(tmp_path)
    assert len(events) == 36 + begun
    for name in names:
        assert [event["reason"] for event in events if event["actor"] == name] == [str(n) for n in range(12)]
    part(tmp_path, len(events) - 1).unlink()
    assert scan_events(tmp_path)[1], "the head names the last of all events"


class Other(Disk):
    """Another process appends the moment before this one gives its part a name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.times = folder, 3

    def link(self, old: str, new: str, *, at: int) -> None:
        if self.times:
            self.times -= 1
            with using(Disk()):
                append_event(self.folder, "run.noted", "other", str(self.times))
        super().link(old, new, at=at)


def test_who_comes_second_reads_again_and_appends_behind(run: Path) -> None:
    with using(Other(run)):
        mine = append_event(run, "hold.set", "counsel", "a claim")
    assert mine["seq"] == 8 and [event["actor"] for event in read_events(run)[5:]] == ["other"] * 3 + ["counsel"]


def test_a_sweep_in_the_middle_of_an_append_does_not_lose_the_event(run: Path) -> None:
    class Sweeps(Disk):
        def link(self, old: str, new: str, *, at: int) -> None:
            if not hasattr(self, "done"):
                self.done = True
                os.unlink(old, dir_fd=at)
            super().link(old, new, at=at)

    with using(Sweeps()):
        append_event(run, "hold.set", "counsel", "a claim")
    assert len(read_events(run)) == 6


def test_a_sweep_removes_what_a_killed_append_left(make_run: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", shards=1).folder
    before = files(folder)
    (folder / "events" / ".tmp-00000009.parquet-0123456789ab").write_bytes(b"half")
    sweep(folder)
    assert files(folder) == before


# --- runs of earlier versions ----------------------------------------------------------------------------------------------


def write_lines(folder: Path, count: int) -> None:
    """Events as earlier versions wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, prev = b"", EVENTS_START
    for seq in range(count):
        event: dict[str, Any] = {
            "seq": seq, "at": "2026-05-01T00:00:00.000000+00:00", "kind": "run.noted", "actor": "runner", "reason": "old",
            "digests": {"a": "b"}, "prev_sha256": prev,
        }  # fmt: skip
        prev = event["record_sha256"] = hashlib.sha256(canonical(event)).hexdigest()
        lines += canonical(event) + b"\n"
    (folder / "events.jsonl").write_bytes(lines)
    (folder / HEAD).write_bytes(canonical({"count": count, "head": prev}) + b"\n")


def test_events_of_earlier_runs_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path, 3)
    assert [(e["seq"], e["samples"], e["details"], e["person"]) for e in read_events(tmp_path)] == [
        (n, [], {}, "") for n in range(3)
    ]


def test_an_earlier_run_gets_new_events_and_its_file_stays_as_it_is(tmp_path: Path) -> None:
    write_lines(tmp_path, 3)
    before = (tmp_path / "events.jsonl").read_bytes()
    append_event(tmp_path, "hold.set", "counsel", "a claim")
    append_event(tmp_path, "hold.lifted", "counsel", "settled")
    assert [event["seq"] for event in read_events(tmp_path)] == [0, 1, 2, 3, 4]
    assert (tmp_path / "events.jsonl").read_bytes() == before
    assert files(tmp_path) == ["events-head.json", "events.jsonl", "events/00000003.parquet", "events/00000004.parquet"]


def test_an_earlier_run_whose_part_came_without_its_head(tmp_path: Path) -> None:
    write_lines(tmp_path, 3)
    with using(StopsAt(1)), pytest.raises(RunStopped):
        append_event(tmp_path, "hold.set", "counsel", "a claim")
    assert len(read_events(tmp_path)) == 4 and append_event(tmp_path, "hold.lifted", "counsel", "settled")["seq"] == 4
    assert scan_events(tmp_path)[1] == []


LINES: dict[str, Callable[[Path], Any]] = {
    "a byte": lambda f: flip(f / "events.jsonl", 200),
    "the last line": lambda f: (f / "events.jsonl").write_bytes(
        b"".join((f / "events.jsonl").read_bytes().splitlines(True)[:2])
    ),
    "the newline": lambda f: os.truncate(f / "events.jsonl", (f / "events.jsonl").stat().st_size - 1),
    "the file": lambda f: (f / "events.jsonl").unlink(),
    "a line that is no event": lambda f: (f / "events.jsonl").write_bytes(b"7\n"),
}


@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("what", LINES)
def test_tampering_with_events_of_an_earlier_run_is_found(tmp_path: Path, what: str, appended: bool) -> None:
    write_lines(tmp_path, 3)
    if appended:
        append_event(tmp_path, "hold.set", "counsel", "a claim")
    LINES[what](tmp_path)
    assert any(where.startswith("events") for where, _ in scan_events(tmp_path)[1])
    if not appended:
        with pytest.raises(ClearanceError):
            append_event(tmp_path, "hold.set", "counsel", "a claim")


def test_a_leftover_among_the_events_is_named_as_not_covered(make_run: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", shards=1).folder
    (folder / "events" / ".tmp-00000009.parquet-0123456789ab").write_bytes(b"half")
    found = verify(folder)
    assert found.ok and [left.where for left in found.not_covered] == ["events/.tmp-00000009.parquet-0123456789ab"]
