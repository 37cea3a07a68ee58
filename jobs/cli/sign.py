"""``clearance sign``: sign the statement of a run that was sealed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson, KeysFolder, RunFolder, a_local_path, keys_of, run_folder
from jobs.console import say, say_json


def sign(
    run: RunFolder,
    keys: KeysFolder = None,
    signer: Annotated[
        str,
        typer.Option(metavar="URI", help="A key that stays in a key service or hardware module, as securesystemslib names it."),
    ] = "",
    key: Annotated[
        Path | None, typer.Option("--key", metavar="PEM", help="Public key of --signer.", parser=a_local_path)
    ] = None,
    json: AsJson = False,
) -> None:
    """Sign a sealed run: its statement in a DSSE envelope, run.dsse.json. A run with keys is signed when it ends.

    Signers named by URI (awskms:, azurekms:, gcpkms:, hv:, hsm:) need their provider's library and were not tried.
    """
    from jobs.proof import sign

    folder, _ = run_folder(run)
    made = sign(folder, keys_of(run, keys), uri=signer, public=key)
    if json:
        say_json(asdict(made))
        return
    say(f"signed with key {made.key_id}: {folder / 'run.dsse.json'}")
    say("Give statement.pub to those who verify: clearance verify RUN --key statement.pub")
