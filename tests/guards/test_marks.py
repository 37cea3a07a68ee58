"""The shipped network finds real marks, spares clean drawings, and refuses missing or altered weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guards.mark_network import KINDS
from guards.mark_weights import STICKERS
from guards.marks import MarksGuard, inside
from index.errors import GuardUnavailable, InputError, IntegrityError, OutOfMemory
from jobs.erase.marks.overlays import overlay
from jobs.lab.world.mark_measures import overlap
from pipeline.policy import MarksPolicy

from .conftest import drawing

STICKERS = STICKERS / "marks"


@pytest.fixture(scope="module")
def guard() -> MarksGuard:
    return MarksGuard()


def marked(
    kind: str, count: int = 16, designs: tuple[int, ...] = (0, 1, 2), side: int = 64
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    rng = np.random.default_rng(11)
    pairs = [overlay(drawing(seed, side), kind, rng, designs) for seed in range(100, 100 + count)]
    return np.stack([np.asarray(picture) for picture, _ in pairs]), [box for _, box in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_marks_are_found_on_drawings_of_another_kind(kind: str) -> None:
    pictures, _ = marked(kind)
    guard = MarksGuard(logos=True)
    hits = [f for row in guard.check(pictures) for f in row if f.category == f"mark.{kind}" and f.triggered]
    assert len(hits) >= 13


def test_clean_drawings_are_not_flagged(guard: MarksGuard) -> None:
    clean = np.stack([np.asarray(drawing(seed)) for seed in range(200, 260)])
    flagged = [row for row in guard.check(clean) if any(f.triggered for f in row)]
    assert len(flagged) <= 3


@pytest.mark.parametrize(("kind", "design"), [("qr", 0), ("text", 2), ("watermark", 1)])
def test_the_box_covers_the_mark(guard: MarksGuard, kind: str, design: int) -> None:
    pictures, boxes = marked(kind, designs=(design,))
    overlaps = []
    for row, box in zip(guard.check(pictures), boxes, strict=True):
        found = row[KINDS.index(kind)]
        if found.triggered:
            assert found.box is not None
            a, b = np.array(found.box) * 64, np.array(box)
            inter = np.prod(np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])))
            overlaps.append(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))
    assert len(overlaps) >= 12 and np.median(overlaps) > 0.7


def test_larger_and_oblong_pictures(guard: MarksGuard) -> None:
    large, _ = marked("watermark", 8, (0, 2), side=256)
    assert sum(row[0].triggered for row in guard.check(large)) >= 6
    oblong = np.stack([np.asarray(Image.fromarray(p).resize((300, 220))) for p in marked("text", 8, (2,))[0]])
    assert sum(row[2].triggered for row in guard.check(oblong)) >= 6


def test_scores_are_bit_equal_whatever_the_batch(guard: MarksGuard) -> None:
    pictures, _ = marked("qr", 11)
    together = guard.check(pictures)
    assert [guard.check(pictures[i : i + 1])[0] for i in range(11)] == together
    order = np.random.default_rng(0).permutation(11)
    shuffled = guard.check(pictures[order])
    assert [shuffled[int(np.flatnonzero(order == i)[0])] for i in range(11)] == together


def test_memory_that_runs_out_halves_the_call_for_good(guard: MarksGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, _ = marked("qr", 11)
    small, rows = MarksGuard(), 4
    real, seen = small.network, list[int]()

    def network(x: Any) -> Any:
        seen.append(len(x))
        if len(x) > rows:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")
        return real(x)

    monkeypatch.setattr(small, "network", network)
    halved = small.check(pictures)
    assert seen[:4] == [8, 4, 4, 4] and set(seen[4:]) == {4} and small.calls.shapes == (8, 4)
    for mine, whole in zip(halved, guard.check(pictures), strict=True):
        assert [f.score for f in mine] == pytest.approx([f.score for f in whole], abs=1e-5)
    assert small.check(pictures[5:6])[0] == halved[5]  # the same bytes for the same shape
    rows = 0
    with pytest.raises(OutOfMemory, match=r"guard marks: not even one row .*not enough memory.*enabled = false"):
        small.check(pictures[:1])


def test_only_where_a_mark_is_found_is_its_box_looked_for_in_turned_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, seen = MarksGuard(), list[int]()
    real = guard.network

    def network(x: Any) -> Any:
        seen.append(len(x))
        return real(x)

    monkeypatch.setattr(guard, "network", network)
    clean = np.full((8, 64, 64, 3), 255, np.uint8)
    assert not any(f.triggered for row in guard.check(clean) for f in row) and seen == [8]
    guard.check(np.concatenate([clean, marked("qr", 2)[0]]))
    assert seen[1:] == [8] * 5  # two calls, and three turns of the two marked pictures


def test_a_word_that_runs_upwards_is_boxed(guard: MarksGuard) -> None:
    """Design 3 of text, which no training saw: without the turns one box in eight overlaps by half."""
    pictures, boxes = marked("text", 40, (3,))
    found = [row[2] for row in guard.check(pictures)]
    hits = [(f.box, box) for f, box in zip(found, boxes, strict=True) if f.box is not None]
    assert len(hits) >= 15
    overlaps = overlap(np.array([one for one, _ in hits]), np.array([box for _, box in hits]) / 64)
    assert (overlaps >= 0.5).mean() >= 0.5


def test_a_score_that_is_no_number_is_refused(guard: MarksGuard) -> None:
    """Nothing compares with NaN: a broken guard would find nothing, and everything would pass."""
    broken = MarksGuard()
    broken.operating_logits = broken.operating_logits * float("nan")
    with pytest.raises(InputError, match="not a finite number"):
        broken.check(marked("qr", 1)[0])


def test_the_threshold_is_repeated_and_decides(guard: MarksGuard) -> None:
    pictures, _ = marked("qr", 4)
    strict = MarksGuard(threshold=0.0)
    assert all(f.triggered and f.threshold == 0.0 and f.box for row in strict.check(pictures) for f in row)
    assert [[f.score for f in row] for row in strict.check(pictures)] == [
        [f.score for f in row] for row in guard.check(pictures)
    ]


def test_logos_are_reported_where_asked_for_and_change_nothing_else(guard: MarksGuard) -> None:
    pictures = np.concatenate([marked("logo", 4)[0], marked("qr", 4)[0]])
    both = MarksGuard(logos=True)
    assert "mark.logo" not in guard.categories and both.categories == (*guard.categories, "mark.logo")
    for without, found in zip(guard.check(pictures), both.check(pictures), strict=True):
        assert found[:3] == without and [f.category for f in found[3:]] == ["mark.logo"]
    assert MarksGuard.open(MarksPolicy(logos=True)).categories == both.categories
    assert MarksGuard.open(MarksPolicy()).categories == guard.categories


def test_a_box_is_cut_at_the_edge_or_absent() -> None:
    assert inside(np.array([-0.1, 0.2, 0.5, 1.4])) == (0.0, 0.2, 0.5, 1.0)
    assert inside(np.array([1.1, 0.2, 1.5, 0.4])) is None


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(GuardUnavailable, match=r"config\.json does not exist.*Train them"):
        MarksGuard(tmp_path)
    shutil.copy(STICKERS / "config.json", tmp_path)
    with pytest.raises(GuardUnavailable, match=r"model\.safetensors does not exist"):
        MarksGuard(tmp_path)


def test_altered_weights_and_configuration(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(STICKERS / name, tmp_path)
    assert MarksGuard(tmp_path).version == MarksGuard().version
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(IntegrityError, match="digest"):
        MarksGuard(tmp_path)
    whole = json.loads((STICKERS / "config.json").read_text())
    kinds = (["text", "qr"], ["watermark", "barcode"], [], "watermark", [*reversed(whole["kinds"])])
    others = [json.dumps(whole | {"kinds": some}) for some in kinds]
    for card in (json.dumps({"architecture": "yolo"}), "[" * 100_000, *others):
        (tmp_path / "config.json").write_text(card)
        with pytest.raises(GuardUnavailable, match="not a marks configuration"):
            MarksGuard(tmp_path)


def test_a_card_that_leaves_out_a_kind_is_refused(tmp_path: Path) -> None:
    """Its operating points would be taken for those of other kinds, or for all."""
    shutil.copy(STICKERS / "model.safetensors", tmp_path)
    card = json.loads((STICKERS / "config.json").read_text())
    card["kinds"] = ["text"]
    card["operating_logits"] = {"text": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(card))
    with pytest.raises(IntegrityError, match="the card has not all of them"):
        MarksGuard(tmp_path)


def test_the_shipped_card_states_the_weights() -> None:
    card = json.loads((STICKERS / "config.json").read_text())
    assert card["licence"] == "Apache-2.0" and card["parameters"] <= 1_000_000
    assert card["weights_sha256"] in (STICKERS / "README.md").read_text(encoding="utf-8")
