from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from index.calibrate import Calibration
from index.store import ReferenceIndex
from jobs import cli, index_cli
from jobs.plan import Plan, open_folder
from jobs.report import ReferencePictures
from pipeline.config import RunConfig
from pipeline.policy import Policy


class FakeEmbedder:
    """Sixteen mean brightnesses."""

    embedder_id, dim = "fake-1", 16

    def images(self, pictures: np.ndarray) -> np.ndarray:
        flat = pictures.reshape(len(pictures), 4, pictures.shape[1] // 4, 4, pictures.shape[2] // 4, 3).mean(axis=(2, 4, 5))
        vectors = flat.reshape(len(pictures), 16).astype(np.float32) - 127
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["index", *(str(argument) for argument in arguments)], terminal_width=200)


def draw(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as sheet:
        writer = csv.writer(sheet)
        writer.writerow(["file", "title", "licence", "keep_picture"])
        for name in names:
            pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1)).save(folder / f"{name}.png")
            writer.writerow([f"{name}.png", name, "MIT", "yes" if name != "owl" else "no"])
    return folder


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index_cli, "_embedder", lambda *_: FakeEmbedder())
    done = call("build", draw(tmp_path / "works", ["apple", "owl", "fox"]), "--out", tmp_path / "index")
    assert done.exit_code == 0, done.output
    assert "3 references" in done.output and "1 of them without their picture" in done.output
    return tmp_path / "index"


def test_from_build_to_retire(built: Path, tmp_path: Path) -> None:
    found = call("search", built, tmp_path / "works" / "fox.png", "--k", 1)
    assert found.exit_code == 0 and "fox" in found.output and "1.0000" in found.output

    before = ReferenceIndex.open(built).index_id
    added = call("add", built, draw(tmp_path / "more", ["fox", "bee"]))
    assert added.exit_code == 0 and "1 of 2 references are new" in added.output and before in added.output

    fox = next(reference.ref_id for reference in ReferenceIndex.open(built).references() if reference.title == "fox")
    assert call("retire", built, fox, "--reason", "claim withdrawn").exit_code == 0
    assert fox not in call("search", built, tmp_path / "works" / "fox.png").output

    info = call("info", built)
    assert info.exit_code == 0 and "claim withdrawn" in info.output and "digests match" in info.output
    assert ReferenceIndex.open(built).index_id in info.output


def test_bad_input_is_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for arguments in (
        ("build", tmp_path / "none"),
        ("build", tmp_path / "works", "--out", built),
        ("search", built, tmp_path / "broken.png"),
        ("search", built, tmp_path / "none.png"),
        ("retire", built, "0" * 16),
        ("info", tmp_path),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 2 and refused.stderr.startswith("error: ") and "fix: " in refused.stderr, refused.output
    monkeypatch.setattr(FakeEmbedder, "embedder_id", "fake-2")
    assert "fake-1" in call("search", built, tmp_path / "works" / "fox.png").stderr
    victim = next(path for path in sorted(built.rglob("segments/*/*")) if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert call("info", built).exit_code == 2


def test_reference_pictures_of_a_report(built: Path, tmp_path: Path) -> None:
    references = {reference.title: reference.ref_id for reference in ReferenceIndex.open(built).references()}

    def pictures_of(index: str, out: Path | None = None) -> ReferencePictures:
        (tmp_path / "prompts.txt").write_text("owl\n")
        plan = Plan.make(RunConfig(prompts="prompts.txt", index=index), Policy(), tmp_path, identity={})
        return ReferencePictures(open_folder(out or tmp_path / f"run-{index}", plan)[0])

    kept = pictures_of("index")
    picture = kept(references["apple"])
    assert picture is not None and picture.shape == (64, 64, 3)
    assert kept(references["owl"]) is None and kept("f" * 16) is None and kept.remark == ""
    gone = pictures_of("gone")
    assert gone(references["apple"]) is None and "no reference pictures" in gone.remark
    none = pictures_of("")
    assert none(references["apple"]) is None and none.remark == ""
    away = pictures_of("index", Path(mkdtemp(dir=tmp_path.parent)))
    assert away(references["apple"]) is None and "name the run file" in away.remark
    again = ReferencePictures(tmp_path / "run-index", tmp_path)(references["apple"])
    assert again is not None and again.shape == (64, 64, 3)


def test_calibrate_writes_an_operating_point_of_this_index(built: Path, tmp_path: Path) -> None:
    harmless = draw(tmp_path / "harmless", ["pear", "plum", "kiwi"])
    done = call("calibrate", built, "--harmless", harmless, "--copies", 3, "--false-alarms", 0.2)
    assert done.exit_code == 0, done.output
    found = Calibration.load(built / "calibration.json")
    assert found.index_id == ReferenceIndex.open(built).index_id and found.embedder_id == "fake-1"
    assert found.recall.n == 6 and found.false_positive_rate.n == 12  # 2 kept works × 3 copies; 3 × 2 harmless and 6 others
    assert found.false_positive_rate.value <= 0.2
    assert f"{found.threshold:.4f}" in done.output and "near-miss" in done.output
    kept = (built / "calibration.json").read_bytes()
    assert call("calibrate", built, "--harmless", harmless, "--copies", 3, "--false-alarms", 0.2).exit_code == 0
    assert (built / "calibration.json").read_bytes() == kept


def test_calibrate_says_when_the_pairs_cannot_show_the_rate(built: Path) -> None:
    done = call("calibrate", built)
    assert done.exit_code == 0 and "cannot show a rate" in done.output and "nothing harmless was given" in done.output


def test_calibrate_refuses_labels_and_harmless_pictures_together(built: Path, tmp_path: Path) -> None:
    done = call("calibrate", built, "--pairs", tmp_path / "p.csv", "--harmless", tmp_path)
    assert done.exit_code == 2 and "exclude each other" in done.output
