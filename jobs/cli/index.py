"""``clearance index …``: build, change, search and calibrate the reference index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from index.counted import counted
from index.errors import InputError
from index.storage import entry_of, is_remote, write_file
from jobs.cli.arguments import IndexFolder, a_place
from jobs.cli.index_tables import intake_data, intake_lines, operating_point
from jobs.cli.index_vectors import add_vectors, build_of_vectors, holds_vectors, say_vectors
from jobs.console import busy, make_console, say, say_json
from jobs.group import group
from jobs.run.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from index.calibrate import Calibration
    from index.collect import Reading, Works
    from index.embed import OpenCLIPEmbedder
    from index.pairs import Pair
    from index.store import ReferenceIndex

app = group("The reference index: what must not be copied.")
References = Annotated[
    Path,
    typer.Argument(
        metavar="REFERENCES",
        help="A folder of pictures, with or without metadata.csv; one picture; a Parquet file, tar or NAME.npy; a URI of one.",
        show_default=False,
        parser=a_place,
    ),
]
RightsBasis = Annotated[
    str, typer.Option(metavar="BASIS", help="For works that state none; licensed works keep their picture.")
]
KeepPictures = Annotated[
    bool | None,
    typer.Option(
        "--keep-pictures/--no-keep-pictures",
        help="For works that state nothing: whether the index keeps a copy, for the second look and for steering away.",
        show_default="as the basis allows",
    ),
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="OURS=THEIRS", help="A column that has another name in the source.")
]
PictureColumn = Annotated[str, typer.Option(help="Parquet: column of the pictures.", show_default="found")]
LeaveOut = Annotated[
    bool, typer.Option("--leave-out", help="Continue without pictures that cannot be read; they are not protected.")
]
EmbedderName = Annotated[
    str, typer.Option(help='"stickers", an OpenCLIP architecture, "local-dir:FOLDER" or "hf-hub:OWNER/NAME".')
]
OfIndex = Annotated[
    str,
    typer.Option("--embedder", help="The place of the index's embedder, if it moved.", show_default="as the index remembers"),
]
Pretrained = Annotated[str, typer.Option(help="OpenCLIP weights: a tag or a file.")]
AllowDownload = Annotated[bool, typer.Option("--allow-download", help="Fetch weights that are not on this machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print data, with every name.")]


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
    how = _reading(rights_basis, keep_pictures, column, picture_column, leave_out)
    if holds_vectors(references):
        taken_in = build_of_vectors(references, out, how, _embedder(None, embedder, pretrained, allow_download))
        say_vectors(taken_in, as_json=as_json)
        return
    works = _works(references, how)
    model = _embedder(None, embedder, pretrained, allow_download)
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
    store = _open(index)
    how = _reading(rights_basis, keep_pictures, column, picture_column, leave_out)
    if holds_vectors(references):
        taken_in = add_vectors(references, store, how, _embedder(store, embedder, pretrained, allow_download))
        say_vectors(taken_in, as_json=as_json)
        return
    works = _works(references, how)
    model = _embedder(store, embedder, pretrained, allow_download)
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
    store = _open(index)
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
    store = _open(index)
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
    store = _open(index)
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

    store = _open(index)
    queries = {name: _works(Path(name), None) if os.path.lexists(name) else store.full_id(name) for name in pictures}
    model = None
    if any(not isinstance(query, str) for query in queries.values()):
        model = _embedder(store, embedder, pretrained, allow_download)
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
    from itertools import islice

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


@app.command(
    "calibrate",
    epilog="Example: clearance index calibrate index/ --works references/ --harmless stock-photos/",
)
def index_calibrate(
    index: IndexFolder,
    works: Annotated[
        Path | None, typer.Option(help="The works of the index, for references whose picture it does not keep.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV: picture, reference (file or ref_id), label (copy, near-miss, other)."),
    ] = None,
    harmless: Annotated[
        Path | None,
        typer.Option(help="Pictures that are no copies, as similar to the works as possible; used without --pairs."),
    ] = None,
    copies: Annotated[int, typer.Option(min=1, help="Edited copies made of each reference, without --pairs.")] = 4,
    false_alarms: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of harmless pairs that may be flagged.")] = 0.02,
    added: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of harmless pairs that the second look may flag in addition, alone.")
    ] = 0.005,
    min_recall: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of copies that must be flagged at least, by the lower end of its interval."),
    ] = 0.5,
    force: Annotated[
        bool, typer.Option("--force", help="Write an operating point even below --min-recall; it stays marked.")
    ] = False,
    second_look: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOOK",
            help="alignment, keypoints or descriptor:FILE; of several the best is chosen. auto: the first two.",
            show_default="auto",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the edits.")] = 0,
    leave_out: LeaveOut = False,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="INDEX/calibration.json")] = None,
    embedder: OfIndex = "",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Choose the threshold from which a picture counts as too near, and measure what it is worth."""
    from index.calibrate import agrees_from, calibrate
    from index.pairs import make_pairs, measure, read_pairs
    from index.second_look import best_of, compared, open_looks, why

    if pairs is not None and (harmless is not None or works is not None):
        other = "--harmless" if harmless is not None else "--works"
        what = f"--pairs and {other} exclude each other"
        raise InputError(what, where="index calibrate", fix="Label the harmless ones too, or leave out --pairs")
    looks = open_looks(second_look or ["auto"], where="--second-look")
    store = _open(index)
    how = _reading("claim", None, None, "", leave_out)
    given = _works(works, how) if works is not None else None
    stock = _works(harmless, how) if harmless is not None else None
    model = _embedder(store, embedder, pretrained, allow_download)
    store.require_embedder(model.embedder_id)
    if pairs is not None:
        listed: Iterable[Pair] = (labelled := read_pairs(pairs, store))
        total, made = len(labelled), None
    else:
        listed = made = make_pairs(store, model, stock or (), works=given or (), copies=copies, seed=seed)
        total = 2 * copies * len(store) + 2 * (stock.total or 0 if stock is not None else 0)  # at most
    with Steps(make_console(stderr=True), "comparing", total) as steps:
        measured = measure(steps.over(listed), model, looks)
    if made is None:
        source = f"{total} labelled pairs of {pairs.name if pairs is not None else ''}"
    else:
        harmless_pictures = stock.seen.pictures if stock is not None else 0
        source = (
            f"{copies} edited copies of each of {len(made.measured)} of {len(store)} references, seed {seed}; "
            f"{harmless_pictures} harmless pictures"
        )
    worth = compared(measured.looks, measured.copy, measured.of)
    seen = measured.looks[look := best_of(worth).look if worth else next(iter(looks))]
    chosen = calibrate(
        model.embedder_id, measured.cosine, measured.copy, confirm=seen, index_id=store.index_id,
        confirm_threshold=agrees_from(look, seen, measured.copy, at_most=added), max_false_positive_rate=false_alarms,
        max_added_rate=added, max_vetoed_rate=0.005, source=source,
    ).looked_by(look, seen, measured.copy, worth)  # fmt: skip
    if not as_json:
        make_console().print(operating_point(chosen, measured))
    unread = [name for some in (given, stock) if some is not None for name, _ in some.seen.left_out]
    found = chosen.held_to(min_recall, force=force)
    path = out or index / "calibration.json"
    _save(found, path)
    if as_json:
        strangers = made.strangers if made is not None else []
        say_json({"file": str(path), **found.summary(), "works_not_in_the_index": strangers, "left_out": unread})
        return
    if unread:
        say(f"note: {counted(len(unread), 'picture')} that cannot be read had no part in it: {', '.join(unread[:5])}")
    if made is not None and len(made.measured) < len(store):
        gap = len(store) - len(made.measured)
        say(f"note: no picture of {gap} references is at hand, so they were not measured; --works names the rest")
    if made is not None and made.strangers:
        say(f"note: {len(made.strangers)} of the works are not in the index: {', '.join(made.strangers[:5])}")
    if found.false_positive_rate.n * false_alarms < 1:
        n = found.false_positive_rate.n
        say(f"note: {n} harmless pairs cannot show a rate of {false_alarms:.2%}; the threshold lies above them all")
    if pairs is None and harmless is None:
        say("note: nothing harmless was given: other works of the index stood in for near misses, which they hardly are")
    say(f"second look: {why(worth) if worth else look + '; no picture was at hand to compare looks with'}")
    if found.forced:
        say(f"note: forced: the threshold flags {found.recall} of the copies, and every report will show it")
    if not _same(path, in_force := index / "calibration.json"):
        say(f"{path}: {found.calibration_id}. No run uses it there: to put it in force, copy it to {in_force}")
        return
    say(f"{path}: {found.calibration_id}, used by every run on this index whose policy sets no copies.threshold")


