"""Runs that earlier versions of the schema wrote: they verify, report and are counted; what was changed in them is found.

``tests/data/run-v1.zip`` was made by the code of commit b9e622e, ``run-v2.zip`` by that of dfcd218, ``run-v3.zip`` by that of
9b312d6: four prompts ("a red apple", "copy of a cat", "steered lemon", "a green pear"), two shards, drawn by the fakes of
``tests/jobs/conftest.py`` of that commit (discs of 32×32 pixels in place of its noise), run with ``run_local`` and zipped as
they lay.
"""

from __future__ import annotations

import json
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from jobs.report import report_run
from jobs.run.verdict import verify_run
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.numbers import count_run
from pipeline.audit.schema import ATTEMPT_COLUMNS, SAMPLE_COLUMNS, SCHEMA_VERSION, STRUCTS, samples_schema, schema_of
from pipeline.audit.verify import verify

DATA = Path(__file__).parents[1] / "data"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=[1, 2, 3])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old(version: int, tmp_path: Path) -> Path:
    with zipfile.ZipFile(DATA / f"run-v{version}.zip") as packed:
        packed.extractall(tmp_path)
    return tmp_path / "run"


def test_an_old_run_verifies(old: Path) -> None:
    found = verify_run(old)
    assert found.problems == ()
    counted = ("samples", "attempts", "pixels", "thumbnails", "prompts")
    assert [found.counts[name] for name in counted] == [4, 5, 3, 5, 4]


def test_the_rows_are_of_the_version_they_claim(old: Path, version: int) -> None:
    assert {row["schema_version"] for row in (*sample_rows(old), *attempt_rows(old))} == {version}


def test_rows_of_an_old_run_have_todays_columns(old: Path, version: int) -> None:
    rows = list(sample_rows(old))
    assert {tuple(sorted(row)) for row in rows} == {tuple(sorted(samples_schema().names))}
    assert {row["machine"] for row in rows} == {None}
    assert all((row["iscc"] is None) == (version < 3 or row["image"] is None) for row in rows)


def test_findings_of_an_old_run_have_todays_fields(old: Path, version: int) -> None:
    found = [finding for row in sample_rows(old, ["findings"]) for finding in row["findings"]]
    assert {tuple(sorted(finding)) for finding in found} == {tuple(sorted(field.name for field in STRUCTS["finding"]))}
    assert {finding["ref_id"] for finding in found} == ({None} if version == 1 else {""})


def test_an_old_run_is_counted(old: Path) -> None:
    counts = count_run(old)
    assert dict(counts.outcomes) == {"accepted": 2, "rejected": 1, "accepted_after_steering": 1}
    assert (counts.pictures, counts.steered) == (5, 1)


def test_an_old_run_is_reported(old: Path) -> None:
    page, numbers, _ = report_run(old)
    assert numbers["integrity"]["problems"] == []
    assert "The record is not whole" not in page.read_text(encoding="utf-8")


def test_the_report_of_an_old_run_has_no_digest_and_is_no_problem(old: Path) -> None:
    (old / "report.html").write_text("<!doctype html><p>a report of an earlier version</p>\n")
    found = verify_run(old)
    left = {one.where: one.what for one in found.not_covered}
    assert found.problems == () and left["report.html"] == "a report of an earlier version, which states no digest"


@pytest.mark.parametrize("kind", ["samples/*.parquet", "attempts/*.parquet", "plan.json", "requests.parquet", "events[./]*"])
def test_a_changed_old_run_is_found(old: Path, kind: str) -> None:
    path = next(
        found for found in sorted(old.rglob("*")) if found.is_file() and fnmatch(found.relative_to(old).as_posix(), kind)
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    named = [problem.where for problem in verify_run(old).problems]
    assert any(where.startswith(path.relative_to(old).as_posix()) for where in named)


def test_a_removed_column_of_an_old_run_is_found(old: Path) -> None:
    import pyarrow.parquet as pq

    path = sorted(old.glob("samples/*.parquet"))[0]
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["pdq"]), path)
    found = [problem.what for problem in verify(old).problems]
    assert "columns are missing: pdq" in found


def test_the_end_of_the_events_may_lack_in_the_first_version_alone(old: Path, version: int) -> None:
    (old / "events-head.json").unlink(missing_ok=True)
    named = [problem.where for problem in verify(old).problems]
    assert named == ([] if version == 1 else ["events-head.json"])


def test_a_version_to_come_is_refused_by_name(old: Path) -> None:
    import pyarrow.parquet as pq

    path = sorted(old.glob("samples/*.parquet"))[0]
    table = pq.ParquetFile(path).read()
    header = json.loads(table.schema.metadata[b"clearance"]) | {"schema_version": SCHEMA_VERSION + 1}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"clearance": json.dumps(header)}), path)
    expected = f"has columns of version {SCHEMA_VERSION + 1}; this version of Clearance reads 1 to {SCHEMA_VERSION}"
    assert expected in [problem.what for problem in verify(old).problems]


@pytest.mark.parametrize("table", ["samples", "attempts"])
def test_the_old_schema_is_what_the_old_code_wrote(old: Path, version: int, table: str) -> None:
    import pyarrow.parquet as pq

    written = pq.ParquetFile(sorted(old.glob(f"{table}/*.parquet"))[0]).schema_arrow
    expected = samples_schema(4, version) if table == "samples" else schema_of(table, version)
    # Columns by name: parquet calls the item of a list "element".
    assert {f.name: str(f.type).replace("element:", "item:") for f in written} == {
        f.name: str(f.type).replace("element:", "item:") for f in expected
    }


def test_every_addition_names_a_version_there_was() -> None:
    every = [*SAMPLE_COLUMNS, *ATTEMPT_COLUMNS, *(field for fields in STRUCTS.values() for field in fields)]
    assert {column.since for column in every} == set(range(1, SCHEMA_VERSION + 1))
