"""Import, review and export have one effect, also when connections break before COMMIT, or after it and before the answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, session
from ai_worker.errors import DatabaseAway
from tests import servers
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.proxy import Proxy
from tests.integration.source_tables import Shop, accepted, imported, shop
from tests.servers import TestServer

pytest_plugins = ["tests.integration.proxy"]

When = Literal["before", "after"]
both = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture
def other(server: TestServer) -> Iterator[Shop]:
    with shop(server) as found:
        yield found


@pytest.fixture
def ai_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, sql: Sql, proxy: Proxy
) -> Commands:
    """Commands whose connections all go through the proxy, to AI Worker's own tables and to the source."""
    ((_, port),) = parse_database_url(database_url).hosts
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url.replace(f":{port}/", f":{proxy.port}/"))
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return Commands(monkeypatch, capsys)


@both
def test_import(ai_worker: Commands, proxy: Proxy, when: When, sql: Sql, other: Shop) -> None:
    proxy.break_at("COMMIT", when, times=3)  # of the task, of the page, of the end
    imported(ai_worker, other.articles("a", "b"))
    assert proxy.broken == 3
    assert sql("SELECT t.status_id AS s, COUNT(*) AS n FROM task t JOIN task_item i USING (id_task) GROUP BY 1") == [
        {"s": 0, "n": 2}
    ]
    assert sql("SELECT COUNT(*) AS n FROM task") == [{"n": 1}]
    assert sql("SELECT rows_imported AS n, finished_at IS NOT NULL AS f FROM task_source") == [{"n": 2, "f": 1}]


@both
def test_review(ai_worker: Commands, proxy: Proxy, when: When, sql: Sql, other: Shop) -> None:
    task = imported(ai_worker, other.articles("a", "b"))
    sql("UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'c'")
    proxy.break_at("COMMIT", when)
    ended = ai_worker("review", str(task), "all", "accept", "--json", "--by", "a")
    assert (proxy.broken, ended.json["items"]) == (1, 2)
    assert sql("SELECT COUNT(*) AS n FROM task_item WHERE review_status_id = 1") == [{"n": 2}]
    assert sql("SELECT COUNT(*) AS n FROM task_item_review") == [{"n": 2}]


@both
def test_export(ai_worker: Commands, proxy: Proxy, when: When, sql: Sql, other: Shop) -> None:
    task = imported(ai_worker, other.articles("a", "b", "c"))
    accepted(ai_worker, sql, task)
    other.sql("UPDATE articles SET body = 'x' WHERE id = 2")
    other.sql("CREATE TABLE updates (id INT, KEY (id))")
    other.sql("CREATE TRIGGER count_updates AFTER UPDATE ON articles FOR EACH ROW INSERT INTO updates VALUES (NEW.id)")
    proxy.break_at("COMMIT", when, times=3)  # of the texts, of the source, of the audit
    ended = ai_worker("export", str(task), "--json")
    assert (proxy.broken, ended.code, ended.json["written"], ended.json["conflict"]) == (3, 3, 2, 1)
    assert other.bodies() == {1: "a!", 2: "x", 3: "c!"}
    assert [row["id"] for row in other.sql("SELECT id FROM updates ORDER BY id")] == [1, 3]
    assert sql("SELECT outcome AS o, COUNT(*) AS n FROM task_item_export GROUP BY 1 ORDER BY 1") == [
        {"o": "conflict", "n": 1},
        {"o": "written", "n": 2},
    ]


def test_a_source_that_goes_away_in_the_middle(
    ai_worker: Commands, proxy: Proxy, sql: Sql, other: Shop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = imported(ai_worker, other.articles(*"abcd"))
    accepted(ai_worker, sql, task)
    kept = os.environ["AI_WORKER_DB_URL"]
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url + "&connect_timeout=1")
    proxy.break_at("UPDATE", "before", then_down=True)
    monkeypatch.setattr(Database, "patience", property(lambda _: 0.2, lambda *_: None), raising=False)
    ended = ai_worker("export", str(task), "--url", kept)
    assert (ended.code, sql("SELECT 1 FROM task_item_export")) == (75, [])
    assert ai_worker("export", str(task)).code == 0
    assert set(other.bodies().values()) == {"a!", "b!", "c!", "d!"}


def test_the_source_may_be_another_kind_of_server(
    server: TestServer, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    ai_worker = Commands(monkeypatch, capsys)
    is_other = server.name == "mariadb" and "mysql" in servers.names()
    with servers.running("mysql") if is_other else nullcontext(server) as far, shop(far) as other:
        other.articles("Zażółć", "gęślą 🙂")
        monkeypatch.setenv("AI_WORKER_SOURCE_URL", far.url(other.name))
        task = imported(ai_worker, "articles")
        accepted(ai_worker, sql, task)
        assert ai_worker("export", str(task), "--json").json["written"] == 2
        assert other.bodies() == {1: "Zażółć!", 2: "gęślą 🙂!"}


def test_a_read_only_replica_will_do_for_import_alone(
    server: TestServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WRITABLE", session.WRITABLE.replace("CAST(@@GLOBAL.read_only AS CHAR)", "'1'"))
    url = parse_database_url(database_url)
    reader = Database(url, patience=0.1, writable=False)
    assert reader.query("server_packet")
    reader.close()
    with pytest.raises(DatabaseAway, match="is read-only"):
        Database(url, patience=0.1).connect()
