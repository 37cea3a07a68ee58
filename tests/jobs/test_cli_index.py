from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from index.calibrate import Calibration
from index.embedder_source import weights_folder
from index.store import ReferenceIndex
from jobs.cli import main as cli
from jobs.report import ReferencePictures
from jobs.run.folder import open_folder
from jobs.run.plan import Plan
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
def built(tmp_path: Path, opening: Callable[..., None]) -> Path:
    opening(embedder=lambda *_, **__: FakeEmbedder())
    done = call("build", draw(tmp_path / "works", ["apple", "owl", "fox"]), "--out", tmp_path / "index")
    assert done.exit_code == 0, done.output
    assert "3 references" in done.output and "1 of them without their picture" in done.output
    return tmp_path / "index"


@pytest.mark.parametrize("out", ["works/index", "works/a/b", "link/index"])
def test_an_index_among_its_works_is_refused(tmp_path: Path, out: str) -> None:
    works = draw(tmp_path / "works", ["a"])
    (tmp_path / "link").symlink_to(works)
    result = call("build", works, "--out", tmp_path / out)
    assert result.exit_code == 2 and "lies in the folder of the works" in result.stderr
    assert sorted(path.name for path in works.iterdir()) == ["a.png", "metadata.csv"]


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
    few = ("--copies", 3, "--false-alarms", 0.2, "--min-recall", 0.4)  # six copies cannot show more
    done = call("calibrate", built, "--harmless", harmless, *few)
    assert done.exit_code == 0, done.output
    found = Calibration.load(built / "calibration.json")
    assert found.index_id == ReferenceIndex.open(built).index_id and found.embedder_id == "fake-1"
    assert found.recall.n == 6 and found.false_positive_rate.n == 12  # 2 kept works × 3 copies; 3 × 2 harmless and 6 others
    assert found.false_positive_rate.value <= 0.2
    assert f"{found.threshold:.4f}" in done.output and "near-miss" in done.output
    assert "used by every run on this index" in done.output
    other = call("calibrate", built, "--harmless", harmless, *few, "--out", tmp_path / "other.json").output
    assert "No run uses it there: to put it in force, copy it to" in other and "used by every run" not in other
    kept = (built / "calibration.json").read_bytes()
    assert call("calibrate", built, "--harmless", harmless, *few).exit_code == 0
    assert (built / "calibration.json").read_bytes() == kept


def test_calibrate_compares_looks_and_prints_why_one_is_chosen(built: Path, tmp_path: Path) -> None:
    few = ("--copies", 3, "--false-alarms", 0.2, "--min-recall", 0.4)
    harmless = draw(tmp_path / "harmless", ["pear", "plum"])
    both = call("calibrate", built, "--harmless", harmless, *few)
    found = Calibration.load(built / "calibration.json")
    assert [look[0] for look in found.looks] == ["alignment", "keypoints"] and "second look keypoints" in both.output
    assert f"second look: {found.second_look}: " in both.output
    alone = call("calibrate", built, "--harmless", harmless, *few, "--second-look", "keypoints")
    assert "keypoints: no other look was compared" in alone.output
    assert Calibration.load(built / "calibration.json").second_look == "keypoints"
    slip = call("calibrate", built, "--second-look", "key-points")
    assert slip.exit_code != 0 and "keypoints or descriptor:FILE" in slip.output


def test_calibrate_reads_the_folder_that_an_index_was_built_of_without_what_cannot_be_read(built: Path, tmp_path: Path) -> None:
    few = ("--copies", 3, "--false-alarms", 0.2, "--min-recall", 0.4, "--second-look", "alignment")
    harmless = draw(tmp_path / "harmless", ["pear", "plum", "kiwi"])
    (harmless / "half.png").write_bytes(next(harmless.glob("*.png")).read_bytes()[:-40])
    refused = call("calibrate", built, "--harmless", harmless, *few)
    assert refused.exit_code == 2 and "leave them out (--leave-out)" in " ".join(refused.stderr.split())
    done = call("calibrate", built, "--harmless", harmless, *few, "--leave-out")
    assert done.exit_code == 0 and "1 picture that cannot be read had no part in it: half.png" in " ".join(done.output.split())


