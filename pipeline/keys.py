"""The keys of a deployment: one folder of secrets, outside every run, that workers read and rows name by id alone.

Files, each of which may be absent: ``watermark.key`` (32 bytes, hex), ``statement.key`` and ``statement.pub`` (Ed25519, PEM),
``c2pa.key`` and ``c2pa.pem`` (private key and its certificates, the signer's first), ``salt`` (hex). ``c2pa-anchor.pem`` holds
the certificates that ``clearance detect`` trusts as roots. ``clearance keys new`` makes them all.

The folder belongs to a deployment and not to a run, so it is read as it is: secrets that an orchestrator mounts are links.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.x509 import Certificate, ObjectIdentifier

ENVIRONMENT = "CLEARANCE_KEYS"
WATERMARK, STATEMENT, STATEMENT_PUBLIC, SALT = "watermark.key", "statement.key", "statement.pub", "salt"
C2PA_KEY, C2PA_CHAIN, C2PA_ANCHOR = "c2pa.key", "c2pa.pem", "c2pa-anchor.pem"
SECRETS = (WATERMARK, STATEMENT, C2PA_KEY, SALT)
PURPOSES = {
    WATERMARK: "the watermark in the pixels",
    STATEMENT: "signs a run's statement",
    STATEMENT_PUBLIC: "checks a run's statement; give it to those who verify",
    C2PA_KEY: "signs the C2PA manifests of pictures",
    C2PA_CHAIN: "certificates that a C2PA manifest carries",
    C2PA_ANCHOR: "root certificates that `clearance detect` trusts",
    SALT: "keeps prompts that can be guessed from being found in their commitments",
}
RUN_FILES = ("plan.json", "run.json")  # a folder with one of them is a run folder
LARGEST = 1 << 20  # bytes of a key file
WATERMARK_BYTES, SALT_BYTES = 32, 16
TEST_ORGANISATION = "Clearance TEST"  # in every certificate that `clearance keys new` makes
TESTING = "TESTING_ONLY"  # in the test certificates that the C2PA publishes
NEW = "`clearance keys new FOLDER` makes a folder of keys"


def key_id(purpose: str, data: bytes) -> str:
    """Id of a key: 16 hex digits of a digest over its purpose and its public or random bytes. It reveals nothing of the key."""
    return hashlib.sha256(f"{purpose} key ".encode() + data).hexdigest()[:16]


def salt_digest(salt: str) -> str:
    """Id of a salt (hex), in the form that shards' headers have had since the first version of the schema."""
    return hashlib.sha256(b"clearance salt id\0" + bytes.fromhex(salt)).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class C2paKey:
    """What signs C2PA manifests.

    Attributes:
        key_pem: the private key, PEM, not encrypted; empty: it stays elsewhere, in a key service.
        chain_pem: its certificate and those between it and the root, PEM, the signer's first.
        algorithm: C2PA's name of the signature algorithm: ``es256``, ``es384``, ``es512``, ``ps256``, ``ed25519``.
        key_id: 16 hex digits of the digest of the signer's certificate (DER).
        serial: the certificate's serial number, decimal, as readers of a manifest give it.
        subject: of the signer's certificate.
        not_before, not_after: when the certificate begins and ends, the earliest end of the chain.
        test: the certificate is one of `clearance keys new`, or of the C2PA's own for tests: nobody trusts it.
    """

    key_pem: bytes
    chain_pem: bytes
    algorithm: str
    key_id: str
    serial: str
    subject: str
    not_before: datetime
    not_after: datetime
    test: bool

    def __repr__(self) -> str:
        return f"C2paKey({self.key_id}, {self.subject})"

    def expired(self, now: datetime | None = None) -> str:
        """Why it cannot sign at this time; empty: it can."""
        now = now or datetime.now(UTC)
        if now >= self.not_after:
            return f"the C2PA certificate of {self.subject} ended on {self.not_after:%Y-%m-%d}"
        if now < self.not_before:
            return f"the C2PA certificate of {self.subject} begins on {self.not_before:%Y-%m-%d %H:%M} UTC"
        return ""


