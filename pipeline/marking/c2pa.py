"""The last layer of marking: a C2PA manifest that states how the file was made, signed with the deployment's certificate.

Nothing may touch the bytes after it: the manifest holds a digest of all others. The manifest follows C2PA 2.2: one action
``c2pa.created`` with the IPTC digital source type, a ``cawg.training-mining`` assertion, and soft bindings by which a copy that
lost its manifest can be recognised. It has no thumbnail. It has no time stamp either, so readers accept it only while the
certificate is valid; a longer-lived certificate is the remedy, or a time stamp that a service of your own adds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from index.errors import ClearanceError, ConfigError, RunStopped
from pipeline.keys import C2paKey
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, Encoded, encode

ISCC_BINDING = "io.iscc.v0"  # in C2PA's list of soft binding algorithms
TRAINING = ("cawg.ai_inference", "cawg.ai_generative_training", "cawg.ai_training", "cawg.data_mining")
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class SoftBinding:
    """How a copy without manifest can be matched with it: an algorithm of C2PA's list or one's own, and the value it gives.

    Attributes:
        algorithm: its name. value: as text.
        in_pixels: it is a watermark; otherwise it is a fingerprint.
    """

    algorithm: str
    value: str
    in_pixels: bool = False


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a reader found in a file. Whether it is intact and whether its signer is known are two answers.

    Attributes:
        present: there is a manifest.
        intact: its signature is right, its certificate is valid today, and no byte of the file changed since.
        trusted: its signer's certificate was issued under one of the roots that the reader was given.
        signer: common name and organisation in the certificate.
        serial: the certificate's serial number, decimal.
        generator: software that wrote it.
        source_type: the IPTC digital source type of ``c2pa.created``.
        bindings: algorithms of its soft bindings.
        problems: what the SDK found wrong, by C2PA's codes.
        unreadable: why there is something in a manifest's place that cannot be read.
        elsewhere: the file names a manifest at this address, which was not fetched.
    """

    present: bool = False
    intact: bool = False
    trusted: bool = False
    signer: str = ""
    serial: str = ""
    generator: str = ""
    source_type: str = ""
    bindings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unreadable: str = ""
    elsewhere: str = ""


@dataclass
class _Failed:
    """What a callback raised: the SDK keeps it to itself."""

    error: Exception | None = None


class C2paSigner:
    """Signs files. Open it once per process.

    Args:
        key: certificate, and the private key unless ``sign`` is given.
        training: what the pictures may be used for, as ``cawg.training-mining`` states it: ``not_allowed``, ``allowed``, or
            ``unstated``, without the assertion.
        sign: signs bytes with a key that stays elsewhere (a KMS, an HSM): data → raw signature (for ES256 r and s, 32 bytes
            each). The file grows by about 12 kB instead of 3, because the SDK keeps room for what it may return.

    Raises:
        ConfigError: the certificate has ended, or the SDK cannot sign with it.
    """

    def __init__(self, key: C2paKey, *, training: str = "not_allowed", sign: Sign | None = None) -> None:
        import c2pa

        if why := key.expired():
            raise _unusable(key, why)
        self.key, self.training = key, training
        self._failed = _Failed()
        chain = key.chain_pem.decode("ascii")
        try:
            if sign is None:
                # An empty time stamp address is not none: the SDK would look for a server at it.
                info = c2pa.C2paSignerInfo(key.algorithm, key.chain_pem, key.key_pem, None)
                self._signer = c2pa.Signer.from_info(info)
            else:
                algorithm = c2pa.C2paSigningAlg[key.algorithm.upper()]
                self._signer = c2pa.Signer.from_callback(_keeping(sign, self._failed), algorithm, chain, None)
        except c2pa.C2paError as error:
            raise _unusable(key, str(error)) from None
        self._context = _context()
        self._try_out()

    def sign(self, file: Encoded, *, software: str, drawn_by: str = "", bindings: Sequence[SoftBinding] = ()) -> bytes:
        """The file with a signed manifest.

        Args:
            file: as it will be, apart from the manifest.
            software: name and version of what ran the model.
            drawn_by: name and version of the model.
            bindings: soft bindings; one in the pixels adds the action ``c2pa.watermarked.bound``.

        Raises:
            RunStopped: it could not be signed.
        """
        import c2pa

        source, out = io.BytesIO(file.data), io.BytesIO()
        self._failed.error = None
        if why := self.key.expired():  # the SDK takes a second longer to notice
            raise self._stopped(why)
        text = json.dumps(manifest_of(software, drawn_by, self.training, bindings))
        try:
            with c2pa.Builder(text, context=self._context) as builder:
                builder.sign(self._signer, file.media_type, source, out)
        except c2pa.C2paError as error:
            if isinstance(self._failed.error, ClearanceError):
                raise self._failed.error from None
            raise self._stopped(str(self._failed.error or _line(error))) from self._failed.error
        return out.getvalue()

    def _stopped(self, why: str) -> RunStopped:
        fix = "Renew the certificate in the folder of keys, or mend what signs; then continue with --resume"
        return RunStopped(f"a C2PA manifest could not be signed ({why})", where=f"C2PA signer {self.key.subject}", fix=fix)

    def _try_out(self) -> None:
        """Sign one picture: the SDK states what it minds about a certificate only then."""
        import numpy as np

        blank = encode(np.zeros((8, 8, 3), np.uint8), "png", b"<x/>")
        try:
            found = read_manifest(self.sign(blank, software="Clearance"), blank.media_type)
        except RunStopped as error:
            raise _unusable(self.key, error.what) from None
        if not self.signed(found):
            raise _unusable(self.key, f"readers find {', '.join(found.problems) or 'no manifest'}")

    def signed(self, found: Manifest) -> bool:
        """Whether a manifest is intact and by this certificate."""
        return found.intact and found.serial == self.key.serial


