"""What events say was erased, file by file: the digests that files have since, and the cells that may be empty.

The digest of a data file stands in its commit marker and in ``run.json``, and neither changes. Erasing payloads changes the
file. So each event ``payload.erased`` names the files that it changed: digest before, digest after, and the samples of every
column that was emptied. A verifier starts from the marker's digest and follows the events. The file has to have the digest that
the last of them names; its rows may lack exactly the payloads that they name; and everything that is committed is as it was,
because payloads enter the chain of the rows as digests alone.

This module reads events; :mod:`pipeline.audit.erase` erases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

ERASED = "payload.erased"


@dataclass(frozen=True, kw_only=True)
class ErasedFile:
    """What one event says of one file.

    Attributes:
        seq: number of the event. path: the file, relative to the run folder. table: what it holds rows of.
        columns: sample_ids by column: the cells that were emptied.
        before_sha256, after_sha256: digests of the file. after_bytes: its size then.
    """

    seq: int
    path: str
    table: str
    columns: Mapping[str, tuple[str, ...]]
    before_sha256: str
    after_sha256: str
    after_bytes: int

    def plain(self) -> dict[str, Any]:
        """The form in which an event holds it."""
        return {
            "path": self.path,
            "table": self.table,
            "columns": {column: list(samples) for column, samples in self.columns.items()},
            "before_sha256": self.before_sha256,
            "after_sha256": self.after_sha256,
            "after_bytes": self.after_bytes,
        }

    @classmethod
    def parse(cls, plain: Any, seq: int) -> ErasedFile | None:
        """From an event; None when it is something else."""
        texts = ("path", "table", "before_sha256", "after_sha256")
        if not isinstance(plain, dict) or not all(isinstance(plain.get(name), str) for name in texts):
            return None
        columns, size = plain.get("columns"), plain.get("after_bytes")
        if not isinstance(columns, dict) or type(size) is not int:
            return None
        if not all(isinstance(ids, list) and all(isinstance(one, str) for one in ids) for ids in columns.values()):
            return None
        named = {column: tuple(samples) for column, samples in columns.items()}
        return cls(seq=seq, columns=named, after_bytes=size, **{name: plain[name] for name in texts})


def erased_files(event: Mapping[str, Any]) -> Iterator[ErasedFile]:
    """The files that an event of kind ``payload.erased`` names in full."""
    files = event["details"].get("files") if event["kind"] == ERASED else None
    for plain in files if isinstance(files, list) else ():
        if (file := ErasedFile.parse(plain, int(event["seq"]))) is not None:
            yield file


@dataclass(frozen=True, kw_only=True)
class FileNow:
    """What a file has to be now.

    Attributes:
        sha256, bytes: its digest and size.
        erased: sample_ids by column: cells that events name as emptied.
        earlier: digest of an earlier content → number of the event that erased payloads from it.
        broken: why the events cannot be followed; empty when they can.
        whole: the file has that digest; otherwise payloads that are named as erased may still be in it.
    """

    sha256: str
    bytes: int
    erased: Mapping[str, frozenset[str]] = field(default_factory=dict)
    earlier: Mapping[str, int] = field(default_factory=dict)
    broken: str = ""
    whole: bool = True

    def also(self, before: FileNow) -> FileNow:
        """The same with the cells that were erased in the file that these rows came from."""
        columns = {*self.erased, *before.erased}
        cells = {column: self.erased.get(column, frozenset()) | before.erased.get(column, frozenset()) for column in columns}
        return replace(self, erased=cells)

    def other(self, sha256: str) -> str:
        """Why a digest is not that of this file, as a sentence without its subject."""
        if sha256 in self.earlier:
            event = self.earlier[sha256]
            return (
                f"holds what event {event} names as erased: the erasure was interrupted, or an older copy was restored; "
                "`clearance retention apply` erases it"
            )
        return f"the file was changed: its digest does not match {'its last erasure' if self.earlier else 'its commit marker'}"


class Erasures:
    """The files of a run from which payloads were erased."""

    def __init__(self, files: Sequence[ErasedFile] = ()) -> None:
        self._files: dict[str, list[ErasedFile]] = {}
        for file in files:
            self._files.setdefault(file.path, []).append(file)

    @classmethod
    def of(cls, events: Sequence[Mapping[str, Any]]) -> Erasures:
        """Those that the events name, in their order."""
        return cls([file for event in events if event["kind"] == ERASED for file in erased_files(event)])

    @property
    def paths(self) -> list[str]:
        return list(self._files)

    @property
    def files(self) -> list[ErasedFile]:
        """What the events say of each file, file by file in their order."""
        return [one for files in self._files.values() for one in files]

    def now(self, path: str, sha256: str, size: int) -> FileNow:
        """What a file has to be that was committed with this digest and size."""
        known = {sha256}
        earlier: dict[str, int] = {}
        erased: dict[str, set[str]] = {}
        broken = ""
        for file in self._files.get(path, ()):
            if file.before_sha256 not in known and not broken:
                broken = (
                    f"event {file.seq} erased payloads from a file of digest {file.before_sha256[:16]}, which this never was"
                )
            known |= {file.after_sha256}
            earlier |= dict.fromkeys((sha256, file.before_sha256), file.seq)
            for column, samples in file.columns.items():
                erased.setdefault(column, set()).update(samples)
            sha256, size = file.after_sha256, file.after_bytes
            earlier.pop(sha256, None)
        cells = {column: frozenset(samples) for column, samples in erased.items()}
        return FileNow(sha256=sha256, bytes=size, erased=cells, earlier=earlier, broken=broken)
