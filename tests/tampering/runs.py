"""The runs that are tampered with: a whole one, signed, stamped, with events after its seal; a stopped one; other runs."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, RunStopped
from jobs.by import By
from jobs.compact import compact_run
from jobs.proof import sign
from jobs.retention import erase_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.events import append_event
from pipeline.audit.ledger import sample_rows
from pipeline.audit.stage_proof import Trust
from pipeline.audit.timestamp import stamp_run
from pipeline.keys import Keys
from tests.jobs.conftest import _plan, open_fake
from tests.proofs import Authority, keys_in

PROMPTS = ("cat", "steered owl", "copy", "stubborn fox", "", "lemon")
REPORTS = ("report.html", "report.json")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Folders that are never changed; tamperings get copies.

    Attributes:
        base: the project's folder. plan: of the runs ``stopped`` and ``finished``.
        whole: sealed, signed, stamped, reported, with events of people after the seal.
        other: the same plan run again, signed and stamped by the same people: the best forgery there is.
        stopped: stopped after its first shard. finished: the same plan, run whole by others.
        foreign: another plan.
        compacted: ``whole`` with its small files in large parts.
        unerased, erased: one run, before and after the payloads of two of its samples were erased.
        keys: of the deployment. authority: that stamped. trust: what a careful verifier names.
    """

    base: Path
    plan: Plan
    whole: Path
    other: Path
    stopped: Path
    finished: Path
    foreign: Path
    compacted: Path
    unerased: Path
    erased: Path
    keys: Keys
    authority: Authority
    trust: Trust


def make_runs(base: Path) -> Runs:
    """Make them all, below a folder that is there."""
    from jobs.proof import trust_in
    from jobs.report import report_run

    keys, authority = keys_in(base / "keys"), Authority.make(base / "tsa")
    plan = _plan(base, PROMPTS)
    folders: dict[str, Path] = {}
    for name in ("whole", "other"):
        folder = folders[name] = run_local(plan, base / name, open_loop=open_fake).folder
        sign(folder, keys)
        stamp_run(folder, "http://test", ask=authority.answer)
        held = next(row["sample_id"] for row in sample_rows(folder) if row["outcome"] == "rejected")
        decided: dict[str, Any] = {"samples": [held], "details": {"outcome": "rejected"}, "person": "p-7"}
        append_event(folder, "review.decided", "reviewer", "seen", **decided)
        append_event(folder, "hold.set", "counsel", "a claim", details={"matter": "2026-7"})
        with suppress(ClearanceError):  # a report of runs of coloured squares may lack what a page needs
            report_run(folder)
        for report in REPORTS:
            if not (folder / report).exists():
                (folder / report).write_text("<p>a report")
    (base / "two").mkdir()
    stopping = _plan(base / "two", (*PROMPTS[:3], "disk-full"))
    with suppress(RunStopped):
        run_local(stopping, base / "stopped", open_loop=open_fake)
    (base / "two" / "space").touch()
    run_local(stopping, base / "finished", open_loop=open_fake)
    (base / "two" / "space").unlink()
    (base / "three").mkdir()
    foreign = run_local(_plan(base / "three", ("lion", "horse")), base / "foreign", open_loop=open_fake).folder
    unerased = run_local(plan, base / "unerased", open_loop=open_fake).folder
    sign(unerased, keys)
    stamp_run(unerased, "http://test", ask=authority.answer)  # who names roots requires a time stamp
    erased = copy_of(unerased, base / "erased")
    chosen = [str(row["request_key"]) for row in sample_rows(erased) if row["outcome"] in ("accepted", "rejected")][:2]
    erase_keys(erased, chosen, (), By(role="privacy", reason="asked for"))
    compacted = copy_of(folders["whole"], base / "compacted")
    compact_run(compacted, By(role="operator", reason="fewer files"), part_bytes=60_000)
    assert keys.folder is not None
    trust = trust_in(Keys(), keys.folder / "statement.pub", authority.root)
    return Runs(
        base=base,
        plan=stopping,
        stopped=base / "stopped",
        finished=base / "finished",
        foreign=foreign,
        compacted=compacted,
        unerased=unerased,
        erased=erased,
        keys=keys,
        authority=authority,
        trust=trust,
        **folders,
    )


def copy_of(folder: Path, place: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(folder, place, symlinks=True))
