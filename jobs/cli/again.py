"""What the commands share that look at finished runs again: their options, the index's embedder, a line of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import a_local_path, a_place
from jobs.console import busy, make_console

if TYPE_CHECKING:
    from index.embed import OpenCLIPEmbedder
    from index.store import ReferenceIndex

Index = Annotated[Path | None, typer.Option(help="The index folder, or its URI.", show_default=False, parser=a_place)]
Receipts = Annotated[Path, typer.Option("--receipts", help="Folder that the receipt is written to.", parser=a_local_path)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look, and change nothing: neither the index nor a run.")]
EveryPicture = Annotated[
    bool,
    typer.Option("--every-picture", help="Look at every stored picture in full, not only at those whose embeddings come near."),
]
By = Annotated[str, typer.Option("--by", metavar="ROLE", help="The role that does it.")]
EVERY = 100_000  # samples between two lines of progress


def open_embedder(store: ReferenceIndex, name: str) -> OpenCLIPEmbedder:
    """The embedder that the index is bound to.

    Raises:
        ModelError: it cannot be opened. IndexMismatch: it is another one.
    """
    from index.bound_embedder import embedder_of

    with busy("loading the embedder"):
        return embedder_of(store, name)


@contextmanager
def watching() -> Iterator[Callable[[str, int], None]]:
    """Print, on stderr, how many embeddings of a large run are compared; and, when it is stopped, how to continue."""
    console, said = make_console(stderr=True), dict[str, int]()

    def progress(run: str, compared: int) -> None:
        if compared // EVERY > said.get(run, 0):
            said[run] = compared // EVERY
            console.print(f"{run}: {compared} embeddings compared", soft_wrap=True)

    try:
        yield progress
    except KeyboardInterrupt:
        raise KeyboardInterrupt("What is done stays done; the same command does the rest") from None
