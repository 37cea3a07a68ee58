"""``clearance index calibrate``: the threshold from which a picture counts as too near, and what it is worth."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from index.counted import counted
from index.errors import InputError
from index.storage import is_remote, write_file
from jobs.cli.arguments import IndexFolder, a_local_path, a_place
from jobs.cli.index_arguments import (
    AllowDownload,
    AsJson,
    LeaveOut,
    OfIndex,
    Pretrained,
    open_embedder,
    open_index,
    reading,
    works_of,
)
from jobs.cli.index_tables import operating_point
from jobs.console import make_console, say, say_json
from jobs.run.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from index.calibrate import Calibration
    from index.pairs import Pair

app = typer.Typer()


@app.command(
    "calibrate",
    epilog="Example: clearance index calibrate index/ --works references/ --harmless stock-photos/",
)
def index_calibrate(
    index: IndexFolder,
    works: Annotated[
        Path | None, typer.Option(help="The works of the index, for references whose picture it does not keep.", parser=a_place)
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV: picture, reference (file or ref_id), label (copy, near-miss, other).", parser=a_local_path),
    ] = None,
    harmless: Annotated[
        Path | None,
        typer.Option(
            help="Pictures that are no copies, as similar to the works as possible; used without --pairs.", parser=a_place
        ),
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
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="INDEX/calibration.json", parser=a_place)
    ] = None,
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
    store = open_index(index)
    how = reading("claim", None, None, "", leave_out)
    given = works_of(works, how) if works is not None else None
    stock = works_of(harmless, how) if harmless is not None else None
    model = open_embedder(store, embedder, pretrained, allow_download)
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
