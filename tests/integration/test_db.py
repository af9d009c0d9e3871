"""The database class: what it promises of a session, and what it does when connections, transactions and hosts fail."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pymysql
import pytest

from ai_worker import db
from ai_worker.database_url import DatabaseUrl, parse_database_url
from ai_worker.db import Database, Transaction, session
from ai_worker.db.session import SILENCE
from ai_worker.errors import DatabaseAway, DatabaseError, DatabaseRefused, ValueRefused
from ai_worker.models import Secret
from tests.integration.lifecycle import Application, Sql
from tests.integration.proxy import Proxy
from tests.servers import TestServer, free_port

pytest_plugins = ["tests.integration.lifecycle", "tests.integration.proxy"]

Opened = Callable[..., Database]


@pytest.fixture
def opened(database_url: str) -> Iterator[Opened]:
    """`opened(port, …, patience=1.0)`: a Database on these ports of 127.0.0.1, tried in this order."""
    databases: list[Database] = []

    def open_(*ports: int, patience: float = 5.0, **changes: Any) -> Database:
        url = parse_database_url(database_url)
        hosts = tuple(("127.0.0.1", port) for port in ports) or url.hosts
        databases.append(Database(replace(url, hosts=hosts, **changes), patience=patience))
        return databases[-1]

    yield open_
    for each in databases:
        each.close()


def add_item(tx: Transaction, id_task: int, text: str = "x") -> None:
    tx.insert(
        "insert_items", {"id_task": id_task, "external_key": None, "context_key": None, "context": None, "text_original": text}
    )


def count(sql: Sql) -> int:
    number: int = sql("SELECT COUNT(*) AS n FROM task_item")[0]["n"]
    return number


# ----- sessions


def test_sessions_are_as_promised(database: Database) -> None:
    row = database.transaction(
        lambda tx: tx.raw(
            "SELECT @@SESSION.time_zone AS zone, @@SESSION.sql_mode AS mode, @@SESSION.innodb_lock_wait_timeout AS lock_wait,"
            " @@SESSION.character_set_client AS charset, @@SESSION.autocommit AS autocommit, @@SESSION.wait_timeout AS silence"
        )
    )[0]
    assert (row["zone"], row["lock_wait"], row["charset"], row["autocommit"]) == ("+00:00", 5, "utf8mb4", 1)
    assert "STRICT_ALL_TABLES" in row["mode"].split(",")
    assert row["silence"] == SILENCE, "a client without power would hold its locks for eight hours"
    variables = {row["Variable_name"]: row["Value"] for row in database.query("server_variables")}
    assert variables.get("transaction_isolation", variables.get("tx_isolation")) == "READ-COMMITTED"


def test_a_session_that_the_server_may_have_ended_is_changed_without_a_word(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle threads are no outage: nothing is logged, and nothing tried twice."""
    first = database._session().connection.thread_id()
    assert database._session().connection.thread_id() == first
    monkeypatch.setattr(session, "SILENCE", 0)
    database.query("server_variables")
    monkeypatch.undo()
    assert database._session().connection.thread_id() != first
    assert (database.connections, database.losses) == (1, 0)


def test_an_update_that_changes_nothing_still_counts_its_row(database: Database, task: int) -> None:
    """Else a heartbeat within the clock's resolution would look like a lost lease."""
    assert [database.execute("set_priority", {"id_task": task, "priority": 3}) for _ in range(2)] == [1, 1]


def test_each_thread_has_a_connection_of_its_own(database: Database) -> None:
    barrier = threading.Barrier(4)

    def connection_id() -> int:
        barrier.wait(10)
        number: int = database.transaction(lambda tx: tx.raw("SELECT CONNECTION_ID() AS id"))[0]["id"]
        return number

    with ThreadPoolExecutor(4) as pool:
        numbers = [each.result() for each in [pool.submit(connection_id) for _ in range(4)]]
    assert len(set(numbers)) == 4


def test_a_transaction_inside_a_transaction_is_refused_and_spoils_nothing(database: Database, task: int, sql: Sql) -> None:
    def outer(tx: Transaction) -> None:
        add_item(tx, task)
        with pytest.raises(RuntimeError, match="inside a transaction"):
            database.transaction(lambda inner: add_item(inner, task))
        with pytest.raises(RuntimeError, match="inside a transaction"):
            database.query("server_clock")

    database.transaction(outer)
    assert count(sql) == 1


