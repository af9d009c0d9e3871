"""What the client is given: each wrong value is told by the parameter's name, the value and what it may be."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from ai_worker.client import Client
from ai_worker.errors import UsageError

WRONG: list[tuple[str, str, Any, str]] = [
    ("submit", "task_type", 7, "a text of 1 to 50 characters"),
    ("submit", "task_type", "", "a text of 1 to 50 characters"),
    ("submit", "model", 7, "a text"),
    ("submit", "fallbacks", "echo", "a list of names"),
    ("submit", "fallbacks", [7], "a text"),
    ("submit", "description", None, "a text"),
    ("submit", "description", "ż" * 32_768, "a text of up to 65,535 bytes"),
    ("submit", "parameters", ["language"], "a mapping of values by name"),
    ("submit", "parameters", {7: "pl"}, "a mapping of values by name"),
    ("submit", "key", 7, "1 to 190 characters"),
    ("submit", "priority", "high", "a whole number from -32,767 to 32,767"),
    ("submit", "priority", 40_000, "a whole number from -32,767 to 32,767"),
    ("submit", "queue", 7, "no name of a queue"),
    ("submit", "context_key", 7, "a text of 1 to 190 characters"),
    ("submit", "scheduled_at", "2030-01-01", "a datetime"),
    ("submit", "scheduled_at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "a datetime between the years"),
    ("submit", "after", "7", "an id or several ids"),
    ("submit", "after", [0], "an id, a whole number above 0"),
    ("submit", "after", {7: "always"}, "one of 'success', 'end'"),
    ("submit", "group", 1.5, "an id, a whole number above 0"),
    ("submit", "budget", [], "an amount above zero"),
    ("submit", "budget", True, "an amount above zero"),
    ("submit", "result_ttl", "7d", "a number of seconds above 0 and up to 4,294,967,295"),
    ("submit", "result_ttl", float("nan"), "a number of seconds above 0"),
    ("submit", "max_attempts", 0, "a whole number from 1 to 255"),
    ("submit", "max_attempts", True, "a whole number from 1 to 255"),
    ("submit", "lane", "foo", "one of 'online', 'flex', 'batch'"),
    ("submit", "lane", "cache", "one of 'online', 'flex', 'batch'"),
    ("submit", "pack", 101, "a whole number from 1 to 100"),
    ("submit", "personal_data", "hide", "one of 'off', 'mask', 'block'"),
    ("submit", "cache_seconds", -1, "a whole number from 0 to 4,294,967,295"),
    ("wait", "id_task_item", "7", "an id, a whole number above 0"),
    ("wait", "timeout", "30", "a number of seconds"),
    ("wait", "default_on_error", "no", "True or False"),
    ("wait_all", "items", "7", "an id or several ids"),
    ("wait_all", "items", [1, "2"], "an id, a whole number above 0"),
    ("wait_all", "timeout", float("nan"), "a number of seconds"),
    ("result", "id_task_item", None, "an id, a whole number above 0"),
    ("results", "id_task", "7", "an id, a whole number above 0"),
    ("results", "only", "DONE", "one of 'PENDING', 'PROCESSED', "),
    ("results", "only", 1, "one of 'PENDING', 'PROCESSED', "),
    ("ids", "id_task", -1, "an id, a whole number above 0"),
    ("ids", "only", "DONE", "one of 'PENDING', "),
    ("status", "id_task", 2**63, "an id, a whole number above 0"),
    ("file", "file", b"x", "one of a result's `files`"),
    ("add_group", "name", 7, "a text"),
    ("add_group", "callback_url", 7, "a text"),
    ("close_group", "name", None, "a text"),
    ("group", "name", 7, "a text"),
    ("cancel", "id_task", "7", "an id, a whole number above 0"),
    ("pause", "id_task", None, "an id, a whole number above 0"),
    ("resume", "id_task", "7", "an id, a whole number above 0"),
    ("resume", "budget", "five", "an amount above zero"),
    ("retry", "id_task", 0.5, "an id, a whole number above 0"),
    ("retry", "id_task_item", "7", "an id, a whole number above 0"),
    ("review", "items", "7", "an id or several ids"),
    ("review", "items", {7: "accepted"}, "an id or several ids"),
    ("review", "verdict", "good", "one of 'UNREVIEWED', 'ACCEPTED', 'REJECTED'"),
    ("review", "verdict", 1, "one of 'UNREVIEWED', 'ACCEPTED', 'REJECTED'"),
    ("review", "by", None, "a text"),
    ("review", "text", 7, "a text"),
    ("review", "note", 7, "a text"),
]

NEEDED = {"texts": "x", "verdict": "accepted", "by": "ania", "name": "g"}  # other parameters that must be given are ids


def parts_of(value: Any) -> list[Any]:
    """Of several values the last one is wrong."""
    return list(value.values() if isinstance(value, dict) else value)[-1:] if isinstance(value, list | dict) else []


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a database that is not there: what is wrong is told before it is asked."""
    with closing(Client("mysql://nobody@127.0.0.1:1/nothing", patience=0.0)) as client:
        yield client


@pytest.mark.parametrize(("method", "name", "value", "wanted"), WRONG)
def test_a_wrong_value_is_named_with_what_it_may_be(client: Client, method: str, name: str, value: Any, wanted: str) -> None:
    parameters = inspect.signature(getattr(client, method)).parameters.values()
    values = {each.name: NEEDED.get(each.name, 1) for each in parameters if each.default is each.empty}
    with pytest.raises(UsageError) as told:
        list(getattr(client, method)(**{**values, name: value}))  # of an iterator, it is told when that is gone through
    assert name in str(told.value)
    assert any(repr(each)[:90] in str(told.value) for each in (value, *parts_of(value)))
    assert wanted in str(told.value)


def test_every_parameter_of_the_client_is_among_them() -> None:
    """But for what can be anything, and the texts, which have a table of their own."""
    free = {("submit", "texts"), ("wait", "default"), ("wait_all", "default")}
    methods = [name for name, each in vars(Client).items() if inspect.isfunction(each) and name[0] != "_" and name != "close"]
    every = {(method, each) for method in methods for each in inspect.signature(getattr(Client, method)).parameters}
    assert {each for each in every if each[1] != "self"} - free == {(method, name) for method, name, _, _ in WRONG}
