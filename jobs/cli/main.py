"""The command line. Everything heavy is imported inside the command that needs it, so that ``--help`` stays instant."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from index.errors import ClearanceError, ConfigError, TooManyErrors
from index.loading import leave
from index.places.kept import listen
from jobs import signals
from jobs.cli.arguments import AsJson, Runner, a_local_path
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
from jobs.cli.report import report
from jobs.cli.retention import app as retention_app
from jobs.cli.review import app as review_app
from jobs.cli.run import TOO_MANY_ERRORS, run
from jobs.cli.show import show
from jobs.cli.sign import sign
from jobs.cli.stamp import stamp
from jobs.cli.status import status
from jobs.cli.takedown import app as takedown_app
from jobs.cli.verify import verify
from jobs.console import (
    drop_stdout,
    lenient_streams,
    make_console,
    reader_is_gone,
    say_error,
    say_json,
    say_note,
    set_volume,
)
from jobs.explain import explain
from jobs.group import Group
from jobs.log import of_one_command
from pipeline.notes import Note

EVERYWHERE = ("-q", "--quiet", "-v", "--verbose")
BUG = "This is a bug; see the traceback with CLEARANCE_DEBUG=1"


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
        return super().parse_args(ctx, early + rest + args[own:])

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
app.command(epilog="Example: clearance run run.toml --out runs/monday --runner ray")(run)
app.command(epilog="Example: clearance status runs/monday --watch")(status)
app.command(epilog="Example: clearance capacity --pictures 1000000 --hours 8 --device h100")(capacity)
app.command(epilog="Example: clearance verify runs/monday --key statement.pub")(verify)
app.command(epilog="Example: clearance sign runs/monday --keys ~/clearance-keys")(sign)
app.command(epilog="Example: clearance stamp runs/monday --tsa https://tsa.example.org")(stamp)
app.command(epilog="Example: clearance receipt runs/monday --key cat-7 --keys ~/clearance-keys --out cat-7.receipt")(receipt)
app.command(epilog="Example: clearance report runs/monday --pages")(report)
app.command(epilog="Example: clearance show runs/monday cat-7")(show)
app.command("doctor", epilog="Example: clearance doctor run.toml")(doctor)


def main() -> None:
    """Entry point of the console script."""
    lenient_streams()
    try:
        app()
    finally:
        leave()


if __name__ == "__main__":
    main()
