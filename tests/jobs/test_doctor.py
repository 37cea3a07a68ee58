from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import doctor
from jobs.keys import c2pa_test_chain, new_keys
from pipeline.keys import Keys


def weights(folder: Path) -> Path:
    world = folder / "world"
    world.mkdir()
    (world / "model.safetensors").write_bytes(b"weights")
    (world / "digests.json").write_text(json.dumps({"model.safetensors": hashlib.sha256(b"weights").hexdigest()}))
    return world


def test_weights_that_match(tmp_path: Path) -> None:
    weights(tmp_path)
    [line] = doctor.check_weights(tmp_path)
    assert line.state == "ok" and "1 file," in line.what


@pytest.mark.parametrize("harm", ["change", "remove", "garble", "nothing"])
def test_weights_that_do_not(tmp_path: Path, harm: str) -> None:
    if harm != "nothing":
        world = weights(tmp_path)
        if harm == "change":
            (world / "model.safetensors").write_bytes(b"other")
        elif harm == "remove":
            (world / "model.safetensors").unlink()
        else:
            (world / "digests.json").write_text("{")
    [line] = doctor.check_weights(tmp_path)
    assert line.state == "missing" and "restore" in line.what


def test_no_other_distribution_claims_the_names() -> None:
    assert doctor.strangers() == {}


def test_a_stranger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor.metadata, "packages_distributions", lambda: {"index": ["clearance", "card-index"], "numpy": ["numpy"]}
    )
    assert doctor.strangers() == {"index": ["card-index"]}


def test_everything_is_examined(tmp_path: Path) -> None:
    weights(tmp_path)
    lines = doctor.examine(tmp_path)
    topics = {line.topic for line in lines}
    assert {"python", "clearance", "torch", "cpu", "import names", "guard codes", "guard text", "weights world"} <= topics
    assert all(line.what and line.state in ("ok", "note", "missing") for line in lines)
    assert [line for line in lines if line.state == "missing"] == []


def looked_at(folder: Path | None) -> dict[str, tuple[str, str]]:
    environ = {} if folder is None else {"CLEARANCE_KEYS": str(folder)}
    return {line.topic: (line.state, line.what) for line in doctor.check_keys(environ=environ)}


def test_without_keys_it_says_what_a_run_carries() -> None:
    found = looked_at(None)
    assert {topic: state for topic, (state, _) in found.items()} == {
        "keys": "note", "mark XMP": "ok", "mark C2PA": "note", "mark watermark": "note", "key of statements": "note",
        "salt of prompts": "note",
    }  # fmt: skip
    assert "`clearance keys new FOLDER`" in found["keys"][1]
    assert "the published key: everybody can find, remove and imitate it" in found["mark watermark"][1]
    assert "pictures carry no manifest" in found["mark C2PA"][1]


def test_with_keys_it_names_ids_and_the_test_chain(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys")
    found, ids = looked_at(tmp_path / "keys"), Keys(tmp_path / "keys").ids()
    assert {topic: state for topic, (state, _) in found.items()} == {
        "keys": "ok", "mark XMP": "ok", "mark C2PA": "note", "mark watermark": "ok", "key of statements": "ok",
        "salt of prompts": "ok",
    }  # fmt: skip
    assert "it will not be trusted by anyone else" in found["mark C2PA"][1]
    named = " ".join(what for _, what in found.values())
    assert [value for value in ids.values() if value not in named] == []


def test_a_certificate_of_ones_own_is_tried_out(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys")
    key = Keys(tmp_path / "keys").c2pa()
    assert key is not None
    for name, data in c2pa_test_chain(organisation="Our Company").items():
        (tmp_path / "keys" / name).write_bytes(data)
    state, what = looked_at(tmp_path / "keys")["mark C2PA"]
    assert state == "ok" and "signed, and read back here" in what and "Our Company" in what


@pytest.mark.parametrize(
    ("name", "data", "topic"),
    [
        ("watermark.key", b"x", "mark watermark"),
        ("salt", b"x", "salt of prompts"),
        ("statement.key", b"x", "key of statements"),
        ("c2pa.pem", b"x", "mark C2PA"),
    ],
)
def test_a_damaged_key_is_a_line_and_the_others_are_looked_at(tmp_path: Path, name: str, data: bytes, topic: str) -> None:
    new_keys(tmp_path / "keys")
    (tmp_path / "keys" / name).write_bytes(data)
    found = looked_at(tmp_path / "keys")
    assert [where for where, (state, _) in found.items() if state == "missing"] == [topic]


def test_an_ended_certificate_is_missing(tmp_path: Path) -> None:
    for name, data in c2pa_test_chain(days=1, now=datetime(2025, 3, 1, tzinfo=UTC)).items():
        (tmp_path / name).write_bytes(data)
    state, what = looked_at(tmp_path)["mark C2PA"]
    assert state == "missing" and "ended on 2025-03-02" in what


def test_keys_that_are_not_there_and_keys_that_are_open_to_all(tmp_path: Path) -> None:
    assert looked_at(tmp_path / "absent")["keys"][0] == "missing"
    new_keys(tmp_path / "keys")
    (tmp_path / "keys" / "salt").chmod(0o644)
    lines = [line for line in doctor.check_keys(str(tmp_path / "keys")) if line.topic == "keys"]
    assert [line.state for line in lines] == ["ok", "note"] and "chmod 600" in lines[1].what


def test_every_watermark_is_listed_with_its_licence() -> None:
    lines = {line.topic: line for line in doctor.watermarks()}
    assert lines["watermark tile"].state == "ok" and "licence Apache-2.0; the default" in lines["watermark tile"].what
    for name in ("rivagan", "trustmark"):
        line = lines[f"watermark {name}"]
        assert "licence MIT" in line.what and "default" not in line.what
        assert line.state == "ok" or "pip install" in line.what or "models" in line.what


def test_a_package_that_is_too_old_is_missing() -> None:
    [line] = doctor.packages(["numpy>=999"], [])
    assert line.state == "missing"
    assert ">=999 is required: pip install 'numpy>=999'" in line.what


def test_a_package_for_other_pythons_is_not_required() -> None:
    assert list(doctor.packages(["no-such-package; python_version < '3'"], [])) == []


def test_a_package_of_an_extra_counts_for_that_extra_alone() -> None:
    required = ["numpy>=2; extra == 'one'", "no-such-package; extra == 'two' and python_version >= '3'"]
    assert [(line.topic, line.state) for line in doctor.packages(required, ["one", "two"])] == [
        ("extra one", "ok"),
        ("extra two", "note"),
    ]


def test_a_missing_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    required = ["torch>=2", "no-such-package>=1", 'no-such-extra; extra == "yolo"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    states = {line.topic: line.state for line in doctor.examine(tmp_path)}
    assert (states["torch"], states["no-such-package"], states["extra yolo"]) == ("ok", "missing", "note")
