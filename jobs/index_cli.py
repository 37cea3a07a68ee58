"""``clearance index …``: build, change, search and calibrate the reference index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import InputError
from jobs.console import busy, grid, make_console, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from index.calibrate import Calibration
    from index.embed import OpenCLIPEmbedder
    from index.pairs import Measured, Pair
    from index.rate import Rate

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The reference index: what must not be copied.")
IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="An index folder.", show_default=False)]
References = Annotated[
    Path,
    typer.Argument(
        metavar="REFERENCES", help="A folder of pictures with metadata.csv, or references.parquet.", show_default=False
    ),
]
EmbedderName = Annotated[str, typer.Option(help='OpenCLIP architecture, "local-dir:FOLDER", or "stickers".')]
Pretrained = Annotated[str, typer.Option(help="OpenCLIP weights: a tag or a file.")]
AllowDownload = Annotated[bool, typer.Option("--allow-download", help="Fetch weights that are not on this machine.")]


@app.command("build", epilog="Example: clearance index build references/ --out index")
def index_build(
    references: References,
    out: Annotated[Path, typer.Option(help="Folder for the index; must not exist yet.")] = Path("index"),
    embedder: EmbedderName = "stickers",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
) -> None:
    """Build a reference index from pictures."""
    from index.collect import read_references
    from index.store import ReferenceIndex

    with busy("reading references"):
        new = read_references(references)
    model = _embedder(embedder, pretrained, allow_download)
    with busy("embedding references"):
        index = ReferenceIndex.build(out, new, model)
    kept = sum(index.picture(reference.ref_id) is not None for reference in index.references())
    say(f"{out}: {len(index)} references from {len(new)} pictures, index {index.index_id}")
    if kept < len(index):
        say(f"{len(index) - kept} of them without their picture (keep_picture): copies are found, but not steered away from")


@app.command("add", epilog="Example: clearance index add index/ new-claims/")
def index_add(
    index: IndexFolder,
    references: References,
    embedder: EmbedderName = "stickers",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
) -> None:
    """Add references to an index; it gets a new id."""
    from index.collect import read_references
    from index.store import ReferenceIndex

    new = read_references(references)
    model = _embedder(embedder, pretrained, allow_download)
    store = ReferenceIndex.open(index, model.embedder_id)
    before, had = store.index_id, len(store)
    with busy("embedding references"):
        store.add(new, model)
    say(f"{index}: {len(store) - had} of {len(new)} references are new, index {before} is now {store.index_id}")


@app.command("retire", epilog="Example: clearance index retire index/ 3f9a0c --reason 'claim withdrawn'")
def index_retire(
    index: IndexFolder,
    ref_ids: Annotated[list[str], typer.Argument(metavar="REF_ID...", help="References to retire.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why; kept in the index's history.")] = "",
) -> None:
    """Retire references: they match no more, and stay on record."""
    from index.store import ReferenceIndex

    store = ReferenceIndex.open(index)
    before = store.index_id
    store.retire(ref_ids, reason=reason)
    say(f"{index}: {len(ref_ids)} references retired, index {before} is now {store.index_id}")


@app.command("search", epilog="Example: clearance index search index/ picture.png --k 5")
def index_search(
    index: IndexFolder,
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="Pictures (or folders of them) to look up.", show_default=False)
    ],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="References to show per picture.")] = 5,
    embedder: EmbedderName = "stickers",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
) -> None:
    """Find the references nearest to pictures."""
    from rich.table import Table

    from index.collect import read_references
    from index.store import ReferenceIndex

    queries = [(path, work) for path in pictures for work in read_references(path)]
    model = _embedder(embedder, pretrained, allow_download)
    store = ReferenceIndex.open(index, model.embedder_id)
    table = Table("picture", "similarity", "title", "status", "ref_id")
    for column in table.columns:
        column.overflow = "fold"
    for path, work in queries:
        [matches] = store.search(model.images(work.picture[None]), k)
        for match in matches:
            told = str(path) if path.is_file() else f"{path}: {work.title}"
            table.add_row(told, f"{match.similarity:.4f}", match.title, match.status, match.ref_id)
    make_console().print(table)


@app.command("calibrate", epilog="Example: clearance index calibrate index/ --harmless stock-photos/ --false-alarms 0.02")
def index_calibrate(
    index: IndexFolder,
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV: picture, reference (file or ref_id), label (copy, near-miss, other)."),
    ] = None,
    harmless: Annotated[
        Path | None, typer.Option(help="Pictures known to be no copies, the more alike the better; used without --pairs.")
    ] = None,
    copies: Annotated[int, typer.Option(min=1, help="Edited copies made of each reference, without --pairs.")] = 4,
    false_alarms: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of harmless pairs that may be flagged.")] = 0.01,
    added: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of harmless pairs that the second look may flag in addition, alone.")
    ] = 0.005,
    seed: Annotated[int, typer.Option(help="Of the edits.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="INDEX/calibration.json")] = None,
    embedder: EmbedderName = "stickers",
    pretrained: Pretrained = "",
    allow_download: AllowDownload = False,
) -> None:
    """Choose the threshold from which a picture counts as too near, and say what it is worth."""
    from rich.progress import track

    from index.calibrate import calibrate
    from index.collect import read_references
    from index.confirm import confirm
    from index.pairs import make_pairs, measure, read_pairs
    from index.store import ReferenceIndex

    if pairs is not None and harmless is not None:
        raise InputError(
            "--pairs and --harmless exclude each other", where="index calibrate", fix="Label the harmless ones too"
        )
    model = _embedder(embedder, pretrained, allow_download)
    store = ReferenceIndex.open(index, model.embedder_id)
    if pairs is not None:
        listed: Iterable[Pair] = (labelled := read_pairs(pairs, store))
        total = len(labelled)
        source = f"{total} labelled pairs of {pairs.name}"
    else:
        works = read_references(harmless) if harmless is not None else []
        listed = make_pairs(store, model, works, copies=copies, seed=seed)
        total = 2 * copies * len(store) + 2 * len(works)  # at most: references without picture make no copies
        source = f"{copies} edited copies of each reference with picture, seed {seed}; {len(works)} harmless pictures"
    measured = measure(
        track(listed, "comparing", total=total, console=make_console(stderr=True), transient=True), model, confirm
    )
    found = calibrate(
        model.embedder_id, measured.cosine, measured.copy, confirm=measured.confirm, index_id=store.index_id,
        max_false_positive_rate=false_alarms, max_added_rate=added, max_vetoed_rate=0.005, source=source,
    )  # fmt: skip
    path = out or index / "calibration.json"
    found.save(path)
    make_console().print(_operating_point(found, measured))
    if found.false_positive_rate.n * false_alarms < 1:
        n = found.false_positive_rate.n
        say(f"note: {n} harmless pairs cannot show a rate of {false_alarms:.2%}; the threshold lies above them all")
    if pairs is None and harmless is None:
        say("note: nothing harmless was given: other works of the index stood in for near misses, which they hardly are")
    say(f"{path}: {found.calibration_id}, used by every run on this index whose policy leaves copies.threshold at 0")


def _operating_point(found: Calibration, measured: Measured) -> Table:
    """What a calibration says, as a table: the operating point, then what other points would give."""
    import numpy as np

    table = grid()

    def told(rate: Rate | None) -> str:
        return (
            "not measured" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}; {rate.hits} of {rate.n})"
        )

    table.add_row("threshold", f"{found.threshold:.4f}")
    table.add_row("copies flagged", told(found.recall))
    table.add_row("harmless flagged", told(found.false_positive_rate))
    table.add_row("copies, and the second look agrees", told(found.confirmed_recall))
    table.add_row("harmless, and the second look agrees", told(found.confirmed_false_positive_rate))
    table.add_row("second look alone suffices from", f"{found.alone_threshold:.4f}, where the cosine is {found.look_from:.4f}")
    table.add_row("second look clears below", f"{found.veto_below:.4f}")
    table.add_row("copies flagged by the whole rule", told(found.either_recall))
    table.add_row("harmless flagged by the whole rule", told(found.either_false_positive_rate))
    table.add_row("average precision", f"{found.average_precision:.4f}")
    for label in dict.fromkeys(measured.label.tolist()):
        mine = measured.cosine[measured.label == label]
        low, middle, high = (float(v) for v in np.quantile(mine, (0.05, 0.5, 0.95)))
        flagged = float((mine >= found.threshold).mean())
        spread = f"median cosine {middle:.3f} (5 to 95 %: {low:.3f} to {high:.3f})"
        table.add_row(label, f"n {len(mine)}, {spread}, flagged {flagged:.1%}")
    for limit in (0.001, 0.01, 0.02, 0.05, 0.1):
        at = float(np.nextafter(np.quantile(measured.cosine[~measured.copy], 1 - limit, method="higher"), np.inf))
        caught = float((measured.cosine[measured.copy] >= at).mean())
        table.add_row(f"at {limit:.1%} harmless", f"threshold {at:.4f}, copies flagged {caught:.1%}")
    return table


@app.command("info", epilog="Example: clearance index info index/")
def index_info(index: IndexFolder) -> None:
    """Say what an index holds, and check its digests."""
    from collections import Counter
    from datetime import UTC, datetime

    from index.store import ReferenceIndex

    store = ReferenceIndex.open(index)
    store.verify()
    references = store.references()
    table = grid()
    table.add_row("index", store.index_id)
    table.add_row("embedder", store.embedder_id)
    table.add_row("references", str(len(store)))
    table.add_row("with picture", str(sum(store.picture(reference.ref_id) is not None for reference in references)))
    for name in ("status", "rights_basis", "licence"):
        counts = Counter(str(getattr(reference, name)) or "not stated" for reference in references)
        table.add_row(name, ", ".join(f"{count} {value}" for value, count in counts.most_common()))
    for entry in store.history():
        at = datetime.fromtimestamp(entry["at"], UTC).isoformat(timespec="seconds")
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        table.add_row(at, f"{entry['event']} {len(entry['ref_ids'])}{reason}")
    make_console().print(table)
    say("digests match")


def _embedder(model: str, pretrained: str, allow_download: bool) -> OpenCLIPEmbedder:
    from index.embed import OpenCLIPEmbedder

    with busy("loading the embedder"):
        return OpenCLIPEmbedder.open(model, pretrained, allow_download=allow_download)
