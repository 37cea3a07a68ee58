"""Make and show a folder of keys. What each file is for stands in :mod:`pipeline.keys`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ConfigError, RunStopped
from pipeline.keys import (
    C2PA_ANCHOR,
    C2PA_CHAIN,
    C2PA_KEY,
    PURPOSES,
    SALT,
    SECRETS,
    STATEMENT,
    STATEMENT_PUBLIC,
    TEST_ORGANISATION,
    WATERMARK,
    WATERMARK_BYTES,
    Keys,
    refuse_run_folder,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

DAYS = 90  # that a test certificate holds
BACKDATED = timedelta(hours=1)  # a worker's clock may be late


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One file of a folder of keys.

    Attributes:
        file: its name. purpose: what it is for.
        id: of the key, as rows and statements name it; empty: it has none.
        until: when its certificate ends; empty: it does not end.
        note: what to know about it.
    """

    file: str
    purpose: str
    id: str = ""
    until: str = ""
    note: str = ""


def new_keys(folder: Path, *, days: int = DAYS) -> list[str]:
    """Make a folder with every key; the C2PA certificates are a test chain.

    Args:
        folder: made with mode 700; nothing in it is overwritten.
        days: until the test certificates end.

    Returns:
        Warnings.

    Raises:
        ConfigError: a key is there already, or the folder lies in a run folder.
        RunStopped: it cannot be written.
    """
    refuse_run_folder(folder)
    there = [name for name in PURPOSES if os.path.lexists(folder / name)]
    if there:
        fix = "Name a new folder; keys are never overwritten, because what they signed or marked could not be checked any more"
        raise ConfigError(f"holds keys already ({', '.join(there)})", where=str(folder), fix=fix)
    files = _files(days)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_all(folder, files)
    except FileExistsError as error:
        fix = "Name a new folder"
        raise ConfigError("is there already", where=str(error.filename or folder), fix=fix) from None
    except OSError as error:
        what = f"cannot be written ({error.strerror or type(error).__name__})"
        raise RunStopped(what, where=str(error.filename or folder), fix="Check the path and its permissions") from None
    return list(Keys(folder).warnings())


def show_keys(folder: Path) -> list[Shown]:
    """What is in a folder of keys: ids and ends, never a secret.

    Raises:
        ConfigError: there is no such folder, it lies in a run folder, or a key in it is damaged.
    """
    keys = Keys.find(str(folder), base=Path.cwd(), environ={})
    ids, c2pa = keys.ids(), keys.c2pa()
    ids |= {STATEMENT: ids[STATEMENT_PUBLIC]} if keys.statement() is not None else {}
    shown = []
    for name, purpose in PURPOSES.items():
        note, until = "", ""
        if name == C2PA_CHAIN and c2pa is not None:
            until = f"{c2pa.not_after:%Y-%m-%d}"
            note = c2pa.subject + ("; a test chain: nobody else trusts it" if c2pa.test else "")
            note += f"; {c2pa.expired()}" if c2pa.expired() else ""
        if os.path.lexists(folder / name):
            shown.append(Shown(file=name, purpose=purpose, id=ids.get(name, ""), until=until, note=note))
    return shown


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Create files that only this user can read: all, or none. Half a set would sign or mark, and leave the rest off."""
    written: list[Path] = []
    try:
        for name, data in files.items():
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            written.append(folder / name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _files(days: int) -> dict[str, bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pem = serialization.Encoding.PEM
    statement = Ed25519PrivateKey.generate()
    files = {
        WATERMARK: secrets.token_hex(WATERMARK_BYTES).encode() + b"\n",
        STATEMENT: _pem(statement),
        STATEMENT_PUBLIC: statement.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        **c2pa_test_chain(days),
        SALT: secrets.token_hex(32).encode() + b"\n",
    }
    assert set(SECRETS) <= set(files)
    return files


def c2pa_test_chain(
    days: int = DAYS, *, now: datetime | None = None, organisation: str = TEST_ORGANISATION
) -> dict[str, bytes]:
    """A C2PA signer that calls itself a test: private key, certificate, and the root that a test trusts.

    The root's private key is thrown away: nothing else is ever issued under it. The certificate follows the C2PA
    specification's profile (2.2, section 14.5.1): no CA, digital signature, an extended key usage, key identifiers.

    Args:
        days: until both certificates end.
        now: the time they are made at.
        organisation: in every subject; another one is not recognised as a test.

    Returns:
        File name → bytes.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = now or datetime.now(UTC)
    ends = now + timedelta(days=days)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, name = _name("root, nobody trusts it", organisation), _name("signer", organisation)

    def signed(builder: CertificateBuilder) -> Certificate:
        return builder.sign(root_key, hashes.SHA256())

    root = signed(
        _begun(root_name, root_name, root_key, now, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    )
    leaf = signed(
        _begun(name, root_name, key, now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    pem = serialization.Encoding.PEM
    return {C2PA_KEY: _pem(key), C2PA_CHAIN: leaf.public_bytes(pem), C2PA_ANCHOR: root.public_bytes(pem)}


def _begun(subject: Name, issuer: Name, key: EllipticCurvePrivateKey, now: datetime, ends: datetime) -> CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(role: str, organisation: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = {NameOID.ORGANIZATION_NAME: organisation, NameOID.COMMON_NAME: f"{organisation} {role}"}
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts.items()])


def _usage(*allowed: str) -> KeyUsage:
    from cryptography import x509

    uses = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
        "encipher_only decipher_only"
    ).split()
    return x509.KeyUsage(**{use: use in allowed for use in uses})


def _pem(key: object) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
