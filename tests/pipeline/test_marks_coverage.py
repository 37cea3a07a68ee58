"""The measures of the Code of Practice: states that follow from counts, and notes that say what limits them."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.marking.coverage import marks_coverage
from pipeline.marking.markers import TEST_SIGNED


def counted(**carried: int) -> dict[str, dict[str, int]]:
    return {name: {"k": carried.get(name, 0), "n": 10} for name in ("xmp", "c2pa", "watermark", "pdq", "iscc")}


def rows(*, signed: str = "", keys: tuple[str, ...] = (), **carried: int) -> dict[str, dict[str, Any]]:
    return {row["measure"]: row for row in marks_coverage(counted(**carried), signed=signed, watermark_keys=keys)}


def test_every_measure_has_a_row_with_the_same_parts() -> None:
    found = rows()
    assert list(found) == ["1.1.1", "1.1.2", "1.1.3", "1.2", "detection"]
    assert {tuple(row) for row in found.values()} == {("measure", "asks", "state", "evidence", "note")}


@pytest.mark.parametrize(("count", "state"), [(0, "no picture"), (3, "some pictures"), (10, "all pictures")])
def test_states_follow_from_counts(count: int, state: str) -> None:
    found = rows(c2pa=count, watermark=count, iscc=count)
    assert [found[measure]["state"] for measure in ("1.1.1", "1.1.2", "1.1.3")] == [state] * 3
    assert f"a signed C2PA manifest: {count} of 10" in found["1.1.1"]["evidence"]


def test_xmp_alone_is_no_signed_metadata() -> None:
    found = rows(xmp=10)["1.1.1"]
    assert found["state"] == "no picture" and "XMP alone is not signed" in found["note"]


def test_a_test_signer_is_named_beside_the_count() -> None:
    found = rows(c2pa=10, signed=TEST_SIGNED)["1.1.1"]
    assert found["state"] == "all pictures, by a test signer" and "nobody else trusts it" in found["note"]
    assert rows(c2pa=10, signed="signed")["1.1.1"]["state"] == "all pictures"


def test_a_missing_time_stamp_is_named_beside_the_count() -> None:
    assert "readers refuse it after its certificate has ended" in rows(c2pa=10, signed="signed")["1.1.1"]["note"]


def test_the_published_key_is_named_beside_the_count() -> None:
    assert "everybody can find, remove and imitate it" in rows(watermark=10, keys=("public",))["1.1.2"]["note"]
    assert "published" not in rows(watermark=10, keys=("abc",))["1.1.2"]["note"]


def test_one_fingerprint_is_enough() -> None:
    assert rows(pdq=0, iscc=10)["1.1.3"]["state"] == rows(pdq=10, iscc=0)["1.1.3"]["state"] == "all pictures"


def test_nothing_claims_conformity() -> None:
    text = str(marks_coverage(counted(xmp=10, c2pa=10, watermark=10, pdq=10, iscc=10), signed="signed")).lower()
    assert not [word for word in ("complies", "compliant", "conform", "fulfil", "satisf") if word in text]


def test_a_run_without_released_pictures() -> None:
    empty = {name: {"k": 0, "n": 0} for name in counted()}
    assert [row["state"] for row in marks_coverage(empty)][:3] == ["no picture"] * 3
