"""``clearance index …``: build, change and search the reference index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.counted import counted
from index.errors import InputError
from index.storage import entry_of, is_remote
from jobs.cli.arguments import IndexFolder, a_place
from jobs.cli.index_arguments import (
    AllowDownload,
    AsJson,
    Columns,
    EmbedderName,
    KeepPictures,
    LeaveOut,
    OfIndex,
    PictureColumn,
    Pretrained,
    References,
    RightsBasis,
    open_embedder,
    open_index,
    reading,
    works_of,
)
from jobs.cli.index_tables import intake_data, intake_lines
from jobs.cli.index_vectors import add_vectors, build_of_vectors, holds_vectors, say_vectors
from jobs.console import busy, make_console, say, say_json
from jobs.group import group
from jobs.run.progress import Steps

if TYPE_CHECKING:
    from index.collect import Works
    from index.embed import OpenCLIPEmbedder
    from index.store import ReferenceIndex

app = group("The reference index: what must not be copied.")


@app.command("build", epilog="Example: clearance index build references/ --out index")
def index_build(
    references: References,
    out: Annotated[
        Path, typer.Option(help="Folder or URI for the index; new, empty, or where a build was stopped.", parser=a_place)
    ] = Path("index"),
    rights_basis: RightsBasis = "claim",
    keep_pictures: KeepPictures = None,
    column: Columns = None,
    picture_column: PictureColumn = "",
    leave_out: LeaveOut = False,
    embedder: EmbedderName = "stickers",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Build a reference index from pictures; called again after a stop, it continues."""
    from index.store import ReferenceIndex

    if entry_of(out, "CURRENT") is not None:
        raise InputError("already holds an index", where=str(out), fix="Add to it (clearance index add), or name a new folder")
    if not is_remote(out) and not is_remote(references) and references.resolve() in out.resolve().parents:
        fix = "Name a folder outside with --out: who reads the works again would take the index's own files for works"
        raise InputError(f"lies in the folder of the works, {references}", where=str(out), fix=fix)
    how = reading(rights_basis, keep_pictures, column, picture_column, leave_out)
    if holds_vectors(references):
        taken_in = build_of_vectors(references, out, how, open_embedder(None, embedder, pretrained, allow_download))
        say_vectors(taken_in, as_json=as_json)
        return
    works = works_of(references, how)
    model = open_embedder(None, embedder, pretrained, allow_download)
    with _going_on(), Steps(make_console(stderr=True), "embedding", works.total) as steps:
        index = ReferenceIndex.build(out, steps.over(works, lambda: works.seen.pictures), model)
    if as_json:
        say_json({"index": str(out), **intake_data(index, works)})
        return
    seen, taken = works.seen, index.taken
    frames = f" with {counted(seen.frames, 'further frame')}" if seen.frames else ""
    repeated = f"{counted(len(taken.duplicates), 'duplicate')}, {len(seen.left_out)} left out"
    counts = f"{counted(seen.pictures, 'picture')}{frames}, {counted(len(index), 'reference')}, {repeated}"
    say(f"{out}: {counts}; index {index.index_id}")
    for line in intake_lines(index, works):
        say(line)
    kept = index.kept
    if kept < len(index):
        say(f"{len(index) - kept} of them without their picture (keep_picture): copies are found, but not steered away from")


