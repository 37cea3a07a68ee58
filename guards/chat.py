"""A client of OpenAI's chat completions, for a guard: one answer, within a time, a number of tries and a budget.

Any server that speaks the interface will do (vLLM, SGLang, llama.cpp, a service). Nothing that a server sends comes into a
message but its status and the names of its models: an error page may repeat the key.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import GuardUnavailable
from index.meant import meant
from index.printable import visible

BUDGET_FILE = "CLEARANCE_ANSWERS_BUDGET"  # of the environment: the file in which the processes of a worker count together
LARGEST = 1 << 20  # bytes of an answer
WIDTH = 160  # bytes of the file of a budget
LONGEST_PAUSE = 30.0  # seconds between two tries, whatever the server asks for
AGAIN = (408, 429, *range(500, 600))  # proxies before a server have numbers of their own: 520, 524, 529
FORBIDDEN = (401, 403)
ABSENT = (404, 405, 410)
LOST = 4  # questions in a row to which nothing came back; the next ones are tried once, until something does
CONNECT_SECONDS = 10.0
KEY = re.compile("[!-~]+")  # what a header can carry as one word


class Unanswered(Exception):
    """There is no answer that can be used; the text is the reason, for people."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What calls took so far."""

    calls: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Budget:
    """Calls, seconds and tokens that may be spent; 0: no limit. A call that has begun is finished.

    Args:
        most: the limits.
        file: where the processes of a worker count together; None: this object counts alone.
    """

    def __init__(self, most: Spent, file: Path | None = None) -> None:
        self.most, self.file = most, file
        self._lock, self._spent = threading.Lock(), Spent()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "file": self.file, "_spent": self._spent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def begin(self) -> None:
        """Count one call that is about to be made.

        Raises:
            Unanswered: the budget is spent.
        """

        def one_more(spent: Spent) -> Spent:
            for name in ("calls", "seconds", "tokens"):
                most = getattr(self.most, name)
                if most and getattr(spent, name) >= most:
                    raise Unanswered(f"the budget is spent: {getattr(spent, name):,.0f} of {most:,.0f} {name}")
            return Spent(calls=spent.calls + 1, seconds=spent.seconds, tokens=spent.tokens)

        self._change(one_more)

    def end(self, seconds: float, tokens: int) -> None:
        """Count what the call took."""
        self._change(lambda spent: Spent(calls=spent.calls, seconds=spent.seconds + seconds, tokens=spent.tokens + tokens))

    @property
    def spent(self) -> Spent:
        return self._change(lambda spent: spent)

    def _change(self, by: Callable[[Spent], Spent]) -> Spent:
        with self._lock:
            if self.file is None:
                self._spent = by(self._spent)
                return self._spent
            with self.file.open("r+", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)  # released as the file is closed
                text = stream.read()
                changed = by(Spent(**json.loads(text)) if text else Spent())
                stream.seek(0)  # of one length, written over: a process that is killed here leaves no empty count
                stream.write(json.dumps(changed.__dict__).ljust(WIDTH))
                return changed


def shared_file() -> Path | None:
    """The file in which the processes of this worker count together; None where there is none."""
    named = os.environ.get(BUDGET_FILE, "")
    return Path(named) if named and Path(named).is_file() else None


