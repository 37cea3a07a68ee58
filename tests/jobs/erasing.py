"""What tests of erasers share: a blank picture, a detector that knows the truth, sets and short trainings."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from guards.base import Finding
from jobs.cli import main as cli
from jobs.erase.captioned import Captioned
from jobs.erase.dataset import Row, build
from jobs.erase.pollute import Pollution
from jobs.erase.train import Trained, Training, train
from pipeline.config import ModelConfig

SHORT = Training(concepts=("qr",), steps=6, batch=4, grid=2)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["erase", *(str(argument) for argument in arguments)], terminal_width=200)


def blank(side: int = 64, colour: int = 200) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


class Seeing:
    """A detector that knows the truth: everything darker or lighter than the blank is a QR code."""

    name, version, categories = "seeing", "1", ("mark.qr",)

    def __init__(self, blind: bool = False) -> None:
        self.blind = blind

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        found = []
        for picture in pictures:
            changed = (picture != 200).any(2)
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            score, box = 0.0, None
            if len(rows) and not self.blind:
                high, wide = changed.shape
                box = (columns[0] / wide, rows[0] / high, (columns[-1] + 1) / wide, (rows[-1] + 1) / high)
                score = 0.9
            found.append(
                [Finding(guard=self.name, version=self.version, category="mark.qr", score=score, threshold=0.5, box=box)]
            )
        return found


def clean(count: int) -> list[Captioned]:
    return [Captioned(f"n{i}", f"a grey thing {i}", blank()) for i in range(count)]


def a_set(path: Path, count: int = 24, **how: Any) -> tuple[Path, dict[str, Any]]:
    return path, build(clean(count), path, Pollution(kinds=("qr",), ratio=0.6, designs="train"), Seeing(), seed=1, **how)


def some_rows(count: int = 12, *, boxes: bool = True) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        marks = {"qr": [(0.0, 0.0, 0.5, 0.5)] if boxes else []} if i % 3 else {}
        rows.append(Row(name=str(i), caption="a red apple", stored=picture, marks=marks, found=marks))
    return rows


def run(tiny_sd: Path, folder: Path, how: Training = SHORT, rows: Sequence[Row] | None = None, **more: Any) -> Trained:
    return train(some_rows() if rows is None else rows, ModelConfig(path=str(tiny_sd)), how, folder, **more)


def equal(one: Trained, other: Trained) -> bool:
    """Same bytes, same curve."""
    return all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        for mine, theirs in ((one.vectors, other.vectors), (one.lowrank, other.lowrank))
    ) and one.curve == other.curve  # fmt: skip


def tar_of(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def folder_of(path: Path, captions: dict[str, str | None], side: int = 32) -> Path:
    path.mkdir()
    for name, caption in captions.items():
        Image.fromarray(blank(side)).save(path / f"{name}.png")
        if caption is not None:
            (path / f"{name}.txt").write_text(caption)
    return path
