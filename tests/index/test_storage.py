"""Files of a run folder: no link is followed, and every failure is a sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from index import storage
from index.errors import ClearanceError, IntegrityError, RunStopped
from index.storage import Disk

SECRET = b"the victim's bytes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "samples").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside, with one file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(SECRET)
    return outside


READERS: dict[str, Callable[[Path, str], object]] = {
    "read": storage.read_file,
    "object": storage.read_object,
    "digest": storage.digest_of,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["file", "samples/file"])
def test_a_link_is_not_read(folder: Path, victim: Path, reader: str, name: str) -> None:
    (folder / name).symlink_to(victim / "victim")
    with pytest.raises(IntegrityError, match="is a link") as caught:
        READERS[reader](folder, name)
    assert caught.value.where == str(folder / name) and "real file" in caught.value.fix


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_read_through_a_linked_folder(folder: Path, victim: Path, reader: str) -> None:
    (folder / "commits").symlink_to(victim)
    with pytest.raises(IntegrityError, match="is a link"):
        READERS[reader](folder, "commits/victim")
    with pytest.raises(IntegrityError, match="is a link"):
        storage.entries(folder, "commits")


def test_a_link_is_replaced_and_what_it_leads_to_stays(folder: Path, victim: Path) -> None:
    (folder / "report.html").symlink_to(victim / "victim")
    storage.write_file(folder, "report.html", b"new")
    assert not (folder / "report.html").is_symlink() and (folder / "report.html").read_bytes() == b"new"
    assert (victim / "victim").read_bytes() == SECRET


def test_nothing_is_written_or_removed_through_a_linked_folder(folder: Path, victim: Path) -> None:
    (folder / "commits").symlink_to(victim)
    with pytest.raises(IntegrityError, match="is a link"):
        storage.write_file(folder, "commits/victim", b"new")
    assert storage.remove(folder, "commits/victim") is False
    assert [path.name for path in victim.iterdir()] == ["victim"] and (victim / "victim").read_bytes() == SECRET


def test_the_run_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(folder)
    storage.write_file(tmp_path / "name", "samples/file", b"x")
    assert storage.read_file(folder, "samples/file") == b"x"


@pytest.mark.parametrize("name", ["../outside/victim", "/etc/passwd", "samples/../../outside/victim", "a//b", ".", "", "a\0b"])
def test_a_name_that_leads_out_is_refused(folder: Path, victim: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="not a path inside"):
        storage.read_file(folder, name)
    with pytest.raises(IntegrityError, match="not a path inside"):
        storage.write_file(folder, name, b"new")
    assert (victim / "victim").read_bytes() == SECRET


def test_a_pipe_or_a_folder_in_a_files_place_is_named_at_once(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(IntegrityError, match="is not a file"):
        storage.read_file(folder, "pipe")
    with pytest.raises(IntegrityError, match="folder in a file's place"):
        storage.read_file(folder, "samples")
    with pytest.raises(IntegrityError, match="is missing"):
        storage.read_file(folder, "none")
    with pytest.raises(RunStopped, match="cannot be written"):
        storage.write_file(folder, "samples", b"x")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b"[]", b"null", b"1", b'"text"', b"[" * 100_000, b'{"a": ' * 100_000, b"\x00"]
)
def test_what_is_no_json_object_is_named(folder: Path, content: bytes) -> None:
    (folder / "plan.json").write_bytes(content)
    with pytest.raises(IntegrityError, match="JSON") as caught:
        storage.read_object(folder, "plan.json")
    assert caught.value.where.endswith("plan.json") and len(str(caught.value)) < 400


class FolderSync(Disk):
    """A file system whose folders cannot be brought to the disk."""

    def __init__(self, error: int) -> None:
        self.error = error

    def fsync(self, handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(self.error, os.strerror(self.error))
        super().fsync(handle)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_sync_folders_is_good_enough(folder: Path, error: int) -> None:
    with storage.using(FolderSync(error)):
        storage.write_file(folder, "file", b"x")
    assert storage.read_file(folder, "file") == b"x"


def test_a_folder_sync_that_fails_is_reported(folder: Path) -> None:
    with storage.using(FolderSync(errno.EIO)), pytest.raises(RunStopped, match="storage failed"):
        storage.write_file(folder, "file", b"x")


class Refusing(Disk):
    """Every new file or folder is refused."""

    def __init__(self, error: int) -> None:
        self.error = error

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        if flags & os.O_CREAT:
            raise OSError(self.error, os.strerror(self.error))
        return super().open(name, flags, mode, at=at)

    def make_folder(self, name: str, *, at: int | None = None) -> None:
        raise OSError(self.error, os.strerror(self.error))


REASONS = {
    errno.EROFS: ("mounted read-only", "--out"),
    errno.EACCES: ("permission denied", "--out"),
    errno.ENOSPC: ("disk is full", "--resume"),
    errno.EDQUOT: ("quota", "--resume"),
    errno.ESTALE: ("network folder went away", "--resume"),
    errno.EIO: ("storage failed", "--resume"),
    errno.ENAMETOOLONG: ("cannot be written", "Check the path"),
}


@pytest.mark.parametrize("error", REASONS)
def test_a_write_that_fails_names_place_reason_and_fix(folder: Path, error: int) -> None:
    reason, fix = REASONS[error]
    with storage.using(Refusing(error)), pytest.raises(RunStopped, match=reason) as caught:
        storage.write_file(folder, "new/file", b"x")
    assert caught.value.where == str(folder / "new/file") and fix in caught.value.fix
    with pytest.raises(ClearanceError, match="is missing"):
        storage.read_file(folder, "new/file")


class NoLinks(Disk):
    """A file system without hard links."""

    def link(self, old: str, new: str, *, at: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_hard_links_the_first_still_wins(folder: Path) -> None:
    with storage.using(NoLinks()):
        assert storage.create_once(folder, "once", b"first") and not storage.create_once(folder, "once", b"second")
    assert storage.read_file(folder, "once") == b"first"
    assert sorted(path.name for path in folder.iterdir()) == ["once", "samples"]
