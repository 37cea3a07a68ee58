"""The command line. Everything heavy is imported inside the command that needs it, so that ``--help`` stays instant."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from index.counted import counted
from index.errors import ClearanceError, ConfigError, TooManyErrors
from index.places.kept import listen
from jobs import signals
from jobs.cli.arguments import AsJson, RunFile, a_local_path, keys_of, read_run_file
from jobs.cli.cache import app as cache_app
from jobs.cli.capacity import capacity
from jobs.cli.compact import compact
from jobs.cli.detect import detect
from jobs.cli.doctor import doctor
from jobs.cli.end import end
from jobs.cli.erase import app as erase_app
from jobs.cli.export import export
from jobs.cli.hold import app as hold_app
from jobs.cli.index import app as index_app
from jobs.cli.index_calibrate import app as index_calibrate_app
from jobs.cli.index_doctor import app as index_doctor_app
from jobs.cli.index_info import app as index_info_app
from jobs.cli.init import init
from jobs.cli.keys import app as keys_app
from jobs.cli.policy import app as policy_app
from jobs.cli.reaudit import app as reaudit_app
from jobs.cli.receipt import receipt
from jobs.cli.report import print_report, report
from jobs.cli.retention import app as retention_app
from jobs.cli.review import app as review_app
from jobs.cli.show import show
from jobs.cli.sign import sign
from jobs.cli.stamp import stamp
from jobs.cli.status import status
from jobs.cli.takedown import app as takedown_app
from jobs.cli.verify import verify
from jobs.console import (
    busy,
    drop_stdout,
    grid,
    lenient_streams,
    make_console,
    reader_is_gone,
    say,
    say_error,
    say_json,
    say_note,
    set_volume,
)
from jobs.explain import explain
from jobs.group import Group
from jobs.log import Log, log_in_use, of_one_command, use, wanted
from pipeline.notes import Note

if TYPE_CHECKING:
    from jobs.run.event import OnEvent
    from jobs.run.plan import Plan
    from pipeline.config import RunConfig

Runner = Literal["local", "ray"]
EVERYWHERE = ("-q", "--quiet", "-v", "--verbose")
TOO_MANY_ERRORS = 4  # the exit code of a run beyond max_error_rate
BUG = "This is a bug; see the traceback with CLEARANCE_DEBUG=1"
LISTED_ROWS = 10  # bad rows that a dry run prints


SECTIONS = {
    "To draw": ("demo", "init", "doctor", "capacity", "run", "status", "end"),
    "What came of it": ("report", "show", "review", "export", "compact"),
    "What it is held against": ("index", "policy", "erase"),
    "Afterwards": ("takedown", "reaudit", "hold", "retention"),
    "Proof and marks": ("verify", "keys", "sign", "stamp", "receipt", "detect"),
    "This machine": ("cache",),
}
"""The commands as the help lists them."""


class Commands(Group):
    """Commands whose errors end as one line with what was wrong, and one with what to do."""

    sections = SECTIONS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options of the whole command line may stand behind the command too."""
        own = args.index("--") if "--" in args else len(args)
        early = [one for one in args[:own] if one in EVERYWHERE]
        rest = [one for one in args[:own] if one not in EVERYWHERE]
        return super().parse_args(ctx, early + rest + args[own:])  # type: ignore[no-any-return]

    def invoke(self, ctx: Any) -> Any:
        with signals.ending(), of_one_command():
            try:
                return self._invoke(ctx)
            except BrokenPipeError:
                if not reader_is_gone():
                    raise
                drop_stdout()  # whoever reads the output has seen enough
                raise typer.Exit(128 + signal.SIGPIPE) from None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name. The laboratory is one too, loaded only when it is named: the product's help does not list it."""
        if cmd_name != "lab":
            return super().get_command(ctx, cmd_name)
        from jobs.lab.cli import app as lab

        return typer.main.get_command(lab)

    def _invoke(self, ctx: Any) -> Any:
        if os.environ.get("CLEARANCE_DEBUG"):
            return super().invoke(ctx)
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # while the command can still say that it failed
            return result
        except ClearanceError as error:
            say_error(f"{error.where}: {error.what}" if error.where else error.what, error.fix)
            raise typer.Exit(TOO_MANY_ERRORS if isinstance(error, TooManyErrors) else 2) from None
        except KeyboardInterrupt as stopped:
            number = signals.received() or signal.SIGINT
            kept = str(stopped) or "What was committed is kept; continue a run with --resume, a build by the same command"
            say_error(f"stopped by {signals.name(number)}", kept)
            raise typer.Exit(128 + number) from None
        except SystemExit as error:  # of a package that a command called: its code would stand for the command's
            say_error(f"something that this command called wants to end the process ({error.code!r})", BUG)
            raise typer.Exit(70) from None
        except Exception as error:
            # typer's own exceptions (usage errors, Exit, Abort) are handled by typer.
            if type(error).__module__.startswith(("typer.", "click.")) or (
                isinstance(error, BrokenPipeError) and reader_is_gone()
            ):
                raise
            if sentences := explain(error):
                say_error(*sentences)
                raise typer.Exit(2) from None
            say_error(f"{type(error).__name__}: {error}", BUG)
            raise typer.Exit(70) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Generate images in batches and clear each one: no copies of protected works, no spurious marks, an audit as proof.",
)
index_app.add_typer(index_calibrate_app)
index_app.add_typer(index_info_app)
index_app.add_typer(index_doctor_app)
app.add_typer(index_app, name="index")
app.add_typer(erase_app, name="erase")
app.add_typer(keys_app, name="keys")
app.command("detect", epilog="Example: clearance detect pictures/ --run runs/monday --keys clearance-keys")(detect)
app.add_typer(policy_app, name="policy")
app.add_typer(hold_app, name="hold")
app.add_typer(cache_app, name="cache")
app.command("init", epilog="Example: clearance init my-run --model models/sd15 --index my-index")(init)
app.add_typer(retention_app, name="retention")
app.command("end", epilog='Example: clearance end runs/monday --by operator --reason "the index changed for claim 12"')(end)
app.command("compact", epilog="Example: clearance compact runs/monday")(compact)
app.command("export", epilog="Example: clearance export runs/monday --to exported --format webdataset")(export)
app.add_typer(review_app, name="review")
app.add_typer(takedown_app)
app.add_typer(reaudit_app)