# --- what the commands share ------------------------------------------------------------------------------------------------


@contextmanager
def _going_on() -> Iterator[None]:
    """Print, when it is stopped, how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("What was embedded is kept; the same command continues it") from None


def _same(one: Path, other: Path) -> bool:
    return str(one) == str(other) or (not (is_remote(one) or is_remote(other)) and one.resolve() == other.resolve())


def _save(found: Calibration, path: Path) -> None:
    """Write a calibration, beside an index on an object store too."""
    if not is_remote(path):
        found.save(path)
        return
    with TemporaryDirectory(prefix="clearance-") as folder:
        found.save(Path(folder) / path.name)
        write_file(path.parent, path.name, (Path(folder) / path.name).read_bytes())


def _open(index: Path) -> ReferenceIndex:
    from index.store import ReferenceIndex

    return ReferenceIndex.open(index)


def _works(path: Path, how: Reading | None) -> Works:
    from index.collect import Works
    from index.places.cache import local_copy

    with busy("looking at the pictures"):
        return Works(local_copy(path), how)


def _reading(
    rights_basis: str, keep_pictures: bool | None, columns: list[str] | None, picture_column: str, leave_out: bool
) -> Reading:
    from index.collect import Reading

    mapped = {}
    for pair in columns or []:
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise InputError(f"{pair!r} names no two columns", where="--column", fix="Write OURS=THEIRS, as title=caption")
        mapped[ours.strip()] = theirs.strip()
    return Reading(
        rights_basis=rights_basis,
        keep_pictures=keep_pictures,
        columns=mapped,
        picture_column=picture_column,
        leave_out=leave_out,
        option="--leave-out",
    )


def _embedder(store: ReferenceIndex | None, model: str, pretrained: str, allow_download: bool) -> OpenCLIPEmbedder:
    from jobs.run.openers import openers

    with busy("loading the embedder"):
        return openers().embedder(store, model, pretrained, allow_download=allow_download)
