"""The pages of the documents: links lead somewhere, every kind of page has its form, and named places exist."""

from __future__ import annotations

import ast
import re
import urllib.parse
from pathlib import Path

import pytest

from tests.test_docs import DOCUMENTS, EXAMPLES, FOLDERS, ROOT

EXPERIMENTS = sorted(path for path in (ROOT / "infra" / "docs" / "experiments").glob("*.md") if path.name != "README.md")
TO_COME = {"infra/docs/report.png"}  # made by a run of the demo


def unfenced(text: str) -> str:
    """A document without its fenced blocks: there nothing is a link or a title."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Targets of links and pictures, in every form that Markdown has: inline, as a definition, and as HTML."""
    prose = re.sub(r"`[^`\n]*`", "", unfenced(text))
    inline = r"""\]\(<?([^)\s>]+)>?(?:\s+(?:"[^"]*"|'[^']*'))?\)"""
    return [
        target
        for form in (inline, r"^ *\[[^\]]+\]: *<?([^\s>]+)", r"""<(?:a|img)\b[^>]*?\b(?:href|src)=["']([^"']+)""")
        for target in re.findall(form, prose, re.MULTILINE)
    ]


def anchors(text: str) -> set[str]:
    """Anchors of a document's titles as GitHub writes them: a repeated title gets a number."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.+?)#*$", unfenced(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip()
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        times = sum(other == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", other) is not None for other in found)
        found.append(f"{anchor}-{times}" if times else anchor)
    return {*found, *re.findall(r"""<a\b[^>]*?\b(?:id|name)=["']([^"']+)""", unfenced(text))}


def test_links_of_every_form_are_seen() -> None:
    text = """
[a](one.md) ![b](two.png "title") [c](<three.md>) [over
two lines](four.md#part) `[code](no.md)` <img src="five.svg" width="3"> <a href='six.md'>
[seven]: seven.md
```sh
[fenced](no.md)
```
"""
    assert links(text) == ["one.md", "two.png", "three.md", "four.md#part", "seven.md", "five.svg", "six.md"]


def test_anchors_are_written_as_github_writes_them() -> None:
    text = '# The `a` · b!\n## Twice\n## Twice\n### [Linked](x.md) one\n```sh\n# no title\n```\n<a id="own"></a>\n'
    assert anchors(text) == {"the-a--b", "twice", "twice-1", "linked-one", "own"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):  # https:, mailto:
            continue
        name, _, anchor = urllib.parse.unquote(target).partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.is_relative_to(ROOT), f"{path.name}: {target} leads out of the repository"
        if str(there.relative_to(ROOT)) in TO_COME and not there.exists():
            continue
        assert there.exists(), f"{path.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{path.name}: {target} has no such title"


def test_documents_named_in_the_code_exist() -> None:
    kinds = (".py", ".toml", ".j2", ".css")
    texts = [ROOT / "pyproject.toml", *(p for f in FOLDERS for p in (ROOT / f).rglob("*") if p.suffix in kinds)]
    named = [
        (path, name, anchor)
        for path in texts
        for name, anchor in re.findall(r"(infra/docs/[\w./-]+\.\w+)(?:#([\w-]+))?", path.read_text(encoding="utf-8"))
    ]
    assert {name for _, name, _ in named} >= {"infra/docs/reference.md", "infra/docs/experiments/nudging.md"}
    for path, name, anchor in named:
        assert (ROOT / name).exists() or name in TO_COME, f"{path.relative_to(ROOT)} names {name}"
        assert not anchor or anchor in anchors((ROOT / name).read_text(encoding="utf-8")), f"{path.name}: {name}#{anchor}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_is_a_question_with_an_answer_and_is_listed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    question = re.match(r"# (.+\?)\n\n\*\*Answer\.\*\* ", text)
    assert question, "a page begins with its question as the title, and **Answer.** below"
    index = (path.parent / "README.md").read_text(encoding="utf-8")
    row = next((line for line in index.splitlines() if line.endswith(f"]({path.name}) |")), "")
    assert row.startswith(f"| {question[1]} |"), f"experiments/README.md lists {path.name} under another question"


def test_every_decision_has_context_choice_consequence_and_state() -> None:
    text = (ROOT / "infra" / "docs" / "decisions.md").read_text(encoding="utf-8")
    decisions, _, superseded = text.partition("## Superseded\n")
    each = re.findall(r"^## (\d{4}-\d\d-\d\d · [^\n]+)\n(.*?)(?=^## |\Z)", decisions, re.DOTALL | re.MULTILINE)
    assert len(each) > 20 and superseded
    for title, body in each:
        for part in ("Context[.:]", "Choice[.:]", "Consequence[.:]", "(?i)in force|superseded by"):
            assert re.search(part, body), f"{title}: a decision has a context, a choice, a consequence and a state"


def test_places_of_the_glossary_exist() -> None:
    text = (ROOT / "infra" / "docs" / "glossary.md").read_text(encoding="utf-8")
    places = re.findall(r"^\| ([^|]+) \| [^|]+ \| `([^`]+\.py)`(?: `(\w+)`)? \|$", text, re.MULTILINE)
    assert len(places) > 25
    for term, name, symbol in places:
        assert (ROOT / name).is_file(), f"{term}: there is no {name}"
        body = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
        defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert not symbol or symbol in defined, f"{term}: {name} defines no {symbol}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXAMPLES], ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_no_folder_of_this_machine(path: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|root|home|mnt)/\S*", path.read_text(encoding="utf-8"))


def test_attribution_names_every_source_of_drawings() -> None:
    from jobs.lab.world.catalogue import PROTECTED_VENDORS, VENDORS

    text = (ROOT / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for vendor, (package, version, licence, holder) in VENDORS.items():
        row = next((line for line in text.splitlines() if line.startswith("|") and f"`{package}`" in line), "")
        assert version in row and licence in row and holder in row, package
        assert ("shipped" in row) == (vendor in PROTECTED_VENDORS), f"{package}: is it shipped?"
