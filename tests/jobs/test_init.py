"""`clearance init`: files that a run can begin with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from index.errors import InputError, IntegrityError
from index.reference import NewReference
from index.store import ReferenceIndex
from jobs.cli.arguments import read_run_file
from jobs.init import Options, init
from jobs.policies import named, slips
from jobs.run.plan import read_policy, requests_of
from pipeline.policy import policy_digest
from tests.index.conftest import GridEmbedder, drawing


def test_the_files_of_the_embedded_world_are_read_as_they_are(tmp_path: Path) -> None:
    written = init(tmp_path / "my run!", Options())
    assert [path.name for path in written] == ["run.toml", "policy.toml", "prompts.csv"]
    config, base = read_run_file(written[0])
    assert (config.model.path, config.index, config.dataset_id, config.model.dtype) == ("stickers", "", "my-run", "float32")
    requests = requests_of(config, base)
    assert len(requests) == 6 and not any(request.problem for request in requests)
    assert json.loads(requests[0].columns) == {"topic": "example"}


def test_the_policy_has_the_rules_that_ship_under_another_name(tmp_path: Path) -> None:
    init(tmp_path, Options())
    policy = named("policy.toml", tmp_path).policy
    assert policy is not None and policy.name == "my-policy"
    assert policy_digest(replace(policy, name="default")) == policy_digest(read_policy("default", tmp_path))
    assert [one for one in slips(policy) if "not available" not in one] == ["nobody is named who answers for it: about.owner"]


def test_own_model_index_and_prompts_are_named_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ReferenceIndex.build(tmp_path / "works-index", [NewReference(title="a", picture=drawing(1))], GridEmbedder())
    (tmp_path / "my-model").mkdir()
    (tmp_path / 'odd "name".csv').write_text("prompt\ncat\n")
    written = init(Path("deep/run"), Options(model="my-model", index="works-index", prompts=['odd "name".csv', "in/*.parquet"]))
    assert [path.name for path in written] == ["run.toml", "policy.toml"]
    config, base = read_run_file(written[0])
    assert Path(config.model.path).resolve() == tmp_path / "my-model"
    assert (base / config.index).resolve() == tmp_path / "works-index"
    assert config.prompts == ('../../odd "name".csv', "../../in/*.parquet")


def test_a_hub_id_stays_one_and_nothing_is_fetched_unasked(tmp_path: Path) -> None:
    config, _ = read_run_file(init(tmp_path, Options(model="owner/name"))[0])
    assert (config.model.path, config.model.allow_download) == ("owner/name", False)


@pytest.mark.parametrize("name", ["run.toml", "policy.toml", "prompts.csv"])
def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="nothing is overwritten"):
        init(tmp_path, Options())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("name", ["plan.json", "run.json"])
def test_nothing_is_written_into_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="is a run folder"):
        init(tmp_path, Options())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    init(tmp_path, Options())
    assert (tmp_path / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("options", [Options(index="nowhere"), Options(prompts=["nowhere.csv"])])
def test_what_is_named_must_be_there(tmp_path: Path, options: Options) -> None:
    with pytest.raises(InputError, match="there is no such"):
        init(tmp_path / "x", options)
    assert not (tmp_path / "x").exists()


def test_an_index_that_is_none_is_refused_with_what_it_may_be(tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()

    def refused() -> tuple[str, str]:
        with pytest.raises(InputError) as caught:
            init(tmp_path / "x", Options(index=str(index)))
        assert caught.value.where == str(index) and not (tmp_path / "x").exists()
        return caught.value.what, caught.value.fix

    assert refused() == ("is not a reference index", "Build one: clearance index build REFERENCES --out FOLDER")
    (index / "deep").mkdir()
    (index / "deep" / "work.JPG").write_bytes(b"x")
    what, fix = refused()
    assert what == "is not a reference index; it holds pictures, as works do that an index is built of"
    assert fix == f"Build the index of them first: clearance index build {index} --out FOLDER"
    (index / "building").mkdir()
    assert refused()[0] == "is not a reference index yet: its build has not ended"
    ReferenceIndex.build(index / "of-2025", [NewReference(title="a", picture=drawing(1))], GridEmbedder())
    assert refused() == ("is not a reference index; one lies in it: of-2025", f"Name {index / 'of-2025'}")
    index = index / "of-2025"
    (index / "CURRENT").rename(tmp_path / "CURRENT")
    assert "no file CURRENT that names those in force" in refused()[0]
    index = tmp_path / "CURRENT"
    assert refused()[0] == "is not a reference index: it is a file"


def test_a_damaged_index_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    index = ReferenceIndex.build(tmp_path / "index", [NewReference(title="a", picture=drawing(1))], GridEmbedder())
    next((index.folder / "snapshots").iterdir()).write_text("{}")
    with pytest.raises(IntegrityError):
        init(tmp_path / "x", Options(index=str(index.folder)))
    assert not (tmp_path / "x").exists()
