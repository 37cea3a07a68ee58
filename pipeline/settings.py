"""Configuration is data: small frozen classes, read from TOML, every value checked, and digested.

A class decorated with :func:`settings` refuses an unknown key, a wrong type and a number outside its range with a
:class:`~index.errors.ConfigError` that names the key, whether it is built from a file, from a stored plan or in Python.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic_core import PydanticCustomError

from index.errors import ConfigError
from pipeline.fields import CONTRADICTION
from pipeline.refusal import Where, refusal

T = TypeVar("T")
LARGEST = 1 << 20  # bytes of a file; what people write is a thousandth of it


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that checks its values; its fields are made by :mod:`pipeline.fields`."""
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            checked(self, *args, **values)
        except pydantic.ValidationError as error:
            raise refusal(made, error) from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def contradiction(key: str, what: str, fix: str) -> PydanticCustomError:
    """To be raised in ``__post_init__`` when values that are each allowed make no sense together."""
    return PydanticCustomError(CONTRADICTION, "{what}", {"key": key, "what": what, "fix": fix})


def digest(config: Any) -> str:
    """Digest of a configuration: sha256 of its canonical JSON, independent of key order in the file."""
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else config
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def from_dict(cls: type[T], data: Any, *, where: str) -> T:
    """Build the class from plain data.

    Raises:
        ConfigError: a key is unknown, missing, of the wrong type or out of range.
    """
    return _validated(cls, data, Where(where))


def read_toml(cls: type[T], path: Path, *, other: type[Any] | None = None, other_name: str = "") -> T:
    """Read a configuration class from a TOML file.

    Args:
        cls: the class. path: the file.
        other: the class of the file that people confuse it with, whose keys a message names. other_name: what that is called.

    Raises:
        ConfigError: the file cannot be read or is not TOML; a key is unknown, missing, of the wrong type or out of range.
    """
    text = _text(path)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {_sentence(error)}", where=str(path), fix=_advice(str(error), text)) from None
    return _validated(cls, data, Where(str(path), text, other, other_name))


def _validated(cls: type[T], data: Any, where: Where) -> T:
    try:
        made: T = cls.__pydantic_validator__.validate_python(data)  # type: ignore[attr-defined]
        return made
    except pydantic.ValidationError as error:
        raise refusal(cls, error, where) from None


def _text(path: Path) -> str:
    """The file's text, without the mark that some editors put before it."""
    where = str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError("file does not exist", where=where, fix="Name an existing TOML file") from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a file", where=where, fix="Name the TOML file in it") from None
    except (OSError, ValueError) as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(what, where=where, fix="Name a TOML file that you may read") from None
    if len(raw) > LARGEST:
        raise ConfigError("is larger than 1 MiB", where=where, fix="Name the run file or policy itself: a short TOML file")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
        raise ConfigError("is not UTF-8 text", where=where, fix="Save it as UTF-8 (many editors call UTF-16 “Unicode”)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        what = f"is not UTF-8 text (byte 0x{raw[error.start]:02x})"
        raise ConfigError(what, where=f"{where}, line {line}", fix="Save it as UTF-8") from None


def _sentence(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _advice(message: str, text: str) -> str:
    """What to do about a message of tomllib's."""
    lines, at = text.splitlines(), re.search(r"at line (\d+)", message)
    if at and int(at[1]) <= len(lines) and (comma := re.search(r"=\s*([+-]?\d+),(\d+)\s*(#.*)?$", lines[int(at[1]) - 1])):
        return f"Write a decimal point in place of the comma: {comma[1]}.{comma[2]}"
    if "overwrite" in message or "twice" in message or "immutable" in message:
        return "A key or table stands there twice: keep one of them"
    if "Unescaped '\\'" in message or "escape" in message:
        return "Put a path with backslashes into single quotes: 'C:\\models'"
    if "Invalid value" in message:
        return 'Put text into double quotes ("steer"); write true, false and numbers without'
    return 'Each line is key = value, [table] or # comment; text stands in double quotes ("steer")'
