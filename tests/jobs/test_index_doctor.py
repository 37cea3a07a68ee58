"""The index doctor on an index of drawings, with the real embedder and the real copies guard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from index.calibrate import calibrate
from index.errors import IntegrityError
from jobs.cli import main as cli
from jobs.index_doctor import in_runs
from pipeline.audit.events import append_event
from pipeline.audit.stored import sample_files
from tests.jobs.drawn_run import OBSERVE, draw, drawing, make_index
from tests.jobs.test_reaudit import World, rows
from tests.tampering.forge import rewritten, table_of


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("doctored")
    index, embedder = make_index(base / "index")
    draw(base, index, embedder, policy=OBSERVE, out="observed", shown={"a-lemon": drawing("lemon"), "a-bell": drawing("bell")})
    (base / "harmless").mkdir()
    for name in ("lemon", "cow", "house"):
        Image.fromarray(drawing(name)).save(base / "harmless" / f"{name}.png")
    return World(base, index, embedder)


def call(world: World, *arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["index", "doctor", *map(str, arguments)], terminal_width=200)


def title(world: World, ref_id: str) -> str:
    return world.index.reference(ref_id).title


def test_a_reference_that_fires_on_a_harmless_drawing_is_named(drawn: World) -> None:
    """To the embedder the lemon that ships is a bell, and the second look does not clear it."""
    done = call(drawn, drawn.base / "index", "--harmless", drawn.base / "harmless", "--json")
    problems = [remark for remark in json.loads(done.stdout)["remarks"] if remark["level"] == "problem"]
    assert done.exit_code == 1
    assert [title(drawn, ref_id) for remark in problems for ref_id in remark["ref_ids"]] == ["bell"]
    assert "1 of 3 harmless pictures" in problems[0]["what"]


def test_a_threshold_of_ones_own_is_used(drawn: World) -> None:
    done = call(drawn, drawn.base / "index", "--harmless", drawn.base / "harmless", "--threshold", "0.99", "--json")
    assert (done.exit_code, json.loads(done.stdout)["problems"]) == (0, 0)


@pytest.mark.parametrize(("threshold", "problems"), [("0.99", 0), ("0.1", 2)])
def test_a_threshold_of_ones_own_is_used_with_the_look_of_the_calibration(
    drawn: World, tmp_path: Path, threshold: str, problems: int
) -> None:
    """A policy that nobody gave was blamed for the look."""
    shutil.copytree(drawn.base / "index", tmp_path / "index")
    copy = np.arange(40) < 20
    scores = copy * 0.5 + np.linspace(0, 0.4, 40)
    found = calibrate(drawn.index.embedder_id, scores, copy, confirm=scores, max_added_rate=0.1)
    found.looked_by("keypoints", scores, copy).save(tmp_path / "index" / "calibration.json")
    done = call(drawn, tmp_path / "index", "--harmless", drawn.base / "harmless", "--threshold", threshold, "--json")
    assert done.stderr == "" and json.loads(done.stdout)["problems"] == problems


def test_runs_show_what_fires_and_what_people_overruled(drawn: World) -> None:
    folder = drawn.base / "observed"
    bell = next(reference.ref_id for reference in drawn.index.references() if reference.title == "bell")
    assert in_runs([folder]).pictures == 2 and in_runs([folder]).both[bell] == 2
    sample_id = rows(folder)["a-lemon"]["sample_id"]
    append_event(folder, "review.decided", "compliance", "a lemon", samples=[sample_id], details={"outcome": "accepted"})
    assert in_runs([folder]).accepted == {bell: 1}
    done = call(drawn, drawn.base / "index", "--run", folder)
    assert done.exit_code == 1 and "people accepted 1 pictures that 'bell' had held back" in done.stdout


def test_rows_of_a_changed_file_are_not_counted(drawn: World, tmp_path: Path) -> None:
    folder = tmp_path / "observed"
    shutil.copytree(drawn.base / "observed", folder)
    path = folder / next(sample_files(folder))
    pq.write_table(rewritten(table_of(path), lambda rows: rows[0].update(findings=[]), rechain=True), path)
    with pytest.raises(IntegrityError, match="is not the file that was committed"):
        in_runs([folder])


def test_it_changes_nothing(drawn: World) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(drawn.base / "index").rglob("*") if path.is_file()}
    call(drawn, drawn.base / "index", "--run", drawn.base / "observed")
    assert {path: path.stat().st_mtime_ns for path in Path(drawn.base / "index").rglob("*") if path.is_file()} == before
