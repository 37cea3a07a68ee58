"""Verify who signed a run and when: stages signature and time stamp."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError
from index.storage import digest_of, entry_of, read_file
from pipeline.audit.envelope import ENVELOPE_FILE, PAYLOAD_TYPE, SIGN_AGAIN, SIGNED, last_event, public_key, read_envelope
from pipeline.audit.ledger import SEALED
from pipeline.audit.shards import RUN_FILE
from pipeline.audit.stage import SIGNATURE, TIME_STAMP, Findings
from pipeline.audit.timestamp import STAMP_FILE, STAMPED, certificates, distrust, parse, read_stamp

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Trust:
    """Whom a verifier trusts. A signature or time stamp that nobody was named for is compared with the record and skipped.

    Attributes:
        key_pem: public key (PEM) of who signs; empty: none was named.
        key_id: id of that key.
        signed: the run must be signed; one that is not fails. For those who know that it was, since a signature can be removed.
        tsa_roots: root certificates (PEM) of time stamping authorities; empty: none were named.
    """

    key_pem: bytes = field(default=b"", repr=False)
    key_id: str = ""
    signed: bool = False
    tsa_roots: bytes = field(default=b"", repr=False)


NOBODY = Trust()


def check_signature(folder: Path, events: Events, trust: Trust, found: Findings) -> None:
    """Hold the envelope against the statement, the events and the key."""
    event = last_event(events, SIGNED)
    line = f"event {event['seq']}" if event else ""
    try:
        read = read_envelope(folder)
    except ClearanceError as error:
        found.counts["files"] += 1
        found.problem(SIGNATURE, ENVELOPE_FILE, error.what)
        return
    if read is None:
        if event is not None:
            found.problem(SIGNATURE, ENVELOPE_FILE, f"is missing; {line} names a signature")
        elif trust.signed:
            what = "is missing: the run is not signed, or its signature was removed"
            found.problem(SIGNATURE, ENVELOPE_FILE, what)
        else:
            found.skipped(SIGNATURE, "the run was not signed")
        return
    envelope, data = read
    found.counts["files"] += 1
    if event is None:
        found.problem(SIGNATURE, ENVELOPE_FILE, "no event names this signature")
    elif event["digests"].get("envelope_sha256") != hashlib.sha256(data).hexdigest():
        found.problem(SIGNATURE, ENVELOPE_FILE, f"is not the envelope that {line} names")
    _check_payload(folder, envelope, events, found)
    _check_key(envelope, trust, found)


def _check_payload(folder: Path, envelope: Envelope, events: Events, found: Findings) -> None:
    if envelope.payload_type != PAYLOAD_TYPE:
        found.problem(SIGNATURE, ENVELOPE_FILE, f"holds {envelope.payload_type!r}, not an in-toto statement")
    try:
        same = read_file(folder, RUN_FILE) == envelope.payload
    except ClearanceError as error:
        found.problem(SIGNATURE, ENVELOPE_FILE, f"signs a statement; {RUN_FILE} {error.what}")
        return
    if same:
        return
    signed = hashlib.sha256(envelope.payload).hexdigest()
    seals = [event for event in events if event["kind"] == SEALED]
    if seals and seals[-1]["digests"].get("run_sha256") == signed:  # signing again would sign what was changed
        what = f"{RUN_FILE} was changed since the last seal, event {seals[-1]['seq']}; the envelope's payload holds the bytes"
        found.problem(SIGNATURE, ENVELOPE_FILE, f"{what} that were sealed: restore {RUN_FILE} from it")
    elif any(event["digests"].get("run_sha256") == signed for event in seals):
        found.problem(SIGNATURE, ENVELOPE_FILE, f"signs the statement of an earlier seal. {SIGN_AGAIN}")
    else:
        found.problem(SIGNATURE, ENVELOPE_FILE, f"signs another statement than the one in {RUN_FILE}. {SIGN_AGAIN}")


def _check_key(envelope: Envelope, trust: Trust, found: Findings) -> None:
    names = ", ".join(envelope.signatures)
    if not trust.key_pem:
        found.skipped(SIGNATURE, f"signed with key {names}; no public key was given to check it with")
        return
    key = public_key(trust.key_pem, trust.key_id, where="the public key")
    if trust.key_id not in envelope.signatures:
        what = f"is signed with key {names}; the key given is {trust.key_id} (of a replaced key, keep and name the .pub)"
        found.problem(SIGNATURE, ENVELOPE_FILE, what)
        return
    try:
        envelope.verify([key], 1)
    except Exception as error:  # the library raises several kinds
        found.problem(SIGNATURE, ENVELOPE_FILE, f"the signature is not valid under key {trust.key_id} ({error})")
        return
    covers = f"key {trust.key_id} signed {RUN_FILE}, and with it all that stage statement names; no later event"
    found.compared(SIGNATURE, covers)


def check_time_stamp(folder: Path, events: Events, trust: Trust, found: Findings) -> None:
    """Hold the time stamp against the file that it covers, the events and the roots."""
    event = last_event(events, STAMPED)
    line = f"event {event['seq']}" if event else ""
    try:
        answer = read_stamp(folder)
        if answer is None:
            if event is not None:
                found.problem(TIME_STAMP, STAMP_FILE, f"is missing; {line} names a time stamp")
            else:
                found.skipped(TIME_STAMP, "the run has no time stamp")
            return
        found.counts["files"] += 1
        if event is None:
            found.problem(TIME_STAMP, STAMP_FILE, "no event names this time stamp")
        elif event["digests"].get("tsr_sha256") != hashlib.sha256(answer).hexdigest():
            found.problem(TIME_STAMP, STAMP_FILE, f"is not the time stamp that {line} names")
        response = parse(answer)
    except ClearanceError as error:
        found.problem(TIME_STAMP, STAMP_FILE, error.what)
        return
    digest, time = response.tst_info.message_imprint.message, response.tst_info.gen_time.isoformat(timespec="seconds")
    covers = [name for name in (ENVELOPE_FILE, RUN_FILE) if _digest(folder, name) == digest.hex()]
    if not covers:
        what = f"is over neither {ENVELOPE_FILE} nor {RUN_FILE} as they are now: stamp the run again"
        found.problem(TIME_STAMP, STAMP_FILE, what)
        return
    roots = certificates(trust.tsa_roots)
    if not roots:
        found.skipped(TIME_STAMP, f"{covers[0]} is stamped {time}; nobody to trust was named, so nothing says by whom")
    elif why := distrust(response, digest, roots):
        found.problem(TIME_STAMP, STAMP_FILE, f"is not valid under the roots given ({why})")
    else:
        found.compared(TIME_STAMP, f"{covers[0]} existed at {time}, as an authority under the roots given states")


def _digest(folder: Path, name: str) -> str:
    try:
        return digest_of(folder, name) if entry_of(folder, name) is not None else ""
    except ClearanceError:
        return ""
