"""Sign a run: its statement in a DSSE envelope, ``run.dsse.json``, that other people's tools can check.

The payload of the envelope is ``run.json``, byte for byte, so nobody has to agree on a canonical form of JSON to check it. What
is signed is DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse, protocol 1.0.2) of an in-toto
Statement v1. A signature covers what the statement states, every file, row count and event up to the seal; nothing later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, ConfigError, InputError, IntegrityError, RunStopped
from index.storage import entry_of, parse_object, read_file, write_file
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import SEALED, scan_statement
from pipeline.audit.shards import RUN_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import Key, Signer

ENVELOPE_FILE = "run.dsse.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SIGNED = "run.signed"
SIGN_AGAIN = "Sign it again: clearance sign RUN --keys FOLDER"


@dataclass(frozen=True)
class Signature:
    """A signature that was made.

    Attributes:
        key_id: id of the key, as ``clearance keys`` shows it.
        envelope_sha256: digest of ``run.dsse.json``.
    """

    key_id: str
    envelope_sha256: str


def local_signer(private: Ed25519PrivateKey, key_id: str) -> Signer:
    """A signer that holds its key in this process."""
    from securesystemslib.signer import CryptoSigner, SSlibKey

    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key(), keyid=key_id))


def remote_signer(uri: str, public_pem: bytes, key_id: str) -> Signer:
    """A signer whose key stays in a key service or a hardware module.

    Args:
        uri: of securesystemslib, by scheme: ``awskms:``, ``azurekms:``, ``gcpkms:``, ``hv:`` (HashiCorp Vault), ``hsm:``,
            ``file2:``. They need their provider's own library, and none but ``file2:`` was tried.
        public_pem: the public key, PEM.
        key_id: the id that the envelope names.

    Raises:
        ConfigError: the URI, the public key or the provider's library is not usable.
    """
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer

    try:
        return Signer.from_priv_key_uri(uri, public_key(public_pem, key_id, where="--key"))
    except ConfigError:
        raise
    except Exception as error:  # a provider's library may raise anything
        known = ", ".join(sorted(SIGNER_FOR_URI_SCHEME))
        what = f"cannot be used as a signer ({error})"
        raise ConfigError(what, where=uri, fix=f"Name one of the schemes {known}, and install its provider's library") from None


def public_key(pem: bytes, key_id: str, *, where: str) -> Key:
    """A public key (PEM) as the library wants it.

    Raises:
        ConfigError: it is not one.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem), keyid=key_id)
    except Exception:  # the reader of damaged bytes may raise anything
        fix = "Name the public half of the key that signs, such as statement.pub"
        raise ConfigError("is not a public key (PEM)", where=where, fix=fix) from None


def sign_run(folder: Path, signer: Signer, actor: str = "runner") -> Signature:
    """Write ``run.dsse.json`` over ``run.json``, and the event ``run.signed``. An earlier envelope is replaced.

    Raises:
        InputError: the run is not sealed.
        IntegrityError: the statement was changed, or is not the one that was sealed last; what was changed is not signed.
        RunStopped: the signer cannot sign, or the folder cannot be written.
    """
    from securesystemslib.dsse import Envelope

    statement, problems = scan_statement(folder)
    if statement is None and entry_of(folder, RUN_FILE) is None:
        fix = "Let the run end first; a run that was stopped continues with --resume"
        raise InputError("the run is not sealed, so there is no statement to sign", where=str(folder), fix=fix)
    for where, what in problems:
        raise IntegrityError(what, where=f"{folder}/{where}", fix="Restore it from a copy; what was changed is not signed")
    data = read_file(folder, RUN_FILE)
    run_sha256 = hashlib.sha256(data).hexdigest()
    sealed = [event for event in read_events(folder) if event["kind"] == SEALED]
    if not sealed or sealed[-1]["digests"].get("run_sha256") != run_sha256:
        where = f"{folder}/{RUN_FILE}"
        raise IntegrityError("is not the statement that was sealed last", where=where, fix="Restore it from a copy")
    envelope = Envelope(data, PAYLOAD_TYPE, {})
    try:
        signature = envelope.sign(signer)
    except Exception as error:  # a provider's library may raise anything
        fix = f"The run is sealed and not signed. {SIGN_AGAIN}"
        raise RunStopped(f"the statement could not be signed ({error})", where=str(folder), fix=fix) from error
    written = envelope_bytes(envelope)
    write_file(folder, ENVELOPE_FILE, written)
    digest = hashlib.sha256(written).hexdigest()
    append_event(
        folder, SIGNED, actor, "statement signed", key_id=signature.keyid, envelope_sha256=digest, run_sha256=run_sha256
    )
    return Signature(signature.keyid, digest)


def envelope_bytes(envelope: Envelope) -> bytes:
    """An envelope as it stands in ``run.dsse.json``."""
    return json.dumps(envelope.to_dict(), sort_keys=True, indent=1).encode() + b"\n"


def read_envelope(folder: Path) -> tuple[Envelope, bytes] | None:
    """The envelope of a run and the bytes of its file; None: there is none.

    Raises:
        IntegrityError: it is not an envelope, or not written as one of ours; or as :func:`index.storage.open_file`.
    """
    if entry_of(folder, ENVELOPE_FILE) is None:
        return None
    from securesystemslib.dsse import Envelope  # it loads every key service's library that is there

    data = read_file(folder, ENVELOPE_FILE)
    plain = parse_object(data, where=ENVELOPE_FILE)
    try:
        envelope = Envelope.from_dict(plain)
        whole = bool(envelope.signatures) and envelope_bytes(envelope) == data
    except Exception:  # the reader of damaged bytes may raise anything
        whole = False
    if not whole:
        raise IntegrityError("was changed: it is not an envelope that was written here", where=ENVELOPE_FILE, fix=SIGN_AGAIN)
    return envelope, data


def signed_by(folder: Path) -> str:
    """A sentence on who signed a run, unchecked: for lists. :func:`pipeline.audit.verify.verify` checks."""
    try:
        found = read_envelope(folder)
    except ClearanceError as error:
        return f"{ENVELOPE_FILE} {error.what}"
    return f"signed with key {', '.join(found[0].signatures)} (not checked here)" if found else "not signed"


def last_event(events: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The last event of a kind."""
    return next((event for event in reversed(events) if event["kind"] == kind), None)
