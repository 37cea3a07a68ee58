"""Export a run: selected, written under a temporary name, and named when it is whole.

On an object store nothing can be renamed: an export is written on this machine's disk, then its files are put, and last
``export.json``. A folder without that file holds no export.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import storage
from index.errors import ClearanceError, InputError
from index.storage import cannot_write, is_remote, require_writable
from jobs.export.card import About, croissant, export_card
from jobs.export.exported import Exported
from jobs.export.formats import format_named
from jobs.export.select import Item, Mark, Selection, Source
from pipeline.audit.binding import PLAN_FILE
from pipeline.audit.coverage import CARD_FILE
from pipeline.audit.ledger import sample_rows, scan_statement, stated_roots
from pipeline.audit.requests import Row

if TYPE_CHECKING:
    from pipeline.keys import Keys
    from pipeline.marking.mark import MarkedPicture
    from pipeline.marking.markers import Markers

MANIFEST, CROISSANT = "export.json", "croissant.json"
UNFINISHED = "unfinished"  # on an object store: the name that an export takes first, and gives up when it is whole


def export_run(
    run: Path | Sequence[Source],
    to: Path,
    *,
    format: str = "parquet",
    only: str = "accepted",
    columns: Sequence[str] | None = None,
    keys: Keys | None = None,
    on_sample: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Export samples of a run into a new folder.

    Args:
        run: the run folder; or the runs of a data set in their order, marked by this function.
        to: the folder to make, or one on an object store; it must not be there, or be empty.
        format: see :mod:`jobs.export.formats`.
        only, columns: see :class:`jobs.export.select.Selection`.
        keys: marks pictures of samples that were accepted in review. Without those of the run they get fewer marks than the
            pictures that it released: the result, its card and ``export.json`` say so.
        on_sample: called with the number of samples written and of those selected.

    Raises:
        InputError: ``to`` is taken or lies in the run; no sample is selected; an unknown format, outcome or column.
        IntegrityError: the events were changed, or a picture is not the one that its row states.
        RunStopped: it cannot be written; nothing is left then.
    """
    kind = format_named(format)
    to = to if is_remote(to) else Path(os.path.abspath(to))
    runs = [Source(folder=run)] if isinstance(run, Path) else list(run)
    last = runs[-1].folder
    for one in runs:
        _require_free(one.folder, to)
    fewer: Counter[str] = Counter()
    selection = Selection([replace(one, mark=marker_of(one.folder, keys, fewer)) for one in runs], only, columns)
    if not selection.total:
        fix = "Choose others with --only; `clearance status` shows how the samples ended"
        raise InputError(f"no sample is {only} now", where=str(last), fix=fix)
    require_writable(to)
    written = 0

    def counted() -> Iterator[Item]:
        nonlocal written
        for item in selection.items():
            yield item
            written += 1
            on_sample(written, selection.total)

    with _made(to) as folder:
        kind.write(counted(), selection.schema, folder)
        about = About.of(last, scan_statement(last)[0])
        every = [
            {"run_id": About.of(f, scan_statement(f)[0]).run_id, "roots": stated_roots(f)} for f in (r.folder for r in runs)
        ]
        several = len(runs) > 1
        exported = Exported(
            folder=to, format=format, only=only, run_id=about.run_id, roots={} if several else stated_roots(last),
            samples=written, left_out=dict(selection.left_out), columns=tuple(selection.names),
            files=tuple(_files(folder)), runs=tuple(every) if several else (), fewer_marks=dict(sorted(fewer.items())),
        )  # fmt: skip
        (folder / CARD_FILE).write_text(export_card(about, exported, kind), encoding="utf-8")
        data = croissant(about, selection.schema, kind, exported.files)
        (folder / CROISSANT).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (folder / MANIFEST).write_text(json.dumps(exported.plain(), indent=1) + "\n", encoding="utf-8")
    return exported


OTHER_SIGNER = "C2PA manifest of the run's signer"


