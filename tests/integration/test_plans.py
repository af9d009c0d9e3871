"""How the servers execute the queue's statements: which index, how many rows, and how many locks.

Run on 20,000 items in 8 tasks, as they are in the middle of the work, and on tables so small that reading them whole is cheapest:
there a plan may lock the rows of others.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction, statements
from ai_worker.models import Filters, QueueShare
from ai_worker.store.claims import filter_columns
from ai_worker.store.queue import Queue
from tests.integration.lifecycle import Sql
from tests.servers import TestDatabase, TestServer

TASKS, ITEMS = 8, 2500  # items of each task
CLAIM, PRIMARY, DUE, RUNNABLE, LEASE = "k_task_item_claim", "PRIMARY", "k_task_item_due", "k_task_runnable", "k_worker_lease"
CURRENT, PROMPTS = "k_prompt_current", 40  # versions of one prompt

CONTEXT = "k_task_item_context"
EXPORT = "k_task_item_export_item"

# statement -> table or alias -> (key, how many rows it may look at by the optimizer's estimate)
EXPECTED: dict[str, dict[str, tuple[str, int]]] = {
    # claim
    "runnable_tasks": {
        "t": (RUNNABLE, 20),
        "m": (PRIMARY, 1),
        "i": (CLAIM, ITEMS),
        "f": (PRIMARY, 2),
        "fm": (PRIMARY, 1),
        "d": (PRIMARY, 2),
        "pr": (CURRENT, PROMPTS),
    },
    "lock_pending_of_task": {"task_item": (CLAIM, ITEMS + 500)},
    "lock_pending_of_tasks": {"task_item": (CLAIM, 4 * ITEMS + 500)},
    "lock_pending_item": {"task_item": (PRIMARY, 1)},
    "task_states": {"task": (PRIMARY, 4)},
    "mark_claimed": {"task_item": (PRIMARY, 250)},
    "mark_claimed_each": {"i": (PRIMARY, 1)},
    "lock_budget": {"task": (PRIMARY, 1)},
    "reserved_of_task": {"task_item": (CLAIM, 1000)},
    "model_budget": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS), "d": (PRIMARY, 16)},
    "pause_unpaid": {"task": (PRIMARY, 1)},
    "tasks_to_resume": {"task": (RUNNABLE, 30)},
    "resume_tasks": {"task": (PRIMARY, 4)},
    "put_off_items": {"task_item": (PRIMARY, 250)},
    "start_tasks": {"task": (PRIMARY, 4)},
    "claimed_items": {"task_item": (PRIMARY, 250)},
    "unclaim": {"task_item": (PRIMARY, 250)},
    "lock_queue_limit": {"queue_limit": (PRIMARY, 1)},
    "in_flight_of_limit": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS)},
    "pace_queue_limit": {"queue_limit": (PRIMARY, 1)},
    # waiting for work
    "wait_for_items": {"c": (PRIMARY, 500), "i": (PRIMARY, 500)},
    "wait_for_item": {"i": (PRIMARY, 1)},
    "claim_new_item": {
        "i": (PRIMARY, 1),
        "t": (PRIMARY, 1),
        "m": (PRIMARY, 1),
        "d": (PRIMARY, 2),
        "pr": (CURRENT, PROMPTS),
    },
    "claimed_new_item": {"i": (PRIMARY, 1), "t": (PRIMARY, 1), "m": (PRIMARY, 1), "f": (PRIMARY, 2)},
    # order and time: the look of every second, and what it leads to
    "look_at_time": {
        "s": ("k_schedule_due", 5),
        "g": ("k_task_group_open", 100),
        "c": ("k_callback_due", 10),
        "t": ("k_task_expire", 5),
        "w": (LEASE, 300),
    },
    "held_tasks": {"t": (RUNNABLE, 30), "d": (PRIMARY, 2), "p": (PRIMARY, 1), "i": (CLAIM, ITEMS)},
    "dependencies_of_task": {"d": (PRIMARY, 2), "p": (PRIMARY, 1)},
    "groups_to_end": {"g": ("k_task_group_open", 100), "t": ("k_task_group", 5)},
    "open_task_of_group": {"task": ("k_task_group", 5)},
    "lock_due_callbacks": {"callback": ("k_callback_due", 10)},
    "take_callbacks": {"callback": (PRIMARY, 250)},
    "lock_due_schedule": {"schedule": ("k_schedule_due", 5)},
    "move_schedule": {"schedule": (PRIMARY, 1)},
    "expired_tasks": {"task": ("k_task_expire", 5)},
    "clear_results": {"task_item": (PRIMARY, 250)},
    # looks: charts and metrics
    "open_tasks": {"t": (RUNNABLE, 60)},
    "open_spans": {"t": (RUNNABLE, 60), "i": (CLAIM, ITEMS), "d": (PRIMARY, 2), "p": (PRIMARY, 1)},
    "count_waiting": {"task_item": (CLAIM, 4 * ITEMS + 500)},
    "sample_waiting": {"task_item": (CLAIM, ITEMS)},
    "tasks_under_way": {"task": (RUNNABLE, 30)},
    "last_failures": {"task_item": (CLAIM, ITEMS)},
    "items_in_progress": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS)},
    "minutes_since": {"w": (PRIMARY, 10)},
    "lock_counters": {"worker_counter": (PRIMARY, 10)},
    # looks of people: a page reads so many entries of an index, and the rows of what it shows
    "search_tasks": {"task": (PRIMARY, 60), "t": (PRIMARY, 1), "m": (PRIMARY, 1)},
    "end_of_search": {"task": (PRIMARY, 60)},
    "task_choices": {"task": (PRIMARY, 60), "t": (PRIMARY, 1)},
    "task_reports_of": {"t": (PRIMARY, 4), "m": (PRIMARY, 1), "i": (CLAIM, ITEMS)},
    "task_in_words": {"t": (PRIMARY, 1)},  # what it has none of, prompt or source, the plan leaves out
    "fallbacks_of_task": {"f": (PRIMARY, 2), "m": (PRIMARY, 1)},
    "tasks_with_failures": {"task": (PRIMARY, 60), "t": (PRIMARY, 1)},
    "few_items": {"task_item": (CLAIM, ITEMS)},
    "task_counts": {"task_item": (CLAIM, ITEMS)},
    "task_steps": {"task_item": (CLAIM, ITEMS)},
    "first_errors": {"task_item": (CLAIM, ITEMS), "i": (PRIMARY, 1)},
    "next_items": {"task_item": (CLAIM, ITEMS)},
    "matching_items": {"task_item": (CLAIM, ITEMS)},
    "matching_items_before": {"task_item": (CLAIM, ITEMS)},
    "end_of_matching": {"task_item": (CLAIM, ITEMS)},
    "ends_of_task": {"task_item": (CLAIM, ITEMS)},
    "items_in_status": {"task_item": (CLAIM, ITEMS)},
    "item_lines": {"task_item": (PRIMARY, 250)},
    "edit_ratios": {"task_item": (PRIMARY, 250)},
    "item_state": {"task_item": (PRIMARY, 1)},
    "item_in_full": {"i": (PRIMARY, 1), "t": (PRIMARY, 1), "m": (PRIMARY, 1)},
    "attempts_of_item": {"a": ("k_task_attempt_item", 10), "m": (PRIMARY, 1)},
    "reviews_of_item": {"task_item_review": ("k_task_item_review_item", 10)},
    "latest_verdict": {"task_item_review": ("k_task_item_review_task", 400)},
    "files_with_thumbnails": {"task_item_file": (PRIMARY, 250)},
    # commit
    "lock_committed": {"task_item": (PRIMARY, 250)},
    "landed_operations": {"task_attempt": (PRIMARY, 250)},
    "rescued_operations": {"task_attempt": (PRIMARY, 250)},
    "last_words": {"a": ("k_task_attempt_item", 250), "m": (PRIMARY, 1)},
    "store_results": {"i": (PRIMARY, 1)},
    "store_outcomes": {"i": (PRIMARY, 1)},
    "charge_items": {"i": (PRIMARY, 1)},
    "forget_lost_attempts": {"a": (PRIMARY, 250)},
    "lock_tasks": {"task": (PRIMARY, 4)},
    "tasks_without_open_items": {"t": (PRIMARY, 4), "i": (CLAIM, ITEMS)},
    "settle_tasks": {"t": (PRIMARY, 1)},
    "end_tasks": {"task": (PRIMARY, 4)},
    # steps and parts
    "item_steps": {"task_item_step": (PRIMARY, 10)},
    "begin_steps": {"task_item": (PRIMARY, 1)},
    "stored_steps": {"task_item_step": (PRIMARY, 1000)},
    "reserve_step": {"task_item": (PRIMARY, 1)},
    "book_step": {"task_item": (PRIMARY, 1)},
    "forget_steps": {"s": (PRIMARY, 10)},
    "forget_parts": {"s": (PRIMARY, 10)},
    "clear_steps": {"s": (PRIMARY, 10)},
    "forget_files": {"f": (PRIMARY, 10)},
    "clear_files": {"f": (PRIMARY, 10)},
    "steps_of_items": {"s": (PRIMARY, 1000), "a": (PRIMARY, 1), "m": (PRIMARY, 1)},
    "current_prompt": {"prompt": (CURRENT, PROMPTS)},
    # the result cache
    "find_answers": {"c": (PRIMARY, 250), "i": (PRIMARY, 1), "w": (PRIMARY, 1)},
    "drop_answers": {"c": (PRIMARY, 250)},
    "store_answers": {"c": (PRIMARY, 250)},
    # clients that wait
    "item_states": {"task_item": (PRIMARY, 250)},
    "item_results": {"i": (PRIMARY, 250), "f": (PRIMARY, 10)},
    # what is drawn into prompts
    "earlier_results": {"i": (CONTEXT, 400), "t": (PRIMARY, 1), "o": (CONTEXT, 400)},
    "newest_facts": {"f": ("k_context_fact_newest", 400), "i": (PRIMARY, 1)},
    "reviewed_examples": {"r": ("k_task_item_review_task", 400), "i": (PRIMARY, 1)},
    # review and export: one pass over a task's results, in pages
    "items_to_review": {"task_item": (CLAIM, ITEMS)},
    "unreviewed_items": {"task_item": (CLAIM, ITEMS)},
    "items_of_span": {"task_item": (PRIMARY, 250)},
    "lock_to_review": {"task_item": (PRIMARY, 250)},
    "review_items": {"task_item": (PRIMARY, 250)},
    "accepted_items": {
        "i": (CLAIM, ITEMS),
        "last": (PRIMARY, 1),
        "written": (PRIMARY, 1),
        "e": (EXPORT, 10),
        "w": (EXPORT, 10),
    },
    "accepted_texts": {"task_item": (PRIMARY, 250)},
    "latest_exports": {"task_item_export": (EXPORT, 1000), "e": (PRIMARY, 1)},
    # dry runs: one pass over all tasks, in pages
    "preview_tasks": {
        "t": (PRIMARY, 100),
        "m": (PRIMARY, 1),
        "i": (CLAIM, ITEMS),
        "f": (PRIMARY, 2),
        "fm": (PRIMARY, 1),
        "d": (PRIMARY, 2),
    },
    # heartbeat, rescue, upkeep
    "beat": {"worker": (PRIMARY, 1)},
    "end_worker": {"worker": (PRIMARY, 1)},
    "mark_worker_lost": {"worker": (PRIMARY, 1)},
    "lock_stale_worker": {"worker": (LEASE, 300)},
    "items_of_worker": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS)},
    "claims_of_worker": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS)},
    "orphaned_items": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS), "w": (PRIMARY, 1)},
    "lock_lost_items": {"task_item": (PRIMARY, 250)},
    "give_back_lost": {"task_item": (PRIMARY, 250)},
    "cancel_lost": {"task_item": (PRIMARY, 250)},
    "bury_lost": {"task_item": (PRIMARY, 250)},
    "lock_due": {"task_item": (DUE, 1500)},
    "promote_due": {"task_item": (PRIMARY, 250)},
    "next_due": {"task_item": (DUE, 1500)},
    "reopen_tasks": {"task": (PRIMARY, 4)},
    "open_tasks_without_open_items": {"t": (RUNNABLE, 30), "i": (CLAIM, ITEMS)},
    "finished_tasks_page": {"t": (PRIMARY, 1000), "i": (CLAIM, ITEMS)},
    "others_at_work": {"w": (LEASE, 300), "t": (RUNNABLE, 30), "i": (CLAIM, ITEMS)},
    # prune: looks in pages up a key or off an index alone, deletions by key
    "prune_tasks_page": {"task": (PRIMARY, 100)},
    "prune_look": {
        "t": (PRIMARY, 4),
        "i": (CLAIM, ITEMS),
        "b": ("k_batch_task", 5),
        "d": ("k_task_dependency_after", 5),
        "w": (PRIMARY, 1),
        "g": (PRIMARY, 1),
        "s": (PRIMARY, 1),
    },
    "prune_items": {"task_item": (CLAIM, 4 * ITEMS + 500)},
    "lock_pruned_items": {"task_item": (PRIMARY, 250)},
    "lock_pruned_tasks": {"task": (PRIMARY, 4)},
    "paths_of_items": {"task_item_file": (PRIMARY, 500)},
    "prune_rejected_facts": {"i": (PRIMARY, 1), "f": ("k_context_fact_newest", 400)},
    "prune_attempts": {"a": ("k_task_attempt_item", 10)},
    "prune_reviews": {"v": ("k_task_item_review_item", 10)},
    "prune_exports": {"e": (EXPORT, 10)},
    "prune_these_items": {"i": (PRIMARY, 1)},
    "uncount_pruned": {"t": (PRIMARY, 1)},
    "tasks_without_items": {"t": (PRIMARY, 4), "i": (CLAIM, ITEMS)},
    "prune_these_tasks": {"t": (PRIMARY, 1)},
    "prune_groups_page": {"g": (PRIMARY, 300), "t": ("k_task_group", 5), "c": ("u_callback_group", 1)},
    "ended_workers": {"worker": (LEASE, 300)},
    "prune_minutes": {"worker_minute": (PRIMARY, 10)},
    "prune_answers_page": {"c": (PRIMARY, 5000), "i": (PRIMARY, 1)},
    "prune_answers": {"c": (PRIMARY, 250)},
    "prune_attempts_page": {"a": (PRIMARY, 100), "i": (PRIMARY, 1)},
    "prune_these_attempts": {"a": (PRIMARY, 250)},
}
WORKER = "host, pid, version, mode, concurrency, lease_until"
OF_ONE_TASK = {
    "last_failures",
    "lock_budget",
    "reserved_of_task",
    "pause_unpaid",
    "reviewed_examples",
    "accepted_items",
    "dependencies_of_task",
    "sample_waiting",
    "task_in_words",
    "fallbacks_of_task",
    "few_items",
    "task_counts",
    "task_steps",
    "first_errors",
    "next_items",
    "matching_items",
    "matching_items_before",
    "end_of_matching",
    "ends_of_task",
    "items_in_status",
    "latest_verdict",
}
OF_ONE_ITEM = {"item_state", "item_in_full", "attempts_of_item", "reviews_of_item"}
# A sort of unlocked rows, a hundred at most: tasks in progress that seem to have ended, the attempts of one item.
SORTS = {"open_tasks_without_open_items", "attempts_of_item"}
# A row per queue is put together without a lock, from two indexes alone.
# From the end of the key, as far as a LIMIT goes.
FROM_THE_END = {"search_tasks", "end_of_search", "task_choices", "tasks_with_failures"}
# The choices of a filter are of the newest tasks alone.
GROUPED = {"open_tasks", "items_in_progress", "task_choices"}
# Statements that name rows by key must lock these alone, also where the table is small.
LOCKING = [name for name in EXPECTED if re.search("^(UPDATE|DELETE)|FOR UPDATE", statements()[name])]
PRUNING = [name for name in EXPECTED if "prune" in name or name == "ended_workers"]
WAITING = {"wait_for_items", "wait_for_item", "prune_minutes"}  # not by key: what comes, and the past
BY_KEY = [name for name in LOCKING if [key for key, _ in EXPECTED[name].values()] == [PRIMARY] and name not in WAITING]


@dataclass(frozen=True)
class Busy:
    """A database in the middle of the work."""

    server: TestServer
    name: str
    url: str
    tasks: list[int]
    items: list[int]  # of the third task, pending ones

    def open(self) -> Database:
        return Database(parse_database_url(self.url))


@pytest.fixture(scope="module")
def busy(server: TestServer) -> Iterator[Busy]:
    """Per task: a third done, some deferred (most of them for long), some in progress, the others pending. 200 workers."""
    with server.new_database() as name:
        TestDatabase(server, name).migrate()
        values = ", ".join(["('tekst do poprawienia')"] * 100)
        server.execute(
            f"USE {name}",
            "INSERT INTO ai_model (name, provider) VALUES ('m', 'echo')",
            "CREATE TEMPORARY TABLE texts (text_original VARCHAR(100))",
            *[f"INSERT INTO texts VALUES {values}"] * (ITEMS // 100),
            *["INSERT INTO task (id_ai_model, status_id, started_at) VALUES (1, 1, NOW(6))"] * TASKS,
            *["INSERT INTO task (id_ai_model, status_id, finished_at) VALUES (1, 2, NOW(6))"] * 50,
            *[f"INSERT INTO task_item (id_task, text_original) SELECT {each}, text_original FROM texts" for each in range(1, 9)],
            # A library of 20 prompts in 30 versions each.
            *[
                "INSERT INTO prompt (name, version, origin, digest, source) VALUES "
                + ", ".join([f"('{name}', {each}, 'pushed', UNHEX(SHA2('{name} {each}', 256)), '')" for each in range(1, 31)])
                for name in ["correction", *(f"custom{each}" for each in range(19))]
            ],
            *[f"INSERT INTO worker ({WORKER}) VALUES ('h', 1, '0', 'run', 1, NOW(6) + INTERVAL 1 DAY)"] * 200,
            "UPDATE worker SET lease_until = NOW(6) - INTERVAL 1 DAY WHERE id_worker % 100 = 0",
            "UPDATE task_item SET status_id = 1, finished_at = NOW(6), attempt = 1 WHERE id_task_item % 3 = 0",
            "UPDATE task_item SET status_id = 4, attempt = 1,"
            " available_at = NOW(6) + INTERVAL CAST(id_task_item AS SIGNED) - 2000 SECOND"
            " WHERE status_id = 0 AND id_task_item % 10 = 1",
            "UPDATE task_item SET status_id = 2, id_worker = 1 + id_task_item % 200, claim_token = REPEAT('x', 16), attempt = 1"
            " WHERE status_id = 0 AND id_task_item % 10 = 3",
            "INSERT INTO result_cache (cache_key, id_task_item, id_worker, stored_at)"
            " SELECT UNHEX(LPAD(HEX(id_task_item), 64, '0')), id_task_item, IF(status_id = 2, id_worker, NULL),"
            " IF(status_id = 2, NULL, NOW(6)) FROM task_item WHERE id_task_item <= 5000",
            "UPDATE task_item SET context_key = CONCAT('klient ', id_task_item % 100)",
            "INSERT INTO context_fact (context_key, fact) SELECT context_key, CONCAT('fakt ', id_task_item) FROM task_item",
            "INSERT INTO task_item_review (id_task, id_task_item, review_status_id, reviewed_by)"
            " SELECT id_task, id_task_item, 1 + id_task_item % 2, 'ja' FROM task_item WHERE id_task_item % 9 = 0",
            "INSERT INTO task_item_step (id_task_item, step, part, digest, operation_uuid, result)"
            " SELECT id_task_item, 1, 1 + id_task_item % 3, REPEAT('d', 32), REPEAT('o', 16), '{}' FROM task_item",
            "INSERT INTO task_item_file (id_task_item, position, mime_type, size, sha256, content)"
            " SELECT id_task_item, 0, 'image/png', 1, REPEAT('s', 32), 'x' FROM task_item",
            "INSERT INTO task_dependency (id_task, after_id_task) SELECT id_task, id_task - 1 FROM task WHERE id_task > 8",
            "INSERT INTO task_group (name, closed_at, ended_at)"
            " SELECT id_task_item, IF(id_task_item % 5, NOW(6), NULL), IF(id_task_item % 5, NOW(6), NULL)"
            " FROM task_item LIMIT 300",
            "INSERT INTO callback (id_task_group, body, due_at, delivered_at) SELECT id_task_group, '{}',"
            " IF(id_task_group % 50, NULL, NOW(6)), IF(id_task_group % 50, NOW(6), NULL) FROM task_group",
            "INSERT INTO schedule (name, cron, id_ai_model, task_type, items, next_at)"
            " SELECT id_task_item, '* * * * *', 1, '', '[]', NOW(6) + INTERVAL 1 DAY FROM task_item LIMIT 100",
            "UPDATE task SET id_task_group = 1 + id_task % 100",
            "ANALYZE TABLE task_dependency, task_group, callback, schedule",
            *["INSERT INTO task_item_export (id_task, id_task_item, outcome, hash_before, hash_after, exported_by)"
              " SELECT id_task, id_task_item, 'written', REPEAT('x', 32), REPEAT('y', 32), 'ja' FROM task_item"] * 2,
            "ANALYZE TABLE task_item, task, worker, ai_model, task_attempt, result_cache, context_fact, task_item_review, "
            "task_item_export, prompt, task_item_step, task_item_file",
        )  # fmt: skip
        rows = server.execute(f"USE {name}", "SELECT id_task_item FROM task_item WHERE id_task = 3 AND status_id = 0 ORDER BY 1")
        yield Busy(server, name, server.url(name), list(range(1, TASKS + 1)), [row["id_task_item"] for row in rows])


def explain(server: TestServer, database: str, name: str, **values: Any) -> list[dict[str, Any]]:
    """The plan of a named statement, one row per table that it reads."""
    with server.connect(database) as connection, connection.cursor() as cursor:
        text = statements()[name]
        given: Any = {**parameters(), **values}
        if name == "store_results":  # has a line of VALUES; two rows, for a single one is looked up before the plan is made
            text = re.sub(r"^VALUES (.*)$", r"VALUES \1, \1", text, flags=re.MULTILINE)
            given = [value for key in (101, 102) for value in (key, 0, b"x" * 16, 1, 1, None, "tekst", None, "{}")]
        cursor.execute("EXPLAIN FORMAT=TRADITIONAL " + text, given)
        return [row for row in cursor.fetchall() if row["table"] is not None]


def key_of(item: int) -> bytes:
    """A key of the result cache."""
    return item.to_bytes(32)


def parameters() -> dict[str, Any]:
    """Something for every parameter of the statements in EXPECTED."""
    items = list(range(100, 350))
    return {
        **filter_columns(Filters()),
        "id_task": None,
        "id_ai_model": 1,
        "reason": "spent",
        "is_for_today": False,
        "id_task_item": None,
        "tasks": [1, 2, 3, 4],
        "id_prompt": 1,
        "items": items,
        "after": 0,
        "size": 10,
        "id_worker": 7,
        "claim_token": b"x" * 16,
        "operations": [bytes([each % 256] * 16) for each in items],
        "rows": json.dumps([{"id": each, "at": 1} for each in items]),
        "keys": [key_of(each) for each in items],
        "seen": [(key_of(each), each, 7) for each in items],
        "led": [(key_of(each), each) for each in items],
        "busy_models": (0,),
        "new_item": 100,
        "queue": "reply",
        "task_type": "",
        "most": 10,
        "count": 1,
        "credit_us": 500_000,
        "minute_us": 60_500_000,
        "name": "ai_worker.turn",
        "context_key": "klient 7",
        "longest": 1000,
        "any_type": False,
        "types": ("reply",),
        "looks": 10,
        "before": 2**63,
        "lease_us": 1,
        "delay_us": 1,
        "id_task_group": 1,
        "id_schedule": 1,
        "next_at": None,
        "callbacks": items,
        "done": 1,
        "total": 3,
        "tokens_input": 10,
        "tokens_output": 10,
        "cost": None,
        "reserved": None,
        "is_all": True,
        "but": 0,
        "lease": 60,
        "in_flight": 0,
        "host": "h",
        "pid": 1,
        "items_processed": 0,
        "items_failed": 0,
        "review_status_id": 1,
        "status": 1,
        "text_reviewed": None,
        "reviewed_by": "ja",
        "workers": [7],
        "since": "2026-01-01",
        "status_id": 0,
        "error_kind": None,
        "text": None,
        "model": None,
        "scan": 2000,
        "offset": 1999,
        "characters": 240,
        "bytes": 200_000,
        "thumbnails": True,
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_plan(busy: Busy, name: str) -> None:
    values: dict[str, Any] = {}
    if name == "lock_pending_of_task":
        values = {"id_task": 3, "after": busy.items[0]}
    elif name in OF_ONE_TASK:
        values = {"id_task": 3}
    elif name in OF_ONE_ITEM:
        values = {"id_task_item": busy.items[0]}
    elif name in {"items_to_review", "unreviewed_items", "items_of_span"}:
        values = {"id_task": 3, "after": busy.items[0], "last": busy.items[0] + 200}
    elif name in {"item_steps", "begin_steps", "reserve_step", "book_step", "forget_steps"}:
        values = {"id_task_item": busy.items[0]}
    elif name == "lock_pending_item":
        values = {"id_task": 3, "id_task_item": busy.items[0]}
    elif name == "wait_for_items":
        values = {"after": 10**9}
    elif name == "wait_for_item":
        values = {"item": busy.items[0]}
    elif name == "claim_new_item":
        values = {"any_type": True}
    elif name in PRUNING:
        values = {"before": "2026-01-01", "until": b"\xff"}
        if name in {"prune_answers_page", "prune_attempts_page"}:
            values["after"] = b""
    seen = set()
    for row in explain(busy.server, busy.name, name, **values):
        extra = row["Extra"] or ""
        # What is put together out of rows that were read is as bounded as these are.
        is_derived = row["table"].startswith("<")
        assert "temporary" not in extra or is_derived or row["table"] == "r" or name in GROUPED, row
        assert "join buffer" not in extra, row
        if name not in SORTS | GROUPED and not is_derived:
            assert "filesort" not in extra, row
        if row["table"] in EXPECTED[name]:
            key, most = EXPECTED[name][row["table"]]
            seen.add(row["table"])
            assert row["key"] == key, row
            is_from_the_end = name in FROM_THE_END and row["table"] == "task"
            assert row["type"] in {"const", "eq_ref", "ref", "range"} or key == LEASE or is_from_the_end, row
            assert int(row["rows"]) <= most, row
        else:
            assert row["table"] in {"r", "m", "p", "g", "s", "w", "look"} or row["table"].startswith("<"), (
                row
            )  # JSON; a model, its pace; a union
    # Where a server sees before it starts that no row can match, it says no more.
    assert seen == EXPECTED[name].keys() or name in {
        "landed_operations",
        "rescued_operations",
        "forget_lost_attempts",
        "lock_pending_item",
        "claimed_new_item",
        "lock_queue_limit",
        "prune_these_attempts",
    }


def test_tasks_of_other_queues_are_passed_over_in_the_index(server: TestServer, sql: Sql, database_url: str) -> None:
    sql("INSERT INTO ai_model (id_ai_model, name, provider) VALUES (1, 'm', 'echo')")
    for status in (0, 1, 4):
        sql(f"INSERT INTO task (id_ai_model, status_id) VALUES {', '.join([f'(1, {status})'] * 300)}")
        sql(f"INSERT INTO task (id_ai_model, status_id, queue) VALUES {', '.join([f'(1, {status}, %s)'] * 3)}", ["reply"] * 3)
    sql(f"INSERT INTO worker ({WORKER}) VALUES ('h', 1, '', '', 1, NOW(6)), ('h', 1, '', '', 1, NOW(6))")
    sql("ANALYZE TABLE task, worker")
    columns = filter_columns(Filters(queues=(QueueShare("reply"),)))
    for name in ("runnable_tasks", "others_at_work", "waiting_items", "unpaid_tasks"):
        plan = explain(server, parse_database_url(database_url).database, name, **columns, spent_models=(0,))
        tasks = [row for row in plan if row["table"] == "t"]
        assert tasks, plan
        for row in tasks:
            assert (row["key"], "filesort" in (row["Extra"] or "")) == (RUNNABLE, False), (name, row)
            assert "Using index condition" in row["Extra"], (name, row)


@pytest.mark.parametrize("name", BY_KEY)
def test_rows_named_by_key_are_found_by_key_in_small_tables_too(
    server: TestServer, sql: Sql, database_url: str, name: str
) -> None:
    sql("INSERT INTO ai_model (id_ai_model, name, provider) VALUES (1, 'm', 'echo')")
    for task in (1, 2, 3, 4, 5):
        sql("INSERT INTO task (id_task, id_ai_model) VALUES (%s, 1)", [task])
        sql(f"INSERT INTO worker (id_worker, {WORKER}) VALUES (%s, 'h', 1, '', '', 1, NOW(6))", [task])
        sql("INSERT INTO task_item (id_task_item, id_task, text_original) VALUES (%s, 1, 'x')", [100 + task])
        sql(
            "INSERT INTO task_attempt (operation_uuid, id_task, id_task_item, attempt, id_ai_model, outcome, error_kind)"
            " VALUES (%s, 1, %s, 1, 1, 'lost', 'lost')",
            [bytes([100 + task] * 16), 100 + task],
        )
        sql("INSERT INTO result_cache (cache_key, id_task_item, id_worker) VALUES (%s, %s, 1)", [key_of(100 + task), 100 + task])
        step = "(id_task_item, step, part, digest, operation_uuid, result) VALUES (%s, 1, 1, '', %s, '{}')"
        sql(f"INSERT INTO task_item_step {step}", [100 + task, bytes([100 + task] * 16)])
        file = "(id_task_item, position, mime_type, size, sha256, content) VALUES (%s, 0, 'image/png', 1, '', 'x')"
        sql(f"INSERT INTO task_item_file {file}", [100 + task])
    sql("INSERT INTO queue_limit (queue, task_type, max_in_flight) VALUES ('reply', '', 3), ('batch', '', 3), ('a', 'b', 3)")
    sql("ANALYZE TABLE task_item, task, worker, ai_model, task_attempt, result_cache, queue_limit")
    sql("ANALYZE TABLE task_item_step, task_item_file")
    values: dict[str, Any] = {"id_task": 1, "id_task_item": 101, "id_worker": 3, "items": [101, 102, 103, 104]}
    values["operations"] = [bytes([each] * 16) for each in values["items"]]
    values["keys"] = [key_of(each) for each in values["items"]]
    values["seen"] = [(key_of(each), each, 1) for each in values["items"]]
    values["led"] = [(key_of(each), each) for each in values["items"]]
    keys = [1, 2, 3, 4] if name == "settle_tasks" else values["items"]
    values["rows"] = json.dumps([{"id": key, "at": 0} for key in keys])
    if name in PRUNING:
        values["before"] = "2026-01-01"
    plan = explain(server, parse_database_url(database_url).database, name, **values)
    rows = [row for row in plan if row["table"] != "r" and not row["table"].startswith("<")]
    assert [row["key"] for row in rows] == [PRIMARY]
    assert rows[0]["type"] in {"const", "eq_ref", "ref", "range"}


# ----- locks


def rows_locked(busy: Busy, tx: Transaction) -> int:
    """Records that this transaction holds locked, by the server's own count."""
    connection = tx.raw("SELECT CONNECTION_ID() AS id")[0]["id"]
    time.sleep(0.15)  # the table below is a cache, which is filled anew only 0.1 s after it was last read
    rows = busy.server.execute(
        f"SELECT trx_rows_locked AS n FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {connection}"
    )
    if not rows:
        return 0  # it has done nothing yet that InnoDB would call a transaction
    count = int(rows[0]["n"])
    if busy.server.name == "mysql":
        held = busy.server.execute(
            "SELECT COUNT(*) AS n FROM performance_schema.data_locks l JOIN performance_schema.threads t USING (thread_id)"
            f" WHERE t.processlist_id = {connection} AND l.lock_type = 'RECORD'"
        )
        count = max(count, int(held[0]["n"]))
    return count


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lock_pending_of_task", {"id_task": 3, "after": 0, "size": 10}),
        ("lock_pending_of_tasks", {"tasks": [1, 2, 3, 4], "size": 10}),
    ],
)
def test_a_claim_locks_its_rows_alone_and_the_next_one_gets_others_at_once(busy: Busy, name: str, values: dict[str, Any]) -> None:
    one, two = busy.open(), busy.open()
    taken: list[set[int]] = []

    def lock(tx: Transaction) -> None:
        taken.append({row["id_task_item"] for row in tx.query(name, values)})
        assert len(taken[-1]) == 10
        assert 10 <= rows_locked(busy, tx) <= 30

    def second(tx: Transaction) -> None:
        tx.raw("SET SESSION innodb_lock_wait_timeout = 1")
        lock(tx)

    def first(tx: Transaction) -> None:
        lock(tx)
        two.transaction(second)

    one.transaction(first)
    assert len(taken) == 2
    assert not taken[0] & taken[1]
    one.close()
    two.close()


