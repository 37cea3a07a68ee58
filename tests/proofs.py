"""What proofs are tested with: keys made for the test, and a real time stamping authority (openssl) behind a local server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from pipeline.keys import STATEMENT, STATEMENT_PUBLIC, Keys

CONFIG = """
[req]
distinguished_name = dn
prompt = no
[dn]
CN = {name}
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = tsa_config
[tsa_config]
dir = {folder}
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ordering = no
tsa_name = no
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


def openssl(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False)


def must(*arguments: object) -> None:
    done = openssl(*arguments)
    assert done.returncode == 0, done.stderr.decode()


def keys_in(folder: Path) -> Keys:
    """A folder with a key that signs statements, and nothing else."""
    folder.mkdir(parents=True)
    key = Ed25519PrivateKey.generate()
    (folder / STATEMENT).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / STATEMENT_PUBLIC).write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path in folder.iterdir():
        path.chmod(0o600)
    return Keys(folder)


@dataclass(frozen=True)
class Authority:
    """A time stamping authority made for a test: its root certificate, and the folder with its keys."""

    folder: Path
    root: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Its answers hold the signer's certificate alone: strict DER sorts a set of two, which openssl does not."""
        folder.mkdir(parents=True)
        config = folder / "openssl.cnf"
        config.write_text(CONFIG.format(folder=folder, name="Test root"))
        (folder / "serial").write_text("01\n")
        root = (*"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -extensions ca -config".split(), config)
        must(*root, "-keyout", folder / "root.key", "-out", folder / "root.pem")
        config.write_text(CONFIG.format(folder=folder, name="Test authority"))
        asked = (*"req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -config".split(), config)
        must(*asked, "-keyout", folder / "tsa.key", "-out", folder / "tsa.csr")
        by = ("-CA", folder / "root.pem", "-CAkey", folder / "root.key", "-CAcreateserial", "-days", 2)
        extensions = ("-extfile", config, "-extensions", "leaf")
        must("x509", "-req", "-in", folder / "tsa.csr", *by, *extensions, "-out", folder / "tsa.pem")
        return cls(folder, folder / "root.pem")

    def end(self, at: datetime) -> None:
        """Let both certificates end at that time; keys and names stay."""
        issuer = load_pem_private_key((self.folder / "root.key").read_bytes(), None)
        for name in ("tsa.pem", "root.pem"):
            old = x509.load_pem_x509_certificate((self.folder / name).read_bytes())
            made = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
            made = made.serial_number(old.serial_number).not_valid_before(old.not_valid_before_utc).not_valid_after(at)
            for one in old.extensions:
                made = made.add_extension(one.value, one.critical)
            (self.folder / name).write_bytes(made.sign(issuer, hashes.SHA256()).public_bytes(Encoding.PEM))  # type: ignore[arg-type]

    def answer(self, url: str, request: bytes) -> bytes:
        """The answer to a request, as openssl gives it."""
        query, reply = self.folder / "query.tsq", self.folder / "reply.tsr"
        query.write_bytes(request)
        must("ts", "-reply", "-config", self.folder / "openssl.cnf", "-queryfile", query, "-out", reply)
        return reply.read_bytes()

    def confirms(self, stamp: Path, data: Path, *more: object) -> bool:
        """Whether openssl finds a time stamp to be this authority's, over these data."""
        return openssl("ts", "-verify", *more, "-in", stamp, "-data", data, "-CAfile", self.root).returncode == 0

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address, while the block lasts."""
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = answer("", self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
