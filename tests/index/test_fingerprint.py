from __future__ import annotations

import numpy as np
import pytest

from index.fingerprint import content_digest, iscc, iscc_bytes, pdq, pdq_hex, pixel_digest

RAMP = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(64, 48, 3).astype(np.uint8)


def test_digests_that_indexes_and_audits_already_hold() -> None:
    """A changed value would orphan every reference id and every recorded picture."""
    assert pixel_digest(RAMP) == "328483c355456142e6d9f8c42e7afc5150f4cffdcb6408bcf0350cc34c6a26aa"
    assert content_digest(RAMP) == "52d7b79d5c7219477a69ffa050454b18879c38c1873fd7f1bc45e5fd0e819bdd"


def test_only_the_content_digest_sees_the_size() -> None:
    turned = RAMP.reshape(48, 64, 3)
    assert pixel_digest(turned) == pixel_digest(RAMP)
    assert content_digest(turned) != content_digest(RAMP)


def test_a_view_has_the_digest_of_its_copy() -> None:
    mirrored = RAMP[:, ::-1]
    assert pixel_digest(mirrored) == pixel_digest(mirrored.copy())


def test_pdq_is_256_bits_with_a_quality() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    bits, quality = pdq(noise)
    assert bits.shape == (256,) and 0 <= quality <= 100
    assert pdq_hex(bits) == "691b0eeb307dcdef6e00e5bdd2ec5173203502e8620bdbe0a0dec9bab309ee49"


def test_iscc_is_the_standards_image_code() -> None:
    """256 bits of a ramp, as iscc-core 1.5 computes them: a changed value would orphan every recorded fingerprint."""
    code = iscc(np.repeat(RAMP, 3, axis=0))
    assert code == "ISCC:EED2QF7QC7YBP4QXACL3JF5US72JGAQO6IHPEH7SD66WJ5DE2QS5INI"


def test_the_bits_of_a_code_are_its_body() -> None:
    assert iscc_bytes("ISCC:EED5O22IFY7YG2ALTI5WNSNC5UR3AUTHSFPAB6C7NMBELJP3PPMQNOA").hex() == (
        "d76b482e3f83680b9a3b66c9a2ed23b05267915e00f85f6b0245a5fb7bd906b8"
    )


def test_a_code_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="no image code of 256 bits"):
        iscc_bytes("ISCC:EEAQU6JRTNWX6PZRXQ")
