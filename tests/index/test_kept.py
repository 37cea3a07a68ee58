"""The cache of copies has a bound; what a running process uses is never removed, whoever needs the room."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.errors import InputError
from index.places import kept
from index.places.cache import kept_as
from index.places.kept import SIZES, copies, hold, keep_to_bound, most_bytes, remove, trim
from jobs.cli import main as cli
from jobs.doctor import cache_line

HOLDER = """
import sys
from pathlib import Path
from index.places.kept import hold
print(hold(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said() -> Iterator[list[str]]:
    found: list[str] = []
    before = kept._listener[:]
    kept.listen(found.append)
    yield found
    kept._listener[:] = before


def copy(folder: Path, size: int, *, days: float, links: tuple[Path, ...] = ()) -> Path:
    """A whole copy that nobody uses, as another process left it."""
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(size))
    for link in links:
        (folder / link.name).symlink_to(link, target_is_directory=True)
    (folder / SIZES).write_text(json.dumps({"model.bin": size, **{link.name: None for link in links}}))
    then = time.time() - days * 86_400
    os.utime(folder, (then, then))
    return folder


def fetch(size: int) -> Callable[[Path], object]:
    return lambda work: (work / "prompts.csv").write_bytes(bytes(size))


def bound(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE_GIB", repr(size / 2**30))


def test_what_was_not_used_for_longest_goes_when_a_copy_is_added(
    cache: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, older, recent = (copy(cache / "copies" / n, 1000, days=d) for n, d in (("a", 5), ("b", 9), ("c", 1)))
    bound(monkeypatch, 2500)
    mine = kept_as(cache / "copies" / "d", fetch(1000), where="s3://b/prompts.csv")
    assert [path.exists() for path in (older, old, recent, mine)] == [False, False, True, True]
    [line] = said
    assert line.startswith("removed ")
    assert "model.bin (last used 9 days ago), model.bin (last used 5 days ago)" in line


def test_within_the_bound_nothing_goes_and_nothing_is_said(cache: Path, said: list[str]) -> None:
    there = copy(cache / "copies" / "a", 1000, days=400)
    kept_as(cache / "copies" / "d", fetch(1000), where="s3://b/prompts.csv")
    assert there.exists()
    assert said == []


def test_what_this_run_uses_stays_beyond_the_bound_and_that_is_said(
    cache: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(monkeypatch, 1500)
    first, second = (kept_as(cache / "copies" / n, fetch(1000), where="s3://b/p") for n in "ab")
    assert first.exists()
    assert second.exists()
    assert said[-1].endswith("2 of them are in use by this run or others and stay")


def test_what_another_process_uses_stays_until_it_is_dead(cache: Path) -> None:
    theirs = copy(cache / "copies" / "a", 1000, days=9)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, theirs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        done = trim(0)
        holder.kill()
    assert (len(done.removed), [one.path for one in done.in_use]) == (0, [theirs])
    assert (theirs / "model.bin").stat().st_size == 1000
    assert [one.path for one in trim(0).removed] == [theirs]
    assert list((cache / "copies").iterdir()) == []


def test_the_view_of_an_index_keeps_its_segments(cache: Path) -> None:
    segment = copy(cache / "segments" / "s", 1000, days=9)
    view = copy(cache / "indexes" / ("0" * 32) / ("1" * 64), 10, days=9, links=(segment,))
    other = copy(cache / "segments" / "t", 1000, days=1)
    assert hold(view)
    done = trim(0)
    assert [one.path for one in done.removed] == [other]
    assert (view / "s" / "model.bin").exists()


def test_a_copy_that_goes_while_it_is_opened_is_fetched_again(cache: Path) -> None:
    """Another process has the lock and takes the copy away between the look at it and the lock on it."""
    there, done = copy(cache / "copies" / "a", 1000, days=9), list[Path]()
    taken = os.open(there / SIZES, os.O_RDONLY)
    fcntl.flock(taken, fcntl.LOCK_EX)
    opening = threading.Thread(target=lambda: done.append(kept_as(there, fetch(500), where="s3://b/p")))
    opening.start()
    time.sleep(0.2)  # it waits for the lock
    assert done == []
    there.rename(there.with_name(".gone"))
    os.close(taken)
    opening.join(10)
    assert done == [there]
    assert [path.name for path in there.iterdir() if path.name != SIZES] == ["prompts.csv"]
    assert not remove(there)  # and it is in use


def test_a_stopped_build_stays_unless_it_is_named(cache: Path) -> None:
    build = cache / "indexes" / ("0" * 32) / "new"
    (build / "building").mkdir(parents=True)
    (build / "building" / "block.parquet").write_bytes(bytes(100))
    assert trim(0).removed == ()
    lock = os.open(build, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as a build that goes on has it (index.intake.alone)
    assert trim(0, builds=True).removed == ()
    os.close(lock)
    assert [(one.what, one.bytes) for one in trim(0, builds=True).removed] == [("build", 100)]


def test_used_is_when_a_process_opened_it_last(cache: Path) -> None:
    first, second = (copy(cache / "copies" / n, 10, days=d) for n, d in (("a", 9), ("b", 5)))
    assert [one.path for one in copies()] == [first, second]
    assert hold(first)
    assert [one.path for one in copies()] == [second, first]


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bound_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE_GIB", text)
    with pytest.raises(InputError, match="CLEARANCE_CACHE_GIB"):
        keep_to_bound()
    assert (cache_line().state, text in cache_line().what) == ("missing", True)


def test_zero_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_bytes() == 100 * 2**30
    monkeypatch.setenv("CLEARANCE_CACHE_GIB", "0")
    assert most_bytes() == float("inf")


def test_commands_show_and_clear_the_cache_and_doctor_names_it(cache: Path) -> None:
    old, recent = (copy(cache / "copies" / n, 2**20, days=d) for n, d in (("a", 9), ("b", 1)))
    assert cache_line().what.startswith(f"{cache}: 0.00 GiB in 2 copies; at most 100 GiB")

    def call(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(cli.app, ["cache", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    shown = call("show")
    assert (shown["bytes"], [one["path"] for one in shown["copies"]]) == (2**21, [str(old), str(recent)])  # type: ignore[index, attr-defined]
    assert call("clear", "--keep", repr(2**20 / 2**30)) == {"removed": [str(old)], "in_use": [], "left_bytes": 2**20}
    assert call("clear")["removed"] == [str(recent)]
    assert "0 copies removed" in CliRunner().invoke(cli.app, ["cache", "clear"]).output
