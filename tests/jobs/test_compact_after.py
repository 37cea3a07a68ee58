"""Every command and reader on a compacted run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import InputError
from jobs.compact import compact_run
from jobs.retention import erase_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.ledger import sample_rows
from pipeline.audit.stored import embeddings, rows_of
from tests.jobs.compacting import (
    PROMPTS,
    WHO,
    call,
    compacted,
    contents,
    large,
    run,
    shelf,
    small,
    sound,
    stored_bytes,
)

FIXTURES = (compacted, large, run, shelf, small)  # used by name


def test_payloads_are_erased_in_parts(compacted: Path) -> None:
    rows = {row["request_key"]: row for row in sample_rows(compacted)}
    picture = repr(rows["row-000000"]["image"]["bytes"]).encode()
    assert picture in stored_bytes(compacted)
    erased = erase_keys(compacted, ["row-000000"], (), WHO)
    assert picture not in stored_bytes(compacted)
    assert erased.cells["image"] == erased.cells["thumbnail"] == 1
    assert sound(compacted)
    after = {row["request_key"]: row for row in sample_rows(compacted)}
    assert after["row-000000"]["image"] is None
    assert {key: row for key, row in after.items() if key != "row-000000"} == {
        key: row for key, row in rows.items() if key != "row-000000"
    }


def test_what_was_erased_before_stays_erased(run: Path) -> None:
    erase_keys(run, ["row-000000", "row-000001"], (), WHO)
    compact_run(run, WHO)
    assert sound(run) and verify_run(run).counts["erased"] > 4
    erase_keys(run, ["row-000002"], ("picture",), WHO)
    assert sound(run)


def test_a_hold_keeps_its_samples_in_parts_too(compacted: Path) -> None:
    assert call("hold", "set", compacted, "--key", "row-000000", "--matter", "m", "--by", "c", "--reason", "r").exit_code == 0
    with pytest.raises(InputError, match="legal hold"):
        erase_keys(compacted, ["row-000000"], (), WHO)
    assert sound(compacted)


def test_people_decide_about_a_compacted_run(compacted: Path, tmp_path: Path) -> None:
    done = call("review", "export", compacted, "--to", tmp_path / "review", "--random", "1")
    assert done.exit_code == 0, done.output
    assert sound(compacted)


def test_embeddings_and_chosen_rows_are_read_from_parts(compacted: Path, small: Path) -> None:
    there, before = ([one for batch in embeddings(folder, 4) for one in batch.ids.to_pylist()] for folder in (compacted, small))
    assert there == before
    wanted = {row["sample_id"] for row in sample_rows(small) if row["outcome"] == "rejected"}
    rows = [row for _, _, row in rows_of(compacted, wanted, ["sample_id", "outcome", "findings"])]
    assert rows == [row for _, _, row in rows_of(small, wanted, ["sample_id", "outcome", "findings"])] != []


def test_the_pictures_of_held_samples_are_found(compacted: Path) -> None:
    from pipeline.audit.pictures import COLUMNS, pictures_of

    held = [*rows_of(compacted, {r["sample_id"] for r in sample_rows(compacted)}, COLUMNS)]
    shown = {row["sample_id"]: pictures_of(compacted, path, {n: row})[row["sample_id"]] for path, n, row in held}
    outcomes = {row["sample_id"]: row["outcome"] for row in sample_rows(compacted)}
    assert {outcomes[one]: picture.exact or picture.why for one, picture in shown.items()} == {
        "accepted": True, "accepted_after_steering": True, "rejected": True, "error": "no picture was made",
    }  # fmt: skip


def test_no_other_row_is_read_for_the_pictures_of_some_and_the_index_is_parsed_once(compacted: Path) -> None:
    """A part holds the rows of many shards: all of them were read for every 32 pictures."""
    from index.storage import open_file
    from pipeline.audit.compacted import _parse
    from pipeline.audit.pictures import COLUMNS, pictures_of

    held = [*rows_of(compacted, {row["sample_id"] for row in sample_rows(compacted) if row["outcome"] == "rejected"}, COLUMNS)]
    opened: list[str] = []

    def opener(folder: Path, path: str) -> Any:
        opened.append(path)
        return open_file(folder, path)

    _parse.cache_clear()
    for path, number, row in (*held, *held):
        assert pictures_of(compacted, path, {number: row}, opener=opener)[row["sample_id"]].exact
    assert held and opened and not any(path.startswith("parts/samples-") for path in opened)
    assert _parse.cache_info().misses == 1


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_an_export_is_the_one_of_the_small_files(compacted: Path, small: Path, tmp_path: Path, form: str) -> None:
    for name, folder in (("small", small), ("large", compacted)):
        done = call("export", folder, "--to", tmp_path / name, "--format", form, "--only", "all")
        assert done.exit_code == 0, done.output
    before, after = ({p.name for p in (tmp_path / name).rglob("*") if p.is_file()} for name in ("small", "large"))
    assert before == after != set()
    stated = [json.loads((tmp_path / name / "export.json").read_text())["files"] for name in ("small", "large")]
    assert stated[0] == stated[1]


@pytest.mark.parametrize("command", [["status"], ["report"], ["show", "row-000001"], ["verify"], ["retention", "show"]])
def test_commands_work_on_a_compacted_run(compacted: Path, command: list[str]) -> None:
    name, *more = command
    done = call(name, *more, compacted) if name == "retention" else call(name, compacted, *more)
    assert done.exit_code == 0, done.output


def test_a_resumed_run_that_is_compacted_has_nothing_to_do(
    compacted: Path, make_plan: Callable[..., Plan], open_loop: Callable[..., Any]
) -> None:
    before = contents(compacted)
    result = run_local(make_plan(PROMPTS), compacted, open_loop=open_loop, resume=True)
    assert result.requests == len(PROMPTS) and contents(compacted) == before


def test_the_command_says_what_it_did(run: Path) -> None:
    done = call("compact", run)
    assert done.exit_code == 0 and "3 parts with" in done.output and "15 small files were removed" in done.output
    again = call("compact", run, "--json")
    assert json.loads(again.output)["removed"] == 0
