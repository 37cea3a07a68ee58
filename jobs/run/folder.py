"""A run's folder: checked before anything is loaded, made when work can begin, taken over if nothing was committed in it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.errors import InputError, IntegrityError, PlanMismatch, RunStopped
from index.storage import (
    digest_of,
    entries,
    entry_of,
    is_folder,
    is_remote,
    make,
    remove,
    remove_empty,
    require_writable,
    write_file,
)
from jobs.run.plan import Plan
from jobs.run.planning.stored_plan import difference, plan_json_digest, stored_plan
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.outcome import Request
from pipeline.salt import PART as SALT

if TYPE_CHECKING:
    from jobs.run.lease.lock import Held
    from pipeline.audit.shards import ShardReceipt

COPIES_OF_RAY = "working_dir_files"  # the folder in which Ray unpacks the working directories of jobs


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an output folder is to a plan.

    Attributes:
        state: ``new``: the folder is missing or empty; ``begun``: it holds this plan; ``replaced``: it holds another plan of
            which nothing was committed.
        run_id: of the run that is there, or that is to begin.
        plan_file_sha256: digest of the plan.json that is there; empty when there is none.
        note: a sentence for people about a plan that is replaced.
        plan: the plan to run there. Where the folder's plan words the problems of bad rows otherwise, its words stay in force.
    """

    state: Literal["new", "begun", "replaced"]
    run_id: str
    plan: Plan
    plan_file_sha256: str = ""
    note: str = ""


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
    from pipeline.audit.shards import RUN_FILE, markers
    from pipeline.audit.state import state_of

    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    _refuse_copy_of_ray(out)
    require_writable(out)  # models take minutes to load; a folder that cannot be made is known before
    if not is_folder(out):
        if is_remote(out) or not out.exists():
            return Place(state="new", run_id=run_id, plan=plan)
        raise PlanMismatch("is a file, not a folder", where=str(out), fix="Name a new folder as --out")
    theirs = _not_ours(out)
    if entry_of(out, PLAN_FILE) is None:
        if markers(out) or entry_of(out, RUN_FILE) is not None:  # another folder would mean to draw all of it again
            what = "is missing, and a run is committed here"
            raise IntegrityError(what, where=str(out / PLAN_FILE), fix="Restore it from a copy; or name a new folder as --out")
        if theirs:
            what = f"is not a run folder and not empty ({', '.join(theirs[:3])})"
            raise PlanMismatch(what, where=str(out), fix="Name a new folder as --out")
        return Place(state="new", run_id=run_id, plan=plan)
    stored, digest = stored_plan(out), _plan_file(out)
    before = Plan.load(out, plan)
    here = _in_its_words(plan, before)
    if before.plan_sha256 == here.plan_sha256:
        if not resume:
            raise PlanMismatch(
                "the folder already holds this plan", where=str(out), fix="Add --resume to continue it, or name another --out"
            )
        return Place(state="begun", run_id=stored["run_id"], plan=here, plan_file_sha256=digest)
    changed = difference(here.parts, before.parts)
    if theirs or markers(out) or entry_of(out, RUN_FILE) is not None:
        if _without_salt(here.parts) == _without_salt(before.parts):
            there, now = (parts.get(SALT) or "the public one" for parts in (before.parts, here.parts))
            raise PlanMismatch(
                f"the prompts of this run are recorded under another salt: {there} there, {now} here",
                where=str(out),
                fix="Set CLEARANCE_SALT, or the file salt in the folder of keys, to the salt that the run began with",
            )
        fix = "Name another --out, or bring back what changed and use --resume; `clearance end` ends the run as it is"
        parts = {name for name in here.parts if here.parts[name] != before.parts.get(name)}
        if parts == {"requests"}:
            fix = "Name another --out; --only-new draws what is new there, as a further run of the data set"
        elif parts and parts <= {"policy", "policy_sha256"}:
            fix = f"Name another --out; --resume --policy {out} goes on under the policy that the run began with"
        raise PlanMismatch(f"the folder belongs to another plan ({changed})", where=str(out), fix=fix)
    if holds := state_of(out).holds:
        what = f"the folder is under a legal hold ({', '.join(holds)}), and the new plan would take its place"
        raise PlanMismatch(what, where=str(out), fix="Name another --out; see `clearance hold show`")
    note = f"nothing was committed under the plan that the folder held ({changed}): this plan takes its place"
    return Place(state="replaced", run_id=run_id, plan=plan, plan_file_sha256=digest, note=note)