def test_calibrate_warns_when_the_pairs_cannot_show_the_rate(built: Path) -> None:
    done = call("calibrate", built)
    assert done.exit_code == 0 and "cannot show a rate" in done.output and "nothing harmless was given" in done.output


def test_calibrate_refuses_labels_and_harmless_pictures_together(built: Path, tmp_path: Path) -> None:
    done = call("calibrate", built, "--pairs", tmp_path / "p.csv", "--harmless", tmp_path)
    assert done.exit_code == 2 and "exclude each other" in done.output


# --- what became of every file ----------------------------------------------------------------------------------------------


def noise(folder: Path, names: Sequence[str]) -> Path:
    """Pictures without a sheet; the same name gives the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng(list(name.split("/")[-1].encode())).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def fake(opening: Callable[..., None]) -> None:
    opening(embedder=lambda *_, **__: FakeEmbedder())


def test_build_counts_and_names_everything(fake: None, tmp_path: Path) -> None:
    works = noise(tmp_path / "works", ["apple", "fox", "twice/fox", "bee"])
    (works / "notes.txt").write_text("hello")
    (works / "half.png").write_bytes((works / "bee.png").read_bytes()[:60])
    refused = call("build", works, "--out", tmp_path / "i")
    assert refused.exit_code == 2
    assert "1 of 5 pictures cannot be read: half.png" in refused.stderr
    done = call("build", works, "--out", tmp_path / "i", "--leave-out")
    assert done.exit_code == 0, done.output
    assert "5 pictures, 3 references, 1 duplicate, 1 left out" in done.output
    assert "left out and not protected (1): half.png (" in done.output
    assert "duplicates (1): twice/fox.png of fox.png" in done.output
    assert "no pictures (1): notes.txt (no picture)" in done.output


def test_json_holds_the_same_as_data(fake: None, tmp_path: Path) -> None:
    works = noise(tmp_path / "works", ["apple", "fox", "twice/fox"])
    (works / "notes.txt").write_text("hello")
    Image.new("1", (20_000, 20_000)).save(works / "bomb.png")
    shown = json.loads(call("build", works, "--out", tmp_path / "i", "--leave-out", "--json").stdout)
    assert (shown["pictures"], shown["references"], shown["with_picture"]) == (4, 2, 0)
    assert shown["duplicates"] == [{"file": "twice/fox.png", "of": "fox.png"}]
    assert shown["left_out"] == [{"file": "bomb.png", "reason": "cannot be read (more than 179 million pixels)"}]
    assert shown["other_files"] == [{"file": "notes.txt", "is": "no picture"}]
    assert shown["index_id"] == ReferenceIndex.open(tmp_path / "i").index_id
    assert shown["pictures"] + shown["further_frames"] == len(shown["new"]) + len(shown["duplicates"]) + len(shown["left_out"])


def test_a_claim_on_a_work_called_free_is_in_force(fake: None, tmp_path: Path) -> None:
    works = noise(tmp_path / "works", ["fox"])
    (works / "claim.png").write_bytes((works / "fox.png").read_bytes())
    (works / "metadata.csv").write_text("file,status,rights_basis\nfox.png,allowed,licensed\nclaim.png,active,claim\n")
    done = call("build", works, "--out", tmp_path / "i")
    [reference] = ReferenceIndex.open(tmp_path / "i").references()
    assert f"claim.png is active, {reference.ref_id} was allowed: active" in done.output
    found = json.loads(call("search", tmp_path / "i", works / "fox.png", "--json").stdout)
    assert [(row["ref_id"], row["status"]) for row in found] == [(reference.ref_id, "active")]


def test_set_status_is_recorded_and_reversible(built: Path, tmp_path: Path) -> None:
    before = ReferenceIndex.open(built).index_id
    fox = next(reference.ref_id for reference in ReferenceIndex.open(built).references() if reference.title == "fox")
    assert call("set-status", built, fox[:6], "allowed").exit_code == 2  # a reason is asked for
    done = call("set-status", built, fox[:6], "allowed", "--reason", "licence bought")
    assert done.exit_code == 0, done.output
    assert f"{fox} was active and is allowed" in done.output
    assert fox not in call("search", built, tmp_path / "works" / "fox.png").output
    assert "active → allowed (licence bought)" in call("info", built).output
    assert call("set-status", built, fox, "active", "--reason", "a mistake").exit_code == 0
    assert ReferenceIndex.open(built).index_id == before
    assert call("set-status", built, fox, "free", "--reason", "x").exit_code == 2


def test_the_beginning_of_an_id_is_enough(built: Path) -> None:
    fox = next(reference.ref_id for reference in ReferenceIndex.open(built).references() if reference.title == "fox")
    found = json.loads(call("search", built, fox[:5], "--json", "--k", 1).stdout)
    assert found[0]["ref_id"] == fox
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-6)
    assert len(found) == 2
    assert call("search", built, "no-such-file-or-id").exit_code == 2
    assert call("retire", built, fox[:5]).exit_code == 0
    assert "no such reference" in call("retire", built, "ffffffffff").stderr


# --- calibrating ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def claims(fake: None, tmp_path: Path) -> Path:
    """An index of claims: it keeps no picture."""
    noise(tmp_path / "works", [f"work-{n}" for n in range(12)])
    assert call("build", tmp_path / "works", "--out", tmp_path / "index").exit_code == 0
    return tmp_path / "index"


def test_claims_are_calibrated_from_the_works_that_are_given_again(claims: Path, tmp_path: Path) -> None:
    harmless = noise(tmp_path / "stock", [f"stock-{n}" for n in range(20)])
    noise(tmp_path / "works", ["stranger"])
    without = call("calibrate", claims, "--harmless", harmless)
    assert without.exit_code == 2
    assert "--works FOLDER" in without.stderr
    done = call(
        "calibrate", claims, "--works", tmp_path / "works", "--harmless", harmless, "--false-alarms", 0.2, "--min-recall", 0.3
    )
    assert done.exit_code == 0, done.output
    found = Calibration.load(claims / "calibration.json")
    assert found.recall.n == 48  # twelve works, four copies each
    assert found.confirmed_recall is None  # the index keeps no picture, so a run takes no second look
    assert found.either_recall is None
    assert "1 of the works are not in the index: stranger.png" in done.output
    assert "12 of 12 references" in found.source


class Blind(FakeEmbedder):
    """Whatever the picture, the vector is noise."""

    embedder_id = "blind"

    def images(self, pictures: np.ndarray) -> np.ndarray:
        vectors = np.stack([np.random.default_rng(picture.sum()).standard_normal(16) for picture in pictures])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def blind(tmp_path: Path, opening: Callable[..., None]) -> Path:
    opening(embedder=lambda *_, **__: Blind())
    noise(tmp_path / "works", [f"work-{n}" for n in range(8)])
    assert call("build", tmp_path / "works", "--out", tmp_path / "index", "--keep-pictures").exit_code == 0
    return tmp_path / "index"


def test_an_operating_point_that_flags_next_to_nothing_is_not_written(blind: Path, tmp_path: Path) -> None:
    harmless = noise(tmp_path / "stock", [f"stock-{n}" for n in range(20)])
    refused = call("calibrate", blind, "--harmless", harmless)
    assert refused.exit_code == 2
    assert "of the copies the threshold flags" in refused.stderr
    assert "--force" in refused.stderr
    assert not (blind / "calibration.json").exists()


def test_what_is_forced_is_on_record_wherever_it_is_read(blind: Path, tmp_path: Path) -> None:
    harmless = noise(tmp_path / "stock", [f"stock-{n}" for n in range(20)])
    done = call("calibrate", blind, "--harmless", harmless, "--force")
    assert done.exit_code == 0, done.output
    assert "forced" in done.output
    found = Calibration.load(blind / "calibration.json")
    assert found.forced
    info = call("info", blind).output
    assert "FORCED" in info
    assert str(found.recall).replace("\u00a0", " ") in info.replace("\u00a0", " ")
    shown = json.loads(call("info", blind, "--json").stdout)["calibration"]
    assert (shown["forced"], shown["min_recall"], shown["recall"]["n"]) == (True, 0.5, 32)


def test_info_shows_the_rates_of_the_calibration(built: Path, tmp_path: Path) -> None:
    harmless = draw(tmp_path / "harmless", ["pear", "plum", "kiwi"])
    nothing = json.loads(call("info", built, "--json").stdout)
    assert nothing["calibration"] is None
    assert nothing["calibration_state"].startswith("none: run clearance index calibrate")
    call("calibrate", built, "--harmless", harmless, "--copies", 3, "--false-alarms", 0.2, "--min-recall", 0.4)
    found = Calibration.load(built / "calibration.json")
    shown = json.loads(call("info", built, "--json").stdout)
    assert shown["calibration"] == json.loads(json.dumps(found.summary()))
    assert shown["calibration_state"].endswith("measured on this index")
    call("add", built, draw(tmp_path / "more", ["bee"]))
    changed = json.loads(call("info", built, "--json").stdout)
    assert "the index has changed, calibrate again" in changed["calibration_state"]


def test_a_work_among_the_harmless_pictures_is_named(built: Path, tmp_path: Path) -> None:
    harmless = draw(tmp_path / "harmless", ["pear", "fox"])
    refused = call("calibrate", built, "--harmless", harmless)
    assert refused.exit_code == 2
    assert "fox.png: is reference" in refused.stderr


@pytest.mark.parametrize("column", ["title", "title=", "=caption", "colour=x"])
def test_a_column_that_names_no_two_is_refused(fake: None, tmp_path: Path, column: str) -> None:
    refused = call("build", noise(tmp_path / "works", ["fox"]), "--out", tmp_path / "i", "--column", column)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")


# --- the embedder -----------------------------------------------------------------------------------------------------------


def test_no_command_needs_the_embedder_named_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    shutil.copytree(weights_folder(), project / "mine")
    noise(project / "works", ["fox", "bee"])
    monkeypatch.chdir(project)
    assert call("build", "works", "--out", "index", "--embedder", "local-dir:mine").exit_code == 0
    monkeypatch.chdir(tmp_path)
    found = json.loads(call("search", "project/index", "project/works/fox.png", "--k", 1, "--json").stdout)
    assert [row["title"] for row in found] == ["fox"]
    assert call("add", "project/index", noise(tmp_path / "more", ["owl"])).exit_code == 0
    shown = json.loads(call("info", "project/index", "--json").stdout)
    assert shown["embedder"] == {"model": "local-dir:../mine", "pretrained": ""}


def test_progress_goes_to_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.console import make_console
    from jobs.run import progress

    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.Steps(make_console(stderr=True), "embedding", 3) as steps:
        assert list(steps.over("abc")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("embedding: 1/3 · ")
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("embedding: 3/3 · ")


def test_a_stopped_build_names_how_to_continue(fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: FakeEmbedder, pictures: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    works = noise(tmp_path / "works", ["fox", "bee"])
    with monkeypatch.context() as patched:
        patched.setattr(FakeEmbedder, "images", interrupted)
        stopped = call("build", works, "--out", tmp_path / "i")
    assert stopped.exit_code == 130
    assert "the same command continues it" in stopped.stderr
    assert call("build", works, "--out", tmp_path / "i").exit_code == 0


def test_pace_without_a_total_shows_the_speed() -> None:
    from jobs.run.progress import pace

    assert pace(30, None, 10.0) == "30 · 3.00/s"
    assert pace(30, 90, 10.0) == "30/90 · 3.00/s · 20 s left"


def test_vectors_are_built_added_and_said_to_be_unchecked(tmp_path: Path, opening: Callable[..., None]) -> None:
    opening(embedder=lambda *_, **__: FakeEmbedder())
    made = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    for name, part in (("a", made[:20]), ("b", made[15:])):
        np.save(tmp_path / f"{name}.npy", part)
    done = call("build", tmp_path / "a.npy", "--out", tmp_path / "index", "--rights-basis", "registry")
    assert done.exit_code == 0 and "20 vectors, 20 new references" in done.output and "no copy is found" in done.output
    before = ReferenceIndex.open(tmp_path / "index").index_id
    added = json.loads(call("add", tmp_path / "index", tmp_path / "b.npy", "--json").stdout)
    assert (added["vectors"], len(added["new"]), len(added["in_the_index_already"]), added["before"]) == (15, 10, 5, before)
    assert added["vectors_checked"] == 0
    shown = call("info", tmp_path / "index").output
    assert "20 registry, 10 claim" in shown and "exact over 30 references; on the CPU" in shown


def test_vectors_beside_their_pictures_are_checked(tmp_path: Path, opening: Callable[..., None]) -> None:
    opening(embedder=lambda *_, **__: FakeEmbedder())
    works = draw(tmp_path / "works", ["apple", "fox"])
    pictures = np.stack([np.asarray(Image.open(works / f"{name}.png")) for name in ("apple", "fox")])
    (works / "metadata.csv").rename(works / "v.csv")
    np.save(works / "v.npy", FakeEmbedder().images(pictures))
    done = call("build", works / "v.npy", "--out", tmp_path / "index")
    assert done.exit_code == 0 and "2 vectors held against pictures" in done.output
    np.save(works / "v.npy", FakeEmbedder().images(pictures)[::-1])
    wrong = call("build", works / "v.npy", "--out", tmp_path / "other")
    assert wrong.exit_code == 2 and "is not what fake-1 makes of apple.png" in wrong.output


def test_an_index_of_format_2_is_renewed(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "data" / "index-format-2", tmp_path / "index")
    before = ReferenceIndex.open(tmp_path / "index")
    kept = sorted((r.ref_id, r.status, r.title) for r in before.references())
    done = call("renew", tmp_path / "index")
    assert done.exit_code == 0 and "written anew" in done.output and "calibrate it again" in done.output
    after = ReferenceIndex.open(tmp_path / "index")
    after.verify()
    assert sorted((r.ref_id, r.status, r.title) for r in after.references()) == kept
    assert "today's form already" in call("renew", tmp_path / "index").output


def test_vectors_with_their_pictures_in_one_folder_are_named_or_refused(tmp_path: Path, opening: Callable[..., None]) -> None:
    """The folder became an index of the pictures alone."""
    opening(embedder=lambda *_, **__: FakeEmbedder())
    draw(tmp_path / "works", ["apple"]).joinpath("metadata.csv").unlink()
    np.save(tmp_path / "works" / "v.npy", np.ones((2, 16), np.float32))
    for command in (("build", tmp_path / "works", "--out", tmp_path / "index"), ("build", tmp_path, "--out", "/nowhere")):
        if command[1] == tmp_path:
            (tmp_path / "works" / "v.npy").rename(tmp_path / "v.npy")
        refused = call(*command)
        assert refused.exit_code == 2 and "apple.png (a picture)" in refused.stderr and "(v.npy)" in refused.stderr
    assert not (tmp_path / "index").exists()


def test_an_addition_names_pictures_that_only_a_new_build_keeps(built: Path, tmp_path: Path) -> None:
    owl = draw(tmp_path / "more", ["owl"])
    (owl / "metadata.csv").write_text("file,keep_picture\nowl.png,yes\n")
    assert "not kept, because the index had them without their picture" in call("add", built, owl).output
    plain = json.loads(call("add", built, owl, "--json").stdout)
    assert (plain["pictures_not_kept"], plain["pictures_still_kept"]) == ([plain["in_the_index_already"][0]["ref_id"]], [])
