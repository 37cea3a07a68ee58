"""The page of the review queue in a real browser: keys, decisions, the file that is downloaded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.review.decisions import import_file
from jobs.review.export import Wanted, export
from jobs.run.local_runner import run_local
from tests.jobs.browser import Page, browse


@pytest.fixture
def queue(tmp_path: Path, make_plan: Callable[..., Any], open_loop: Callable[..., Any]) -> Path:
    """Four accepted samples drawn for an audit, exported."""
    run_local(make_plan(["cat", "dog", "lemon", "bell"]), tmp_path / "run", open_loop=open_loop)
    export(tmp_path / "run", tmp_path / "queue", Wanted(random=4, seed=1), lambda ref_id: None, actor="compliance")
    return tmp_path / "queue"


async def text(page: Page, name: str) -> str:
    return str(await page.run(f"document.getElementById('{name}').textContent"))


async def open_queue(page: Page, queue: Path) -> None:
    await page.size(1200, 900)
    await page.open((queue / "queue.html").as_uri())


async def downloaded(page: Page, folder: Path) -> list[dict[str, Any]]:
    await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await page.press("d")
    for _ in range(100):
        for found in folder.glob("*.jsonl"):
            if lines := found.read_text(encoding="utf-8").splitlines():  # the browser reserves the name before it writes
                return [json.loads(line) for line in lines]
        await asyncio.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def test_keys_decide_and_the_download_is_imported(queue: Path, tmp_path: Path) -> None:
    got: list[dict[str, Any]] = []

    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        for key in ("a", "r", "2"):
            await page.press(key)
        assert await text(page, "count") == "3 of 4 decided, 1 left"
        await page.press("9")  # another reason: it needs a note first
        assert "note" in await text(page, "said")
        await page.type("two tails")
        await page.press("Enter")
        await page.press("9")
        assert await page.run("document.getElementById('end').hidden") is False
        got.extend(await downloaded(page, tmp_path))
        assert page.errors == []
        assert all(address.startswith(("file:", "blob:")) for address in page.requests)

    browse(tmp_path / "profile", visit)
    assert [(one["decision"], one["reason"]) for one in got] == [
        ("accept", "nothing_wrong"), ("reject", "copy"), ("accept", "another_work"), ("reject", "other"),
    ]  # fmt: skip
    assert got[3]["note"] == "two tails" and all(one["seconds"] >= 0 for one in got)
    file = next(tmp_path.glob("decisions-*.jsonl"))
    found = import_file(tmp_path / "run", file, actor="compliance")
    assert (found.audited, found.overturned) == (4, 2)


def test_skip_back_and_undo(queue: Path, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        first = await text(page, "title")
        await page.press("s")
        second = await text(page, "title")
        assert second != first
        await page.press("b")
        assert await text(page, "title") == first
        await page.press("r")
        assert await text(page, "title") == second
        await page.press("u")
        assert await text(page, "title") == first
        assert await text(page, "count") == "0 of 4 decided, 4 left"
        assert await page.run("document.getElementById('save').disabled") is True

    browse(tmp_path / "profile", visit)


def test_decisions_survive_a_closed_page(queue: Path, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        await page.press("a")
        await open_queue(page, queue)
        assert await text(page, "count") == "1 of 4 decided, 3 left"

    browse(tmp_path / "profile", visit)


def test_a_note_is_typed_without_deciding(queue: Path, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        await page.run("document.getElementById('note').focus()")
        for key in "ars1":
            await page.press(key)
        assert await page.run("document.getElementById('note').value") == "ars1"
        assert await text(page, "count") == "0 of 4 decided, 4 left"

    browse(tmp_path / "profile", visit)


def test_it_fits_a_phone_and_everything_has_a_name(queue: Path, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        await page.size(390, 844)
        assert await page.run("document.documentElement.scrollWidth") <= 390
        assert await page.run("getComputedStyle(document.querySelector('thead th')).overflowWrap") == "normal"
        assert await page.run("[...document.images].every(image => image.alt && image.naturalWidth > 0)")
        assert await page.run("[...document.querySelectorAll('button')].every(button => button.textContent.trim())")
        assert await page.run("[...document.querySelectorAll('th')].every(head => head.scope)")
        assert await page.run("document.querySelector('label[for=note]') !== null && document.documentElement.lang === 'en'")

    browse(tmp_path / "profile", visit)


def test_text_of_others_shows_what_would_not_be_seen_and_decides_under_its_own_name(queue: Path, tmp_path: Path) -> None:
    """An override of the reading direction would show another key, title or prompt to who decides."""
    path, key, got = queue / "queue.html", "k\u202ecba\x1b[31m", list[dict[str, Any]]()
    page_text = path.read_text(encoding="utf-8")
    head, _, rest = page_text.partition('id="data">')
    data, _, tail = rest.partition("</script>")
    content = json.loads(data)
    content["items"] = [{**one, "request_key": key, "prompt": f"p\u2066{n}"} for n, one in enumerate(content["items"])]
    path.write_text(f'{head}id="data">{json.dumps(content)}</script>{tail}', encoding="utf-8")

    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        assert await text(page, "title") == "1 of 4: k\\u202ecba\\u001b[31m"
        assert await text(page, "prompt") == "Prompt: p\\u20660"
        await page.press("a")
        assert (await text(page, "said")).startswith("k\\u202ecba\\u001b[31m: accepted")
        got.extend(await downloaded(page, tmp_path))
        assert page.errors == []

    browse(tmp_path / "profile", visit)
    assert [one["request_key"] for one in got] == [key]


def test_a_key_that_is_held_down_decides_once(queue: Path, tmp_path: Path) -> None:
    """What follows was not looked at."""

    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        for repeated in (False, True, True):
            await page.call("Input.dispatchKeyEvent", type="keyDown", key="a", text="a", autoRepeat=repeated)
        assert await text(page, "count") == "1 of 4 decided, 3 left"

    browse(tmp_path / "profile", visit)


def test_a_reviewer_reads_the_prompt_and_which_guard_found_what(queue: Path, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        assert (await text(page, "prompt")).startswith("Prompt: ")
        named = "[...document.querySelectorAll('#findings th')].every(head => /^[a-z_]+: /.test(head.textContent))"
        assert await page.run(f"document.querySelectorAll('#findings th').length > 0 && {named}")
        assert re.search(r"exported \d{4}-\d\d-\d\d \d\d:\d\d UTC$", await text(page, "run"))

    browse(tmp_path / "profile", visit)


def test_a_button_that_is_held_down_decides_once(queue: Path, tmp_path: Path) -> None:
    """A browser clicks again as long as Enter is down on the button that has the focus."""

    async def visit(page: Page) -> None:
        await open_queue(page, queue)
        await page.run("document.querySelector('.reasons button').focus()")
        for repeated in (False, True, True):
            enter = {"key": "Enter", "text": "\r", "windowsVirtualKeyCode": 13}
            await page.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeated, **enter)
        assert await text(page, "count") == "1 of 4 decided, 3 left"

    browse(tmp_path / "profile", visit)
