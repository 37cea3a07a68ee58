"""Prompt files as people and programs write them: delimiters, encodings, gaps, rows that are cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import InputError
from jobs.run.prompts.requests import derived_seed, read_prompts
from pipeline.notes import Note
from pipeline.outcome import Request

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
QUOTES = 'put a prompt that holds a comma between double quotes: "a cat, sleeping"'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(path) in caught.value.where and caught.value.fix
    return caught.value


def plain(requests: list[Request]) -> list[tuple[str, str, int]]:
    return [(r.prompt, r.key, r.seed) for r in requests if r.problem is None]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_delimiter_and_line_end_gives_the_same_rows(tmp_path: Path, mark: str, end: str) -> None:
    quoted = f'"a cat{mark} sleeping"'
    path = write(tmp_path, "p.csv", end.join([mark.join(row) for row in (("prompt", "key", "seed"), (quoted, "a", "1"))]) + end)
    assert plain(read_prompts(path)) == [(f"a cat{mark} sleeping", "a", 1)]


def test_a_comma_in_a_semicolon_file_belongs_to_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "prompt;key;seed\na cat;a;1\na dog, sitting;b;2\n")
    assert plain(read_prompts(path)) == [("a cat", "a", 1), ("a dog, sitting", "b", 2)]


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_a_delimiter_that_was_found_is_a_note(tmp_path: Path, mark: str, name: str) -> None:
    notes: list[Note] = []
    read_prompts(write(tmp_path, "p.csv", f"prompt{mark}key\na cat{mark}a\n"), notes=notes)
    assert notes == [Note("prompts", f"the fields of p.csv are separated by {name}")]


def test_tsv_and_the_line_that_spreadsheets_put_first(tmp_path: Path) -> None:
    assert plain(read_prompts(write(tmp_path, "p.tsv", "prompt\tkey\tseed\na cat\ta\t1\n"))) == [("a cat", "a", 1)]
    sep = read_prompts(write(tmp_path, "p.csv", "sep=;\nprompt;key;seed\na cat;a;1\n;b;2\n"))
    assert plain(sep) == [("a cat", "a", 1)]
    assert sep[1].problem == ("input.empty_prompt", "line 4: the prompt is empty")


def test_fields_whose_header_lacks_their_names_are_a_note(tmp_path: Path) -> None:
    notes: list[Note] = []
    read_prompts(write(tmp_path, "p.csv", "prompt\na cat;a;1\na fox;b;2\n"), notes=notes)
    assert [note.text for note in notes] == [
        "every prompt holds 2 semicolons; if they separate fields, name these in the header: prompt;key;seed"
    ]
    notes.clear()
    read_prompts(write(tmp_path, "q.csv", "prompt\na cat; sleeping\na fox\n"), notes=notes)
    assert notes == []


def test_the_hint_about_a_missing_column_is_true_for_every_delimiter(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "p.csv", "promt;key\na cat;a\n"))
    assert error.fix == "Rename column 'promt' to 'prompt'"
    assert plain(read_prompts(write(tmp_path, "p.csv", "prompt;key;seed\na cat;a;3\n"))) == [("a cat", "a", 3)]


def test_a_column_that_may_be_a_slip_is_a_note(tmp_path: Path) -> None:
    notes: list[Note] = []
    read_prompts(write(tmp_path, "p.csv", "prompt,Seed,Negative Prompt,origin\na cat,1,dog,x\n"), notes=notes)
    assert [note.text for note in notes] == [
        "column 'Seed' is kept as a column of your own; if it is meant as 'seed', rename it",
        "column 'Negative Prompt' is kept as a column of your own; if it is meant as 'negative_prompt', rename it",
    ]


SEEDS: list[tuple[Any, int | None]] = [
    (7, 7), (7.0, 7), ("7", 7), ("7.0", 7), ("7.", 7), (" 7 ", 7), ("7e2", 700), (0, 0), ("-0", 0), ("007", 7),
    (2**63 - 1, 2**63 - 1), (str(2**63 - 1), 2**63 - 1),
    (7.5, None), ("7.5", None), (-1, None), ("-1", None), (-1.0, None), (True, None), ("true", None), ("seven", None),
    ("1_000", None), ("٧", None), ("0x7", None), (2**63, None), (str(2**63), None), (float(2**53), None),
    ("9007199254740992.0", None), (1e300, None), ("1e300", None), ("inf", None), (float("inf"), None), ("9" * 400, None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "seed"), SEEDS, ids=lambda v: str(v)[:24])
def test_a_seed_is_the_same_in_every_kind_of_file(tmp_path: Path, value: Any, seed: int | None) -> None:
    """Where the kind of file can hold it at all: a CSV holds text, a column of Parquet one type."""
    files = [write(tmp_path, "p.jsonl", f'{{"prompt": "a", "seed": {json.dumps(value)}}}\n{{"prompt": "b"}}\n')]
    files.append(write(tmp_path, "p.csv", f"prompt,seed\na,{value}\nb,\n"))
    if not isinstance(value, bool) and not (isinstance(value, int) and value > 2**63 - 1):
        pq.write_table(pa.table({"prompt": ["a", "b"], "seed": [value, None]}), tmp_path / "p.parquet")
        files.append(tmp_path / "p.parquet")
    for path in files:
        first, second = read_prompts(path)
        assert (first.problem and first.problem[0]) == (None if seed is not None else "input.bad_seed"), path.name
        assert seed is None or first.seed == seed
        assert second.problem is None and second.seed == derived_seed(0, "row-000001", 0)


@pytest.mark.parametrize("gap", ["", "nan", "NaN", "None", "null", "<NA>", " "])
def test_a_gap_is_no_seed_as_programs_write_it(tmp_path: Path, gap: str) -> None:
    requests = read_prompts(write(tmp_path, "p.csv", f"prompt,key,seed\na cat,a,7.0\na dog,b,{gap}\na fox,c,9.0\n"))
    assert plain(requests) == [("a cat", "a", 7), ("a dog", "b", derived_seed(0, "b", 0)), ("a fox", "c", 9)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.txt"])
def test_encodings_with_a_mark_are_recognised(tmp_path: Path, encoding: str, name: str) -> None:
    text = {"p.csv": "prompt\nein Bär\n", "p.jsonl": '{"prompt": "ein Bär"}\n', "p.txt": "ein Bär\n"}[name]
    assert [r.prompt for r in read_prompts(write(tmp_path, name, text.encode(encoding)))] == ["ein Bär"]


def test_encodings_without_a_mark_are_refused_with_the_place(tmp_path: Path) -> None:
    latin = refused(write(tmp_path, "p.csv", "prompt\nein Bär\n".encode("latin-1")))
    assert latin.what == "not UTF-8 text (byte 12): line 2 holds 0xe4"
    assert "iconv -f WINDOWS-1252 -t UTF-8 p.csv" in latin.fix
    wide = refused(write(tmp_path, "q.csv", "prompt\nein Bär\n".encode("utf-16-le")))
    assert "UTF-16" in wide.what and "iconv -f UTF-16LE" in wide.fix


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("p.jsonl.gz", gzip.compress(b"{}", mtime=0), "it is compressed", "gunzip --keep p.jsonl.gz"),
        ("p.csv", gzip.compress(b"prompt", mtime=0), "is not text: it is compressed", "gunzip --keep p.csv"),
        ("p.csv", b"PAR1 \x00\x00", "it is a Parquet file", ".parquet"),
        ("p.json", '[{"prompt": "a"}]', "it is one JSON document", "jq -c '.[]' p.json"),
        ("p.jsonl", '[\n {"prompt": "a"},\n {"prompt": ""}]', "one JSON array, not one object a line", "jq -c '.[]' p.jsonl"),
        ("p.xlsx", b"PK\x03\x04", "it is a spreadsheet", "CSV"),
        ("p.csv", "prompt,key,seed\n", "no prompts", "one row"),
        ("p.csv", 'prompt,key\n"a cat,a\nan owl,b\n', "unexpected end of data", "double quote that opens in line 2"),
        ("p.csv", 'prompt,key\n"a 12" plate",a\n', "not valid CSV", 'as two: "a 12"" plate"'),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b', "not valid JSON", "cut short"),
        ("p.jsonl", '[{"prompt": "a"}, {"prompt": "b"}]', "one JSON array, not one object a line", "jq -c '.[]' p.jsonl"),
        ("p.jsonl", '{\n "prompt": "a"\n}\n', "a JSON object over several lines", "jq -c . p.jsonl"),
        ("p.jsonl", '{\n "prompt": "a"\n}\n{\n "prompt": "b"\n}\n', "a JSON object over several lines", "jq -c . p.jsonl"),
        ("p.jsonl", "{'prompt': 'a'}\n{'prompt': 'b'}\n", "none of its 2 rows", "one JSON object a line"),
        ("p.jsonl", f'{{"prompt": "a", "x": {"9" * 5000}}}\n', "a number of more than 4,300 digits", "one JSON object a line"),
        ("p.csv", f"prompt,key\n{'a cat ' * 30_000},a\n", "a field has more than 131,072 characters", "shorten the field"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_the_way_out(
    tmp_path: Path, name: str, content: str | bytes, what: str, fix: str
) -> None:
    error = refused(write(tmp_path, name, content))
    assert what in error.what and fix in error.fix


def test_a_folder_and_a_name_that_is_too_long_are_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path).what
    assert "cannot be opened" in refused(tmp_path / ("x" * 300 + ".csv")).what
    assert "not an ordinary file" in refused(Path("/dev/null")).what


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.csv", "prompt,key\na cat,a\na dog, sitting,b\n", f"line 3: 3 fields where the header has 2; {QUOTES}"),
        ("p.csv", 'prompt,key\n"a\ncat",a\nonly\n', f"line 4: 1 field where the header has 2; {QUOTES}"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: not valid JSON (Expecting value: line 1 column 12 (char 11))"),
        ("p.jsonl", '{"prompt": "a"}\n["cat"]\n', 'line 2: a list, not an object: write {"prompt": "…"}'),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', "line 2: 'prompt' appears twice"),
        ("p.csv", "prompt,key\na,a\nprompt,key\n", "line 3: repeats the header: files were put together; remove the line"),
        ("p.tsv", "prompt\ta\nx\ty\n\ufeffprompt\ta\n", "line 3: repeats the header: files were put together; remove the line"),
    ],
)  # fmt: skip
def test_one_bad_row_stops_no_other_and_is_named_by_its_line(tmp_path: Path, name: str, text: str, problem: str) -> None:
    good, bad = read_prompts(write(tmp_path, name, text))
    assert good.problem is None
    assert bad.problem == ("input.bad_row", problem)
    assert (bad.row_no, bad.key) == (1, "row-000001")


def test_a_nul_is_a_bad_row(tmp_path: Path) -> None:
    good, bad = read_prompts(write(tmp_path, "p.txt", "a cat, sleeping\na\0b\n"))
    assert good.problem is None
    assert bad.problem == ("input.bad_prompt", "line 2: the prompt holds a NUL character (character 2)")
    assert bad.prompt == "a\ufffdb"


def test_a_file_of_bad_rows_alone_is_refused_with_the_first(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "p.csv", "prompt,seed\na cat,7.5\n,\na dog,x\n"))
    assert error.what == "none of its 3 rows can be drawn; the first: line 2: seed '7.5' is not a whole number from 0 to 2^63-1"
    assert error.fix == "Write a whole number from 0 to 2^63-1, or leave the field empty"


def test_a_very_long_prompt_is_kept(tmp_path: Path) -> None:
    long = "a cat " * 20_000
    assert read_prompts(write(tmp_path, "p.csv", f'prompt\n"{long}"\n'))[0].prompt == long


@pytest.mark.parametrize("column", ["prompt", "negative_prompt"])
def test_a_file_in_a_prompts_place_is_a_bad_row(tmp_path: Path, column: str) -> None:
    rows = [{"prompt": "a", "negative_prompt": "b"} | {column: "a cat " * 200_000}, {"prompt": "a", "negative_prompt": "b"}]
    bad, good = read_prompts(write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows))))
    assert good.problem is None and bad.problem is not None
    assert bad.problem[0] == "input.bad_prompt" and "has 1,200,000 characters, more than 1,000,000" in bad.problem[1]
    assert len(bad.prompt) + len(bad.negative_prompt) < 2000


def test_a_header_of_one_column_may_be_a_prompt(tmp_path: Path) -> None:
    assert [one.prompt for one in read_prompts(write(tmp_path, "p.csv", "prompt\nprompt\n"))] == ["prompt"]


def test_a_second_mark_of_the_encoding_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert plain(read_prompts(write(tmp_path, "p.csv", "\ufeff\ufeffprompt,key,seed\na,k,1\n"))) == [("a", "k", 1)]


@pytest.mark.parametrize(("name", "meant"), [("negative", "negative_prompt"), ("CFG Scale", "guidance_scale")])
def test_the_names_of_other_programs_are_a_note(tmp_path: Path, name: str, meant: str) -> None:
    notes: list[Note] = []
    read_prompts(write(tmp_path, "p.csv", f"prompt,{name}\na cat,x\n"), notes=notes)
    assert [note.text for note in notes] == [
        f"column {name!r} is kept as a column of your own; if it is meant as {meant!r}, rename it"
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.timestamp("us")),
        pa.array([1], pa.timestamp("s", tz="Mars/Phobos")),
        pa.array([2**62], pa.time64("us")),
    ],
    ids=lambda column: str(column.type),
)
def test_a_time_that_cannot_be_held_is_named_by_its_column(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "when": column}), path)
    error = refused(path)
    assert error.what.startswith("column 'when' cannot be read (") and error.fix.startswith("Write 'when' as text")


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200), name=st.sampled_from(["p.csv", "p.tsv", "p.jsonl", "p.txt", "p.parquet"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        requests = read_prompts(path)
    except InputError as error:
        assert error.where and error.fix
    else:
        assert all(r.key and 0 <= r.seed < 2**63 for r in requests)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "key", "seed", "other"]), VALUES), max_size=6))
def test_no_row_of_jsonl_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        requests = read_prompts(path)
    except InputError as error:
        assert error.where and error.fix
    else:
        assert [r.row_no for r in requests] == list(range(len(rows)))