def main() -> None:
    """Entry point of the console script."""
    lenient_streams()
    app()


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"clearance {version('clearance')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors alone: no progress, no notes. On any command.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print a line for every step, in place of a bar. On any command.")
    ] = False,
) -> None:
    listen(lambda text: say_note(Note("cache", text)))
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose exclude one another", where="", fix="Leave one of them out")
    set_volume("quiet" if quiet else "verbose" if verbose else "usual")


@app.command(epilog="Example: clearance demo --out clearance-demo --runner local")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo.", parser=a_local_path)] = Path("clearance-demo"),
    samples: Annotated[int, typer.Option(min=3, help="Number of prompts.")] = 48,
    runner: Annotated[Runner, typer.Option(help="Where to run.")] = "ray",
    json: AsJson = False,
) -> None:
    """Do the whole job on the embedded world and show what came of it."""
    from jobs.demo import run_demo

    shown = run_demo(out, samples=samples, runner=runner, console=make_console(stderr=json))
    if json:
        say_json(shown)


@app.command(epilog="Example: clearance run run.toml --out runs/monday --runner ray")
def run(
    run_file: RunFile,
    out: Annotated[str, typer.Option(metavar="URI", help="Run folder; overrides `out` of the run file.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run of the same plan; where there is none, begin it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Open everything, print what it takes and what would fail; write nothing.")
    ] = False,
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
    from dataclasses import replace
    from functools import partial

    from jobs.funnel import print_counts
    from jobs.run.dataset.slip import refuse_slip
    from jobs.run.dataset.which import which_run
    from jobs.run.error_budget import LISTED
    from jobs.run.folder import look
    from jobs.run.local_runner import RUNNERS
    from jobs.run.metrics.listeners import LogEvents, all_of, prompts_of
    from jobs.run.metrics.meters import RunMeter, renewed
    from jobs.run.metrics.sinks import sink_of, using
    from jobs.run.preflight.notes import check_devices, device_notes_of, notes_of
    from jobs.run.progress import Watch, duration
    from pipeline.audit.envelope import signed_by
    from pipeline.looking.activity import sentence

    plans: list[Plan] = []
    if wanted(log_format or ""):
        use(Log(prompts=lambda: prompts_of(plans[-1]) if plans else []))
    config, base = read_run_file(run_file)
    if max_error_rate is not None:
        config = replace(config, max_error_rate=max_error_rate)
    which = which_run(config, base, out, resume=resume, only_new=only_new, only_failed=only_failed)
    folder = which.folder
    notes: list[Note] = []
    if which.about:
        make_console(stderr=json).print(which.about, soft_wrap=True)
    if which.nothing:
        if log := log_in_use():
            log("nothing_to_draw", message=which.about)
        return say_json({"nothing_to_draw": which.about}) if json else say("nothing to draw: no run was begun")
    restriction: dict[str, Any] = {"notes": notes, "only": which.only, "parent": which.parent}
    restriction["begun"] = folder if resume else None
    problem = None
    try:
        plan = _plan(config, base, folder, policy, **restriction)
        notes += which.notes_of(plan)
    except ClearanceError as error:
        if not dry_run:
            raise
        problem = error
        try:  # without what a plan binds: the prompts alone
            plan = _plan(config, base, folder, policy, **restriction, identity={})
        except ClearanceError as last:
            if json:
                say_json({"ok": False, "problems": [{"what": last.what, "where": last.where, "fix": last.fix}]})
            raise
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
    notes += notes_of(plan.config, plan.policy, plan.base, plan.requests, model_digest=plan.identity.get("model_digest", ""))
    if runner == "local":  # Ray's workers may be on other machines
        check_devices(config)
        notes += device_notes_of(config.model)
    plan = replace(plan, notes=tuple(dict.fromkeys(notes)))
    for note in plan.notes:
        say_note(note)
    sink = sink_of(config.metrics, runner, base)
    with (
        using(sink),
        RunMeter(sink, plan, lease=partial(renewed, folder)) as meter,
        Watch(make_console(stderr=True), folder.name) as watch,
    ):
        listeners: list[OnEvent] = [watch, meter]
        if log := log_in_use():
            listeners.append(LogEvents(log))
        result = RUNNERS[runner](plan, folder, all_of(listeners), resume=resume)
    console = make_console(stderr=json)
    if compact:
        from jobs.by import By
        from jobs.cli.compact import REASON, compact_folder

        done = compact_folder(folder, By(role=f"runner.{runner}", reason=REASON), keys_of(run_file, None))
        console.print(f"{done.removed} small files became {len(done.parts)} parts")
    print_counts(folder, console)
    console.print(f"run {result.run_id} in {folder}, {duration(result.seconds)}, {signed_by(folder)}", soft_wrap=True)
    if spent := sentence(result.activity):
        console.print(spent, soft_wrap=True)
    print_report(folder, base, keys_of(run_file, None), json=json)
    if errors := result.outcomes.get("error", 0):
        ended = "1 request ended as an error" if errors == 1 else f"{errors} requests ended as errors"
        text = f"{ended}; with the cause removed, --only-failed repeats them"
        console.print(text, soft_wrap=True)
    if result.too_many_errors:
        say_error(f"{folder}: {result.too_many_errors}", f"{LISTED}; --max-error-rate sets another limit")
        raise typer.Exit(TOO_MANY_ERRORS)


app.command(epilog="Example: clearance status runs/monday --watch")(status)
app.command(epilog="Example: clearance capacity --pictures 1000000 --hours 8 --device h100")(capacity)
app.command(epilog="Example: clearance verify runs/monday --key statement.pub")(verify)
app.command(epilog="Example: clearance sign runs/monday --keys ~/clearance-keys")(sign)
app.command(epilog="Example: clearance stamp runs/monday --tsa https://tsa.example.org")(stamp)
app.command(epilog="Example: clearance receipt runs/monday --key cat-7 --keys ~/clearance-keys --out cat-7.receipt")(receipt)


app.command(epilog="Example: clearance report runs/monday --pages")(report)
app.command(epilog="Example: clearance show runs/monday cat-7")(show)


app.command("doctor", epilog="Example: clearance doctor run.toml")(doctor)


# --- what the commands share -----------------------------------------------------------------------------------------------


def _plan(config: RunConfig, base: Path, folder: Path, policy: str, *, notes: list[Note], **restriction: Any) -> Plan:
    import dataclasses

    from jobs.run.plan import Plan, read_policy
    from pipeline.notes import Note

    rules = read_policy(policy, Path.cwd()) if policy else read_policy(config.policy, base)
    config = dataclasses.replace(config, out=str(folder), policy=policy or config.policy)
    plan = Plan.make(config, rules, base, notes=notes, **restriction)
    notes += [Note("guards", str(guard["note"])) for guard in plan.guards if guard["note"]]
    return plan


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


if __name__ == "__main__":
    main()
