"""``clearance compact``: the many small files of a finished run become few large parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import AsJson, KeysFolder, RunFolder, keys_of, run_folder
from jobs.console import busy, say, say_json

if TYPE_CHECKING:
    from jobs.by import By
    from pipeline.audit.compact import Compacted
    from pipeline.keys import Keys

ROLE, REASON = "operator", "the shards' small files become large parts"
PartSize = Annotated[int, typer.Option("--part-mb", min=1, help="Size that a part should come to, in MB.", metavar="MB")]


def compact(
    run: RunFolder,
    part_mb: PartSize = 256,
    by: Annotated[str, typer.Option("--by", metavar="ROLE", help="The role that does it.")] = ROLE,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays in the run's events.")] = REASON,
    keys: KeysFolder = None,
    json: AsJson = False,
) -> None:
    """Write the small files of a finished run into large parts. Every digest, proof and signature stays valid.

    The run is verified first, and refused if anything does not match. It takes as much free space as the run has, until the
    small files are removed at the end. A compaction that was stopped is finished by the same command.
    """
    from jobs.by import By as Author

    done = compact_folder(run_folder(run)[0], Author(role=by, reason=reason), keys_of(run, keys), part_mb=part_mb)
    if json:
        say_json(done.plain())
    else:
        say_compacted(done)


def compact_folder(folder: Path, by: By, keys: Keys, *, part_mb: int = 256) -> Compacted:
    """Compact a run, and show on stderr that it goes on."""
    from jobs.compact import compact_run
    from pipeline.salt import secret_salt

    with busy(f"compacting {folder.name}"):
        return compact_run(folder, by, part_bytes=part_mb * 10**6, salt=secret_salt(keys) or None)


def say_compacted(done: Compacted) -> None:
    """What became of the files of a run."""
    size = sum(part.bytes for part in done.parts)
    parts = f"{len(done.parts)} parts with {size / 10**6:,.1f} MB hold the rows of {done.shards:,} shards"
    if done.event is None and not done.removed:
        say(f"{parts}; the run was compacted before, and nothing was left to do")
    else:
        say(f"{parts}; {done.removed:,} small files were removed")
