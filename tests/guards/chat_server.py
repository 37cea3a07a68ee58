"""A local server that speaks OpenAI's chat completions, and answers as a test wants it."""

from __future__ import annotations

import base64
import io
import json
import math
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODEL = "tiny-vl"
Reply = tuple[int, bytes, dict[str, str]]
Way = Callable[[dict[str, Any], int], Reply]


def picture_in(body: dict[str, Any]) -> np.ndarray:
    """The picture of a request."""
    (url,) = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))))


def redness(body: dict[str, Any]) -> float:
    """The right answer to "is it red?": near 1 for red pictures, near 0 for others."""
    red, green, blue = picture_in(body).reshape(-1, 3).mean(0)
    return 0.97 if red > max(green, blue) + 40 else 0.02


def reply(message: Any, *, tokens: int = 100, status: int = 200, model: str = MODEL, **choice: Any) -> Reply:
    made = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": message}, **choice}
    return status, json.dumps({"model": model, "choices": [made], "usage": {"total_tokens": tokens}}).encode(), {}


def tokens_of(**probabilities: float) -> Reply:
    """An answer of one token with these likeliest ones."""
    top = [{"token": token.replace("_", " "), "logprob": math.log(p)} for token, p in probabilities.items()]
    return reply(top[0]["token"], logprobs={"content": [{"token": top[0]["token"], "top_logprobs": top}]})


def right(body: dict[str, Any], number: int) -> Reply:
    p = redness(body)
    if "logprobs" in body:
        return tokens_of(Yes=p, _no=1 - p) if p > 0.5 else tokens_of(no=1 - p, yes=p)
    said = {"answer": "yes" if p > 0.5 else "no", "confidence": max(p, 1 - p)}
    return reply(json.dumps(said))


class ChatServer:
    """Serves while it is open. ``way`` makes the answer of a request from its body and its number; it may be changed.

    Attributes:
        bodies: of the questions, in order. keys: what stood in the header of each.
        most: the most that were under way at one time.
        listing: the body of the list of models; None: a list of ``models``. listed: its status.
        trickle: instead of an answer, the first bytes that questions are sent, and those that follow without an end.
        keeps_open: it does not end a connection after an answer.
        connections: how many there were.
        released: the connections of such questions that the client ended.
    """

    listing: bytes | None = None
    listed = 200
    _scheme = "http"
    trickle: tuple[bytes, bytes] | None = None

    def __init__(self, way: Way = right, *, models: list[str] | None = None, key: str = "", keeps_open: bool = False) -> None:
        self.keeps_open = keeps_open
        self.way, self.models, self.key = way, [MODEL] if models is None else models, key
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.released = threading.Semaphore(0)
        self.most = self._now = self.connections = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def address(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}/v1"

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """From now on; both are files in PEM."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # The handshake belongs into the request's own thread: one that fails ends no other.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        self._scheme = "https"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if outer.keeps_open else "HTTP/1.0"

            def setup(self) -> None:
                with outer._lock:
                    outer.connections += 1
                super().setup()

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                allowed = not outer.key or self.headers.get("Authorization") == f"Bearer {outer.key}"
                listed = outer.listing or json.dumps({"data": [{"id": name} for name in outer.models]}).encode()
                self._send(outer.listed if allowed else 401, listed if allowed else b"bad key " + outer.key.encode(), {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers.get("Authorization", ""))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                if outer.trickle is not None:
                    return self._trickle(*outer.trickle)
                try:
                    status, data, headers = outer.way(body, number)
                finally:
                    with outer._lock:
                        outer._now -= 1
                self._send(status, data, headers)

            def _trickle(self, first: bytes, again: bytes) -> None:
                try:
                    self.wfile.write(first)
                    while True:
                        self.wfile.write(again)
                        self.wfile.flush()
                        time.sleep(0.01)
                except OSError:
                    self.close_connection = True
                    outer.released.release()

            def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                drip = float(headers.pop("Drip", 0))
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for at in range(0, len(data), 8 if drip else 1 << 20):
                        self.wfile.write(data[at : at + (8 if drip else 1 << 20)])
                        self.wfile.flush()
                        time.sleep(drip)
                except OSError:  # the client gave up
                    pass

        return Handler
