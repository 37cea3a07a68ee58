"""Adapters as folders: bound to their model and their bytes, and those that ship fit what ships."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from index.errors import IntegrityError, ModelError
from index.shipped import STICKERS
from pipeline.config import AdapterConfig
from pipeline.model.folder.digest import folder_digest
from pipeline.model.interface import DiffusionModel
from pipeline.respond.marks import SHIPPED, adapter_folders
from pipeline.steer.erase_adapter import load_adapter, read_settings
from pipeline.steer.erase_tokens import Vocabulary

from .adapters import ATTENTION, CONVOLUTION, FEEDFORWARD, write_adapter


def test_an_adapter_is_bound_to_its_model_and_its_bytes(exact: DiffusionModel, tmp_path: Path) -> None:
    vocabulary = Vocabulary(("qr",), "bins", 2)
    folder = write_adapter(tmp_path / "one", exact, vocabulary, weights=True)
    loaded = load_adapter(folder, exact.digest)
    assert loaded.vocabulary == vocabulary and loaded.embed(("<qr>", "<bin-1-1>")).shape == (2, 32)
    assert loaded.lowrank is not None and set(loaded.lowrank.pairs) == {ATTENTION, FEEDFORWARD, CONVOLUTION}
    assert list(loaded.lowrank.pairs) == sorted(loaded.lowrank.pairs)  # however safetensors happens to read them
    with pytest.raises(ModelError, match="trained for tiny") as error:
        load_adapter(folder, "f" * 64)
    assert error.value.fix
    raw = bytearray((folder / "tokens.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "tokens.safetensors").write_bytes(bytes(raw))
    with pytest.raises(IntegrityError, match="digest"):
        load_adapter(folder, exact.digest)
    (folder / "tokens.safetensors").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        load_adapter(folder, exact.digest)
    with pytest.raises(ModelError, match=r"no adapter\.json"):
        load_adapter(tmp_path, exact.digest)
    (folder / "adapter.json").write_text("{}")
    with pytest.raises(ModelError, match="has format None"):
        load_adapter(folder, exact.digest)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("files", None, "files"),
        ("files", {"../model.safetensors": "0"}, "files"),
        ("places", {"qr": [[0, 0, 1e308, 1]]}, "places.qr.0.2"),
        ("places", {"qr": [[0, 0, 1]]}, "places.qr.0"),
        ("concepts", [[]], "concepts.0"),
        ("vocabulary", {"concepts": [], "mode": "bins", "grid": 2}, "vocabulary.concepts"),
        ("removal", "all", "removal"),
        ("base_digest", 1, "base_digest"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(
    exact: DiffusionModel, tmp_path: Path, key: str, value: object, named: str
) -> None:
    folder = write_adapter(tmp_path / "one", exact, Vocabulary(("qr",), "bins", 2))
    settings = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(ModelError, match=re.escape(named)):
        load_adapter(folder, exact.digest)


def test_what_ships_fits_what_ships() -> None:
    base = folder_digest(STICKERS / "model")
    folders = sorted(path.parent for path in SHIPPED.glob("*/adapter.json"))
    assert {folder.name for folder in folders} >= {"marks"}
    for folder in folders:
        adapter = load_adapter(folder, base)
        assert (
            set(adapter.concepts) == {"watermark", "qr", "text"} and sum(f.stat().st_size for f in folder.iterdir()) < 5 * 2**20
        )
        assert adapter.digest in {read_settings(folder)[1]} and base in (folder / "README.md").read_text()
    unasked = adapter_folders((), base, base=Path())
    assert [folder.name for folder, _ in unasked] == ["marks"]  # others are for sets of their own
    assert adapter_folders((), "f" * 64, base=Path()) == []
    named = adapter_folders((AdapterConfig(path="stickers:marks"),), base, base=Path("elsewhere"))
    assert named[0][0] == SHIPPED / "marks"
