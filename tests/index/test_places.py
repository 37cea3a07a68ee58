"""Places on object stores: the same operations as in a local folder, against a server that speaks S3 and against memory."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from index import storage
from index.errors import ClearanceError, ConfigError, InputError, IntegrityError, RunStopped
from index.places import objects, schemes
from index.places.backend import Stored
from index.places.cache import local_copy
from index.places.objects import AWAY_PAUSES, AWAY_SECONDS, ObjectStore
from index.storage import ObjectFolder, Part

KINDS = ["local", "memory", "s3"]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "run" if request.param == "local" else storage.place(request.getfixturevalue(request.param))


def test_what_was_written_is_listed_and_read(folder: Path) -> None:
    assert not storage.is_folder(folder)
    assert storage.entries(folder) == []
    storage.write_file(folder, "a/b.json", b'{"x": 1}')
    storage.write_file(folder, "a/b.json", b'{"x": 2}')
    storage.write_file(folder, "c", b"")
    assert storage.is_folder(folder)
    assert [(entry.name, entry.kind) for entry in storage.entries(folder)] == [("a", "folder"), ("c", "file")]
    assert [(entry.name, entry.size) for entry in storage.entries(folder, "a")] == [("b.json", 8)]
    assert storage.read_object(folder, "a/b.json") == {"x": 2}
    assert storage.digest_of(folder, "c") == hashlib.sha256(b"").hexdigest()
    assert storage.entry_of(folder, "a/none") is None


def test_a_missing_file_is_named(folder: Path) -> None:
    storage.write_file(folder, "there", b"x")
    with pytest.raises(IntegrityError, match="is missing") as caught:
        storage.read_file(folder, "gone")
    assert caught.value.where == f"{folder}/gone"


def test_a_removed_file_is_gone_and_an_exchanged_one_stays(folder: Path) -> None:
    storage.write_file(folder, "file", b"x")
    seen = storage.entry_of(folder, "file")
    assert seen is not None
    storage.remove(folder, "file")
    storage.write_file(folder, "other", b"keeps the number of the first one from being given again")
    storage.write_file(folder, "file", b"another")
    there = storage.entry_of(folder, "file")
    if there is not None and there.inode != seen.inode:  # a file system may give the number again
        assert not storage.remove(folder, "file", inode=seen.inode)
    assert storage.remove(folder, "file")
    assert not storage.remove(folder, "file")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//b", ".", "a\0b"])
def test_a_name_that_leads_out_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="not a path inside"):
        storage.write_file(folder, name, b"x")


def test_a_large_file_is_read_in_pieces(folder: Path) -> None:
    content = os.urandom(2**24 + 12_345)
    storage.write_from(folder, "large", lambda stream: stream.write(content))
    with storage.open_file(folder, "large") as stream:
        assert stream.seek(-7, os.SEEK_END) == len(content) - 7
        assert stream.read() == content[-7:]
        stream.seek(5)
        assert stream.read(10) == content[5:15]
    assert storage.digest_of(folder, "large") == hashlib.sha256(content).hexdigest()


def test_little_is_read_of_a_file_whose_header_alone_is_wanted(folder: Path) -> None:
    content = os.urandom(2**20)
    storage.write_file(folder, "table", content)
    with storage.open_file(folder, "table", little=True) as stream:
        assert stream.seek(0, os.SEEK_END) == len(content)
        stream.seek(-8, os.SEEK_END)
        assert stream.read(8) == content[-8:]
        stream.seek(-1000, os.SEEK_END)
        assert stream.read(100) == content[-1000:-900]
    with pytest.raises(IntegrityError, match="is missing"):
        storage.open_file(folder, "none", little=True)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_reader_sees_one_version(kind: str, request: pytest.FixtureRequest) -> None:
    folder = storage.place(request.getfixturevalue(kind))
    storage.write_file(folder, "large", bytes(2**23 + 1))
    with storage.open_file(folder, "large") as stream:
        storage.write_file(folder, "large", bytes(2**23 + 2))
        with pytest.raises(InputError, match="replaced or removed while it was read"):
            stream.read()


def test_the_first_of_several_writers_wins(folder: Path) -> None:
    assert storage.create_once(folder, "once", b"first")
    assert not storage.create_once(folder, "once", b"second")
    assert storage.read_file(folder, "once") == b"first"


def test_a_file_is_replaced_only_by_whoever_saw_its_last_version(folder: Path) -> None:
    assert storage.read_tagged(folder, "pointer") is None
    storage.create_once(folder, "pointer", b"1")
    seen = storage.read_tagged(folder, "pointer")
    assert seen is not None and seen.data == b"1" and -2 < seen.age < 60
    second = storage.replace_if(folder, "pointer", b"2", seen.tag)
    assert second is not None
    assert storage.replace_if(folder, "pointer", b"3", seen.tag) is None
    assert storage.replace_if(folder, "pointer", b"4", second) is not None
    assert storage.read_file(folder, "pointer") == b"4"


def race(work: Callable[[int], Any], writers: int = 8) -> list[Any]:
    """What so many threads return that begin at the same moment."""
    begin, found = threading.Barrier(writers), [None] * writers

    def run(number: int) -> None:
        begin.wait()
        found[number] = work(number)

    threads = [threading.Thread(target=copy_context().run, args=(run, number)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def parts(number: int) -> list[Part]:
    return [part(name, f"{name} {number}".encode()) for name in ("samples", "attempts")]


def part(name: str, data: bytes) -> Part:
    return Part(f"{name}/part", lambda stream: stream.write(data), lambda digest: f"{name}/{digest}")


def names(stored: Any) -> bytes:
    return "\n".join(one.path for one in stored).encode()


def test_of_eight_commits_one_wins_and_the_others_leave_nothing(folder: Path) -> None:
    won = race(lambda number: storage.commit(folder, parts(number), "commits/1.json", names))
    assert sorted(won) == [False] * 7 + [True]
    committed = storage.read_file(folder, "commits/1.json").decode().split()
    assert [f"{kind}/{e.name}" for kind in ("samples", "attempts") for e in storage.entries(folder, kind)] == committed
    assert storage.read_file(folder, committed[0]) == f"samples {won.index(True)}".encode()


def test_what_a_commit_stored_is_what_its_marker_is_made_from(folder: Path) -> None:
    seen: list[Stored] = []

    def content(stored: Any) -> bytes:
        seen.extend(stored)
        return b"marker"

    assert storage.commit(folder, parts(3), "commits/1.json", content)
    assert [(one.bytes, one.sha256) for one in seen] == [
        (len(data), hashlib.sha256(data).hexdigest()) for data in (b"samples 3", b"attempts 3")
    ]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_who_lost_the_folder_commits_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    folder = storage.place(request.getfixturevalue(kind))
    mine, theirs = (storage.fenced(folder, "lease", token) for token in ("mine", "theirs"))
    storage.write_file(folder, "lease", b'{"token": "mine"}')
    assert storage.commit(mine, parts(1), "commits/1.json", names)
    storage.write_file(folder, "lease", b'{"token": "theirs"}')
    with pytest.raises(RunStopped, match="another run took this folder over"):
        storage.commit(mine, parts(2), "commits/2.json", names)
    assert [entry.name for entry in storage.entries(folder, "commits")] == ["1.json"]
    assert len(storage.entries(folder, "samples")) == 1
    assert storage.commit(theirs, parts(2), "commits/2.json", names)


# --- answers that are lost, stores that fail -------------------------------------------------------------------------------


class Faulty(ObjectStore):
    """A store whose next requests of one kind fail: before they are carried out, or after."""

    def __init__(self, root: str) -> None:
        from obstore.store import MemoryStore

        super().__init__(root, MemoryStore())
        self.fails: dict[str, str] = {}  # by the end of the key: before, after

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        when = next((when for end, when in self.fails.items() if kind == "put" and key.endswith(end)), "")
        if when != "before":
            done = super().request(kind, key, do, writing=writing)
        if when:
            del self.fails[next(end for end in self.fails if key.endswith(end))]
            raise RunStopped("the object store does not answer", where=f"{self.root}/{key}")
        return done


@pytest.fixture
def faulty() -> Any:
    store = Faulty("faulty://store")
    with schemes.using({"faulty": lambda _: store}):
        yield store


def test_a_commit_whose_answer_was_lost_is_a_commit(faulty: Faulty) -> None:
    folder = storage.place("faulty://store/run")
    faulty.fails = {"1.json": "after"}
    assert storage.commit(folder, parts(1), "commits/1.json", names)
    assert len(storage.entries(folder, "samples")) == 1


def test_a_commit_that_failed_leaves_no_marker(faulty: Faulty) -> None:
    folder = storage.place("faulty://store/run")
    faulty.fails = {"1.json": "before"}
    with pytest.raises(RunStopped, match="does not answer"):
        storage.commit(folder, parts(1), "commits/1.json", names)
    assert storage.entries(folder, "commits") == []
    assert storage.commit(folder, parts(2), "commits/1.json", names)


def test_a_commit_whose_data_failed_leaves_nothing(faulty: Faulty) -> None:
    folder = storage.place("faulty://store/run")
    [first, second] = parts(1)
    faulty.fails = {hashlib.sha256(b"attempts 1").hexdigest(): "before"}
    with pytest.raises(RunStopped, match="does not answer"):
        storage.commit(folder, [first, second], "commits/1.json", names)
    assert storage.entries(folder) == []


def test_a_request_that_is_sent_again_finds_its_own_work(faulty: Faulty) -> None:
    folder = storage.place("faulty://store/run")
    assert storage.create_once(folder, "once", b"mine")
    assert storage.create_once(folder, "once", b"mine")
    seen = storage.read_tagged(folder, "once")
    assert seen is not None
    now = storage.replace_if(folder, "once", b"next", seen.tag)
    assert storage.replace_if(folder, "once", b"next", seen.tag) == now


class Busy(ObjectStore):
    """A store that answers some times that it has too much to do; its clock is the test's."""

    def __init__(self, root: str, answers: list[int]) -> None:
        from obstore.store import MemoryStore

        super().__init__(root, MemoryStore())
        self.answers = answers

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        from obstore.exceptions import GenericError

        def answer() -> Any:
            made = do()  # it may have been carried out all the same
            if self.answers:
                raise GenericError(
                    f"Error performing PUT {key} - Server returned non-2xx status code: {self.answers.pop()} Slow"
                )
            return made

        return super().request(kind, key, answer, writing=writing)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept; no time passes but by sleeping."""
    slept: list[float] = []
    monkeypatch.setattr("index.places.objects.time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


@pytest.mark.parametrize("status", [503, 500, 429, 408])
def test_a_store_that_has_too_much_to_do_is_asked_again(status: int, clock: list[float]) -> None:
    """With what is put from a stream whole each time."""
    store = Busy("busy://store", [status] * 6)
    with schemes.using({"busy": lambda _: store}):
        folder = storage.place("busy://store/run")
        storage.write_from(folder, "whole", lambda stream: stream.write(b"whole"))
        assert clock == [1, 2, 4, 8, 8, 8]
        assert storage.read_file(folder, "whole") == b"whole"


def test_a_store_that_stays_away_is_asked_for_two_minutes(clock: list[float]) -> None:
    with schemes.using({"busy": lambda _: Busy("busy://store", [503] * 99)}):
        with pytest.raises(RunStopped, match="does not answer"):
            storage.write_file(storage.place("busy://store/run"), "whole", b"")
        assert AWAY_SECONDS <= sum(clock) < AWAY_SECONDS + max(AWAY_PAUSES)


@pytest.mark.parametrize("status", [403, 501, 507])
def test_a_store_that_refuses_is_not_asked_again(status: int, clock: list[float]) -> None:
    with schemes.using({"busy": lambda _: Busy("busy://store", [status])}), pytest.raises(RunStopped):
        storage.write_file(storage.place("busy://store/run"), "whole", b"")
    assert clock == []


def test_a_sign_of_life_does_not_wait_for_a_store(clock: list[float]) -> None:
    """The next one follows in some seconds, and what is wrong has to be said."""
    away = schemes.using({"busy": lambda _: Busy("busy://store", [503])})
    with away, storage.impatient(), pytest.raises(RunStopped, match="does not answer"):
        storage.write_file(storage.place("busy://store/run"), "whole", b"")
    assert clock == []


@pytest.mark.parametrize(
    ("root", "version", "kept"),
    [("s3://b", "3HL4", True), ("s3://b", "null", False), ("s3://b", None, False), ("gs://b", "1732", False)],
)
def test_a_bucket_whose_versioning_is_suspended_keeps_no_versions(
    monkeypatch: pytest.MonkeyPatch, root: str, version: str | None, kept: bool
) -> None:
    """S3 names the version of an object "null" that was written while versioning is suspended."""
    import obstore

    meta = {"path": "run/.lease", "size": 2, "e_tag": "x", "last_modified": datetime(2026, 11, 28, tzinfo=UTC)}
    monkeypatch.setattr(obstore, "head", lambda store, key: {**meta, "version": version})
    entry = ObjectStore(root, None).entry("run/.lease")
    assert entry is not None and entry.versioned is kept


SENTENCES = {
    "no bucket": ("there is no such bucket", "check its name"),
    "no keys": ("no credentials that the object store accepts", "AWS_ACCESS_KEY_ID"),
    "denied": ("denies access", "right to list"),
    "away": ("does not answer", "network"),
    "redirect": ("the bucket is in another region", "AWS_REGION"),
    "region": ("another region (AuthorizationHeaderMalformed: the region 'a' is wrong; expecting 'b')", "AWS_REGION"),
    "clock": ("the clock of this machine is wrong (RequestTimeTooSkewed: too large)", "Set the clock"),
    "archived": ("the object is archived (InvalidObjectState", "Restore it"),
    "unlike": ("the object store failed (QuotaExceeded: your quota of 5 GB is used up)", "Look at the object store"),
    "no word": ("400 Bad Request", "Check the region and the credentials"),
}
BODY = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>{}</Message></Error>'


@pytest.mark.parametrize("case", SENTENCES)
@pytest.mark.parametrize("writing", [False, True])
def test_a_store_that_refuses_is_a_sentence_without_secrets(case: str, writing: bool) -> None:
    from obstore import exceptions

    secret = "?X-Amz-Signature=hidden"
    text = f"Error performing PUT http://127.0.0.1/b{secret} in 2 ms"

    def answer(status: int, code: str, message: str, kind: type[Exception] = exceptions.GenericError) -> Exception:
        return kind(f"{text} - Server returned non-2xx status code: {status} X: {BODY.format(code, message)}")

    errors: dict[str, Exception] = {
        "no bucket": exceptions.GenericError(f"{text} - status code: 404 Not Found: <Code>NoSuchBucket</Code>"),
        "no keys": exceptions.PermissionDeniedError(f"{text} - status code: 403: <Code>InvalidAccessKeyId</Code>"),
        "denied": exceptions.PermissionDeniedError(f"{text} - status code: 403: <Code>AccessDenied</Code>"),
        "away": exceptions.GenericError(f"{text} - error sending request"),
        "redirect": exceptions.GenericError(
            f"{text} - Received redirect without LOCATION\n\nDebug source:\n inner: BareRedirect"
        ),
        "region": answer(400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'"),
        "clock": answer(403, "RequestTimeTooSkewed", "too large", exceptions.PermissionDeniedError),
        "archived": answer(403, "InvalidObjectState", "storage class", exceptions.PermissionDeniedError),
        "unlike": answer(400, "QuotaExceeded", "your quota of 5 GB is used up"),
        "no word": exceptions.GenericError(f"{text} - status code: 400 Bad Request: "),
    }

    def fail() -> None:
        raise errors[case]

    with pytest.raises(RunStopped if writing else InputError) as caught:
        ObjectStore("s3://b", None).request("put", "k", fail, writing=writing)
    what, fix = SENTENCES[case]
    assert what in caught.value.what and fix in caught.value.fix
    assert "hidden" not in str(caught.value) and caught.value.where.startswith("s3://b")


def test_a_store_that_is_away_may_be_back_in_a_moment() -> None:
    from jobs.run.retries import passes

    def request(text: str) -> RunStopped:
        def fail() -> None:
            raise OSError(text)

        with pytest.raises(RunStopped) as caught:
            ObjectStore("s3://b", None).request("put", "k", fail, writing=True)
        return caught.value

    assert passes(request("error sending request"))
    assert not passes(request("status code: 403: <Code>InvalidAccessKeyId</Code>"))


@pytest.mark.parametrize("key", ["credential-scans/run", "NoSuchBucket", "reset/connect"])
def test_what_a_key_is_called_says_nothing_of_the_failure(key: str) -> None:
    """Text of obstore repeats the key in the URL and beside it."""
    from obstore import exceptions

    def refused(status: int, code: str, kind: type[Exception] = exceptions.GenericError) -> RunStopped:
        def fail() -> None:
            url, body = f"http://127.0.0.1/b/{key}/x", BODY.format(code, "no")
            more = f'Debug source:\nPermissionDenied {{\n path: "{key}/x",\n uri: Some(\n {url},\n ) }}'
            text = f"Error performing PUT {url} in 2 ms - Server returned non-2xx status code: {status} X: {body}"
            raise kind(f"It failed for path {key}/x: {text}\n\n{more}")

        with pytest.raises(RunStopped) as caught:
            ObjectStore("s3://b", None).request("put", f"{key}/x", fail, writing=True)
        return caught.value

    away = refused(503, "SlowDown")
    assert away.what == "the object store does not answer" and isinstance(away.__cause__, TimeoutError)
    assert refused(403, "AccessDenied", exceptions.PermissionDeniedError).what.startswith("the object store denies access")
    assert refused(400, "InvalidRequest").what == "the object store failed (InvalidRequest: no)"


@pytest.fixture
def conflicts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store that answers the next writes with HTTP 409, as S3 does while another write is under way: ``list`` of codes."""
    import obstore

    put, codes = obstore.put, list[str]()

    def conflicting(*args: Any, **options: Any) -> Any:
        if codes:
            body = BODY.format(codes.pop(), "try again")
            raise obstore.exceptions.AlreadyExistsError(f"at location k already exists: status code: 409 Conflict: {body}")
        return put(*args, **options)

    monkeypatch.setattr(obstore, "put", conflicting)
    monkeypatch.setattr(objects, "PAUSES", (0.0, 0.0))
    return codes


