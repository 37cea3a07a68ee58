"""Structured logs: one JSON object a line on stderr, for a machine that collects them.

Only the fields of :data:`FIELDS` are written. Prompts, secrets and credentials in addresses are not: what a library says in an
exception is left out, because it may quote a prompt; it stays in the run's events. Text that equals a prompt of the run or a
secret of the environment is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Any

ENVIRONMENT = "CLEARANCE_LOG_FORMAT"
# Every field of a line: what it holds.
FIELDS = {
    "time": "when, in UTC",
    "level": "info, warning or error",
    "event": "what happened: an event of the run, `committed` and `failed` of a worker, `error`, `note` or `nothing_to_draw` "
    "of the command",
    "run_id": "the run",
    "shard": "the shard it is about",
    "worker": "the worker it is about",
    "row": "number of the request in the plan, from 0; keys and prompts are not written",
    "done": "requests that have ended",
    "total": "requests of the plan",
    "outcomes": "ended requests by outcome",
    "shards_open": "shards that are not committed",
    "seconds": "how long it took",
    "reason": "a reason code",
    "error_class": "class of the error",
    "topic": "what a note is about",
    "message": "a sentence for people",
    "fix": "what to do about an error",
}
HIDDEN = "[hidden]"
_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|SALT|API_?KEY|ACCESS_KEY|ACCOUNT_KEY|SAS", re.IGNORECASE)
_LEAST_SECRET, _LEAST_PROMPT = 6, 8  # characters; shorter ones are also words of every other sentence
_USER_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_QUERY_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?'\"]+)\?[^\s'\"]*", re.IGNORECASE)
_FOREIGN = re.compile(r"\b([A-Z][a-z]\w*[A-Z]?\w*): .*", re.DOTALL)  # "ValueError: …", and all behind it


class Log:
    """Writes lines.

    Args:
        stream: where to; stderr when not given.
        about: fields that every line has.
        prompts: gives the texts of the run that must not be written; asked when there is something to compare with them.
    """

    def __init__(self, stream: IO[str] | None = None, *, prompts: Callable[[], Iterable[str]] = tuple, **about: Any) -> None:
        self._stream, self._prompts, self._about = stream, prompts, about
        self._secrets = sorted(
            {value for name, value in os.environ.items() if _SECRET_NAMES.search(name) and len(value) >= _LEAST_SECRET},
            key=len,
            reverse=True,
        )
        self._lock = threading.Lock()

    def __call__(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write a line; empty fields are left out.

        Raises:
            KeyError: a field that is not in :data:`FIELDS`.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "level": level, "event": event}
        for name, value in {**self._about, **fields}.items():
            FIELDS[name]  # a field outside the table is a bug: nobody has thought about what it may reveal
            if value not in ("", None):
                line[name] = self._clean(value) if isinstance(value, str) else value
        text = json.dumps(line, separators=(",", ":"))
        with self._lock:
            stream = self._stream or sys.stderr
            with contextlib.suppress(OSError):  # a collector that died, or a full disk, ends no run
                stream.write(text + "\n")
                stream.flush()

    def _clean(self, text: str) -> str:
        text = _FOREIGN.sub(r"\1 (its text is left out)", text)
        text = _QUERY_IN_ADDRESS.sub(rf"\1?{HIDDEN}", _USER_IN_ADDRESS.sub(rf"\1{HIDDEN}@", text))
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        if " " in text:  # a sentence
            for prompt in self._prompts():
                if len(prompt) >= _LEAST_PROMPT and prompt in text:
                    text = text.replace(prompt, HIDDEN)
        return text


def wanted(option: str = "") -> bool:
    """Whether lines of JSON are asked for: by the option, else by the environment."""
    return (option or os.environ.get(ENVIRONMENT, "")) == "json"


_log: ContextVar[Log | None] = ContextVar("log", default=None)


def log_in_use() -> Log | None:
    """The log of this command; None: it writes for people."""
    return _log.get()


def use(log: Log) -> None:
    """Write to this log until the command ends; so do the workers of a Ray that it starts."""
    _log.set(log)
    os.environ[ENVIRONMENT] = "json"


@contextlib.contextmanager
def of_one_command() -> Iterator[None]:
    """What :func:`use` sets inside the block ends with it."""
    token, before = _log.set(None), os.environ.get(ENVIRONMENT)
    try:
        yield
    finally:
        _log.reset(token)
        if before is None:
            os.environ.pop(ENVIRONMENT, None)
        else:
            os.environ[ENVIRONMENT] = before