def test_a_transaction_is_of_no_use_to_another_thread_or_after_its_end(database: Database) -> None:
    kept: list[Transaction] = []

    def work(tx: Transaction) -> None:
        kept.append(tx)
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="thread"):
            pool.submit(tx.query, "server_clock").result()

    database.transaction(work)
    with pytest.raises(RuntimeError, match="over"):
        kept[0].query("server_clock")


def test_an_error_in_the_work_rolls_back(database: Database, task: int, sql: Sql) -> None:
    def work(tx: Transaction) -> None:
        add_item(tx, task)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transaction(work)
    assert count(sql) == 0
    assert database.query("server_clock")


def test_a_refused_statement_says_why_and_rolls_back(database: Database, task: int, sql: Sql) -> None:
    def work(tx: Transaction) -> None:
        add_item(tx, task)
        tx.raw("SELECT nonsense")

    with pytest.raises(DatabaseError, match="nonsense") as caught:
        database.transaction(work)
    assert caught.value.code == 1054
    assert not isinstance(caught.value, DatabaseAway)
    assert count(sql) == 0


@pytest.mark.parametrize("many", [False, True])
def test_a_statement_longer_than_a_packet_is_a_clear_error(database: Database, task: int, many: bool) -> None:
    size = database.query("server_packet")[0]["bytes"]
    row = {"id_task": task, "external_key": None, "context_key": None, "context": None, "text_original": "x" * size}
    runs = []

    def work(tx: Transaction) -> None:
        runs.append(tx)
        if many:
            tx.execute_many("insert_items", [{**row, "text_original": "x"}, row])
        else:
            tx.execute("insert_items", row)

    with pytest.raises(DatabaseError, match="max_allowed_packet") as caught:
        database.transaction(work)
    assert caught.value.code == 1153
    assert not isinstance(caught.value, DatabaseAway)
    assert len(runs) == 1


def test_pages_stream_everything_once(database: Database, application: Application, task: int) -> None:
    items = application.items(task, 25)
    parameters = {"id_task": task, "status_id": 0}
    rows = list(database.pages("items_in_status", parameters, key="id_task_item", size=10))
    assert [row["id_task_item"] for row in rows] == items
    assert list(database.pages("items_in_status", {**parameters, "status_id": 1}, key="id_task_item", size=10)) == []


# ----- connections that break


def test_a_connection_lost_before_commit_is_repeated_with_one_effect(opened: Opened, proxy: Proxy, task: int, sql: Sql) -> None:
    doubts: list[bool] = []

    def work(tx: Transaction) -> None:
        doubts.append(tx.in_doubt)
        add_item(tx, task)

    proxy.break_at("COMMIT", "before")
    opened(proxy.port).transaction(work)
    assert count(sql) == 1
    assert doubts == [False, True]  # whether a COMMIT arrived cannot be known from here


def test_a_connection_lost_before_the_work_is_done_leaves_no_doubt(opened: Opened, proxy: Proxy, task: int, sql: Sql) -> None:
    doubts: list[bool] = []

    def work(tx: Transaction) -> None:
        doubts.append(tx.in_doubt)
        add_item(tx, task)

    proxy.break_at("INSERT", "after")
    opened(proxy.port).transaction(work)
    assert count(sql) == 1
    assert doubts == [False, False]


def test_a_lost_answer_to_commit_is_seen_by_the_work(opened: Opened, proxy: Proxy, task: int, sql: Sql) -> None:
    def work(tx: Transaction) -> str:
        if tx.in_doubt and tx.query("count_items", {"id_task": task})[0]["items"]:
            return "landed"
        add_item(tx, task)
        return "written"

    proxy.break_at("COMMIT", "after")
    assert opened(proxy.port).transaction(work) == "landed"
    assert count(sql) == 1


def test_doubt_stays_through_further_losses(opened: Opened, proxy: Proxy, task: int) -> None:
    doubts: list[bool] = []

    def work(tx: Transaction) -> None:
        doubts.append(tx.in_doubt)
        tx.query("task_state", {"id_task": task})

    proxy.break_at("COMMIT", "after")
    proxy.break_at("SELECT status_id FROM task", "before", times=1)
    database = opened(proxy.port)
    database.connect()
    database.transaction(work)
    assert doubts == [False, False, True]


