"""A real Galera cluster of three nodes: doubts, conflicts, slow nodes and migrations, as `db` and `migrate` meet them.

Skipped where Galera is not installed (`make chaos-galera` installs it). Workers under load, with dying nodes, are
`tests.chaos.galera_run`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ai_worker import migrate
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from tests.chaos import galera, ledger
from tests.chaos.galera import SYNCED, Cluster

pytestmark = [
    pytest.mark.skipif(galera.missing() is not None, reason=galera.missing() or ""),
    pytest.mark.xdist_group("galera"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with galera.cluster_of() as cluster:
        yield cluster


def _database(cluster: Cluster, first: int = 0) -> Database:
    return Database(parse_database_url(cluster.url(first, "tester")), patience=30)


def _note(tx: Transaction, name: str) -> None:
    tx.raw(f"INSERT INTO result_note (name) VALUES ('{name}')")


@pytest.fixture
def notes(cluster: Cluster) -> Iterator[None]:
    """A table of the test's own."""
    cluster.sql("CREATE TABLE result_note (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50) NOT NULL UNIQUE, n INT DEFAULT 0)")
    yield
    cluster.sql("DROP TABLE result_note")


@pytest.mark.usefixtures("notes")
def test_what_one_node_has_committed_is_seen_at_once_on_the_next(cluster: Cluster) -> None:
    """Also where the next one is slow to apply it: that is what "did my COMMIT land?" rests on."""
    here, there = _database(cluster, 0), _database(cluster, 1)
    with cluster.nodes[1].connect() as slow, slow.cursor() as cursor:
        for number in range(20):
            cursor.execute("FLUSH TABLES WITH READ LOCK")  # as a backup does: nothing of the cluster's is applied meanwhile
            here.transaction(lambda tx, name=f"n{number}": _note(tx, name))
            timer = threading.Timer(0.05, cursor.execute, ["UNLOCK TABLES"])
            timer.start()
            found = there.transaction(lambda tx, number=number: tx.raw(f"SELECT 1 FROM result_note WHERE name = 'n{number}'"))
            timer.join()
            assert found, f"note {number} was not there yet"
    here.close()
    there.close()


@pytest.mark.usefixtures("notes")
def test_a_conflict_between_nodes_is_repeated(cluster: Cluster) -> None:
    """Rows are locked on one node alone: of two transactions one is refused at COMMIT, and done again."""
    databases = [_database(cluster, number) for number in range(3)]
    databases[0].transaction(lambda tx: _note(tx, "one"))

    def add(database: Database) -> None:
        for _ in range(30):
            database.transaction(lambda tx: tx.raw("UPDATE result_note SET n = n + 1 WHERE name = 'one'"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add, databases))
    assert cluster.sql("SELECT n FROM result_note") == [{"n": 90}]
    assert sum(database.conflicts for database in databases) > 0
    for database in databases:
        database.close()


@pytest.mark.usefixtures("notes")
def test_a_commit_of_a_node_that_is_cut_off_is_in_doubt_and_resolved(cluster: Cluster) -> None:
    """Its COMMIT fails (1180, 1213, 1047), whether the others have the transaction or not: who looks on another node knows."""
    ended = threading.Event()

    def writer(number: int) -> list[str]:
        database = _database(cluster, 2)
        done = []
        while not ended.is_set():
            name = f"w{number}.{len(done)}"

            def work(tx: Transaction, name: str = name) -> None:
                if not (tx.in_doubt and tx.raw(f"SELECT 1 FROM result_note WHERE name = '{name}'")):
                    _note(tx, name)  # a second time would be a duplicate

            database.transaction(work)
            done.append(name)
        database.close()
        return done

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(writer, number) for number in range(6)]
        time.sleep(1)
        cluster.nodes[2].isolate(True)
        try:
            ledger.wait_until(lambda: cluster.nodes[2].status()["wsrep_cluster_status"] != "Primary", 20, "node 3 is cut off")
            before = cluster.sql("SELECT COUNT(*) AS n FROM result_note")[0]["n"]
            ledger.wait_until(
                lambda: cluster.sql("SELECT COUNT(*) AS n FROM result_note")[0]["n"] > before, 20, "the writers go on elsewhere"
            )
        finally:
            ended.set()
            cluster.nodes[2].isolate(False)
        done = [name for each in writers for name in each.result(60)]
    cluster.nodes[2].wait_for(SYNCED)
    assert {row["name"] for row in cluster.sql("SELECT name FROM result_note")} == set(done)


def test_migrations_at_once_on_several_nodes(cluster: Cluster) -> None:
    """Each node has a named lock of its own, which keeps nobody out on the next one."""
    cluster.sql("CREATE DATABASE ai_worker_again CHARACTER SET utf8mb4")
    together = threading.Barrier(3)

    def host(number: int) -> list[str]:
        url = cluster.url(number, "tester").replace("/ai_worker?", "/ai_worker_again?")
        database = Database(parse_database_url(url), patience=30)
        try:
            together.wait()
            return migrate.migrate(database)
        finally:
            database.close()

    with ThreadPoolExecutor(3) as pool:
        applied = [label for each in pool.map(host, range(3)) for label in each]
    assert set(applied) == {each.label for each in migrate.migrations()}
    database = Database(parse_database_url(cluster.url(1, "tester").replace("/ai_worker?", "/ai_worker_again?")))
    assert migrate.check(database) == len(migrate.migrations())
    database.close()
    cluster.sql("DROP DATABASE ai_worker_again")