@dataclass(frozen=True)
class Keys:
    """A folder of keys, or none.

    Attributes:
        folder: where they are; None: no folder was named.
        named_by: what named it, for messages.
    """

    folder: Path | None = None
    named_by: str = ""

    @classmethod
    def find(cls, named: str = "", *, base: Path, environ: Mapping[str, str] | None = None) -> Keys:
        """The folder that the run file names (``[marks] keys``), else the one that ``CLEARANCE_KEYS`` names, else none.

        Args:
            named: the run file's key; relative paths start from ``base``.
            base: the run file's folder.
            environ: the environment; by default the process's own. A relative path in it starts from the current folder.

        Raises:
            ConfigError: the folder is not there, or lies in a run folder.
        """
        from_environment = (os.environ if environ is None else environ).get(ENVIRONMENT, "")
        if named:
            folder, by = base / Path(named).expanduser(), "marks.keys"
        elif from_environment:
            folder, by = Path(from_environment).expanduser().absolute(), ENVIRONMENT
        else:
            return cls()
        if not folder.is_dir():
            what = "is a file, not a folder of keys" if folder.is_file() else "there is no such folder of keys"
            raise ConfigError(what, where=f"{by}: {folder}", fix=f"Name an existing folder, or remove the setting; {NEW}")
        refuse_run_folder(folder)
        return cls(folder, by)

    def watermark(self) -> bytes | None:
        """The 32 bytes that key the watermark."""
        return self._hex(WATERMARK, WATERMARK_BYTES, exact=True)

    def salt(self) -> str:
        """The salt of the prompt commitments, hex; empty: there is none."""
        found = self._hex(SALT, SALT_BYTES)
        return "" if found is None else found.hex()

    def statement(self) -> Ed25519PrivateKey | None:
        """The key that signs statements.

        Raises:
            ConfigError: it cannot be read, is of another kind, or does not belong to ``statement.pub``.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        data = self._read(STATEMENT)
        if data is None:
            return None
        key = _private_key(data, self._where(STATEMENT))
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("is not an Ed25519 key", where=self._where(STATEMENT), fix=f"Put an Ed25519 key there; {NEW}")
        public = self._public()
        if public is not None and public.public_bytes_raw() != key.public_key().public_bytes_raw():
            fix = f"Put the public half of {STATEMENT} there"
            raise ConfigError(f"does not belong to {STATEMENT}", where=self._where(STATEMENT_PUBLIC), fix=fix)
        return key

    def statement_public(self) -> Ed25519PublicKey | None:
        """The public half: of ``statement.pub``, or of ``statement.key`` where only that is here."""
        private = self.statement()
        return private.public_key() if private is not None else self._public()

    def c2pa(self, *, elsewhere: bool = False) -> C2paKey | None:
        """What signs C2PA manifests; None: there is neither key nor chain. An ended certificate is returned, not refused.

        Args:
            elsewhere: the private key stays in a key service: only the chain is read.

        Raises:
            ConfigError: one of the two files is missing or damaged, or they do not belong together.
        """
        key, chain = None if elsewhere else self._read(C2PA_KEY), self._read(C2PA_CHAIN)
        if elsewhere and chain is not None:
            return _c2pa_key(b"", chain, "", self._where(C2PA_CHAIN))
        if key is None and chain is None:
            return None
        if key is None or chain is None:
            absent, there = (C2PA_KEY, C2PA_CHAIN) if key is None else (C2PA_CHAIN, C2PA_KEY)
            fix = f"Put {absent} beside it, or remove {there}"
            raise ConfigError(f"is missing, and {there} is of no use without it", where=self._where(absent), fix=fix)
        return _c2pa_key(key, chain, self._where(C2PA_KEY), self._where(C2PA_CHAIN))

    def anchors(self) -> bytes:
        """Certificates (PEM) that a reader of this deployment trusts as roots of C2PA signers; empty: none."""
        data = self._read(C2PA_ANCHOR)
        if data is None:
            return b""
        _certificates(data, self._where(C2PA_ANCHOR))
        return data

    def ids(self) -> dict[str, str]:
        """Id of every key that is here, by file; secrets do not appear.

        Raises:
            ConfigError: a file is damaged.
        """
        watermark, salt, public, c2pa = self.watermark(), self.salt(), self.statement_public(), self.c2pa()
        found = {
            WATERMARK: watermark and key_id("watermark", watermark),
            STATEMENT_PUBLIC: public and key_id("statement", public.public_bytes_raw()),
            C2PA_CHAIN: c2pa and c2pa.key_id,
            SALT: salt and salt_digest(salt),
        }
        return {name: str(value) for name, value in found.items() if value}

    def warnings(self) -> Iterator[str]:
        """What is unsafe about the folder, one sentence each."""
        if self.folder is None:
            return
        for name in SECRETS:
            path = self.folder / name
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
            except OSError:
                continue
            if mode & 0o007:
                yield f"{path} is open to every user of this machine (mode {mode:o}): chmod 600 {path}"
        if (tree := git_tree(self.folder)) is not None:
            yield f"{self.folder} lies in the git working tree {tree}: keep keys outside, where they cannot be committed"

    def _where(self, name: str) -> str:
        return str(self.folder / name) if self.folder is not None else name

    def _read(self, name: str) -> bytes | None:
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            with path.open("rb") as stream:
                data = stream.read(LARGEST + 1)
        except FileNotFoundError:
            if path.is_symlink():
                raise ConfigError("is a link that leads nowhere", where=str(path), fix="Restore the key it leads to") from None
            return None
        except OSError as error:
            what = f"cannot be read ({error.strerror or type(error).__name__})"
            raise ConfigError(what, where=str(path), fix="Give this user the right to read it") from None
        if not data.strip() or len(data) > LARGEST:
            what = "is empty" if not data.strip() else "is no key: it is larger than 1 MiB"
            raise ConfigError(what, where=str(path), fix=f"Restore it from a copy, or remove it; {NEW}")
        return data

    def _hex(self, name: str, least: int, *, exact: bool = False) -> bytes | None:
        data = self._read(name)
        if data is None:
            return None
        wanted = f"{least} bytes as {2 * least} hexadecimal digits" if exact else f"at least {least} bytes in hexadecimal"
        fix = f"Restore it from a copy: it must hold {wanted}"
        try:
            found = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:  # UnicodeDecodeError is one
            raise ConfigError("is not hexadecimal", where=self._where(name), fix=fix) from None
        if len(found) < least or (exact and len(found) != least):
            raise ConfigError(f"holds {len(found)} bytes", where=self._where(name), fix=fix)
        return found

    def _public(self) -> Ed25519PublicKey | None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        data = self._read(STATEMENT_PUBLIC)
        if data is None:
            return None
        try:
            key = serialization.load_pem_public_key(data)
        except Exception:  # the reader of damaged bytes may raise anything
            key = None
        if not isinstance(key, Ed25519PublicKey):
            fix = f"Put the public half of {STATEMENT} there; {NEW}"
            raise ConfigError("is not an Ed25519 public key (PEM)", where=self._where(STATEMENT_PUBLIC), fix=fix)
        return key


def refuse_run_folder(folder: Path) -> None:
    """Refuse a place for keys that lies in a run folder: who gets the run would get the keys.

    Raises:
        ConfigError: it does.
    """
    for place in (folder.resolve(), *folder.resolve().parents):
        if any((place / name).is_file() for name in RUN_FILES):
            fix = "Keep the keys outside: whoever gets the run folder would get them too"
            raise ConfigError(f"lies in the run folder {place}", where=str(folder), fix=fix)


def refuse_inside(keys: Keys, run: Path) -> None:
    """The same for a run folder that is not there yet.

    Raises:
        ConfigError: the keys lie in it.
    """
    if keys.folder is not None and run.resolve() in (keys.folder.resolve(), *keys.folder.resolve().parents):
        fix = "Name another folder with --out, or move the keys: whoever gets the run folder would get them too"
        raise ConfigError(f"lies in the folder of the run, {run}", where=f"{keys.named_by}: {keys.folder}", fix=fix)


def git_tree(folder: Path) -> Path | None:
    """The git working tree that a folder lies in."""
    return next((place for place in (folder.resolve(), *folder.resolve().parents) if (place / ".git").exists()), None)


def _private_key(data: bytes, where: str) -> object:
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(data, password=None)
    except TypeError:
        fix = "Store it without a passphrase, in a folder that only this user can read"
        raise ConfigError("is encrypted with a passphrase", where=where, fix=fix) from None
    except Exception:  # the reader of damaged bytes may raise anything
        raise ConfigError("is not a private key (PEM)", where=where, fix=f"Restore it from a copy; {NEW}") from None


def _certificates(data: bytes, where: str) -> list[Certificate]:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(data)
    except Exception:  # the reader of damaged bytes may raise anything
        found = []
    if not found:
        raise ConfigError("holds no certificates (PEM)", where=where, fix="Restore it from a copy; the signer's comes first")
    return found


def _c2pa_key(key_data: bytes, chain_data: bytes, key_where: str, chain_where: str) -> C2paKey:
    from cryptography.hazmat.primitives import hashes, serialization

    chain = _certificates(chain_data, chain_where)
    signer, public = chain[0], chain[0].public_key()
    if key_data:
        private: Any = _private_key(key_data, key_where)
        _algorithm(private.public_key(), key_where)
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if public.public_bytes(*form) != private.public_key().public_bytes(*form):
            fix = f"Put the certificate of {C2PA_KEY} first in it"
            raise ConfigError(f"its first certificate does not belong to {C2PA_KEY}", where=chain_where, fix=fix)
    algorithm = _algorithm(public, chain_where)
    for below, above in itertools.pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except Exception:  # other issuer, other key type, other signature
            what = f"the certificate of {_subject(below)} was not issued by the next one, {_subject(above)}"
            raise ConfigError(what, where=chain_where, fix="Order them from the signer up, each issued by the next") from None
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)
    return C2paKey(
        key_pem=key_data,
        chain_pem=pem,
        algorithm=algorithm,
        key_id=signer.fingerprint(hashes.SHA256()).hex()[:16],
        serial=str(signer.serial_number),
        subject=_subject(signer),
        not_before=max(one.not_valid_before_utc for one in chain),
        not_after=min(one.not_valid_after_utc for one in chain),
        test=any(name == TEST_ORGANISATION or TESTING in name for name in _names(signer)),
    )


def _algorithm(public: object, where: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(public, EllipticCurvePublicKey):
        curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if public.curve.name in curves:
            return curves[public.curve.name]
    if isinstance(public, RSAPublicKey) and public.key_size >= 2048:
        return "ps256"
    if isinstance(public, Ed25519PublicKey):
        return "ed25519"
    fix = "C2PA takes elliptic keys (P-256, P-384, P-521), Ed25519, and RSA from 2048 bits"
    raise ConfigError("is a key of a kind that C2PA does not take", where=where, fix=fix)


def _subject(certificate: Certificate) -> str:
    """Common name and organisation of a certificate, for people."""
    from cryptography.x509.oid import NameOID

    names = [*_names(certificate, NameOID.COMMON_NAME), *_names(certificate, NameOID.ORGANIZATION_NAME)]
    return ", ".join(names) or "a subject without a name"


def _names(certificate: Certificate, oid: ObjectIdentifier | None = None) -> list[str]:
    """The names in a certificate's subject, or those of one kind."""
    return [str(part.value) for part in certificate.subject if oid is None or part.oid == oid]
