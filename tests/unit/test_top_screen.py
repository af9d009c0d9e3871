"""How `top` looks, and what its keys do."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from rich.console import Console

from ai_worker.cli.top_look import Picture, Task, Worker
from ai_worker.cli.top_screen import PANES, View, screen, sizes
from ai_worker.counts import Work
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store.backlog import QueueBacklog
from ai_worker.store.reports import StoppedModel, TaskReport, WorkerReport

NOW = datetime(2026, 11, 22, 12)  # noqa: DTZ001 -- as the database gives it


def task(number: int, *, done: int = 250_000, pending: int = 750_000) -> Task:
    items = dict.fromkeys(ItemStatus, 0) | {ItemStatus.PENDING: pending, ItemStatus.PROCESSED: done}
    report = TaskReport(
        number, TaskStatus.IN_PROGRESS, None, "correction", "gpt\x1b[2J", None, "", 0, 3, items, done, 0, 0, 0, Decimal("1.5"),
        NOW, None, NOW, None, 60.0, False,
    )  # fmt: skip
    return Task(report, 125.0, True)


def picture(tasks: int = 20, workers: int = 8) -> Picture:
    return Picture(
        datetime(2026, 11, 22, 12, tzinfo=UTC),
        [task(number) for number in range(1, tasks + 1)],
        [
            Worker(WorkerReport(number, "late", "host-ä", 77, "1.0", "daemon", 50, 12, 10, 0, NOW, None, 4.0), 1.5)
            for number in range(1, workers + 1)
        ],
        [],
        [("gpt", "ready", "12 of 50", "600", "90,000", "$1.20", "$4.00 of $9.00")],
        [StoppedModel("other", "quota_exhausted", "no money left", NOW, 60.0)],
        [QueueBacklog("default", {}, pending=750_000, is_exact=False, oldest_seconds=200.0)],
        [Work(processed=number) for number in range(30)],
    )


def drawn(view: View | None = None, *, width: int = 80, height: int | None = 24, encoding: str = "utf-8", **of: int) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height or 25, color_system=None, legacy_windows=False)
    console.print(screen(picture(**of), view or View(), console, height=height))
    file.seek(0)
    return file.read().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 10), (200, 60), (60, 16)])
@pytest.mark.parametrize("pane", PANES)
def test_it_fits_into_every_terminal(width: int, height: int, pane: str) -> None:
    lines = drawn(View(pane=pane), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)


def test_eighty_columns_hold_what_matters() -> None:
    text = "\n".join(drawn())
    for words in ("8 workers", "28 items/min", "~750,000 waiting, oldest 3 min 20 s", "other is stopped: no money left"):
        assert words in text
    for words in ("██░░░░░░  25%", "125.0/s", "1 h 40 min", "90,000", "host-ä", "12/50", "q quit"):
        assert words in text


def test_a_console_without_unicode_gets_none() -> None:
    assert "##------  25%" in "\n".join(drawn(encoding="cp1252"))


def test_without_a_height_everything_is_shown_and_no_keys() -> None:
    lines = drawn(height=None)
    assert sum("IN_PROGRESS" in line for line in lines) == 20
    assert "q quit" not in "\n".join(lines)


def test_keys() -> None:
    view, rows = View(), sizes(picture())
    assert rows == {"tasks": 20, "models": 1, "workers": 8}
    presses = [("w", "workers"), ("t", "tasks"), ("M", "models"), ("right", "workers"), ("right", "tasks"), ("left", "workers")]
    for key, pane in presses:
        assert not view.press(key, rows)
        assert view.pane == pane
    for _ in range(20):
        view.press("down", rows)
    assert view.offsets["workers"] == 7
    assert "8 late" in " ".join("\n".join(drawn(view)).split())
    view.press("up", rows)
    assert view.offsets["workers"] == 6
    view.press("p", rows)
    assert view.is_paused
    assert drawn(view)[-1].startswith("PAUSED")
    assert not view.press("x", rows)
    assert view.press("q", rows)


def test_trouble_is_said_in_place_of_the_keys() -> None:
    assert drawn(View(trouble="the database is away"))[-1] == "the database is away"
