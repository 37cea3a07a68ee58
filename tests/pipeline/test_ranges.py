"""Every number of run file and policy has a finite range, and what is outside is refused by name: of keys to come as well."""

from __future__ import annotations

import math
import typing
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.fields import Key, Range, keys
from pipeline.policy import Policy
from pipeline.settings import from_dict

VALUES = [(cls, key) for cls in (RunConfig, Policy) for key in keys(cls) if key.shape in ("value", "list")]
NUMBERS = [(cls, key) for cls, key in VALUES if key.type in (int, float)]
NAMES = [".".join(map(str, key.loc)) for _, key in NUMBERS]
every_number = pytest.mark.parametrize(("cls", "key"), NUMBERS, ids=NAMES)


ENTRIES: dict[str, dict[str, Any]] = {  # what an entry of a list cannot be without
    "adapters": {"path": "adapter"}, "guards": {"name": "toy"}, "classifiers": {"name": "toy", "model": "toy", "labels": "toy"},
    "questions": {"name": "toy", "ask": "Is it a toy?"}, "blocked": {"words": "toy"},
}  # fmt: skip


def written(cls: type[Any], key: Key, value: Any) -> dict[str, Any]:
    """Plain data as a file would give it, with the value at the key."""
    data: dict[str, Any] = {"prompts": "p.csv"} if cls is RunConfig else {}
    table, parts = data, list(key.loc)
    while len(parts) > 1:
        name = parts.pop(0)
        if parts[0] == 0:  # an entry of a list, and its kind where there are several
            parts.pop(0)
            entry = {"kind": parts.pop(0)} if len(parts) > 1 else dict(ENTRIES[name])
            table[name], table = [entry], entry
        else:
            table = table.setdefault(name, {})
    table[parts[0]] = [value] if key.shape == "list" else value
    return data


def refused(cls: type[Any], key: Key, value: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, written(cls, key, value), where="file.toml")
    return caught.value


def outside(key: Key) -> list[float]:
    assert key.range is not None
    low, high = key.range.low, key.range.high
    if key.type is int:
        return [int(low) - 1, int(high) + 1]
    return [low if key.range.above else math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]


def test_there_are_numbers_to_walk_over() -> None:
    assert len(NUMBERS) > 55  # those of the laboratory's methods are walked over in tests/lab/test_steering_methods.py


def test_no_value_is_of_a_type_that_the_walk_would_miss() -> None:
    kinds = {key.type for _, key in VALUES if typing.get_origin(key.type) is not typing.Literal}
    assert kinds == {int, float, str, bool}


@every_number
def test_every_number_has_a_finite_range(cls: type[Any], key: Key) -> None:
    assert key.range is not None
    assert math.isfinite(key.range.low) and math.isfinite(key.range.high) and key.range.low < key.range.high


@every_number
def test_the_default_is_in_the_range(cls: type[Any], key: Key) -> None:
    assert key.range is not None
    for value in key.default if key.shape == "list" else [key.default]:
        assert value is None or value in key.range or (key.auto and value == "auto")


@every_number
def test_the_ends_of_the_range_are_in_it(cls: type[Any], key: Key) -> None:
    assert key.range is not None
    for value in [key.range.high, *([] if key.range.above else [key.range.low])]:
        try:
            from_dict(cls, written(cls, key, value), where="file.toml")
        except ConfigError as error:
            assert "must be" not in error.what  # values allowed alone may contradict others


@every_number
def test_a_number_just_outside_is_refused_with_key_and_range(cls: type[Any], key: Key) -> None:
    for value in outside(key):
        error = refused(cls, key, value)
        assert str(key.loc[-1]) in error.where
        assert str(key.range) in error.what


@every_number
def test_what_is_no_finite_number_is_refused_with_key_and_range(cls: type[Any], key: Key) -> None:
    numbers = [math.nan, math.inf, -math.inf, 10**400, -(10**400), 10**5000]
    for value in [*numbers, "1", "many", True, False, {}, [], date(2026, 1, 1)]:
        error = refused(cls, key, value)
        assert str(key.loc[-1]) in error.where
        assert str(key.range) in error.what


OTHERS = [(cls, key) for cls, key in VALUES if key.type not in (int, float) and key.loc[-1] != "kind"]


@pytest.mark.parametrize(("cls", "key"), OTHERS, ids=[".".join(map(str, key.loc)) for _, key in OTHERS])
def test_what_is_of_another_type_is_refused_with_the_key(cls: type[Any], key: Key) -> None:
    wrong = [7, 10**5000, 0.5, {}, [[]], date(2026, 1, 1), "\x1b[31m", *(["true"] if key.type is bool else [True])]
    for value in wrong:
        assert str(key.loc[-1]) in refused(cls, key, value).where


