"""A row of everything that `prune` deletes, as it was forty days ago."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Sql = Callable[..., list[dict[str, Any]]]

OLD = "NOW(6) - INTERVAL 40 DAY"
ALL_GONE = (
    "task",
    "task_item",
    "task_attempt",
    "task_item_step",
    "task_item_file",
    "task_item_review",
    "task_item_export",
    "task_fallback",
    "task_dependency",
    "task_source",
    "batch",
    "task_group",
    "callback",
    "context_fact",
    "result_cache",
    "worker",
    "ai_model_share",
    "worker_minute",
    "api_token",
    "web_session",
    "web_request",
    "web_failure",
    "run_request",
    "schedule_fire",
)
"""Tables in which nothing is left of these rows."""


def operation(days: int, number: int) -> bytes:
    """An attempt's UUID that begins with the time, as the program makes them; `days` ago by the host's clock."""
    milliseconds = int((time.time() - days * 86_400) * 1000)
    return milliseconds.to_bytes(6, "big") + number.to_bytes(10, "big")


def insert(sql: Sql, table: str, *, old: tuple[str, ...] = (), **columns: Any) -> int:
    """A row, with forty days ago in the columns `old`; its key, where it has a number of its own."""
    names = ", ".join([*columns, *old])
    places = ", ".join(["%s"] * len(columns) + [OLD] * len(old))
    sql(f"INSERT INTO {table} ({names}) VALUES ({places})", list(columns.values()))
    key: int = sql("SELECT LAST_INSERT_ID() AS id")[0]["id"]
    return key


def ended_task(sql: Sql, id_ai_model: int, items: int = 1, *, days: int = 40, status: int = 2, **columns: Any) -> int:
    """A task that ended so many days ago, with processed items and one attempt each; its counters are right."""
    sums = {"records_processed": items, "tokens_input": 3 * items, "tokens_output": 5 * items, "cost": items * 0.5}
    ended = {"id_ai_model": id_ai_model, "status_id": 2, "finished_at": "1970-01-01", **sums, **columns}
    id_task = insert(sql, "task", **ended)
    ago = f"NOW(6) - INTERVAL {days} DAY"
    sql(f"UPDATE task SET status_id = %s, created_at = {ago}, finished_at = {ago} WHERE id_task = %s", [status, id_task])
    names = "id_task, status_id, attempt, text_original, text_corrected, tokens_input, tokens_output, cost, finished_at"
    row = f"(%s, 1, 1, 'x', 'y', 3, 5, 0.5, {ago})"
    for start in range(0, items, 5000):
        count = min(5000, items - start)
        sql(f"INSERT INTO task_item ({names}) VALUES {', '.join([row] * count)}", [id_task] * count)
    sql(
        "INSERT INTO task_attempt (operation_uuid, id_task, id_task_item, attempt, id_ai_model, outcome, finished_at)"
        " SELECT CONCAT(LEFT(%s, 8), LPAD(UNHEX(HEX(id_task_item)), 8, CHAR(0))), id_task, id_task_item, 1, %s, 'processed',"
        "        finished_at"
        "   FROM task_item WHERE id_task = %s",
        [operation(days, 0), id_ai_model, id_task],
    )
    return id_task


def fill_with_old_rows(sql: Sql, id_ai_model: int) -> int:
    """The key of the task to which most of them belong."""
    group = insert(sql, "task_group", name="nocne", old=("created_at", "closed_at", "ended_at"))
    insert(sql, "callback", id_task_group=group, body="{}", due_at=None, old=("delivered_at",))
    id_task = ended_task(sql, id_ai_model, id_task_group=group)
    item = sql("SELECT id_task_item FROM task_item WHERE id_task = %s", [id_task])[0]["id_task_item"]
    both = {"id_task": id_task, "id_task_item": item}
    sql("UPDATE task_item SET context_key = 'anna', review_status_id = 2 WHERE id_task_item = %s", [item])
    insert(sql, "context_fact", context_key="anna", fact="lubi koty", id_task_item=item)
    insert(sql, "task_item_step", id_task_item=item, step=1, digest=bytes(32), operation_uuid=bytes(16), result="{}")
    file = {"mime_type": "image/png", "size": 1, "sha256": bytes(32), "content": "x"}
    insert(sql, "task_item_file", id_task_item=item, position=1, **file)
    insert(sql, "task_item_review", **both, review_status_id=2, reviewed_by="anna")
    export = {"outcome": "missing", "hash_before": bytes(32), "hash_after": bytes(32), "exported_by": "anna"}
    insert(sql, "task_item_export", **both, **export)
    insert(sql, "task_fallback", id_task=id_task, position=1, id_ai_model=id_ai_model)
    insert(sql, "task_dependency", id_task=id_task, after_id_task=id_task + 9999)
    insert(sql, "task_dependency", id_task=id_task + 9999, after_id_task=id_task)
    insert(sql, "task_source", id_task=id_task, table_name="t", key_column="k", text_column="x")
    batch = {"batch_key": "k", "id_task": id_task, "id_ai_model": id_ai_model, "id_worker": 1, "provider_batch_id": "b"}
    insert(sql, "batch", **batch, state="done", old=("ended_at",))
    insert(sql, "result_cache", cache_key=b"k" * 32, id_task_item=item, old=("stored_at",))
    orphan = {"id_task": id_task, "id_task_item": 4_000_000_000, "attempt": 1, "id_ai_model": 1, "outcome": "processed"}
    insert(sql, "task_attempt", operation_uuid=operation(41, 7), **orphan, old=("finished_at",))
    worker = {"host": "h", "pid": 1, "version": "1", "mode": "run", "concurrency": 1}
    id_worker = insert(sql, "worker", **worker, old=("lease_until", "ended_at"))
    insert(sql, "ai_model_share", id_ai_model=id_ai_model, id_worker=id_worker, wanted=1, granted=1)
    insert(sql, "worker_counter", id_worker=id_worker, name="claims_total", value=7)
    insert(sql, "worker_minute", id_worker=id_worker, id_ai_model=id_ai_model, old=("minute_at",))
    token = insert(sql, "api_token", name="t", token_hash=bytes(32), scopes="read", old=("revoked_at",))
    insert(sql, "web_session", session_hash=bytes(32), id_api_token=token, old=("expire_at",))
    insert(sql, "web_request", id_api_token=token, idempotency_key="k", digest=bytes(32), status=200, old=("expire_at",))
    insert(sql, "web_failure", address="::1", failures=1, old=("minute_at",))
    insert(sql, "run_request", filters="{}", old=("created_at", "ended_at"))
    insert(sql, "run_request", filters="{}", old=("created_at",))
    insert(sql, "schedule_fire", id_schedule=1, old=("due_at",))
    return id_task
