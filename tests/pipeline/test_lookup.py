"""Released pictures are found again by their fingerprints, and pictures that were not released are not."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.audit.events import append_event
from pipeline.audit.ledger import sample_rows
from pipeline.audit.lookup import Released
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import commit_shard
from pipeline.marking.encode import decode
from pipeline.outcome import Outcome, Verdict
from tests.pipeline.conftest import a_sample, an_attempt

DATA = Path(__file__).parents[1] / "data"


def painted(seed: int) -> np.ndarray:
    """Twelve coloured ellipses: uint8 (96, 96, 3), unlike those of another seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), "white")
    for _ in range(12):
        x, y, width, height = (int(n) for n in rng.integers([0, 0, 10, 10], [80, 80, 40, 40]))
        ImageDraw.Draw(image).ellipse((x, y, x + width, y + height), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return np.asarray(image)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve released pictures, key-000 to key-011, and one in review, painted(12)."""
    from tests.pipeline.conftest import a_context

    folder = tmp_path_factory.mktemp("runs") / "run"
    samples = [a_sample(n, Outcome.ACCEPTED, [an_attempt(0, painted(n), 0.3, Verdict.ACCEPT)]) for n in range(12)]
    held = a_sample(12, Outcome.REVIEW, [an_attempt(0, painted(12), 0.4, Verdict.REVIEW, reason="mark.qr")], "mark.qr")
    everything = [*samples, held]
    commit_shard(folder, "0", sample_table(everything, a_context(), "0"), attempt_table(everything, a_context(), "0"))
    return folder


def saved(picture: np.ndarray, kind: str, **settings: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **settings)
    return np.asarray(Image.open(stream).convert("RGB"))


ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda p: p,
    "JPEG 50": lambda p: saved(p, "JPEG", quality=50),
    "WebP 80": lambda p: saved(p, "WEBP", quality=80),
    "half": lambda p: np.asarray(Image.fromarray(p).resize((48, 48), Image.Resampling.LANCZOS)),
    "double": lambda p: np.asarray(Image.fromarray(p).resize((192, 192), Image.Resampling.BICUBIC)),
    "darker": lambda p: (p * 0.9).astype(np.uint8),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_released_picture_is_found_after(run: Path, attack: Callable[[np.ndarray], np.ndarray]) -> None:
    released = Released([run])
    found = [[one.request_key for one in released.like(attack(painted(n)))] for n in range(12)]
    assert found == [[f"key-{n:03d}"] for n in range(12)]


@pytest.mark.parametrize("seed", [12, 100, 101, 102])
def test_a_picture_that_was_not_released_is_not_found(run: Path, seed: int) -> None:
    assert Released([run]).like(painted(seed)) == []


def test_the_very_file_is_known_as_such(run: Path) -> None:
    row = next(row for row in sample_rows(run) if row["request_key"] == "key-003")
    data = row["image"]["bytes"]
    found = Released([run]).like(decode(data)[0], data)
    assert [(one.request_key, one.same_file, one.bits) for one in found] == [("key-003", True, 0)]


def test_another_file_of_the_picture_is_not_the_same_file(run: Path) -> None:
    (found,) = Released([run]).like(painted(3), b"another file")
    assert (found.request_key, found.same_file) == ("key-003", False)


def test_several_runs_are_searched_at_once(run: Path, make_run: Any, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other").folder
    released = Released([other, run])
    assert len(released) == 12 + 12
    assert [one.folder for one in released.like(painted(5))] == [run]


@pytest.mark.parametrize("version", [1, 2])
def test_rows_without_an_iscc_are_found_by_pdq(tmp_path: Path, version: int) -> None:
    with zipfile.ZipFile(DATA / f"run-v{version}.zip") as packed:
        packed.extractall(tmp_path)
    row = next(row for row in sample_rows(tmp_path / "run") if row["image"])
    found = Released([tmp_path / "run"]).like(decode(row["image"]["bytes"])[0])
    assert (row["request_key"], 0, None) in [(one.request_key, one.pdq_bits, one.iscc_bits) for one in found]


@pytest.mark.parametrize("kind", ["review.decided", "sample.released"])
def test_a_picture_that_was_accepted_in_review_is_found_after_it_was_withdrawn_too(
    run: Path, tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    held = [row["sample_id"] for row in sample_rows(folder) if row["request_key"] == "key-012"]
    append_event(folder, kind, "reviewer", "looked at", samples=held, details={"outcome": "rejected"})
    assert Released([folder]).like(painted(12)) == []
    append_event(folder, kind, "reviewer", "looked at again", samples=held, details={"outcome": "accepted"})
    append_event(folder, "sample.quarantined", "claims", "claim 1", samples=held, details={"claim": "1"})
    assert [(one.request_key, one.same_file) for one in Released([folder]).like(painted(12))] == [("key-012", False)]


def test_an_empty_run_finds_nothing(tmp_path: Path) -> None:
    assert Released([tmp_path]).like(painted(0)) == []
