"""Indexes of earlier formats are read, and become today's with their next change.

The code of commit dfcd218 made ``tests/data/index-format-2``: works 1 to 3 built, one disputed, one retired, work 4 added.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.errors import IntegrityError
from index.fingerprint import content_digest
from index.store import ReferenceIndex

from .conftest import GridEmbedder, drawing, work

OLD = Path(__file__).parents[1] / "data" / "index-format-2"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


def test_its_id_is_the_one_it_had(old: Path) -> None:
    index = ReferenceIndex.open(old)
    index.verify()
    assert index.index_id == "index-0544290f01b6fc54b0347578c6cb0578"


def test_its_references_and_their_statuses_are_there(old: Path) -> None:
    found = {reference.title: reference.status for reference in ReferenceIndex.open(old).references()}
    assert found == {"work 1": "retired", "work 2": "disputed", "work 3": "active", "work 4": "active"}


def test_its_history_is_there(old: Path) -> None:
    assert [event["event"] for event in ReferenceIndex.open(old).history()] == ["built", "status", "retired", "added"]


def test_it_finds_what_it_holds(old: Path, embedder: GridEmbedder) -> None:
    queries = embedder.images(np.stack([drawing(seed) for seed in (2, 3, 4)]))
    found = ReferenceIndex.open(old, embedder.embedder_id).search(queries, 1)
    assert [matches[0].title for matches in found] == ["work 2", "work 3", "work 4"]


def test_its_pictures_are_there(old: Path) -> None:
    picture = ReferenceIndex.open(old).picture(content_digest(drawing(3))[:16])
    assert picture is not None and np.array_equal(picture, drawing(3))


def test_a_changed_byte_of_it_is_found(old: Path) -> None:
    path = next(old.rglob("references.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"references\.parquet"):
        ReferenceIndex.open(old)


def test_a_change_brings_it_to_todays_format_and_keeps_everything(old: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.open(old)
    index.add([work(5)], embedder)
    index.verify()
    reopened = ReferenceIndex.open(old)
    assert len(reopened) == 5
    assert [event["event"] for event in reopened.history()] == ["built", "status", "retired", "added", "added"]


def test_its_new_id_is_that_of_an_index_with_the_same_content(old: Path, tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.open(old)
    index.add([work(5)], embedder)
    anew = ReferenceIndex.build(tmp_path / "new", [work(1), work(2, status="disputed"), work(3), work(4), work(5)], embedder)
    anew.retire([content_digest(drawing(1))[:16]])
    assert index.index_id == anew.index_id


def test_an_index_of_the_first_format_is_read(old: Path) -> None:
    current = (old / "CURRENT").read_text().strip()
    stored = json.loads((old / "snapshots" / f"{current}.json").read_text())
    for later in ("amendments", "source"):
        del stored[later]
    stored |= {"format": 1, "segments": stored["segments"][:1], "tombstones": [], "history": stored["history"][:1]}
    content = json.dumps({**stored, "index_id": stored["history"][0]["index_id"]}).encode()
    digest = hashlib.sha256(content).hexdigest()
    (old / "snapshots" / f"{digest}.json").write_bytes(content)
    (old / "CURRENT").write_text(digest)
    index = ReferenceIndex.open(old)
    index.verify()
    assert {reference.status for reference in index.references()} == {"active"}
