"""``clearance detect``: files and folders, the runs that a picture came from, exit codes, and no network."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from jobs.cli.main import app
from jobs.keys import new_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.planning.stored_plan import stored_plan
from pipeline.audit.ledger import sample_rows
from pipeline.config import MarksConfig
from pipeline.keys import Keys
from pipeline.marking.tile import TileWatermark
from pipeline.marking.watermark import run_tag

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def released(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> list[bytes]:
    """Three pictures of a run in `run`, signed with `keys`, in the folder `pictures`."""
    new_keys(tmp_path / "keys")
    plan = make_plan(["cat", "owl", "fox"], marks=MarksConfig(keys="keys"))
    run_local(plan, tmp_path / "run", open_loop=open_loop)
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    files = [row["image"]["bytes"] for row in sample_rows(tmp_path / "run")]
    for place, data in zip(("a.webp", "b.webp", "deep/c.webp"), files, strict=True):
        (tmp_path / "pictures" / place).write_bytes(data)
    return files


def found(tmp_path: Path, *more: object, code: int) -> dict[str, Any]:
    result = call("detect", tmp_path / "pictures", "--keys", tmp_path / "keys", "--json", *more)
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout))


def test_pictures_of_a_run_are_found_in_it(released: list[bytes], tmp_path: Path) -> None:
    data = found(tmp_path, "--run", tmp_path / "run", code=0)
    assert data["summary"]["verdicts"] == {"identified": 3}
    assert data["summary"]["layers"]["C2PA signer"] == {"pass": 3}
    prints = [layer for one in data["files"] for layer in one["layers"] if layer["name"] == "fingerprint"]
    assert [one["facts"]["request_key"] for one in prints] == [row["request_key"] for row in sample_rows(tmp_path / "run")]
    assert all(one["facts"]["same_file"] and one["facts"]["run"] == "run" for one in prints)


def test_a_copy_without_any_mark_is_found_by_its_fingerprint(released: list[bytes], tmp_path: Path) -> None:
    with Image.open(io.BytesIO(released[0])) as image:
        image.convert("RGB").resize((128, 128)).save(tmp_path / "pictures" / "a.webp", "WEBP", quality=90)
    data = found(tmp_path, "--run", tmp_path / "run", code=0)
    layers = {layer["name"]: layer for layer in data["files"][0]["layers"]}
    assert (layers["XMP"]["state"], layers["C2PA"]["state"], layers["fingerprint"]["state"]) == ("absent", "absent", "pass")
    assert not layers["fingerprint"]["facts"]["same_file"]


def test_without_runs_fingerprints_are_not_looked_at(released: list[bytes], tmp_path: Path) -> None:
    assert found(tmp_path, code=0)["summary"]["layers"]["fingerprint"] == {"skip": 3}


def test_a_damaged_file_is_a_line_and_not_the_end(released: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "pictures" / "b.webp").write_bytes(released[1][:200])
    (tmp_path / "pictures" / "empty.png").write_bytes(b"")
    (tmp_path / "pictures" / "readme.txt").write_text("hello")
    (tmp_path / "pictures" / "gone.png").symlink_to("nowhere")
    data = found(tmp_path, code=1)
    verdicts = {Path(one["file"]).name: one["verdict"] for one in data["files"]}
    assert verdicts == {
        "a.webp": "identified", "b.webp": "damaged", "c.webp": "identified", "empty.png": "damaged", "gone.png": "damaged"
    }  # fmt: skip
    assert data["summary"]["other_files"] == 1
    assert all(one["problem"] for one in data["files"] if one["verdict"] == "damaged")


def test_a_picture_without_marks_exits_with_3(released: list[bytes], tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "plain.png")
    assert found(tmp_path, code=3)["summary"]["verdicts"] == {"identified": 3, "not identified": 1}


def test_a_mark_that_does_not_hold_exits_with_1(released: list[bytes], tmp_path: Path) -> None:
    changed = released[0].replace(b'AISystemUsed="fake"', b'AISystemUsed="mine"')
    assert changed != released[0]
    (tmp_path / "pictures" / "a.webp").write_bytes(changed)
    result = call("detect", tmp_path / "pictures", "--keys", tmp_path / "keys")
    assert result.exit_code == 1
    assert "C2PA: the manifest does not hold: the file was changed after it was signed" in result.stdout
    assert "3 pictures: 1 failed, 2 identified" in result.stdout


def test_one_file_shows_every_layer_with_its_false_alarms(released: list[bytes], tmp_path: Path) -> None:
    result = call("detect", tmp_path / "pictures" / "a.webp")
    assert result.exit_code == 0
    for name in ("XMP: pass", "C2PA: pass", "C2PA signer: skip", "watermark tile: absent", "fingerprint: skip"):
        assert name in result.stdout
    assert result.stdout.count("false alarms:") == 5


def test_the_tag_in_a_watermark_leads_to_its_run(released: list[bytes], tmp_path: Path) -> None:
    """Of a picture that lost its metadata and is in no row, such as a part of a collage."""
    key = Keys(tmp_path / "keys").watermark()
    assert key is not None
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    tag = run_tag(str(stored_plan(tmp_path / "run")["plan_sha256"]))
    for name, payload in (("own", tag), ("other", tag ^ 1)):
        soft = np.clip((cv2.GaussianBlur(noise, (0, 0), 5).astype(int) - 128) * 6 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(TileWatermark().embed(soft, key, payload)).save(tmp_path / f"{name}.png")
    for name, run in (("own", "run"), ("other", None)):
        result = call("detect", tmp_path / f"{name}.png", "--keys", tmp_path / "keys", "--run", tmp_path / "run", "--json")
        layers = {layer["name"]: layer for layer in json.loads(result.stdout)["files"][0]["layers"]}
        assert layers["watermark tile"]["state"] == "pass" and layers["fingerprint"]["state"] == "absent"
        assert layers["watermark tile"]["facts"].get("run") == run


def test_the_watermark_may_be_left_out(released: list[bytes], tmp_path: Path) -> None:
    layers = found(tmp_path, "--watermark", "off", code=0)["summary"]["layers"]
    assert set(layers) == {"XMP", "C2PA", "C2PA signer", "fingerprint"}


@pytest.mark.parametrize("place", ["nothing", "folder"])
def test_a_place_without_pictures(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    result = call("detect", tmp_path / place)
    assert result.exit_code == (2 if place == "nothing" else 3)  # nothing was identified
    assert ("does not exist" if place == "nothing" else "0 pictures") in result.output


def test_a_run_folder_says_where_its_pictures_are(released: list[bytes], tmp_path: Path) -> None:
    assert "The pictures of a run are in its Parquet files" in call("detect", tmp_path / "run" / "samples").stdout


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux)")
def test_it_works_without_a_network(released: list[bytes], tmp_path: Path) -> None:
    command = "from jobs.cli.main import main; main()"
    inside = ["unshare", "--net", "--map-root-user", sys.executable, "-c", command]
    if subprocess.run([*inside[:3], "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no network name spaces")
    done = subprocess.run(
        [*inside, "detect", tmp_path / "pictures", "--keys", tmp_path / "keys", "--run", tmp_path / "run"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 pictures: 3 identified" in done.stdout
