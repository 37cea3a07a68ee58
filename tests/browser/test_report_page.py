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
PHONE, ZOOMED = 390, 320  # a usual phone, and a page of 1280 pixels at 400 % (WCAG 2.2, 1.4.10)
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


@pytest.mark.parametrize("wide", [PHONE, ZOOMED])
def test_nothing_is_wider_than_a_phone(browser: Browser, report: Path, wide: int) -> None:
    """Nor in the records of requests, once they are open."""

    async def story(page: Page) -> Any:
        await page.open(report, width=wide)
        await page.evaluate("document.querySelectorAll('.entries details').forEach(one => { one.open = true })")
        wider = f"e.checkVisibility() && e.getBoundingClientRect().right > {wide + 1} && !e.closest('.scroll, thead, caption')"
        elements = f"[...document.querySelectorAll('main *')].filter(e => {wider}).map(e => e.outerHTML.slice(0, 80))"
        return await page.evaluate(f"[document.documentElement.scrollWidth, {elements}]")

    width, wider = browser.run(story)
    assert wider == [] and width <= wide


def test_text_stands_out_from_its_ground(browser: Browser, report: Path) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1, and 3 to 1 for large text."""
    script = """(() => {
      const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const numbers = text => text.match(/[\\d.]+/g).map(Number);
      const ground = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] === 1) return c } return [255, 255, 255] };
      document.querySelectorAll('details').forEach(one => { one.open = true });
      return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).filter(e => {
          const style = getComputedStyle(e), both = [light(numbers(style.color)), light(ground(e))];
          const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && +style.fontWeight >= 700;
          return (Math.max(...both) + .05) / (Math.min(...both) + .05) < (large ? 3 : 4.5) })
        .map(e => e.outerHTML.slice(0, 80)) })()"""

    async def story(page: Page) -> Any:
        await page.open(report)
        return await page.evaluate(script)

    assert browser.run(story) == []


def test_the_scale_of_the_histogram_covers_no_bar(browser: Browser, report: Path) -> None:
    script = """[...document.querySelectorAll('.hist')].map(one => {
      const text = one.querySelector('.max').getBoundingClientRect(), plot = one.querySelector('.plot').getBoundingClientRect();
      return text.bottom <= plot.top || text.top >= plot.bottom })"""

    async def story(page: Page) -> Any:
        await page.open(report, width=1000)
        return await page.evaluate(script)

    assert browser.run(story) == [True, True]


def test_the_code_of_a_reason_is_broken_on_narrow_screens_alone(browser: Browser, report: Path) -> None:
    async def story(page: Page) -> Any:
        await page.open(report, width=1000)
        long = "document.querySelector('#exceptions td[data-label=Message]').textContent = 'a long message '.repeat(30)"
        await page.evaluate(long)
        return await page.evaluate("[...document.querySelectorAll('#exceptions td code')].map(e => e.getClientRects().length)")

    assert set(browser.run(story)) == {1}


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
