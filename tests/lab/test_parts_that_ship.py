"""A part of the world that is trained anew is listed anew, because a shipped folder is held to its list."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.errors import ModelError
from jobs.cli.main import app
from jobs.lab.judges import train as judges
from jobs.lab.world import train_marks, train_yolo
from jobs.lab.world.pack import write_digests
from pipeline.model.folder.digest import check_digests


def write(part: Path) -> None:
    (part / "config.json").write_text('{"trained": "again"}', encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "part"), [("world marks", "marks"), ("world yolo", "yolo"), ("judges fit", "judges")], ids=lambda given: given
)
def test_a_part_that_was_trained_again_is_loaded(
    command: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ships" / part
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    write_digests(folder.parent)
    for module in (train_marks, train_yolo):
        monkeypatch.setattr(module, "train", lambda *_, **__: None)
        monkeypatch.setattr(module, "export", lambda _, target: write(target))
    monkeypatch.setattr(judges, "make", lambda _, target, **__: write(target))
    done = CliRunner().invoke(app, ["lab", *command.split(), "--work", str(tmp_path), "--target", str(folder)])
    assert done.exit_code == 0, done.output
    check_digests(folder.parent)
    (folder / "config.json").write_text("{ }", encoding="utf-8")
    with pytest.raises(ModelError, match="digest"):
        check_digests(folder.parent)
