"""``clearance run``: draw the requests of a run file, or show beforehand what that would take."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from index.counted import counted
from index.errors import ClearanceError
from jobs.cli.arguments import AsJson, RunFile, Runner, keys_of, read_run_file
from jobs.cli.report import print_report
from jobs.console import busy, grid, make_console, say, say_error, say_json, say_note
from jobs.log import Log, log_in_use, use, wanted
from pipeline.notes import Note

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.run.dataset.which import Which
    from jobs.run.event import OnEvent
    from jobs.run.metrics.sinks import Sink
    from jobs.run.plan import Plan
    from jobs.run.session import RunResult
    from pipeline.config import RunConfig

TOO_MANY_ERRORS = 4  # the exit code of a run beyond max_error_rate
LISTED_ROWS = 10  # bad rows that a dry run prints


def run(
    run_file: RunFile,
    out: Annotated[str, typer.Option(metavar="URI", help="Run folder; overrides `out` of the run file.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run of the same plan; where there is none, begin it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Open everything, print what it takes and what would fail; write nothing.")
    ] = False,
    *,
    runner: Annotated[
        Runner, typer.Option(help="local: one worker in this process; ray: as many as the run file sets.")
    ] = "local",
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Draw the requests that the data set in `out` does not hold, in a further run.")
    ] = False,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Repeat the requests of `out` that ended as errors, in a further run.")
    ] = False,
    policy: Annotated[
        str, typer.Option(help="Policy file or name, or a run folder for the one it began with; overrides the run file's.")
    ] = "",
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(help="json: one object a line on stderr instead of text. By default CLEARANCE_LOG_FORMAT, else text."),
    ] = None,
    max_error_rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of requests that may end as errors (0.25); overrides the run file's."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="At the end write the shards' small files into large parts.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Generate, clear and record every request of a run file. Exits with 4 if more of them ended as errors than are allowed."""
    from jobs.run.dataset.slip import refuse_slip
    from jobs.run.dataset.which import which_run
    from jobs.run.folder import look
    from jobs.run.metrics.listeners import prompts_of
    from jobs.run.metrics.sinks import sink_of

    plans: list[Plan] = []
    if wanted(log_format or ""):
        use(Log(prompts=lambda: prompts_of(plans[-1]) if plans else []))
    config, base = read_run_file(run_file)
    if max_error_rate is not None:
        config = replace(config, max_error_rate=max_error_rate)
    which = which_run(config, base, out, resume=resume, only_new=only_new, only_failed=only_failed)
    folder = which.folder
    if which.about:
        make_console(stderr=json).print(which.about, soft_wrap=True)
    if which.nothing:
        if log := log_in_use():
            log("nothing_to_draw", message=which.about)
        return say_json({"nothing_to_draw": which.about}) if json else say("nothing to draw: no run was begun")
    notes: list[Note] = []
    plan, problem = _planned(config, base, which, policy, notes, resume=resume, dry_run=dry_run, json=json)
    if resume:
        try:
            if refuse_slip(folder, plan, named=out, base=base):
                note = Note("resume", f"no run to continue: a new one begins in {folder}")
                notes.append(note) if dry_run else say_note(note)
        except ClearanceError as error:
            if not dry_run:
                raise
            problem = problem or error
    if dry_run:
        return _dry_run(plan, folder, runner, json=json, resume=resume, notes=notes, problem=problem)
    plans.append(plan)
    look(folder, plan, resume=resume)  # before models are loaded
    plan = _noted(plan, notes, config, runner)
    result = _drawn(plan, folder, runner, sink_of(config.metrics, runner, base), resume=resume)
    console = make_console(stderr=json)
    if compact:
        _compacted(folder, runner, run_file, console)
    _shown(result, folder, console)
    print_report(folder, base, keys_of(run_file, None), json=json)
    _say_errors(result, folder, console)


def _planned(
    config: RunConfig, base: Path, which: Which, policy: str, notes: list[Note], *, resume: bool, dry_run: bool, json: bool
) -> tuple[Plan, ClearanceError | None]:
    """The plan; in a dry run also where it cannot be made, then without what it binds, and with the error."""
    begun = which.folder if resume else None
    make = partial(_plan, config, base, which.folder, policy, notes=notes, only=which.only, parent=which.parent, begun=begun)
    try:
        plan = make()
        notes += which.notes_of(plan)
        return plan, None
    except ClearanceError as error:
        if not dry_run:
            raise
        problem = error
    try:  # without what a plan binds: the prompts alone
        return make(identity={}), problem
    except ClearanceError as last:
        if json:
            say_json({"ok": False, "problems": [{"what": last.what, "where": last.where, "fix": last.fix}]})
        raise


