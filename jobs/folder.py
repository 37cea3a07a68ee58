"""A run's folder: looked at before anything is loaded, made when work can begin, taken over where nothing was committed."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.errors import InputError, IntegrityError, PlanMismatch, RunStopped
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.storage import (
    cannot_write,
    digest_of,
    entries,
    entry_of,
    inside,
    read_object,
    remove,
    require_writable,
    write_file,
)

if TYPE_CHECKING:
    from jobs.plan import Plan
    from pipeline.shard import ShardReceipt

_SHAPE: dict[str, type] = {
    "run_id": str, "created_at": float, "plan_sha256": str, "parts": dict, "parent": str, "config": dict, "policy": dict,
    "base": str, "identity": dict, "copy_check": dict, "guards": list, "shards": list, "requests": int, "requests_sha256": str,
    "plan_json_sha256": str,
}  # fmt: skip


RESTORE = "Restore it from a copy, or start the run in a new folder"


@dataclass(frozen=True)
class Place:
    """What an output folder is to a plan.

    Attributes:
        state: ``new``: the folder is missing or empty; ``begun``: it holds this plan; ``replaced``: it holds another plan of
            which nothing was committed.
        run_id: of the run that is there, or that is to begin.
        plan_file_sha256: digest of the plan.json that is there; empty when there is none.
        note: a sentence for people about a plan that is replaced.
    """

    state: Literal["new", "begun", "replaced"]
    run_id: str
    plan_file_sha256: str = ""
    note: str = ""


def stored_plan(folder: Path) -> dict[str, Any]:
    """The content of a run folder's plan.json.

    Raises:
        InputError: not a run folder.
        IntegrityError: plan.json cannot be read, or was changed.
    """
    stored = read_plan(folder)
    check_plan(folder, stored)
    return stored


def check_plan(folder: Path, stored: Mapping[str, Any]) -> None:
    """Hold plan.json against the digest in it; raises IntegrityError."""
    if _plan_digest(stored) != stored["plan_json_sha256"]:
        where = str(folder / PLAN_FILE)
        raise IntegrityError("was changed: it does not match its own digest", where=where, fix=RESTORE)


def read_plan(folder: Path) -> dict[str, Any]:
    """The content of plan.json, not yet held against its digest; raises as :func:`stored_plan`."""
    where, fix = str(folder / PLAN_FILE), RESTORE
    if not folder.is_dir() or entry_of(folder, PLAN_FILE) is None:
        raise InputError("not a run folder (no plan.json)", where=str(folder), fix="Name the --out folder of a run")
    stored = read_object(folder, PLAN_FILE)
    missing = [name for name in _SHAPE if name not in stored]
    if missing:
        raise IntegrityError(f"is not a plan ({missing[0]} is missing)", where=where, fix=fix)
    wrong = [name for name, kind in _SHAPE.items() if type(stored[name]) is not kind]
    if wrong:
        what = f"is not a plan ({wrong[0]} is {type(stored[wrong[0]]).__name__}, not {_SHAPE[wrong[0]].__name__})"
        raise IntegrityError(what, where=where, fix=fix)
    for name in ("parts", "identity"):
        odd = [key for key, value in stored[name].items() if not isinstance(value, str)]
        if odd:
            raise IntegrityError(f"is not a plan ({name}: {odd[0]} is no text)"[:200], where=where, fix=fix)
    if not re.fullmatch(r"|\.|\.\.(/\.\.)*", stored["base"]):
        raise IntegrityError("is not a plan (base leads elsewhere)", where=where, fix=fix)
    if not re.fullmatch(r"[\w.-]{1,100}", stored["run_id"]):
        raise IntegrityError("is not a plan (run_id is no name)", where=where, fix=fix)
    return stored


def look(out: Path, plan: Plan, *, resume: bool) -> Place:
    """Whether a plan can be run in a folder. Reads; writes nothing.

    Args:
        out: the run folder.
        plan: what is to be run in it.
        resume: continue a folder of the same plan.

    Raises:
        PlanMismatch: the folder belongs to another plan, holds this plan but ``resume`` is not set, or holds other files.
        IntegrityError: what is there was changed.
        RunStopped: it cannot be written to.
    """
    from jobs.plan import Plan
    from pipeline.shard import markers

    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    require_writable(out)  # models take minutes to load; a folder that cannot be made is known before
    if not out.exists():
        return Place("new", run_id)
    if not out.is_dir():
        raise PlanMismatch("is a file, not a folder", where=str(out), fix="Name a new folder as --out")
    theirs = _not_ours(out)
    if entry_of(out, PLAN_FILE) is None:
        if theirs or markers(out):
            what = f"is not a run folder and not empty ({', '.join(theirs[:3]) or 'commits'})"
            raise PlanMismatch(what, where=str(out), fix="Name a new folder as --out")
        return Place("new", run_id)
    stored, before, digest = stored_plan(out), Plan.load(out), _plan_file(out)
    if before.plan_sha256 == plan.plan_sha256:
        if not resume:
            raise PlanMismatch(
                "the folder already holds this plan", where=str(out), fix="Add --resume to continue it, or name another --out"
            )
        return Place("begun", stored["run_id"], digest)
    changed = difference(plan.parts, before.parts)
    if theirs or markers(out) or entry_of(out, "run.json") is not None:
        raise PlanMismatch(
            f"the folder belongs to another plan ({changed})",
            where=str(out),
            fix="Name another --out, or bring back what changed and use --resume",
        )
    note = f"nothing was committed under the plan that the folder held ({changed}): this plan takes its place"
    return Place("replaced", run_id, digest, note)


@contextmanager
def claimed(folder: Path, plan: Plan, place: Place, note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the folder for the time of the block; where no run has begun in it, this one begins. Nothing is written before.

    Args:
        folder: the run folder; made when missing.
        plan: what is to be run in it.
        place: from :func:`look`.
        note: called with a sentence when there is something to wait for or to know.

    Raises:
        RunStopped: another run holds the folder or has begun in it since it was looked at, or it cannot be written.
    """
    from jobs.lease import lease

    new = not folder.exists()
    try:
        with inside(folder, make=True):
            pass
    except OSError as error:
        raise cannot_write(error, folder) from error
    try:
        with lease(folder, note=note):
            if _plan_file(folder) != place.plan_file_sha256:
                fix = "See `clearance status`, and continue that run with --resume"
                raise RunStopped("another run began in this folder meanwhile", where=str(folder), fix=fix)
            if place.state != "begun":
                _begin(folder, plan, place)
            yield
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()  # only where a start that failed left it empty