def test_a_write_that_came_in_anothers_way_is_repeated(conflicts: list[str]) -> None:
    folder = storage.place("memory://conflicts/run")
    conflicts += ["ConditionalRequestConflict", "OperationAborted"]
    assert storage.create_once(folder, "once", b"mine")
    seen = storage.read_tagged(folder, "once")
    assert seen is not None and seen.data == b"mine"
    conflicts += ["ConditionalRequestConflict"]
    assert storage.replace_if(folder, "once", b"next", seen.tag)
    assert not storage.create_once(folder, "once", b"other")
    assert storage.replace_if(folder, "once", b"third", seen.tag) is None


def test_a_store_that_stays_in_conflict_is_a_sentence_and_may_be_over_in_a_moment(conflicts: list[str]) -> None:
    from jobs.run.retries import passes

    folder = storage.place("memory://in-conflict/run")
    storage.write_file(folder, "old", b"1")
    seen = storage.read_tagged(folder, "old")
    assert seen is not None
    works: dict[str, Callable[[], Any]] = {
        "HTTP 409": lambda: storage.create_once(folder, "once", b"mine"),
        "puts this write off": lambda: storage.replace_if(folder, "old", b"2", seen.tag),
        "OperationAborted: try again": lambda: storage.write_file(folder, "plain", b"1"),
    }
    for what, work in works.items():
        conflicts[:] = ["OperationAborted"] * 9
        with pytest.raises(RunStopped, match=what) as caught:
            work()
        assert passes(caught.value)


