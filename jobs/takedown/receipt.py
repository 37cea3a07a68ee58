"""The receipt of a claim: as JSON, and as text for people. It never says complete where something was not reached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index.counted import counted
from index.storage import write_file
from jobs.reaudit.receipt import NAMED, gap_lines, more, run_lines
from jobs.takedown.takedown import ADD, Done

FORMAT = "clearance takedown receipt 1"


def receipt(done: Done) -> dict[str, Any]:
    """A receipt as plain data; ``receipt_sha256`` covers everything else in it."""
    gaps = done.gaps
    body = {
        "format": FORMAT,
        "at": done.at,
        "dry_run": done.order.dry_run,
        "claim": done.order.filed.plain(),
        "action": done.order.action,
        "by": {"role": done.order.actor, "person": done.order.person},
        "index": {
            "folder": done.index, "before": done.before, "after": done.after, "changed": done.changed,
            "references": done.references,
        },
        "runs": [run.plain() for run in done.runs],
        "complete": not gaps,
        "not_complete_because": gaps,
        "nothing_new": done.nothing_new,
    }  # fmt: skip
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return body | {"receipt_sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def write_receipt(done: Done, folder: Path) -> tuple[Path, Path]:
    """Write a receipt as JSON and as text; a dry run's is named so. Returns both paths.

    Raises:
        RunStopped: it cannot be written.
    """
    data = receipt(done)
    name = f"{done.order.filed.claim_id}-{data['receipt_sha256'][:8]}" + ("-dry-run" if done.order.dry_run else "")
    write_file(folder, f"{name}.json", (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
    write_file(folder, f"{name}.txt", ("\n".join(lines(done, data["receipt_sha256"])) + "\n").encode())
    return folder / f"{name}.json", folder / f"{name}.txt"


def lines(done: Done, digest: str = "") -> Iterator[str]:
    """A receipt as lines of text."""
    claim, order = done.order.filed.plain(), done.order
    yield f"Receipt of {claim['id']}" + (" (dry run: nothing was changed)" if order.dry_run else "")
    yield f"{done.at}, by {order.actor}" + (f" ({order.person})" if order.person else "")
    yield f"claimant: {claim['claimant']}, received {claim['date']}; basis: {claim['basis']}"
    yield f"works: {'; '.join(claim['works'])}"
    yield f"claim file: sha256 {claim['file_sha256']}"
    yield ""
    verb = "added" if order.action == ADD else "retired"
    would = "would be " if order.dry_run else ""
    references = counted(len(done.references), "reference")
    if done.changed:
        now = "" if order.dry_run else f"; {done.before} is now {done.after}"
        yield f"Index {done.index}: {references} {would}{verb}{now}"
    else:
        yield f"Index {done.index}: unchanged ({done.before}); {references} {verb} before"
    for one in done.references[:NAMED]:
        yield f"  {one['ref_id']}  {one['title']} ({one['state']})"
    yield from more(len(done.references))
    for run in done.runs:
        yield ""
        yield from run_lines(run, dry_run=order.dry_run)
    yield ""
    yield from gap_lines(done.runs)
    if done.nothing_new:
        yield "Nothing changed: all of this was done before, or there was nothing to do."
    if digest:
        yield f"receipt: sha256 {digest}"
