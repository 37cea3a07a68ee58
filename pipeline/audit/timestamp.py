"""Time stamps (RFC 3161): an authority states that a run's proof existed at a time. ``run.tsr`` holds its answer.

What is stamped is the file that stands highest: ``run.dsse.json`` of a signed run, else ``run.json``. So a time stamp covers
the signature as well. ``openssl ts -verify -in run.tsr -data run.dsse.json -CAfile ROOTS.pem`` checks it without Clearance.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ClearanceError, ConfigError, InputError, IntegrityError, RunStopped
from index.padding import first_line
from index.storage import entry_of, read_file, write_file
from pipeline.audit.envelope import ENVELOPE_FILE
from pipeline.audit.events import append_event, read_events
from pipeline.audit.shards import RUN_FILE

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from rfc3161_client import TimeStampResponse

STAMP_FILE = "run.tsr"
STAMPED = "run.stamped"
LARGEST = 1 << 20  # bytes of an answer; a real one has some thousands
SECONDS = 30.0  # to wait for an authority
Ask = Callable[[str, bytes], bytes]  # URL and request → answer


@dataclass(frozen=True)
class Stamp:
    """A time stamp that was obtained.

    Attributes:
        time: what the authority states.
        covers: the file whose digest it is over.
        tsr_sha256: digest of ``run.tsr``.
    """

    time: datetime
    covers: str
    tsr_sha256: str


def post(url: str, request: bytes) -> bytes:
    """Send a request to a time stamping authority and return its answer.

    Raises:
        InputError: the URL is none. RunStopped: the authority cannot be reached or answers something else.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise InputError("is not a URL of a time stamping authority", where=url, fix="Name one that begins with https://")
    from guards.timed_call import within

    question = urllib.request.Request(url, request, {"Content-Type": "application/timestamp-query"})

    def asked() -> tuple[str, bytes]:
        with urllib.request.urlopen(question, timeout=SECONDS) as answer:
            return answer.headers.get_content_type(), answer.read(LARGEST + 1)

    try:
        kind, data = within(SECONDS, asked)  # urllib limits each read of a socket, not all of them together
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or f"no whole answer in {SECONDS:.0f} seconds"
        fix = "Check the URL and the network; nothing was written"
        raise RunStopped(f"the authority cannot be asked ({reason})", where=url, fix=fix) from None
    if kind != "application/timestamp-reply" or len(data) > LARGEST:
        what = f"answered {kind}, not application/timestamp-reply"
        raise RunStopped(what, where=url, fix="Name the address of a time stamping authority (RFC 3161)")
    return data


def stamp_run(folder: Path, url: str, roots: bytes = b"", *, actor: str = "operator", ask: Ask = post) -> Stamp:
    """Ask an authority for a time stamp of a run's proof, and write ``run.tsr`` and the event ``run.stamped``.

    Args:
        folder: the run folder; sealed.
        url: of the authority.
        roots: certificates (PEM) that the answer is checked against before it is written; none: only its digest and nonce are
            checked.
        actor: the role that asks.
        ask: sends the request.

    Raises:
        InputError: the run is not sealed.
        RunStopped: the authority cannot be asked, refuses, or its answer is not about this run.
        ConfigError: the roots are no certificates.
    """
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    covers = next((name for name in (ENVELOPE_FILE, RUN_FILE) if entry_of(folder, name) is not None), "")
    if not covers:
        fix = "Let the run end first; a run that was stopped continues with --resume"
        raise InputError("the run is not sealed, so there is nothing to stamp", where=str(folder), fix=fix)
    read_events(folder)  # refuses events that were changed, before anything is sent
    data, trusted = read_file(folder, covers), certificates(roots)
    request = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).nonce(nonce=True).build()
    answer = ask(url, request.as_bytes())
    try:
        response = parse(answer)
    except IntegrityError as error:
        raise RunStopped(f"the authority's answer {error.what}", where=url, fix="Try another authority") from None
    digest = hashlib.sha256(data).digest()
    if response.tst_info.message_imprint.message != digest or response.tst_info.nonce != request.nonce:
        raise RunStopped("the authority's answer is not about this request", where=url, fix="Try another authority")
    if trusted and (why := distrust(response, digest, trusted)):
        fix = "Name the authority's root certificate with --tsa-roots; nothing was written"
        raise RunStopped(f"the authority's answer is not trusted: {why}", where=url, fix=fix)
    write_file(folder, STAMP_FILE, answer)
    stamp = Stamp(response.tst_info.gen_time, covers, hashlib.sha256(answer).hexdigest())
    append_event(
        folder,
        STAMPED,
        actor,
        f"{covers} stamped at {stamp.time.isoformat(timespec='seconds')}",
        tsr_sha256=stamp.tsr_sha256,
        stamped_sha256=digest.hex(),
        authority=url,
    )
    return stamp


def certificates(pem: bytes, *, where: str = "--tsa-roots") -> list[Certificate]:
    """The certificates of a PEM file; none of an empty one.

    Raises:
        ConfigError: it holds something else.
    """
    from cryptography import x509

    if not pem.strip():
        return []
    try:
        return x509.load_pem_x509_certificates(pem)
    except Exception:  # the reader of damaged bytes may raise anything
        fix = "Name a file with the root certificates of the authority"
        raise ConfigError("holds no certificates (PEM)", where=where, fix=fix) from None


def parse(answer: bytes) -> TimeStampResponse:
    """Read an authority's answer.

    Raises:
        IntegrityError: it is none, or a refusal.
    """
    from rfc3161_client import decode_timestamp_response

    try:
        response = decode_timestamp_response(answer)
        _ = response.tst_info.gen_time, response.tst_info.message_imprint.message  # a refusal has neither
    except Exception as error:  # the reader of damaged bytes may raise anything
        what = f"is not a time stamp (RFC 3161, strict DER): {first_line(error)}"
        raise IntegrityError(what, where=STAMP_FILE, fix="Stamp the run again") from None
    return response


def distrust(response: TimeStampResponse, digest: bytes, roots: list[Certificate]) -> str:
    """Why an answer is not a valid time stamp of a digest under these roots; empty: it is one."""
    from rfc3161_client import VerifierBuilder

    try:
        VerifierBuilder(roots=list(roots)).build().verify(response, digest)
    except Exception as error:  # the library raises its own error, and others for odd certificates
        return first_line(error)
    return ""


def read_stamp(folder: Path) -> bytes | None:
    """The bytes of ``run.tsr``; None: there is none."""
    return read_file(folder, STAMP_FILE) if entry_of(folder, STAMP_FILE) is not None else None


def stamped_at(folder: Path) -> str:
    """A sentence on a run's time stamp, unchecked: for lists. :func:`pipeline.audit.verify.verify` checks."""
    try:
        answer = read_stamp(folder)
        if answer is None:
            return "no time stamp"
        return f"stamped at {parse(answer).tst_info.gen_time.isoformat(timespec='seconds')} (not checked here)"
    except ClearanceError as error:
        return f"{STAMP_FILE} {error.what}"
