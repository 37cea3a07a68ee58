"""Erasure: a run that verifies before, after and in between, whatever stops it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import ClearanceError, InputError, PlanMismatch, RunStopped
from index.storage import Disk, using
from jobs.by import By
from jobs.hold import change_hold
from jobs.report import report_run
from jobs.retention import apply_retention, erase_keys, show_retention
from jobs.run.lease.lock import lease
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.by_key import samples_by_key
from pipeline.audit.erase import unfinished
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.state import state_of
from tests.jobs.retained import PRIVACY, Sticky, contents, kept, keys, pristine, rows, run, stored_bytes, thumbnails

FIXTURES = (pristine, run, keys)  # used by name


# --- erasing ---------------------------------------------------------------------------------------------------------------


def test_what_is_erased_is_gone_from_every_file_and_the_run_verifies(run: Path, keys: list[str]) -> None:
    report_run(run)
    before = rows(run)[keys[0]]
    picture = before["image"]["bytes"]
    assert before["prompt"] == "cat" and picture in stored_bytes(run) and verify_run(run).ok
    erase_keys(run, [keys[0]], [], PRIVACY)
    after = rows(run)[keys[0]]
    assert {name: after[name] for name in ("image", "prompt", "negative_prompt", "embedding")} == dict.fromkeys(
        ("image", "prompt", "negative_prompt", "embedding")
    )
    assert thumbnails(run, keys[0]) == [None]
    assert repr(picture).encode() not in stored_bytes(run) and b"'prompt': 'cat'" not in stored_bytes(run)
    found = verify_run(run)
    assert found.ok, found.problems
    assert found.counts["erased"] == 5  # image, prompt, negative prompt, embedding, one thumbnail


def test_everything_else_of_the_row_and_every_other_row_stays(run: Path, keys: list[str]) -> None:
    before = rows(run)
    erase_keys(run, [keys[0]], [], PRIVACY)
    after, payloads = rows(run), {"image", "prompt", "negative_prompt", "embedding"}
    assert {name: value for name, value in after[keys[0]].items() if name not in payloads} == {
        name: value for name, value in before[keys[0]].items() if name not in payloads
    }
    assert [after[key] for key in keys[1:]] == [before[key] for key in keys[1:]]


def test_markers_and_statement_are_not_touched(run: Path, keys: list[str]) -> None:
    before = contents(run)
    erase_keys(run, [keys[0]], [], PRIVACY)
    after = contents(run)
    for name in (name for name in before if name.startswith("commits/") or name in ("run.json", "plan.json")):
        assert after[name] == before[name], name


def test_the_event_names_files_digests_samples_and_columns(run: Path, keys: list[str]) -> None:
    import hashlib

    before = contents(run)
    erase_keys(run, [keys[0]], ["picture"], PRIVACY)
    event = read_events(run)[-1]
    sample_id = samples_by_key(run, [keys[0]])[keys[0]]
    assert (event["kind"], event["actor"], event["person"], event["samples"]) == (
        "payload.erased",
        "privacy",
        "p9",
        [sample_id],
    )
    files = {file["table"]: file for file in event["details"]["files"]}
    assert {table: file["columns"] for table, file in files.items()} == {
        "samples": {"image": [sample_id]},
        "attempts": {"thumbnail": [sample_id]},
    }
    for file in files.values():
        assert file["before_sha256"] == hashlib.sha256(before[file["path"]]).hexdigest()
        assert file["after_sha256"] == hashlib.sha256((run / file["path"]).read_bytes()).hexdigest()
    assert state_of(run).of(sample_id).erased == {"image", "thumbnail"}


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("picture", {"image", "thumbnail"}),
        ("prompt", {"prompt", "negative_prompt"}),
        ("embedding", {"embedding"}),
    ],
)
def test_one_kind_of_payload_can_be_erased_alone(run: Path, keys: list[str], what: str, columns: set[str]) -> None:
    erased = erase_keys(run, [keys[0]], [what], PRIVACY)
    assert set(erased.cells) == columns and verify_run(run).ok
    row = rows(run)[keys[0]]
    assert {name for name in ("image", "prompt", "embedding") if row[name] is None} == columns & {
        "image",
        "prompt",
        "embedding",
    }


def test_a_kept_picture_of_what_was_not_released_is_erased_too(run: Path, keys: list[str]) -> None:
    assert [row["request_key"] for row in kept(run) if row["image"]] == [keys[1]]
    erased = erase_keys(run, [keys[1]], ["picture"], PRIVACY)
    assert erased.cells == {"image": 1, "thumbnail": 1} and verify_run(run).ok
    assert [row["image"] for row in kept(run)] == [None]
    forge(run, lambda plain: plain[0].update(image=None), "kept")
    assert not verify_run(run).ok


def test_erasing_twice_changes_nothing_the_second_time(run: Path, keys: list[str]) -> None:
    erase_keys(run, [keys[0]], [], PRIVACY)
    before = contents(run)
    again = erase_keys(run, [keys[0]], [], PRIVACY)
    assert again.cells == {} and again.events == ()
    assert {name: data for name, data in contents(run).items() if name != ".lease"} == {
        name: data for name, data in before.items() if name != ".lease"
    }


def test_erasing_one_sample_after_another_of_the_same_shard(run: Path, keys: list[str]) -> None:
    for key in keys[:2]:
        erase_keys(run, [key], [], PRIVACY)
    assert verify_run(run).ok and [rows(run)[key]["prompt"] for key in keys[:3]] == [None, None, "steered fox"]


def test_reports_that_show_what_is_erased_are_removed(run: Path, keys: list[str]) -> None:
    report_run(run)
    erased = erase_keys(run, [keys[0]], [], PRIVACY)
    assert set(erased.removed) == {"report.html", "report.json"}
    assert not (run / "report.html").exists() and not (run / "report.json").exists()
    report_run(run)
    assert verify_run(run).ok


def test_a_dry_run_lists_the_same_and_changes_nothing(run: Path, keys: list[str]) -> None:
    report_run(run)
    before = contents(run)
    would = erase_keys(run, [keys[0]], [], PRIVACY, dry_run=True)
    assert contents(run) == before
    did = erase_keys(run, [keys[0]], [], PRIVACY)
    assert (would.cells, would.files) == (did.cells, did.files)


def test_a_sample_under_hold_is_not_erased(run: Path, keys: list[str]) -> None:
    change_hold(run, "hold.set", [keys[1]], "x v. y", By(role="counsel", reason="claim"))
    before = contents(run)
    with pytest.raises(InputError, match=r"is under a legal hold \(x v\. y\); nothing was erased"):
        erase_keys(run, [keys[0], keys[1]], [], PRIVACY)
    assert {name: data for name, data in contents(run).items() if name != ".lease"} == {
        name: data for name, data in before.items() if name != ".lease"
    }
    change_hold(run, "hold.lifted", [keys[1]], "x v. y", By(role="counsel", reason="settled"))
    assert erase_keys(run, [keys[1]], [], PRIVACY).samples == 1


def test_a_hold_that_comes_in_the_last_moment_is_seen(run: Path, keys: list[str]) -> None:
    class Between(Disk):
        done = False

        def link(self, old: str, new: str, *, at: int) -> None:
            if not Between.done:
                Between.done = True
                append_event(run, "hold.set", "counsel", "x", details={"matter": "m"})
            super().link(old, new, at=at)

    with using(Between()), pytest.raises(RunStopped, match="by another process meanwhile"):
        erase_keys(run, [keys[0]], [], PRIVACY)
    assert rows(run)[keys[0]]["image"] is not None and verify_run(run).ok


def test_a_run_whose_prompts_were_erased_cannot_be_drawn_again_and_says_so(run: Path, keys: list[str]) -> None:
    erase_keys(run, [keys[0]], ["prompt"], PRIVACY)
    with pytest.raises(PlanMismatch, match="prompts of this run were erased"):
        Plan.load(run)


def test_a_folder_that_another_process_holds_is_refused(run: Path, keys: list[str]) -> None:
    with lease(run), pytest.raises(RunStopped):
        erase_keys(run, [keys[0]], [], PRIVACY)
    assert rows(run)[keys[0]]["image"] is not None


@pytest.mark.parametrize("version", [1, 2])
def test_payloads_of_a_run_of_an_earlier_version_can_be_erased(version: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parents[1] / "data" / f"run-v{version}.zip") as packed:
        packed.extractall(tmp_path)
    old = tmp_path / "run"
    keys = [row["request_key"] for row in sample_rows(old, ["request_key"])]
    before = (old / "events.jsonl").read_bytes()
    assert erase_keys(old, keys[:1], [], PRIVACY).samples == 1
    assert verify_run(old).problems == () and (old / "events.jsonl").read_bytes() == before
    assert [row["prompt"] is None for row in sample_rows(old)] == [True, False, False, False]
    assert all(one["due"] == 0 for one in show_retention(old))


def test_an_unfinished_run_is_refused(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Callable[..., Any]) -> None:
    with pytest.raises(RunStopped):
        run_local(make_plan(["cat", "owl", "disk-full"]), tmp_path / "run", open_loop=open_loop)
    with pytest.raises(InputError, match="is not sealed"):
        erase_keys(tmp_path / "run", ["x"], [], PRIVACY)


def test_a_file_that_was_changed_is_not_written_over(run: Path, keys: list[str]) -> None:
    path = sorted(run.glob("attempts/*.parquet"))[0]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ClearanceError, match="is not the file that was committed") as caught:
        erase_keys(run, [keys[0]], [], PRIVACY)
    assert path.name in caught.value.where


# --- crashes ---------------------------------------------------------------------------------------------------------------


class StopsAt(Disk):
    """A disk that is pulled out at the n-th change of a name: an event, its head, a file, a report."""

    def __init__(self, number: int) -> None:
        self.left, self.hit = number, False

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.hit = True
            raise OSError(5, "pulled out")

    def link(self, old: str, new: str, *, at: int) -> None:
        self._count()
        super().link(old, new, at=at)

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._count()
        super().replace(old, new, at=at)

    def unlink(self, name: str, *, at: int) -> None:
        if not name.startswith((".tmp-", ".lease")):
            self._count()
        super().unlink(name, at=at)


STEPS = range(13)


@pytest.mark.parametrize("steps", STEPS)
def test_a_stop_between_any_two_steps_is_found_or_harmless_and_erasing_again_finishes(
    run: Path, keys: list[str], steps: int
) -> None:
    """Two shards: two reports removed, then for each shard an event, its head, two files; the same for the requests."""
    report_run(run)
    disk = StopsAt(steps)
    with using(disk):
        try:
            erase_keys(run, [keys[0], keys[2]], [], PRIVACY)
        except RunStopped as error:
            last = "cannot be removed: report" in error.what if steps < 2 else "events" in error.where
            assert disk.hit and (last or "finishes the erasure" in error.fix), error
    left, found = unfinished(run), verify_run(run)
    assert found.ok == (not left), found.problems
    for problem in found.problems:
        assert "interrupted" in problem.what or "not the file that its last erasure left" in problem.what, problem
    erase_keys(run, [keys[0], keys[2]], [], PRIVACY)
    assert verify_run(run).ok and unfinished(run) == {}
    after = rows(run)
    assert [after[key]["image"] for key in (keys[0], keys[2])] == [None, None]
    assert [after[key]["prompt"] for key in keys] == [None, "copy of an owl", None, "elk"]


def test_a_report_that_cannot_be_removed_stops_an_erasure_before_anything_is_erased(run: Path, keys: list[str]) -> None:
    report_run(run)
    before = contents(run)
    with using(Sticky("report.html")), pytest.raises(RunStopped, match=r"cannot be removed: report\.html\.") as caught:
        erase_keys(run, [keys[0]], [], PRIVACY)
    assert "the right to delete" in caught.value.fix and "nothing was erased yet" in caught.value.fix
    left = {name: data for name, data in before.items() if name not in ("report.json", ".lease")}
    assert {name: data for name, data in contents(run).items() if name != ".lease"} == left
    assert erase_keys(run, [keys[0]], [], PRIVACY).removed == ("report.html",) and verify_run(run).ok


def test_the_steps_above_are_all_there_are(run: Path, keys: list[str]) -> None:
    report_run(run)
    disk = StopsAt(len(STEPS))
    with using(disk):
        erase_keys(run, [keys[0], keys[2]], [], PRIVACY)
    assert not disk.hit, "one step more: raise STEPS"


def test_retention_finishes_what_was_interrupted(run: Path, keys: list[str]) -> None:
    with using(StopsAt(2)), pytest.raises(RunStopped):
        erase_keys(run, [keys[0]], [], PRIVACY)
    assert not verify_run(run).ok
    done = apply_retention(run, PRIVACY)
    assert done.unfinished == 1 and done.due == {} and verify_run(run).ok


def test_an_interrupted_erasure_waits_for_a_hold_that_came_later(run: Path, keys: list[str]) -> None:
    with using(StopsAt(2)), pytest.raises(RunStopped):
        erase_keys(run, [keys[0]], [], PRIVACY)
    change_hold(run, "hold.set", [keys[0]], "m", PRIVACY)
    assert apply_retention(run, PRIVACY).erased.cells == {}


# --- verifying after an erasure --------------------------------------------------------------------------------------------


def test_an_older_copy_of_the_file_is_found(run: Path, keys: list[str]) -> None:
    path = sorted(run.glob("samples/*.parquet"))[0]
    old = path.read_bytes()
    erase_keys(run, [keys[0]], [], PRIVACY)
    path.write_bytes(old)
    problems = verify_run(run).problems
    assert any(p.where == f"samples/{path.name}" and "an older copy was restored" in p.what for p in problems)


def forge(run: Path, change: Callable[[list[dict[str, Any]]], None], table: str = "samples") -> Path:
    """Change rows of the first file of a table without an event."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = sorted(run.glob(f"{table}/*.parquet"))[0]
    before = pq.ParquetFile(path).read()
    plain = before.to_pylist()
    change(plain)
    pq.write_table(pa.Table.from_pylist(plain, schema=before.schema), path)
    return path


@pytest.mark.parametrize("column", ["image", "prompt", "negative_prompt", "embedding"])
def test_a_payload_that_is_missing_without_an_event_is_a_problem(run: Path, keys: list[str], column: str) -> None:
    erase_keys(run, [keys[0]], [], PRIVACY)
    forge(run, lambda plain: plain[1].update({column: None}) if column != "image" else plain[0].update(image=None))
    assert not verify_run(run).ok
    if column != "image":  # row 1 was rejected and has no picture
        place = "prompt" if column == "negative_prompt" else column
        assert any(p.where.endswith(f"row 1 column {place}") for p in verify_run(run).problems), verify_run(run).problems


def test_an_event_that_names_more_than_was_erased_is_a_problem(run: Path, keys: list[str]) -> None:
    """Somebody adds an event that calls another picture erased; the picture is there."""
    import hashlib

    path = sorted(run.glob("samples/*.parquet"))[0]
    digest, ids = hashlib.sha256(path.read_bytes()).hexdigest(), list(samples_by_key(run, keys[:1]).values())
    file = {"path": f"samples/{path.name}", "table": "samples", "columns": {"image": ids}, "after_bytes": path.stat().st_size}
    append_event(run, "payload.erased", "x", "x", details={"files": [file | {"before_sha256": digest, "after_sha256": digest}]})
    assert [p.what for p in verify_run(run).problems] == ["an event names it as erased, and it is here"]


def test_an_event_about_a_file_of_another_digest_is_a_problem(run: Path, keys: list[str]) -> None:
    erase_keys(run, [keys[0]], ["picture"], PRIVACY)
    file = read_events(run)[-1]["details"]["files"][0] | {"before_sha256": "ab" * 32}
    append_event(run, "payload.erased", "x", "x", details={"files": [file]})
    assert any("which this never was" in p.what for p in verify_run(run).problems)


def test_an_event_about_a_file_that_no_commit_names_is_a_problem(run: Path) -> None:
    file = {"path": "samples/none.parquet", "table": "samples", "columns": {}, "after_bytes": 1}
    append_event(run, "payload.erased", "x", "x", details={"files": [file | {"before_sha256": "a", "after_sha256": "b"}]})
    assert any(p.where == "samples/none.parquet" and "no file that a commit" in p.what for p in verify_run(run).problems)


def test_an_unknown_kind_of_event_is_named_and_no_problem(run: Path) -> None:
    append_event(run, "weather.changed", "sky", "rain")
    found = verify_run(run)
    assert found.ok and any("weather.changed" in left.what for left in found.not_covered)
