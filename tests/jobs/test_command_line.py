"""What holds for every command: -h, completion, --quiet, --verbose, NO_COLOR, and progress where there is no terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from jobs.cli import main as cli
from jobs.console import draws, make_console, set_volume
from jobs.run.event import Event
from jobs.run.progress import Steps, Watch


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def every(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from every(command, (*path, name))


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    yield
    set_volume("usual")


@pytest.fixture
def run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_loop: Callable[..., Any], opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> Path:  # fmt: skip
    opening(loop=open_loop, identity=identity)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text("prompt,key\ncat,a\nowl,b\n,d\n")
    (tmp_path / "run.toml").write_text('prompts = "prompts.csv"\nout = "run"\nshard_size = 1\nmax_error_rate = 1\n')
    return tmp_path / "run.toml"


@pytest.mark.parametrize("path", [*every(typer.main.get_command(cli.app)), ("lab",)], ids=lambda path: " ".join(path) or "-")
def test_h_is_help(path: tuple[str, ...]) -> None:
    short, long = call(*path, "-h"), call(*path, "--help")
    assert short.exit_code == 0
    assert short.output == long.output


def shell(**environment: str) -> str:
    code = "import sys; sys.argv = ['clearance']; from jobs.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    return done.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [("clearance ver", "verify"), ("clearance index set", "set-status"), ("clearance run --dry", "--dry-run")],
)
def test_a_shell_completes_commands_and_options(words: str, completed: str) -> None:
    last = str(len(words.split()) - 1)
    assert shell(_CLEARANCE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=last).split() == [completed]


def test_completion_is_shown_for_a_shell() -> None:
    assert "complete -o default -F _clearance_completion clearance" in shell(_CLEARANCE_COMPLETE="source_bash")


@pytest.mark.parametrize("where", ["before", "behind"])
def test_quiet_leaves_results_and_errors(run_file: Path, where: str) -> None:
    arguments = ["--quiet", "run", run_file] if where == "before" else ["run", run_file, "-q"]
    done = call(*arguments)
    assert done.exit_code == 0
    assert done.stderr == ""
    assert "1 request ended as an error; with the cause removed, --only-failed repeats it" in done.stdout
    again = call(*arguments)
    assert again.exit_code == 2 and "already holds this plan" in again.stderr


def test_usual_is_back_after_quiet(run_file: Path) -> None:
    call("run", run_file, "--quiet")
    assert "note: copies:" in call("run", run_file, "--resume").stderr


def test_verbose_is_a_line_for_every_step(run_file: Path) -> None:
    lines = call("run", run_file, "--verbose").stderr.splitlines()
    assert len([line for line in lines if line.startswith("run: sample: ")]) == 3
    assert len([line for line in lines if line.startswith("run: shard: ")]) == 3


def test_quiet_and_verbose_exclude_one_another() -> None:
    done = call("doctor", "-q", "-v")
    assert done.exit_code == 2 and "exclude one another" in done.stderr


def test_a_word_behind_two_dashes_is_no_option(tmp_path: Path) -> None:
    done = call("status", "--", "-q")
    assert done.exit_code == 2 and "no such run folder" in done.stderr


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> str:
        console = make_console()
        with console.capture() as captured:
            console.print("red", style="red")
        return captured.get()

    assert "\x1b[31m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in shown()


@pytest.mark.parametrize(
    ("terminal", "term", "volume", "bar"),
    [(True, "xterm", "usual", True), (True, "dumb", "usual", False), (False, "xterm", "usual", False),
     (True, "xterm", "quiet", False), (True, "xterm", "verbose", False)],
)  # fmt: skip
def test_a_bar_is_drawn_on_a_terminal_alone(terminal: bool, term: str, volume: Any, bar: bool) -> None:
    set_volume(volume)
    assert draws(Console(force_terminal=terminal, _environ={"TERM": term}, file=io.StringIO())) is bar


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=False, width=40), stream


def test_lines_without_a_terminal_have_rate_and_time_left() -> None:
    (console, stream), clock = plain(), Clock()
    with Watch(console, "monday", clock) as watch:
        watch(Event(kind="worker", done=0, total=100, outcomes={}, detail="worker local is ready"))
        for done in range(1, 51):
            clock.now += 1
            watch(Event(kind="sample", done=done, total=100, outcomes={"accepted": done}))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "monday: worker: worker local is ready"
    assert lines[1] == "monday: sample: 10/100 · 1.00/s · 100 % accepted · 1 min 30 s left"
    assert len(lines) == 1 + 5
    assert not set(stream.getvalue()) & set("\r\x1b\b")


def test_shards_of_many_workers_are_no_line_each() -> None:
    (console, stream), clock = plain(), Clock()
    with Watch(console, "run", clock) as watch:
        for done in range(1, 101):
            clock.now += 0.1
            watch(Event(kind="shard", done=done, total=100, outcomes={}))
        watch(Event(kind="finished", done=100, total=100, outcomes={}))
    assert [line.split(":")[1].strip() for line in stream.getvalue().splitlines()] == ["finished"]


def test_a_run_of_a_night_writes_hundreds_of_lines() -> None:
    (console, stream), clock = plain(), Clock()
    with Watch(console, "night", clock) as watch:
        for done in range(1, 8 * 3600):
            clock.now += 1
            watch(Event(kind="sample", done=done, total=8 * 3600, outcomes={}))
    count = len(stream.getvalue().splitlines())
    assert 8 * 3600 / 300 < count < 400


def test_what_happens_to_workers_is_always_a_line() -> None:
    (console, stream), clock = plain(), Clock()
    with Watch(console, "run", clock) as watch:
        for _ in range(3):
            watch(Event(kind="retried", done=0, total=1, outcomes={}, detail="worker 1 died"))
    assert len(stream.getvalue().splitlines()) == 3


def test_a_list_whose_length_comes_later_shows_the_time_left() -> None:
    console, stream = plain()
    set_volume("verbose")
    with Steps(console, "exporting", None) as steps:
        steps.at(1, 4)
    assert stream.getvalue().startswith("exporting: 1/4 · ") and stream.getvalue().endswith(" left\n")
