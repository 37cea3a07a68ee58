"""Sign C2PA manifests with a private key that stays in a key service or a hardware module, through securesystemslib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from index.errors import ConfigError
from pipeline.keys import C2paKey

if TYPE_CHECKING:
    from pipeline.marking.c2pa import Sign

SIDES = {"es256": 32, "es384": 48, "es512": 66}  # bytes of each of the two numbers of an ECDSA signature


def service(uri: str, key: C2paKey) -> Sign:
    """What signs bytes with the private key of a certificate.

    Args:
        uri: of securesystemslib, by scheme: ``awskms:``, ``azurekms:``, ``gcpkms:``, ``hv:`` (HashiCorp Vault), ``hsm:``,
            ``file2:``. They need their provider's own library, and none but ``file2:`` was tried.
        key: the certificate.

    Returns:
        data → the raw signature that C2PA wants: for ECDSA the two numbers one after the other, not DER.

    Raises:
        ConfigError: the URI or the provider's library is not usable, or the key is of a kind that is not offered here.
    """
    from cryptography import x509
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer, SSlibKey  # type: ignore[attr-defined]

    public = x509.load_pem_x509_certificates(key.chain_pem)[0].public_key()
    if key.algorithm not in (*SIDES, "ed25519"):
        fix = "Use a certificate of an elliptic key or Ed25519, or put an RSA key into c2pa.key"
        raise ConfigError("a key service signs with elliptic keys and Ed25519 only", where=f"marks.signer: {uri}", fix=fix)
    try:
        signer = Signer.from_priv_key_uri(uri, SSlibKey.from_crypto(public, keyid=key.key_id))
    except Exception as error:  # a provider's library may raise anything
        known = ", ".join(f"{scheme}:" for scheme in sorted(SIGNER_FOR_URI_SCHEME))
        fix = f"Name one of {known} and install its provider's library, or leave marks.signer out"
        raise ConfigError(f"cannot be used as a signer ({error})", where=f"marks.signer: {uri}", fix=fix) from None

    def sign(data: bytes) -> bytes:
        return raw(bytes.fromhex(signer.sign(data).signature), key.algorithm)

    return sign


def raw(signature: bytes, algorithm: str) -> bytes:
    """A signature as COSE wants it (RFC 9053, section 2.1): r and s of ECDSA one after the other; others as they are."""
    if algorithm not in SIDES:
        return signature
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    return b"".join(number.to_bytes(SIDES[algorithm], "big") for number in decode_dss_signature(signature))
