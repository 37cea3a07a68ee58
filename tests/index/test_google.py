"""Google Cloud Storage replaces an object by its generation alone: against a server that does its conditional writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from index import storage
from jobs.run.lease.lock import holder, lease


class Google(BaseHTTPRequestHandler):
    """Objects with generations, in memory."""

    objects: ClassVar[dict[str, tuple[bytes, int]]] = {}
    conditions: ClassVar[list[str | None]] = []  # of the writes
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        if found is None:
            self._answer(404)
        else:
            self._answer(200, *found)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        condition, (_, now) = self.headers["x-goog-if-generation-match"], self.objects.get(self.path, (b"", 0))
        self.conditions.append(condition)
        if condition is not None and int(condition) != now:
            self._answer(412)
            return
        self.objects[self.path] = data, now + 7
        self._answer(200, b"", now + 7)

    def _answer(self, status: int, body: bytes = b"", generation: int = 0) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Last-Modified": self.date_time_string()}
        if generation:
            headers |= {"ETag": f'"{generation}"', "x-goog-generation": str(generation)}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    Google.objects.clear()
    Google.conditions.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Google) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_BASE_URL", address)
        yield storage.place("gs://bucket/run")
        server.shutdown()


def test_an_object_is_replaced_by_its_generation(folder: Path) -> None:
    assert storage.create_once(folder, "pointer", b"1")
    seen = storage.read_tagged(folder, "pointer")
    assert seen is not None
    second = storage.replace_if(folder, "pointer", b"2", seen.tag)
    assert second is not None
    assert storage.replace_if(folder, "pointer", b"3", seen.tag) is None
    assert storage.replace_if(folder, "pointer", b"4", second) is not None
    assert storage.read_file(folder, "pointer") == b"4"
    assert Google.conditions == ["0", "7", "7", "14"]


def test_a_lease_is_held_and_let_go(folder: Path) -> None:
    with lease(folder, beat=60):
        assert "epoch 1" in holder(folder)
    with lease(folder, beat=60):
        assert "epoch 2" in holder(folder)
    assert holder(folder) == ""
