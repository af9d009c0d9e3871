"""Schedules: each time fires once, whoever fires it and whatever happens to them meanwhile.

The times lie in the past and are fired as missed ones, one after the other: the real path, with nobody's clock set.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.errors import UsageError
from ai_worker.models import Lane
from ai_worker.store import schedules as module
from ai_worker.store.queue import Queue
from ai_worker.store.schedules import Broken, Fired, Missed, NewSchedule, Schedules
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application
from tests.servers import Programs

pytest_plugins = ["tests.integration.lifecycle"]

WARSAW = "Europe/Warsaw"
YEAR_2027 = "2027-01-01"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text)


def hours(first: str, count: int) -> list[datetime]:
    """So many full hours in a row."""
    return [utc(first) + timedelta(hours=number) for number in range(count)]


# name -> (cron, start, every time of 2026 in UTC). Four days around each change by the clock on the wall, hour by hour: 4 * 24
# less the hour that is skipped, or with the one that comes twice. And 02:30 each night: 01:30 UTC in winter, 00:30 in summer;
# what is skipped on 29 March comes at 03:00 (01:00 UTC), what comes twice on 25 October comes the first time.
EXPECTED: dict[str, tuple[str, str, list[datetime]]] = {
    "hourly in March": ("0 * 28-31 3 *", "2026-03-28T00:00+01:00", hours("2026-03-27T23:00", 95)),
    "hourly in October": ("0 * 24-27 10 *", "2026-10-24T00:00+02:00", hours("2026-10-23T22:00", 97)),
    "nightly in March": (
        "30 2 27-31 3 *",
        "2026-03-27T00:00+01:00",
        [utc(f"2026-03-{time}") for time in ("27T01:30", "28T01:30", "29T01:00", "30T00:30", "31T00:30")],
    ),
    "nightly in October": (
        "30 2 23-27 10 *",
        "2026-10-23T00:00+02:00",
        [utc(f"2026-10-{time}") for time in ("23T00:30", "24T00:30", "25T00:30", "26T01:30", "27T01:30")],
    ),
}
assert sum(len(times) for _, _, times in EXPECTED.values()) > 200


class Killed(BaseException):
    """Somebody's end in the middle of a transaction."""


def open_users(url: str, count: int) -> list[Database]:
    return [Database(parse_database_url(url)) for _ in range(count)]


def new(model: int, name: str = "nocny", cron: str = "0 2 * * *", **columns: Any) -> NewSchedule:
    items = columns.pop("items", [{"text": "Zamówienia z {date}"}])
    return NewSchedule(name, cron, columns.pop("time_zone", WARSAW), model, "correction", items, **columns)


def ago(sql: Sql, minutes: float) -> datetime:
    """A full minute so long before now, by the server's clock."""
    (row,) = sql("SELECT UTC_TIMESTAMP() AS now")
    moment: datetime = row["now"] - timedelta(minutes=minutes)
    return moment.replace(second=0)


def fires(sql: Sql, schedules: Schedules, name: str) -> list[dict[str, Any]]:
    return sql(
        "SELECT f.due_at, f.id_task, t.submit_key FROM schedule_fire f LEFT JOIN task t USING (id_task)"
        " WHERE f.id_schedule = %s ORDER BY f.due_at",
        [schedules.get(name).id_schedule],
    )


def assert_fired_once(sql: Sql, schedules: Schedules) -> None:
    """Every expected time has one fire, one task and that task's one item; and there is nothing else."""
    total = 0
    for name, (_, _, expected) in EXPECTED.items():
        found = [row for row in fires(sql, schedules, name) if row["due_at"] < utc(YEAR_2027)]
        assert [row["due_at"] for row in found] == expected, name
        assert len({row["id_task"] for row in found}) == len(expected)
        assert all(row["submit_key"].endswith(f"{row['due_at']:%Y-%m-%dT%H:%M:%SZ}") for row in found)
        total += len(expected)
    made = "FROM task t JOIN schedule_fire f USING (id_task) WHERE f.due_at < '2027-01-01'"
    assert sql(f"SELECT COUNT(*) AS n {made}") == [{"n": total}]
    of_items = f"FROM task_item i JOIN (SELECT id_task {made}) x USING (id_task)"
    assert sql(f"SELECT COUNT(*) AS n, COUNT(DISTINCT i.id_task) AS tasks {of_items}") == [{"n": total, "tasks": total}]
    assert sql("SELECT COUNT(*) AS n FROM task LEFT JOIN schedule_fire f USING (id_task) WHERE f.id_task IS NULL") == [{"n": 0}]