def marker_of(run: Path, keys: Keys | None, fewer: Counter[str] | None = None) -> Mark:
    """What marks the kept picture of a sample that was accepted in review, as the run marks those that it releases.

    ``fewer`` counts, by mark, the pictures that lack what those released by the run carry, because its keys are not at hand.
    """
    statement, _ = scan_statement(run)
    found = (statement or {}).get("predicate")
    predicate: dict[str, Any] = found if isinstance(found, dict) else {}

    @cache
    def markers() -> Markers:
        from pipeline.config import MarksConfig
        from pipeline.keys import Keys
        from pipeline.marking.markers import open_markers
        from pipeline.settings import from_dict

        marks = {name: value for name, value in (predicate.get("config") or {}).get("marks", {}).items() if name != "keys"}
        return open_markers(from_dict(MarksConfig, marks, where="marks"), keys or Keys())

    @cache
    def of_the_run() -> Mapping[str, Any]:
        unsealed = not predicate and storage.entry_of(run, PLAN_FILE) is not None
        stated = (storage.read_object(run, PLAN_FILE) if unsealed else predicate).get("identity")
        return stated if isinstance(stated, dict) else {}

    @cache
    def of_another() -> bool:
        """Whether the run's pictures are signed, and by somebody else. A renewed certificate is the same signer's."""
        from pipeline.marking.c2pa import is_of_signer

        signer = markers().signer
        ids = {row["c2pa_key_id"] for row in sample_rows(run, ["c2pa_key_id"]) if row["c2pa_key_id"]}
        if signer is None or not ids or signer.key.key_id in ids:
            return False
        for row in sample_rows(run, ["c2pa_key_id", "image"]):
            data = (row["image"] or {}).get("bytes")
            if row["c2pa_key_id"] in ids and data:
                if is_of_signer(data, signer.key):
                    return False
                ids.discard(row["c2pa_key_id"])
            if not ids:
                break
        return True

    def mark_kept(data: bytes, row: Row) -> MarkedPicture:
        from pipeline.marking.encode import decode
        from pipeline.marking.mark import Origin, mark
        from pipeline.marking.watermark import run_tag

        model = predicate.get("model") or {}
        version = model.get("revision") or (f"sha256:{model['digest'][:16]}" if model.get("digest") else "")
        software = f"Clearance {predicate.get('software_version', '')}".strip()
        plan = str(predicate.get("plan_sha256", ""))
        origin = Origin(str(model.get("id", "")), version, software, run_tag(plan) if plan else 0)
        file = mark(decode(data)[0], str(predicate.get("image_format", "webp")), origin, markers())
        if fewer is not None:
            fewer.update(_lacking(file, of_the_run()))
            if file.c2pa_key_id and of_another():
                fewer[OTHER_SIGNER] += 1
        return file

    return mark_kept


def _lacking(file: MarkedPicture, of_the_run: Mapping[str, Any]) -> Iterator[str]:
    """The marks that the pictures released by a run carry, by its plan's parts, and a file does not."""
    from pipeline.marking.markers import SIGNED, WATERMARK_KEY
    from pipeline.marking.watermark import PUBLIC_KEY, key_id

    if of_the_run.get(SIGNED) and not file.c2pa_key_id:
        yield "C2PA manifest"
    secret = of_the_run.get(WATERMARK_KEY, key_id(PUBLIC_KEY)) not in (key_id(PUBLIC_KEY), file.watermark_key_id)
    if secret and file.watermark_scheme:  # a small or flat picture gets no watermark, with whatever key
        yield "watermark with the run's key"


@contextmanager
def _made(to: Path) -> Iterator[Path]:
    """A folder to fill. All of it becomes ``to`` at the end; where something fails, nothing of it stays."""
    scratch = tempfile.mkdtemp(prefix="clearance-export-") if is_remote(to) else to.parent
    temporary = Path(scratch) / f".{to.name}.unfinished-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if is_remote(to):
            _put(temporary, to)
            return
        if to.is_dir():
            to.rmdir()  # it is empty
        temporary.rename(to)
    except OSError as error:
        raise cannot_write(error, scratch if is_remote(to) else to) from error
    finally:
        shutil.rmtree(scratch if is_remote(to) else temporary, ignore_errors=True)


def _put(written: Path, to: Path) -> None:
    """Put the files of an export into a folder on an object store, the manifest last.

    Raises:
        InputError: another export began there meanwhile.
        RunStopped: the object store failed; what was put is removed again, as far as it lets.
    """
    names = [path.relative_to(written).as_posix() for path in sorted(written.rglob("*")) if path.is_file()]
    put: list[str] = []
    try:
        if not storage.create_once(to, UNFINISHED, b""):
            raise InputError("another export writes there", where=str(to), fix="Name a new folder with --to")
        put.append(UNFINISHED)
        for name in sorted(names, key=lambda name: name == MANIFEST):
            put.append(name)  # the answer to a put may be lost when the object is there
            with (written / name).open("rb") as source:
                storage.write_from(to, name, partial(shutil.copyfileobj, source))
    except BaseException:
        with suppress(ClearanceError):
            storage.remove_all(to, reversed(put), fix="Remove them")
        raise
    storage.remove(to, UNFINISHED)


def _require_free(run: Path, to: Path) -> None:
    inside = run.resolve() in (to.resolve(), *to.resolve().parents)
    if inside:
        raise InputError("lies in the run folder", where=str(to), fix="Name a folder outside it with --to")
    if is_remote(to):
        there = sorted(entry.name for entry in storage.entries(to))
        if UNFINISHED in there and MANIFEST not in there:
            fix = f"Remove it when no export writes there any more (its mark is {to / UNFINISHED}), or name a new folder"
            raise InputError("holds an export that is not finished", where=str(to), fix=fix)
        taken = bool(there)
    else:
        taken = to.exists() and (not to.is_dir() or any(to.iterdir()))
    if taken:
        raise InputError("is there already, and nothing is overwritten", where=str(to), fix="Name a new folder with --to")


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        yield {"path": path.relative_to(folder).as_posix(), "sha256": sha256, "bytes": path.stat().st_size}
