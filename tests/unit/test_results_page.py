"""The page of `results --format html` in a real browser: what its script does, and that no text can do anything.

Needs a Chromium (`make prepare` installs one where it may); without one these tests are skipped, and say so.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ai_worker.changes import Kind, measure
from ai_worker.models import ItemStatus, ReviewStatus, TaskStatus
from ai_worker.output.page import write_page
from ai_worker.store.edits import Edits
from ai_worker.store.reports import TaskReport
from ai_worker.store.results import ItemResult

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '</article></main><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> " \' & javascript:alert(1)'
EMPTY = Edits()


def item(number: int, original: str, corrected: str | None, **more: Any) -> ItemResult:
    values: dict[str, Any] = dict.fromkeys(ItemResult.__slots__)
    values |= {
        "id_task_item": number,
        "status": ItemStatus.PROCESSED,
        "text_original": original,
        "text_corrected": corrected,
        "tokens_input": 1,
        "tokens_output": 1,
        "context": {},
        "review": ReviewStatus.UNREVIEWED,
        "files": [],
    }
    return ItemResult(**{**values, **more})


ITEMS = [
    item(1, "Dzis jest ladnie", "Dziś jest ładnie", cost=Decimal("0.002"), review=ReviewStatus.ACCEPTED),
    item(2, "bez zmian", "bez zmian", cost=Decimal("0.001"), external_key="Żółć"),
    item(3, "Poszłem do domu wczoraj", "Poszedłem do domu wczoraj.", cost=Decimal("0.010"), text_reviewed="Poszedłem wczoraj."),
    item(10, "אני הולך לבית ספר", "אני הולך לבית הספר", cost=None, reviewed_by="ania", review=ReviewStatus.REJECTED),
    item(11, "piąty", None, status=ItemStatus.ERROR, error="content_refused: nie wolno"),
    item(12, HOSTILE, HOSTILE + "!", external_key=HOSTILE, change_summary=HOSTILE, error=HOSTILE, reviewed_by=HOSTILE,
         text_reviewed=HOSTILE, review=ReviewStatus.ACCEPTED, cost=Decimal("0.003")),
]  # fmt: skip


def report(items: int) -> TaskReport:
    return TaskReport(
        id_task=7,
        status=TaskStatus.ERROR,
        status_reason=None,
        task_type="correction",
        model=HOSTILE,
        model_stopped=None,
        description=HOSTILE,
        priority=0,
        max_attempts=3,
        items={status: items if status is ItemStatus.PROCESSED else 0 for status in ItemStatus},
        records_processed=items,
        records_failed=0,
        tokens_input=0,
        tokens_output=0,
        cost=None,
        created_at=datetime(2026, 1, 1),  # noqa: DTZ001 -- as the database has it: UTC, without a zone
        scheduled_at=None,
        started_at=None,
        finished_at=None,
        seconds=None,
        is_ahead=False,
    )


def page_of(items: list[ItemResult], edits: Edits = EMPTY) -> str:
    stream = io.StringIO()
    write_page(stream, report(len(items)), iter(items), edits)
    return stream.getvalue()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: the page's script was not tried")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container there is no sandbox to be had; the pages are our own.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


class Open:
    """A page that was opened, and what its console said."""

    def __init__(self, browser: Any, path: Path, content: str, **context: Any) -> None:
        path.write_text(content, encoding="utf-8")
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    @property
    def ids(self) -> list[int]:
        """The items that are shown, in their order."""
        shown: list[int] = self.page.evaluate(
            """[...document.querySelectorAll("article")].filter((each) => each.checkVisibility({visibilityProperty: true}))
                 .map((each) => Number(each.dataset.id))"""
        )
        return shown

    def expect_shown(self, number: int) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator("#choose output")).to_have_text(re.compile(f"^{number} of "), timeout=10_000)

    def choose(self, name: str, value: str) -> list[int]:
        self.page.locator(f"#choose select[name={name}]").select_option(value)
        return self.ids

    def type(self, name: str, text: str) -> list[int]:
        self.page.locator(f"#choose input[name={name}]").fill(text)
        self.page.keyboard.press("Enter")
        return self.ids


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    opened = Open(browser, tmp_path / "results.html", page_of(ITEMS))
    yield opened
    opened.context.close()


ALL = [1, 2, 3, 10, 11, 12]


def test_filters(opened: Open) -> None:
    assert opened.ids == ALL
    assert opened.page.locator("#choose output").text_content() == "6 of 6 items"
    assert not opened.page.locator("#plain").is_visible()
    assert opened.choose("status", "ERROR") == [11]
    assert opened.choose("status", "") == ALL
    assert opened.choose("kind", "diacritics") == [1]
    assert opened.choose("kind", "changed") == [1, 3, 10, 12]
    assert opened.choose("kind", "same") == [2, 11]
    assert opened.choose("kind", "spelling") == [3, 10]
    assert opened.choose("review", "REJECTED") == [10]
    assert opened.page.locator("#choose output").text_content() == "1 of 6 items"
    opened.page.locator("#choose button[type=reset]").click()
    opened.expect_shown(6)
    assert opened.ids == ALL
    assert opened.type("ratio", "50") == [1]  # two of three words
    assert opened.type("ratio", "") == ALL
    assert opened.type("text", "ŻÓŁĆ") == [2]
    assert opened.type("text", "הספר") == [10]
    assert opened.type("text", "nie ma takiego") == []
    assert opened.complaints == []


def test_sorts(opened: Open) -> None:
    assert opened.choose("sort", "-id") == [12, 11, 10, 3, 2, 1]
    assert opened.choose("sort", "id") == ALL
    assert opened.choose("sort", "-cost") == [3, 12, 1, 2, 10, 11]  # what is not known stands last
    assert opened.choose("sort", "cost") == [2, 1, 12, 3, 10, 11]
    assert opened.choose("sort", "-ratio")[0] == 1
    assert opened.choose("sort", "ratio")[0] in {2, 12}
    assert opened.choose("sort", "-count")[:2] == [1, 3]
    assert opened.choose("sort", "status")[0] == 11
    assert opened.choose("sort", "review") == [1, 12, 10, 2, 3, 11]
    opened.choose("kind", "changed")
    assert opened.choose("sort", "id") == [1, 3, 10, 12]
    assert opened.complaints == []


def test_the_keyboard_is_enough(opened: Open) -> None:
    focused = "document.activeElement.dataset.id ?? document.activeElement.name"
    keyboard = opened.page.keyboard
    for key, expected in (("j", "1"), ("j", "2"), ("k", "1"), ("/", "text")):
        keyboard.press(key)
        assert opened.page.evaluate(focused) == expected
    keyboard.type("jk/")  # into the field, not commands
    assert opened.page.locator("#choose input[name=text]").input_value() == "jk/"
    opened.expect_shown(0)  # by itself
    keyboard.press("Enter")  # leaves the page where it is
    assert opened.page.locator("#choose output").text_content() == "0 of 6 items"
    keyboard.press("Tab")
    assert opened.page.evaluate(focused) == "status"
    keyboard.press("ArrowDown")  # a select is worked with the arrows alone
    assert opened.page.locator("#choose select[name=status]").input_value() == "PENDING"


def test_hostile_texts_are_inert(opened: Open) -> None:
    page = opened.page
    assert page.evaluate("window.hacked") is None
    assert (page.locator("main > article").count(), page.locator("script").count(), page.locator("img").count()) == (6, 1, 0)
    shown = page.locator("#item-12").text_content()
    assert shown.count(HOSTILE) == 7  # key, reviewer, both texts, reviewed text, summary, error
    assert opened.type("text", HOSTILE[:40]) == [12]
    # And if something got in all the same, the policy would stop it.
    page.evaluate(
        """document.querySelector("main").insertAdjacentHTML("beforeend", '<img src=x onerror="window.hacked = 3">');
           const script = document.createElement("script");
           script.textContent = "window.hacked = 4";
           document.body.append(script)"""
    )
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in each for each in opened.complaints)


def test_marks_and_directions(opened: Open) -> None:
    page = opened.page
    assert page.locator("#item-1 del").all_text_contents() == ["Dzis", "ladnie"]
    assert page.locator("#item-1 ins").all_text_contents() == ["Dziś", "ładnie"]
    assert {each.get_attribute("title") for each in page.locator("#item-1 ins").all()} == {"diacritics"}
    direction = "getComputedStyle(document.querySelector('#item-{} .texts > div')).direction"
    assert [page.evaluate(direction.format(number)) for number in (1, 10)] == ["ltr", "rtl"]
    assert "66.7 % of words" in page.locator("#item-1 header").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_day_and_by_night(browser: Any, tmp_path: Path, scheme: str) -> None:
    small = {"width": 380, "height": 800}
    opened = Open(browser, tmp_path / "results.html", page_of(ITEMS), color_scheme=scheme, viewport=small)
    pairs = opened.page.evaluate(
        """(canvas) => {
             const ground = (each) => {
               const own = getComputedStyle(each).backgroundColor;
               return own !== "rgba(0, 0, 0, 0)" ? own : each.parentElement ? ground(each.parentElement) : canvas;
             };
             const some = [...document.querySelectorAll("ins, del, header, .error, dt, small")];
             return some.map((each) => [getComputedStyle(each).color, ground(each)]);
           }""",
        "rgb(18, 18, 18)" if scheme == "dark" else "rgb(255, 255, 255)",
    )
    assert pairs
    for colour, behind in pairs:
        assert contrast(colour, behind) >= 4.5, (colour, behind)  # WCAG 2, level AA
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # a narrow one does not scroll sideways
    opened.context.close()


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    brighter, darker = sorted((light(one), light(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_without_its_script_it_still_filters(browser: Any, tmp_path: Path) -> None:
    opened = Open(browser, tmp_path / "results.html", page_of(ITEMS), java_script_enabled=False)
    articles = opened.page.locator("article")
    assert not opened.page.locator("#choose").is_visible()
    opened.page.locator("#errors").check()
    assert [each.get_attribute("data-id") for each in articles.all() if each.is_visible()] == ["11"]
    opened.page.locator("#changed").check()
    assert [each.get_attribute("data-id") for each in articles.all() if each.is_visible()] == ["1", "3", "10", "12"]
    opened.context.close()


def test_thousands_of_items_are_filtered_and_sorted(browser: Any, tmp_path: Path) -> None:
    items = [replace(ITEMS[number % 4], id_task_item=number + 1) for number in range(4_000)]
    opened = Open(browser, tmp_path / "results.html", page_of(items))
    spent = """([name, value]) => {
        const field = document.querySelector(`#choose [name=${name}]`);
        const begun = performance.now();
        field.value = value;
        field.dispatchEvent(new Event("change", {bubbles: true}));
        return performance.now() - begun;
    }"""
    for choice in (["sort", "-ratio"], ["kind", "diacritics"], ["text", "jest"]):
        assert opened.page.evaluate(spent, choice) < 3000  # hundredths of a second on a quiet machine
    assert opened.page.locator("#choose output").text_content() == "1,000 of 4,000 items"
    assert opened.complaints == []
    opened.context.close()


def test_the_summary_stands_above() -> None:
    edits = Edits(3, 2, 100, 7, 2, 0.05, {Kind.SPELLING: 6, Kind.WORD_ADDED: 2})
    page = page_of(ITEMS, edits)
    assert "<dt>items changed</dt><dd>2 of 3</dd>" in page
    assert "<dt>over-editing, all words</dt><dd>8.8 %</dd>" in page
    assert "<dt>over-editing, mean of items</dt><dd>5 %</dd>" in page
    assert "<dt>word added</dt><dd>2</dd>" in page
    assert "over-editing, all words" not in page_of(ITEMS)


def test_what_is_no_variant_of_its_text_has_no_marks() -> None:
    translated = item(1, "Dziś jest ładnie", "The weather is fine today")
    assert measure(translated.text_original, translated.text_corrected or "").ratio > 0.8
    assert "<ins" not in page_of([translated])
    assert "<ins" in page_of([translated], Edits(1, 1, 3, 3, 2, 1.0, {Kind.REWORDED: 3}))  # of a correction one wants to see it
