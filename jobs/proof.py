"""Whose key signs a run, and whom a verifier trusts: from a folder of keys, files of keys, or a key service."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError, InputError
from pipeline.keys import STATEMENT, Keys, key_id

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from pipeline.audit.envelope import Signature
    from pipeline.audit.receipt import Receipt
    from pipeline.audit.stage_proof import Trust
    from pipeline.audit.timestamp import Stamp

PURPOSE = "statement"


def signer_of(keys: Keys) -> Signer | None:
    """The signer of a deployment's statements; None: its folder has no ``statement.key``.

    Raises:
        ConfigError: the key is damaged.
    """
    from pipeline.audit.envelope import local_signer

    private = keys.statement()
    if private is None:
        return None
    return local_signer(private, key_id(PURPOSE, private.public_key().public_bytes_raw()))


def id_of(pem: bytes, where: str) -> str:
    """Id of a public key (PEM), as ``clearance keys show`` prints it for Ed25519.

    Raises:
        ConfigError: it is not one.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except Exception:  # the reader of damaged bytes may raise anything
        fix = "Name the public half of the key that signs, such as statement.pub"
        raise ConfigError("is not a public key (PEM)", where=where, fix=fix) from None
    if isinstance(key, Ed25519PublicKey):
        return key_id(PURPOSE, key.public_bytes_raw())
    return key_id(PURPOSE, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def trust_in(keys: Keys, key_file: Path | None = None, tsa_roots: Path | None = None) -> Trust:
    """Whom to trust when a run is verified.

    Args:
        keys: the deployment's; its public key is used where no file is named.
        key_file: public key (PEM) of who must have signed.
        tsa_roots: root certificates (PEM) of time stamping authorities.

    Raises:
        ConfigError: a file is no key, or holds no certificates. InputError: it cannot be read.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from pipeline.audit.stage_proof import Trust

    roots = _roots(tsa_roots)
    if key_file is not None:
        pem = _read(key_file)
        return Trust(pem, id_of(pem, str(key_file)), signed=True, tsa_roots=roots)
    public = keys.statement_public()
    if public is None:
        return Trust(tsa_roots=roots)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Trust(pem, key_id(PURPOSE, public.public_bytes_raw()), tsa_roots=roots)


def sign(folder: Path, keys: Keys, *, uri: str = "", public: Path | None = None) -> Signature:
    """Sign a run that was sealed, with the deployment's key or one that stays in a key service.

    Args:
        folder: the run folder.
        keys: the deployment's.
        uri: of the signer; empty: the deployment's ``statement.key``.
        public: the public key (PEM) of that signer.

    Raises:
        ConfigError: there is no key to sign with, or it is not usable.
        ClearanceError: as :func:`pipeline.audit.envelope.sign_run`.
    """
    from pipeline.audit.envelope import remote_signer, sign_run

    if uri:
        if public is None:
            raise ConfigError("a signer named by URI needs its public key", where=uri, fix="Name its PEM file with --key")
        pem = _read(public)
        signer: Signer | None = remote_signer(uri, pem, id_of(pem, str(public)))
    else:
        signer = signer_of(keys)
    if signer is None:
        where = str(keys.folder / STATEMENT) if keys.folder else "keys"
        fix = "Name a folder with --keys (`clearance keys new FOLDER` makes one), or a key service with --signer"
        raise ConfigError("there is no key to sign with", where=where, fix=fix)
    return sign_run(folder, signer, "operator")


def stamp(folder: Path, url: str, tsa_roots: Path | None = None) -> Stamp:
    """Have a run stamped, and the answer checked under the roots, where some are named.

    Raises:
        ConfigError: the file of roots holds no certificates. InputError: it cannot be read.
        ClearanceError: as :func:`pipeline.audit.timestamp.stamp_run`.
    """
    from pipeline.audit.timestamp import stamp_run

    return stamp_run(folder, url, _roots(tsa_roots))


def receipt(folder: Path, keys: Keys, *, key: str = "", shard: str = "") -> Receipt:
    """A receipt (COSE) that a request or a shard is in a run; raises as :mod:`pipeline.audit.receipt` does.

    Raises:
        ConfigError: there is no key to sign with. InputError: neither or both were named.
    """
    from pipeline.audit.receipt import receipt_of_request, receipt_of_shard

    if bool(key) == bool(shard):
        raise InputError("a receipt is for one request or one shard", where="receipt", fix="Name --key KEY or --shard ID")
    private = keys.statement()
    if private is None:
        where = str(keys.folder / STATEMENT) if keys.folder else "keys"
        raise ConfigError("there is no key to sign a receipt with", where=where, fix="Name a folder with --keys")
    name = key_id(PURPOSE, private.public_key().public_bytes_raw())
    return receipt_of_request(folder, key, private, name) if key else receipt_of_shard(folder, shard, private, name)


def write_receipt(folder: Path, keys: Keys, out: Path, *, key: str = "", shard: str = "") -> dict[str, Any]:
    """Write a receipt, and beside it what its leaf is made of; returns the latter.

    Raises:
        InputError: a file cannot be written; or as :func:`receipt`.
    """
    made = receipt(folder, keys, key=key, shard=shard)
    about = {name: value for name, value in asdict(made).items() if name != "data"}
    _write(out, made.data)
    _write(out.with_name(f"{out.name}.json"), json.dumps(about, indent=1, default=str).encode() + b"\n")
    return about


def write_small_verifier(path: Path) -> None:
    """Write :mod:`pipeline.audit.verifier.clearance_verify` as a file of its own; it imports nothing of Clearance.

    Raises:
        InputError: the file cannot be written.
    """
    from importlib.resources import files

    _write(path, files("pipeline.audit.verifier").joinpath("clearance_verify.py").read_bytes())


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        what = f"cannot be written ({error.strerror or type(error).__name__})"
        raise InputError(what, where=str(path), fix="Name a file in a folder that this user can write to") from None


def _roots(path: Path | None) -> bytes:
    """Root certificates (PEM) of authorities; empty where no file is named. A file without one would check nothing."""
    from pipeline.audit.timestamp import certificates

    roots = _read(path) if path else b""
    if path and not certificates(roots, where=str(path)):
        raise ConfigError("holds no certificates (PEM)", where=str(path), fix="Name the authority's root certificates")
    return roots


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror or type(error).__name__})"
        raise InputError(what, where=str(path), fix="Name a file that this user can read") from None
