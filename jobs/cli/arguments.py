"""Arguments that several commands take: a run file, a run folder, ``--json``; and how they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from index.errors import InputError

if TYPE_CHECKING:
    from jobs.run.dataset.chain import Chain
    from pipeline.config import RunConfig
    from pipeline.keys import Keys


def a_place(text: str | Path) -> Path:
    """An argument that may be a URI: ``s3://bucket/folder`` is no local path."""
    from index.storage import is_uri, place

    return place(str(text)) if is_uri(str(text)) else Path(text)


def a_local_path(text: str | Path) -> Path:
    """An argument that is written or read on this machine alone.

    Raises:
        InputError: it is a URI.
    """
    from index.storage import is_uri, place

    if is_uri(str(text)):
        if str(text).lower().startswith("file://"):
            return place(str(text))
        shown = str(text).partition("?")[0].rpartition("@")[2]
        raise InputError("this has to be on this machine", where=shown, fix="Name a local or mounted path, and copy it")
    return Path(text)


Runner = Literal["local", "ray"]
NAME_A_RUN = "Name the --out folder of a run, or its run file"
RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.", show_default=False, parser=a_local_path)]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run folder or its URI, or the run file that names it.", show_default=False, parser=a_place
    ),
]
IndexFolder = Annotated[
    Path, typer.Argument(metavar="INDEX", help="An index folder, or its URI.", show_default=False, parser=a_place)
]
KeysFolder = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FOLDER",
        help="Folder of keys; by default the run file's, or that of CLEARANCE_KEYS.",
        parser=a_local_path,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, and everything else to stderr.")]
By = Annotated[str, typer.Option("--by", metavar="ROLE", help="The role that does it, as in counsel.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stays in the run's events.", show_default=False)]
Person = Annotated[str, typer.Option("--person", help="Pseudonym of the person, if it is to be recorded.")]


def read_run_file(path: Path) -> tuple[RunConfig, Path]:
    """The run file and the folder that its paths start from; a model folder beside it becomes an absolute path.

    A path that begins with ``~`` starts from the home folder.
    """
    from pipeline.config import RunConfig
    from pipeline.policy import Policy
    from pipeline.settings import read_toml

    config = read_toml(RunConfig, path, other=Policy, other_name="policy")
    base = path.resolve().parent
    model = os.path.expanduser(config.model.path)
    if model != "stickers" and (base / model).exists():  # a file is refused as one: it is no hub's id
        model = str(base / model)
    adapters = tuple(replace(adapter, path=os.path.expanduser(adapter.path)) for adapter in config.adapters)
    paths: dict[str, Any] = {name: os.path.expanduser(getattr(config, name)) for name in ("index", "policy")}
    paths["prompts"] = tuple(map(os.path.expanduser, config.prompts))
    marks = replace(config.marks, keys=os.path.expanduser(config.marks.keys))
    return replace(config, **paths, model=replace(config.model, path=model), adapters=adapters, marks=marks), base


def run_folder(run: Path) -> tuple[Path, Path | None]:
    """The run folder, and the folder of the run file that names it (None when the folder itself was named).

    Raises:
        InputError: there is none, or several runs are named and the command takes one.
    """
    chain, folder, base = runs_named(run)
    if chain is not None:
        what = f"names a data set of {len(chain.members)} runs, and this command takes one run"
        raise InputError(what, where=str(run), fix=f"Name one of them; the latest is {chain.last.folder}")
    return folder, base


