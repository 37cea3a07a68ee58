"""Look for the marks in a file, layer by layer: XMP, C2PA manifest and its signer, watermark; without any network.

A mark that is there and holds passes; one that is there and does not hold fails; one that is not there is absent. None of the
layers proves that a picture without them was made by people: every one can be removed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from index.counted import counted
from index.picture import read_picture
from pipeline.keys import Keys
from pipeline.marking.c2pa import Manifest, read_manifest
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE
from pipeline.marking.watermark import DEFAULT, PUBLIC_KEY, key_id, watermark_class

if TYPE_CHECKING:
    import numpy as np

    from pipeline.marking.watermark import Found, Watermark

State = Literal["pass", "fail", "absent", "skip"]
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = {DIGITAL_SOURCE_TYPE, SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"}
MOST_NAMED = 100  # elements of an XMP packet that state an origin
LARGEST_XMP = 1 << 20  # bytes
NAMESPACE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
TOOL = "{http://ns.adobe.com/xap/1.0/}CreatorTool"
RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one look found.

    Attributes:
        name: of the layer.
        state: ``pass``: the mark is there and holds; ``fail``: it is there and does not hold (XMP, C2PA and its signer);
            ``absent``: it is not there; ``skip``: it was not looked for.
        what: what was found, one sentence.
        false_alarms: how often the look passes on a file that does not carry the mark.
        facts: the same for programs.
    """

    name: str
    state: State
    what: str
    false_alarms: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Detector:
    """Looks at one file after the other with the keys of a deployment.

    Args:
        keys: folders of keys, those in use and earlier ones: roots that are trusted, and keys of watermarks. The published
            watermark key is tried as well.
        schemes: watermarks to look for, by name.

    Raises:
        ConfigError: a key is damaged, or there is no such watermark.
        WatermarkUnavailable: a watermark cannot run here.
    """

    def __init__(self, keys: Sequence[Keys] = (), schemes: Sequence[str] = (DEFAULT,)) -> None:
        self.anchors = b"\n".join(anchors for one in keys if (anchors := one.anchors()))
        own = [key for one in keys if (key := one.watermark()) is not None]
        self.keys = list(dict.fromkeys([*own, PUBLIC_KEY]))
        self.watermarks: list[Watermark] = [watermark_class(name).open() for name in schemes]

    def look(self, data: bytes) -> list[Layer]:
        """Every layer of one file.

        Raises:
            UnreadablePicture: it is no picture that can be read.
        """
        media_type, xmp = _opened(data)
        manifest = read_manifest(data, media_type, self.anchors)
        picture = read_picture(data)
        return [
            xmp_layer(xmp),
            manifest_layer(manifest),
            signer_layer(manifest, known=bool(self.anchors)),
            *(self._watermark_layer(watermark, picture, manifest) for watermark in self.watermarks),
        ]

    def _watermark_layer(self, watermark: Watermark, picture: np.ndarray, manifest: Manifest) -> Layer:
        cls = watermark_class(watermark.name)
        name, rate = (
            f"watermark {watermark.name}",
            f"at most {100 * cls.false_alarm * len(self.keys):.2g} % of pictures without it",
        )
        for key in self.keys:
            found = watermark.look(picture, key)
            if found.found:
                return Layer(name=name, state="pass", false_alarms=rate, **_told(found, key))
        small = min(picture.shape[:2]) < cls.least_side
        what = f"not found with {counted(len(self.keys), 'key')}"
        what += f"; pictures below {cls.least_side} pixels are not marked" if small else ""
        if manifest.intact and any(one.rpartition(".")[2] == watermark.name for one in manifest.bindings):
            what += "; the manifest names one, so it was made with another key"  # the pixels are those that were signed
        return Layer(name=name, state="absent", what=what, false_alarms=rate)


def _told(found: Found, key: bytes) -> dict[str, Any]:
    payload = f"{found.payload:08x}" if found.payload is not None else ""
    how = f", {found.orientation}" if found.orientation else ""
    how += f", scaled by {found.scale:.2f}" if abs(found.scale - 1) > 0.005 else ""
    whose = "the published key, which anybody can use" if key == PUBLIC_KEY else f"key {key_id(key)}"
    facts = {
        "key_id": key_id(key), "score": found.score, "p_value": found.p_value, "payload": payload or None,
        "payload_sure": found.payload_sure if payload else None, "orientation": found.orientation, "scale": found.scale,
    }  # fmt: skip
    sure = f"; payload {payload} ({100 * found.payload_sure:.0f} % sure)" if payload else ""
    return {"what": f"found with {whose}: score {found.score:.1f}, p ≤ {found.p_value:.1g}{how}{sure}", "facts": facts}


# --- the layers ------------------------------------------------------------------------------------------------------------