class Chat:
    """Asks a server.

    Args:
        server: address, model, key (the name of an environment variable), seconds, retries, concurrency, limits; see
            :class:`pipeline.guard_settings.VisionLanguagePolicy`.
        guard: name of the guard, for messages.
        pause: waits between two tries, in seconds.
    """

    def __init__(self, server: Any, guard: str, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.server, self.guard, self._pause = server, guard, pause
        most = Spent(calls=server.most_calls, seconds=server.most_seconds, tokens=server.most_tokens)
        self.budget = Budget(most, shared_file())
        self._pool: Any = None
        self._lost = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    @property
    def where(self) -> str:
        return f"guard {self.guard}: {self.server.address}"

    def key(self) -> str:
        """The key, out of the environment; empty where none is wanted.

        Raises:
            GuardUnavailable: the variable is not set, or holds what no key can be. The message does not repeat it.
        """
        name = self.server.key
        if not name:
            return ""
        key = os.environ.get(name, "").strip()  # a file that it was read from ends with a line break
        if not key:
            fix = f"Set {name} where the run starts (on Ray: in the environment of its workers), or remove vision_language.key"
            raise GuardUnavailable(f"the environment has no {name}", where=f"guard {self.guard}", fix=fix)
        if not KEY.fullmatch(key):  # libraries would refuse it too, with a message that repeats it
            what = f"{name} of the environment holds a blank, a line break or a sign beyond ASCII, as no key does"
            fix = f"Set {name} to the key alone: no quotation marks, no second line, nothing before or behind it"
            raise GuardUnavailable(what, where=f"guard {self.guard}", fix=fix)
        return key

    def greet(self) -> None:
        """Ask the server for its models, which costs no tokens: before a run draws anything.

        Raises:
            GuardUnavailable: it does not answer, refuses the key, has no such model, or takes no questions at that address.
        """
        try:
            status, body, _ = self._request("GET", "/models", None)
            if status not in (200, *FORBIDDEN):  # no list: an empty question says whether questions are taken, at no cost
                status = self._request("POST", "/chat/completions", {"model": self.server.model, "messages": []})[0]
        except Unanswered as reason:
            fix = "Start the server, or correct vision_language.address"
            if "TLS" in str(reason):
                fix = (
                    "Correct vision_language.address; SSL_CERT_FILE of the environment names certificates of your own to trust"
                )
            raise GuardUnavailable(f"the server does not answer ({reason})", where=self.where, fix=fix) from None
        if status in FORBIDDEN:
            fix = f"Put the right key into {self.server.key}" if self.server.key else "Name its variable: vision_language.key"
            raise GuardUnavailable(f"the server refuses the key (HTTP {status})", where=self.where, fix=fix)
        if status >= 500 or 300 <= status < 400 or status in ABSENT:
            fix = "Correct vision_language.address: what stands before /chat/completions, with most servers http://HOST:PORT/v1"
            fix = "Wait until it has started, and look at its log" if status >= 500 else fix
            raise GuardUnavailable(f"the server takes no questions there (HTTP {status})", where=self.where, fix=fix)
        try:
            names = [visible(str(one["id"]), lines=False) for one in json.loads(body)["data"]] if status == 200 else []
        except (ValueError, KeyError, TypeError, RecursionError):
            names = []  # not every server lists its models; the first question shows whether it has this one
        if names and self.server.model not in names:
            fix = meant(self.server.model, names, otherwise=f"It has {', '.join(names[:8])}")
            raise GuardUnavailable(f"the server has no model {self.server.model!r}", where=self.where, fix=fix)

    def ask(self, messages: list[dict[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to a conversation, as plain data.

        A server that is gone is not asked again and again about every picture: a run would wait for it for days.

        Raises:
            Unanswered: a time-out, a refusal, a broken connection, something else than JSON; or the budget is spent.
        """
        body = {"model": self.server.model, "messages": messages, "temperature": 0, "seed": 0, "stream": False, **more}
        reason, heard, tries = "", False, 1 if self._lost >= LOST else self.server.retries + 1
        for number in range(tries):
            self.budget.begin()
            began, tokens, wait = time.monotonic(), 0, min(LONGEST_PAUSE, 0.5 * 2**number)
            try:
                status, raw, asked = self._request("POST", "/chat/completions", body)
                heard, self._lost = True, 0
                if status == 200:
                    answer = _object(raw)
                    tokens = _tokens(answer)
                    return answer
                reason, wait = f"HTTP {status}", min(LONGEST_PAUSE, asked) if asked is not None else wait
                if status not in AGAIN:
                    break
            except Unanswered as error:
                reason = str(error)
            finally:
                self.budget.end(time.monotonic() - began, tokens)
            if number + 1 < tries:
                self._pause(wait)
        if not heard:
            self._lost += 1
        raise Unanswered(reason)

    def _request(self, method: str, path: str, body: Any) -> tuple[int, bytes, float | None]:
        """Status, content, and the seconds that the server asks to wait for."""
        from guards.timed_call import within

        limit = self.server.seconds
        try:
            return within(limit, lambda: self._exchanged(method, path, body))
        except TimeoutError:
            raise Unanswered(f"no answer within {limit:g} s") from None

    def _exchanged(self, method: str, path: str, body: Any) -> tuple[int, bytes, float | None]:
        """The same, however long it takes: the limits here hold for one step of it."""
        import urllib3

        from guards.timed_call import connections

        if self._pool is None:
            self._pool = connections(maxsize=self.server.concurrency, retries=False)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self.key():
            headers["Authorization"] = f"Bearer {key}"
        limit = self.server.seconds
        timeout = urllib3.Timeout(connect=min(CONNECT_SECONDS, limit), read=limit)
        data = None if body is None else json.dumps(body).encode()
        try:
            # Redirects are not followed: the key goes to the address that the policy names and nowhere else.
            response = self._pool.request(
                method, self.server.address.rstrip("/") + path, body=data, headers=headers, timeout=timeout, redirect=False,
                preload_content=False,
            )  # fmt: skip
            try:
                content = b""
                while piece := response.read1(1 << 16):
                    content += piece
                    if len(content) > LARGEST:
                        raise Unanswered("an answer of more than 1 MiB")
            except BaseException:
                response.close()  # what is left of it must not be read as the next answer
                raise
            response.release_conn()
        except urllib3.exceptions.SSLError:
            raise Unanswered("its certificate is not trusted, or it does not speak TLS there") from None
        except urllib3.exceptions.NewConnectionError:
            raise Unanswered("the connection failed: nobody answers there") from None
        except urllib3.exceptions.TimeoutError:
            raise Unanswered(f"no answer within {limit:g} s") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unanswered(f"the connection failed ({type(error).__name__})") from None
        return int(response.status), content, _seconds(response.headers.get("Retry-After"))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        raise Unanswered("the server sent something else than whole JSON") from None
    if not isinstance(answer, dict):
        raise Unanswered("the server sent JSON that is no answer")
    return answer


def _tokens(answer: Mapping[str, Any]) -> int:
    """As the server counts them; 0 where it does not."""
    usage = answer.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else 0


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None  # a date: rare, and our own pause will do
