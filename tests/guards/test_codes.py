"""QR codes are decoded, with payload and place; drawings without one are not flagged."""

from __future__ import annotations

import numpy as np
import pytest
import segno
from PIL import Image

from guards.codes import CodesGuard

from .conftest import drawing


def with_code(payload: str, scale: int, place: tuple[int, int], *, side: int = 64, invert: bool = False) -> np.ndarray:
    """A drawing with a real QR code whose modules are ``scale`` pixels."""
    matrix = np.array([list(row) for row in segno.make(payload, micro=False).matrix], dtype=np.uint8)
    tile = np.pad(1 - matrix, 2, constant_values=1) * 255
    tile = (255 - tile if invert else tile).repeat(scale, 0).repeat(scale, 1)
    picture = drawing(7, side)
    picture.paste(Image.fromarray(tile), place)
    return np.asarray(picture)


@pytest.mark.parametrize(("scale", "side"), [(1, 64), (2, 64), (4, 256)])
@pytest.mark.parametrize("invert", [False, True])
def test_payload_and_box(scale: int, side: int, invert: bool) -> None:
    place = (side // 8, side // 8)
    picture = with_code("HTTPS://X.IO/7", scale, place, side=side, invert=invert)
    (findings,) = CodesGuard().check(picture[None])
    (finding,) = findings
    assert finding.triggered and finding.score == 1.0 and finding.category == "mark.qr"
    assert finding.detail == "HTTPS://X.IO/7"
    assert finding.box is not None
    start = (place[0] + 2 * scale) / side  # the tile has two modules of quiet zone
    assert np.allclose(finding.box, [start, start, start + 21 * scale / side, start + 21 * scale / side], atol=1.5 / 64)


def test_clean_pictures_are_not_flagged(clean: np.ndarray) -> None:
    found = CodesGuard().check(clean)
    assert [len(findings) for findings in found] == [1] * len(clean)
    assert not any(finding.triggered or finding.score for findings in found for finding in findings)


def test_allowed_payloads_pass_and_others_do_not() -> None:
    ours, theirs = with_code("CLR:42", 2, (4, 4)), with_code("SALE42", 2, (4, 4))
    (mine,), (foreign,) = CodesGuard(allow=("CLR:",)).check(np.stack([ours, theirs]))
    assert mine.score == 0.0 and not mine.triggered and mine.detail == "allowed: CLR:42"
    assert foreign.triggered and foreign.detail == "SALE42"
    assert CodesGuard().check(ours[None])[0][0].triggered  # nothing is allowed unless said


@pytest.mark.parametrize(("allow", "score"), [("HTTPS://X.IO", 0.0), (["CLR:", "https://x.io/7"], 0.0), ("HTTPS://X.I", 1.0)])
def test_one_text_or_several_are_allowed_to_a_boundary(allow: str | list[str], score: float) -> None:
    picture = with_code("HTTPS://X.IO/7", 2, (4, 4))
    assert CodesGuard(allow=allow).check(picture[None])[0][0].score == score


def test_a_foreign_code_beside_an_allowed_one_is_flagged() -> None:
    both = np.concatenate([with_code("CLR:42", 2, (4, 4)), with_code("SALE42", 2, (4, 4))], axis=1)
    (findings,) = CodesGuard(allow=("CLR:",)).check(both[None])
    assert [finding.detail for finding in findings] == ["SALE42"]
    assert findings[0].box is not None and findings[0].box[0] > 0.5


def test_long_payloads_are_cut() -> None:
    (findings,) = CodesGuard().check(with_code("x" * 200, 2, (4, 4), side=160)[None])
    assert findings[0].detail == "x" * 80
