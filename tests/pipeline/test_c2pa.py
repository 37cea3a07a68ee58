"""C2PA manifests: what the SDK's own reader finds in finished files, and what is refused before anything is drawn."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from index.errors import ConfigError, IntegrityError, RunStopped
from index.fingerprint import iscc, pixel_digest
from jobs.keys import c2pa_test_chain, new_keys
from pipeline.config import MarksConfig
from pipeline.keys import C2paKey, Keys
from pipeline.marking.c2pa import C2paSigner, Manifest, SoftBinding, is_of_signer, manifest_of, read_manifest
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, MEDIA_TYPES, decode, encode
from pipeline.marking.mark import MarkedPicture, Origin, mark
from pipeline.marking.markers import TEST_SIGNED, Markers, marks_parts, open_markers

ORIGIN = Origin("some model", "3", "Clearance 9")
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
FORMATS = ["png", "jpeg", "webp"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("home") / "keys"
    new_keys(folder)
    return Keys(folder)


@pytest.fixture(scope="module")
def signer(keys: Keys) -> C2paSigner:
    return C2paSigner(key_of(keys))


def key_of(keys: Keys) -> C2paKey:
    found = keys.c2pa()
    assert found is not None
    return found


def chain_in(folder: Path, **how: Any) -> Keys:
    folder.mkdir(exist_ok=True)
    for name, data in c2pa_test_chain(**how).items():
        (folder / name).write_bytes(data)
    return Keys(folder)


def signed(signer: C2paSigner, image_format: str = "png") -> MarkedPicture:
    return mark(PICTURE, image_format, ORIGIN, Markers(signer=signer))


# --- what readers find -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_is_trusted_under_its_anchor(keys: Keys, signer: C2paSigner, image_format: str) -> None:
    file = signed(signer, image_format)
    found = read_manifest(file.data, file.media_type, keys.anchors())
    assert (found.present, found.intact, found.trusted, found.problems) == (True, True, True, ())
    assert (file.c2pa_present, file.c2pa_key_id) == (True, key_of(keys).key_id)


@pytest.mark.parametrize("image_format", FORMATS)
def test_intact_and_by_a_known_signer_are_two_answers(signer: C2paSigner, tmp_path: Path, image_format: str) -> None:
    file = signed(signer, image_format)
    for anchors in (b"", chain_in(tmp_path / "others").anchors()):
        found = read_manifest(file.data, file.media_type, anchors)
        assert (found.intact, found.trusted) == (True, False)
        assert found.problems == ("signingCredential.untrusted",)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_picture_that_was_changed_is_not_intact(keys: Keys, signer: C2paSigner, image_format: str) -> None:
    file = signed(signer, image_format)
    harmed = bytearray(file.data)
    harmed[-40] ^= 1  # in the pixels: metadata and manifest stand before them, apart from WebP
    if image_format == "webp":
        at = file.data.index(b"VP8L")
        harmed = bytearray(file.data)
        harmed[at + 60] ^= 1
    found = read_manifest(bytes(harmed), file.media_type, keys.anchors())
    assert (found.present, found.intact, found.trusted) == (True, False, False)
    assert "assertion.dataHash.mismatch" in found.problems


def test_a_manifest_names_its_origin(signer: C2paSigner) -> None:
    file = signed(signer)
    found = read_manifest(file.data, file.media_type)
    assert (found.generator, found.source_type) == ("Clearance 9", DIGITAL_SOURCE_TYPE)
    assert found.signer == "Clearance TEST signer, Clearance TEST"
    assert found.bindings == ("io.iscc.v0",)


def test_the_manifest_holds_the_code_of_the_picture_before_marking(signer: C2paSigner) -> None:
    file = signed(signer)
    assert file.iscc == iscc(PICTURE) and file.iscc.encode() in file.data


@pytest.mark.parametrize(
    "data",
    [["a"], "text", 5, {"actions": ["x"]}, {"actions": {"a": 1}},
     {"actions": [{"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}]}, {"alg": "io.iscc.v0", "blocks": []}],
)  # fmt: skip
def test_what_other_vendors_assert_counts_for_nothing(signer: C2paSigner, data: Any) -> None:
    """Their assertions may hold anything: one picture with a list there ended the look at a whole folder."""
    import c2pa

    blank, out = encode(PICTURE, "png", b"<x/>"), io.BytesIO()
    actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": "http://example.org/a-camera"}]}
    stated = {
        "claim_generator_info": [{"name": "another"}],
        "assertions": [{"label": "org.example.own", "data": data}, {"label": "c2pa.actions.v2", "data": actions}],
    }
    with c2pa.Builder(json.dumps(stated), context=signer._context) as builder:
        builder.sign(signer._signer, blank.media_type, io.BytesIO(blank.data), out)
    found = read_manifest(out.getvalue(), blank.media_type)
    assert found.intact and found.source_type == "http://example.org/a-camera" and not found.bindings


def test_a_file_without_manifest_is_no_failure() -> None:
    for image_format in FORMATS:
        assert read_manifest(mark(PICTURE, image_format, ORIGIN).data, MEDIA_TYPES[image_format]) == Manifest()


def test_a_damaged_file_says_so() -> None:
    found = read_manifest(b"no picture at all", "image/png")
    assert not found.present and "could not be parsed" in found.unreadable


def test_the_manifest_has_no_thumbnail_and_is_small(signer: C2paSigner) -> None:
    for image_format in FORMATS:
        grown = len(signed(signer, image_format).data) - len(mark(PICTURE, image_format, ORIGIN).data)
        assert 2_000 < grown < 5_000


@pytest.mark.parametrize("image_format", FORMATS)
def test_signing_changes_neither_pixels_nor_xmp(signer: C2paSigner, image_format: str) -> None:
    plain, file = mark(PICTURE, image_format, ORIGIN), signed(signer, image_format)
    pixels, xmp = decode(file.data)
    assert np.array_equal(pixels, decode(plain.data)[0]) and xmp == decode(plain.data)[1]
    assert file.pixel_sha256 == plain.pixel_sha256 == pixel_digest(PICTURE)
    assert file.stored_pixel_sha256 == plain.stored_pixel_sha256
    assert file.file_sha256 != plain.file_sha256 and file.xmp_present


def test_two_signatures_of_one_picture_differ(signer: C2paSigner) -> None:
    """A file's digest is evidence of that file; the pixels' digest is what repeats."""
    assert signed(signer).file_sha256 != signed(signer).file_sha256


def test_a_chain_with_a_certificate_between_is_carried_whole(tmp_path: Path) -> None:
    """Root, intermediate, signer: the file carries the last two, and a reader that knows the root alone trusts it."""
    root, between, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    certificates = [
        issued("root", root, "root", root, ca=True),
        issued("between", between, "root", root, ca=True),
        issued("signer", leaf, "between", between, ca=False),
    ]
    pems = [one.public_bytes(serialization.Encoding.PEM) for one in certificates]
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "c2pa.key").write_bytes(leaf.private_bytes(*form))
    (tmp_path / "c2pa.pem").write_bytes(pems[2] + pems[1])
    (tmp_path / "c2pa-anchor.pem").write_bytes(pems[0] + c2pa_test_chain()["c2pa-anchor.pem"])
    found = Keys(tmp_path)
    file = signed(C2paSigner(key_of(found)))
    assert read_manifest(file.data, file.media_type, found.anchors()).trusted and not key_of(found).test


def issued(name: str, key: Any, issuer: str, by: Any, *, ca: bool) -> x509.Certificate:
    def named(common: str) -> x509.Name:
        pairs = ((NameOID.COMMON_NAME, common), (NameOID.ORGANIZATION_NAME, "Our Company"))
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])

    others = "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
    now, uses = datetime.now(UTC), dict.fromkeys(others.split(), False)
    made = (
        x509.CertificateBuilder(named(issuer), named(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses, digital_signature=not ca, key_cert_sign=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    return (made if ca else made.add_extension(purpose, critical=False)).sign(by, hashes.SHA256())


# --- the manifest ----------------------------------------------------------------------------------------------------------


def test_a_mark_in_the_pixels_is_an_action_and_a_binding(keys: Keys, signer: C2paSigner) -> None:
    plain = encode(PICTURE, "png", b"<x/>")
    mark_in_pixels = SoftBinding("org.example.mark", "00ff", in_pixels=True)
    data = signer.sign(plain, software="Clearance 9", bindings=[SoftBinding("io.iscc.v0", "ISCC:X"), mark_in_pixels])
    found = read_manifest(data, plain.media_type, keys.anchors())
    assert found.trusted and found.bindings == ("io.iscc.v0", "org.example.mark")
    assert b"c2pa.watermarked.bound" in data


def test_a_fingerprint_is_no_action() -> None:
    made = manifest_of("Clearance 9", "", "unstated", [SoftBinding("io.iscc.v0", "ISCC:X")])
    assert [action["action"] for action in made["assertions"][0]["data"]["actions"]] == ["c2pa.created"]


@pytest.mark.parametrize(("training", "use"), [("not_allowed", "notAllowed"), ("allowed", "allowed"), ("unstated", None)])
def test_what_is_stated_of_training(training: str, use: str | None) -> None:
    made = manifest_of("Clearance 9", "", training, [])
    stated = [one["data"]["entries"] for one in made["assertions"] if one["label"] == "cawg.training-mining"]
    assert [{entry["use"] for entry in entries.values()} for entries in stated] == ([{use}] if use else [])


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_an_ended_certificate_signs_nothing(tmp_path: Path) -> None:
    ended = chain_in(tmp_path, days=1, now=datetime(2025, 3, 1, tzinfo=UTC))
    with pytest.raises(ConfigError, match=r"pictures cannot be signed: the C2PA certificate of .* ended on 2025-03-02"):
        open_markers(MarksConfig(), ended)
    assert open_markers(MarksConfig(c2pa="off"), ended).signer is None


def test_a_certificate_that_ends_while_a_run_goes_stops_it(tmp_path: Path) -> None:
    keys = chain_in(tmp_path, days=1, now=datetime.now(UTC) - timedelta(days=1) + timedelta(seconds=2))
    signer = C2paSigner(key_of(keys))
    file = signed(signer)
    time.sleep(3)  # a second longer than it lives: the SDK compares whole seconds
    with pytest.raises(RunStopped, match=r"could not be signed \(the C2PA certificate of .* ended on"):
        signed(signer)
    after = read_manifest(file.data, file.media_type, keys.anchors())
    assert (after.intact, "signingCredential.expired" in after.problems) == (False, True), "without a time stamp it ends too"


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_renewed_certificate_is_the_same_signers(keys: Keys, signer: C2paSigner, tmp_path: Path, image_format: str) -> None:
    """With the same key, or by the same issuer for the same subject; a test chain made anew has the names alone."""
    old = x509.load_pem_x509_certificate(key_of(keys).chain_pem)
    issuer = ec.generate_private_key(ec.SECP256R1())

    def renewed(key: Any, names_issuer: bool, subject: x509.Name = old.subject) -> C2paKey:
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(old.issuer).public_key(key)
        made = made.serial_number(7).not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
        if names_issuer:
            known = old.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
            made = made.add_extension(known.value, critical=False)
        pem = made.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return replace(key_of(keys), chain_pem=pem)

    data, other = signed(signer, image_format).data, ec.generate_private_key(ec.SECP256R1()).public_key()
    assert is_of_signer(data, key_of(keys))
    assert is_of_signer(data, renewed(old.public_key(), names_issuer=False))
    assert is_of_signer(data, renewed(other, names_issuer=True))
    assert not is_of_signer(data, renewed(other, names_issuer=False))
    assert not is_of_signer(data + b"0\0", renewed(other, names_issuer=True, subject=x509.Name([]))), "its name is two bytes"
    assert not is_of_signer(data, key_of(chain_in(tmp_path / "anew")))


def test_a_certificate_that_the_sdk_refuses_is_found_when_it_is_opened(keys: Keys, tmp_path: Path) -> None:
    """A self-signed certificate without a purpose."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mine")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    pem = serialization.Encoding.PEM
    form = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "c2pa.key").write_bytes(key.private_bytes(*form))
    (tmp_path / "c2pa.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    with pytest.raises(ConfigError, match=r"pictures cannot be signed: .*the certificate is invalid"):
        open_markers(MarksConfig(), Keys(tmp_path))


def test_required_without_a_key_is_refused_and_auto_is_not(tmp_path: Path) -> None:
    for keys in (Keys(), Keys(tmp_path)):
        with pytest.raises(ConfigError, match="a C2PA manifest is required, and there is no key that signs it"):
            marks_parts(MarksConfig(c2pa="required"), keys)
        assert open_markers(MarksConfig(), keys).signer is None


def test_half_a_signer_is_never_taken_for_none(keys: Keys, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(keys.folder or "", tmp_path / "half"))
    (folder / "c2pa.key").unlink()
    with pytest.raises(ConfigError, match=r"c2pa\.pem is of no use without it"):
        open_markers(MarksConfig(), Keys(folder))


def test_a_worker_that_would_not_sign_has_another_identity(keys: Keys) -> None:
    config = MarksConfig(watermark="off")
    assert marks_parts(config, keys) == open_markers(config, keys).parts == {"marks.c2pa": TEST_SIGNED}
    assert marks_parts(config, Keys()) == marks_parts(replace(config, c2pa="off"), keys) == {}


def test_a_signature_that_cannot_be_read_back_is_not_recorded(keys: Keys) -> None:
    class Careless(C2paSigner):
        def sign(self, file: Any, **how: Any) -> bytes:
            data = bytearray(super().sign(file, **how))
            data[-40] ^= how.get("software") != "Clearance"  # after it was tried out
            return bytes(data)

    with pytest.raises(IntegrityError, match=r"cannot be read back \(assertion\.dataHash\.mismatch"):
        signed(Careless(key_of(keys)))


# --- a key that stays elsewhere --------------------------------------------------------------------------------------------


def elsewhere(keys: Keys) -> Callable[[bytes], bytes]:
    private = serialization.load_pem_private_key(key_of(keys).key_pem, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def test_a_service_can_sign_and_the_file_grows(keys: Keys) -> None:
    signer = C2paSigner(replace(key_of(keys), key_pem=b""), sign=elsewhere(keys))
    file = signed(signer)
    assert read_manifest(file.data, file.media_type, keys.anchors()).trusted
    assert 10_000 < len(file.data) - len(mark(PICTURE, "png", ORIGIN).data) < 16_000


def test_what_a_service_raises_reaches_the_user(keys: Keys) -> None:
    answers = iter([True, False])
    works = elsewhere(keys)

    def sign(data: bytes) -> bytes:
        if next(answers):
            return works(data)
        raise TimeoutError("the service does not answer")

    signer = C2paSigner(key_of(keys), sign=sign)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RunStopped, match=r"could not be signed \(the service does not answer\)"):
            signed(signer)


@pytest.mark.parametrize("kind", ["es256", "es384", "ed25519"])
def test_a_run_file_names_a_key_service(tmp_path: Path, kind: str) -> None:
    """securesystemslib's scheme for a file stands for those of services."""
    makes: dict[str, Callable[[], Any]] = {
        "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    root, leaf = ec.generate_private_key(ec.SECP256R1()), makes[kind]()
    pem = serialization.Encoding.PEM
    form = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "in the service").write_bytes(leaf.private_bytes(*form))
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "c2pa.pem").write_bytes(issued("signer", leaf, "root", root, ca=False).public_bytes(pem))
    (folder / "c2pa-anchor.pem").write_bytes(issued("root", root, "root", root, ca=True).public_bytes(pem))
    keys, uri = Keys(folder), f"file2:{tmp_path / 'in the service'}"
    markers = open_markers(MarksConfig(signer=uri, c2pa="required"), keys)
    file = mark(PICTURE, "png", ORIGIN, markers)
    assert read_manifest(file.data, file.media_type, keys.anchors()).trusted and file.c2pa_present
    with pytest.raises(ConfigError, match=r"c2pa\.pem is of no use without it"):
        open_markers(MarksConfig(), keys)


