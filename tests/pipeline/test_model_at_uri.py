"""A model on an object store: fetched once into the cache, with the digest and the name that it has in a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from index import storage
from index.errors import InputError
from pipeline.config import ModelConfig
from pipeline.model.folder.digest import folder_digest
from pipeline.model.folder.resolve import model_name, resolve
from pipeline.model.load import load_model


@pytest.fixture
def uri(tiny_sd: Path, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    place = storage.place(f"{memory}/tiny")
    for path in tiny_sd.rglob("*"):
        if path.is_file():
            storage.write_file(place, path.relative_to(tiny_sd).as_posix(), path.read_bytes())
    return str(place)


def test_it_is_the_model_of_the_local_folder(uri: str, tiny_sd: Path) -> None:
    config = ModelConfig(path=uri)
    assert folder_digest(resolve(config)) == folder_digest(tiny_sd)
    assert model_name(config) == "tiny"
    assert resolve(config) == resolve(config)
    assert load_model(config).digest == load_model(ModelConfig(path=str(tiny_sd))).digest


def test_a_model_that_is_not_there_is_a_sentence(memory: str) -> None:
    with pytest.raises(InputError, match="no such file or folder") as caught:
        resolve(ModelConfig(path=f"{memory}/none"))
    assert caught.value.where == f"{memory}/none"
