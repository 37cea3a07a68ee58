"""How the marks of a run map to the measures of the EU Code of Practice on marking (June 2026): facts, never conformity."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.marking.markers import TEST_SIGNED
from pipeline.marking.watermark import PUBLIC

Carried = Mapping[str, Mapping[str, Any]]  # layer → {"k": pictures that carry it, "n": pictures}

LAYERS = {
    "xmp": "XMP that names the source type",
    "c2pa": "a signed C2PA manifest",
    "watermark": "an imperceptible watermark",
    "pdq": "a PDQ fingerprint in the record",
    "iscc": "an ISCC fingerprint in the record",
}


def marks_coverage(carried: Carried, *, signed: str = "", watermark_keys: Collection[str] = ()) -> list[dict[str, Any]]:
    """One row a measure: what it asks for in short, how many pictures have it, the evidence, and what limits it.

    Args:
        carried: of the layers ``xmp``, ``c2pa``, ``watermark``, ``pdq`` and ``iscc``: pictures that carry it, and pictures.
        signed: what the plan binds of the signature (``marks.c2pa`` of its identity); empty: nothing is known.
        watermark_keys: ids of the keys in the rows.

    Returns:
        Rows with ``measure``, ``asks``, ``state``, ``evidence`` (list of texts) and ``note``.
    """
    fingerprints = max(("pdq", "iscc"), key=lambda name: _count(carried, name))
    return [
        {
            "measure": "1.1.1",
            "asks": "Digitally signed, time-stamped metadata that states how the content was made",
            "state": _state(carried, "c2pa")
            + (", by a test signer" if signed == TEST_SIGNED and _any(carried, "c2pa") else ""),
            "evidence": _evidence(carried, "c2pa", "xmp"),
            "note": _signed_note(carried, signed),
        },
        {
            "measure": "1.1.2",
            "asks": "An imperceptible mark in the content itself",
            "state": _state(carried, "watermark"),
            "evidence": _evidence(carried, "watermark"),
            "note": _watermark_note(carried, watermark_keys),
        },
        {
            "measure": "1.1.3",
            "asks": "Where chosen: fingerprints, or a log to look content up in",
            "state": _state(carried, fingerprints),
            "evidence": _evidence(carried, "pdq", "iscc"),
            "note": "The released rows are the registry.",
        },
        {
            "measure": "1.2",
            "asks": "Marks are kept, and are not removed",
            "state": "stated",
            "evidence": ["no step after marking changes a file; file_sha256 holds its digest"],
            "note": "This record ends where the files are handed on.",
        },
        {
            "measure": "detection",
            "asks": "A means by which others can find the marks",
            "state": "offered",
            "evidence": ["clearance detect looks for every layer, offline, and states the false alarms of each"],
            "note": "Others need c2pa-anchor.pem and, for the watermark, its secret key or a service that holds it.",
        },
    ]


def _signed_note(carried: Carried, signed: str) -> str:
    if not _any(carried, "c2pa"):
        return "XMP alone is not signed, and anybody can write and remove it."
    test = "The certificate calls itself a test: nobody else trusts it. " if signed == TEST_SIGNED else ""
    return (
        f"{test}No manifest has a time stamp: readers refuse it after its certificate has ended. "
        "A time stamp of the run, where there is one, covers the digests of its files."
    )


def _watermark_note(carried: Carried, keys: Collection[str]) -> str:
    if not _any(carried, "watermark"):
        return ""
    public = "Made with the published key: everybody can find, remove and imitate it. " if PUBLIC in keys else ""
    return f"{public}A watermark is a label: who wants to can remove it."


def _count(carried: Carried, name: str) -> int:
    return int(carried.get(name, {}).get("k") or 0)


def _any(carried: Carried, name: str) -> bool:
    return _count(carried, name) > 0


def _state(carried: Carried, name: str) -> str:
    k, n = _count(carried, name), int(carried.get(name, {}).get("n") or 0)
    return "no picture" if not k else "all pictures" if k == n else "some pictures"


def _evidence(carried: Carried, *names: str) -> list[str]:
    return [f"{LAYERS[name]}: {carried[name]['k']} of {carried[name]['n']}" for name in names if name in carried]