def _begin(folder: Path, plan: Plan, place: Place) -> None:
    """Write what a run begins with."""
    from pipeline.audit.coverage import LEASE_FILE, REPORT_HTML, REPORT_JSON
    from pipeline.audit.events import EVENTS_FILE, EVENTS_HEAD_FILE
    from pipeline.shard import sweep

    try:
        if place.state == "replaced":
            for name in (EVENTS_HEAD_FILE, EVENTS_FILE, REPORT_HTML, REPORT_JSON, PLAN_FILE):
                remove(folder, name)
        sweep(folder)
        write_file(folder, REQUESTS_FILE, plan.requests_file)
        # plan.json is written last: a folder without it is not a run yet.
        write_file(folder, PLAN_FILE, _plan_json(folder, plan, place.run_id))
    except BaseException:
        for name in (PLAN_FILE, REQUESTS_FILE, LEASE_FILE):  # a start that fails leaves nothing
            remove(folder, name)
        raise


def check_begun(folder: Path, plan: Plan, receipts: Mapping[str, ShardReceipt]) -> bool:
    """Hold what a stopped or sealed run left against the plan and against itself: statement, events, shards' headers.

    Returns:
        Whether the run is sealed.

    Raises:
        IntegrityError: something was changed, removed or laid in; the message names the file.
    """
    from pipeline.audit.binding import RunBinding, shard_problems
    from pipeline.audit.events import read_events

    stored, digest, events = stored_plan(folder), digest_of(folder, PLAN_FILE), read_events(folder)
    own = {"run_id": stored["run_id"], "plan_file_sha256": digest}
    for event in events:
        for name, value in own.items():
            if event["digests"].get(name, value) != value:
                what = (
                    f"is not the plan that the run started with: another {name} stands in events.jsonl line {event['seq'] + 1}"
                )
                raise IntegrityError(what, where=str(folder / PLAN_FILE), fix="Restore it from a copy")
    sealed = _sealed(folder, events)
    unknown = sorted(set(receipts) - {shard.shard_id for shard in plan.shards})
    if unknown:
        where, fix = str(folder / f"commits/{unknown[0]}.json"), "Move it away, or start the run again in a new folder"
        raise IntegrityError(f"commits shard {unknown[0]}, which the plan does not know", where=where, fix=fix)
    header = {"run_id": stored["run_id"], "plan_sha256": plan.plan_sha256, "policy_sha256": plan.parts["policy"]}
    run = RunBinding({**header, "dataset_id": plan.config.dataset_id}, digest).known(events)
    for where, what in shard_problems(folder, receipts, run):
        fix = "Restore it from a copy"
        if not sealed:
            fix += "; or delete the commit marker of that shard, and --resume draws the shard again"
        raise IntegrityError(what, where=f"{folder}/{where}", fix=fix)
    lost = [shard.shard_id for shard in plan.shards if shard.shard_id not in receipts]
    if sealed and lost:
        where = str(folder / f"commits/{lost[0]}.json")
        raise IntegrityError("is missing; the run was sealed with it", where=where, fix="Restore it from a copy")
    return sealed


