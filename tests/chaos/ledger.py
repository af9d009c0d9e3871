"""The audit at the end of a fault test: items against results, attempts, counters, and what the provider saw, to the unit.

Texts are made so that each occurs once: a call can then be told from every other, and the provider's count of a text is the
number of calls that its item has cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.acceptance.fleet import Fake, sentences
from tests.conftest import Sql
from tests.integration.lifecycle import assert_ledger

OPEN = "(0, 2, 4)"  # PENDING, IN_PROGRESS, DEFERRED


def texts(count: int, prefix: str = "") -> list[str]:
    """So many different texts, real sentences where they are at hand."""
    lines = sentences()
    return [f"{prefix}{number}: {lines[number % len(lines)]}" for number in range(count)]


def open_items(sql: Sql, *tasks: int) -> int:
    """How many items are still to be done, of these tasks or of all."""
    which = f" AND id_task IN ({', '.join(map(str, tasks))})" if tasks else ""
    count: int = sql(f"SELECT COUNT(*) AS n FROM task_item WHERE status_id IN {OPEN}{which}")[0]["n"]
    return count


def wait_until(is_so: Callable[[], bool], timeout: float, what: str | Callable[[], str], step: float = 0.05) -> float:
    """Waits for it; the seconds that it took. Fails the test after `timeout` seconds, saying what did not come."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < timeout, f"not within {timeout:g} s: {what() if callable(what) else what}"
        time.sleep(step)
    return time.monotonic() - began


@dataclass(frozen=True)
class Account:
    """What a run came to. `calls`: answered and billed by the provider; `extra_calls`: those beyond one for each item."""

    items: int
    processed: int
    failed: int
    attempts: int
    calls: int
    extra_calls: int
    lost_attempts: int  # written by rescues
    unaccounted_calls: int  # billed calls of which no attempt knows: made by workers that died with the answer


def audit(sql: Sql, provider: Fake | None, *tasks: int, may_fail: bool = False) -> Account:
    """Fails the test unless every item of these tasks is done exactly once and all sums agree; else what the run came to.

    may_fail: items may end as dead letters (then each has a reason).
    """
    which = f"IN ({', '.join(map(str, tasks))})"
    assert open_items(sql, *tasks) == 0
    assert_ledger(sql)
    items = sql(
        "SELECT id_task_item, status_id, attempt, lost_count, text_original, text_corrected, error_kind, tokens_input,"
        f" tokens_output FROM task_item WHERE id_task {which}"
    )
    rows = sql(f"SELECT id_task_item, outcome, error_kind, tokens_input FROM task_attempt WHERE id_task {which}")
    per_item: dict[int, list[dict[str, Any]]] = {row["id_task_item"]: [] for row in items}
    for row in rows:
        per_item[row["id_task_item"]].append(row)
    for item in items:
        name = f"item {item['id_task_item']}"
        outcomes = [row["outcome"] for row in per_item[item["id_task_item"]]]
        if item["status_id"] == 1:
            assert outcomes.count("processed") == 1, f"{name}: committed {outcomes.count('processed')} times"
            if provider is not None:
                assert item["text_corrected"] == f"{item['text_original']} ✓", f"{name} holds another text's result"
        else:
            is_dead_letter = item["status_id"] == 3 and item["error_kind"] is not None
            assert is_dead_letter, f"{name} is {item['status_id']}, {outcomes}"
            assert may_fail, f"{name} failed: {item['error_kind']}"
            assert outcomes.count("processed") == 0, name
    for task in sql(
        f"SELECT id_task, status_id, started_at, finished_at, records_processed, records_failed FROM task WHERE id_task {which}"
    ):
        assert task["status_id"] == (3 if task["records_failed"] else 2), f"task {task['id_task']} is {task['status_id']}"
        assert task["started_at"] <= task["finished_at"]
    processed = sum(item["status_id"] == 1 for item in items)
    account = _against_provider(provider, items, rows) if provider is not None else (0, 0, 0)
    return Account(
        items=len(items),
        processed=processed,
        failed=len(items) - processed,
        attempts=len(rows),
        calls=account[0],
        extra_calls=account[1],
        lost_attempts=sum(row["outcome"] == "lost" for row in rows),
        unaccounted_calls=account[2],
    )


def assert_histories(sql: Sql, *tasks: int) -> None:
    """Fails the test unless the attempts of every item of these tasks tell its story: numbered without a gap, each that went
    wrong with its reason, the last one with the item's own end."""
    which = f"IN ({', '.join(map(str, tasks))})"
    items = sql(f"SELECT id_task_item, status_id, attempt, error_kind FROM task_item WHERE id_task {which}")
    stories: dict[int, list[dict[str, Any]]] = {row["id_task_item"]: [] for row in items}
    for row in sql(
        "SELECT id_task_item, attempt, outcome, error_kind, id_worker FROM task_attempt"
        f" WHERE id_task {which} AND step IS NULL ORDER BY attempt, operation_uuid"
    ):
        stories[row["id_task_item"]].append(row)
    for item in items:
        story = stories[item["id_task_item"]]
        told = f"item {item['id_task_item']}: {[(row['attempt'], row['outcome'], row['error_kind']) for row in story]}"
        charged = [row for row in story if row["outcome"] != "postponed"]
        assert [row["attempt"] for row in charged] == list(range(1, item["attempt"] + 1)), told
        for row in story:
            assert row["id_worker"], told
            assert (row["error_kind"] is None) == (row["outcome"] == "processed"), told
        assert charged[-1]["outcome"] == ("processed" if item["status_id"] == 1 else "failed"), told
        assert charged[-1]["error_kind"] == item["error_kind"], told


def _against_provider(provider: Fake, items: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Billed calls, those beyond one per item, and those in no attempt. The provider never billed less than was booked."""
    paid = {text: counts["paid"] for text, counts in provider.get("_texts").items()}
    booked: dict[int, int] = {}
    for row in attempts:
        if row["tokens_input"]:
            booked[row["id_task_item"]] = booked.get(row["id_task_item"], 0) + 1
    calls = extra = unknown = 0
    for item in items:
        billed = paid.get(item["text_original"], 0)
        mine = booked.get(item["id_task_item"], 0)
        assert billed >= mine, f"item {item['id_task_item']}: {mine} attempts with tokens, but {billed} calls were billed"
        assert billed >= 1 or item["status_id"] != 1, f"item {item['id_task_item']} is done, but nobody asked for it"
        calls += billed
        extra += max(0, billed - 1)
        unknown += billed - mine
    return calls, extra, unknown
