"""``clearance init``: the files of a first run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson, a_local_path
from jobs.console import say, say_json

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; made if it is missing.", parser=a_local_path)]
Model = Annotated[
    str, typer.Option(metavar="FOLDER|ID", help="Your model: a diffusers folder or a hub id; stickers: the embedded one.")
]
Index = Annotated[str, typer.Option(metavar="FOLDER", help="Your index of what must not be copied.")]
Prompts = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="Your prompts, in place of an example; may be given again.")
]


def init(
    folder: Folder = Path("clearance-run"), model: Model = "stickers", index: Index = "", prompts: Prompts = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Write a run file, a policy and prompts to begin with, with comments. Overwrites nothing."""
    from jobs.init import Options
    from jobs.init import init as write
    from pipeline.model.device import native_dtype

    written = write(folder, Options(model=model, index=index, prompts=tuple(prompts or ()), dtype=native_dtype()))
    if json:
        return say_json({"written": [str(path) for path in written]})
    for path in written:
        say(f"written: {path}")
    say(f"next: clearance run {written[0]} --dry-run")
    return None
