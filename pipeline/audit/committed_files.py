"""The data files of a run, given out only as they were committed, or as their last erasure left them.

A row is worth what its file is worth. The digests in a row are no help against whoever rewrites the row: an embedding can be
replaced together with its digest. So who acts on rows, or gives them out, opens their files here. A file is hashed when it is
first opened, and its digest is held against its commit marker (in a compacted run: against the index of parts) and against what
events say was erased since. The markers are held against the statement, where the run is sealed.

No signature covers the events that came after the seal, and a forged one can explain a changed file: as the work of an erasure
or, with an index of its own, of a compaction. So the rows of such a file are recomputed when it is first opened, up to the end
of the chain that its marker states, and the payloads that are left are held against their digests. Of all other files the rows
are not recomputed; :mod:`pipeline.audit.verify` does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

from index.errors import IntegrityError, RunStopped
from index.storage import cannot_read, each, entry_of, filling_temporary, is_remote, open_file
from pipeline.audit.binding import PLAN_FILE, RunBinding, shard_problems
from pipeline.audit.blocks import Hashed
from pipeline.audit.compacted import PARTS_INDEX, PartsIndex, parts_index
from pipeline.audit.erasure import FileNow
from pipeline.audit.event_parts import EVENTS_FOLDER
from pipeline.audit.events import events_head, read_events
from pipeline.audit.ledger import sealed_statement
from pipeline.audit.requests import VERIFY
from pipeline.audit.shards import COMMITS, ShardFile, ShardReceipt, markers, receipt_of, receipts_of
from pipeline.audit.stage import Findings
from pipeline.audit.stage_rows import Rows

_AT_ONCE = 2**23  # bytes of an object that are copied at once; a smaller one stays in memory
_OF_THE_RUN = (PLAN_FILE, EVENTS_FOLDER, PARTS_INDEX)  # what is wrong with one of these is wrong with every file


class CommittedFiles:
    """The data files of one run. :meth:`open` takes the place of :func:`index.storage.open_file` in the readers of rows."""

    def __init__(
        self,
        stated: Mapping[str, FileNow],
        refused: Mapping[str, str],
        state: tuple[str, bool],
        again: Callable[[], CommittedFiles],
        explained: _Explained,
    ) -> None:
        self._stated, self._refused, self._state, self._again = stated, dict(refused), state, again
        self._explained = explained
        self._sound: set[str] = set()
        self._grew = False  # events came since

    @classmethod
    def of(
        cls,
        folder: Path,
        header: Mapping[str, Any] | None = None,
        plan_file_sha256: str = "",
        *,
        shards: Collection[str] | None = None,
    ) -> CommittedFiles:
        """Read what markers, statement and events of a run state of its files.

        A marker that cannot be read is left out: its files are then no files of a committed shard, and whoever asks
        :mod:`pipeline.audit.layout` for them meets the marker itself.

        Args:
            folder: the run folder.
            header: what the headers of its shards must hold; see :class:`pipeline.audit.binding.RunBinding`.
            plan_file_sha256: digest of its plan.json; empty: not compared.
            shards: only the files of these are asked for; of all when not given. A large part is one of theirs, too.

        Raises:
            IntegrityError: the events, the statement or the index of parts was changed, or shards are of another plan.
            InputError: the storage failed.
        """
        events = read_events(folder)
        statement = sealed_statement(folder, events)
        run = RunBinding(header=header or {}, plan_file_sha256=plan_file_sha256).known(events)
        index = parts_index(folder)
        names = [name for name in markers(folder) if shards is None or name in shards]
        receipts = _receipts(folder, names) if index is None else receipts_of(folder, names)
        refused: dict[str, str] = {}
        for where, what in shard_problems(folder, receipts, run, hashed=True):
            if where in _OF_THE_RUN:
                raise IntegrityError(what, where=f"{folder}/{where}", fix=VERIFY)
            refused.setdefault(where, what)
        for receipt in _not_sealed_with(receipts, statement):
            marker = f"{COMMITS}/{receipt.shard_id}.json"
            if index is not None:
                what = f"holds another {marker} than the run was sealed with"
                raise IntegrityError(what, where=f"{folder}/{PARTS_INDEX}", fix=VERIFY)
            for file in receipt.files:
                refused.setdefault(file.path, f"is named by {marker}, which is not the marker that the run was sealed with")
        files = [file for receipt in receipts.values() for file in receipt.files] if index is None else index.parts
        stated = {file.path: run.erasures.now(file.path, file.sha256, file.bytes) for file in files}
        again = partial(cls.of, folder, header, plan_file_sha256, shards=shards)
        return cls(stated, refused, _state(folder, events), again, _Explained.of(folder, run, receipts, index))

    def open(self, folder: Path, path: str) -> IO[bytes]:
        """Open a data file for reading, hashed if it is opened for the first time.

        On an object store it is fetched once: what is hashed is what is read. Where payloads were erased meanwhile, the file is
        held against what the events say by now.

        Raises:
            IntegrityError: it is not the file that was committed or that its last erasure left; or as
                :func:`index.storage.open_file`.
            InputError: the storage failed.
            RunStopped: the run was compacted, or payloads are being erased, while it is read; or this machine has no room for
                the temporary file.
        """
        if path in self._sound:
            return open_file(folder, path)
        try:
            return self._opened(folder, path)
        except IntegrityError:
            if _state(folder, read_events(folder)) == self._state:
                raise
        now = self._again()
        self._stated, self._refused, self._state, self._grew = now._stated, now._refused, now._state, True
        self._explained = now._explained
        return self._opened(folder, path)

    def _opened(self, folder: Path, path: str) -> IO[bytes]:
        """The file, if it is the one that is stated."""
        where, now = f"{folder}/{path}", self._stated.get(path)
        what = self._refused.get(path) or ("belongs to no committed shard" if now is None else now.broken)
        if now is None and self._grew:
            raise _meanwhile(where)
        if now is None or what:
            raise IntegrityError(what, where=where, fix=VERIFY)
        stream, sha256 = _hashed(folder, path)
        if sha256 != now.sha256:
            stream.close()
            if sha256 in now.earlier and self._grew:
                raise _meanwhile(where)
            fix = f"Give `clearance retention apply {folder}`" if sha256 in now.earlier else VERIFY
            raise IntegrityError(now.other(sha256), where=where, fix=fix)
        try:
            self._explained.require(stream, path)
        except BaseException:
            stream.close()
            raise
        self._sound.add(path)
        return stream


class _Explained(NamedTuple):
    """The files whose digests an event explains and no marker states, and what the rows in them are held against."""

    folder: Path
    run: RunBinding
    files: Mapping[str, tuple[ShardReceipt, ShardFile]]  # those that an erasure names, by path
    parts: PartsIndex | None

    @classmethod
    def of(cls, folder: Path, run: RunBinding, receipts: Mapping[str, ShardReceipt], parts: PartsIndex | None) -> _Explained:
        named = frozenset(run.erasures.paths)
        files = {file.path: (one, file) for one in receipts.values() for file in one.files if file.path in named}
        return cls(folder, run, files, parts)

    def require(self, stream: IO[bytes], path: str) -> None:
        """Recompute the rows of such a file, from its beginning; of any other nothing is done. It is at its beginning then.

        Raises:
            IntegrityError: a row is not the one that was committed, or a payload is not, or is gone without an event.
        """
        found = Findings()
        rows = Rows(self.folder, self.run, None, found, opener=lambda *_: nullcontext(stream), pixels=False)  # type: ignore[arg-type,return-value]
        if self.parts is None:
            if path not in self.files:
                return
            rows.file(*self.files[path])
        else:
            part = next(part for part in self.parts.parts if part.path == path)
            beside = [shard for shard, _ in self.parts.in_part(part)]
            rows.part(part, self.parts, receipts_of(self.folder, beside))
        if found.problems:
            first = found.problems[0]
            raise IntegrityError(first.what, where=f"{self.folder}/{first.where}", fix=VERIFY)
        stream.seek(0)


def _state(folder: Path, events: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What changes when payloads are erased or a run is compacted: the last event, and whether there is an index of parts."""
    return events_head(events), entry_of(folder, PARTS_INDEX) is not None