def _refuse_copy_of_ray(out: Path) -> None:
    """Refuse a place that Ray makes for a job (`--working-dir`): each machine has its own, and Ray removes it after the job."""
    if not is_remote(out) and COPIES_OF_RAY in out.absolute().parts:
        raise RunStopped(
            "lies in Ray's copy of the job's working directory: each machine has its own, and Ray removes it after the job",
            where=str(out),
            fix="Name an absolute path on storage that every machine shares, or an object store, as --out",
        )


def _in_its_words(plan: Plan, before: Plan) -> Plan:
    """The plan, with the requests of the folder's own where they differ in no more than the text of problems.

    The text of a problem is for people: another version may word it otherwise. Its code says what is wrong, with which column.
    """
    if plan.parts["requests"] == before.parts["requests"] or len(plan.requests) != len(before.requests):
        return plan
    pairs = zip(plan.requests, before.requests, strict=True)
    return replace(plan, requests=before.requests) if all(_coded(now) == _coded(then) for now, then in pairs) else plan


def _coded(request: Request) -> Request:
    return request if request.problem is None else replace(request, problem=(request.problem[0], ""))


def _without_salt(parts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parts.items() if name != SALT}


@contextmanager
def claimed(folder: Path, plan: Plan, place: Place, note: Callable[[str], None] = lambda _: None) -> Iterator[Held]:
    """Hold the folder for the time of the block; where no run has begun in it, this one begins. Nothing is written before.

    Args:
        folder: the run folder; made when missing.
        plan: what is to be run in it.
        place: from :func:`look`.
        note: called with a sentence when there is something to wait for or to know.

    Raises:
        RunStopped: another run holds the folder or has begun in it since it was looked at, or it cannot be written.
    """
    from jobs.run.lease.lock import lease

    new = not is_folder(folder)
    make(folder)
    try:
        with lease(folder, note=note) as held:
            if _plan_file(folder) != place.plan_file_sha256:
                fix = "See `clearance status`, and continue that run with --resume"
                raise RunStopped("another run began in this folder meanwhile", where=str(folder), fix=fix)
            if place.state != "begun":
                _begin(folder, plan, place)
            yield held
    finally:
        if new:
            remove_empty(folder)  # only where a start that failed left it so


def open_folder(out: Path, plan: Plan, *, resume: bool = False) -> tuple[Path, str]:
    """Make the run folder for a plan before it is run, or find the one that is there; the runners do so themselves.

    Args:
        out: the run folder.
        plan: what is to be run in it.
        resume: continue a folder of the same plan.

    Returns:
        The folder and the run's id (kept when resuming).

    Raises:
        PlanMismatch: the folder belongs to another plan, holds this plan but ``resume`` is not set, or holds other files.
        IntegrityError: what is there was changed.
        RunStopped: another run holds the folder, or it cannot be written.
    """
    place = look(out, plan, resume=resume)
    if place.state != "begun":
        with claimed(out, plan, place):
            pass
    return out, place.run_id


def failed_keys(folder: Path) -> list[str]:
    """Keys of the requests of a finished run that ended as errors, in the order of the run.

    Raises:
        InputError: the run is not finished.
        IntegrityError: what is there was changed.
    """
    from pipeline.audit.ledger import sample_rows
    from pipeline.audit.shards import committed

    plan, done = Plan.load(folder), committed(folder)
    check_begun(folder, plan, done)
    open_shards = [shard for shard in plan.shards if shard.shard_id not in done]
    if open_shards:
        raise InputError(
            f"the run is not finished ({len(open_shards)} shards are open)",
            where=str(folder),
            fix="Finish it with --resume first, or end it as it is (clearance end)",
        )
    return [row["request_key"] for row in sample_rows(folder, ["request_key", "outcome"]) if row["outcome"] == "error"]


def _begin(folder: Path, plan: Plan, place: Place) -> None:
    """Write what a run begins with."""
    from pipeline.audit.coverage import LEASE_FILE
    from pipeline.audit.event_parts import EVENTS_HEAD_FILE
    from pipeline.audit.events import event_files
    from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON
    from pipeline.audit.shards import sweep

    try:
        if place.state == "replaced":
            for name in (EVENTS_HEAD_FILE, *reversed(event_files(folder)), REPORT_HTML, REPORT_JSON, PLAN_FILE):
                remove(folder, name)
        sweep(folder)
        write_file(folder, REQUESTS_FILE, plan.requests_file)
        # plan.json is written last: a folder without it is not a run yet.
        write_file(folder, PLAN_FILE, _plan_json(folder, plan, place.run_id))
    except BaseException:
        for name in (PLAN_FILE, REQUESTS_FILE, LEASE_FILE):  # a start that fails leaves nothing
            remove(folder, name)
        raise