def xmp_layer(packet: bytes) -> Layer:
    """What the XMP states of the origin (IPTC Photo Metadata 2025.1)."""
    name, rate = "XMP", "not measurable: anybody can write it and remove it"
    if not packet:
        return Layer(name=name, state="absent", what="there is no XMP", false_alarms=rate)
    try:
        stated = xmp_of(packet)
    except ValueError as error:
        return Layer(name=name, state="fail", what=f"the XMP cannot be read ({error})", false_alarms=rate)
    source = stated.get("DigitalSourceType", "")
    if source not in GENERATED:
        what = f"the XMP states another source: {source}" if source else "the XMP states no digital source type"
        return Layer(name=name, state="absent", what=what, false_alarms=rate, facts=stated)
    by = " ".join(stated[key] for key in ("AISystemUsed", "AISystemVersionUsed") if stated.get(key))
    tool = f", written by {stated['CreatorTool']}" if stated.get("CreatorTool") else ""
    what = f"states {source.removeprefix(SOURCE_TYPES)}" + (f" by {by}" if by else "") + tool
    return Layer(name=name, state="pass", what=what, false_alarms=rate, facts=stated)


def xmp_of(packet: bytes) -> dict[str, str]:
    """The properties of an XMP packet that name an origin, written as attributes or as elements.

    Raises:
        ValueError: it is not XML, or more than a description.
    """
    if len(packet) > LARGEST_XMP:
        raise ValueError("it is larger than 1 MiB")
    if b"<!" in packet.replace(b"<!--", b""):
        raise ValueError("it defines entities")  # which could grow without end
    try:
        tree = ElementTree.fromstring(packet.decode("utf-8").strip("\0 \r\n\t\ufeff"))
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not XML: {error}") from None
    wanted = {f"{NAMESPACE}{key}": key for key in ("DigitalSourceType", "AISystemUsed", "AISystemVersionUsed")}
    wanted[TOOL] = "CreatorTool"
    stated: dict[str, str] = {}
    named = 0
    for element in tree.iter():
        values = dict(element.attrib)
        if element.tag in wanted:  # of these alone the text is put together: elements within one another would take hours
            values[element.tag] = element.attrib.get(RESOURCE) or "".join(element.itertext())
            named += 1
            if named > MOST_NAMED:
                raise ValueError(f"it names an origin more than {MOST_NAMED} times")
        stated |= {wanted[tag]: value.strip() for tag, value in values.items() if tag in wanted and value.strip()}
    return stated


def manifest_layer(found: Manifest) -> Layer:
    """Whether the file carries a C2PA manifest that fits its bytes, and that states a generated picture."""
    name = "C2PA"
    rate = "none: a signature does not hold by chance; who signs is the next line"
    if found.unreadable:
        return Layer(name=name, state="fail", what=f"the manifest cannot be read ({found.unreadable})", false_alarms=rate)
    if not found.present:
        what = (
            f"the manifest is elsewhere ({found.elsewhere}) and was not fetched" if found.elsewhere else "there is no manifest"
        )
        return Layer(name=name, state="absent", what=what, false_alarms=rate)
    facts = {"generator": found.generator, "source_type": found.source_type, "bindings": list(found.bindings)}
    if not found.intact:
        why = ", ".join(code for code in found.problems if code != "signingCredential.untrusted")
        what = f"the manifest does not hold: {_meaning(found.problems)} ({why})"
        return Layer(name=name, state="fail", what=what, false_alarms=rate, facts=facts)
    if found.source_type not in GENERATED:
        what = f"an intact manifest states another origin: {found.source_type or 'none'}"
        return Layer(name=name, state="absent", what=what, false_alarms=rate, facts=facts)
    what = f"intact; states {found.source_type.removeprefix(SOURCE_TYPES)}, written by {found.generator or 'unnamed software'}"
    return Layer(name=name, state="pass", what=what, false_alarms=rate, facts=facts)


def signer_layer(found: Manifest, *, known: bool) -> Layer:
    """Whether the manifest's signer stands under a root that is trusted here; ``known``: there is such a root."""
    name, rate = "C2PA signer", "that of the roots: as rarely as they certify a wrong signer"
    facts = {"signer": found.signer, "serial": found.serial}
    if not found.present:
        return Layer(name=name, state="absent", what="there is no signer", false_alarms=rate)
    if found.trusted:
        return Layer(name=name, state="pass", what=f"known: {found.signer}", false_alarms=rate, facts=facts)
    if not found.intact:
        what = f"not looked at, because the manifest does not hold; it names {found.signer or 'nobody'}"
        return Layer(name=name, state="skip", what=what, false_alarms=rate, facts=facts)
    if not known:
        what = f"not looked at: no roots are given (--keys); it names itself {found.signer}, as anybody can"
        return Layer(name=name, state="skip", what=what, false_alarms=rate, facts=facts)
    what = f"under none of the roots given; it names itself {found.signer}, as anybody can"
    return Layer(name=name, state="fail", what=what, false_alarms=rate, facts=facts)


def _meaning(problems: Sequence[str]) -> str:
    """The commonest problems in words."""
    if any(code.endswith(("dataHash.mismatch", "boxesHash.mismatch", "hashedURI.mismatch")) for code in problems):
        return "the file was changed after it was signed"
    if "signingCredential.expired" in problems:
        return "its certificate has ended, and no time stamp shows that it was signed before"
    return "its signature or structure is wrong"


def _opened(data: bytes) -> tuple[str, bytes]:
    """Media type and XMP packet of a picture; the packet is empty where there is none, or the file is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            media_type = Image.MIME.get(image.format or "", "")
            packet = image.info.get("xmp") or getattr(image, "tag_v2", {}).get(700) or b""
    except Exception:  # of damaged bytes, anything; `read_picture` names the problem
        return "", b""
    return media_type, packet if isinstance(packet, bytes) else str(packet).encode()