def test_a_killed_connection_is_replaced(database: Database, task: int, sql: Sql) -> None:
    runs: list[int] = []

    def work(tx: Transaction) -> None:
        add_item(tx, task)
        runs.append(tx.raw("SELECT CONNECTION_ID() AS id")[0]["id"])
        if len(runs) == 1:
            sql(f"KILL CONNECTION {runs[0]}")
        tx.query("server_clock")

    database.transaction(work)
    assert len(set(runs)) == len(runs) == 2
    assert count(sql) == 1


def test_a_connection_that_breaks_again_and_again_is_given_up(opened: Opened, proxy: Proxy, task: int) -> None:
    proxy.break_at("COMMIT", "before", times=50)
    with pytest.raises(DatabaseAway, match="lost 5 times"):
        opened(proxy.port).transaction(lambda tx: add_item(tx, task))
    assert proxy.broken == 5


def test_single_statements_are_repeated_too(opened: Opened, proxy: Proxy, task: int) -> None:
    proxy.break_at("UPDATE task SET priority", "after")
    database = opened(proxy.port)
    assert database.execute("set_priority", {"id_task": task, "priority": 9}) == 1
    proxy.break_at("SELECT UTC_TIMESTAMP", "before")
    assert database.query("server_clock")
    assert proxy.broken == 2


def test_a_server_that_hangs_is_left(opened: Opened, database_url: str) -> None:
    """It takes the connection and says nothing: the read time-out ends that."""
    ((_, port),) = parse_database_url(database_url).hosts
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = opened(silent.getsockname()[1], port, connect_timeout=1.0, read_timeout=1.0)
        began = time.monotonic()
        assert database.query("server_clock")
        assert time.monotonic() - began < 4


# ----- conflicts


def test_a_deadlock_is_run_again_as_a_whole(database: Database, application: Application, model: int, sql: Sql) -> None:
    tasks = [application.task(model), application.task(model)]
    barrier = threading.Barrier(2)
    runs: list[int] = []

    def collide(first: int, second: int) -> None:
        met: list[bool] = []

        def work(tx: Transaction) -> None:
            runs.append(first)
            add_item(tx, first)
            tx.query("lock_task", {"id_task": first})
            if not met:
                met.append(True)
                barrier.wait(10)
            tx.query("lock_task", {"id_task": second})

        database.transaction(work)

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(collide, *tasks), pool.submit(collide, *reversed(tasks))]:
            each.result(30)
    assert len(runs) == 3
    assert count(sql) == 2


def test_a_lock_wait_that_is_too_long_is_run_again_as_a_whole(
    database: Database, task: int, sql: Sql, server: TestServer, database_url: str
) -> None:
    """The server undoes the statement alone: what went before it must not be committed twice."""
    runs: list[int] = []
    with server.connect(parse_database_url(database_url).database) as holder, holder.cursor() as cursor:
        holder.begin()
        cursor.execute("SELECT 1 FROM task WHERE id_task = %s FOR UPDATE", [task])

        def work(tx: Transaction) -> None:
            runs.append(len(runs))
            add_item(tx, task)
            if len(runs) == 1:
                tx.raw("SET SESSION innodb_lock_wait_timeout = 1")
            else:
                holder.rollback()
            tx.query("lock_task", {"id_task": task})

        database.transaction(work)
    assert len(runs) == 2
    assert count(sql) == 1


@pytest.mark.parametrize("code", [1180, 1026])
def test_a_commit_that_fails_on_its_way_is_in_doubt(database: Database, task: int, sql: Sql, code: int) -> None:
    """As on a node of a Galera cluster that is cut off with the COMMIT under way: it says 1180, and the others may have it. Or on
    a server whose disk is full when it writes what has been committed."""
    doubts: list[bool] = []

    def work(tx: Transaction) -> None:
        doubts.append(tx.in_doubt)
        if tx.in_doubt:
            return
        add_item(tx, task)
        connection = tx._connection
        landing = connection.commit

        def commit() -> None:
            connection.commit = landing
            landing()
            raise pymysql.err.OperationalError(code, "Not connected to Primary Component, or no room")

        connection.commit = commit

    database.transaction(work)
    assert doubts == [False, True]
    assert count(sql) == 1