@pytest.mark.parametrize("uri", ["nothing:x", "file2:/no/such/key", "x"])
def test_a_key_service_that_cannot_be_used(keys: Keys, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used as a signer|pictures cannot be signed"):
        open_markers(MarksConfig(signer=uri), keys)


def test_a_key_service_that_signs_with_another_key_is_found_before_drawing(keys: Keys, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "other").write_bytes(other.private_bytes(*form))
    with pytest.raises(ConfigError):
        open_markers(MarksConfig(signer=f"file2:{tmp_path / 'other'}"), keys)


@pytest.mark.parametrize("folder", [None, "keys"])
def test_a_key_service_without_its_certificates_is_refused(tmp_path: Path, folder: str | None) -> None:
    (tmp_path / "keys").mkdir()
    keys = Keys(None if folder is None else tmp_path / folder)
    with pytest.raises(ConfigError, match=r"marks\.signer.*no picture would be signed"):
        open_markers(MarksConfig(signer="awskms:ours"), keys)
    assert open_markers(MarksConfig(signer="awskms:ours", c2pa="off"), keys).signer is None


# --- other people's tools --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed (libimage-exiftool-perl)")
@pytest.mark.parametrize("image_format", FORMATS)
def test_exiftool_reads_the_xmp_of_a_signed_file(signer: C2paSigner, tmp_path: Path, image_format: str) -> None:
    file = signed(signer, image_format)
    path = tmp_path / f"picture.{file.suffix}"
    path.write_bytes(file.data)
    names = ["DigitalSourceType", "AISystemUsed", "AISystemVersionUsed", "CreatorTool"]
    shown = subprocess.run(["exiftool", "-s3", *(f"-XMP:{name}" for name in names), path], capture_output=True, text=True)
    lines = shown.stdout.splitlines()
    assert lines[:1] == [DIGITAL_SOURCE_TYPE] and "Clearance 9" in lines
