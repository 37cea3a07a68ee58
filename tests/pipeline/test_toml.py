"""A TOML file of any shape is a configuration or a refusal with the line, the key and how to write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.policy import Policy
from pipeline.refusal import line_of
from pipeline.settings import LARGEST, read_toml

RUN = b'prompts = "p.csv"\nworkers = 2\n\n[generation]\nsteps = 4\n'


def read(cls: type[Any], content: str | bytes, folder: Path) -> Any:
    path = folder / "file.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_toml(cls, path)


def refused(cls: type[Any], content: str | bytes, folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(cls, content, folder)
    assert caught.value.fix, "a refusal says what to do"
    return caught.value


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert read(RunConfig, b"\xef\xbb\xbf" + RUN, tmp_path) == read(RunConfig, RUN, tmp_path)


def test_line_ends_of_other_systems_are_no_fault(tmp_path: Path) -> None:
    assert read(RunConfig, RUN.replace(b"\n", b"\r\n"), tmp_path) == read(RunConfig, RUN, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    error = refused(RunConfig, RUN.decode().encode(encoding), tmp_path)
    assert error.what == "is not UTF-8 text"
    assert "Save it as UTF-8" in error.fix


def test_a_byte_that_is_no_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    error = refused(RunConfig, 'prompts = "p.csv"\ndataset_id = "größe"\n'.encode("latin-1"), tmp_path)
    assert error.what == "is not UTF-8 text (byte 0xf6)"
    assert error.where.endswith("file.toml, line 2")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        read_toml(RunConfig, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file does not exist"):
        read_toml(RunConfig, tmp_path / "none.toml")


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / "a\0b.toml", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_toml(RunConfig, path)


def test_a_file_far_too_large_is_not_read(tmp_path: Path) -> None:
    assert refused(RunConfig, b"#" * (LARGEST + 1), tmp_path).what == "is larger than 1 MiB"


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("workers = 1\nworkers = 2\n", "line 2", "keep one of them"),
        ("[model]\npath = 'a'\n[model]\n", "line 3", "keep one of them"),
        ("[[ladder]]\nkind = 'reseed'\n[ladder]\n", "line 3", "keep one of them"),
        ('prompts = "C:\\prompts.csv"\n', "line 1", "single quotes"),
        ("prompts = p.csv\n", "line 1", "double quotes"),
        ("workers = True\n", "line 1", "double quotes"),
        ("workers\n", "line 1", "key = value"),
        ("just a sentence\n", "line 1", "key = value"),
        ('prompts = "p.csv\n', "line 1", "key = value"),
        ("{'prompts': 'p.csv'}", "line 1", "key = value"),
        ("a = " + "[" * 10_000, "nested too deeply", "key = value"),
        ("workers = " + "9" * 5000, "4300 digits", "key = value"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_toml_is_refused_with_its_line(text: str, what: str, fix: str, tmp_path: Path) -> None:
    error = refused(RunConfig, text, tmp_path)
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize(
    ("cls", "text", "where", "fix"),
    [
        (Policy, '[ladder]\nkind = "reseed"\n', "line 1: ladder", "Write [[ladder]] with double brackets"),
        (Policy, 'ladder = "reseed"\n', "line 1: ladder", "Write [[ladder]] with double brackets"),
        (Policy, 'ladder = ["reseed"]\n', "line 1: ladder no. 1", "Write [[ladder]] once for each entry"),
        (Policy, "ladder = 3\n", "line 1: ladder", "Write [[ladder]] with double brackets"),
        (Policy, '\n[[mark_ladder]]\nkind = "reseed"\n[[mark_ladder]]\nfocus = 2\n', "line 4: mark_ladder no. 2", "kind = "),
        (Policy, "[[ladder]]\nkind = 3\n", "line 2: ladder no. 1: kind", "Use one of 'reseed'"),
        (Policy, '[[ladder]]\nkind = ["nudge"]\n', "line 2: ladder no. 1: kind", "Use one of 'reseed'"),
        (Policy, "[[copies]]\nk = 3\n", "line 1: copies", "Write [copies] once, with single brackets"),
        (Policy, "copies = 0.8\n", "line 1: copies", "Write [copies], its keys below"),
        (Policy, "[early]\nprobes = 0.2\n", "line 2: early.probes", "Write probes = [0.2]"),
        (Policy, '[early]\nprobes = "0.2"\n', "line 2: early.probes", "Write probes = [0.1, 0.2, 0.3]"),
        (Policy, "[early.probes]\nfirst = 0.2\n", "line 1: early.probes", "Write probes = [0.1, 0.2, 0.3]"),
        (Policy, "[early]\nprobes = [\n 0.1,\n 20\n]\n", "line 5: early.probes no. 2", "Did you mean 0.2?"),
        (Policy, "early.probes = [[0.1]]\n", "line 1: early.probes no. 1", "Set it from 0.001 to 0.999"),
        (Policy, "name = 2026-01-01\n", "line 1: name", 'Write name = "…"'),
        (Policy, "version = 2\n", "line 1: version", 'version = "2"'),
        (Policy, "[codes]\nallow = 3\n", "line 2: codes.allow", 'Write allow = ["…"]'),
        (Policy, "[marks]\nrequired = 'no'\n", "line 2: marks.required", "Write true or false"),
        (Policy, "[marks]\naction = 'Review'\n", "line 2: marks.action", "Did you mean 'review'?"),
        (Policy, "marks = {threshold = 50}\n", "line 1: marks.threshold", "Did you mean 0.5?"),
        (Policy, "marks.threshold = 50\n", "line 1: marks.threshold", "Did you mean 0.5?"),
        (Policy, "[marks]\n# percent\nthresold = 0.5\n", "line 3: marks.thresold", "Did you mean 'threshold'?"),
        (RunConfig, 'prompts = "p"\n[adapters]\npath = "x"\n', "line 2: adapters", "Write [[adapters]] with double brackets"),
        (RunConfig, 'prompts = "p"\nadapters = "x"\n', "line 2: adapters", "Write [[adapters]] with double brackets"),
        (RunConfig, 'prompts = "p"\nadapters = ["x"]\n', "line 2: adapters no. 1", "Write [[adapters]] once for each entry"),
        (RunConfig, 'prompts = "p"\n[[adapters]]\nweight = 1\n', "line 2: adapters no. 1", "Add it"),
        (RunConfig, 'prompts = "p"\nout = ["p"]\n', "line 2: out", 'Write out = "…"'),
        (RunConfig, "prompts = 7\n", "line 1: prompts", 'Write prompts = ["…"]'),
        (RunConfig, "prompts = []\n", "line 1: prompts", 'Write prompts = "…"'),
        (RunConfig, 'prompts = ""\n', "line 1: prompts", 'Write prompts = "…"'),
        (RunConfig, 'prompts = "a\\u0000b"\n', "line 1: prompts no. 1", "Take the character out"),
        (RunConfig, 'prompts = "p"\nmodel = "stickers"\n', "line 2: model", "Write [model], its keys below"),
        (Policy, '[[prompt.blocked]]\nwords = ["x"]\n', "line 1: prompt.blocked", "Write it as [[blocked]]"),
        (Policy, '[[blocked]]\npattern = "\\bx\\b"\n', "line 2: blocked no. 1: pattern", "the pattern in 'single quotes'"),
        (RunConfig, 'prompts = "p"\n[model]\nworkers = 2\n', "line 3: model.workers", "at the top, above the first [table]"),
        (RunConfig, 'prompts = "p"\nsteps = 20\n', "line 2: steps", "below [generation]"),
        (RunConfig, "workers = 2\n", "file.toml", "Add it: prompt file"),
        (RunConfig, 'prompts = "p"\ngeneration.diversity = 4\n', "diversity", "Write [generation.diversity], its keys"),
        (RunConfig, 'prompts = "p"\n[[generation.diversity]]\nsize = 4\n', "diversity", "Write [generation.diversity] once"),
        (RunConfig, 'prompts = "p"\n[generation]\nguidance = 3\n', "guidance", "'guidance_until' or 'guidance_scale'?"),
        (RunConfig, 'prompts = "p"\ndevice = "cpu"\n', "device", "Or write it below [model], [embedder] or [guards]"),
        (Policy, "threshold = 0.8\n", "threshold", "Write it below [copies], [marks], "),
        (Policy, "[copies]\nenabled = false\n", "copies.enabled", "Known keys here: threshold, confirm_threshold, k, "),
        (Policy, "[copies]\nthreshold = 0,85 # near\n", "file.toml", "decimal point in place of the comma: 0.85"),
        (Policy, '[[questions]]\nname = "a"\nask = "Cat?"\n', "ask", "Write at least 8 characters"),
        (Policy, '[[questions]]\nname = "a"\nask = ""\n', "ask", 'Write ask = "…"'),
    ],
    ids=lambda one: one[:30] if isinstance(one, str) else one.__name__,
)  # fmt: skip
def test_a_wrong_shape_is_refused_with_its_line_and_the_right_shape(
    cls: type[Any], text: str, where: str, fix: str, tmp_path: Path
) -> None:
    error = refused(cls, text, tmp_path)
    assert error.where.endswith(where)
    assert fix in error.fix


def test_a_key_is_named_below_those_tables_alone_where_its_value_fits(tmp_path: Path) -> None:
    assert refused(RunConfig, 'prompts = "p"\nsteps = 20\n', tmp_path).fix == "Write it below [generation]"  # no column's name


@pytest.mark.parametrize(
    ("cls", "other", "text", "fix"),
    [
        (RunConfig, Policy, 'prompts = "p"\n[copies]\nthreshold = 0.8\n', "'copies' is a key of the other one: "),
        (RunConfig, Policy, 'prompts = "p"\n[[ladder]]\nkind = "reseed"\n', "'ladder' is a key of the other one: "),
        (RunConfig, Policy, 'prompts = "p"\n[marks]\nthreshold = 0.8\n', "'marks.threshold' is a key of the other one: "),
        (Policy, RunConfig, '[model]\npath = "x"\n', "'model' is a key of the other one: "),
        (Policy, RunConfig, 'prompts = "p"\n', "Did you mean 'prompt'? 'prompts' is a key of the other one: "),
        (Policy, RunConfig, "treshold = 0.8\n", "Known keys: "),
    ],
)
def test_a_key_of_the_other_file_is_sent_there(cls: type[Any], other: type[Any], text: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_toml(cls, path, other=other, other_name="other one")
    assert caught.value.fix.startswith(fix)


def test_a_key_of_another_kind_of_rung_is_refused_with_the_kinds_own(tmp_path: Path) -> None:
    error = refused(Policy, '[[ladder]]\nkind = "renoise"\nalpha = 0.9\n', tmp_path)
    assert error.what == "'alpha' means nothing to kind 'renoise'"
    assert error.fix == "Leave it out; this kind knows resume_fraction, rollback"


def test_a_long_or_invisible_name_does_not_fill_the_message(tmp_path: Path) -> None:
    error = refused(Policy, f'"\\u001b[31m{"k" * 5000}" = 1\n', tmp_path)
    assert "\x1b" not in str(error)
    assert len(error.what) < 100


def test_the_search_for_a_line_gives_up_in_time(tmp_path: Path) -> None:
    numbers = ",\n".join(["0.1"] * 3000)
    assert refused(Policy, f"[early]\nprobes = [\n{numbers}\n]\n[early.more]\n", tmp_path).where.endswith("early.more")


@pytest.mark.parametrize(
    ("text", "loc", "line"),
    [
        ("a = 1\nb = 2\n", ("b",), 2),
        ("a = 1\nb = 2", ("b",), 2),
        ("[t]\n\n# c\nx = 1\n", ("t", "x"), 4),
        ("t.x = 1\n", ("t", "x"), 1),
        ('a = """\nb = 1\n"""\nb = 2\n', ("b",), 4),
        ("[[l]]\nx = 1\n[[l]]\nx = 2\n", ("l", 1, "x"), 4),
        ("a = 1\n", ("b",), 0),
        ("a = 1\n", (), 0),
    ],
)
def test_lines(text: str, loc: tuple[str | int, ...], line: int) -> None:
    assert line_of(text, loc) == line


WHOLE = RUN + b'[[adapters]]\npath = "x"\nweight = 0.5\n[model]\npath = "stickers"\nsize = 512\n'


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 6), st.binary(max_size=4)).map(
            lambda cut: WHOLE[: cut[0]] + cut[2] + WHOLE[cut[0] + cut[1] :]
        ),
    )
)
def test_any_bytes_are_a_configuration_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    try:
        assert isinstance(read(RunConfig, content, tmp_path), RunConfig)
    except ConfigError as error:
        assert error.where.startswith(str(tmp_path)) and error.fix
