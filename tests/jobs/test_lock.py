"""One run folder, one run: also between machines, under new names, and where there are no locks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from index import storage
from index.errors import IntegrityError, RunStopped
from index.storage import Disk
from jobs.run.lease.lock import Process, holder, lease

ELSEWHERE = Process(
    pid=4242, host="elsewhere", since="2026-11-28T10:00:00Z", boot="another kernel", space="pid:[1]", started="77"
)


def write(folder: Path, process: Process) -> None:
    (folder / ".lease").write_text(json.dumps(asdict(process)))


def ended() -> Process:
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return replace(Process.this(), pid=child.pid, started="1")


def test_a_process_that_has_ended_and_was_not_asked_yet_does_not_live() -> None:
    """A zombie: its parent holds it, as a first process of a container may that reaps nobody."""
    from jobs.run.lease.process import _started

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here = replace(Process.this(), pid=child.pid, started=_started(child.pid))
    assert here.started and here.lives() is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table
    os.kill(child.pid, 0)
    assert here.lives() is False
    child.wait()


def test_the_holder_is_named_and_the_next_is_refused(tmp_path: Path) -> None:
    with lease(tmp_path):
        assert holder(tmp_path).startswith(f"process {os.getpid()} on ")
        with pytest.raises(RunStopped, match=f"process {os.getpid()} on ") as caught, lease(tmp_path):
            pass
        assert "Wait for it" in caught.value.fix
        assert holder(tmp_path), "who was refused has not emptied the file"
    assert holder(tmp_path) == "" and (tmp_path / ".lease").read_bytes() == b""


def test_looking_up_the_holder_never_refuses_a_run_that_starts(tmp_path: Path) -> None:
    """`status` in a loop beside runs that start: it takes no lock."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            holder(tmp_path)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(60):
            with lease(tmp_path):
                pass
    finally:
        ended.set()
        for thread in asking:
            thread.join()


def test_looking_up_the_holder_writes_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert holder(tmp_path) == "" and list(tmp_path.iterdir()) == []
    write(tmp_path, ELSEWHERE)
    before = (tmp_path / ".lease").stat()
    holder(tmp_path)
    assert (tmp_path / ".lease").stat().st_mtime_ns == before.st_mtime_ns and (tmp_path / ".lease").stat().st_size


def test_a_killed_run_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    write(tmp_path, ended())
    assert holder(tmp_path) == ""
    notes: list[str] = []
    with lease(tmp_path, note=notes.append, patience=60):
        assert notes == []


def test_a_renamed_pod_resumes_at_once(tmp_path: Path) -> None:
    """The same kernel sees the same locks, whatever the host is called now."""
    write(tmp_path, replace(ended(), host="pod-6f9c"))
    notes: list[str] = []
    began = time.monotonic()
    with lease(tmp_path, note=notes.append, me=replace(Process.this(), host="pod-77ab"), patience=60):
        assert "pod-77ab" in holder(tmp_path)
    assert notes == [] and time.monotonic() - began < 10


def test_a_dead_run_of_another_machine_is_taken_over_after_a_while(tmp_path: Path) -> None:
    write(tmp_path, ELSEWHERE)
    notes: list[str] = []
    with lease(tmp_path, note=notes.append, patience=0.4):
        assert str(os.getpid()) in holder(tmp_path)
    assert len(notes) == 2 and "process 4242 on elsewhere" in notes[0] and "going on in its place" in notes[1]


def test_a_living_run_of_another_machine_is_not(tmp_path: Path) -> None:
    write(tmp_path, ELSEWHERE)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.1):
            os.utime(tmp_path / ".lease")

    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(RunStopped, match="process 4242 on elsewhere"), lease(tmp_path, patience=5):
            pass
        assert "elsewhere" in holder(tmp_path)
    finally:
        ended.set()
        other.join()
    assert json.loads((tmp_path / ".lease").read_bytes()) == asdict(ELSEWHERE)


def test_a_run_gives_signs_of_life(tmp_path: Path) -> None:
    with lease(tmp_path, beat=0.05):
        before = (tmp_path / ".lease").stat().st_mtime_ns
        time.sleep(0.5)
        assert (tmp_path / ".lease").stat().st_mtime_ns > before