def test_a_failure_nobody_foresaw_keeps_its_text_without_secrets() -> None:
    def fail() -> None:
        raise ValueError("odd answer from http://user:SECRET@host/b?sig=SECRET\nDebug source:\nSECRET")

    with pytest.raises(InputError, match="odd answer from http://host/b") as caught:
        ObjectStore("s3://b", None).request("get", "k", fail)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("how", ["write_from", "commit", "erased"])
def test_a_full_disk_of_this_machine_is_not_taken_for_the_stores(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.run.retries import passes

    monkeypatch.setattr(tempfile, "tempdir", "/scratch")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())

    def fill(stream: Any) -> None:
        stream.write(b"1" * 20_000)

    def collect() -> None:
        folder = storage.place("memory://full/run")
        if how == "write_from":
            storage.write_from(folder, "x", fill)
        elif how == "commit":
            storage.commit(folder, [Part("samples/1", fill, lambda _: "samples/1")], "commits/1.json", names)
        else:
            with storage.filling_temporary():
                raise OSError(errno.EDQUOT, "quota")

    with pytest.raises(RunStopped, match=r"the disk (is full|quota)") as caught:
        collect()
    assert caught.value.where == "/scratch" and "TMPDIR" in caught.value.fix and not passes(caught.value)


class Full(io.BytesIO):
    """A temporary file on a disk without room."""

    def write(self, *_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def __exit__(self, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # closing writes what is buffered


def test_where_no_temporary_folder_can_be_written_to_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    with pytest.raises(RunStopped, match="No usable temporary directory") as caught:
        storage.commit(storage.place("memory://full/run"), parts(1), "commits/1.json", names)
    assert "TMPDIR" in caught.value.fix


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    folder = storage.place("s3://nobody-made-this/run")
    with pytest.raises(InputError, match="no such bucket"):
        storage.entries(folder)
    with pytest.raises(RunStopped, match="no such bucket") as caught:
        storage.require_writable(folder)
    assert caught.value.where == "s3://nobody-made-this"


def test_a_file_of_a_web_server_is_read_and_nothing_is_written_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "prompts.csv").write_bytes(b"prompt\ncat\n")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        assert local_copy(storage.place(f"{uri}/prompts.csv")).read_bytes() == b"prompt\ncat\n"
        with pytest.raises(InputError, match="no such file or folder"):
            local_copy(storage.place(f"{uri}/none.csv"))
        with pytest.raises(RunStopped) as caught:
            storage.write_file(storage.place(uri), "new.csv", b"x")
        server.shutdown()
    assert caught.value.where == f"{uri}/new.csv"


# --- names -----------------------------------------------------------------------------------------------------------------


def test_a_uri_is_a_place_and_a_path_a_path(tmp_path: Path) -> None:
    place = storage.place("s3://bucket/runs/monday/")
    assert isinstance(place, ObjectFolder)
    assert (str(place), place.name, str(place.parent)) == ("s3://bucket/runs/monday", "monday", "s3://bucket/runs")
    assert str(place / "commits/1.json") == "s3://bucket/runs/monday/commits/1.json"
    assert storage.place("runs/monday", tmp_path) == tmp_path / "runs/monday"
    assert storage.place("file:///srv/runs") == Path("/srv/runs")
    assert storage.is_uri("S3://bucket/runs") and storage.place("S3://bucket/runs") == storage.place("s3://bucket/runs")
    assert tmp_path / place == place


@pytest.mark.parametrize(
    "text", ["s3://key:secret@bucket/run", "s3://bucket/run?sig=secret", "s3://key:secret@bucket?a=secret"]
)
def test_a_uri_with_credentials_is_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ConfigError, match="without credentials") as caught:
        storage.place(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["s3://", "s3:///run", "s3://bucket/a//b", "s3://bucket/../x"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a place"):
        storage.place(text)


def test_an_unknown_scheme_names_the_likely_slip() -> None:
    with pytest.raises(ConfigError, match=r"nothing here opens s3a://") as caught:
        storage.place("s3a://bucket/run")
    assert "Did you mean s3://?" in caught.value.fix


def test_a_place_travels_to_another_process() -> None:
    place = storage.fenced(storage.place("s3://bucket/run"), "lease", "token")
    there = pickle.loads(pickle.dumps(place))
    assert there == place and there.fence == ("lease", "token")


LOCAL_ONLY: dict[str, Callable[[Any], Any]] = {
    "fspath": os.fspath,
    "open": open,
    "a local copy of its name": Path,
    "read": lambda place: place.read_bytes(),
    "write": lambda place: place.write_bytes(b""),
    "make": lambda place: place.mkdir(),
    "stat": lambda place: place.stat(),
    "list": lambda place: list(place.iterdir()),
}


@pytest.mark.parametrize("use", LOCAL_ONLY)
def test_nothing_takes_a_place_on_an_object_store_for_a_local_path(use: str) -> None:
    with pytest.raises(ClearanceError, match="works on local folders only"):
        LOCAL_ONLY[use](storage.place("s3://bucket/run"))


def test_another_package_adds_a_scheme_by_an_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "toy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[clearance.storage]\ntoy = toy_store:open\n")
    (tmp_path / "toy_store.py").write_text("from index.places.objects import Memory\nopen = Memory.open\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = storage.place("toy://shelf/run")
    storage.write_file(folder, "x", b"1")
    assert storage.read_file(storage.place("toy://shelf/run"), "x") == b"1"
