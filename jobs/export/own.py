"""The caller's own columns as columns of an export: their names, and the narrowest type that holds all their values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_INT64 = 2**63


@dataclass(frozen=True, kw_only=True)
class OwnColumn:
    """One of the caller's columns.

    Attributes:
        name: in the export: the caller's, or with ``own_`` before it where the rows have a column of that name.
        source: the caller's name.
        kind: ``flag``, ``whole``, ``number``, ``text`` or ``json``: several types, lists or objects, as JSON text.
    """

    name: str
    source: str
    kind: str

    @property
    def type(self) -> pa.DataType:
        import pyarrow as pa

        return {"flag": pa.bool_(), "whole": pa.int64(), "number": pa.float64()}.get(self.kind, pa.string())

    def value(self, row: dict[str, Any]) -> Any:
        """The value of a row's own columns; None where the row lacks it."""
        found = row.get(self.source)
        if found is None:
            return None
        if self.kind == "json":
            return storable(json.dumps(found, ensure_ascii=False))
        if self.kind == "text":
            return storable(found)
        return float(found) if self.kind == "number" else found


def own_columns(rows: Iterable[str | None], taken: Collection[str]) -> list[OwnColumn]:
    """The caller's columns of rows (JSON objects as text), in the order in which they first appear."""
    kinds: dict[str, set[str]] = {}
    for text in rows:
        for name, value in json.loads(text).items() if text else ():
            kinds.setdefault(name, set()).add(_kind(value))
    found, names = [], {*taken, *kinds}
    for source, those in kinds.items():
        name = storable(source)
        while name in taken or (name != source and name in names):
            name = f"own_{name}"
        names.add(name)
        found.append(OwnColumn(name=name, source=source, kind=_common(those - {"none"})))
    return found


def storable(text: str) -> str:
    r"""The text with half a surrogate pair, which JSON can spell and UTF-8 cannot hold, as its escape (``\ud800``)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "whole" if -_INT64 <= value < _INT64 else "json"
    return "number" if isinstance(value, float) else "text" if isinstance(value, str) else "json"


def _common(kinds: set[str]) -> str:
    if kinds == {"whole", "number"}:
        return "number"
    return next(iter(kinds)) if len(kinds) == 1 else "json" if kinds else "text"
