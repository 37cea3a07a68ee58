"""What a look at a file finds, layer by layer, and what it makes of marks that do not hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import c2pa
import cv2
import numpy as np
import pytest
from PIL import Image

from index.errors import ConfigError
from index.picture import UnreadablePicture
from jobs.keys import c2pa_test_chain, new_keys
from pipeline.config import MarksConfig
from pipeline.keys import Keys
from pipeline.marking.c2pa import C2paSigner, SoftBinding
from pipeline.marking.detect import GENERATED, Detector, Layer, xmp_layer, xmp_of
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, encode, xmp_packet
from pipeline.marking.mark import Origin, mark
from pipeline.marking.markers import Markers, open_markers
from pipeline.marking.tile import TileWatermark
from pipeline.marking.watermark import PUBLIC_KEY

TAG = 0x12345678
ORIGIN = Origin("some model", "3", "Clearance 9", TAG)
FORMATS = ["png", "jpeg", "webp"]


def painted(seed: int = 0) -> np.ndarray:
    """Soft noise, uint8 (256, 320, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    soft: np.ndarray = np.clip((cv2.GaussianBlur(noise, (0, 0), 5).astype(int) - 128) * 6 + 128, 0, 255).astype(np.uint8)
    return soft


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("home") / "keys"
    new_keys(folder)
    return Keys(folder)


@pytest.fixture(scope="module")
def markers(keys: Keys) -> Markers:
    return open_markers(MarksConfig(), keys)


@pytest.fixture(scope="module")
def watermarked(keys: Keys) -> np.ndarray:
    key = keys.watermark()
    assert key is not None
    return TileWatermark().embed(painted(), key, TAG)


def looks(data: bytes, *keys: Keys) -> dict[str, Layer]:
    return {layer.name: layer for layer in Detector(keys).look(data)}


def states(data: bytes, *keys: Keys) -> tuple[str, ...]:
    """Of XMP, C2PA, its signer and the watermark."""
    return tuple(layer.state for layer in Detector(keys).look(data))


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_layer_passes(keys: Keys, markers: Markers, image_format: str) -> None:
    file = mark(painted(), image_format, ORIGIN, markers)
    found = looks(file.data, keys)
    assert [layer.state for layer in found.values()] == ["pass", "pass", "pass", "pass"]
    assert found["watermark tile"].facts["payload"] == f"{TAG:08x}"
    assert found["C2PA"].facts["bindings"] == ["io.iscc.v0", "clearance.tile"]


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_layer_is_absent(keys: Keys, image_format: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(painted()).save(buffer, image_format)
    assert states(buffer.getvalue(), keys) == ("absent", "absent", "absent", "absent")


def test_every_layer_states_its_false_alarms(keys: Keys, markers: Markers) -> None:
    found = looks(mark(painted(), "png", ORIGIN, markers).data, keys)
    assert all(layer.false_alarms for layer in found.values())
    assert found["watermark tile"].false_alarms == "at most 0.04 % of pictures without it"  # two keys


def test_who_removes_the_metadata_leaves_the_watermark(keys: Keys, watermarked: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(watermarked).save(buffer, "JPEG", quality=80)
    found = looks(buffer.getvalue(), keys)
    assert [layer.state for layer in found.values()] == ["absent", "absent", "absent", "pass"]
    facts = found["watermark tile"].facts
    assert (facts["payload"], facts["key_id"]) == (f"{TAG:08x}", keys.ids()["watermark.key"])


def test_a_watermark_of_another_key_is_not_found(watermarked: np.ndarray) -> None:
    assert looks(encode(watermarked, "png", b"").data)["watermark tile"].state == "absent"


def test_the_published_key_is_named_as_one() -> None:
    data = encode(TileWatermark().embed(painted(), PUBLIC_KEY, 1), "png", b"").data
    found = looks(data)["watermark tile"]
    assert found.state == "pass" and "the published key, which anybody can use" in found.what
    assert found.facts["key_id"] == "public"


def test_a_small_picture_is_named_as_too_small() -> None:
    assert "pictures below 128 pixels are not marked" in looks(encode(painted()[:64], "png", b"").data)["watermark tile"].what


# --- C2PA ------------------------------------------------------------------------------------------------------------------


def test_intact_and_known_are_two_lines(markers: Markers, tmp_path: Path) -> None:
    data = mark(painted(), "png", ORIGIN, markers).data
    without = looks(data)
    assert (without["C2PA"].state, without["C2PA signer"].state) == ("pass", "skip")
    assert "no roots are given" in without["C2PA signer"].what
    for name, content in c2pa_test_chain().items():
        (tmp_path / name).write_bytes(content)
    others = looks(data, Keys(tmp_path))
    assert (others["C2PA"].state, others["C2PA signer"].state) == ("pass", "fail")
    assert "names itself Clearance TEST signer" in others["C2PA signer"].what


def test_a_changed_file_fails(keys: Keys, markers: Markers) -> None:
    data = bytearray(mark(painted(), "webp", ORIGIN, markers).data)
    data[data.index(b"xmpmeta") + 1] ^= 1  # the picture itself stays readable, whatever the keys have drawn into it
    found = looks(bytes(data), keys)
    assert (found["C2PA"].state, found["C2PA signer"].state) == ("fail", "skip")
    assert "the file was changed after it was signed" in found["C2PA"].what


def test_a_damaged_manifest_fails(keys: Keys, markers: Markers) -> None:
    data = bytearray(mark(painted(), "jpeg", ORIGIN, markers).data)
    data[data.index(b"claim_generator")] ^= 0x80
    found = looks(bytes(data), keys)
    assert found["C2PA"].state == "fail" and "the manifest cannot be read" in found["C2PA"].what


def signed_by_hand(keys: Keys, definition: dict[str, Any], *, remote: str = "") -> bytes:
    key = keys.c2pa()
    assert key is not None
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", key.chain_pem, key.key_pem, None))
    context = c2pa.Context(c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}}), None)
    out = io.BytesIO()
    with c2pa.Builder(definition, context=context) as builder:
        if remote:
            builder.set_no_embed()
            builder.set_remote_url(remote)
        builder.sign(signer, "image/jpeg", io.BytesIO(encode(painted(), "jpeg", b"").data), out)
    return out.getvalue()


