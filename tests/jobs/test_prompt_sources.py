"""Several prompt files, folders and patterns of them, and columns with other names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import storage
from index.errors import InputError
from jobs.run.plan import Plan
from jobs.run.prompts.requests import derived_seed, read_sources
from jobs.run.prompts.sources import in_order, sources_of
from pipeline.config import ColumnsConfig, RunConfig
from pipeline.notes import Note
from pipeline.outcome import Request
from pipeline.policy import Policy

CAPTIONED = "id,caption,seed\n7,a cat,1\n8,an owl,2\n"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_jsonl", ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def parquet(path: Path, *prompts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": list(prompts)}), path)


def prompts_of(
    names: Sequence[str], base: Path, *, columns: Mapping[str, str] | None = None, notes: list[Note] | None = None
) -> list[Request]:
    notes = [] if notes is None else notes
    return read_sources(sources_of(names, base, notes), columns=columns, notes=notes)


def keyed(requests: Sequence[Request]) -> list[tuple[str, str]]:
    return [(request.key, request.prompt) for request in requests]


def refused(names: Sequence[str], base: Path, **columns: str) -> InputError:
    with pytest.raises(InputError) as caught:
        prompts_of(names, base, columns=columns)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", ["parts", "parts/", "parts/*", "parts/*.parquet", "p*/part-*.parquet", "**/*.parquet"])
def test_a_folder_or_a_pattern_is_read_in_the_order_of_its_numbers(tmp_path: Path, name: str) -> None:
    for number in (10, 9, 1):
        parquet(tmp_path / "parts" / f"part-{number}.parquet", f"a cat {number}")
    (tmp_path / "parts" / "_SUCCESS").touch()
    (tmp_path / "parts" / ".part-1.parquet.crc").touch()
    assert [request.prompt for request in prompts_of([name], tmp_path)] == ["a cat 1", "a cat 9", "a cat 10"]


def test_folders_inside_a_folder_are_entered(tmp_path: Path) -> None:
    parquet(tmp_path / "all" / "day=2" / "part-0.parquet", "second")
    parquet(tmp_path / "all" / "day=1" / "part-0.parquet", "first")
    assert [request.prompt for request in prompts_of(["all"], tmp_path)] == ["first", "second"]


def test_a_file_that_is_added_at_the_end_moves_no_row(tmp_path: Path) -> None:
    parquet(tmp_path / "part-9.parquet", "a", "b")
    before = prompts_of(["*.parquet"], tmp_path)
    parquet(tmp_path / "part-10.parquet", "c")
    after = prompts_of(["*.parquet"], tmp_path)
    assert after[:2] == before
    assert keyed(after) == [("row-000000", "a"), ("row-000001", "b"), ("row-000002", "c")]
    assert [request.row_no for request in after] == [0, 1, 2]
    assert after[2].seed == derived_seed(0, "row-000002", 0)


def test_several_files_keep_the_order_of_the_run_file(tmp_path: Path) -> None:
    write(tmp_path, z_csv="prompt\nfirst\n", a_jsonl='{"prompt": "second"}\n')
    assert [request.prompt for request in prompts_of(["z.csv", "a.jsonl"], tmp_path)] == ["first", "second"]


def test_one_name_and_a_list_of_it_are_the_same_requests(tmp_path: Path) -> None:
    write(tmp_path, p_csv="prompt\ncat\n\nowl,owl\n")
    plans = [Plan.make(RunConfig(prompts=names), Policy(), tmp_path, identity={}) for names in ("p.csv", ["p.csv"])]
    assert plans[0].plan_sha256 == plans[1].plan_sha256
    assert plans[0].portable(tmp_path)["config"]["prompts"] == "p.csv"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (["part-10", "part-9", "part-1"], ["part-1", "part-9", "part-10"]),
        (["2026-11-28", "2026-2-3"], ["2026-2-3", "2026-11-28"]),
        (["a/2", "a/10", "B"], ["B", "a/2", "a/10"]),
        (["x1", "x01", "x001"], ["x001", "x01", "x1"]),
        (["x²", "x2"], ["x2", "x²"]),
    ],
)
def test_numbers_in_names_count_as_numbers(order: list[str], expected: list[str]) -> None:
    assert [path.as_posix() for path in in_order(map(Path, order))] == expected


def test_other_files_of_a_folder_are_a_note(tmp_path: Path) -> None:
    write(tmp_path, in__p_csv="prompt\ncat\n")
    for name in ("README.md", "a.json", "b.json", "c.zip"):
        (tmp_path / "in" / name).touch()
    notes: list[Note] = []
    prompts_of(["in"], tmp_path, notes=notes)
    assert notes == [Note("prompts", "in: left out, because they are no prompt files: README.md, a.json, b.json and 1 more")]


def test_a_folder_or_pattern_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.md").touch()
    assert refused(["in"], tmp_path).what == "no prompt file in this folder (1 other files; the first is README.md)"
    assert refused(["in/*.csv"], tmp_path).what == "no prompt file in this pattern (0 other files)"


def test_a_file_with_signs_of_a_pattern_in_its_name_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "p[1].csv").write_text("prompt\ncat\n")
    assert keyed(prompts_of(["p[1].csv"], tmp_path)) == [("row-000000", "cat")]


def test_a_file_is_named_once(tmp_path: Path) -> None:
    write(tmp_path, in__p_csv="prompt\ncat\n")
    assert refused(["in", "in/p.csv"], tmp_path).what == "is named twice, by 'in' and 'in/p.csv'"


def test_a_key_that_two_files_have_is_named_with_both_places(tmp_path: Path) -> None:
    write(tmp_path, a_csv="prompt,key\ncat,k\n", b_csv="prompt,key\nowl,k\n")
    error = refused(["a.csv", "b.csv"], tmp_path)
    assert error.what == "duplicate key 'k'"
    assert error.where.endswith("b.csv: a.csv: line 2 and b.csv: line 2")


def test_a_bad_row_of_several_files_names_its_file(tmp_path: Path) -> None:
    write(tmp_path, a_csv="prompt,seed\ncat,1\n", b_csv="prompt,seed\nowl,x\nfox,1\n")
    problem = prompts_of(["*.csv"], tmp_path)[1].problem
    assert problem == ("input.bad_seed", "b.csv: line 2: seed 'x' is not a whole number from 0 to 2^63-1")


def test_a_file_of_which_no_row_can_be_drawn_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_csv="prompt,seed\ncat,1\n", b_csv="prompt,seed\nowl,x\n")
    assert refused(["*.csv"], tmp_path).where.endswith("b.csv")


# --- columns ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_take_their_names_from_the_run_file(tmp_path: Path, kind: str) -> None:
    rows = [{"id": 7, "caption": "a cat", "nr": 1, "zone": "north"}, {"id": 8, "caption": "an owl", "nr": 2, "zone": "x"}]
    path = tmp_path / f"p.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    requests = prompts_of([path.name], tmp_path, columns={"prompt": "caption", "key": "id", "seed": "nr"})
    assert [(r.key, r.prompt, r.seed, r.columns) for r in requests] == [
        ("7", "a cat", 1, '{"zone":"north"}'), ("8", "an owl", 2, '{"zone":"x"}'),
    ]  # fmt: skip


def test_one_column_may_be_key_and_seed(tmp_path: Path) -> None:
    write(tmp_path, p_csv="id,prompt\n7,a cat\n")
    (request,) = prompts_of(["p.csv"], tmp_path, columns={"key": "id", "seed": "id"})
    assert (request.key, request.seed, request.columns) == ("7", 7, "")


def test_the_delimiter_is_found_by_the_column_that_is_named(tmp_path: Path) -> None:
    write(tmp_path, p_csv="id;caption, long\n7;a cat, sleeping\n")
    (request,) = prompts_of(["p.csv"], tmp_path, columns={"prompt": "caption, long"})
    assert (request.prompt, request.columns) == ("a cat, sleeping", '{"id":"7"}')


def test_a_wrong_column_is_refused_with_the_likely_one_and_all_there_are(tmp_path: Path) -> None:
    write(tmp_path, p_csv=CAPTIONED)
    error = refused(["p.csv"], tmp_path, prompt="captoin")
    assert error.what == "there is no column 'captoin' (columns.prompt)"
    assert error.fix == 'In the run file, write columns.prompt = "caption"; this file has: id, caption, seed'
    error = refused(["p.csv"], tmp_path, prompt="caption", key="number")
    assert error.fix == "In the run file, correct the name; this file has: id, caption, seed"


def test_the_file_of_several_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_csv=CAPTIONED, b_csv="id,text\n1,x\n")
    assert refused(["*.csv"], tmp_path, prompt="caption").where.endswith("b.csv")


@pytest.mark.parametrize("name", ["caption", "text", "TEXT"])
def test_a_column_that_data_sets_call_so_is_the_likely_one(tmp_path: Path, name: str) -> None:
    write(tmp_path, p_csv=f"id,{name}\n1,a cat\n")
    expected = f"Rename column '{name}' to 'prompt', or write columns.prompt = \"{name}\" in the run file; found: id, {name}"
    assert refused(["p.csv"], tmp_path).fix == expected


def test_a_column_that_another_stands_in_for_is_left_out_with_a_note(tmp_path: Path) -> None:
    write(tmp_path, p_csv="prompt,caption\nx,a cat\n")
    notes: list[Note] = []
    (request,) = prompts_of(["p.csv"], tmp_path, columns={"prompt": "caption"}, notes=notes)
    assert (request.prompt, request.columns) == ("a cat", "")
    assert notes == [Note("prompts", "column 'prompt' is left out: columns.prompt names 'caption' in its place")]


def test_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    assert refused(["p.txt"], tmp_path, prompt="caption").what == "text has no columns, and columns.prompt names 'caption'"


def test_a_column_s_type_is_refused_under_its_own_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": [1]}), tmp_path / "p.parquet")
    assert refused(["p.parquet"], tmp_path, prompt="caption").what == "column 'caption' is int64, not text"


def test_names_of_columns_are_no_part_of_a_plan(tmp_path: Path) -> None:
    write(tmp_path, a_csv="prompt,key\na cat,7\n", b_csv="caption,id\na cat,7\n")
    renamed = RunConfig(prompts=("b.csv",), columns=ColumnsConfig(prompt="caption", key="id"))
    plain = Plan.make(RunConfig(prompts=("a.csv",)), Policy(), tmp_path, identity={})
    assert Plan.make(renamed, Policy(), tmp_path, identity={}).plan_sha256 == plain.plan_sha256


# --- on an object store ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prompt files beside others, on a store in memory."""
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    uri = f"memory://{tmp_path.name}"
    files = {
        "in/day-9.csv": "prompt\na\nb\n", "in/day-10.csv": "prompt\nc\n", "in/_SUCCESS": "", "in/notes.md": "x",
        "in/more/day-1.jsonl": '{"prompt": "d"}\n', "big/weights.bin": "not to be fetched", "bad.csv": "promt\na\n",
    }  # fmt: skip
    for name, text in files.items():
        storage.write_file(storage.place(uri), name, text.encode())
    return uri


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("in/day-9.csv", "ab"), ("in", "abcd"), ("in/", "abcd"), ("in/*.csv", "abc"), ("in/**/*.jsonl", "d"), ("in/**", "abcd"),
        ("**/day-1*", "cd"), ("in/day-[0-9].csv", "ab"),
    ],
)  # fmt: skip
def test_files_folders_and_patterns_of_a_store(tmp_path: Path, bucket: str, name: str, prompts: str) -> None:
    assert "".join(request.prompt for request in prompts_of([f"{bucket}/{name}"], tmp_path)) == prompts
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".bin", ".md")]


