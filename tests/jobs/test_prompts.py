from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import InputError
from jobs.run.prompts.requests import AdapterColumn, derived_seed, read_prompts, read_sources
from jobs.run.prompts.sources import Source
from pipeline.notes import Note
from pipeline.outcome import Request

CSV = 'prompt,key,seed,negative_prompt,origin\n"a cat, sleeping",a,7,dog,x\nan owl,b,,,y\n'
ORIGINS = ["x", "y"]  # a column of the caller's own


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_table(folder: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), folder / "p.parquet")
    return folder / "p.parquet"


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a cat, sleeping", "key": "a", "seed": 7, "negative_prompt": "dog"}, {"prompt": "an owl", "key": "b"}]
    from_csv = read_prompts(write(tmp_path, "p.csv", CSV), base_seed=3)
    rows = [{**row, "origin": origin} for row, origin in zip(rows, ORIGINS, strict=True)]
    from_jsonl = read_prompts(write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows))), base_seed=3)
    table = {"prompt": [r["prompt"] for r in rows], "key": ["a", "b"], "seed": [7, None], "negative_prompt": ["dog", None]}
    table |= {"origin": ORIGINS}
    assert from_csv == from_jsonl == read_prompts(write_table(tmp_path, table), base_seed=3)
    first, second = from_csv
    assert (first.row_no, first.key, first.prompt, first.negative_prompt, first.seed) == (0, "a", "a cat, sleeping", "dog", 7)
    assert second.seed == derived_seed(3, "b", 0) and second.problem is None


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    requests = read_prompts(write(tmp_path, "p.txt", "﻿a cat\r\nan owl\u2028flying\r\n\r\na dog\r\n\r\n"))
    assert [r.prompt for r in requests] == ["a cat", "an owl\u2028flying", "", "a dog"]
    assert [r.key for r in requests] == [f"row-{n:06d}" for n in range(4)]
    assert [r.problem and r.problem[0] for r in requests] == [None, None, "input.empty_prompt", None]


def test_derived_seeds_depend_on_key_and_base_seed_only(tmp_path: Path) -> None:
    one = read_prompts(write(tmp_path, "p.csv", "prompt,key\ncat,a\nowl,b\n"))
    other = read_prompts(write(tmp_path, "q.csv", "prompt,key\nfox,c\nowl,b\ncat,a\n"))
    assert one[0].seed == other[2].seed and one[1].seed == other[1].seed
    assert len({derived_seed(base, key, n) for base in (0, 1) for key in ("a", "b") for n in (0, 1)}) == 8


def test_repeats_have_keys_and_seeds_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "prompt,key,seed\ncat,a,5\nowl,b,\n")
    single, many = read_prompts(path), read_prompts(path, samples_per_prompt=3)
    assert [r.key for r in many] == ["a#1", "a#2", "a#3", "b#1", "b#2", "b#3"]
    assert [r.row_no for r in many] == list(range(6))
    assert (many[0].seed, many[3].seed) == (single[0].seed, single[1].seed) and single[0].seed == 5
    assert len({r.seed for r in many}) == 6


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"prompt": "  ", "key": "b"}', "input.empty_prompt"),
        ('{"key": "b"}', "input.empty_prompt"),
        ('{"prompt": 5, "key": "b"}', "input.bad_prompt"),
        ('{"prompt": "\\ud800", "key": "b"}', "input.bad_prompt"),
        ('{"prompt": "owl", "negative_prompt": [1], "key": "b"}', "input.bad_prompt"),
        ('{"prompt": "owl", "key": " "}', "input.empty_key"),
        ('{"prompt": "owl", "key": null}', "input.empty_key"),
        ('{"prompt": "owl"}', "input.empty_key"),
        ('{"prompt": "owl", "key": {"a": 1}}', "input.empty_key"),
        ('{"prompt": "owl", "key": "a "}', "input.bad_key"),
        ('{"prompt": "owl", "key": "a\\u00a0"}', "input.bad_key"),
        ('{"prompt": "owl", "key": "\\ta"}', "input.bad_key"),
        ('{"prompt": "owl", "key": "\\u200ba"}', "input.bad_key"),
        ('{"prompt": "owl", "key": "a\\u2060", "steps": 3}', "input.bad_key"),
        ('{"prompt": "owl", "key": "a\\u3164"}', "input.bad_key"),
        ('{"prompt": "owl", "key": "\\ufeffa"}', "input.bad_key"),
        ('{"prompt": "owl", "key": "a\\n"}', "input.bad_key"),
        ('{"prompt": "owl", "key": "b", "seed": "seven"}', "input.bad_seed"),
        ('{"prompt": "owl", "key": "b", "seed": -1}', "input.bad_seed"),
        ('{"prompt": "owl", "key": "b", "seed": 1.5}', "input.bad_seed"),
        ('{"prompt": "owl", "key": "b", "seed": true}', "input.bad_seed"),
        ('{"prompt": "owl", "key": "b", "seed": 9223372036854775808}', "input.bad_seed"),
        ('{"prompt": "owl", "key": "b", "seed": 1e400}', "input.bad_seed"),
        ('{"prompt": "owl", "key": "b", "seed": NaN}', None),
    ],
)
def test_one_bad_row_becomes_a_request_with_a_problem(tmp_path: Path, line: str, code: str | None) -> None:
    good, bad = read_prompts(write(tmp_path, "p.jsonl", '{"prompt": "cat", "key": "a"}\n' + line))
    assert good.problem is None
    assert (bad.problem and bad.problem[0]) == code
    assert bad.key and 0 <= bad.seed < 2**63
    bad.prompt.encode()  # whatever is kept can be stored


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),  # composed, and a letter with an accent behind it
        ("ab", "a\u200bb"),
        ("a\u200cb", "a\u2060b"),  # neither is what it looks like
        ("a b", "a\u00a0b"),
        ("a b", "a  b"),
        ("ab", "a\u00adb"),
    ],
)
def test_keys_that_differ_in_what_cannot_be_seen_are_noted(tmp_path: Path, one: str, other: str) -> None:
    notes: list[Note] = []
    lines = [f'{{"prompt": "owl", "key": "{key}"}}' for key in ("first", one, other)]
    found = read_prompts(write(tmp_path, "p.jsonl", "\n".join(lines)), notes=notes)
    assert [request.key for request in found] == ["first", one, other] and not any(request.problem for request in found)
    (note,) = notes
    assert note.text.startswith("keys look the same and are different: ") and note.text.endswith("Each is a request of its own")
    assert f"{one!a} (line 2)" in note.text and f"{other!a} (line 3)" in note.text


