"""``clearance stamp``: have an authority state when a run's proof existed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson, RunFolder, a_local_path, run_folder
from jobs.console import busy, say, say_json


def stamp(
    run: RunFolder,
    tsa: Annotated[str, typer.Option(metavar="URL", help="A time stamping authority (RFC 3161).", show_default=False)],
    tsa_roots: Annotated[
        Path | None,
        typer.Option(
            "--tsa-roots",
            metavar="PEM",
            help="Its root certificates; the answer must be valid under them.",
            parser=a_local_path,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Get a time stamp (RFC 3161) over a run's envelope, or over run.json where it is not signed: run.tsr.

    Sends one digest to the authority, and nothing else of the run. No other command uses the network for this.
    """
    from jobs.proof import stamp

    folder, _ = run_folder(run)
    with busy(f"asking {tsa}"):
        made = stamp(folder, tsa, tsa_roots)
    time = made.time.isoformat(timespec="seconds")
    if json:
        say_json({"time": time, "covers": made.covers, "tsr_sha256": made.tsr_sha256})
        return
    say(f"{made.covers} existed at {time}: {folder / 'run.tsr'}")
    if tsa_roots is None:
        say("The authority was not checked: name its root certificates with --tsa-roots, here or in `clearance verify`")
    say(f"Without Clearance: openssl ts -verify -in run.tsr -data {made.covers} -CAfile ROOTS.pem")
    say(f"Once a certificate of the authority has ended, add the time of the stamp: -attime {int(made.time.timestamp())}")
