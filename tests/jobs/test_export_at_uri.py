"""Exports on object stores: the same files as in a local folder, the manifest last, and nothing of one that failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index import storage
from index.errors import ClearanceError, InputError, RunStopped
from index.places import schemes
from index.places.objects import ObjectStore
from jobs.cli.main import app
from jobs.export.write import MANIFEST, UNFINISHED, export_run
from tests.jobs.test_export import FORMATS, run
from tests.object_stores import Dying, Killed

FIXTURES = (run,)  # used by name


class Refusing(ObjectStore):
    """A store in memory that refuses one put and everything that is put after it, and still removes what it is asked to."""

    def __init__(self, allowed: int) -> None:
        from obstore.store import MemoryStore

        super().__init__("refusing://store", MemoryStore())
        self.allowed = allowed

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        if writing and kind != "delete":
            self.allowed -= 1
            if self.allowed < 0:
                raise RunStopped("the object store is full", where=key)
        return super().request(kind, key, do, writing=writing)


def below(folder: Path, name: str = "") -> list[str]:
    found = []
    for entry in storage.entries(folder, name):
        path = f"{name}/{entry.name}" if name else entry.name
        found += below(folder, path) if entry.kind == "folder" else [path]
    return sorted(found)


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest) -> Path:
    return storage.place(request.getfixturevalue(request.param)) / "exported"


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_has_the_files_of_one_in_a_local_folder(run: Path, tmp_path: Path, place: Path, format: str) -> None:
    local, there = export_run(run, tmp_path / "local", format=format), export_run(run, place, format=format)
    names = sorted(
        path.relative_to(tmp_path / "local").as_posix() for path in (tmp_path / "local").rglob("*") if path.is_file()
    )
    assert below(place) == names
    assert all(storage.read_file(place, name) == (tmp_path / "local" / name).read_bytes() for name in names)
    assert there.plain() == local.plain()


def test_nothing_of_an_export_stays_on_this_machine(
    run: Path, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    export_run(run, storage.place(memory) / "exported")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(run: Path, memory: str) -> None:
    export_run(run, storage.place(memory) / "exported")
    with pytest.raises(InputError, match="is there already"):
        export_run(run, storage.place(memory) / "exported")


def test_an_export_under_way_is_not_joined(run: Path, memory: str) -> None:
    place = storage.place(memory) / "exported"
    storage.create_once(place, UNFINISHED, b"")
    with pytest.raises(InputError, match="holds an export that is not finished"):
        export_run(run, place)


@pytest.mark.parametrize("allowed", range(5))  # the mark, data, croissant.json, README.md; the manifest is the fifth
def test_a_store_that_refuses_a_file_is_left_empty(run: Path, allowed: int) -> None:
    store = Refusing(allowed)
    with schemes.using({"refusing": lambda _: store}):
        place = storage.place("refusing://store/exported")
        with pytest.raises(ClearanceError, match="is full"):
            export_run(run, place)
        assert below(place) == []


def test_an_export_that_was_killed_has_no_manifest_until_its_last_put(run: Path) -> None:
    seen = []
    for dies_at in range(1, 30):
        store = Dying("dying://store")
        with schemes.using({"dying": lambda _, store=store: store}):  # type: ignore[misc]
            place = storage.place("dying://store/exported")
            store.dies_at = dies_at
            try:
                export_run(run, place)
            except Killed:
                store.revive()
                there = below(place)
                seen.append(there)
                if MANIFEST in there:
                    named = {file["path"] for file in json.loads(storage.read_file(place, MANIFEST))["files"]}
                    assert named <= set(there)
                elif there:
                    with pytest.raises(InputError, match="holds an export that is not finished"):
                        export_run(run, place)
            else:
                break
    assert [] in seen and any(there and MANIFEST not in there for there in seen) and any(MANIFEST in there for there in seen)


def test_a_run_on_a_store_is_no_place_for_its_export(memory: str) -> None:
    run = storage.place(memory) / "run"
    with pytest.raises(InputError, match="lies in the run folder"):
        export_run(run, run / "exported")


def test_the_command_takes_a_uri(run: Path, memory: str) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--to", f"{memory}/exported", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["folder"] == f"{memory}/exported"
    assert MANIFEST in below(storage.place(memory) / "exported")
