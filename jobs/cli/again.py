"""What the commands share that look at finished runs again: their options, the index's embedder, a line of progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import a_local_path, a_place
from jobs.console import busy, make_console

if TYPE_CHECKING:
    from index.embed import OpenCLIPEmbedder
    from index.store import ReferenceIndex
    from jobs.reaudit.reach import Progress

Index = Annotated[Path | None, typer.Option(help="The index folder, or its URI.", show_default=False, parser=a_place)]
Receipts = Annotated[Path, typer.Option("--receipts", help="Folder that the receipt is written to.", parser=a_local_path)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look, and change nothing: neither the index nor a run.")]
EveryPicture = Annotated[
    bool,
    typer.Option("--every-picture", help="Look at every stored picture in full, not only at those whose embeddings come near."),
]
By = Annotated[str, typer.Option("--by", metavar="ROLE", help="The role that does it.")]
EVERY = 100_000  # embeddings between two lines of progress
LOOKS = 512  # samples that are looked at in full between two of them: half a minute or so


def open_embedder(store: ReferenceIndex, name: str) -> OpenCLIPEmbedder:
    """The embedder that the index is bound to.

    Raises:
        ModelError: it cannot be opened. IndexMismatch: it is another one.
    """
    from index.bound_embedder import embedder_of

    with busy("loading the embedder"):
        return embedder_of(store, name)


@contextmanager
def watching() -> Iterator[Progress]:
    """Print, on stderr, how far it is with a large run; and, when it is stopped, how to continue."""
    console, said = make_console(stderr=True), Counter[tuple[str, int]]()

    def progress(run: str, compared: int, looked: int, near: int) -> None:
        if compared // EVERY > said[run, EVERY]:
            said[run, EVERY] = compared // EVERY
            console.print(f"{run}: {compared} embeddings compared", soft_wrap=True)
        if near >= LOOKS and 1 + looked // LOOKS > said[run, LOOKS]:
            said[run, LOOKS] = 1 + looked // LOOKS
            console.print(f"{run}: {looked} of {near} samples that came near are looked at", soft_wrap=True)

    try:
        yield progress
    except KeyboardInterrupt:
        raise KeyboardInterrupt("What is done stays done; the same command does the rest") from None
