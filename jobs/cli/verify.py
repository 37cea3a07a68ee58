"""``clearance verify``: recompute every digest of a run, and say what was checked, what failed and what was skipped."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from index.counted import counted
from index.errors import InputError
from index.printable import visible
from jobs.cli.arguments import AsJson, KeysFolder, a_local_path, a_place, keys_of, run_folder, runs_named
from jobs.cli.dataset import anchored, show_verified
from jobs.console import make_console, say_json

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="PEM",
        help="Public key of who must have signed; a run without a signature fails then.",
        parser=a_local_path,
    ),
]
RootsFile = Annotated[
    Path | None,
    typer.Option(
        "--tsa-roots",
        metavar="PEM",
        help="Root certificates of time stamping authorities you trust; a run without a time stamp fails then.",
        parser=a_local_path,
    ),
]
SaltFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Secret salt of the prompts; without it CLEARANCE_SALT, or that of the folder of keys.",
        parser=a_local_path,
    ),
]
STYLES = {"pass": "green", "fail": "bold red", "skip": "yellow"}


OptionalRun = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN", help="A run folder or its URI, or the run file that names it.", show_default=False, parser=a_place
    ),
]
VerifierFile = Annotated[
    Path | None,
    typer.Option(
        "--write-verifier",
        metavar="FILE",
        help="Write a verifier that needs Python and pyarrow alone, for people who do not install Clearance.",
        parser=a_local_path,
    ),
]


def verify(
    run: OptionalRun = None,
    same_as: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another run: are pixels, findings and decisions the same?", parser=a_place),
    ] = None,
    keys: KeysFolder = None,
    key: KeyFile = None,
    tsa_roots: RootsFile = None,
    salt_file: SaltFile = None,
    *,
    head: Annotated[
        str, typer.Option(metavar="DIGEST", help="Digest of an event that was kept elsewhere: the events must hold it.")
    ] = "",
    write_verifier: VerifierFile = None,
    json: AsJson = False,
) -> None:
    """Recompute every digest of a run, in named stages. Exits with 1 and names the place if one does not match.

    Each stage passes, fails or is skipped, with the reason. What was not looked at is listed.
    """
    from jobs.proof import trust_in
    from jobs.run.verdict import compare_runs, identity_of_run, verify_run
    from pipeline.salt import salt_in, secret_salt

    if write_verifier is not None:
        from jobs.proof import write_small_verifier

        write_small_verifier(write_verifier)
        make_console(stderr=json).print(f"written: {write_verifier}; python {write_verifier.name} RUN", soft_wrap=True)
        if run is None:
            return
    if run is None:
        raise InputError("no run was named", where="verify", fix="Name a run folder: clearance verify RUN")
    chain, folder, _ = runs_named(run)
    if chain is not None and same_as is not None:
        raise InputError("a data set of several runs was named", where="--same-as", fix="Name one run on both sides")
    other = run_folder(same_as)[0] if same_as is not None else None
    deployment = keys_of(run, keys)
    salt = salt_in(salt_file) if salt_file is not None else secret_salt(deployment)
    if head and not re.fullmatch("[0-9a-f]{64}", head := head.strip().lower()):
        raise InputError("is no digest of an event", where="--head", fix="Give the 64 digits that verify printed as the head")
    if chain is not None and head:
        raise InputError("a data set of several runs was named", where="--head", fix="Name one run: each has its own events")
    if chain is not None:
        return show_verified(chain, salt or None, trust_in(deployment, key, tsa_roots), json=json)
    found = verify_run(folder, salt or None, trust_in(deployment, key, tsa_roots), head=head)
    compared = compare_runs(folder, other) if other is not None else None
    ok = found.ok and (compared is None or compared.ok)
    which = identity_of_run(folder)
    if json:
        say_json(which | asdict(found) | ({"same_as": asdict(compared)} if compared is not None else {}))
        raise typer.Exit(0 if ok else 1)
    console = make_console()
    counts = ", ".join(f"{count} {name}" for name, count in sorted(found.counts.items()))
    console.print(visible(f"run {which['run_id'] or 'without a name'} in {folder}", lines=False), soft_wrap=True)
    console.print(f"recomputed: {counts}", soft_wrap=True)
    for stage in found.stages:
        line = visible(f"{stage.state}  {stage.name:<10}  {stage.sentence}", lines=False)
        console.print(line, style=STYLES[stage.state], soft_wrap=True)
    for problem in found.problems:
        console.print(visible(f"{problem.where}: {problem.what}", lines=False), style="red", soft_wrap=True)
    for left in found.not_covered:
        console.print(visible(f"not covered: {left.where} ({left.what})", lines=False), soft_wrap=True)
    console.print(f"anchors: {anchored(found.anchors)}", soft_wrap=True)
    if not found.ok:
        console.print(f"NOT INTACT: {counted(len(found.problems), 'problem')}", style="bold red")
    else:
        console.print(f"intact: {folder}", style="green", soft_wrap=True)
    if compared is not None:
        console.print(visible(compared.sentence, lines=False), style="green" if compared.ok else "bold red", soft_wrap=True)
    if not ok:
        raise typer.Exit(1)