@pytest.mark.parametrize(
    ("cls", "data", "hint"),
    [
        (Policy, {"copies": {"threshold": 85}}, "Did you mean 0.85?"),
        (Policy, {"copies": {"threshold": 76.7}}, "Did you mean 0.767?"),
        (Policy, {"marks": {"threshold": 50}}, "Did you mean 0.5?"),
        (Policy, {"text": {"threshold": -0.7}}, "Did you mean 0.7?"),
        (Policy, {"unsafe": {"threshold": "0,8"}}, "Write it without quotes: 0.8."),
        (Policy, {"unsafe": {"threshold": "80 %"}}, "Write it without quotes: 0.8."),
        (Policy, {"early": {"probes": [10, 20]}}, "Did you mean 0.1?"),
        (Policy, {"copies": {"k": 3.0}}, "Did you mean 3?"),
        (RunConfig, {"retention_days": -30}, "Did you mean 30?"),
        (RunConfig, {"base_seed": -1}, "No number stands for a random seed."),
        (RunConfig, {"generation": {"guidance_until": 80}}, "Did you mean 0.8?"),
        (RunConfig, {"workers": "4"}, "Write it without quotes: 4."),
        (RunConfig, {"workers": "all"}, 'Set it from 1 to 1024, or remove the key to use the default "auto"'),
        (RunConfig, {"max_error_rate": 25}, "Did you mean 0.25?"),
        (RunConfig, {"adapters": [{"path": "a", "weight": 80}]}, "Did you mean 0.8?"),
    ],
    ids=str,
)
def test_the_likely_slip_is_named(cls: type[Any], data: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, {"prompts": "p.csv", **data} if cls is RunConfig else data, where="file.toml")
    assert caught.value.fix.startswith(hint)


@pytest.mark.parametrize(
    ("table", "instead"),
    [
        ({"copies": {"threshold": 0.0}}, "remove the key to use the calibrated operating point of the index"),
        ({"early": {"enabled": True, "threshold": 0}}, "remove the key to use the calibrated ones, by noise level"),
        ({"marks": {"threshold": 0}}, "remove the key to use the default 0.5"),
        ({"max_evals": 0}, "remove the key to use as many as the ladders need"),
    ],
    ids=str,
)
def test_zero_does_not_stand_for_something_else(table: dict[str, Any], instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Policy, table, where="policy.toml")
    assert caught.value.fix.endswith(instead)


def test_two_is_no_percentage() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Policy, {"copies": {"threshold": 2}}, where="policy.toml")
    assert caught.value.fix.startswith("Set it above 0 and at most 1")


def test_a_confirm_threshold_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"copies\.confirm_threshold: has no effect without copies\.threshold"):
        from_dict(Policy, {"copies": {"confirm_threshold": 0.6}}, where="policy.toml")


def test_an_empty_list_of_probes_does_not_switch_them_off() -> None:
    with pytest.raises(ConfigError, match=r"early\.probes: must not be empty"):
        from_dict(Policy, {"early": {"enabled": True, "probes": []}}, where="policy.toml")


@pytest.mark.parametrize("limits", [Range(0, 1), Range(0, 1, above=True)], ids=str)
def test_a_range_holds_its_upper_end_and_nothing_infinite(limits: Range) -> None:
    assert 1 in limits
    assert (0 in limits) is not limits.above
    assert math.nan not in limits and math.inf not in limits


# --- anything at all -------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.booleans(), st.integers(), st.integers(-3, 101), st.floats(), st.floats(-1, 2), st.text(max_size=8), st.dates(),
    st.sampled_from(["nudge", "reseed", "erase", "steer", "cuda", "1", "0.5", "../x", "\0"]),
)  # fmt: skip
names = st.one_of(
    st.sampled_from(
        sorted({part for cls in (RunConfig, Policy) for key in keys(cls) for part in key.loc if isinstance(part, str)})
    ),
    st.text(max_size=6),
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)


@st.composite
def files(draw: st.DrawFn, cls: type[Any]) -> dict[str, Any]:
    """Like a file of the class: its own keys, with values that are mostly of the right type, and now and then anything."""
    data: dict[str, Any] = {"prompts": "p.csv"} if cls is RunConfig else {}
    for key in draw(st.lists(st.sampled_from([key for of, key in VALUES if of is cls]), max_size=5)):
        merge(data, written(cls, key, draw(value_of(key))))
    if draw(st.integers(0, 3)) == 0:
        data[draw(names)] = draw(anything)
    return data


def value_of(key: Key) -> st.SearchStrategy[Any]:
    likely: st.SearchStrategy[Any] = st.text(max_size=8)
    if key.range is not None:
        near = (key.range.low - abs(key.range.low) - 1, key.range.high + 1)
        likely = st.integers(math.floor(near[0]), math.ceil(near[1])) if key.type is int else st.floats(*near)
    elif typing.get_origin(key.type) is typing.Literal:
        likely = st.sampled_from(typing.get_args(key.type))
    elif key.type is bool:
        likely = st.booleans()
    return st.one_of(likely, likely, likely, anything)


def merge(data: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(data.get(name), dict):
            merge(data[name], value)
        else:
            data[name] = value


def numbers(made: Any) -> list[tuple[Range, float]]:
    """Every number of a configuration, with its range."""
    found: list[tuple[Range, float]] = []
    for key in keys(type(made), made=made):
        if key.shape == "tables" and 0 not in key.loc:
            found += [pair for entry in key.default for pair in numbers(entry)]
        elif key.range is not None and key.default is not None:
            values = key.default if key.shape == "list" else [key.default]
            found += [(key.range, one) for one in values if not (key.auto and one == "auto")]
    return found


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([RunConfig, Policy]).flatmap(lambda cls: st.tuples(st.just(cls), st.one_of(files(cls), anything))))
def test_anything_is_a_configuration_in_range_or_a_refusal(drawn: tuple[type[Any], Any]) -> None:
    cls, data = drawn
    try:
        made = from_dict(cls, data, where="file.toml")
    except ConfigError as error:
        assert error.what and error.fix and error.where.startswith("file.toml")
    else:
        assert all(value in limits for limits, value in numbers(made))