def check_begun(folder: Path, plan: Plan | None, receipts: Mapping[str, ShardReceipt]) -> bool:
    """Compare the files of a stopped or sealed run with the plan and with one another: statement, events, shards' headers.

    Args:
        folder: the run folder.
        plan: its plan; None: what plan.json states, for a run whose prompts were erased.
        receipts: its committed shards.

    Returns:
        Whether the run is sealed.

    Raises:
        IntegrityError: something was changed, removed or laid in; the message names the file.
    """
    from pipeline.audit.binding import RunBinding, shard_problems
    from pipeline.audit.events import read_events
    from pipeline.audit.ledger import sealed_statement
    from pipeline.audit.shards import lost_marker

    stored, digest, events = stored_plan(folder), digest_of(folder, PLAN_FILE), read_events(folder)
    require_plan_of(events, folder, stored["run_id"], digest)
    sealed = sealed_statement(folder, events) is not None
    shard_ids = [shard.shard_id for shard in plan.shards] if plan else [str(shard["shard_id"]) for shard in stored["shards"]]
    unknown = sorted(set(receipts) - set(shard_ids))
    if unknown:
        where, fix = str(folder / f"commits/{unknown[0]}.json"), "Move it away, or start the run again in a new folder"
        raise IntegrityError(f"commits shard {unknown[0]}, which the plan does not know", where=where, fix=fix)
    sha256, parts = (plan.plan_sha256, plan.parts) if plan else (stored["plan_sha256"], stored["parts"])
    dataset_id = plan.config.dataset_id if plan else stored["config"]["dataset_id"]
    header = {"run_id": stored["run_id"], "plan_sha256": sha256, "policy_sha256": parts["policy"], "dataset_id": dataset_id}
    run = RunBinding(header=header, plan_file_sha256=digest).known(events)
    for where, what in shard_problems(folder, receipts, run):
        fix = "Restore it from a copy"
        if not sealed:
            fix += "; or delete the commit marker of that shard, and --resume draws the shard again"
        raise IntegrityError(what, where=f"{folder}/{where}", fix=fix)
    gone = [shard_id for shard_id in shard_ids if shard_id not in receipts]
    if sealed and gone:
        raise lost_marker(folder, gone[0])
    return sealed


def require_plan_of(events: Sequence[Mapping[str, Any]], folder: Path, run_id: str, plan_file_sha256: str) -> None:
    """Refuse a plan.json that is not the one that the events of its run name.

    Raises:
        IntegrityError: another run, or another digest of the file, stands in an event.
    """
    own = {"run_id": run_id, "plan_file_sha256": plan_file_sha256}
    for event in events:
        for name, value in own.items():
            if event["digests"].get(name, value) != value:
                what = f"is not the plan that the run started with: another {name} stands in event {event['seq']}"
                raise IntegrityError(what, where=str(folder / PLAN_FILE), fix="Restore it from a copy")


def without_paths(text: str, folder: Path, base: Path) -> str:
    """A message for a run's record: the folders of this machine are left out, the names of files are kept."""
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
        **({"prompts_sha256": plan.prompts_sha256} if plan.prompts_sha256 else {}),
    }
    body = json.loads(json.dumps(body))  # tuples become lists, as they are when the digest is checked
    return json.dumps({**body, "plan_json_sha256": plan_json_digest(body)}, indent=2).encode() + b"\n"


def _plan_file(folder: Path) -> str:
    return digest_of(folder, PLAN_FILE) if entry_of(folder, PLAN_FILE) is not None else ""


def _not_ours(out: Path) -> list[str]:
    """Entries of a folder that no run writes. Commit markers are not checked here."""
    from pipeline.audit.compacted import PARTS
    from pipeline.audit.coverage import CARD_FILE, LEASE_FILE, of_a_run
    from pipeline.audit.event_lines import EVENT_LINES
    from pipeline.audit.event_parts import EVENTS_FOLDER, EVENTS_HEAD_FILE
    from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON
    from pipeline.audit.shards import COMMITS, EVERY_TABLE, RUN_FILE, is_leftover

    files = {PLAN_FILE, REQUESTS_FILE, LEASE_FILE, REPORT_HTML, REPORT_JSON, EVENT_LINES, EVENTS_HEAD_FILE, RUN_FILE}
    there = entries(out)
    if any(entry.name == PLAN_FILE for entry in there):
        files.add(CARD_FILE)  # elsewhere a README.md is somebody's own
    found = []
    for entry in there:
        if entry.kind == "folder" and entry.name in (COMMITS, EVENTS_FOLDER, PARTS, *EVERY_TABLE):
            inner = entries(out, entry.name)
            found += [f"{entry.name}/{e.name}" for e in inner if not (e.kind == "file" and of_a_run(entry.name, e.name))]
        elif entry.kind != "file" or not (entry.name in files or is_leftover("", entry.name)):
            found.append(entry.name)
    return found
