"""Printing for every command: one console, one form for results, one form for errors.

Text from outside (titles, keys, paths, messages of libraries) is shown as it is: square brackets mean nothing, and characters
that would move the cursor, colour the screen or turn the reading direction are shown escaped.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from index.printable import visible
from jobs.log import log_in_use

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipeline.notes import Note


Volume = Literal["quiet", "usual", "verbose"]
_volume: ContextVar[Volume] = ContextVar("volume", default="usual")

NARROW = 60  # columns of a terminal below which names of values are folded


def set_volume(volume: Volume) -> None:
    """How much beside the results is printed: quiet: errors alone; verbose: a line for each step, and no bars."""
    _volume.set(volume)


def volume() -> Volume:
    return _volume.get()


def draws(console: Console) -> bool:
    """Whether a moving bar can be drawn: on a terminal that understands more than lines, and not when every step is a line."""
    return console.is_terminal and not console.is_dumb_terminal and volume() == "usual"


def make_console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    class PlainConsole(Console):
        """Every string that is printed, in tables too, comes through here."""

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(visible(text), **options)

        def on_broken_pipe(self) -> None:
            """Rich would end the process with 1, which is the code for damage."""
            raise  # the BrokenPipeError that is being handled

    # Where a machine reads the log, tables and bars are left out.
    return PlainConsole(stderr=stderr, markup=False, emoji=False, highlight=False, quiet=log_in_use() is not None)


class _Expendable:
    """A text stream whose loss ends nothing: what cannot be written (reader gone, disk full) is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def lenient_streams() -> None:
    """Let no stream end a command that it tells about.

    A terminal that cannot show a character gets it escaped, instead of an exception. Stderr has progress, notes and errors: a
    run goes on without it. Stdout has results: its loss is an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is not None:
        sys.stderr = cast("TextIO", _Expendable(sys.stderr))


def reader_is_gone() -> bool:
    """Whether nobody reads stdout any more (``| head -1``)."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))  # with no event asked for, errors alone are answered
    except (OSError, ValueError, AttributeError):  # it is no file of the system, or closed
        return False


def drop_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere, so that Python does not fail at it when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def grid() -> Table:
    """Two columns, name and value; long values are folded, never cut. In a narrow terminal names are folded, too."""
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=make_console().width >= NARROW, overflow="fold")
    table.add_column(overflow="fold")
    return table


def busy(what: str) -> AbstractContextManager[object]:
    from rich.text import Text

    console = make_console(stderr=True)
    if draws(console):
        return console.status(Text(visible(what, lines=False)))
    if volume() == "verbose":
        console.print(what, soft_wrap=True)
    return nullcontext()


def say(text: str) -> None:
    make_console().print(text, soft_wrap=True)


def say_json(data: Any) -> None:
    """Print data as JSON on stdout, in ASCII: no terminal and no pipe changes it."""
    print(json.dumps(data, indent=1), flush=True)  # a command may exit with its verdict next


def say_note(note: Note) -> None:
    """On stderr, so that stdout holds results alone."""
    if log := log_in_use():
        log("note", topic=note.topic, message=note.text)
        return
    if volume() == "quiet":
        return
    make_console(stderr=True).print(visible(f"note: {note.topic}: {note.text}", lines=False), soft_wrap=True)


def say_error(what: str, fix: str) -> None:
    if log := log_in_use():
        log("error", level="error", message=what, fix=fix)
        return
    console = make_console(stderr=True)
    console.print(f"error: {visible(what, lines=False)}", style="bold red", soft_wrap=True)
    if fix:
        console.print(f"  fix: {visible(fix, lines=False)}", soft_wrap=True)