def test_keys_that_look_different_are_not_noted_and_many_pairs_are_counted(tmp_path: Path) -> None:
    notes: list[Note] = []
    keys = ["ab", "a b", "\u00e9", "e", "\u6797", "\u672b", *(f"n{i}" for i in range(5))]
    text = "\n".join(f'{{"prompt": "owl", "key": "{key}"}}' for key in keys)
    read_prompts(write(tmp_path, "p.jsonl", text), notes=notes)
    assert not notes
    text += "".join(f'\n{{"prompt": "owl", "key": "n\u2060{i}"}}' for i in range(5))
    read_prompts(write(tmp_path, "q.jsonl", text), notes=notes)
    assert "; and 2 more" in notes[0].text


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("x ", "the key 'x' ends with space (U+0020)"),
        ("\u00a0x", "the key 'x' begins with no-break space (U+00A0)"),
        ("x\u200b", r"the key 'x\u200b' ends with zero width space (U+200B)"),
        ("x\x07", r"the key 'x\x07' ends with a control character (U+0007)"),
    ],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_two_keys_that_look_the_same_are_a_problem_of_the_odd_one(tmp_path: Path, key: str, what: str, samples: int) -> None:
    path = write(tmp_path, "p.csv", f"prompt,key\ncat,x\nowl,{key}\n")
    found = read_prompts(path, samples_per_prompt=samples)
    assert [one.problem is None for one in found] == [True] * samples + [False] * samples
    assert found[-1].problem == ("input.bad_key", f"line 3: {what}, so that it looks like another; recorded as row-000001")
    with pytest.raises(InputError) as caught:
        read_prompts(write(tmp_path, "q.csv", f"prompt,key\nowl,{key}\n"))
    assert what in caught.value.what and caught.value.fix == "Remove what cannot be seen at the ends of the key"