@pytest.fixture
def users(database_url: str) -> Iterator[list[Database]]:
    users = open_users(database_url, 5)
    yield users
    for user in users:
        user.close()


def test_five_workers_fire_two_hundred_times_once_each_over_both_changes(
    users: list[Database], model: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ninth of them dies before its COMMIT, with all that it has written."""
    real, count = module._fire, itertools.count(1)

    def fire(tx: Transaction, row: dict[str, Any]) -> Fired:
        fired = real(tx, row)
        if next(count) % 9 == 0:
            raise Killed
        return fired

    monkeypatch.setattr(module, "_fire", fire)
    schedules = Schedules(users[0])
    for name, (cron, start, _) in EXPECTED.items():
        begin = utc(start)
        begin = (begin - begin.utcoffset()).replace(tzinfo=None)  # type: ignore[operator]  # it names its offset
        schedules.add(new(model, name, cron, missed=Missed.ALL, start=begin))
    fired: list[Fired | Broken] = []
    deaths: list[int] = []

    def work(user: Database) -> None:
        queue = Queue(user)
        while queue.look_at_time().has_schedule:
            try:
                fired.extend(queue.schedules.fire_some())
            except Killed:
                deaths.append(1)

    threads = [threading.Thread(target=work, args=[user]) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_fired_once(sql, schedules)
    assert len(deaths) >= 20
    assert not any(isinstance(each, Broken) for each in fired)


@pytest.mark.slow
def test_five_processes_fire_them_and_some_are_killed(
    programs: Programs, database: Database, application: Application, sql: Sql, tmp_path: Path
) -> None:
    application.model("echo")
    for name, (cron, start, _) in EXPECTED.items():
        text = ("--type", "correction", "--text", "Sprawozdanie z {date}, {time}")
        added = programs.run("schedule", "add", name, "--cron", cron, "--tz", WARSAW, "--missed", "all", "--start", start, *text)
        assert added.returncode == 0, added.stderr
    workers = [programs.start("daemon", "--concurrency", "4") for _ in range(5)]

    def count() -> int:
        fired: int = sql("SELECT COUNT(*) AS n FROM schedule_fire WHERE due_at < '2027-01-01'")[0]["n"]
        return fired

    deadline = time.monotonic() + 120
    for target in (10, 60, 120):
        while count() < target:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers.pop(0).process.kill()
        workers.append(programs.start("daemon", "--concurrency", "4"))
    while count() < sum(len(times) for _, _, times in EXPECTED.values()) or sql(
        "SELECT 1 FROM task WHERE finished_at IS NULL LIMIT 1"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for worker in workers:
        worker.wait_for('"event":"START"')  # before that a signal ends it at once
        worker.process.terminate()
    assert [worker.wait() for worker in workers] == [0] * 5
    assert_fired_once(sql, Schedules(database))


# ----- missed times


@pytest.fixture
def schedules(database: Database) -> Schedules:
    return Schedules(database)


def drain(schedules: Schedules) -> list[Fired]:
    return [each for each in schedules.fire_some() if isinstance(each, Fired)]


def test_once_makes_one_task_for_all_that_was_missed_at_the_latest_time(schedules: Schedules, model: int, sql: Sql) -> None:
    schedules.add(new(model, cron="*/5 * * * *", time_zone="UTC", start=ago(sql, 60 * 24 * 3)))
    (fired,) = drain(schedules)
    assert fired.id_task is not None
    assert ago(sql, 6) < fired.due_at <= ago(sql, 0)
    assert schedules.get("nocny").next_at == fired.due_at + timedelta(minutes=5)
    assert drain(schedules) == []


def test_all_makes_a_task_for_each_in_bounded_steps(schedules: Schedules, model: int, sql: Sql) -> None:
    start = ago(sql, 60)
    schedules.add(new(model, cron="* * * * *", time_zone="UTC", missed=Missed.ALL, start=start))
    steps = [drain(schedules), drain(schedules)]
    assert len(steps[0]) == module.FIRES
    moments = [each.due_at for step in steps for each in step]
    assert moments == [start + timedelta(minutes=number) for number in range(len(moments))]
    assert 60 <= len(moments) <= 62


def test_skip_makes_none_for_what_was_missed(schedules: Schedules, model: int, sql: Sql) -> None:
    missed = ago(sql, 30)
    schedules.add(new(model, cron=f"{missed:%M} * * * *", time_zone="UTC", missed=Missed.SKIP, start=ago(sql, 300)))
    (fired,) = drain(schedules)
    assert fired.id_task is None
    assert sql("SELECT * FROM task") == []
    assert fires(sql, schedules, "nocny") == [{"due_at": missed, "id_task": None, "submit_key": None}]
    assert schedules.get("nocny").next_at == missed + timedelta(hours=1)


def test_skip_fires_in_time(schedules: Schedules, model: int, sql: Sql) -> None:
    schedules.add(new(model, cron="* * * * *", time_zone="UTC", missed=Missed.SKIP, start=ago(sql, 0)))
    (fired,) = drain(schedules)
    assert fired.id_task is not None


# ----- what is made


def test_the_task_is_as_the_schedule_says(schedules: Schedules, model: int, sql: Sql) -> None:
    items = [
        {
            "text": "Z {date} o {time}; {inne} {{date}} {",
            "external_key": "a:1",
            "context": {"autor": "Łucja"},
            "context_key": "łucja",
        },
        {"text": "bez"},
    ]
    schedules.add(
        new(
            model,
            cron="30 2 * * *",
            items=items,
            description="Popraw",
            parameters={"language": "pl"},
            priority=7,
            queue="noc",
            lane=Lane.FLEX,
            budget=Decimal("0.25"),
            result_seconds=86_400,
            start=utc("2026-03-29T00:30"),
            missed=Missed.ALL,
        )
    )
    fired = schedules.fire()
    assert isinstance(fired, Fired)
    (task,) = sql("SELECT * FROM task")
    assert (task["task_type"], task["description"], task["priority"], task["queue"]) == ("correction", "Popraw", 7, "noc")
    assert json.loads(task["parameters"]) == {"language": "pl"}
    assert (task["status_id"], task["id_ai_model"], task["cache_seconds"]) == (0, model, 0)
    assert (task["lane"], task["budget"], task["result_seconds"]) == ("flex", Decimal("0.25"), 86_400)
    rows = sql("SELECT text_original, external_key, context, context_key FROM task_item ORDER BY id_task_item")
    assert rows[0]["text_original"] == "Z 2026-03-29 o 03:00; {inne} {2026-03-29} {"  # right after the hour that was skipped
    assert (rows[0]["external_key"], json.loads(rows[0]["context"]), rows[0]["context_key"]) == (
        "a:1",
        {"autor": "Łucja"},
        "łucja",
    )
    assert rows[1] == {"text_original": "bez", "external_key": None, "context": None, "context_key": None}


def test_a_time_that_was_fired_is_not_fired_again_when_somebody_sets_it_back(schedules: Schedules, model: int, sql: Sql) -> None:
    schedules.add(new(model, cron="0 * * * *", time_zone="UTC", start=ago(sql, 90)))
    (first,) = drain(schedules)
    sql("UPDATE schedule SET next_at = %s", [first.due_at])
    (again,) = drain(schedules)
    assert (again.due_at, again.id_task) == (first.due_at, None)
    assert len(sql("SELECT * FROM task")) == 1


# ----- what is wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("time_zone = 'Mars/Base'", "time zone 'Mars/Base'"),
        ("cron = '99 * * * *'", "bad minute"),
        ("items = '{\"text\": 7}'", "its items are not a list"),
        ("items = '[\"tekst\"]'", "its items are not a list"),
    ],
)
def test_what_cannot_fire_says_so_and_keeps_nobody_else_from_it(
    schedules: Schedules, model: int, sql: Sql, change: str, message: str
) -> None:
    schedules.add(new(model, "zepsuty", "0 * * * *", start=ago(sql, 180)))
    schedules.add(new(model, "dobry", "0 * * * *", start=ago(sql, 90)))
    sql(f"UPDATE schedule SET {change} WHERE name = 'zepsuty'")
    broken, fired = schedules.fire_some()
    assert isinstance(broken, Broken)
    assert message in broken.message
    assert isinstance(fired, Fired)
    assert (schedules.get("zepsuty").next_at, schedules.broken()) == (None, [broken])
    sql("UPDATE schedule SET time_zone = 'UTC', cron = '0 * * * *', items = '[{\"text\": \"a\"}]' WHERE name = 'zepsuty'")
    assert schedules.resume("zepsuty") is not None
    assert schedules.broken() == []


def test_a_paused_schedule_does_not_fire_and_goes_on_from_now(schedules: Schedules, model: int, sql: Sql) -> None:
    schedules.add(new(model, cron="* * * * *", time_zone="UTC", missed=Missed.ALL, start=ago(sql, 10)))
    schedules.pause("nocny")
    assert drain(schedules) == []
    next_at = schedules.resume("nocny")
    assert next_at is not None
    assert next_at >= ago(sql, 0)
    with pytest.raises(UsageError, match="no schedule 'inny'"):
        schedules.pause("inny")


# ----- the command line


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "info")
    return Commands(monkeypatch, capsys)


ADD = ("schedule", "add", "nocny", "--cron", "0 2 * * *", "--tz", WARSAW, "--type", "correction")


def test_a_schedule_from_the_command_line(commands: Commands, application: Application, sql: Sql) -> None:
    application.model("echo")
    bounds = ("--budget", "0.50", "--lane", "flex", "--result-ttl", "30d")
    added = commands(*ADD, "--text", "Dzień {date}", "--start", "2026-03-01T00:00", *bounds)
    assert "fires first at 2026-03-01 02:00 CET (2026-03-01T01:00:00.000Z)" in added.out
    assert "there is a schedule 'nocny' already" in commands(*ADD, "--text", "x").err
    ran = commands("run", "--json")
    assert ran.json["processed"] == 1
    assert '"event":"SCHEDULE_FIRED"' in ran.err
    (found,) = commands("schedule", "list", "--json").json
    (task,) = sql("SELECT id_task, finished_at FROM task")
    assert (found["last_task"], found["missed"], found["items"]) == (task["id_task"], "once", 1)
    assert (found["lane"], found["budget"], found["result_seconds"]) == ("flex", "0.500000000", 2_592_000)
    assert "$0.5000 each" in commands("schedule", "show", "nocny").out
    assert found["next_local"].endswith(" 02:00")
    assert WARSAW in commands("schedule", "list").out
    times = commands("schedule", "show", "nocny", "--json").json["times"]
    assert len(times) == 5
    assert times[0] == found["next_at"]
    assert commands("schedule", "show", "nocny").out.count(" 02:00 CE") == 5
    assert "paused" in commands("schedule", "pause", "nocny").out
    assert "paused" in commands("schedule", "list").out
    assert " 02:00 CE" in commands("schedule", "resume", "nocny").out
    assert "removed" in commands("schedule", "remove", "nocny").out
    assert commands("schedule", "list", "--json").json == []
    assert len(sql("SELECT * FROM task")) == 1


def test_what_the_command_line_refuses(commands: Commands, application: Application, tmp_path: Path) -> None:
    application.model("echo")

    def refused(*args: str) -> str:
        return commands("schedule", "add", "x", "--type", "correction", *args).err

    assert "time zone 'Warsaw'" in refused("--cron", "0 2 * * *", "--tz", "Warsaw", "--text", "a")
    assert "five fields" in refused("--cron", "0 2 * *", "--text", "a")
    assert "what its items are" in refused("--cron", "0 2 * * *")
    assert "--start 'jutro' is not a time" in refused("--cron", "0 2 * * *", "--text", "a", "--start", "jutro")
    for out_of_reach in ("0001-01-01", "9999-12-31T23:59"):
        assert f"--start '{out_of_reach}' is not a time" in refused("--cron", "0 2 * * *", "--text", "a", "--start", out_of_reach)
    assert "--text '': an item must have a text" in refused("--cron", "0 2 * * *", "--text", "a", "--text", "")
    assert "--description is longer than" in refused("--cron", "0 2 * * *", "--text", "a", "--description", "x" * 65_536)
    assert "unknown parameter 'kolor'; known ones: " in refused("--cron", "0 2 * * *", "--text", "a", "--param", "kolor=zielony")
    pictures = commands("schedule", "add", "x", "--type", "image", "--cron", "0 2 * * *", "--text", "kot")
    assert (pictures.code, "the provider 'echo' makes no pictures" in pictures.err) == (2, True)
    report = ("--type", "swot", "--cron", "0 2 * * *", "--text", "a", "--param", 'models={"report": "nikt"}')
    assert "step 'report': unknown model 'nikt'" in commands("schedule", "add", "x", *report).err
    assert "takes no batches" in refused("--cron", "0 2 * * *", "--text", "a", "--lane", "batch")
    assert "--result-ttl 0" in refused("--cron", "0 2 * * *", "--text", "a", "--result-ttl", "0")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Ala", "autor": "Ola"}\n', encoding="utf-8")
    assert commands("schedule", "add", "plik", "--type", "correction", "--cron", "0 2 * * *", "--items", str(rows)).code == 0
    assert "there is no schedule 'x'" in commands("schedule", "show", "x").err


def test_doctor_names_a_broken_schedule(commands: Commands, schedules: Schedules, model: int, sql: Sql) -> None:
    schedules.add(new(model, start=ago(sql, 60 * 48)))
    sql("UPDATE schedule SET time_zone = 'Mars/Base'")
    drain(schedules)
    assert "schedule 'nocny' does not fire: there is no time zone 'Mars/Base'" in commands("doctor", "--offline").everything
    assert "schedule nocny does not fire: there is no time zone 'Mars/Base'" in commands("status").out