def runs_named(run: Path) -> tuple[Chain | None, Path, Path | None]:
    """What a RUN names: the runs of a data set where there are several (else None), a run folder, the run file's folder.

    A folder of runs names its data set. So does a run file whose ``out`` has a placeholder. A damaged run is one as long as one
    of its own files is there: it is never looked into for another, which would be shown in its place.

    Raises:
        InputError: it is no folder, or one that holds nothing of a run.
        IntegrityError: a run of the set was changed, or has lost its plan.
    """
    from index.storage import entry_of, is_folder, is_remote
    from jobs.run.dataset.chain import Chain, latest, runs_inside
    from pipeline.audit.shards import COMMITS

    base = None
    if not is_remote(run) and run.suffix == ".toml" and run.is_file():
        from jobs.run.dataset.out import Out

        config, base = read_run_file(run)
        out = Out.of(config.out, base, config.dataset_id)
        run = out.folder
        if out.pattern:
            there = out.runs()
            if (last := latest(there)) is None:
                raise InputError("there is no run yet", where=str(run / out.pattern), fix="Run it first: clearance run")
            chain = Chain.of(last, there)
            return (chain if len(chain.members) > 1 else None), chain.last.folder, base
    if not is_folder(run):
        what = "is a file, not a run folder" if not is_remote(run) and run.is_file() else "there is no such run folder"
        raise InputError(what, where=str(run), fix=NAME_A_RUN)
    if _is_run(run):
        return None, run, base
    if inside := runs_inside(run, told=_passed_over):
        chain = Chain.inside(run, inside)
        return (chain if len(chain.members) > 1 else None), chain.last.folder, base
    if entry_of(run, COMMITS) is None:
        # An empty queue, no hold and nothing to show would be said of whatever folder a slip names.
        raise InputError("not a run folder (no plan.json)", where=str(run), fix=NAME_A_RUN)
    return None, run, base


def _is_run(folder: Path) -> bool:
    """Whether who names a folder names a run, however damaged, or one that is just beginning."""
    from index.storage import entry_of
    from pipeline.audit.binding import REQUESTS_FILE
    from pipeline.audit.coverage import holds_run

    return holds_run(folder) or entry_of(folder, REQUESTS_FILE) is not None


def every_run(named: Sequence[str]) -> list[str]:
    """Runs by name; a folder of runs stands for all of them, damaged ones too, so that a claim reaches or names every one.

    A link to nothing beside the runs is in the list too, and so is a folder that cannot be read: each may be a run, and is
    named as not reached.

    Raises:
        InputError: a run lies one folder deeper than those of a folder of runs, and no name reaches it.
    """
    from index.storage import is_folder
    from jobs.run.dataset.chain import left_out, look_inside

    found: list[str] = []
    deeper: list[Path] = []
    for name in named:
        folder = a_place(name)
        try:
            inside = look_inside(folder) if is_folder(folder) and not _is_run(folder) else None
        except InputError:  # whoever looks at it as a run says why, and looks at the others
            inside = None
        if inside is None or not (inside.runs or inside.unread):
            found.append(name)
            continue
        found += map(str, (*inside.runs, *inside.lost, *inside.unread))
        for path in inside.of_disk:
            _passed_over(path)
        deeper += inside.deeper
    # All names count: `--runs runs --runs runs/archive` misses no run in either.
    reached = {os.path.realpath(str(a_place(name))) for name in found}
    for one in deeper:
        if os.path.realpath(str(one)) not in reached:
            raise left_out(
                one, fix=f"Name {one.parent} too, as a folder of runs of its own, or move its runs beside the others"
            )
    return found


def _passed_over(folder: Path) -> None:
    """Say that a folder beside runs was not looked into."""
    from jobs.console import say_note
    from pipeline.notes import Note

    say_note(Note("folder", f"{folder} cannot be read and is passed over: it is the file system's own, and no run"))


def keys_of(run: Path, named: Path | None) -> Keys:
    """The keys of a deployment: the folder named, else the run file's where ``run`` is one, else the environment's.

    Raises:
        ConfigError: there is no such folder, or it lies in a run.
    """
    from index.storage import is_remote
    from pipeline.keys import Keys

    if named is not None:
        return Keys.find(str(named.absolute()), base=Path.cwd())
    if not is_remote(run) and run.suffix == ".toml" and run.is_file():
        config, base = read_run_file(run)
        return Keys.find(config.marks.keys, base=base)
    return Keys.find(base=Path.cwd())