def test_rows_that_wait_for_their_time_are_not_locked(busy: Busy) -> None:
    database = busy.open()

    def work(tx: Transaction) -> tuple[int, int]:
        return len(tx.query("lock_due")), rows_locked(busy, tx)

    due, locked = database.transaction(work)
    assert 50 < due < 500
    assert due <= locked <= 3 * due
    database.close()


def test_a_commit_locks_its_rows_alone(busy: Busy) -> None:
    database = busy.open()

    def work(tx: Transaction) -> int:
        assert len(tx.query("lock_committed", {"items": busy.items[:10]})) == 10
        return rows_locked(busy, tx)

    assert 10 <= database.transaction(work) <= 11
    database.close()


def test_a_rescue_locks_one_worker(busy: Busy) -> None:
    database = busy.open()

    def work(tx: Transaction) -> int:
        assert len(tx.query("lock_stale_worker")) == 1
        return rows_locked(busy, tx)

    assert 1 <= database.transaction(work) <= 4
    database.close()


def test_a_look_for_work_locks_nothing(busy: Busy) -> None:
    database = busy.open()

    def work(tx: Transaction) -> int:
        assert tx.query("runnable_tasks", {**filter_columns(Filters()), "busy_models": (0,)})
        assert tx.query("task_states", {"tasks": [1, 2]})
        return rows_locked(busy, tx)

    assert database.transaction(work) == 0
    assert len(Queue(database).runnable(Filters())) == TASKS
    database.close()
