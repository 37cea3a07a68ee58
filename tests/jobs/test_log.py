"""Structured logs: every line is one object, and no prompt and no secret is in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import main as cli
from jobs.log import FIELDS, HIDDEN, Log, log_in_use

SECRET = "planted-secret-5d1f"
PROMPT = "crash of a planted prompt"


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def run_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_loop: Callable[..., Any],
    opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> Path:
    opening(loop=open_loop, identity=identity)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / "run.toml").write_text('prompts = "prompts.txt"\nout = "run"\nshard_size = 2\n')
    return tmp_path / "run.toml"


def run(run_file: Path, prompts: str, *more: str) -> tuple[list[dict[str, Any]], Any]:
    (run_file.parent / "prompts.txt").write_text(prompts)
    done = CliRunner().invoke(cli.app, ["run", str(run_file), "--log-format", "json", *more])
    return lines_of(done.stderr), done


def test_every_line_names_the_run_and_what_it_is_about(run_file: Path) -> None:
    lines, done = run(run_file, "cat\nowl\nfox\n")
    assert done.exit_code == 0 and done.stdout == ""
    assert {field for line in lines for field in line} <= set(FIELDS)
    committed = [line for line in lines if line["event"] == "committed"]
    assert [line["worker"] for line in committed] == ["local-0", "local-0"]
    assert [line["outcomes"] for line in committed] == [{"accepted": 2}, {"accepted": 1}]
    assert len({line["run_id"] for line in lines if "run_id" in line}) == 1
    assert all(line["run_id"] for line in lines if line["event"] in ("committed", "shard", "worker", "finished"))
    assert lines[-1]["event"] == "finished" and lines[-1]["done"] == 3


def test_a_stream_that_takes_nothing_more_ends_no_run() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    Log(Full())("note", message="a sentence")


def test_with_json_the_result_stays_on_stdout(run_file: Path) -> None:
    _, done = run(run_file, "cat\nowl\n", "--json")
    assert json.loads(done.stdout)


def test_a_night_with_nothing_new_is_a_line_too(run_file: Path) -> None:
    (run_file.parent / "run.toml").write_text('prompts = "prompts.txt"\nout = "set/{number}"\n')
    run(run_file, "cat\nowl\n")
    (line,), done = run(run_file, "cat\nowl\n", "--only-new")
    assert done.exit_code == 0 and line["event"] == "nothing_to_draw"
    assert line["message"].endswith("0 of 2 requests are new, 2 are there")


def test_a_request_that_failed_is_a_line_with_its_row_and_class(run_file: Path) -> None:
    (run_file.parent / "run.toml").write_text('prompts = "prompts.csv"\nout = "run"\n')
    (run_file.parent / "prompts.csv").write_text("prompt\ncat\n\n,\n")
    (run_file.parent / "prompts.csv").write_text('prompt,key\ncat,a\n"",b\n')
    done = CliRunner().invoke(cli.app, ["run", str(run_file), "--log-format", "json"])
    failed = [line for line in lines_of(done.stderr) if line["event"] == "failed"]
    assert [(line["row"], line["reason"], line["error_class"]) for line in failed] == [(1, "input.empty_prompt", "InputError")]


def test_neither_prompt_nor_secret_is_logged_when_a_worker_quotes_both(
    run_file: Path, opening: Callable[..., None], open_loop: Callable[..., Any], identity: Callable[..., Any]
) -> None:
    def quoting(*arguments: Any) -> Any:
        loop = open_loop(*arguments)

        def step() -> Any:
            raise ValueError(f"cannot draw {PROMPT!r} with {SECRET} from s3://user:{SECRET}@bucket/x?X-Amz-Signature=abc")

        loop.step = step
        return loop

    opening(loop=quoting, identity=identity)
    lines, done = run(run_file, f"{PROMPT}\ncat\n")
    assert done.exit_code == 2
    error = next(line for line in lines if line["event"] == "error")
    assert error["message"].endswith("ValueError (its text is left out)")
    assert "--resume" in error["fix"]
    for word in (SECRET, "planted prompt", "Signature", "abc"):
        assert word not in done.stderr


def test_prompts_secrets_and_credentials_are_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_TOKEN", SECRET)
    stream = io.StringIO()
    log = Log(stream, prompts=lambda: [PROMPT])
    log("note", message=f"the text {PROMPT} with {SECRET} at s3://id:pw@bucket/a?sig=zz and a plain word")
    (line,) = lines_of(stream.getvalue())
    assert line["message"] == (f"the text {HIDDEN} with {HIDDEN} at s3://{HIDDEN}@bucket/a?{HIDDEN} and a plain word")


def test_a_field_that_nobody_thought_about_is_refused() -> None:
    with pytest.raises(KeyError):
        Log(io.StringIO())("note", prompt="x")


def test_an_error_before_the_run_is_a_line_too(run_file: Path) -> None:
    lines, done = run(run_file, "")
    assert done.exit_code == 2 and [line["event"] for line in lines] == ["error"]
    assert log_in_use() is None  # it ended with its command


def test_the_environment_asks_for_it_too_and_the_option_wins(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_LOG_FORMAT", "json")
    (run_file.parent / "prompts.txt").write_text("cat\n")
    shown = CliRunner().invoke(cli.app, ["run", str(run_file)])
    assert lines_of(shown.stderr)
    text = CliRunner().invoke(cli.app, ["run", str(run_file), "--resume", "--log-format", "text"])
    assert not text.stderr.startswith("{") and "requested" in text.output
