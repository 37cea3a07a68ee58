"""An index on an object store: seen on this machine as a folder, mapped from there; changed by putting another pointer there.

Segments, snapshots and leaves of the journal are named after their content, so each is fetched once and never again. The folder
of a snapshot links to its segments. A change writes new files into that folder, puts them beside the others on the store, and
then replaces ``CURRENT`` if it still names the snapshot that was opened: of two that change an index at once, one is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from index import storage
from index.errors import ClearanceError, IndexMismatch, InputError, IntegrityError
from index.files import RESTORE, read_known
from index.places.cache import cache_folder, download, kept_as, local_copy

CURRENT = "CURRENT"
_VIEW = re.compile("indexes/[0-9a-f]{32}/([0-9a-f]{64}|new)")  # the end of a view's path


def here(folder: Path) -> Path:
    """The folder of an index on this machine: itself, or for one on an object store the view of its snapshot in force.

    Raises:
        InputError: there is no index, or this machine cannot keep it.
        IntegrityError: a file is missing or was changed.
    """
    if not storage.is_remote(folder):
        return folder
    digest = in_force(folder)
    if not digest:
        fix = "Build one: clearance index build REFERENCES --out FOLDER"
        raise InputError("is not a reference index", where=str(folder), fix=fix)
    view = _views(folder) / digest
    kept_as(view, lambda work: _fill(folder, digest, work), where=str(folder))
    _remember(folder)
    return view


def for_a_build(folder: Path) -> Path:
    """Where an index is built: the folder itself, or for one on an object store a folder of the cache, kept until it is done.

    Raises:
        InputError: the place holds something.
    """
    if not storage.is_remote(folder):
        return folder
    if in_force(folder):
        raise InputError("already holds an index", where=str(folder), fix="Add to it, or name a new folder")
    own = {"snapshots", "segments", "journal", "calibration.json"}  # of a build that was stopped
    if other := [entry.name for entry in storage.entries(folder) if entry.name not in own]:
        raise InputError(f"is not empty ({', '.join(other[:3])})", where=str(folder), fix="Name a new folder with --out")
    storage.require_writable(folder)
    work = _views(folder) / "new"
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / CURRENT).unlink(missing_ok=True)  # of an index that was there, and was removed
    except OSError as error:
        what = f"cannot be built on this machine ({error.strerror or error})"
        raise InputError(what, where=str(work), fix="Name another folder in CLEARANCE_CACHE") from None
    _remember(folder)
    return work


def origin(folder: Path) -> Path | None:
    """The place on an object store that a folder of the cache stands for; None for every other folder.

    Raises:
        InputError: it is such a folder by its name, and the note of its place cannot be read: what is changed there would not
            reach the store.
    """
    if storage.is_remote(folder) or not _VIEW.fullmatch("/".join(folder.parts[-3:])):
        return None
    note = folder.parent / "uri"
    fix = "Open the index by its URI again"
    try:
        place = storage.place(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, ClearanceError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read, so where the index lies is not known ({why})", where=str(note), fix=fix) from None
    if not storage.is_remote(place) or _views(place).name != folder.parent.name:
        raise InputError("names another place than the index was opened from", where=str(note), fix=fix)
    return place


def place_of(folder: Path) -> Path:
    """The place that an index is known by: on the store where it lies there, else its folder."""
    return origin(folder) or folder


def in_force(place: Path) -> str:
    """The content of ``CURRENT`` on the store; empty when there is none."""
    found = storage.read_tagged(place, CURRENT)
    return "" if found is None else found.data.decode("utf-8", "replace").strip()


def publish(place: Path, folder: Path, digest: str, snapshot: Mapping[str, Any], before: str) -> None:
    """Put a snapshot in force on the store.

    Args:
        place: the index there.
        folder: its view here, with the new files in it.
        digest: of the snapshot. snapshot: its content.
        before: digest of the snapshot that it follows; empty for a new index.

    Raises:
        IndexMismatch: another one is in force by now; nothing has changed.
        RunStopped: the store cannot be written.
    """
    there = {entry.name for entry in storage.entries(place, "segments")}
    for entry in snapshot["segments"]:
        if entry["name"] not in there or _incomplete(place, entry):
            for name in entry["files"]:
                _upload(place, f"segments/{entry['name']}/{name}", folder)
    _upload(place, f"journal/{snapshot['journal']}.json", folder)
    _upload(place, f"snapshots/{digest}.json", folder)
    seen = storage.read_tagged(place, CURRENT)
    data = f"{digest}\n".encode()
    if (seen.data.decode("utf-8", "replace").strip() if seen is not None else "") != before:
        won = False
    elif seen is None:
        won = storage.create_once(place, CURRENT, data)
    else:
        won = storage.replace_if(place, CURRENT, data, seen.tag) is not None
    if not won:
        raise IndexMismatch("another process changed the index meanwhile", where=str(place), fix="Open it again")


def checked(place: Path) -> Path:
    """Hash every object of the index in force on the store: snapshot, segments, journal; returns its view.

    Raises:
        IntegrityError: an object is missing or was changed; the message names it.
        InputError: there is no index, or the store cannot be read.
    """
    view = here(place)
    names = {f"snapshots/{view.name}.json": view.name}
    stored = json.loads(read_known(view / "snapshots" / f"{view.name}.json", view.name))
    for entry in stored["segments"]:
        names |= {f"segments/{entry['name']}/{file}": sha256 for file, sha256 in entry["files"].items()}
    leaf = str(stored.get("journal", ""))
    while leaf:
        names[f"journal/{leaf}.json"] = leaf
        leaf = str(json.loads(read_known(view / "journal" / f"{leaf}.json", leaf))["previous"])

    def check(name: str) -> None:
        if storage.digest_of(place, name) != names[name]:
            raise IntegrityError("does not match its recorded sha256", where=str(place / name), fix=RESTORE)

    for _ in storage.each(place, check, names):
        pass
    return view


def beside(index: Path, name: str) -> Path:
    """A file beside an index, as a path on this machine; for one that is not there, a path where nothing is.

    Raises:
        InputError: the store cannot be read.
    """
    if not storage.is_remote(index) or storage.entry_of(index, name) is not None:
        return local_copy(index / name)
    return _views(index) / "none" / name


def _views(place: Path) -> Path:
    return cache_folder() / "indexes" / hashlib.sha256(str(place).encode()).hexdigest()[:32]


def _remember(place: Path) -> None:
    note, text = _views(place) / "uri", str(place).encode()
    with suppress(OSError):
        if note.read_bytes() == text:
            return
    storage.write_file(note.parent, note.name, text)


def _fill(place: Path, digest: str, work: Path) -> None:
    """Fetch what a snapshot names, each file against its digest."""
    path = work / "snapshots" / f"{digest}.json"
    download(place, f"snapshots/{digest}.json", path, sha256=digest)
    try:
        stored = json.loads(read_known(path, digest))
        entries: Sequence[Mapping[str, Any]] = stored["segments"]
        leaf = str(stored.get("journal", ""))
        (work / "segments").mkdir()
        for entry in entries:
            kept = _segment(place, entry)
            (work / "segments" / str(entry["name"])).symlink_to(kept, target_is_directory=True)
        while leaf:
            leaf = str(json.loads(_leaf(place, leaf, work))["previous"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"is not a snapshot of an index ({type(error).__name__}: {error})"
        raise IntegrityError(what, where=f"{place}/snapshots/{digest}.json", fix=RESTORE) from None
    (work / CURRENT).write_text(f"{digest}\n", encoding="utf-8")


def _segment(place: Path, entry: Mapping[str, Any]) -> Path:
    name, files = str(entry["name"]), dict(entry["files"])
    if "/" in name or name.startswith(".") or any("/" in file for file in files):
        raise ValueError(f"{name!r} is no name of a segment")
    # By the digests of its files: a name alone could be another index's.
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]

    def fetch(work: Path) -> None:
        for file, sha256 in files.items():
            download(place, f"segments/{name}/{file}", work / file, sha256=sha256)

    return kept_as(cache_folder() / "segments" / key, fetch, where=str(place))


def _leaf(place: Path, leaf: str, work: Path) -> bytes:
    """A leaf of the journal, put into a view; each is fetched once on a machine."""
    known = cache_folder() / "leaves"
    path = work / "journal" / f"{leaf}.json"
    try:
        content = read_known(known / path.name, leaf)
    except IntegrityError:  # not here yet
        download(place, f"journal/{path.name}", path, sha256=leaf)
        content = path.read_bytes()
        storage.write_file(known, path.name, content)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return content


def _incomplete(place: Path, entry: Mapping[str, Any]) -> bool:
    there = {file.name for file in storage.entries(place, f"segments/{entry['name']}")}
    return not set(entry["files"]) <= there


def _upload(place: Path, name: str, folder: Path) -> None:
    with (folder / name).open("rb") as source:
        storage.write_from(place, name, lambda sink: shutil.copyfileobj(source, sink, 2**22))
