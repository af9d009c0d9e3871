"""What the watchdog is fed by: proof that the worker gets on, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ai_worker import notify
from ai_worker.log import Log
from ai_worker.models import Lane, Prompt
from ai_worker.worker import under_way, vigil
from ai_worker.worker.under_way import UnderWay
from ai_worker.worker.vigil import Vigil
from tests.service_manager import Manager, listening

PROMPT = Prompt("", "", {}, "", "", "", "")


def worker(**changes: Any) -> dict[str, Any]:
    """A worker's parts, as far as they are looked at; all is well."""
    looked = asyncio.Event()
    looked.set()
    parts = {
        "lease": SimpleNamespace(may_claim=True, log=Log()),
        "slots": SimpleNamespace(in_flight=3),
        "accounts": SimpleNamespace(load=lambda: (3, 40, 2), in_hand=1),
        "claiming": SimpleNamespace(standstill=0.0, has_looked=looked),
        "under_way": SimpleNamespace(overdue=lambda: 0),
        "draining": asyncio.Event(),
        "drain_until": lambda: math.inf,
        "longest": 0.0,
    }
    for name, values in changes.items():
        part = cast("Any", parts[name])
        for attribute, value in values.items():
            setattr(part, attribute, value)
    return parts


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], longest: float = 0.0) -> list[dict[str, str]]:
    """What such a worker tells within a few turns after it has become ready."""

    async def watched(manager: Manager) -> None:
        task = asyncio.create_task(Vigil(**{**worker(**changes), "longest": longest}).run())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with listening(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.env["NOTIFY_SOCKET"])
        monkeypatch.setenv("WATCHDOG_USEC", "15000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        asyncio.run(watched(manager))
        messages = manager.rest()
    assert messages[0]["READY"] == "1"
    return messages[1:]


def test_a_worker_that_gets_on_is_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = told(tmp_path, monkeypatch, {})
    assert len(messages) > 3
    assert {each["WATCHDOG"] for each in messages} == {"1"}
    assert messages[-1]["STATUS"] == "3 in flight, 0.0 items/s; 40 processed, 2 failed so far"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"under_way": {"overdue": lambda: 2}}, "2 calls are under way beyond their deadlines"),
        ({"claiming": {"standstill": 301.0}}, "no look for work has come to its end for 301 s, though the database answers"),
    ],
)
def test_one_that_does_not_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str) -> None:
    assert told(tmp_path, monkeypatch, changes) == [{"STATUS": says}]


def test_an_absent_database_is_no_reason_to_end_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"claiming": {"standstill": 4000.0}, "lease": {"may_claim": False}}
    messages = told(tmp_path, monkeypatch, changes)
    assert messages
    assert messages[-1] == {"WATCHDOG": "1", "STATUS": "waits for the database; 1 results in hand"}


def test_a_table_that_somebody_changes_is_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim then ends by the time-outs of its connection, which a database's URL may make longer than they are."""
    messages = told(tmp_path, monkeypatch, {"claiming": {"standstill": 301.0}}, longest=160.0)
    assert {each["WATCHDOG"] for each in messages} == {"1"}


def test_settings_read_anew_while_it_starts_do_not_make_it_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def started(manager: Manager) -> None:
        parts = worker()
        parts["claiming"].has_looked.clear()
        subject = Vigil(**parts)
        task = asyncio.create_task(subject.run())
        await asyncio.sleep(0)
        subject.reloading()
        subject.reloaded()
        assert not any("READY" in each or "RELOADING" in each for each in manager.rest())
        parts["claiming"].has_looked.set()
        await asyncio.sleep(0.02)
        assert "READY" in manager.rest()[-1]
        subject.reloading()
        subject.reloaded()
        assert [*map(set, manager.rest())] == [{"RELOADING", "MONOTONIC_USEC"}, {"READY"}]
        parts["draining"].set()
        subject.reloading()
        subject.reloaded()
        assert manager.rest() == []
        task.cancel()

    with listening(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.env["NOTIFY_SOCKET"])
        asyncio.run(started(manager))


def test_it_says_that_it_is_ready_until_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, refused = notify.tell, [notify.READY]

    def full_once(*lines: str) -> bool:
        if refused and refused[0] in lines:
            refused.clear()
            return False
        return tell(*lines)

    monkeypatch.setattr(notify, "tell", full_once)
    assert told(tmp_path, monkeypatch, {})  # begins with READY
    assert not refused


def test_nobody_asks_for_more_time_long_after_the_drain_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drained(until: Callable[[], float]) -> None:
        parts = worker()
        parts["draining"].set()
        task = asyncio.create_task(Vigil(**{**parts, "drain_until": until}).run())
        await asyncio.sleep(0.02)
        task.cancel()

    with listening(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.env["NOTIFY_SOCKET"])
        asyncio.run(drained(lambda: time.monotonic() - vigil.OVERTIME_SECONDS - 1))
        told = manager.rest()
        assert told[0] == {"STOPPING": "1"}
        assert not any("STATUS" in each for each in told)  # but for a last word when it has ended
        asyncio.run(drained(lambda: time.monotonic() + 5))
        (asking,) = [each for each in manager.rest() if "STATUS" in each]
        assert asking["EXTEND_TIMEOUT_USEC"] == "30000000"


def test_a_call_is_overdue_when_no_time_out_can_end_it_any_more() -> None:
    calls = UnderWay(10)
    now = time.monotonic()
    usual = calls.begin(PROMPT, now - 2 * 10 - under_way.GRACE_SECONDS + 1)
    assert calls.overdue() == 0
    late = calls.begin(PROMPT, now - 2 * 10 - under_way.GRACE_SECONDS - 1)
    calls.begin(PROMPT._replace(lane=Lane.FLEX), now - 2 * 10 - under_way.GRACE_SECONDS - 1)  # these take a quarter of an hour
    assert calls.overdue() == 1
    calls.end(late)
    calls.end(usual)
    assert calls.overdue() == 0


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.is_heard()
    assert not notify.tell(notify.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    assert not notify.tell(notify.READY)  # and no error


@pytest.mark.parametrize(
    ("pid", "microseconds", "seconds"), [(None, "60000000", 60.0), ("1", "60000000", None), (None, "x", None), (None, "0", None)]
)
def test_the_watchdog_is_for_the_process_that_it_names(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, microseconds: str, seconds: float | None
) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert notify.watchdog_seconds() == seconds