def _sealed(folder: Path, events: Sequence[Mapping[str, Any]]) -> bool:
    from pipeline.audit.ledger import RUN_FILE, SEALED, scan_statement

    named = [event["digests"].get("run_sha256") for event in events if event["kind"] == SEALED]
    there = entry_of(folder, RUN_FILE) is not None
    if not there and not named:
        return False
    _, problems = scan_statement(folder)
    if not problems and named and named[-1] != digest_of(folder, RUN_FILE):
        problems = [(RUN_FILE, "is not the statement that the last sealing event in events.jsonl names")]
    if problems:
        raise IntegrityError(problems[0][1], where=f"{folder}/{problems[0][0]}", fix="Restore it from a copy")
    return bool(named)  # without that event the run was stopped between the two; it is sealed again


def difference(now: Mapping[str, str], stored: Mapping[str, str]) -> str:
    """Which parts of two plans differ."""
    names = [name for name in (*now, *(n for n in stored if n not in now)) if now.get(name) != stored.get(name)]
    parts = [f"{name} {_short(stored.get(name))} there, {_short(now.get(name))} here" for name in names]
    return "changed: " + "; ".join(parts) if parts else "same parts, other digest"


def _short(part: str | None) -> str:
    """A part for people: eight signs of a digest, a version whole."""
    return "none" if not part else part[:8] if re.fullmatch("[0-9a-f]{32,}", part) else part


def without_paths(text: str, folder: Path, base: Path) -> str:
    """A message as it may stand in a run's record: the folders of this machine are left out, the names of files are kept."""
    for place in sorted({str(folder), str(folder.resolve()), str(base)}, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(f"{place}/", "").replace(place, Path(place).name)
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\"]+/)+", "", text)


def _plan_json(folder: Path, plan: Plan, run_id: str) -> bytes:
    body: dict[str, Any] = {
        "run_id": run_id,
        "created_at": time.time(),
        "plan_sha256": plan.plan_sha256,
        "parts": plan.parts,
        "parent": plan.parent,
        **plan.portable(folder),
        "identity": dict(plan.identity),
        "copy_check": dict(plan.copy_check),
        "guards": [dict(guard) for guard in plan.guards],
        "shards": [{"shard_id": shard.shard_id, "rows": len(shard.requests)} for shard in plan.shards],
        "requests": len(plan.requests),
        "requests_sha256": hashlib.sha256(plan.requests_file).hexdigest(),
    }
    body = json.loads(json.dumps(body))  # tuples become lists, as they are when the digest is checked
    return json.dumps({**body, "plan_json_sha256": _plan_digest(body)}, indent=2).encode() + b"\n"


def _plan_file(folder: Path) -> str:
    return digest_of(folder, PLAN_FILE) if entry_of(folder, PLAN_FILE) is not None else ""


def _plan_digest(body: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in body.items() if name != "plan_json_sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _not_ours(out: Path) -> list[str]:
    """What lies in a folder that no run writes. Commit markers are not looked for here."""
    from pipeline.audit.coverage import LEASE_FILE, REPORT_HTML, REPORT_JSON
    from pipeline.audit.events import EVENTS_FILE, EVENTS_HEAD_FILE
    from pipeline.audit.ledger import RUN_FILE
    from pipeline.shard import COMMITS, TABLES, is_leftover

    files = {PLAN_FILE, REQUESTS_FILE, LEASE_FILE, REPORT_HTML, REPORT_JSON, EVENTS_FILE, EVENTS_HEAD_FILE, RUN_FILE}
    found = []
    for entry in entries(out):
        if entry.kind == "folder" and entry.name in (COMMITS, *TABLES):
            inner = entries(out, entry.name)
            found += [f"{entry.name}/{e.name}" for e in inner if not (e.kind == "file" and _written(entry.name, e.name))]
        elif entry.kind != "file" or not (entry.name in files or is_leftover("", entry.name)):
            found.append(entry.name)
    return found


def _written(folder: str, name: str) -> bool:
    from pipeline.shard import COMMITS, is_leftover

    return is_leftover(folder, name) or (folder == COMMITS and name.endswith(".json") and not name.startswith("."))