def test_a_machine_without_a_sign_for_long_is_not_shown_as_running(tmp_path: Path) -> None:
    write(tmp_path, ELSEWHERE)
    assert "elsewhere" in holder(tmp_path)
    os.utime(tmp_path / ".lease", (time.time() - 3600,) * 2)
    assert holder(tmp_path) == ""


class NoLocks(Disk):
    """A network file system without locks."""

    def __init__(self, error: int) -> None:
        self.error = error

    def lock(self, handle: int) -> None:
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_without_locks_the_content_of_the_file_protects(tmp_path: Path, error: int) -> None:
    notes: list[str] = []
    with storage.using(NoLocks(error)), lease(tmp_path, note=notes.append):
        assert "no locks" in notes[0] and "no second run" in notes[0]
        with pytest.raises(RunStopped, match=f"process {os.getpid()}"), lease(tmp_path, patience=60):
            pass
    with storage.using(NoLocks(error)), lease(tmp_path):
        pass
    write(tmp_path, ended())
    with storage.using(NoLocks(error)), lease(tmp_path, patience=60):
        pass


def test_without_locks_two_that_start_at_once_do_not_both_run(tmp_path: Path) -> None:
    started = threading.Barrier(2)
    held: list[str] = []

    def start(name: str) -> None:
        with storage.using(NoLocks(errno.ENOSYS)):
            started.wait()
            try:
                with lease(tmp_path, me=replace(Process.this(), host=name), patience=0.2, beat=0.05):
                    held.append(name)
                    time.sleep(1)
            except RunStopped:
                pass

    threads = [threading.Thread(target=start, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1


def test_a_lock_that_fails_is_a_sentence(tmp_path: Path) -> None:
    with storage.using(NoLocks(errno.EIO)), pytest.raises(RunStopped, match="storage failed") as caught, lease(tmp_path):
        pass
    assert caught.value.where.endswith(".lease")


@pytest.mark.parametrize("content", ["[]", "{}", '{"pid": "x", "host": "y"}', "years of work", "\udcff", "[" * 5000])
def test_what_is_no_lock_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lease").write_text(content, errors="surrogateescape")
    before = (tmp_path / ".lease").read_bytes()
    with pytest.raises(IntegrityError, match="is not the lock of a run"), lease(tmp_path):
        pass
    assert (tmp_path / ".lease").read_bytes() == before and holder(tmp_path) == ""


def test_a_lease_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / ".lease").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "then"}))
    with ExitStack() as stack:
        stack.enter_context(lease(tmp_path, patience=0.2))
        assert str(os.getpid()) in holder(tmp_path)


@pytest.mark.parametrize("left", [json.dumps(asdict(ELSEWHERE)).encode(), b""])
def test_a_session_that_stood_still_notices_who_came_in_its_place(tmp_path: Path, left: bytes) -> None:
    """By what the other wrote, also where it has ended meanwhile and emptied the file. Its lease is left to it."""
    with lease(tmp_path, beat=3600) as held:
        held.require()
        (tmp_path / ".lease").write_bytes(left)
        with pytest.raises(RunStopped, match="another run took this folder over") as stopped:
            held.require()
        assert ("process 4242 on elsewhere" in stopped.value.what) is bool(left)
    assert (tmp_path / ".lease").read_bytes() == left


def test_a_session_that_was_taken_over_gives_no_more_signs_of_life(tmp_path: Path) -> None:
    with lease(tmp_path, beat=0.01):
        write(tmp_path, ELSEWHERE)
        beating = next(thread for thread in threading.enumerate() if thread.name == "lease")
        beating.join(60)
        assert not beating.is_alive()


def test_a_lease_file_that_is_gone_or_cannot_be_read_stops_no_run(tmp_path: Path) -> None:
    """It tells of no other run."""
    with lease(tmp_path, beat=3600) as held:
        (tmp_path / ".lease").unlink()
        held.require()
        (tmp_path / ".lease").mkdir()
        held.require()


def test_storage_that_shows_late_what_was_written_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("jobs.run.lease.lock.read_file", lambda *_: b"")
        with lease(tmp_path, beat=3600) as held:
            held.require()
