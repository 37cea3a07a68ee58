"""The report as a reader has it: opened, filtered, read with the keyboard, on a phone and on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.report import write_report

from ..counted import one_of_each, sealed
from .chromium import Browser, Page, find_chromium

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")]
PHONE = 390
MOST_PAGES = 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sealed(tmp_path_factory.mktemp("run"), one_of_each()))[0]


def seen(page: str) -> str:
    """How many elements of a kind are shown."""
    return f"[...document.querySelectorAll('{page}')].filter(e => e.checkVisibility()).length"


def test_the_page_asks_for_nothing_but_itself(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> list[str]:
        await page.open(report)
        return page.requests

    assert [url for url in browser.run(story) if not url.startswith("data:")] == [report.resolve().as_uri()]


def test_the_page_logs_nothing(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> list[str]:
        await page.open(report)
        await page.evaluate("document.title")
        return page.messages

    assert browser.run(story) == []


def test_every_picture_of_the_page_is_drawn(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report)
        return await page.evaluate("[document.images.length, [...document.images].filter(i => !i.naturalWidth).length]")

    count, empty = browser.run(story)
    assert count > 10 and empty == 0


@pytest.mark.parametrize(("value", "kinds"), [("at_once", 4), ("steered", 2), ("all", 6)])
def test_the_sheet_can_be_filtered(browser: Browser, report: Path, value: str, kinds: int) -> None:
    async def story(page: Page) -> Any:
        await page.open(report)
        await page.evaluate(f"document.querySelector('input[name=sheet][value={value}]').click()")
        return await page.evaluate(seen(".sheet figure"))

    assert browser.run(story) == kinds


@pytest.mark.parametrize(("value", "kinds"), [("held", 2), ("error", 2), ("all", 10)])
def test_the_requests_can_be_filtered(browser: Browser, report: Path, value: str, kinds: int) -> None:
    async def story(page: Page) -> Any:
        await page.open(report)
        await page.evaluate(f"document.querySelector('input[name=entries][value={value}]').click()")
        return await page.evaluate(seen(".entries > details"))

    assert browser.run(story) == kinds


def test_a_link_opens_the_whole_record_of_its_request(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report)
        await page.evaluate("document.querySelector('#pairs .prompt a').click()")
        return await page.evaluate(
            "[document.querySelector(location.hash).checkVisibility(), document.querySelectorAll('details[open]').length]"
        )

    assert browser.run(story) == [True, 1]


def test_a_number_leads_to_its_expression_by_keyboard(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report)
        await page.evaluate("document.querySelector('.lead .num').focus()")
        await page.press("Enter", 13, "\r")
        return await page.evaluate(
            "[document.querySelector(location.hash).innerText, document.querySelector(location.hash).checkVisibility()]"
        )

    text, visible = browser.run(story)
    assert "count(samples)" in text and visible


def test_the_first_key_reaches_the_summary(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report)
        await page.press("Tab", 9)
        return await page.evaluate("document.activeElement.getAttribute('href')")

    assert browser.run(story) == "#summary"


def test_nothing_is_wider_than_a_phone(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report, width=PHONE)
        wider = f"e.checkVisibility() && e.getBoundingClientRect().right > {PHONE + 1} && !e.closest('.scroll, thead, caption')"
        elements = f"[...document.querySelectorAll('main *')].filter(e => {wider}).map(e => e.outerHTML.slice(0, 80))"
        return await page.evaluate(f"[document.documentElement.scrollWidth, {elements}]")

    width, wider = browser.run(story)
    assert wider == [] and width <= PHONE


def test_text_can_be_read_on_a_phone(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report, width=PHONE)
        return await page.evaluate(
            "Math.min(...[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && [...e.childNodes].some("
            "n => n.nodeType === 3 && n.data.trim())).map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )

    assert browser.run(story) >= 12


def test_the_report_on_paper_is_short(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> bytes:
        await page.open(report)
        return await page.pdf()

    pages = len(re.findall(rb"/Type /Page\b", browser.run(story)))
    assert 1 < pages <= MOST_PAGES
