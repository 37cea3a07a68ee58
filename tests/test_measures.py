"""Tables of measures in the documents are what the benches wrote: ``python tests/test_measures.py`` writes them again.

``<!-- measures world protected:begin -->`` begins a table of every measure of ``world.json`` whose id begins with "protected";
several beginnings are separated by " | ", and none means all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.lab.bench.measures import shipped_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "infra" / "docs" / "bench"
DOCUMENTS = [
    *sorted((ROOT / "infra").rglob("*.md")),
    *sorted((ROOT / "pipeline" / "weights").rglob("*.md")),
    ROOT / "README.md",
]
DRAWN: tuple[str, ...] = (
    "asked",
    "early",
    "erase",
    "erase-data",
    "painter",
    "steering",
    "world",
)  # benches that draw with the world, as they are measured again
MARK = re.compile(r"(<!-- measures (?P<bench>[a-z-]+)(?P<of>[^>]*?):begin -->\n)(?:.*?)(<!-- measures:end -->)", re.DOTALL)


def measures(bench: str) -> list[dict[str, Any]]:
    """The measures of a result file, in its order."""
    found: list[dict[str, Any]] = json.loads((RESULTS / f"{bench}.json").read_text(encoding="utf-8"))["measures"]
    return found


def table(bench: str, beginnings: str) -> Iterator[str]:
    """Markdown: one line for each measure whose id begins with one of ``beginnings`` (separated by " | ").

    Raises:
        LookupError: a beginning fits no measure: the bench no longer measures it.
    """
    wanted = [one.strip() for one in beginnings.split(" | ") if one.strip()] or [""]
    every = measures(bench)
    for one in wanted:
        if not any(m["id"].startswith(one) for m in every):
            raise LookupError(f"{bench}.json has no measure that begins with {one!r}")
    yield from ("| measure | value | 95 % interval | n | goal | met |", "|---|---|---|---|---|---|")
    for m in (m for one in wanted for m in every if m["id"].startswith(one)):
        met = {None: "", True: "yes", False: "**no**"}[m["met"]]
        name = m["id"].replace("|", "\\|")
        value, low, high = (f"{m[part]:.3f}" if abs(m["value"]) < 10 else f"{m[part]:.1f}" for part in ("value", "low", "high"))
        yield f"| {name} | {value} | {low} – {high} | {m['n']} | {goal(m)} | {met} |"


def goal(m: dict[str, Any]) -> str:
    """The goal as text; empty where there is none."""
    if m["goal"] is None:
        return ""
    if m["most"] is not None:
        return f"{m['goal']:g} – {m['most']:g}"
    return f"{'≥' if m['better'] == 'higher' else '≤'} {m['goal']:g}"


def rewritten(text: str) -> str:
    """A document with every table of measures as the result files have it."""
    return MARK.sub(lambda found: found[1] + "\n".join(table(found["bench"], found["of"])) + "\n" + found[4], text)


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if MARK.search(path.read_text(encoding="utf-8"))], ids=lambda p: p.stem
)
def test_every_table_of_measures_is_what_the_bench_wrote(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == rewritten(text), f"a result changed: python {Path(__file__).relative_to(ROOT)} writes {path.name} again"


@pytest.mark.parametrize("bench", DRAWN)
def test_a_result_of_what_the_world_draws_is_of_the_weights_that_ship(bench: str) -> None:
    """A result outlives weights easily: whoever changes them measures again."""
    body = json.loads((RESULTS / f"{bench}.json").read_text(encoding="utf-8"))
    assert body["model"] == shipped_model(), f"clearance lab bench {bench} was run on other weights than those that ship"


def test_a_table_of_a_measure_that_is_gone_is_refused() -> None:
    with pytest.raises(LookupError, match="no such measure"):
        rewritten("<!-- measures world no such measure:begin -->\n<!-- measures:end -->")


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
