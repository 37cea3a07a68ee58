"""``clearance end``: end a stopped run as it is."""

from __future__ import annotations

from jobs.cli.arguments import AsJson, By, KeysFolder, Person, Reason, RunFolder, keys_of, run_folder
from jobs.console import busy, say, say_json


def end(run: RunFolder, by: By, reason: Reason, keys: KeysFolder = None, person: Person = "", as_json: AsJson = False) -> None:
    """End a stopped run as it is: what was not drawn becomes error rows, and the run is sealed.

    For a run that cannot be continued, because its index, model or policy changed for good; none of them is opened. Afterwards
    the run is finished like any other: it is verified, reported, exported, held and erased. `run --only-failed` draws the rest.
    A run with keys is signed with them: name the run file, or --keys.
    """
    from jobs.by import By as Author
    from jobs.run.end_early import end_early

    folder, base = run_folder(run)
    found = keys_of(run, keys) if keys is not None or base is not None else None
    with busy(f"ending {folder.name}"):
        done = end_early(folder, Author(role=by, reason=reason, person=person), keys=found)
    counts = ", ".join(f"{count:,} {name}" for name, count in done.outcomes.items())
    if as_json:
        say_json({"run": str(folder), "run_id": done.run_id, "requests": done.requests, "outcomes": done.outcomes})
    else:
        say(f"{folder}: ended and sealed; {done.requests:,} requests: {counts}")
