"""What is left of a worker's log when it tells of few items. The log is the same whatever the database, so one server does."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from ai_worker import log
from ai_worker.log import Log
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.worker_runs import Run, add_model, add_task, items_of, steady_waits

pytestmark = pytest.mark.parametrize("server", ["mariadb"], indirect=True)


@pytest.fixture
def _leave_no_trace() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()
    log._state = log._State()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.usefixtures("_leave_no_trace")
@pytest.mark.parametrize("level", ["info", "debug"])
def test_all_lines_of_an_item_are_written_or_none_but_for_what_goes_wrong(
    database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    with FakeProvider() as fake, steady_waits():
        fake.script(Rule("503", times=1, contains="number 3."), Rule("400_content_filter", contains="number 5."))
        model = add_model(sql, fake, "chat", "gpt")
        tasks = [add_task(sql, model, [f"Of task {task}, number {number}." for number in range(20)]) for task in range(4)]
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)  # not before the test runs: pytest puts its own there
        log.configure(level, "json", 0.1)
        Run(database_url)
    items = [item for id_task in tasks for item in items_of(sql, id_task)]
    kept = {item["id_task_item"] for item in items if Log.keeps(item["id_task_item"])}
    processed = {item["id_task_item"] for item in items if item["status_id"] == 1}
    lines = lines_of(stream)
    events = Counter(line["event"] for line in lines)

    def told(event: str) -> list[int]:
        return sorted(line["item"] for line in lines if line["event"] == event)

    assert 2 < len(kept) < 20
    assert told("DONE") == sorted(kept & processed)
    assert set(told("PROMPT")) == (kept if level == "debug" else set())
    assert {line["task"] for line in lines if line["event"] == "FETCH"} == {
        item["id_task"] for item in items if item["id_task_item"] in kept
    }
    assert (events["ERROR"], events["RETRY"], events["TASK_DONE"], events["START"], events["STOP"]) == (4, 1, 4, 1, 1)
    (left_out,) = [line for line in lines if line["event"] == "LEFT_OUT"]
    assert (left_out["share"], left_out["done"]) == (0.1, len(processed - kept))
    assert [line["event"] for line in lines][-2:] == ["LEFT_OUT", "STOP"]
