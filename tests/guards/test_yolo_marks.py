"""The YOLO marks guard: it states its licence and what is missing, and detects marks where ultralytics is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guards.conformance import check_guard
from guards.mark_network import KINDS
from guards.mark_weights import STICKERS
from guards.yolo import YoloMarksGuard, make_detector
from index.errors import GuardUnavailable, IntegrityError, OutOfMemory
from jobs.erase.marks.overlays import overlay
from jobs.lab.world.mark_measures import overlap

from .conftest import drawing

WEIGHTS = STICKERS / "yolo"
needs_ultralytics = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics (AGPL-3.0, the extra 'yolo') is not installed"
)


@pytest.fixture(scope="module")
def guard() -> YoloMarksGuard:
    return YoloMarksGuard()


def marked(kind: str, count: int, designs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, 64, 64, 3) with one mark each, and the boxes in fractions."""
    rng = np.random.default_rng(21)
    pairs = [overlay(drawing(seed), kind, rng, designs) for seed in range(300, 300 + count)]
    return np.stack([np.asarray(picture) for picture, _ in pairs]), np.array([box for _, box in pairs]) / 64


def test_without_the_package_it_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "ultralytics" else find(n, *a))
    with pytest.raises(GuardUnavailable, match=r"ultralytics is not installed.*pip install 'clearance\[yolo\]'.*AGPL-3\.0"):
        YoloMarksGuard()


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: find("json") if n == "ultralytics" else find(n, *a))
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "8.4" if n == "ultralytics" else version(n))
    with pytest.raises(GuardUnavailable, match=r"config\.json does not exist.*clearance lab world yolo"):
        YoloMarksGuard(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "cells"}))
    with pytest.raises(GuardUnavailable, match="not a yolo configuration"):
        YoloMarksGuard(tmp_path)


def test_the_shipped_card_states_weights_and_licence() -> None:
    card = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    readme = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert card["licence"] == "AGPL-3.0" and "AGPL-3.0" in readme and card["weights_sha256"] in readme
    licence = (WEIGHTS / "LICENSE").read_text(encoding="utf-8")
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in licence and "13. Remote Network Interaction" in licence
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 6_000_000


@needs_ultralytics
def test_it_conforms(guard: YoloMarksGuard) -> None:
    pictures = np.stack([np.asarray(drawing(50)), marked("qr", 1, (2,))[0][0], marked("text", 1, (2,))[0][0]])
    check_guard(guard, pictures)


@needs_ultralytics
@pytest.mark.parametrize("kind", KINDS[:3])
def test_it_finds_marks_and_their_places(guard: YoloMarksGuard, kind: str) -> None:
    pictures, truth = marked(kind, 16, (0, 1, 2))
    column = KINDS.index(kind)
    hits = [(row[column].box, box) for row, box in zip(guard.check(pictures), truth, strict=True) if row[column].triggered]
    assert len(hits) >= 12
    found = np.array([box for box, _ in hits])
    assert (overlap(found, np.array([box for _, box in hits])) >= 0.5).mean() >= 0.8


@needs_ultralytics
def test_it_finds_codes_of_designs_that_no_training_saw(guard: YoloMarksGuard) -> None:
    pictures, truth = marked("qr", 12, (3, 4))
    found = [row[1] for row in guard.check(pictures)]
    hits = [i for i, f in enumerate(found) if f.triggered]
    boxes = np.array([found[i].box for i in hits])
    assert (overlap(boxes, truth[hits]) >= 0.5).all()
    # Of codes it has not seen the operating point (at most 2 % false alarms) lets some pass; of those it has, hardly any.
    trained, _ = marked("qr", 12, (0, 1))
    assert sum(row[1].triggered for row in guard.check(trained)) >= 10 and len(hits) >= 4


@needs_ultralytics
def test_clean_drawings_are_not_flagged(guard: YoloMarksGuard) -> None:
    clean = np.stack([np.asarray(drawing(seed)) for seed in range(400, 440)])
    assert sum(any(f.triggered for f in row) for row in guard.check(clean)) <= 2