@pytest.mark.parametrize(
    "key",
    [
        "a b",
        "-x_",
        "(7)",
        "é",
        "猫",
        "\U0001f469\u200d\U0001f680",
        "\u2764\ufe0f",
        "🏴\U000e0067\U000e0062\U000e007f",
        "a\u200cb",
    ],
)
def test_keys_whose_ends_are_seen_are_kept(tmp_path: Path, key: str) -> None:
    (found,) = read_prompts(write(tmp_path, "p.csv", f"prompt,key\ncat,{key}\n"))
    assert (found.key, found.problem) == (key, None)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("p.csv", "text,key\ncat,a\n", "column 'prompt' is missing"),
        ("p.csv", "promt\ncat\n", "Rename column 'promt' to 'prompt'"),
        ("p.csv", "prompt,prompt\ncat,dog\n", "appears twice"),
        ("p.csv", "prompt,key\na cat, sleeping,a\n", "3 fields where the header has 2"),
        ("p.csv", 'prompt\n"a cat\n', "not valid CSV"),
        ("p.csv", "prompt\n", "no prompts"),
        ("p.csv", "", "no prompts"),
        ("p.txt", "\n\n", "no prompts"),
        ("p.jsonl", "", "no prompts"),
        ("p.csv", "prompt,key\ncat,a\nowl,b\ndog,a\n", "line 2 and line 4: duplicate key 'a'"),
        ("p.jsonl", '{"prompt": "cat"}\n{"prompt": ', "line 2: not valid JSON"),
        ("p.jsonl", '["cat"]', "a list, not an object"),
        ("p.jsonl", "[" * 100_000, "not valid JSON"),
        ("p.jsonl", '{"text": "cat"}', "column 'prompt' is missing"),
        ("p.jsonl", '{"prompt": 1}\n{"prompt": 2}', "column 'prompt' holds int"),
        ("p.csv", b"prompt\nca\xff\n", "not UTF-8 text (byte 9)"),
        ("p.parquet", b"PAR1 not really", "not a readable Parquet file"),
        ("p.xlsx", b"", "unknown kind of prompt file '.xlsx'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, name: str, content: str | bytes, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(write(tmp_path, name, content))
    assert what in str(caught.value)
    assert str(tmp_path / name) in caught.value.where and caught.value.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"prompt": [1, 2]}, "column 'prompt' is int64, not text"),
        ({"prompt": ["a", "b"], "key": [1.5, 2.5]}, "column 'key' is double"),
        ({"prompt": ["a", "b"], "seed": [[1], [2]]}, "column 'seed' is list"),
        ({"prompt": ["a", "b"], "negative_prompt": [1, 2]}, "column 'negative_prompt' is int64"),
        ({"caption": ["a", "b"]}, "column 'prompt' is missing"),
        ({"prompt": ["a", "b"], "key": [4, 4]}, "row 0 and row 1: duplicate key '4'"),
    ],
)
def test_wrong_columns_of_parquet_are_refused(tmp_path: Path, columns: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_prompts(write_table(tmp_path, columns))


def test_parquet_that_pandas_wrote(tmp_path: Path) -> None:
    columns = {"prompt": pa.array(["a", "b"]).dictionary_encode(), "key": [1, 2], "seed": [3.0, None]}
    first, second = read_prompts(write_table(tmp_path, columns))
    assert (first.key, first.seed, first.prompt) == ("1", 3, "a")
    assert second.seed == derived_seed(0, "2", 0)


# --- adapters of single rows -----------------------------------------------------------------------------------------------

STYLES = AdapterColumn(("style", "ink"))


def adapters_of(tmp_path: Path, text: str, column: AdapterColumn = STYLES) -> list[Request]:
    return read_sources([Source(write(tmp_path, "p.csv", text))], adapters=column)


def test_rows_name_their_adapters(tmp_path: Path) -> None:
    rows = adapters_of(tmp_path, 'prompt,adapter\ncat,style\nowl,"style : .8,ink"\nfox,\n')
    assert [row.adapter for row in rows] == ["style", "style:0.8, ink", ""]
    assert [row.columns for row in rows] == ["", "", ""]


@pytest.mark.parametrize(
    ("value", "what"),
    [("stile", "there is no adapter 'stile'.*write 'style'"), ("style:11", "'11' of 'style' is no number from -10 to 10"),
     ("style; ink:2", "write 'style, ink:2'"), ("style:x", "'x' of 'style'"), ('"style, style"', "named twice")],
)  # fmt: skip
def test_a_slip_in_the_name_is_one_bad_row(tmp_path: Path, value: str, what: str) -> None:
    good, bad = adapters_of(tmp_path, f"prompt,adapter\ncat,ink\nowl,{value}\n")
    assert good.problem is None and bad.problem is not None
    assert bad.problem[0] == "input.bad_adapter" and re.search(what, bad.problem[1])


def test_without_such_adapters_the_column_is_the_callers_own(tmp_path: Path) -> None:
    (row,) = adapters_of(tmp_path, "prompt,adapter\ncat,usb-c\n", AdapterColumn())
    assert (row.adapter, row.columns, row.problem) == ("", '{"adapter":"usb-c"}', None)


def test_the_column_may_have_another_name(tmp_path: Path) -> None:
    (row,) = adapters_of(tmp_path, "prompt,look,adapter\ncat,ink,usb-c\n", AdapterColumn(("ink",), "look", True))
    assert (row.adapter, row.columns) == ("ink", '{"adapter":"usb-c"}')


def test_a_column_that_the_run_file_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no column 'look' \(columns.adapter\)"):
        adapters_of(tmp_path, "prompt\ncat\n", AdapterColumn(("ink",), "look", True))