def photograph() -> dict[str, Any]:
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    action = {"action": "c2pa.created", "digitalSourceType": source}
    return {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]}


def test_a_manifest_of_a_photograph_is_no_mark(keys: Keys) -> None:
    found = looks(signed_by_hand(keys, photograph()), keys)["C2PA"]
    assert found.state == "absent" and "an intact manifest states another origin" in found.what


def test_a_manifest_elsewhere_is_named_and_not_fetched(keys: Keys) -> None:
    data = signed_by_hand(keys, photograph(), remote="http://127.0.0.1:9/manifest.c2pa")
    found = looks(data, keys)["C2PA"]
    assert (found.state, found.what) == (
        "absent", "the manifest is elsewhere (http://127.0.0.1:9/manifest.c2pa) and was not fetched"
    )  # fmt: skip


def test_a_mark_of_another_key_that_the_manifest_names_is_no_failure(keys: Keys) -> None:
    key = keys.c2pa()
    assert key is not None
    binding = SoftBinding("clearance.tile", f"{TAG:08x}", in_pixels=True)
    data = C2paSigner(key).sign(encode(painted(), "png", b""), software="Clearance 9", bindings=[binding])
    found = looks(data, keys)
    assert (found["C2PA"].state, found["watermark tile"].state) == ("pass", "absent")
    assert "the manifest names one, so it was made with another key" in found["watermark tile"].what


def test_earlier_keys_are_tried_too(keys: Keys, markers: Markers, tmp_path: Path) -> None:
    new_keys(tmp_path / "keys")
    data = mark(painted(), "png", ORIGIN, markers).data
    assert states(data, Keys(tmp_path / "keys"))[2:] == ("fail", "absent")
    assert states(data, Keys(tmp_path / "keys"), keys)[2:] == ("pass", "pass")


# --- XMP -------------------------------------------------------------------------------------------------------------------


def test_xmp_that_states_a_model() -> None:
    found = xmp_layer(xmp_packet(ai_system="a & b", ai_version='"3"', software="Clearance 9"))
    assert found.state == "pass"
    assert found.what == 'states trainedAlgorithmicMedia by a & b "3", written by Clearance 9'


@pytest.mark.parametrize("source", sorted(GENERATED))
def test_xmp_of_other_software_is_read_too(source: str) -> None:
    """As elements, and as a resource, as exiftool and Photoshop write it."""
    for written in (f">{source}</e:DigitalSourceType>", f' r:resource="{source}"/>'):
        packet = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
            <r:Description xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><e:DigitalSourceType{written}
            </r:Description></r:RDF></x:xmpmeta>"""
        assert xmp_of(packet.encode()) == {"DigitalSourceType": source}


def test_the_text_of_elements_within_one_another_is_not_put_together_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet of 1 MiB that nests 150,000 of them took minutes."""
    asked = []

    class Element(ElementTree.Element):
        def itertext(self) -> Any:
            asked.append(self.tag)
            return super().itertext()

    def parse(text: str) -> ElementTree.Element:
        return ElementTree.XML(text, ElementTree.XMLParser(target=ElementTree.TreeBuilder(element_factory=Element)))

    monkeypatch.setattr("pipeline.marking.detect.ElementTree.fromstring", parse)
    assert xmp_of(b"<a>" * 50 + b"</a>" * 50) == {} and not asked
    named = b'<b xmlns="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><AISystemUsed>m</AISystemUsed></b>'
    assert xmp_of(named) == {"AISystemUsed": "m"} and len(asked) == 1


def test_xmp_of_a_photograph_is_no_mark() -> None:
    packet = xmp_packet(ai_system="m", ai_version="", software="s").replace(b"trainedAlgorithmicMedia", b"digitalCapture")
    found = xmp_layer(packet)
    assert found.state == "absent" and "states another source" in found.what and found.facts["AISystemUsed"] == "m"


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"<x", "it is not XML"),
        (b"\xff\xfe", "it is not XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "it defines entities"),
        (b"<a>" + b" " * (1 << 20), "it is larger than 1 MiB"),
        (
            b'<a xmlns="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
            + b"<DigitalSourceType>" * 101
            + b"</DigitalSourceType>" * 101
            + b"</a>",
            "it names an origin more than 100 times",
        ),
    ],
)
def test_damaged_xmp_fails(packet: bytes, why: str) -> None:
    found = xmp_layer(packet)
    assert found.state == "fail" and why in found.what


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["TIFF", "BMP", "GIF", "AVIF"])
def test_formats_that_carry_no_mark_of_ours_are_looked_at(form: str, keys: Keys) -> None:
    buffer = io.BytesIO()
    Image.fromarray(painted()).save(buffer, form)
    assert states(buffer.getvalue(), keys)[:3] == ("absent", "absent", "absent")


def test_a_file_that_is_no_picture_is_refused() -> None:
    with pytest.raises(UnreadablePicture):
        Detector().look(b"no picture")


def test_an_unknown_watermark_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown watermark 'tlie'"):
        Detector(schemes=["tlie"])


def test_the_source_type_that_is_looked_for_is_the_one_that_is_written() -> None:
    assert DIGITAL_SOURCE_TYPE in GENERATED