def _plan(config: RunConfig, base: Path, folder: Path, policy: str, *, notes: list[Note], **restriction: Any) -> Plan:
    from jobs.run.plan import Plan, read_policy

    rules = read_policy(policy, Path.cwd()) if policy else read_policy(config.policy, base)
    config = replace(config, out=str(folder), policy=policy or config.policy)
    plan = Plan.make(config, rules, base, notes=notes, **restriction)
    notes += [Note("guards", str(guard["note"])) for guard in plan.guards if guard["note"]]
    return plan


def _noted(plan: Plan, notes: list[Note], config: RunConfig, runner: Runner) -> Plan:
    """The plan with all its notes, which are printed."""
    from jobs.run.preflight.notes import check_devices, device_notes_of, notes_of

    notes += notes_of(plan.config, plan.policy, plan.base, plan.requests, model_digest=plan.identity.get("model_digest", ""))
    if runner == "local":  # Ray's workers may be on other machines
        check_devices(config)
        notes += device_notes_of(config.model)
    plan = replace(plan, notes=tuple(dict.fromkeys(notes)))
    for note in plan.notes:
        say_note(note)
    return plan


def _drawn(plan: Plan, folder: Path, runner: Runner, sink: Sink, *, resume: bool) -> RunResult:
    """Run the plan; display, metrics and log listen."""
    from jobs.run.local_runner import RUNNERS
    from jobs.run.metrics.listeners import LogEvents, all_of
    from jobs.run.metrics.meters import RunMeter, renewed
    from jobs.run.metrics.sinks import using
    from jobs.run.progress import Watch

    with (
        using(sink),
        RunMeter(sink, plan, lease=partial(renewed, folder)) as meter,
        Watch(make_console(stderr=True), folder.name) as watch,
    ):
        listeners: list[OnEvent] = [watch, meter]
        if log := log_in_use():
            listeners.append(LogEvents(log))
        return RUNNERS[runner](plan, folder, all_of(listeners), resume=resume)


def _compacted(folder: Path, runner: Runner, run_file: Path, console: Console) -> None:
    from jobs.by import By
    from jobs.cli.compact import REASON, compact_folder

    done = compact_folder(folder, By(role=f"runner.{runner}", reason=REASON), keys_of(run_file, None))
    console.print(f"{done.removed} small files became {len(done.parts)} parts")


def _shown(result: RunResult, folder: Path, console: Console) -> None:
    """Print the counts, and where the run is."""
    from jobs.funnel import print_counts
    from jobs.run.progress import duration
    from pipeline.audit.envelope import signed_by
    from pipeline.looking.activity import sentence

    print_counts(folder, console)
    console.print(f"run {result.run_id} in {folder}, {duration(result.seconds)}, {signed_by(folder)}", soft_wrap=True)
    if spent := sentence(result.activity):
        console.print(spent, soft_wrap=True)


def _say_errors(result: RunResult, folder: Path, console: Console) -> None:
    """Say how many requests ended as errors; too many end the command with a code of its own."""
    from jobs.run.error_budget import LISTED

    if errors := result.outcomes.get("error", 0):
        one = errors == 1
        ended = "1 request ended as an error" if one else f"{errors} requests ended as errors"
        console.print(f"{ended}; with the cause removed, --only-failed repeats {'it' if one else 'them'}", soft_wrap=True)
    if result.too_many_errors:
        say_error(f"{folder}: {result.too_many_errors}", f"{LISTED}; --max-error-rate sets another limit")
        raise typer.Exit(TOO_MANY_ERRORS)


def _dry_run(plan: Plan, folder: Path, runner: Runner, *, json: bool, **more: Any) -> None:
    from jobs.run.preflight.dry_run import as_json, lines, preflight

    with busy("opening everything"):
        found = preflight(plan, folder, runner, **more)
    if json:
        say_json(as_json(found))
    else:
        table = grid()
        for name, value in lines(found).items():
            table.add_row(name, value)
        make_console().print(table)
        bad = [request for request in plan.requests if request.problem]
        for request in bad[:LISTED_ROWS]:
            assert request.problem is not None
            say(f"  {request.key}: {request.problem[1]} ({request.problem[0]})")
        if len(bad) > LISTED_ROWS:
            say(f"  and {counted(len(bad) - LISTED_ROWS, 'more bad row')}; --json lists all of them")
    for note in found.notes:
        say_note(note)
    for problem in found.problems:
        say_error(f"{problem.where}: {problem.what}" if problem.where else problem.what, problem.fix)
    if found.problems:
        raise typer.Exit(2)
    if not json:
        say("dry run: nothing was drawn and nothing was written")