def _meanwhile(where: str) -> RunStopped:
    what = "is not what it was: payloads are being erased, or the run was compacted, while it is read"
    return RunStopped(what, where=where, fix="Give the command again; if it says the same, run `clearance verify`")


def _receipts(folder: Path, names: Sequence[str]) -> dict[str, ShardReceipt]:
    """The receipts of those markers that can be read. Where the storage fails, nothing is known of a marker: that is raised."""

    def receipt(shard_id: str) -> ShardReceipt | None:
        try:
            return receipt_of(folder, shard_id)
        except IntegrityError:
            return None

    return {name: found for name, found in zip(names, each(folder, receipt, names), strict=True) if found is not None}


def _not_sealed_with(receipts: Mapping[str, ShardReceipt], statement: Mapping[str, Any] | None) -> list[ShardReceipt]:
    """Receipts that are not those with which the run was sealed; none where it is not sealed."""
    if statement is None:
        return []
    shards = statement["predicate"].get("shards")
    stated = shards if isinstance(shards, dict) else {}
    return [receipt for name, receipt in receipts.items() if stated.get(name) != receipt.digest]


def _hashed(folder: Path, path: str) -> tuple[IO[bytes], str]:
    """A file at its beginning, and its digest.

    Raises:
        RunStopped: this machine has no room for the copy of an object.
        IntegrityError, InputError: as :func:`index.storage.open_file`.
    """
    stream = open_file(folder, path)
    try:
        if not is_remote(folder):
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            return stream, digest
        content: IO[bytes] = SpooledTemporaryFile(max_size=_AT_ONCE)  # type: ignore[assignment] # noqa: SIM115
        try:
            with stream, filling_temporary():
                hashed = Hashed(content)
                copyfileobj(stream, hashed, _AT_ONCE)
                content.seek(0)  # writes what is left
        except BaseException:
            with suppress(OSError):  # closing writes as well
                content.close()
            raise
        return content, hashed.sha256
    except OSError as error:
        stream.close()
        raise cannot_read(error, folder / path) from error
