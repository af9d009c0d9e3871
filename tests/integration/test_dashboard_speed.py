"""Every page answers within a fifth of a second at the server, however many items there are; and so does a process's first one.

On a machine that does other work at the same time the slowest of several visits says little: of those after the first one the
median counts, and beside other tests the quickest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.dashboard import serving
from tests.million import MILLION, huge
from tests.servers import TestServer

MOST_MS = 200
PATHS = (
    "/",
    "/?span=day",
    "/ui/tasks",
    "/ui/tasks?text=zadanie+99",
    "/ui/tasks?text=nothing&status=in_progress",
    "/ui/tasks/1",
    "/ui/tasks/1?status=error&kind=network",
    "/ui/tasks/1?kind=nothing&after={middle}",
    "/ui/tasks/1?review=unreviewed&order=risk&after={middle}",
    "/ui/tasks/1?after={end}",
    "/ui/tasks/1/review?after={middle}",
    "/ui/items/{middle}",
    "/ui/items/{middle}/previous",
    "/ui/models",
    "/ui/workers",
    "/ui/schedules",
    "/ui/submit",
)


def test_every_page_answers_in_a_fifth_of_a_second(server: TestServer) -> None:
    took = measured(server, 30_000, 3)
    assert {path: each for path, each in took.items() if min(each) > MOST_MS} == {}


@pytest.mark.slow
def test_every_page_answers_in_a_fifth_of_a_second_with_a_million_items(server: TestServer) -> None:
    took = measured(server, MILLION, 8)
    report = [f"{path}: first {each[0]:.0f} ms, median {statistics.median(each[1:]):.0f}" for path, each in took.items()]
    assert max(max(each[0], statistics.median(each[1:])) for each in took.values()) <= MOST_MS, "\n".join(report)


def measured(server: TestServer, items: int, times: int) -> dict[str, list[float]]:
    """The times of all pages on a database with so many items."""
    with huge(server, items) as found:
        return visited(found.url, times, [path.format(middle=items // 10 * 7 + 1, end=items - 100) for path in PATHS])


def visited(url: str, times: int, paths: list[str]) -> dict[str, list[float]]:
    """How many milliseconds the server took for each visit, by its own log."""
    command = [sys.executable, "-m", "tests.visits", url, str(times), *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    took: dict[str, list[float]] = defaultdict(list)
    for line in map(json.loads, done.stderr.splitlines()):
        if line["event"] == "REQUEST":
            took[paths[int(line["request_id"].split("-")[0])]].append(line["ms"])
    assert [len(each) for each in took.values()] == [times] * len(paths)
    return took


@pytest.mark.slow
def test_a_million_items_are_counted_behind_the_page(server: TestServer) -> None:
    with huge(server) as found, serving(found.url) as dashboard:
        browser = dashboard.browser()
        assert "more than" in browser.get("/ui/tasks/1").text
        dashboard.until(lambda: "700,000 of 1,000,000" in browser.get("/ui/tasks/1").text)
