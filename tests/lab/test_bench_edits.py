"""``clearance lab bench edits``: what each edit leaves, and what is counted; on drawings that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guards.copies import CopiesGuard
from index.calibrate import Calibration
from index.shipped import STICKERS
from index.undone import NEGATIVE, TURNED, undone
from jobs.lab.bench.edits import Edit, contact_sheet, cost, edits, found
from jobs.lab.bench.sheet import GAP, TILE
from tests.jobs.drawn_run import OTHERS, PROTECTED, drawing, make_index


def kinds() -> dict[str, Edit]:
    return edits(np.stack([drawing(name) for name in OTHERS]))


@pytest.mark.parametrize("kind", kinds())
def test_every_edit_keeps_the_size_and_leaves_another_picture(kind: str) -> None:
    edit = kinds()[kind]
    for seed in range(5):
        shown = edit(drawing("anchor"), np.random.default_rng(seed))
        assert shown.shape == (64, 64, 3) and shown.dtype == np.uint8
        assert (shown != drawing("anchor")).any()
        assert (shown == edit(drawing("anchor"), np.random.default_rng(seed))).all()


def test_turned_and_inverted_drawings_come_back_when_undone() -> None:
    every, picture = edits(np.stack([drawing("ant")])), drawing("anchor")
    for kind, edit in (("turned by a quarter", TURNED), ("upside down", TURNED), ("negative", NEGATIVE)):
        shown = every[kind](picture, np.random.default_rng(0))
        assert any((form == picture).all() for form in undone(shown, edit))


def test_it_counts_with_and_without_undoing_and_what_it_costs(tmp_path: Path) -> None:
    index, embedder = make_index(tmp_path / "index")
    copies = CopiesGuard(index, embedder, point=Calibration.load(STICKERS / "calibration.json").point, hues=2)
    works = [(name, drawing(name)) for name in PROTECTED[:3]]
    two = {kind: edit for kind, edit in edits(np.stack([drawing("ant")])).items() if kind in ("negative", "upside down")}
    measures = {m.id: m for m in found(copies, "copies, found", works, two, (1,), goal=0.9, better="higher")}
    assert measures["not edited, copies, found, no edit undone"].value == 1
    assert measures["negative, copies, found, no edit undone"].value == 0
    undoing = measures["negative, copies, found, edits undone"]
    assert undoing.value == 1 and undoing.met
    assert measures["negative, copies, found, no edit undone"].met is None
    assert cost(copies, [picture for _, picture in works], rounds=1).value > 1
    sheet = np.asarray(contact_sheet(works, two))
    left = sheet[:, GAP : GAP + TILE]  # below each other: the first work as it is, then behind each edit
    assert sum((left[y : y + TILE] == drawing(PROTECTED[0])).all() for y in range(len(left) - TILE + 1)) == 1