def is_of_signer(data: bytes, key: C2paKey) -> bool:
    """Whether a signed file holds a certificate of this signer, one that was renewed since included.

    The certificates stand in a file as they are. One is the signer's when it has the same public key, or the same subject and
    the same key of the issuer; by the name of an issuer alone another one could be taken for it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    mine = x509.load_pem_x509_certificates(key.chain_pem)[0]
    if mine.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) in data:
        return True
    if not len(mine.subject.rdns):  # two bytes, which any file holds
        return False
    try:
        issuer = mine.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return False
    return issuer is not None and issuer in data and mine.subject.public_bytes() in data


def manifest_of(software: str, drawn_by: str, training: str, bindings: Sequence[SoftBinding]) -> dict[str, Any]:
    """A manifest's definition as the SDK takes it."""
    name, _, version = software.rpartition(" ")
    agent = {"name": name, "version": version} if name else {"name": version}
    created = {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE, "softwareAgent": agent}
    if drawn_by:
        created["description"] = f"Drawn by {drawn_by}"
    actions: list[Mapping[str, Any]] = [created]
    # Without the assertion that it is bound to, this action would make the whole file invalid.
    actions += [{"action": "c2pa.watermarked.bound"} for binding in bindings if binding.in_pixels]
    assertions: list[Mapping[str, Any]] = [{"label": "c2pa.actions.v2", "data": {"actions": actions}}]
    if training != "unstated":
        use = {"allowed": "allowed", "not_allowed": "notAllowed"}[training]
        assertions.append({"label": "cawg.training-mining", "data": {"entries": {what: {"use": use} for what in TRAINING}}})
    for binding in bindings:
        data = {"alg": binding.algorithm, "blocks": [{"scope": {}, "value": binding.value}]}
        assertions.append({"label": "c2pa.soft-binding", "data": data})
    return {"claim_generator_info": [agent], "assertions": assertions}


def read_manifest(data: bytes, media_type: str, anchors: bytes = b"") -> Manifest:
    """Read the manifest of a file with the SDK's own reader; nothing is fetched from a network.

    Args:
        data: the file.
        media_type: of the file.
        anchors: root certificates (PEM) to trust; without any, no signer is.
    """
    import c2pa

    try:
        with c2pa.Reader(media_type, io.BytesIO(data), context=_context(anchors)) as reader:
            state, results = reader.get_validation_state(), reader.get_validation_results() or {}
            active = reader.get_active_manifest() or {}
    except c2pa.C2paError as error:
        return _without(error)
    signature = active.get("signature_info") or {}
    names = (signature.get("common_name"), signature.get("issuer"))
    made = [action for one in _stated(active, "c2pa.actions") for action in _tables(one.get("actions"))]
    created = [action for action in made if action.get("action") == "c2pa.created"]
    generators = _tables(active.get("claim_generator_info"))
    failures = (results.get("activeManifest") or {}).get("failure") or []
    return Manifest(
        present=True,
        intact=state in ("Valid", "Trusted"),
        trusted=state == "Trusted",
        signer=", ".join(str(name) for name in names if name),
        serial=str(signature.get("cert_serial_number") or ""),
        generator=" ".join(str(generators[0].get(part, "")) for part in ("name", "version")).strip() if generators else "",
        source_type=str(created[0].get("digitalSourceType", "")) if created else "",
        bindings=tuple(str(one["alg"]) for one in _stated(active, "c2pa.soft-binding") if "alg" in one and "blocks" in one),
        problems=tuple(sorted({str(failure.get("code")) for failure in failures})),
    )


def _stated(manifest: Mapping[str, Any], label: str) -> list[Mapping[str, Any]]:
    """What a manifest's assertions of one label state. Those of other vendors may hold anything, and count for nothing here."""
    named = [one for one in _tables(manifest.get("assertions")) if str(one.get("label", "")).startswith(label)]
    return _tables([one.get("data") for one in named])


def _tables(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list of JSON; whatever else somebody wrote there is left out."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _without(error: Exception) -> Manifest:
    """What it means that the SDK gave no manifest."""
    import c2pa

    if isinstance(error, c2pa.C2paError.ManifestNotFound | c2pa.C2paError.NotSupported):
        return Manifest()
    text = _line(error)
    if text.startswith("Remote:"):
        return Manifest(elsewhere=text.split()[-1])
    return Manifest(unreadable=text)


def _context(anchors: bytes = b"") -> Any:
    import c2pa

    settings: dict[str, Any] = {
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
    }
    if anchors:
        settings["trust"] = {"trust_anchors": anchors.decode("ascii")}
    return c2pa.Context(c2pa.Settings.from_dict(settings), None)


def _keeping(sign: Sign, failed: _Failed) -> Sign:
    """The callback; what it raises is kept, because the SDK turns it into "COSE signature invalid"."""

    def callback(data: bytes) -> bytes:
        try:
            return sign(data)
        except Exception as error:
            failed.error = error
            raise

    return callback


def _unusable(key: C2paKey, why: str) -> ConfigError:
    fix = (
        "Put a certificate into c2pa.pem that is valid today and fits C2PA's profile (no CA, not self-signed, key usage "
        'digital signature, extended key usage emailProtection), its key into c2pa.key; or set marks.c2pa = "off"'
    )
    return ConfigError(f"pictures cannot be signed: {why}", where=f"C2PA signer {key.subject}", fix=fix)


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
