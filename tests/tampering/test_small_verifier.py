"""The verifier in one file: it runs where there is nothing but Python and pyarrow, and sees what the large one sees
(of tamperings: test_tampering)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.main import app
from pipeline.audit.coverage import holds_run
from pipeline.audit.events import append_event
from pipeline.audit.stage import STAGES
from pipeline.audit.verifier import clearance_verify
from pipeline.audit.verifier.clearance_verify import Run, main
from pipeline.audit.verify import verify
from tests.proofs import openssl
from tests.tampering.runs import Runs, copy_of, make_runs

# Runs a file in an interpreter that finds the standard library and pyarrow, and nothing else that is installed.
ALONE = """
import importlib.abc, runpy, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "pyarrow" and not top.startswith("_"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verifier") / "clearance_verify.py"
    result = CliRunner().invoke(app, ["verify", "--write-verifier", str(path)])
    assert result.exit_code == 0 and "written" in result.output
    return path


def alone(file: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", ALONE, str(file), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent)


def test_it_verifies_an_intact_run_without_anything_else(written: Path, runs: Runs) -> None:
    done = alone(written, runs.whole)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert [line[1].strip() for line in lines[: len(STAGES)]] == list(STAGES)
    states = {line[1].strip(): line[0] for line in lines[: len(STAGES)]}
    assert {name for name, state in states.items() if state == "skip"} == {"signature", "time stamp"}
    assert "openssl ts -verify -in run.tsr -data run.dsse.json" in done.stdout and done.stdout.endswith("intact\n")


def test_the_import_of_anything_else_would_fail(written: Path, tmp_path: Path) -> None:
    for name in ("numpy", "torch", "pipeline.audit.verify", "cryptography"):
        (tmp_path / "x.py").write_text(f"import {name}")
        assert "is not here" in alone(tmp_path / "x.py").stderr


def test_it_finds_a_tampering_there(written: Path, runs: Runs, tmp_path: Path) -> None:
    folder = copy_of(runs.whole, tmp_path / "run")
    path = sorted(folder.glob("kept/*"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    done = alone(written, folder, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["ok"]
    assert path.relative_to(folder).as_posix() in {problem["where"] for problem in found["problems"]}


def test_a_folder_that_is_not_there(written: Path, tmp_path: Path) -> None:
    done = alone(written, tmp_path / "absent")
    assert done.returncode == 2 and "no such run folder" in done.stderr


def test_a_folder_that_is_no_run(written: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = alone(written, tmp_path / "empty")
    assert done.returncode == 2 and "not a run folder" in done.stderr
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "empty")]).exit_code == 2


@pytest.mark.parametrize(
    "name",
    [
        *("plan.json", "run.json", "run.dsse.json", "run.tsr", "events-head.json", "events.jsonl", "commits/0.json"),
        *("events/00000001.parquet", "parts/index.parquet", "parts/kept-00000-0123abcd.parquet", "parts/.tmp-x"),
        *("samples/part-1.parquet", "attempts/part-1.parquet", "kept/part-1.parquet", "kept/.tmp-1"),
        *("samples/own.parquet", "events/notes.txt", "parts/other.parquet", "notes.txt", "samples/plan.json"),
    ],
)
def test_both_verifiers_take_the_same_folders_for_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    assert clearance_verify.holds_run(str(tmp_path / "folder")) == holds_run(tmp_path / "folder")
    assert (main([str(tmp_path / "folder")]) == 2) == (not holds_run(tmp_path / "folder"))


@pytest.mark.parametrize("name", ["samples", "parts", "events"])
def test_a_link_in_the_place_of_a_folder_of_a_run_is_of_a_run_for_both(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path)
    assert clearance_verify.holds_run(str(tmp_path)) and holds_run(tmp_path)


def test_of_the_rows_only_what_is_compared_is_kept(runs: Runs) -> None:
    """No text, picture or list of references is held until the end: a run may have a million rows."""
    held: list[object] = []

    class Watched(Run):
        def check_requests(self, erased: clearance_verify.Erasures) -> None:
            held.extend([[row for _, row, _ in self.samples.values()], dict(self.asked)])
            super().check_requests(erased)

    run = Watched(str(runs.erased)).verify()
    samples, asked = held
    assert isinstance(samples, list) and isinstance(asked, dict) and len(samples) == len(asked) > 0
    assert all(row.keys() <= {*clearance_verify.WHOLE} for row in samples)
    assert all(row.keys() <= {*clearance_verify.ASKED} for row, *_ in asked.values())
    assert {len(text) for _, *texts, _ in asked.values() for text in texts if text} == {64}
    assert not run.problems and not run.asked


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_report_that_was_changed_or_is_an_earlier_one(runs: Runs, tmp_path: Path, name: str) -> None:
    from pipeline.audit.events import append_event
    from pipeline.audit.report_digest import REPORTED, digests_of

    folder = copy_of(runs.whole, tmp_path / "run")
    append_event(folder, REPORTED, "reporter", "written", **digests_of(folder))
    earlier = (folder / name).read_bytes()
    assert not Run(str(folder)).verify().problems
    (folder / name).write_bytes(earlier + b" ")
    assert [(where, "no event names" in what) for _, where, what in Run(str(folder)).verify().problems] == [(name, True)]
    append_event(folder, REPORTED, "reporter", "written", **digests_of(folder))
    (folder / name).write_bytes(earlier)
    assert [(where, "an earlier report" in what) for _, where, what in Run(str(folder)).verify().problems] == [(name, True)]


def test_what_it_extracts_is_what_openssl_checks(runs: Runs, tmp_path: Path) -> None:
    assert main([str(runs.whole), "--extract", str(tmp_path)]) == 0
    assert runs.keys.folder is not None
    pem = runs.keys.folder / "statement.pub"
    named = ("-inkey", pem, "-rawin", "-in", tmp_path / "signed", "-sigfile", tmp_path / "signature-0")
    assert openssl("pkeyutl", "-verify", "-pubin", *named).returncode == 0
    (tmp_path / "signed").write_bytes((tmp_path / "signed").read_bytes() + b" ")
    assert openssl("pkeyutl", "-verify", "-pubin", *named).returncode != 0


def test_it_counts_what_the_large_one_counts(runs: Runs) -> None:
    ours, small = verify(runs.whole).counts, Run(str(runs.whole)).verify().counts
    shared = ("samples", "attempts", "kept", "pictures", "kept_pictures", "thumbnails", "embeddings", "prompts", "shards")
    assert {name: small.get(name) for name in shared} == {name: ours.get(name) for name in shared}


def test_runs_of_older_versions_verify(tmp_path: Path) -> None:
    for archive in sorted((Path(__file__).parents[1] / "data").glob("run-v*.zip")):
        shutil.unpack_archive(archive, tmp_path / archive.stem)
        for folder in (path.parent for path in (tmp_path / archive.stem).rglob("run.json")):
            assert list(Run(str(folder)).verify().problems) == [], archive.name


def test_it_says_what_it_does_not_decode(runs: Runs) -> None:
    assert "not decoded here" in Run(str(runs.whole)).verify().sentence["pictures"]


def test_a_secret_salt_skips_the_prompts(make_salted: Path) -> None:
    states = {name: state for name, state, _ in Run(str(make_salted)).verify().stages()}
    assert states["prompts"] == "skip"
    states = {name: state for name, state, _ in Run(str(make_salted), "3b7f" * 8).verify().stages()}
    assert states["prompts"] == "pass"


@pytest.fixture
def make_salted(tmp_path: Path) -> Path:
    from pipeline.audit.events import append_event
    from pipeline.audit.ledger import run_predicate, seal
    from pipeline.audit.records import attempt_table, sample_table
    from pipeline.audit.shards import commit_shard
    from tests.pipeline.conftest import a_context, every_outcome

    context, samples = a_context(salt="3b7f" * 8), every_outcome()
    append_event(tmp_path, "run.started", "runner", "started")
    commit_shard(tmp_path, "0", sample_table(samples, context, "0"), attempt_table(samples, context, "0"))
    seal(tmp_path, run_predicate(context))
    return tmp_path


def test_a_reader_that_has_seen_enough_is_no_damage(written: Path, runs: Runs) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-I", str(written), str(runs.whole)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_file_names_what_it_needs() -> None:
    text = Path(clearance_verify.__file__).read_text(encoding="utf-8")
    assert "import numpy" not in text and "from pipeline" not in text and "from index" not in text


def test_an_erasure_that_names_half_a_file_erases_nothing(runs: Runs, tmp_path: Path) -> None:
    """The details of an event are anybody's, and the chain of events fits."""
    from pipeline.audit.events import append_event

    folder = copy_of(runs.whole, tmp_path / "run")
    append_event(folder, "payload.erased", "privacy", "asked for", details={"files": [{"path": 7}, 3]})
    assert verify(folder).ok and not Run(str(folder)).verify().problems


SAMPLE = "0" * 32


@pytest.mark.parametrize(
    ("kind", "samples", "details", "what"),
    [
        ("sample.released", [SAMPLE], {"outcome": "acceptd"}, "names no outcome, but 'acceptd'"),
        ("review.decided", [SAMPLE], {}, "names no outcome, but 'None'"),
        ("review.decided", [SAMPLE], {"outcome": ["accepted"]}, "names no outcome, but \"['accepted']\""),
        ("review.decided", [], {"outcome": "rejected"}, "names no sample"),
        ("sample.released", [SAMPLE], {"retain_until": "0001-01-01T00:00:00+14:00"}, "names no time"),
        ("review.decided", [SAMPLE], {"outcome": "error", "retain_until": None}, "names no time, but 'None'"),
        ("payload.erased", [SAMPLE], {"files": []}, ""),
        ("sample.released", [SAMPLE], {"retain_until": "0001-01-01T00:00:00"}, ""),
        ("sample.quarantined", [SAMPLE], {"outcome": 7, "retain_until": 7}, ""),
        ("hold.set", [], {"retain_until": 7}, ""),
        ("weather.changed", [], {"outcome": 7}, ""),
    ],
)
def test_an_event_that_cannot_be_followed_is_a_problem_for_both(
    runs: Runs, tmp_path: Path, kind: str, samples: list[str], details: dict[str, object], what: str
) -> None:
    folder = copy_of(runs.whole, tmp_path / "run")
    event = append_event(folder, kind, "counsel", "odd", samples=samples, details=details)
    small, large = Run(str(folder)).verify().problems, verify(folder).problems
    assert len(small) == len(large) == (1 if what else 0)
    if what:
        (((stage, where, said), _),) = small.items()
        assert (stage, where, said) == ("events", f"event {event['seq']}", f"({kind}) {large[0].what.partition(') ')[2]}")
        assert large[0].where == where and what in said


def with_numbers(folder: Path, column: str, value: object) -> None:
    """A column of the first shard's samples in another type, with a marker that fits."""
    import pyarrow as pa

    from pipeline.audit.shards import committed
    from tests.tampering.forge import recommit

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, pa.array([value] * table.num_rows))

    recommit(folder, sorted(committed(folder))[0], {"samples": change})


def test_what_nobody_foresaw_is_a_problem_and_no_traceback(runs: Runs, tmp_path: Path) -> None:
    folder = copy_of(runs.whole, tmp_path / "run")
    with_numbers(folder, "accepted_attempt", ["many"])
    problems = Run(str(folder)).verify().problems
    assert any("cannot be verified to the end (TypeError" in what for _, _, what in problems)


def test_an_outcome_of_another_type_is_found(runs: Runs, tmp_path: Path) -> None:
    folder = copy_of(runs.whole, tmp_path / "run")
    with_numbers(folder, "outcome", 7)
    problems = Run(str(folder)).verify().problems
    assert problems and not any("to the end" in what for _, _, what in problems)
