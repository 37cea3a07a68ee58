"""End a stopped run as it is: what was not drawn becomes error rows, and the run is sealed.

A run whose index, model or policy has changed for good cannot be continued: a claim came, for example, while it was stopped.
Ended, it is a finished run like any other. It is verified, exported, held and erased, and ``--only-failed`` draws the rest in a
run of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from index.counted import counted
from index.errors import ConfigError, InputError, PlanMismatch
from jobs.by import By
from jobs.run.event import OnEvent, ignore
from jobs.run.plan import Plan
from jobs.run.session import DRIVER, RunResult, run_session
from pipeline.audit.context import RunContext
from pipeline.audit.events import NewEvent, append_events, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.keys import Keys
from pipeline.outcome import Adapter
from pipeline.salt import PART, salt_parts, secret_salt

ENDED = "run.ended"
_SAME = (
    "model_id", "model_revision", "model_digest", "model_licence", "scheduler", "steps", "guidance", "preset", "dtype",
    "device_kind", "rows", "threads", "index_id", "embedder_id", "calibration_id", "copy_threshold", "policy_id",
    "policy_sha256", "policy_name", "software_version",
)  # fmt: skip


def end_early(folder: Path, by: By, on_event: OnEvent = ignore, *, keys: Keys | None = None) -> RunResult:
    """End a stopped run. Opens neither model nor index: what rows repeat of them is in those that are there. They do not hold
    the licences of adapters, and the statement says so. It names the runner of the last session that drew, with no worker of
    this one. Rows of requests that were not drawn name no machine.

    Args:
        folder: the run folder.
        by: who ends it, and why; an event and every row that was not drawn say so.
        on_event: listener for progress.
        keys: what signs the run, and holds its secret salt. None: those that the plan names, where they can be found from the
            run folder, else those of the environment.

    Raises:
        ConfigError: the run has keys, and they are not found.
        InputError: the run is finished, or nothing of it is committed.
        PlanMismatch: its prompts are recorded under a secret salt that is not at hand.
        RunStopped: another process holds the folder, or it cannot be written.
        IntegrityError: a file of the run was changed.
    """
    plan = Plan.load(folder)
    keys = keys if keys is not None else _keys(plan)
    context, drawn_by = _context(folder, plan, keys)
    with run_session(plan, folder, "local", on_event, None, resume=True, keys=keys) as session:
        session.drawn_by = drawn_by
        if session.sealed:
            raise InputError("the run is finished", where=str(folder), fix="There is nothing to end")
        assert session.anchors is not None  # of a folder that holds the plan
        context = dataclasses.replace(context, run_id=session.run_id, anchors=session.anchors)
        session.context = dataclasses.replace(context, adapters=())  # nothing was drawn with them
        left, shards = len(plan.requests) - session.outcomes().total(), len(session.pending())
        session.end_early(f"the run was ended early by {by.role}, with {counted(left, 'request')} left to draw: {by.reason}")
        event = NewEvent(
            kind=ENDED, actor=by.role, person=by.person, reason=by.reason, details={"requests": left, "shards": shards},
            digests={"plan_sha256": plan.plan_sha256},
        )  # fmt: skip
        append_events(session.folder, [event])  # behind its rows: stopped in the middle, the run may still be continued
        session.context = context
        return session.finish(0)


def _runner(folder: Path, worker_id: str) -> str:
    """The runner that a worker drew for; where none drew anything, that of the first session, by its event. Later ones may have
    ended before they drew, and this command is one itself."""
    if (kind := worker_id.partition("-")[0]) in ("local", "ray"):
        return kind
    began = next((event for event in read_events(folder) if event["kind"] == "run.started"), None)
    return str(began["actor"]).removeprefix("runner.") if began is not None else "local"


def _keys(plan: Plan) -> Keys:
    """The keys of a run as its folder knows them: it leads to them only where they and it lie below the run file's folder."""
    try:
        return Keys.find(plan.config.marks.keys, base=plan.base)
    except ConfigError as error:
        found = Keys.find(base=Path.cwd())
        if found.folder is not None:
            return found
        fix = "Name them with --keys, or name the run file in place of the run folder"
        raise ConfigError(error.what, where=error.where, fix=fix) from None


def _context(folder: Path, plan: Plan, keys: Keys) -> tuple[RunContext, str]:
    """What the rows of a run repeat, from those that are committed; and the runner of the last that a worker made."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    adapters: list[Adapter] = []
    for row in sample_rows(folder, [*_SAME, "adapters", "worker_id", "finished_at"]):
        first = first or row
        if row["worker_id"] != DRIVER and (not last or row["finished_at"] > last["finished_at"]):
            last = row
        worn = [_adapter(one) for one in row["adapters"]]
        adapters += [one for one in worn if one.digest not in [known.digest for known in adapters]]
    weights = {one.name: one.weight for one in plan.config.adapters if one.name}  # rows may have had other strengths
    adapters = [dataclasses.replace(one, weight=weights.get(one.name, one.weight)) for one in adapters]
    if not first:
        fix = "Remove the folder; or continue it with --resume"
        raise InputError("nothing of the run is committed, so there is nothing to keep", where=str(folder), fix=fix)
    config = plan.config
    context = RunContext(
        run_id="", dataset_id=config.dataset_id, plan_sha256=plan.plan_sha256, adapters=tuple(adapters),
        image_format=config.image_format, retention_days=config.retention_days, salt=_salt(folder, plan, keys),
        keep_held=config.keep.held, hard_stop=config.keep.hard_stop, diversity=config.generation.diversity,
        **{name: first[name] for name in _SAME},
    )  # fmt: skip
    return context, _runner(folder, last.get("worker_id", ""))


def _adapter(stored: Mapping[str, Any]) -> Adapter:
    """An adapter as a row holds it, which has no licence. Of an eraser, which states none, no statement holds one."""
    unknown = "" if str(stored["kind"]).startswith("erase-") else "not recorded: the run was ended early"
    return Adapter(**{**stored, "tokens": tuple(stored["tokens"])}, licence=unknown)


def _salt(folder: Path, plan: Plan, keys: Keys) -> str:
    salt = secret_salt(keys)
    if salt_parts(salt).get(PART) != plan.identity.get(PART):
        fix = "Set CLEARANCE_SALT, or the file salt in the folder of keys, to the salt that the run began with"
        raise PlanMismatch("the prompts of this run are recorded under another salt", where=str(folder), fix=fix)
    return salt
