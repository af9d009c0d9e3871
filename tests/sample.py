"""A database in the middle of a working day, for people to look at: screenshots, and tests of what pages look like."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pymysql

SENTENCES = (
    ("Dzis jest ladna pogoda, wiec poszlismy na spacer.", "Dziś jest ładna pogoda, więc poszliśmy na spacer."),
    ("She dont like the new offices kitchen.", "She doesn't like the new office's kitchen."),
    ("Prosze o jak najszybszom odpowiedz.", "Proszę o jak najszybszą odpowiedź."),
    ("Their going to deliver the package tomorow.", "They're going to deliver the package tomorrow."),
    ("Zamowienie dotarlo wczoraj, ale brakuje faktury.", "Zamówienie dotarło wczoraj, ale brakuje faktury."),
    ("The datas was send to all three department.", "The data were sent to all three departments."),
)
FAILURES = (
    ("content_refused", "the provider's filter refused the text: category harassment"),
    ("bad_answer", "the answer is not the JSON that was asked for: expected `,` at line 1 column 88"),
    ("timeout", "the attempt took longer than 120 s and was broken off"),
)


def fill(connection: pymysql.Connection[Any]) -> None:
    """Fills an empty, migrated database; its clock says what is now."""
    with connection.cursor() as cursor:
        cursor.execute("SET timestamp = UNIX_TIMESTAMP()")  # all of it is of one moment, also where a minute ends meanwhile
        _models(cursor)
        _workers(cursor)
        _tasks(cursor)
        _minutes(cursor)
        _days(cursor)
        _schedules(cursor)
        cursor.execute("SET timestamp = DEFAULT")
    connection.commit()


def _models(cursor: Any) -> None:
    cursor.execute(
        "INSERT INTO ai_model (id_ai_model, name, provider, model, max_requests_per_minute, max_tokens_per_minute,"
        " max_in_flight, budget_per_day, price_input, price_cached, price_output,"
        " stopped_kind, stopped_reason, stopped_at, probe_at) VALUES"
        " (1, 'gpt-mini', 'openai', 'gpt-5.4-mini', 3000, NULL, 200, 25, 0.4, 0.1, 1.6, NULL, NULL, NULL, NULL),"
        " (2, 'gemini-flash', 'gemini', 'gemini-3-flash', NULL, NULL, 64, 10, 0.3, 0.075, 2.5, NULL, NULL, NULL, NULL),"
        " (3, 'house-llama', 'openai', 'llama-4-70b', NULL, NULL, 16, NULL, NULL, NULL, NULL, 'quota_exhausted',"
        " 'You exceeded your current quota, please check your plan and billing details.', NOW(6) - INTERVAL 34 MINUTE,"
        " NOW(6) + INTERVAL 4 MINUTE),"
        " (4, 'offline', 'offline', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
    )
    cursor.execute(
        "INSERT INTO ai_model_pace (id_ai_model, requests_per_minute, tokens_per_minute)"
        " VALUES (1, NULL, 2000000), (2, 1000, 1000000)"
    )


def _workers(cursor: Any) -> None:
    rows = [
        ("worker-1.example", 811, 64, 61, 41_220, 312, "0", "NULL"),
        ("worker-1.example", 812, 64, 58, 40_918, 287, "1", "NULL"),
        ("worker-2.example", 4410, 64, 12, 22_004, 190, "2", "NOW(6) - INTERVAL 20 SECOND"),
        ("worker-3.example", 97, 32, 30, 9_120, 44, "24", "NULL"),
    ]
    for host, pid, concurrency, in_flight, processed, failed, silent, draining in rows:
        cursor.execute(
            "INSERT INTO worker (host, pid, version, mode, concurrency, in_flight, items_processed, items_failed, started_at,"
            " heartbeat_at, lease_until, draining_at) VALUES (%s, %s, '0.1.0', 'daemon', %s, %s, %s, %s,"
            f" NOW(6) - INTERVAL 9 HOUR, NOW(6) - INTERVAL {silent} SECOND, NOW(6) + INTERVAL 1 DAY, {draining})",
            [host, pid, concurrency, in_flight, processed, failed],
        )
    # A beat is half a lease late: the third is short of its.
    cursor.execute("UPDATE worker SET lease_until = heartbeat_at + INTERVAL 40 SECOND WHERE host = 'worker-3.example'")
    cursor.execute(
        "INSERT INTO worker (host, pid, version, mode, concurrency, items_processed, items_failed, started_at, heartbeat_at,"
        " lease_until, ended_at) VALUES ('worker-2.example', 4300, '0.1.0', 'run', 8, 1200, 3, NOW(6) - INTERVAL 5 HOUR,"
        " NOW(6) - INTERVAL 4 HOUR, NOW(6) - INTERVAL 4 HOUR, NOW(6) - INTERVAL 4 HOUR)"
    )


def _tasks(cursor: Any) -> None:
    """The task of a few sentences is id 1, in review; the others are under way, waiting, paused, ended."""
    insert = (
        "INSERT INTO task (id_task, id_ai_model, task_type, description, status_id, status_reason, priority,"
        " queue, records_processed, records_failed, tokens_input, tokens_output, cost, created_at,"
        " started_at, finished_at, budget) VALUES"
        " (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, NOW(6) - INTERVAL %s MINUTE, NOW(6) - INTERVAL %s MINUTE,"
        " NOW(6) - INTERVAL %s MINUTE, %s)"
    )
    cursor.executemany(
        insert,
        [
            (1, 1, "correction", "Correct spelling and grammar.", 3, None, 0, "default", 6, 3, 1800, 640,
             "0.0114", 95, 94, 90, None),
            (2, 1, "correction", "Product reviews", 1, None, 0, "default", 640, 12, 210_400, 81_250, "0.2142", 50, 42, None, 5),
            (3, 2, "translation", "Help pages into Polish, for new customers", 1, None, 5, "bulk",
             210, 0, 98_200, 104_880, "0.2917", 30, 28, None, None),
            (4, 2, "categorization", "Tickets of the last week", 0, None, 0, "default", 0, 0, 0, 0, None, 6, None, None, None),
            (5, 3, "summary", "Minutes", 4, "by anna", 0, "default", 18, 0, 44_000, 3_100, None, 300, 290, None, None),
            (6, 1, "correction", "Newsletter", 2, None, 0, "default", 12, 0, 9_000, 4_100, "0.0102", 1500, 1499, 1490, None),
        ],
    )  # fmt: skip
    for number, (original, corrected) in enumerate(SENTENCES):
        cursor.execute(
            "INSERT INTO task_item (id_task, status_id, attempt, external_key, text_original, text_corrected, change_summary,"
            " finished_at, tokens_input, tokens_output, cost) VALUES (1, 1, 1, %s, %s, %s, 'spelling', NOW(6), 300, 106, 0.0019)",
            [f"row-{number + 1}", original, corrected],
        )
    for number, (kind, message) in enumerate(FAILURES):
        cursor.execute(
            "INSERT INTO task_item (id_task, status_id, attempt, text_original, error_kind, error_message, finished_at)"
            " VALUES (1, 3, 3, %s, %s, %s, NOW(6) - INTERVAL %s MINUTE)",
            [SENTENCES[number][0], kind, message, 3 + 11 * number],
        )
    for id_task, done, failed, pending, in_flight, deferred in (
        (2, 640, 12, 480, 90, 9),
        (3, 210, 0, 700, 41, 0),
        (4, 0, 0, 320, 0, 0),
    ):
        original, corrected = SENTENCES[id_task]
        many: Sequence[tuple[int, str]] = (
            (done, f"SELECT {id_task}, 1, 1, %s, %s, NULL, NULL, NOW(6), NULL, NULL, NULL"),
            (
                failed,
                f"SELECT {id_task}, 3, 3, %s, NULL, 'bad_answer', 'the answer is empty', NOW(6) - INTERVAL 12 MINUTE,"
                " NULL, NULL, NULL",
            ),
            (pending, f"SELECT {id_task}, 0, 0, %s, NULL, NULL, NULL, NULL, NULL, NULL, NULL"),
            (in_flight, f"SELECT {id_task}, 2, 1, %s, NULL, NULL, NULL, NULL, 1, UNHEX(REPEAT('0', 32)), NULL"),
            (
                deferred,
                f"SELECT {id_task}, 4, 1, %s, NULL, 'rate_limited', 'too many requests', NULL, NULL, NULL,"
                " NOW(6) + INTERVAL 1 HOUR",
            ),
        )
        for count, select in many:
            values = [original, corrected] if select.count("%s") == 2 else [original]
            cursor.executemany(
                "INSERT INTO task_item (id_task, status_id, attempt, text_original, text_corrected, error_kind, error_message,"
                f" finished_at, id_worker, claim_token, available_at) {select}",
                [values] * count,
            )  # fmt: skip


def _minutes(cursor: Any) -> None:
    """A day with a morning, a lunch break and a quarter of an hour in which a model answered slowly."""
    rows = []
    for back in range(24 * 60):
        level = 0.35 + 0.65 * max(0.0, math.sin((1440 - back) / 1440 * math.pi * 2.2)) if (back + 100) % 470 > 25 else 0.0
        wave = 1 + 0.18 * math.sin(back / 3.1) + 0.1 * math.sin(back / 7.7)
        for model, weight, price in ((1, 340, "0.00033"), (2, 120, "0.0014")):
            processed = int(weight * level * wave)
            if not processed:
                continue
            failed = int(processed * (0.09 if 20 <= back < 30 else 0.012))
            slow = 3 if 18 <= back < 32 else 1
            shares = (0, 1, 4, 22, 38, 24, 8, 2 * slow, slow * slow, slow - 1, 0, 0, 0)
            latencies = [processed * share // sum(shares) for share in shares]
            rows.append(
                (back, 1, model, processed, failed, processed * 320, processed * 130, processed, price, json.dumps(latencies))
            )
    cursor.executemany(
        "INSERT INTO worker_minute (minute_at, id_worker, id_ai_model, processed, failed, tokens_input, tokens_output, cost,"
        " latencies) VALUES (UTC_TIMESTAMP() - INTERVAL SECOND(UTC_TIMESTAMP()) SECOND - INTERVAL %s MINUTE, %s, %s, %s, %s, %s,"
        " %s, %s * %s, %s)",
        rows,
    )


def _days(cursor: Any) -> None:
    for model, base, price in ((1, 52_000, 0.00033), (2, 8_100, 0.0014), (4, 900, 0.0)):
        for back in range(14):
            attempts = int(base * (0.35 if back % 7 in {2, 3} else 1) * (1 + 0.3 * math.sin(back * 1.7)))
            cursor.execute(
                "INSERT INTO ai_model_day (id_ai_model, day, shard, attempts, tokens_input, tokens_output, tokens_cached, cost)"
                " VALUES (%s, UTC_DATE() - INTERVAL %s DAY, 0, %s, %s, %s, %s, %s)",
                [model, back, attempts, attempts * 320, attempts * 130, attempts * 90, round(attempts * price, 4)],
            )


def _schedules(cursor: Any) -> None:
    cursor.execute(
        "INSERT INTO schedule (name, cron, time_zone, is_active, id_ai_model, task_type, description, items, next_at, message)"
        " VALUES ('nightly reviews', '0 2 * * *', 'Europe/Warsaw', 1, 1, 'correction', 'Reviews of the day',"
        "  JSON_ARRAY(JSON_OBJECT('text', 'a')), UTC_DATE() + INTERVAL 25 HOUR, NULL),"
        " ('weekly digest', '30 6 * * MON', 'UTC', 1, 2, 'summary', 'What happened in the week',"
        "  JSON_ARRAY(JSON_OBJECT('text', 'a')), UTC_DATE() + INTERVAL 7 DAY, NULL),"
        " ('old export', '*/10 * * * *', 'Mars/Olympus', 1, 2, 'summary', NULL, JSON_ARRAY(JSON_OBJECT('text', 'a')),"
        "  NULL,"
        "  'there is no time zone ''Mars/Olympus'' on this host; write it as Europe/Warsaw or UTC')"
    )
    cursor.execute("INSERT INTO schedule_fire (id_schedule, due_at, id_task) VALUES (1, UTC_DATE() + INTERVAL 1 HOUR, 6)")
