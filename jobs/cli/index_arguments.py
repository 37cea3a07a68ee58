"""What the commands of ``clearance index`` share: their options, the index, its works and its embedder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import InputError
from jobs.cli.arguments import a_place
from jobs.console import busy

if TYPE_CHECKING:
    from index.collect import Reading, Works
    from index.embed import OpenCLIPEmbedder
    from index.store import ReferenceIndex

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


def open_index(index: Path | None) -> ReferenceIndex:
    """The index that is named.

    Raises:
        InputError: none is named, or there is none.
    """
    from index.store import ReferenceIndex

    if index is None:
        raise InputError("no index is named", where="--index", fix="Name the folder of the reference index")
    return ReferenceIndex.open(index)


def works_of(path: Path, how: Reading | None) -> Works:
    """The works of a source, on this machine or at a URI."""
    from index.collect import Works
    from index.places.cache import local_copy

    with busy("looking at the pictures"):
        return Works(local_copy(path), how)


def reading(
    rights_basis: str, keep_pictures: bool | None, columns: list[str] | None, picture_column: str, leave_out: bool
) -> Reading:
    """How works are read, from the options of a command."""
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


def open_embedder(store: ReferenceIndex | None, model: str, pretrained: str, allow_download: bool) -> OpenCLIPEmbedder:
    """The embedder that an index is bound to; for a new index, the one that is named."""
    from jobs.run.openers import openers

    with busy("loading the embedder"):
        return openers().embedder(store, model, pretrained, allow_download=allow_download)
