"""Groups: they end once, and their callback arrives, is signed, and is never lost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import DatabaseError, UsageError
from ai_worker.keys import Keyring, generate_master_key
from ai_worker.models import Secret
from ai_worker.store import callbacks as module
from ai_worker.store import groups as groups_module
from ai_worker.store.callbacks import TRIES, Callback, Callbacks, wait_after
from ai_worker.store.groups import LISTED_TASKS, Groups
from ai_worker.store.new_tasks import NewItem, NewTask
from ai_worker.store.queue import Queue
from ai_worker.store.tasks import Tasks
from ai_worker.worker.courier import Courier
from ai_worker.worker.lease import Lease
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application, claim, done, failed
from tests.integration.receivers import DROP, Receiver, receiving
from tests.servers import Programs

pytest_plugins = ["tests.integration.lifecycle"]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = generate_master_key()


@pytest.fixture
def groups(database: Database) -> Groups:
    return Groups(database)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def ring() -> Keyring:
    return Keyring(Secret(KEY))


def make(groups: Groups, ring: Keyring, name: str, url: str | None) -> int:
    return groups.add(name, url, lambda id_task_group: ring.encrypt_group(id_task_group, Secret(SECRET)))


def send(database: Database, ring: Keyring, keep: Any = None) -> None:
    """What a worker does for callbacks in its loop, once."""
    lease = Lease(Queue(database), lease_seconds=30, mode="run", concurrency=1, name="x")
    courier = Courier(Callbacks(database), asyncio.to_thread, ring.decrypt_group, lease)
    asyncio.run(courier.last_round(keep or (lambda: None)))


def make_due(sql: Sql) -> None:
    sql("UPDATE callback SET due_at = NOW(6) WHERE due_at IS NOT NULL")


def callback(sql: Sql) -> dict[str, Any]:
    (row,) = sql("SELECT * FROM callback")
    return row


# ----- the end


def test_a_group_ends_once_it_is_closed_and_all_its_tasks_have_ended(
    application: Application, queue: Queue, worker: int, model: int, groups: Groups, ring: Keyring, sql: Sql
) -> None:
    id_group = make(groups, ring, "nocne", "http://127.0.0.1:1/x")
    first, second = (application.task(model, id_task_group=id_group) for _ in range(2))
    for task in (first, second):
        application.items(task)
    one, two = claim(queue, worker, 2)
    queue.commit(worker, [done(one)])
    assert groups.end_some() == []  # open, and at work
    assert groups.close("nocne")
    assert not groups.close("nocne")
    assert groups.end_some() == []  # still at work
    queue.commit(worker, [failed(two)])
    assert [tuple(each) for each in groups.end_some()] == [("nocne", 2)]
    assert groups.end_some() == []
    row = application.row("task_group", id_group)
    body = json.loads(callback(sql)["body"])
    assert body.pop("ended_at") == row["ended_at"].isoformat(timespec="milliseconds") + "Z"
    assert body == {
        "type": "group.ended",
        "group": "nocne",
        "counts": {"tasks": 2, "completed": 1, "error": 1, "cancelled": 0, "records_processed": 1, "records_failed": 1},
        "cost": "0.001234567",
        "tasks": [
            {"id_task": first, "status": "COMPLETED", "records_processed": 1, "records_failed": 0, "cost": "0.001234567"},
            {"id_task": second, "status": "ERROR", "records_processed": 0, "records_failed": 1, "cost": None},
        ],
    }
    assert queue.reopen_for_new_items(application.items(first)[0] - 1) == 1  # goes on, and does not end the group again
    assert groups.end_some() == []


def test_it_ends_once_though_many_see_it(
    application: Application, model: int, groups: Groups, database_url: str, sql: Sql
) -> None:
    for number in range(6):
        id_group = groups.add(f"g{number}", "http://127.0.0.1:1/x")
        application.task(model, id_task_group=id_group, status_id=2, finished_at="2026-01-01")
        groups.close(f"g{number}")
    users = [Database(parse_database_url(database_url)) for _ in range(5)]
    ended: list[str] = []

    def end(user: Database) -> None:
        ended.extend(each.name for each in Groups(user).end_some())

    threads = [threading.Thread(target=end, args=[user]) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    ended += [each.name for each in groups.end_some()]  # what others were just ending was stepped over
    for user in users:
        user.close()
    assert sorted(ended) == [f"g{number}" for number in range(6)]
    assert sql("SELECT COUNT(*) AS n FROM callback") == [{"n": 6}]


def test_a_body_stays_small(model: int, groups: Groups, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(count: int, records: int, cost: str) -> Any:
        sql("DELETE FROM task")
        sql("DELETE FROM callback")
        sql("UPDATE task_group SET ended_at = NULL, closed_at = NOW(6)")
        row = f"({model}, {id_group}, 2, NOW(6), {records}, {cost})"
        columns = "id_ai_model, id_task_group, status_id, finished_at, records_processed, cost"
        sql(f"INSERT INTO task ({columns}) VALUES " + ", ".join([row] * count))
        assert groups.end_some()
        text = callback(sql)["body"]
        assert len(text.encode()) < 65_536
        return json.loads(text)

    id_group = groups.add("ż" * 190, "http://127.0.0.1:1/x")
    assert len(body(LISTED_TASKS, 1000, "1.123456789")["tasks"]) == LISTED_TASKS
    monkeypatch.setattr(groups_module, "LONGEST_BODY", 50_000)
    assert "tasks" not in body(LISTED_TASKS, 1000, "1.123456789")
    large = body(LISTED_TASKS + 1, 1, "0.000000001")
    assert "tasks" not in large
    assert (large["counts"]["tasks"], large["cost"]) == (LISTED_TASKS + 1, "0.000000501")


def test_nothing_joins_a_closed_group(groups: Groups, database: Database, model: int, sql: Sql) -> None:
    tasks = Tasks(database)
    id_group = groups.add("nocne")
    first = NewTask(model, "correction", id_task_group=groups.id_of("nocne"), submit_key="raz")
    tasks.submit(first, lambda: iter([NewItem("a")]))

    def rows() -> Iterator[NewItem]:  # it is closed while they are being sent
        yield NewItem("a")
        sql("UPDATE task_group SET closed_at = NOW(6)")

    with pytest.raises(UsageError, match="closed"):
        tasks.submit(NewTask(model, "correction", id_task_group=id_group), rows)
    assert len(sql("SELECT * FROM task")) == len(sql("SELECT * FROM task_item")) == 1
    with pytest.raises(UsageError, match="'nocne' is closed"):
        tasks.submit(NewTask(model, "correction", id_task_group=id_group), rows)
    again = tasks.submit(first, rows)
    assert not again.is_new  # it joined while the group was open
    with pytest.raises(UsageError, match="no group 'inne'"):
        groups.id_of("inne")


# ----- the callback


@pytest.fixture
def ended(groups: Groups, ring: Keyring, receiver: Receiver, application: Application, model: int) -> str:
    """The name of a group that has ended, and whose callback is due."""
    id_group = make(groups, ring, "nocne", receiver.url)
    application.task(model, id_task_group=id_group, status_id=2, finished_at="2026-01-01")
    groups.close("nocne")
    assert groups.end_some()
    return "nocne"


def test_a_callback_is_delivered_once_and_signed(
    ended: str, receiver: Receiver, database: Database, ring: Keyring, sql: Sql, groups: Groups
) -> None:
    send(database, ring)
    send(database, ring)
    (got,) = receiver.received
    assert got.is_signed_with(SECRET)
    assert not got.is_signed_with("whsec_" + "A" * 32)
    assert got.json["group"] == ended
    assert got.headers["content-type"].startswith("application/json")
    (now,) = sql("SELECT UNIX_TIMESTAMP() AS now")
    assert abs(int(got.headers["webhook-timestamp"]) - now["now"]) < 10
    row = callback(sql)
    assert (row["attempts"], row["last_status"], row["due_at"], row["last_error"]) == (1, 204, None, None)
    assert groups.get(ended).delivery.state == "delivered"  # type: ignore[union-attr]  # it has one


@pytest.mark.parametrize(
    ("status", "reason"),
    [(500, "the receiver answered 500"), (302, "the receiver answered 302"), (DROP, "no answer: ServerDisconnectedError")],
)
def test_it_is_sent_again_under_the_same_id(
    ended: str, receiver: Receiver, database: Database, ring: Keyring, sql: Sql, status: int, reason: str
) -> None:
    receiver.script[:] = [status]
    send(database, ring)
    row = callback(sql)
    assert (row["last_error"], row["last_status"], row["delivered_at"]) == (reason, status or None, None)
    assert sql("SELECT due_at > NOW(6) + INTERVAL 2 SECOND AND due_at < NOW(6) + INTERVAL 6 SECOND AS later FROM callback") == [
        {"later": 1}
    ]
    send(database, ring)
    assert len(receiver.received) == 1  # not before its time
    make_due(sql)
    send(database, ring)
    first, second = receiver.received
    assert first.id == second.id
    assert first.body == second.body
    assert second.is_signed_with(SECRET)
    assert callback(sql)["delivered_at"] is not None


def test_it_is_sent_again_when_its_record_was_lost(
    ended: str, receiver: Receiver, database: Database, ring: Keyring, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker is killed between the answer and the record: whoever comes after its lease sends it once more."""
    with monkeypatch.context() as patch:
        patch.setattr(Callbacks, "delivered", lambda *_: (_ for _ in ()).throw(DatabaseError("away")))
        send(database, ring)
    (seconds,) = sql("SELECT TIMESTAMPDIFF(SECOND, NOW(6), due_at) AS left_ FROM callback")
    assert module.LEASE_SECONDS - 10 < seconds["left_"] <= module.LEASE_SECONDS
    make_due(sql)
    send(database, ring)
    first, second = receiver.received
    assert first.id == second.id
    assert callback(sql)["delivered_at"] is not None


