"""Arguments that several commands take: a run file, a run folder, ``--json``; and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from index.errors import InputError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.keys import Keys

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False)]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or the run file that names it.", show_default=False)
]
KeysFolder = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FOLDER", help="Folder of keys; by default the run file's, or that of CLEARANCE_KEYS."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, and everything else to stderr.")]
By = Annotated[str, typer.Option("--by", metavar="ROLE", help="The role that does it, as in counsel.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stays in the run's events.", show_default=False)]
Person = Annotated[str, typer.Option("--person", help="Pseudonym of the person, if it is to be recorded.")]


def read_run_file(path: Path) -> tuple[RunConfig, Path]:
    """The run file and the folder that its paths start from; a model folder beside it becomes an absolute path.

    A path that begins with ``~`` starts from the home folder.
    """
    from dataclasses import replace

    from pipeline.config import RunConfig
    from pipeline.settings import read_toml

    config = read_toml(RunConfig, path)
    base = path.resolve().parent
    model = os.path.expanduser(config.model.path)
    if model != "stickers" and (base / model).is_dir():
        model = str(base / model)
    adapters = tuple(replace(adapter, path=os.path.expanduser(adapter.path)) for adapter in config.adapters)
    paths: dict[str, Any] = {name: os.path.expanduser(getattr(config, name)) for name in ("index", "policy")}
    paths["prompts"] = tuple(map(os.path.expanduser, config.prompts))
    marks = replace(config.marks, keys=os.path.expanduser(config.marks.keys))
    return replace(config, **paths, model=replace(config.model, path=model), adapters=adapters, marks=marks), base


def run_folder(run: Path) -> tuple[Path, Path | None]:
    """The run folder, and the folder of the run file that names it (None when the folder itself was named)."""
    base = None
    if run.suffix == ".toml" and run.is_file():
        from jobs.run.plan import local_folder

        config, base = read_run_file(run)
        run = local_folder(config.out, base)
    if not run.is_dir():
        raise InputError("there is no such run folder", where=str(run), fix="Name the --out folder of a run, or its run file")
    return run, base


def keys_of(run: Path, named: Path | None) -> Keys:
    """The keys of a deployment: the folder named, else the run file's where ``run`` is one, else the environment's.

    Raises:
        ConfigError: there is no such folder, or it lies in a run.
    """
    from pipeline.keys import Keys

    if named is not None:
        return Keys.find(str(named.absolute()), base=Path.cwd())
    if run.suffix == ".toml" and run.is_file():
        config, base = read_run_file(run)
        return Keys.find(config.marks.keys, base=base)
    return Keys.find(base=Path.cwd())