def test_a_store_and_this_machine_together(tmp_path: Path, bucket: str) -> None:
    write(tmp_path, p_csv="prompt\nlocal\n")
    assert [r.prompt for r in prompts_of(["p.csv", f"{bucket}/in/day-10.csv"], tmp_path)] == ["local", "c"]


def test_a_store_gives_the_requests_that_this_machine_gives(tmp_path: Path, bucket: str) -> None:
    write(tmp_path, p_csv="prompt\na\nb\n")
    assert prompts_of([f"{bucket}/in/day-9.csv"], tmp_path) == prompts_of(["p.csv"], tmp_path)


@pytest.mark.parametrize(
    ("name", "where", "what"),
    [
        ("bad.csv", "bad.csv", "column 'prompt' is missing"),
        ("in/*.parquet", "in/*.parquet", "no prompt file in this pattern (0 other files)"),
        ("big", "big", "no prompt file in this folder (1 other files; the first is weights.bin)"),
        ("none.csv", "none.csv", "there is no such file or folder"),
    ],
)
def test_what_is_wrong_on_a_store_is_named_by_its_uri(tmp_path: Path, bucket: str, name: str, where: str, what: str) -> None:
    error = refused([f"{bucket}/{name}"], tmp_path)
    assert (error.where, error.what) == (f"{bucket}/{where}", what)


def test_a_bad_row_on_a_store_is_named_without_the_cache(tmp_path: Path, bucket: str) -> None:
    storage.write_file(storage.place(bucket), "in/day-11.csv", b"prompt,seed\ne,x\nf,1\n")
    problem = prompts_of([f"{bucket}/in/*.csv"], tmp_path)[3].problem
    assert problem == ("input.bad_seed", "in/day-11.csv: line 2: seed 'x' is not a whole number from 0 to 2^63-1")
