"""The keys of run file and policy, each with its range, meaning and default beside it.

Each of the first functions is the right-hand side of a field, as in ``steps: int = number(20, 1, 1000, "denoising steps")``.
:func:`keys` reads all of it back: the refusals, the reference and the tests are made from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined, core_schema

from index.errors import ConfigError

REQUIRED = PydanticUndefined
CONTRADICTION = "contradiction"
LONGEST = 4096  # characters of a text
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"  # a path with a NUL cannot be opened, and an escape sequence must not reach a terminal


def number(default: Any, low: float, high: float, what: str, *, above: bool = False, absent: str = "", hint: str = "") -> Any:
    """A finite number from ``low`` to ``high``.

    Args:
        default: without the key; None where the key may be absent.
        low, high: the range, both ends in it.
        what: the key's meaning, for the reference.
        above: ``low`` itself is not in the range.
        absent: what is in force without the key, where the default is None.
        hint: the advice for a number outside the range, instead of a guess at what was meant.
    """
    bounds: dict[str, Any] = {("gt" if above else "ge"): low, "le": high}
    return Field(default, strict=True, description=what, json_schema_extra={"absent": absent, "hint": hint}, **bounds)


AUTO = "auto"


@dataclass(frozen=True)
class _OrAuto:
    """A whole number, or the word "auto"; pydantic checks a union of the two with errors that name neither."""

    low: int
    high: int

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        whole = core_schema.int_schema(strict=True, ge=self.low, le=self.high)
        return core_schema.no_info_wrap_validator_function(lambda value, check: value if value == AUTO else check(value), whole)


def number_or_auto(default: Any, low: int, high: int, what: str) -> Any:
    """A whole number from ``low`` to ``high``, or the word "auto": ``workers: int | Literal["auto"] = number_or_auto(…)``."""
    made = Field(default, description=what)
    made.metadata.append(_OrAuto(low, high))
    return made


class Stored:
    """An entry of a stored list of tables, with its keys as they were, whether or not its class is here; see :func:`stored`."""


def stored(entry: Mapping[str, Any]) -> Stored:
    """The entry as an object that has its keys and their values, and the same digest; it can be read, and not be run."""
    made = dataclasses.make_dataclass("StoredEntry", list(entry), bases=(Stored,), frozen=True)
    return cast(Stored, made(**entry))


@dataclass(frozen=True)
class OneOf:
    """A table of one of several kinds, where the kinds are found at run time: ``tuple[Annotated[Rung, OneOf(…)], ...]``.

    Attributes:
        classes: (what stands there, ``outside``) → kind → class. Without ``outside``: of the kinds that ship.
        kinds: every kind there is, for people; imports nothing.
    """

    classes: Callable[..., Mapping[str, type[Any]]]
    kinds: Callable[[], list[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self._validated)

    def _validated(self, value: Any) -> Any:
        if isinstance(value, Stored):
            return value
        try:
            classes = self.classes(value, outside=True)
        except ConfigError as error:
            raise PydanticCustomError(CONTRADICTION, "{what}", {"key": "kind", "what": error.what, "fix": error.fix}) from None
        return _union(tuple(classes.values())).validate_python(value)


@functools.cache
def _union(classes: tuple[type[Any], ...]) -> TypeAdapter[Any]:
    either: Any = Annotated[functools.reduce(operator.or_, classes), Field(discriminator="kind")]
    return TypeAdapter(either)


def within(low: float, high: float) -> Any:
    """The range of the numbers in a list: ``tuple[Annotated[float, within(0, 1)], ...]``."""
    return Field(ge=low, le=high, strict=True)


def entry() -> Any:
    """The texts in a list: ``tuple[Annotated[str, entry()], ...]``."""
    return Field(max_length=LONGEST, pattern=PRINTABLE)


def several(default: Any, most: int, what: str, *, least: int = 0) -> Any:
    """A list of values or tables, from ``least`` to ``most`` of them; ``default`` REQUIRED makes the key required."""
    return Field(default, min_length=least, max_length=most, description=what)


def line(default: Any, what: str, *, least: int = 0) -> Any:
    """Text in one line, of at least ``least`` characters; ``default`` REQUIRED makes the key required."""
    return Field(default, min_length=least, max_length=LONGEST, pattern=PRINTABLE, description=what)


def flag(default: bool, what: str) -> Any:
    """True or false; not 0, 1 or "yes"."""
    return Field(default, strict=True, description=what)


def choice(default: Any, what: str, *, absent: str = "", nearest: Callable[[str], str] | None = None) -> Any:
    """One of the words of the field's type.

    Args:
        default, what: as :func:`line`.
        absent: what is in force without the key, where the default is None.
        nearest: another word → the one to write for it; empty: it is not known.
    """
    extra: dict[str, Any] = {"absent": absent} | ({"nearest": nearest} if nearest else {})
    return Field(default, description=what, json_schema_extra=extra)


def table(made: Callable[[], Any], what: str = "") -> Any:
    """A table with keys of its own; ``made`` gives the one in force when it is left out."""
    return Field(default_factory=made, description=what)


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, without ``low`` itself when ``above``."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: Any) -> bool:
        return (
            not isinstance(value, str)
            and finite(value)
            and (self.low < value if self.above else self.low <= value)
            and value <= self.high
        )

    def __str__(self) -> str:
        if self.above:
            return f"above {shown(self.low)} and at most {shown(self.high)}"
        return f"from {shown(self.low)} to {shown(self.high)}"


def finite(value: float) -> bool:
    """Whether a number is one; a whole number always is, however long."""
    return isinstance(value, int) or math.isfinite(value)


def shown(value: float | str) -> str:
    """A number as people write it: 10,000 and 0.001; a word in quotes."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.10g}"


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a configuration class.

    Attributes:
        loc: where it stands: names of tables and keys, 0 for an entry of a list, and behind that 0 the kind of the entry where
            there are several.
        shape: a value, a list of values, a table, a list of tables, or one kind of table in such a list.
        type: of the value or of the list's values.
        default: without the key; REQUIRED: there is none.
        range: of a number, or of the list's numbers.
        what: its meaning.
        absent: what is in force without it, where the default is None.
        hint: see :func:`number`.
        auto: the word "auto" may stand there too.
        nearest: see :func:`choice`.
    """

    loc: tuple[str | int, ...]
    shape: Literal["value", "list", "table", "tables", "kind"]
    type: Any
    default: Any = None
    range: Range | None = None
    what: str = ""
    absent: str = ""
    hint: str = ""
    auto: bool = False
    nearest: Callable[[str], str] | None = None


def keys(cls: type[Any], at: tuple[str | int, ...] = (), made: Any = None, *, outside: bool = False) -> Iterator[Key]:
    """Every key of a configuration class and of the classes in it.

    Args:
        cls: made by :func:`pipeline.settings.settings`.
        at: where it stands itself.
        made: an instance whose values are the defaults; by default the class's own.
        outside: also the keys of kinds that do not ship and are in use (see :class:`OneOf`).
    """
    for name, field in cls.__pydantic_fields__.items():
        default = field.get_default(call_default_factory=True) if made is None else getattr(made, name)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        common: dict[str, Any] = {"default": default, "what": field.description or "", **extra}
        loc, kind = (*at, name), _without_none(field.annotation)
        if dataclasses.is_dataclass(kind):
            yield Key(loc=loc, shape="table", type=kind, **common)
            yield from keys(kind, loc, default, outside=outside)  # type: ignore[arg-type]
        elif typing.get_origin(kind) is tuple:
            entry, metadata = _annotated(typing.get_args(kind)[0])
            choice = next((one for one in metadata if isinstance(one, OneOf)), None)
            if choice is not None:
                yield Key(loc=loc, shape="tables", type=choice, **common)
                yield from _kinds(choice.classes(None, outside=outside).values(), loc)
            elif dataclasses.is_dataclass(entry):
                yield Key(loc=loc, shape="tables", type=entry, **common)
                yield from keys(entry, (*loc, 0))  # type: ignore[arg-type]
            elif typing.get_origin(entry) in (typing.Union, types.UnionType):
                yield Key(loc=loc, shape="tables", type=entry, **common)
                yield from _kinds(typing.get_args(entry), loc)
            else:
                yield Key(loc=loc, shape="list", type=entry, range=_range(metadata), **common)
        elif auto := next((one for one in field.metadata if isinstance(one, _OrAuto)), None):
            yield Key(loc=loc, shape="value", type=int, range=Range(auto.low, auto.high), auto=True, **common)
        else:
            yield Key(loc=loc, shape="value", type=kind, range=_range(field.metadata), **common)


def _kinds(classes: Iterable[type[Any]], loc: tuple[str | int, ...]) -> Iterator[Key]:
    """The kinds of entries of the list at ``loc``, each with its keys."""
    for one in classes:
        tag = one.__pydantic_fields__["kind"].default
        yield Key(loc=(*loc, 0, tag), shape="kind", type=one, what=_first_sentence(one))
        yield from keys(one, (*loc, 0, tag))


def _without_none(annotation: Any) -> Any:
    rest = [one for one in typing.get_args(annotation) if one is not type(None)]
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return rest[0] if is_union and len(rest) == 1 else annotation


def _annotated(annotation: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(annotation) is not Annotated:
        return annotation, []
    kind, *metadata = typing.get_args(annotation)
    return kind, [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _range(metadata: list[Any]) -> Range | None:
    bounds = {name: getattr(part, name) for part in metadata for name in ("ge", "gt", "le") if hasattr(part, name)}
    if not bounds:
        return None
    above = "gt" in bounds
    return Range(bounds["gt" if above else "ge"], bounds["le"], above)


def _first_sentence(cls: type[Any]) -> str:
    return (cls.__doc__ or "").split("\n\n")[0].strip()