def test_a_lock_held_for_too_long_is_like_an_absent_database(
    opened: Opened, task: int, sql: Sql, server: TestServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has results in hand keeps them; a refusal, by contrast, would make dead letters of them."""
    monkeypatch.setattr(db, "MAX_CONFLICTS", 2)
    database = opened()
    with server.connect(parse_database_url(database_url).database) as holder, holder.cursor() as cursor:
        holder.begin()
        cursor.execute("SELECT 1 FROM task WHERE id_task = %s FOR UPDATE", [task])

        def work(tx: Transaction) -> None:
            add_item(tx, task)
            tx.raw("SET SESSION innodb_lock_wait_timeout = 1")
            tx.query("lock_task", {"id_task": task})

        with pytest.raises(DatabaseAway, match="gave up after 2 conflicts"):
            database.transaction(work)
        holder.rollback()
    assert count(sql) == 0
    database.transaction(work)
    assert count(sql) == 1


@pytest.mark.parametrize(
    ("statement", "is_of_value"),
    [
        ("UPDATE ai_model SET max_in_flight = 'dużo'", True),
        ("UPDATE ai_model SET price_input = 99999999999999999999", True),
        ("UPDATE ai_model SET options = '{nie JSON'", True),
        ("UPDATE ai_model SET name = NULL", True),
        ("UPDATE ai_model SET name = REPEAT('ł', 5000)", True),
        ("SELECT nonsense", False),
        ("INSERT INTO ai_model (name, provider) SELECT name, provider FROM ai_model", False),
        ("SELECT 1 FROM no_such_table", False),
    ],
)
def test_a_refused_value_is_told_apart_from_a_refused_statement(
    database: Database, model: int, statement: str, is_of_value: bool
) -> None:
    """With the first it is this row that can never be stored, with the second none can until somebody mends the database."""
    assert model
    with pytest.raises(DatabaseError) as caught:
        database.transaction(lambda tx: tx.raw(statement))
    assert isinstance(caught.value, ValueRefused) == is_of_value, caught.value.code
    assert not isinstance(caught.value, DatabaseAway)


# ----- hosts


def test_the_next_host_is_tried_when_the_first_is_down(opened: Opened, proxy: Proxy) -> None:
    database = opened(free_port(), proxy.port)
    assert database.query("server_clock")


def test_the_host_that_worked_last_is_tried_first(opened: Opened, proxy: Proxy, database_url: str, task: int) -> None:
    ((_, port),) = parse_database_url(database_url).hosts
    database = opened(proxy.port, port)
    proxy.down()
    assert database.query("server_clock")
    proxy.up()
    proxy.break_at("SELECT UTC_TIMESTAMP", "before")
    assert database.query("server_clock")
    assert proxy.broken == 0


def test_a_server_that_comes_back_is_waited_for(opened: Opened, proxy: Proxy, task: int, sql: Sql) -> None:
    database = opened(proxy.port, patience=30)
    database.connect()
    proxy.break_at("COMMIT", "before", then_down=True)
    threading.Timer(0.4, proxy.up).start()
    database.transaction(lambda tx: add_item(tx, task))
    assert count(sql) == 1


def test_patience_ends(opened: Opened) -> None:
    database = opened(free_port(), free_port(), patience=0.3)
    began = time.monotonic()
    with pytest.raises(DatabaseAway, match="no database server to work with") as caught:
        database.query("server_clock")
    assert 0.2 < time.monotonic() - began < 5
    assert caught.value.exit_code == 75


def test_giving_up_ends_all_waiting_at_once(opened: Opened) -> None:
    database = opened(free_port(), patience=60)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(database.query, "server_clock")
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        database.give_up()
        with pytest.raises(DatabaseAway):
            waiting.result(2)
    with pytest.raises(DatabaseAway):
        database.query("server_clock")


@pytest.mark.parametrize(
    ("changes", "codes"),
    [({"user": "nobody_we_know"}, {1045, 1698}), ({"database": "no_such_database"}, {1049})],
    ids=["user", "database"],
)
def test_being_refused_is_not_waited_for(opened: Opened, changes: dict[str, Any], codes: set[int]) -> None:
    database = opened(patience=60, **changes)
    began = time.monotonic()
    with pytest.raises(DatabaseRefused) as caught:
        database.connect()
    assert time.monotonic() - began < 5
    assert caught.value.code in codes
    assert caught.value.exit_code == 78


@pytest.fixture
def app(server: TestServer, database_url: str) -> Iterator[str]:
    """A user of this database alone, with the password `old`."""
    name = f"app_{uuid.uuid4().hex[:12]}"
    database = parse_database_url(database_url).database
    server.execute(f"CREATE USER {name}@'%' IDENTIFIED BY 'old'", f"GRANT ALL ON {database}.* TO {name}@'%'")
    yield name
    server.execute(f"DROP USER {name}@'%'")


def test_a_login_refused_later_on_is_waited_for(opened: Opened, app: str, server: TestServer) -> None:
    """The password is being changed, or the replica made anew: no reason to drop what is in hand."""
    database = opened(patience=30, user=app, password=Secret("old"))
    number = database.transaction(lambda tx: tx.raw("SELECT CONNECTION_ID() AS id"))[0]["id"]
    server.execute(f"ALTER USER {app}@'%' IDENTIFIED BY 'new'", f"KILL {number}")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(database.query, "server_clock")
        with pytest.raises(TimeoutError):
            waiting.result(0.7)
        server.execute(f"ALTER USER {app}@'%' IDENTIFIED BY 'old'")
        assert waiting.result(20)


def test_a_login_refused_later_on_and_for_good_is_an_absent_database(opened: Opened, app: str, server: TestServer) -> None:
    database = opened(patience=0.3, user=app, password=Secret("old"))
    number = database.transaction(lambda tx: tx.raw("SELECT CONNECTION_ID() AS id"))[0]["id"]
    server.execute(f"ALTER USER {app}@'%' IDENTIFIED BY 'new'", f"KILL {number}")
    with pytest.raises(DatabaseAway, match="denied"):
        database.query("server_clock")


def test_a_host_that_goes_down_during_the_tls_handshake_is_away(opened: Opened, database_url: str) -> None:
    """It takes the request for encryption and hangs up: what a server does that is just ending, and no fault of the set-up."""
    ((_, port),) = parse_database_url(database_url).hosts
    with ending_server() as ending:
        alone = opened(ending, patience=0.2, ssl="required")
        with pytest.raises(DatabaseAway, match="EOF"):
            alone.connect()
        assert opened(ending, port, ssl="off").query("server_clock")


@contextmanager
def ending_server() -> Iterator[int]:
    """The port of a server that offers TLS and hangs up when the client begins with it."""
    capabilities = 0x0200 | 0x0800 | 0x8000 | 0x80000  # protocol 4.1, TLS, secure authentication, plug-ins
    greeting = b"\x0a8.0.36\x00" + struct.pack("<I", 7) + b"12345678\x00" + struct.pack("<H", capabilities & 0xFFFF)
    greeting += b"\x2d" + struct.pack("<HHB", 2, capabilities >> 16, 21) + bytes(10) + b"123456789012\x00"
    greeting += b"mysql_native_password\x00"

    def serve() -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                client, _ = listener.accept()
                with client:
                    client.sendall(struct.pack("<I", len(greeting))[:3] + b"\x00" + greeting)
                    client.recv(36, socket.MSG_WAITALL)  # the request for TLS
                    client.recv(65536)  # the client's part of the handshake

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake the thread in accept()
            thread.join(10)


def test_a_wrong_password_is_refused_and_not_told(opened: Opened, server: TestServer) -> None:
    url = parse_database_url(server.url("mysql", "nobody_we_know", "tajne-haslo"))
    with pytest.raises(DatabaseRefused) as caught:
        Database(url).connect()
    assert "tajne-haslo" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_closed_connections_are_opened_again(database: Database) -> None:
    database.connect()
    database.close()
    assert database.query("server_clock")


def test_encryption(server: TestServer, database_url: str) -> None:
    """MySQL makes itself a certificate that nobody has signed; the tests' MariaDB has none."""

    ((_, port),) = parse_database_url(database_url).hosts

    def cipher(ssl: Any, host: str = "127.0.0.1") -> str:
        database = Database(replace(parse_database_url(database_url), ssl=ssl, hosts=((host, port),)), patience=0)
        try:
            text: str = database.query("server_cipher")[0]["Value"]
        finally:
            database.close()
        return text

    offers: DatabaseUrl | None = server.admin if server.name == "mysql" else None
    assert cipher("off") == ""
    assert cipher("prefer") == ""  # on loopback there is nobody to hide it from
    assert bool(cipher("prefer", "127.1")) == bool(offers)  # the same address, but not to be recognised as loopback
    if offers:
        assert cipher("required")
    else:
        with pytest.raises(DatabaseRefused, match="SSL"):
            cipher("required")
    with pytest.raises(DatabaseRefused, match="SSL"):
        cipher("verify")
