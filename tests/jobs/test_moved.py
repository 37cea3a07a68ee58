"""A project with its model, index and embedder moves to another folder; its run names no place of the old one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import storage
from index.collect import read_references
from index.embed import OpenCLIPEmbedder
from index.embedder_source import weights_folder
from index.shipped import STICKERS
from index.store import ReferenceIndex
from jobs.cli.main import app
from pipeline.audit.ledger import sample_rows
from pipeline.marking.encode import decode
from pipeline.model.folder.resolve import model_name

RUN = """\
prompts = "prompts.csv"
out = "runs/one"
index = "works/index"
policy = "rules.toml"
shard_size = 2
[model]
path = "models/tiny"
dtype = "float32"
licence = "none"
[generation]
steps = 3
rows = 4
[embedder]
model = "local-dir:clip"
"""
RULES = 'name = "own"\n' + "".join(f"[{guard}]\nenabled = false\n" for guard in ("marks", "text", "unsafe", "codes"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)


@pytest.fixture
def project(tmp_path: Path, tiny_sd: Path) -> Path:
    """Everything a run needs, in one folder with a name that would be recognised."""
    base = tmp_path / "machine-of-somebody" / "project"
    base.mkdir(parents=True)
    (base / "prompts.csv").write_text("prompt,key\nred apple,a\ncat,b\n,c\nlemon,d\n")
    (base / "run.toml").write_text(RUN)
    (base / "rules.toml").write_text(RULES)
    shutil.copytree(tiny_sd, base / "models" / "tiny")
    shutil.copytree(weights_folder(), base / "clip")
    works = base / "works" / "drawings"
    works.mkdir(parents=True)
    for path in sorted((STICKERS / "references").glob("*.png"))[:3]:
        shutil.copy(path, works)
    embedder = OpenCLIPEmbedder.open("local-dir:clip", base=base)
    ReferenceIndex.build(base / "works" / "index", read_references(works), embedder)
    shutil.copy(STICKERS / "calibration.json", base / "works" / "index" / "calibration.json")
    return base


class FullAfterTheFirstShard(storage.Disk):
    def __init__(self) -> None:
        self.committed = 0

    def link(self, old: str, new: str, *, at: int) -> None:
        if new.endswith(".json"):  # a commit marker; parts of the events get their names by a link too
            if self.committed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.committed += 1
        super().link(old, new, at=at)


def texts(value: Any) -> Iterator[bytes]:
    """Every text and every run of bytes in a row, pictures with their metadata included."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name.encode()
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str | bytes):
        yield value if isinstance(value, bytes) else value.encode()


def searched(folder: Path) -> dict[str, bytes]:
    """What is in every file of a run folder, Parquet uncompressed."""
    import pyarrow.parquet as pq

    found: dict[str, bytes] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.ParquetFile(path).read()
            metadata = b"".join(b"%b%b" % pair for pair in (table.schema.metadata or {}).items())
            content += metadata + b"\n".join(part for row in table.to_pylist() for part in texts(row))
        found[path.relative_to(folder).as_posix()] = content
    return found


def test_a_project_that_moved_is_resumed_and_names_no_old_place(project: Path, tmp_path: Path) -> None:
    with storage.using(FullAfterTheFirstShard()):
        stopped = call("run", project / "run.toml")
    assert stopped.exit_code == 2 and "disk is full" in stopped.stderr, stopped.output
    first = searched(project / "runs" / "one")
    assert len([name for name in first if name.startswith("commits/")]) == 1
    there = Path(shutil.move(project, tmp_path / "another-disk-zq"))
    done = call("run", there / "run.toml", "--resume")
    assert done.exit_code == 0, done.output
    assert "no reference pictures" not in done.output, "the index was found from where the run file is now"
    verified = call("verify", there / "run.toml")
    assert verified.exit_code == 0 and "intact" in verified.output, verified.output
    run = there / "runs" / "one"
    content = first | searched(run)
    assert {"plan.json", "requests.parquet", "events/00000000.parquet", "run.json", "report.html", "report.json"} <= set(
        content
    )
    for name, data in content.items():
        for place in (str(tmp_path), "machine-of-somebody", "another-disk-zq"):
            assert place.encode() not in data, f"{name} says {place}"
    pictures = [row for row in sample_rows(run) if row["image"]]
    assert pictures and {row["model_id"] for row in sample_rows(run)} == {"tiny"}
    for row in pictures:
        xmp = decode(row["image"]["bytes"])[1]
        assert b'AISystemUsed="tiny"' in xmp
        assert f'AISystemVersionUsed="sha256:{row["model_digest"][:16]}"'.encode() in xmp


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"path": "stickers"}, "stickers"),
        ({"path": "/srv/somebody/models/sd15"}, "sd15"),
        ({"path": "/srv/somebody/models/sd15", "name": "Our SD 1.5"}, "Our SD 1.5"),
        ({"path": "stabilityai/stable-diffusion-xl-base-1.0"}, "stabilityai/stable-diffusion-xl-base-1.0"),
    ],
)
def test_the_name_of_a_model_is_no_path(settings: dict[str, str], name: str) -> None:
    from pipeline.config import ModelConfig

    assert model_name(ModelConfig(**settings)) == name


def test_a_relative_folder_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.config import ModelConfig

    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name(ModelConfig(path="models/mine")) == "mine"


def test_a_snapshot_of_the_hubs_cache_gives_the_id_of_its_model(tmp_path: Path) -> None:
    """There the folder is named by the revision."""
    from pipeline.config import ModelConfig

    snapshot = tmp_path / "models--some-org--some--model" / "snapshots" / "462165984030d82259a11f4367a4eed129e94a7b"
    snapshot.mkdir(parents=True)
    assert model_name(ModelConfig(path=str(snapshot))) == "some-org/some--model"