@needs_ultralytics
def test_version_and_threshold(guard: YoloMarksGuard) -> None:
    card = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    assert guard.version == f"{card['version']}+{card['weights_sha256'][:8]}" and guard.threshold == 0.5
    pictures, _ = marked("qr", 3, (0,))
    eager = YoloMarksGuard(threshold=0.01).check(pictures)
    assert [[f.score for f in row] for row in eager] == [[f.score for f in row] for row in guard.check(pictures)]
    assert all(f.threshold == 0.01 and f.triggered == (f.score >= 0.01) for row in eager for f in row)


@needs_ultralytics
def test_memory_that_runs_out_halves_the_call_for_good(guard: YoloMarksGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, _ = marked("qr", 5, (0,))
    small, rows = YoloMarksGuard(), 4
    real, seen = small.network, list[int]()

    def network(x: Any) -> Any:
        seen.append(len(x))
        if len(x) > rows:
            raise MemoryError("no room")
        return real(x)

    monkeypatch.setattr(small, "network", network)
    halved = small.check(pictures)
    assert seen == [8, 4, 4] and small.calls.shapes == (8, 4)
    for mine, whole in zip(halved, guard.check(pictures), strict=True):
        assert [f.score for f in mine] == pytest.approx([f.score for f in whole], abs=1e-4)
    assert small.check(pictures[4:])[0] == halved[4]  # the same bytes for the same shape
    rows = 0
    with pytest.raises(OutOfMemory, match=r"guard yolo: not even one row .*no room.*enabled = false"):
        small.check(pictures[:1])


@needs_ultralytics
def test_altered_and_misfit_weights_are_refused(tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import load, save

    for name in ("config.json", "model.safetensors"):
        shutil.copy(WEIGHTS / name, tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="digest"):
        YoloMarksGuard(tmp_path)
    tensors = load(raw)
    del tensors[next(iter(tensors))]
    short = save(tensors)
    (tmp_path / "model.safetensors").write_bytes(short)
    card = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**card, "weights_sha256": hashlib.sha256(short).hexdigest()}))
    with pytest.raises(IntegrityError, match="do not fit"):
        YoloMarksGuard(tmp_path)


@needs_ultralytics
def test_training_takes_the_same_first_steps_and_resumes(tmp_path: Path) -> None:
    import torch

    from jobs.lab.world.mark_examples import Examples
    from jobs.lab.world.mark_training import fit
    from jobs.lab.world.train_yolo import loss_of, make_trainable, targets

    pictures, truth = marked("qr", 4, (0,))
    rows = Examples(pictures, np.array([1, 1, -1, 1]), (64 * truth).astype(np.float32), np.zeros((4, 3, 8, 8), bool))
    wanted = targets(rows)
    assert wanted["batch_idx"].tolist() == [0, 1, 3] and wanted["cls"].shape == (3, 1)
    centre, extent = wanted["bboxes"][0, :2], wanted["bboxes"][0, 2:]
    assert torch.allclose(centre - extent / 2, torch.from_numpy(truth[0, :2]).float(), atol=1e-6)

    def network() -> object:
        torch.manual_seed(0)
        return make_trainable()

    settings = {"minutes": 0.0, "batch": 2, "rate": 1e-3, "seed": 0, "say": lambda _: None}
    fit(network(), loss_of, rows, tmp_path / "whole", steps=2, **settings)
    fit(network(), loss_of, rows, tmp_path / "parts", steps=1, **settings)
    fit(network(), loss_of, rows, tmp_path / "parts", steps=2, **settings)
    totals = [torch.load(tmp_path / part / "state.pt", weights_only=True)["total"] for part in ("whole", "parts")]
    assert totals[0] == pytest.approx(totals[1], rel=1e-4) and totals[0] > 0


@needs_ultralytics
def test_the_network_is_ultralytics_nano() -> None:
    detector = make_detector("yolo11n.yaml", 3)
    assert 2_000_000 < sum(p.numel() for p in detector.parameters()) < 3_000_000


@needs_ultralytics
def test_ultralytics_leaves_the_reading_of_pictures_alone(guard: YoloMarksGuard, tmp_path: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "broken.png")
