"""``clearance receipt``: a signed proof that one request or one shard is in a run, for somebody who does not get the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson, KeysFolder, RunFolder, a_local_path, keys_of, run_folder
from jobs.console import say, say_json


def receipt(
    run: RunFolder,
    key: Annotated[str, typer.Option("--key", help="The key of a request.")] = "",
    shard: Annotated[str, typer.Option("--shard", help="A shard, in place of a request.")] = "",
    out: Annotated[
        Path, typer.Option(help="File of the receipt; FILE.json beside it holds what the leaf is made of.", parser=a_local_path)
    ] = Path("receipt.cose"),
    keys: KeysFolder = None,
    json: AsJson = False,
) -> None:
    """Make a receipt (COSE, RFC 9942): a signed proof that one request, or one shard, is in a sealed run.

    Its holder checks it with any verifier of COSE receipts and with statement.pub, and needs nothing else of the run.
    """
    from jobs.proof import write_receipt

    folder, _ = run_folder(run)
    shown = write_receipt(folder, keys_of(run, keys), out, key=key, shard=shard)
    if json:
        say_json(shown)
        return
    say(f"receipt: {out}; leaf {shown['index']} of {shown['size']} under the {shown['tree']}, made of {out}.json")