@app.command("add", epilog="Example: clearance index add index/ new-claims/")
def index_add(
    index: IndexFolder,
    references: References,
    rights_basis: RightsBasis = "claim",
    keep_pictures: KeepPictures = None,
    column: Columns = None,
    picture_column: PictureColumn = "",
    leave_out: LeaveOut = False,
    embedder: OfIndex = "",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Add references to an index; it gets a new id. A picture it has already becomes stricter, never freer."""
    store = open_index(index)
    how = reading(rights_basis, keep_pictures, column, picture_column, leave_out)
    if holds_vectors(references):
        taken_in = add_vectors(references, store, how, open_embedder(store, embedder, pretrained, allow_download))
        say_vectors(taken_in, as_json=as_json)
        return
    works = works_of(references, how)
    model = open_embedder(store, embedder, pretrained, allow_download)
    before = store.index_id
    with _going_on(), Steps(make_console(stderr=True), "embedding", works.total) as steps:
        store.add(steps.over(works, lambda: works.seen.pictures), model)
    if as_json:
        say_json({"index": str(index), "before": before, **intake_data(store, works)})
        return
    new, given = len(store.taken.new), len(store.taken.ref_ids)
    say(f"{index}: {new} of {given} references are new, index {before} is now {store.index_id}")
    for line in intake_lines(store, works):
        say(line)


@app.command("retire", epilog="Example: clearance index retire index/ 3f9a0c --reason 'claim withdrawn'")
def index_retire(
    index: IndexFolder,
    ref_ids: Annotated[
        list[str],
        typer.Argument(metavar="REF_ID...", help="References to retire; the beginning of an id is enough.", show_default=False),
    ],
    reason: Annotated[str, typer.Option(help="The reason; kept in the index's history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Retire references: they match no more, and stay on record."""
    store = open_index(index)
    before = store.index_id
    full = [store.full_id(ref_id) for ref_id in ref_ids]
    store.retire(full, reason=reason)
    if as_json:
        say_json({"index": str(index), "retired": full, "before": before, "index_id": store.index_id})
        return
    say(f"{index}: {counted(len(ref_ids), 'reference')} retired, index {before} is now {store.index_id}")


@app.command("set-status", epilog="Example: clearance index set-status index/ 3f9a0c allowed --reason 'licence bought'")
def index_set_status(
    index: IndexFolder,
    ref_id: Annotated[
        str, typer.Argument(metavar="REF_ID", help="The reference; the beginning of its id is enough.", show_default=False)
    ],
    status: Annotated[str, typer.Argument(metavar="STATUS", help="active, disputed, allowed or retired.", show_default=False)],
    reason: Annotated[str, typer.Option(help="The reason; kept in the index's history.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Correct the status of one reference; setting it back undoes it."""
    store = open_index(index)
    if not reason.strip():
        raise InputError("is empty", where="--reason", fix="Write why the status changes")
    full, before = store.full_id(ref_id), store.index_id
    was = store.set_status(full, status, reason.strip())
    if as_json:
        data = {"ref_id": full, "status_before": was, "status": status, "before": before, "index_id": store.index_id}
        say_json({"index": str(index), **data})
    elif was == status:
        say(f"{index}: {full} is {status} already")
    else:
        say(f"{index}: {full} was {was} and is {status}, index {before} is now {store.index_id}")


@app.command("renew", epilog="Example: clearance index renew index/")
def index_renew(index: IndexFolder, as_json: AsJson = False) -> None:
    """Write what earlier versions wrote in today's form, which opens at once and is searched better; the works stay."""
    store = open_index(index)
    before = store.index_id
    with busy("writing the index in today's form"):
        renewed = store.renew()
    if as_json:
        say_json({"index": str(index), "segments_renewed": len(renewed), "before": before, "index_id": store.index_id})
    elif not renewed:
        say(f"{index}: is in today's form already")
    else:
        changed = "keeps its id" if before == store.index_id else f"was {before} and is {store.index_id}: calibrate it again"
        say(f"{index}: {counted(len(renewed), 'segment')} written anew; the index {changed}")


@app.command("search", epilog="Example: clearance index search index/ picture.png --k 5")
def index_search(
    index: IndexFolder,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE...", help="Pictures or folders to look up, or beginnings of reference ids.", show_default=False
        ),
    ],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="References to show per picture.")] = 5,
    embedder: OfIndex = "",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Find the references nearest to pictures, or to a reference."""
    from rich.table import Table

    store = open_index(index)
    queries = {name: works_of(Path(name), None) if os.path.lexists(name) else store.full_id(name) for name in pictures}
    model = None
    if any(not isinstance(query, str) for query in queries.values()):
        model = open_embedder(store, embedder, pretrained, allow_download)
        store.require_embedder(model.embedder_id)
    rows = [row for name, query in queries.items() for row in _neighbours(store, model, name, query, k)]
    if as_json:
        say_json([dict(zip(("picture", "similarity", "title", "status", "ref_id"), row, strict=True)) for row in rows])
        return
    table = Table("picture", "similarity", "title", "status", "ref_id")
    for each in table.columns:
        each.overflow = "fold"
    for name, similarity, *told in rows:
        table.add_row(name, f"{similarity:.4f}", *told)
    make_console().print(table)


def _neighbours(
    store: ReferenceIndex, model: OpenCLIPEmbedder | None, name: str, query: Works | str, k: int
) -> Iterator[tuple[str, float, str, str, str]]:
    from index.embed import embed_each

    if isinstance(query, str):
        vector = store.embedding(query)
        own = store.compare(vector, query)
        others = [match for match in store.search(vector[None], k + 1)[0] if match.ref_id != query]
        yield from ((query, m.similarity, m.title, m.status, m.ref_id) for m in [own, *others[:k]])
        return
    assert model is not None
    works = iter(query)
    while block := list(islice(works, 64)):
        found = store.search(embed_each(model, [work.picture for work in block]), k)
        for work, matches in zip(block, found, strict=True):
            shown = name if os.path.isfile(name) and work.origin == Path(name).name else f"{name}: {work.origin}"
            yield from ((shown, m.similarity, m.title, m.status, m.ref_id) for m in matches)


@contextmanager
def _going_on() -> Iterator[None]:
    """Print, when it is stopped, how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("What was embedded is kept; the same command continues it") from None
