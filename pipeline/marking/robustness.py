"""The measured robustness of the watermarks: what the marks bench found, as the table that reports show.

The bench writes ``marks.json``; a copy of it in this folder, as ``robustness.json``, ships with the package.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from index.errors import IntegrityError
from index.rate import Rate, percent

MEASURED = Path(__file__).parent / "robustness.json"


def measured(path: Path = MEASURED) -> dict[str, Any] | None:
    """The bench's result, or None where none ships.

    Raises:
        IntegrityError: the file is no such result.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found["cells"], list) or not isinstance(found["unmarked"], dict):
            raise ValueError("neither cells nor unmarked")
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"is no result of the marks bench ({error})", where=str(path), fix="Restore it") from None
    return found


def robustness_table(result: Mapping[str, Any] | None, schemes: Collection[str]) -> dict[str, Any] | None:
    """The share of pictures whose mark was found after each attack, by scheme and side, and the false alarms.

    Args:
        result: as :func:`measured` gives it.
        schemes: those in use; others are left out. A scheme may carry its version, as in "tile/1".

    Returns:
        ``caption``, ``columns``, ``rows`` (``name``, ``values``) and ``notes``; None where nothing was measured of them.
    """
    names = {scheme.split("/")[0].split("@")[0].split(" ")[0] for scheme in schemes}
    cells = [cell for cell in (result or {}).get("cells", ()) if cell["kind"] == "all" and cell["scheme"] in names]
    if not cells:
        return None
    columns = list(dict.fromkeys((cell["scheme"], cell["side"]) for cell in cells))
    by = {(cell["scheme"], cell["side"], cell["attack"]): cell for cell in cells}
    rows = [
        {"name": attack, "values": [_cell(by.get((*column, attack))) for column in columns]}
        for attack in dict.fromkeys(cell["attack"] for cell in cells)
    ]
    notes = [
        f"False alarms on unmarked pictures, {how}: {Rate.of(int(entry['alarms']), int(entry['looks']))}."
        for how, entry in (result or {})["unmarked"].items()
    ]
    return {
        "caption": "Pictures whose watermark was found after an attack (interval at 95\u00a0%; number of pictures)",
        "columns": [f"{scheme}, {side} px" for scheme, side in columns],
        "rows": rows,
        "notes": notes,
    }


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    rate = Rate.of(int(cell["found"]), int(cell["n"]))
    return f"{percent(rate.value, 0)} ({rate.bounds}; {rate.n})"