def test_a_record_that_fails_holds_up_no_other_callback(
    ended: str,
    groups: Groups,
    receiver: Receiver,
    database: Database,
    ring: Keyring,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(groups, ring, "wolne", receiver.url)
    groups.close("wolne")
    assert groups.end_some()
    delivered, post = Callbacks.delivered, Courier._post

    def lost(self: Callbacks, callback: Callback, status: int) -> None:
        if callback.group == ended:
            raise DatabaseError("disk full", 1114)
        delivered(self, callback, status)

    async def slower(self: Courier, session: Any, callback: Callback) -> tuple[int | None, str | None]:
        await asyncio.sleep(0.2 if callback.group == "wolne" else 0)
        return await post(self, session, callback)

    monkeypatch.setattr(Callbacks, "delivered", lost)
    monkeypatch.setattr(Courier, "_post", slower)
    send(database, ring)
    rows = sql(
        "SELECT g.name, c.delivered_at IS NOT NULL AS is_delivered FROM callback c JOIN task_group g USING (id_task_group)"
    )
    assert {row["name"]: row["is_delivered"] for row in rows} == {ended: 0, "wolne": 1}


def test_it_is_given_up_after_about_three_days_and_sent_again_when_asked(
    ended: str, receiver: Receiver, database: Database, ring: Keyring, sql: Sql, groups: Groups
) -> None:
    waits = [wait_after(tries) for tries in range(1, TRIES)]
    assert waits[0] == 5
    assert waits[-1] == 6 * 3600
    assert 2.5 * 86_400 < sum(waits) < 3.5 * 86_400
    sql("UPDATE callback SET attempts = %s", [TRIES - 1])
    receiver.script[:] = [503]
    send(database, ring)
    row = callback(sql)
    assert (row["due_at"], row["last_status"]) == (None, 503)
    assert row["failed_at"] is not None
    (given_up,) = Callbacks(database).given_up()
    assert (given_up.group, given_up.reason) == (ended, "the receiver answered 503")
    groups.retry(ended)
    receiver.script[:] = [503]
    send(database, ring)
    row = callback(sql)
    assert (row["attempts"], row["failed_at"], row["due_at"] is None) == (1, None, False)
    groups.retry(ended)  # nor does anybody have to wait for the next try
    groups.retry(ended)
    send(database, ring)
    assert groups.get(ended).delivery.state == "delivered"  # type: ignore[union-attr]  # it has one
    with pytest.raises(UsageError, match="is delivered"):
        groups.retry(ended)


def test_what_goes_wrong_shows_neither_secret_nor_url(
    groups: Groups, ring: Keyring, database: Database, sql: Sql, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, url in (
        ("a", "http://user:haslo@127.0.0.1:1/?token=tajny"),
        ("b", "mailto:tajny@example.com"),
        ("c", "http://[tajny"),
    ):
        make(groups, ring, name, url)
        groups.close(name)
    groups.end_some()
    send(database, Keyring(Secret(generate_master_key())))
    make_due(sql)
    send(database, ring)
    shown = "".join(row["last_error"] for row in sql("SELECT last_error FROM callback")) + "".join(capsys.readouterr())
    assert "no connection" in shown
    assert "its URL cannot be used" in shown
    for secret in ("tajny", "haslo", SECRET, SECRET[6:]):
        assert secret not in shown


def test_a_secret_that_cannot_be_read_here_is_said_and_tried_again(
    ended: str, receiver: Receiver, database: Database, sql: Sql
) -> None:
    send(database, Keyring(Secret(generate_master_key())))
    assert "the secret of group nocne was encrypted with another master key" in callback(sql)["last_error"]
    assert receiver.received == []
    make_due(sql)
    send(database, Keyring(Secret(KEY)))
    assert len(receiver.received) == 1


# ----- the command line and the worker


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "info")
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", KEY)
    return Commands(monkeypatch, capsys)


def test_a_run_ends_the_group_and_sends_its_callback(
    commands: Commands, application: Application, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application.model("echo")
    rows = tmp_path / "rows.txt"
    rows.write_text("Zażółć\ngęślą\n", encoding="utf-8")
    secret = commands("group", "add", "nocne", "--callback", receiver.url).out.splitlines()[-1]
    assert secret.startswith("whsec_")
    assert commands("submit", str(rows), "--group", "nocne").code == 0
    assert "open" in commands("group", "list").out
    assert commands("group", "close", "nocne").code == 0
    assert "closed" in commands("submit", str(rows), "--group", "nocne").err
    other = generate_master_key()  # the secret moves to a new key with all others
    monkeypatch.setenv("AI_WORKER_MASTER_KEY_OLD", KEY)
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", other)
    assert "1 key encrypted anew" in commands("rekey").out
    monkeypatch.delenv("AI_WORKER_MASTER_KEY_OLD")
    ran = commands("run", "--json")
    assert ran.json["processed"] == 2
    assert '"event":"CALLBACK_DELIVERED"' in ran.err
    assert secret not in ran.err
    (got,) = receiver.received
    assert got.is_signed_with(secret)
    shown = commands("group", "show", "nocne", "--json").json
    assert (shown["state"], shown["items"], shown["callback"]["state"]) == ("ended", {"processed": 2}, "delivered")
    assert "delivered (204)" in commands("group", "list").out
    assert "delivered (204)" in commands("group", "show", "nocne").out
    assert secret not in commands("group", "show", "nocne").out
    assert commands("group", "list", "--json").json[0]["tasks"] == {"completed": 1}


def test_what_the_command_line_refuses(commands: Commands, tmp_path: Path) -> None:
    for url in ("example.com", "ftp://example.com", "http://", "https://a b"):
        assert "not a URL that can be called" in commands("group", "add", "x", "--callback", url).err
    assert "give --callback" in commands("group", "add", "x", "--secret-stdin", stdin="s").err
    assert commands("group", "add", "x", "--callback", "https://example.com", "--secret-stdin", stdin="tajny\n").code == 0
    assert "there is a group 'x' already; `ai-worker group show x` shows it" in commands("group", "add", "x").err
    assert "has no callback to be sent" in commands("group", "retry", "x").err


def test_doctor_names_a_callback_that_was_given_up(commands: Commands, ended: str, sql: Sql) -> None:
    sql("UPDATE callback SET due_at = NULL, failed_at = NOW(6), last_error = 'the receiver answered 410'")
    assert "the callback of group 'nocne' was given up" in commands("doctor", "--offline").everything
    assert "given up after 0 tries: the receiver answered 410" in commands("group", "list").out
    assert "ai-worker group retry nocne" in commands("group", "show", "nocne").out
    assert "the callback of group nocne was given up: the receiver answered 410" in commands("status").out


def test_five_workers_deliver_each_callback_once(
    programs: Programs, groups: Groups, ring: Keyring, receiver: Receiver, application: Application, sql: Sql
) -> None:
    model = application.model("echo")
    for number in range(8):
        id_group = make(groups, ring, f"g{number}", receiver.url)
        application.items(application.task(model, id_task_group=id_group))
        groups.close(f"g{number}")
    workers = [programs.start("daemon", env={"AI_WORKER_MASTER_KEY": KEY}) for _ in range(5)]
    receiver.wait_for(8)
    for worker in workers:
        worker.wait_for('"event":"START"')  # before that a signal ends it at once
        worker.process.terminate()
    assert [worker.wait() for worker in workers] == [0] * 5
    assert sorted(each.json["group"] for each in receiver.received) == [f"g{number}" for number in range(8)]
    assert all(each.is_signed_with(SECRET) for each in receiver.received)
    assert sql("SELECT COUNT(*) AS n FROM callback WHERE delivered_at IS NOT NULL AND attempts = 1") == [{"n": 8}]
