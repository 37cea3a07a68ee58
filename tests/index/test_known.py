from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from index import known
from index.errors import IntegrityError
from index.known import require_known


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file that counts as large, with its digest, and a place for notes."""
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "vectors.f32"
    path.write_bytes(bytes(known.LARGE))
    return path, hashlib.sha256(bytes(known.LARGE)).hexdigest()


def test_a_large_file_is_read_once(large: tuple[Path, str]) -> None:
    assert [require_known(*large), require_known(*large)] == [True, False]


def test_whoever_asks_for_it_has_it_read_again(large: tuple[Path, str]) -> None:
    require_known(*large)
    assert require_known(*large, afresh=True)


def test_a_changed_byte_is_found_even_with_the_old_time(large: tuple[Path, str]) -> None:
    path, digest = large
    require_known(path, digest)
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the change time stays: no program can set it
    with pytest.raises(IntegrityError, match="sha256"):
        require_known(path, digest)


def test_another_file_in_its_place_is_read(large: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = large
    require_known(path, digest)
    (tmp_path / "other").write_bytes(b"y" * known.LARGE)
    os.replace(tmp_path / "other", path)
    with pytest.raises(IntegrityError, match="sha256"):
        require_known(path, digest)


def test_a_note_that_is_damaged_is_not_believed(large: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = large
    require_known(path, digest)
    (tmp_path / "cache" / "known" / digest).write_bytes(b"\xff")
    assert require_known(path, digest)


def test_a_small_file_is_read_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"a")
    digest = hashlib.sha256(b"a").hexdigest()
    assert [require_known(tmp_path / "a", digest), require_known(tmp_path / "a", digest)] == [True, True]


def test_without_a_place_for_notes_it_is_read_every_time(large: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file in its place")
    assert [require_known(*large), require_known(*large)] == [True, True]
