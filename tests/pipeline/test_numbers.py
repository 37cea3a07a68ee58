"""The counts of a run: every word of the vocabulary on a run made for it, and what holds for any rows at all."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import IntegrityError
from pipeline.audit.contents import report_numbers
from pipeline.audit.context import RunContext
from pipeline.audit.numbers import ATTEMPT_COLUMNS, SAMPLE_COLUMNS, Counts, count_run
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.report import write_report
from pipeline.audit.shards import commit_shard
from pipeline.audit.summary import sentences
from pipeline.outcome import Outcome, Verdict

from ..counted import CONTEXT, attempt, commit, finding, one_of_each, sealed
from ..counted import sample as a_sample


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    return count_run(commit(tmp_path_factory.mktemp("each"), one_of_each()))


# --- the right values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requested", 10), ("generated", 9), ("pictures", 11), ("flagged", 6), ("caught", 1), ("acted", 4), ("observed", 1),
        ("steered", 3), ("accepted", 6), ("looked_first", 9), ("too_near_first", 4), ("looked", 6), ("near", 1),
        ("too_near", 0), ("cleared", 1), ("would_be_flagged", 1), ("by_embedder", 0.91), ("after_second_look", 0.62),
        ("copy_threshold", 0.8), ("evals", 220.0), ("evals_accepted", 120.0),
    ],
)  # fmt: skip
def test_each_word_counts_what_it_says(counts: Counts, name: str, value: float) -> None:
    assert getattr(counts, name) == value


def test_every_end_is_counted(counts: Counts) -> None:
    assert counts.outcomes == {"accepted": 4, "accepted_after_steering": 2, "error": 2, "review": 1, "rejected": 1}
    assert counts.reasons == {"oom": 1, "input.empty_prompt": 1, "text.ocr": 1, "copy.protected": 1}
    assert counts.observed_by == {"marks": 1}


def test_an_unfinished_run_is_counted_as_far_as_it_is(tmp_path: Path) -> None:
    assert count_run(tmp_path).requested == 0
    assert count_run(commit(tmp_path, one_of_each()[:3])).requested == 3
    assert count_run(commit(tmp_path, one_of_each()[3:5], "1")).accepted == 5


def test_only_some_requests(tmp_path: Path) -> None:
    some = count_run(commit(tmp_path, one_of_each()), {"key-1", "key-6"})
    assert (some.requested, some.generated, some.cleared) == (2, 1, 1)


def test_what_the_second_look_cleared_is_listed_with_both_scores(tmp_path: Path) -> None:
    (cleared,) = report_numbers(sealed(tmp_path, one_of_each()))["cleared"]
    assert (cleared["request_key"], cleared["ref_id"], cleared["title"]) == ("key-1", "ref", "the near drawing")
    assert (cleared["similarity"], cleared["threshold"], cleared["confirm"], cleared["attempt"]) == (0.91, 0.8, 0.01, 0)


def test_a_zero_never_stands_alone(counts: Counts) -> None:
    said = sentences(counts, None)
    assert "0 of 6 accepted pictures are too near a reference (≤ 39 %, 95 %)" in said["copies"].replace("\u00a0", " ")
    assert "1 of 6 was near and cleared by the second look" in said["copies"]
    assert "0.910 by the embedder alone and 0.620 after the second look; the threshold is 0.800" in said["nearest"]
    assert said["observed"].startswith("1 of 6 accepted pictures would have been flagged (marks 1)")
    assert "does not hold how many copies" in said["check"]


def test_a_prompt_that_was_rewritten_flags_no_picture(tmp_path: Path) -> None:
    """The policy acted on it: a guard that only observes is another matter."""
    rewritten, observed = finding("prompt.blocked.rewrite", 1.0, 0.5), finding("faithfulness", 0.9, 0.5)
    context = RunContext(**CONTEXT, actions={"prompt": "rewrite", "faithfulness": "observe"})  # type: ignore[arg-type]
    samples = [
        a_sample(row, Outcome.ACCEPTED, [attempt(0, Verdict.ACCEPT, findings, [])])
        for row, findings in enumerate([[rewritten], [rewritten, observed], [observed]])
    ]
    commit_shard(tmp_path, "0", sample_table(samples, context, "0"), attempt_table(samples, context, "0"))
    found = count_run(tmp_path)
    assert (found.flagged, found.acted, found.observed, found.would_be_flagged) == (2, 0, 2, 2)
    assert found.observed_by == {"faithfulness": 2}
    assert "action not in (asked, rewrite)" in found.measures()["would_be_flagged_rate"]["expression"]


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    def peak(folder: Path) -> int:
        tracemalloc.start()
        count_run(folder)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    samples = one_of_each()
    for shards in (4, 40):
        for number in range(shards):
            commit(tmp_path / str(shards), samples, f"{number:03d}")
    count_run(tmp_path / "4")  # imports and caches
    assert count_run(tmp_path / "40").requested == 400
    # 36 shards more: their receipts are kept, their 360 requests (some 5 KB each as Python objects) are not.
    assert peak(tmp_path / "40") - peak(tmp_path / "4") < 360 * 1024


# --- whatever the rows hold ------------------------------------------------------------------------------------------------

LIKENESS = st.floats(-1, 1)
MATCHES = st.lists(
    st.fixed_dictionaries({"similarity": LIKENESS, "status": st.sampled_from(["active", "disputed", "allowed", "retired"])}),
    max_size=3,
)
FINDINGS = st.lists(
    st.fixed_dictionaries(
        {
            "guard": st.sampled_from(["copies", "marks"]),
            "category": st.sampled_from(["copy.protected", "copy.geometry", "mark.qr"]),
            "score": LIKENESS,
            "triggered": st.booleans(),
        }
    ),
    max_size=3,
)
TRIES = st.lists(
    st.fixed_dictionaries(
        {
            "caught": st.sampled_from([[], [{"ref_ids": ["r"]}]]),
            "findings": FINDINGS,
            "nearest": MATCHES,
            "decision": st.sampled_from([verdict.value for verdict in Verdict]),
            "intervention": st.sampled_from([None, {"kind": "nudge"}]),
            "denoiser_evals": st.floats(0, 100),
        }
    ),
    max_size=3,
)
ROWS = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from([outcome.value for outcome in Outcome]),
        "reason": st.sampled_from(["", "oom"]),
        "accepted_attempt": st.sampled_from([None, 0, 1]),
        "findings": FINDINGS,
        "nearest": MATCHES,
        "copy_threshold": st.floats(-1, 1),
        "denoiser_evals": st.floats(0, 100),
        "device_seconds": st.floats(0, 100),
        "started_at": st.just(datetime(2026, 11, 28, tzinfo=UTC)),
        "finished_at": st.just(datetime(2026, 11, 29, tzinfo=UTC)),
        "prompt_truncated": st.booleans(),
        "xmp_present": st.booleans(),
        "c2pa_present": st.booleans(),
        "watermark_scheme": st.sampled_from(["", "x"]),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ROWS, TRIES), max_size=12))
def test_totals_add_up_for_any_rows(rows: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    counts = Counts()
    for sample, attempts in rows:
        counts.add(sample, [{**one, "attempt": number} for number, one in enumerate(attempts)])
    m = {name: measure["value"] for name, measure in counts.measures().items()}
    ends = ("accepted_at_once", "accepted_after_steering", "review", "rejected", "quarantined", "error")
    assert m["requested"] == len(rows) == sum(m[name] for name in ends)
    assert m["accepted"] == m["accepted_at_once"] + m["accepted_after_steering"]
    assert m["flagged"] == m["caught"] + m["acted_on"] + m["observed"]
    assert m["flagged"] <= m["generated"] <= m["requested"] and m["steered"] <= m["generated"] <= m["pictures"]
    assert counts.cleared <= counts.near <= counts.cleared + counts.too_near
    assert counts.too_near + counts.cleared <= counts.looked <= counts.accepted
    assert counts.too_near <= counts.would_be_flagged <= counts.accepted
    for name, measure in counts.measures().items():
        if "k" in measure:
            assert 0 <= measure["k"] <= measure["n"], name
            assert measure["low"] <= (measure["value"] or 0) <= measure["high"], name


# --- what cannot be counted ------------------------------------------------------------------------------------------------


def rewritten(folder: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    """The run with one data file written again."""
    (path,) = (folder / table).glob("*.parquet")
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    return path


def another(column: str, values: Callable[[int], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(column), column, values(table.num_rows))


ODD = {
    "whole": lambda n: pa.array([7] * n, pa.int64()),
    "text": lambda n: pa.array(["odd"] * n),
    "null": lambda n: pa.nulls(n),
    "list": lambda n: pa.array([[1]] * n),
    "struct": lambda n: pa.array([{"odd": 1}] * n),
    "not finite": lambda n: pa.array([float("nan")] * n),
}
PLACES = [("samples", name) for name in SAMPLE_COLUMNS] + [
    ("attempts", name) for name in ["sample_id", "attempt", *ATTEMPT_COLUMNS]
]


@pytest.mark.parametrize(("table", "column"), PLACES, ids=lambda value: value)
def test_a_column_of_another_type_is_named(tmp_path: Path, table: str, column: str) -> None:
    """Never a bare exception, and never a count of something else."""
    folder = commit(tmp_path, one_of_each())
    right = {name: measure["value"] for name, measure in count_run(folder).measures().items()}
    original = pq.ParquetFile(next((folder / table).glob("*.parquet"))).read()
    for name, values in ODD.items():
        path = rewritten(folder, table, lambda _, values=values: another(column, values)(original))  # type: ignore[misc]
        if pq.ParquetFile(path).schema_arrow.field(column).type == original.schema.field(column).type:
            continue  # it is the right type: what it holds is another test's
        with pytest.raises(IntegrityError) as refused:
            count_run(folder)
        assert refused.value.where.startswith(f"{table}/") and column in refused.value.what, name
    rewritten(folder, table, lambda _: original.drop_columns([column]))
    with pytest.raises(IntegrityError, match=column):
        count_run(folder)
    rewritten(folder, table, lambda _: original)
    assert {name: measure["value"] for name, measure in count_run(folder).measures().items()} == right


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("samples", "outcome", None), ("samples", "outcome", "released"), ("samples", "copy_threshold", None),
        ("samples", "findings", None), ("samples", "nearest", None), ("samples", "denoiser_evals", None),
        ("samples", "started_at", None), ("samples", "sample_id", None), ("attempts", "decision", "perhaps"),
        ("attempts", "attempt", None), ("attempts", "findings", None), ("attempts", "sample_id", None),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_its_row(tmp_path: Path, table: str, column: str, value: object) -> None:
    folder = commit(tmp_path, one_of_each())

    def change(stored: pa.Table) -> pa.Table:
        values = stored.column(column).to_pylist()
        values[2] = value
        return another(column, lambda n: pa.array(values, stored.schema.field(column).type))(stored)

    rewritten(folder, table, change)
    with pytest.raises(IntegrityError, match="clearance verify") as refused:
        count_run(folder)
    assert refused.value.where.split(" row ")[-1] == "2"


def test_a_similarity_that_is_no_number_is_no_small_one(tmp_path: Path) -> None:
    folder = commit(tmp_path, one_of_each())

    def change(stored: pa.Table) -> pa.Table:
        nearest = stored.column("nearest").to_pylist()
        nearest[0][0]["similarity"] = float("nan")
        return another("nearest", lambda n: pa.array(nearest, stored.schema.field("nearest").type))(stored)

    rewritten(folder, "samples", change)
    with pytest.raises(IntegrityError, match="a similarity is not finite"):
        count_run(folder)


def test_a_file_that_is_gone_or_no_parquet_is_named(tmp_path: Path) -> None:
    folder = commit(tmp_path, one_of_each())
    (path,) = (folder / "attempts").glob("*.parquet")
    data = path.read_bytes()
    for damaged in (b"", b"PAR1", data[:-100], data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError) as refused:
            count_run(folder)
        assert refused.value.where == f"attempts/{path.name}"
    path.unlink()
    with pytest.raises(IntegrityError):
        count_run(folder)
    with pytest.raises(IntegrityError):
        write_report(folder)
