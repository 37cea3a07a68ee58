"""What is printed is text: nothing from outside colours it, moves the cursor or breaks it; and what the system refuses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from jobs.cli import main as cli
from jobs.console import grid, make_console, say, say_error, visible
from jobs.explain import ADVICE, explain

NASTY = ["[/]", "[bold]x[/bold]", "[link=http://x]y[/link]", ":smile:", "[red", "a]b", "\\[x]", "100 %"]
ESCAPED = [
    ("\x1b[31mred", r"\x1b[31mred"), ("a\rb", r"a\rb"), ("\x07", r"\x07"), ("\x9b2J", r"\x9b2J"), ("\x7f", r"\x7f"),
    ("\u202egnp.exe", r"\u202egnp.exe"), ("\u2028", r"\u2028"), ("\udc80", r"\udc80"), ("\0", r"\x00"),
]  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


@pytest.mark.parametrize("text", NASTY)
def test_markup_is_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    assert printed(capsys) == text + "\n"
    table = grid()
    table.add_row(text, text)
    make_console().print(table)
    assert printed(capsys).split("\n")[0].count(text) == 2


@pytest.mark.parametrize(("text", "shown"), ESCAPED, ids=[shown for _, shown in ESCAPED])
def test_control_characters_are_shown_escaped(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a{text}b")
    assert printed(capsys) == f"a{shown}b\n"
    table = grid()
    table.add_row("title", text)
    make_console().print(table)
    out = printed(capsys)
    assert shown in out and text not in out


def test_ordinary_text_is_shown_as_it_is() -> None:
    text = "Ärger · 猫 🦊 – naïve\n\tindented"
    assert visible(text) == text


def test_an_error_is_two_lines_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    say_error("a\nb\x1b[2J: broken [/red]", "look\nthere")
    assert capsys.readouterr().err == "error: a\\nb\\x1b[2J: broken [/red]\n  fix: look\\nthere\n"


def test_a_terminal_that_cannot_show_a_character_gets_it_escaped() -> None:
    code = "from jobs.console import *; lenient_streams(); say('Ärger 猫')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout == rb"\xc4rger \u732b" + b"\n"


# --- what the system refuses -----------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Result:
    """A command line whose only command raises this."""
    app = typer.Typer(cls=cli.Commands, add_completion=False)

    @app.callback()
    def root() -> None:
        pass

    @app.command()
    def go() -> None:
        raise error

    return CliRunner().invoke(app, ["go"])


@pytest.mark.parametrize("number", sorted(ADVICE), ids=lambda n: errno.errorcode[n])
def test_what_the_system_refuses_is_a_sentence_with_its_place(number: int) -> None:
    result = raising(OSError(number, os.strerror(number), "runs/[x]\x1b"))
    assert result.exit_code == 2
    assert result.stderr == f"error: runs/[x]\\x1b: {os.strerror(number)}\n  fix: {ADVICE[number]}\n"


def test_no_room_for_temporary_files_is_no_missing_file() -> None:
    """What Python's tempfile raises where every folder is full: an error without a file's name."""
    what, fix = explain(FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")) or ("", "")
    assert what == "No usable temporary directory found in ['/tmp']" and "TMPDIR" in fix


def test_two_places_and_bytes_are_named() -> None:
    explained = explain(OSError(errno.EXDEV, "Invalid cross-device link", b"a\xff", None, "b"))
    assert explained == ("a\udcff → b: Invalid cross-device link", "Look at that path, then repeat the command")


def test_the_refusal_inside_another_exception_counts() -> None:
    outer = RuntimeError("cannot write")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device", "x")
    assert explain(outer) == ("x: No space left on device", ADVICE[errno.ENOSPC])


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("4 GiB")])
def test_memory_is_a_sentence(error: MemoryError) -> None:
    result = raising(error)
    assert result.exit_code == 2 and result.stderr.startswith("error: out of memory")


def test_torchs_own_memory_error_is_one() -> None:
    import torch

    explained = explain(torch.OutOfMemoryError("CUDA out of memory"))
    assert explained is not None and explained[0] == "out of memory (CUDA out of memory)"


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), KeyError("y"), TypeError("unhashable"), ValueError("z")])
def test_a_bug_is_still_called_one(error: Exception) -> None:
    result = raising(error)
    assert result.exit_code == 70 and "This is a bug" in result.stderr


def test_another_broken_pipe_than_that_of_stdout_is_a_sentence() -> None:
    result = raising(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
    assert result.exit_code == 2 and result.stderr == f"error: Broken pipe\n  fix: {ADVICE[errno.EPIPE]}\n"


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("then", ["say('x')", "say_json({})", "print('x')", "say('x'); raise typer.Exit(1)"])
def test_a_reader_that_has_seen_enough_is_no_error_and_no_damage(then: str, unread: int) -> None:
    code = f"""
import sys, typer
from jobs.cli import main
from jobs.console import say, say_json
@main.app.command("go")
def go() -> None:
    {then}
sys.argv = ["clearance", "go"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=unread, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def told(stderr: Any) -> subprocess.CompletedProcess[bytes]:
    """A program that tells progress, a note, an error and a line of its log on stderr, and a result on stdout."""
    code = """
from jobs.console import *
from jobs.log import Log
from pipeline.notes import Note
lenient_streams()
for _ in range(2):
    make_console(stderr=True).print("progress " * 10_000)
    say_note(Note("a", "b"))
    say_error("a", "b")
    Log()("note", message="c")
say("result")
"""
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, timeout=120)


def test_without_a_reader_of_stderr_a_command_goes_on(unread: int) -> None:
    done = told(unread)
    assert (done.stdout, done.returncode) == (b"result\n", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_with_a_full_disk_under_stderr_a_command_goes_on() -> None:
    with open("/dev/full", "wb") as full:
        done = told(full)
    assert (done.stdout, done.returncode) == (b"result\n", 0)
