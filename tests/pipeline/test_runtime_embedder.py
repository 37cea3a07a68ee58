"""A run opens the embedder that its index was built with, wherever the command is typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.embed import OpenCLIPEmbedder, weights_folder
from index.embedder_source import EmbedderSource
from index.errors import ConfigError, IndexMismatch, ModelError
from index.reference import NewReference
from index.store import ReferenceIndex
from pipeline.config import EmbedderConfig, GenerationConfig, ModelConfig, RunConfig
from pipeline.policy import CodesPolicy, CopiesPolicy, MarksPolicy, Policy, TextPolicy, UnsafePolicy
from pipeline.runtime import Runtime

POLICY = Policy(
    name="copies-only",
    copies=CopiesPolicy(threshold=0.8),
    marks=MarksPolicy(enabled=False),
    codes=CodesPolicy(enabled=False),
    text=TextPolicy(enabled=False),
    unsafe=UnsafePolicy(enabled=False),
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an embedder of its own, ``mine``, and an index built with it."""
    shutil.copytree(weights_folder(), tmp_path / "project" / "mine")
    sheet = tmp_path / "project" / "mine" / "open_clip_config.json"
    config = json.loads(sheet.read_text(encoding="utf-8"))
    config["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]  # so that it is not the shipped one
    sheet.write_text(json.dumps(config), encoding="utf-8")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    own = OpenCLIPEmbedder.open("local-dir:mine", base=tmp_path / "project")
    ReferenceIndex.build(tmp_path / "project" / "index", [NewReference(title="noise", picture=picture)], own)
    return tmp_path / "project"


def open_runtime(project: Path, model: Path, embedder: EmbedderConfig) -> Runtime:
    config = RunConfig(
        prompts="-", index="index", model=ModelConfig(path=str(model), dtype="float32"), embedder=embedder,
        generation=GenerationConfig(steps=2),
    )  # fmt: skip
    return Runtime.open(config, POLICY, base=project)


@pytest.mark.parametrize("named", ["", "local-dir:mine", "mine"])
def test_an_embedder_beside_the_run_file_is_found_from_anywhere(
    named: str, project: Path, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runtime = open_runtime(project, tiny_sd, EmbedderConfig(model=named))
    assert runtime.copies is not None
    assert runtime.copies.embedder.embedder_id == ReferenceIndex.open(project / "index").embedder_id


def test_another_embedder_than_the_index_has_is_refused(project: Path, tiny_sd: Path) -> None:
    with pytest.raises(IndexMismatch, match=r"local-dir:\.\./mine"):
        open_runtime(project, tiny_sd, EmbedderConfig(model="stickers"))


def test_project_and_index_move_together(project: Path, tiny_sd: Path, tmp_path: Path) -> None:
    assert ReferenceIndex.open(project / "index").embedder_source == EmbedderSource("local-dir:../mine")
    project.rename(tmp_path / "elsewhere")
    runtime = open_runtime(tmp_path / "elsewhere", tiny_sd, EmbedderConfig())
    assert runtime.copies is not None


def test_a_remembered_embedder_that_is_gone_is_named(project: Path, tiny_sd: Path) -> None:
    shutil.rmtree(project / "mine")
    with pytest.raises(ModelError, match="is not a folder") as refused:
        open_runtime(project, tiny_sd, EmbedderConfig())
    assert "--embedder" in refused.value.fix


def test_a_device_that_is_not_there_is_named_by_the_key_that_was_written(tmp_path: Path) -> None:
    """Guards and embedder have the model's device where they state none."""
    config = RunConfig(prompts="-", model=ModelConfig(device="cuda:99"))
    with pytest.raises(ConfigError) as caught:
        Runtime.open(config, Policy(), base=tmp_path)
    assert caught.value.where == "model.device"
