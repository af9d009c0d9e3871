"""The overview's pages take the same time however many items there are."""

from __future__ import annotations

import time

import pytest

from tests.dashboard import serving
from tests.million import MILLION, huge
from tests.servers import TestServer

SECONDS = 0.2


@pytest.mark.parametrize("items", [30_000, pytest.param(MILLION, marks=pytest.mark.slow)])
def test_every_page_answers_in_a_fifth_of_a_second(server: TestServer, items: int) -> None:
    with huge(server, items) as found, serving(found.url) as dashboard:
        browser = dashboard.browser()
        for path in ("/", "/?span=day", "/ui/models", "/ui/workers", "/ui/schedules"):
            took = []
            for _ in range(4):
                begun = time.perf_counter()
                assert browser.get(path).status_code == 200
                took.append(time.perf_counter() - begun)
            assert min(took) < SECONDS, (path, took)
