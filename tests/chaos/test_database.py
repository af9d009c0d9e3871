"""What a database does to workers: killed, full, locked, read-only, frozen. Each fault alone, with the audit at its end.

The server is one for all faults of a kind, the workers are new for each. Items are plain ones, of which the provider answers each
within 200 ms: at any moment, many are being claimed, asked for and committed.

All but one are for `-m chaos`: what CI tries of this is in test_foundation.py, and here the kills of connections.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pymysql
import pytest

from tests.acceptance.fleet import Fake, fake_provider, insert_task
from tests.chaos import ledger
from tests.chaos.arena import Arena, arena_on, kinds
from tests.chaos.fleet import LEASE_SECONDS, Fleet

ITEMS = 2000
DONE_SECONDS = 60  # the most that a task may take after a fault is over


@pytest.fixture(scope="module", params=kinds())
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """One server for all tests of this module that do not ruin it."""
    with arena_on(request.param) as arena:
        yield arena


@pytest.fixture
def scene(arena: Arena, provider: Fake, tmp_path: Path) -> Iterator[Scene]:
    with Fleet(arena.worker_url, tmp_path) as fleet:
        yield Scene(arena, fleet, provider)


@pytest.fixture
def provider() -> Iterator[Fake]:
    """Slow enough that two workers need some seconds: faults are to fall into the midst of work."""
    with fake_provider(200) as running:
        yield running


class Scene:
    """Two workers at work on one task, and the fault that they meet."""

    def __init__(self, arena: Arena, fleet: Fleet, provider: Fake) -> None:
        self.arena, self.fleet, self.provider = arena, fleet, provider
        self.id_task = 0

    def begin(self, items: int = ITEMS, workers: int = 2, prefix: str = "") -> None:
        """Returns when the workers are in the midst of it."""
        self.id_task = insert_task(self.arena.sql, self.provider, ledger.texts(items, f"{prefix}{time.monotonic_ns()} "))
        before = self.provider.counts()["requests"]
        for _ in range(workers):
            self.fleet.start()
        self.provider.wait_for_requests(before + items // 10)

    def wait_for_progress(self, timeout: float) -> float:
        """The seconds until an item more is stored."""
        done = self.done
        return ledger.wait_until(lambda: self.done > done, timeout, "an item more is done", step=0.02)

    @property
    def done(self) -> int:
        count: int = self.arena.sql("SELECT records_processed AS n FROM task WHERE id_task = %s", [self.id_task])[0]["n"]
        return count

    def errors(self) -> dict[int, int]:
        """The numbers of the errors that the workers have logged, and how often."""
        text = "".join(process.background.text() for process in self.fleet.processes)
        return dict(Counter(int(number) for number in re.findall(r'"reason":"[^"]*?\((\d+), ', text)))

    def end(self, *, extra: int = 0) -> ledger.Account:
        """Everything done once and accounted for, with at most so many calls more than items; the workers end in good order."""
        ledger.wait_until(lambda: ledger.open_items(self.arena.sql, self.id_task) == 0, DONE_SECONDS, "all items are done")
        assert all(process.is_running for process in self.fleet.processes), [p.background.text() for p in self.fleet.processes]
        assert set(self.fleet.drain()) == {0}
        assert self.fleet.tracebacks() == []
        account = ledger.audit(self.arena.sql, self.provider, self.id_task)
        assert account.extra_calls <= extra, account
        return account


@pytest.mark.chaos
def test_the_server_is_killed_again_and_again(scene: Scene, rng: random.Random) -> None:
    scene.begin()
    for _ in range(3):
        time.sleep(rng.uniform(0, 0.3))
        scene.arena.kill()
        scene.arena.start()
        scene.wait_for_progress(LEASE_SECONDS + 2)
    scene.end()


@pytest.mark.chaos
def test_the_server_is_restarted_in_good_order(scene: Scene) -> None:
    scene.begin()
    for _ in range(2):
        scene.arena.stop()
        scene.arena.start()
        scene.wait_for_progress(LEASE_SECONDS + 2)
    scene.end()


def test_connections_are_killed_in_the_midst_of_transactions(scene: Scene, rng: random.Random) -> None:
    """Whoever waits for a row that somebody else has locked is in a transaction; and one connection more, whatever it does."""
    scene.begin(2 * ITEMS)
    killed = in_transaction = 0
    ends = time.monotonic() + 4
    with scene.arena.connect() as connection, connection.cursor() as cursor:
        while time.monotonic() < ends:
            connection.begin()
            cursor.execute(
                "SELECT id_task_item FROM task_item WHERE id_task = %s AND status_id = 2 LIMIT 1 FOR UPDATE SKIP LOCKED",
                [scene.id_task],
            )
            time.sleep(rng.uniform(0.1, 0.2))  # what INNODB_TRX tells is up to 0.1 s old
            waiting = scene.arena.sql(
                "SELECT trx_mysql_thread_id AS id FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT'"
            )
            others = scene.arena.sql("SELECT ID AS id FROM information_schema.PROCESSLIST WHERE USER = 'ai_worker'")
            for row in [*waiting, *others[:1]]:
                with suppress(pymysql.err.OperationalError):  # gone in the meantime
                    scene.arena.sql(f"KILL CONNECTION {row['id']}")
                    killed += 1
            in_transaction += len(waiting)
            connection.rollback()
    assert killed > 20
    assert in_transaction > 5
    scene.end()


@pytest.mark.chaos
def test_no_connection_is_left(scene: Scene) -> None:
    """Error 1040 for everybody, the heartbeat too, for longer than a lease. One is kept for the administrator."""
    scene.begin()
    (limit,) = scene.arena.sql("SELECT @@GLOBAL.max_connections AS n")
    hogs: list[pymysql.Connection[pymysql.cursors.DictCursor]] = []
    scene.arena.sql("SET GLOBAL max_connections = 20")
    try:
        ends = time.monotonic() + LEASE_SECONDS + 2
        while time.monotonic() < ends:
            kill_all(scene.arena)
            with suppress(pymysql.err.OperationalError):
                while True:
                    hogs.append(scene.arena.test_server.connect("ai_worker", "ai_worker_app", "Test.1-zxcvb"))
            time.sleep(0.2)
    finally:
        for hog in hogs:
            hog.close()
        scene.arena.sql("SET GLOBAL max_connections = %s", [limit["n"]])
    assert hogs
    scene.wait_for_progress(LEASE_SECONDS + 2)
    scene.end(extra=2 * scene.fleet.concurrency)


@pytest.mark.chaos
def test_the_user_may_have_few_connections(scene: Scene) -> None:
    """Error 1226: fewer than two workers want. They go on with what they get, and wait for more."""
    scene.begin()
    scene.arena.sql("ALTER USER ai_worker@'%' WITH MAX_USER_CONNECTIONS 6")
    kill_all(scene.arena)
    try:
        time.sleep(LEASE_SECONDS + 2)
    finally:
        scene.arena.sql("ALTER USER ai_worker@'%' WITH MAX_USER_CONNECTIONS 0")
    scene.end(extra=2 * scene.fleet.concurrency)


@pytest.mark.chaos
def test_the_server_is_read_only_for_a_while(scene: Scene) -> None:
    scene.begin()
    for name in ("read_only", "super_read_only") if scene.arena.kind == "mysql" else ("read_only",):
        scene.arena.sql(f"SET GLOBAL {name} = 1")
        time.sleep(2)
        scene.arena.sql("SET GLOBAL read_only = 0")
        scene.wait_for_progress(8)
    scene.end()


@pytest.mark.chaos
def test_others_lock_rows_in_the_wrong_order(scene: Scene, rng: random.Random) -> None:
    """Another application that takes a task's row and its items' from the other end: deadlocks without end, for 4 seconds."""
    scene.begin()
    stop = threading.Event()
    counts = {"deadlocks": 0, "locked": 0}

    def quarrel(seed: int) -> None:
        own = random.Random(seed)  # noqa: S311 -- chance that can be repeated
        with scene.arena.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 2")
            while not stop.is_set():
                connection.begin()
                try:
                    cursor.execute("SELECT id_task FROM task WHERE id_task = %s FOR UPDATE", [scene.id_task])
                    cursor.execute(
                        "SELECT id_task_item FROM task_item WHERE id_task = %s AND status_id IN (0, 2)"
                        " ORDER BY id_task_item DESC LIMIT %s FOR UPDATE",
                        [scene.id_task, own.randint(1, 100)],
                    )
                    time.sleep(own.uniform(0, 0.02))
                    counts["locked"] += 1
                except pymysql.err.OperationalError as error:
                    counts["deadlocks"] += error.args[0] == 1213
                connection.rollback()
                time.sleep(own.uniform(0, 0.02))

    threads = [threading.Thread(target=quarrel, args=[rng.random()]) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(4)
    stop.set()
    for thread in threads:
        thread.join()
    conflicts = sum(process.background.text().count('"event":"CONFLICT"') for process in scene.fleet.processes)
    assert counts["locked"] > 20
    assert counts["deadlocks"] + conflicts > 0
    scene.end()


LOCKS: dict[str, list[str]] = {
    "items": ["LOCK TABLES task_item WRITE"],
    "attempts": ["LOCK TABLES task_attempt WRITE"],
    "workers": ["LOCK TABLES worker WRITE"],
    "everything": ["FLUSH TABLES WITH READ LOCK"],
}


@pytest.mark.chaos
@pytest.mark.parametrize("what", LOCKS)
def test_a_table_is_locked(scene: Scene, what: str) -> None:
    """As by mysqldump, a DBA, a backup; for longer than a lease, so that heartbeats fail with all else."""
    scene.begin()
    with scene.arena.connect() as connection, connection.cursor() as cursor:
        for statement in LOCKS[what]:
            cursor.execute(statement)
        time.sleep(LEASE_SECONDS + 2)
        cursor.execute("UNLOCK TABLES")
    scene.end(extra=2 * scene.fleet.concurrency)


@pytest.mark.chaos
def test_a_table_is_locked_until_the_client_gives_up(arena: Arena, provider: Fake, tmp_path: Path) -> None:
    """Statements whose client has gone wait on in the server, and are carried out when the lock is free: COMMITs too."""
    with Fleet(arena.worker_url + "&read_timeout=1.5&connect_timeout=1", tmp_path) as fleet:
        scene = Scene(arena, fleet, provider)
        scene.begin()
        for seconds in (2.0, 3.5, 7.0):
            with arena.connect() as connection, connection.cursor() as cursor:
                cursor.execute("FLUSH TABLES WITH READ LOCK")
                time.sleep(seconds)
                cursor.execute("UNLOCK TABLES")
            scene.wait_for_progress(LEASE_SECONDS + 2)
        scene.end(extra=2 * fleet.concurrency)


@pytest.mark.chaos
def test_a_table_is_altered_by_a_copy(scene: Scene) -> None:
    scene.begin()
    for _ in range(3):
        with suppress(pymysql.err.OperationalError):  # on a busy table it may not come in within its time
            scene.arena.sql("SET SESSION lock_wait_timeout = 5")
            scene.arena.sql("ALTER TABLE task_item FORCE, ALGORITHM = COPY")
    scene.end()


@pytest.mark.chaos
def test_somebody_holds_a_snapshot_open(scene: Scene) -> None:
    """As a backup does, for which old versions of rows are kept. What a claim costs then, `python -m bench.depth` measures."""
    with scene.arena.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute("SELECT COUNT(*) AS n FROM task_item")
        before = cursor.fetchall()
        scene.begin()
        scene.end()
        cursor.execute("SELECT COUNT(*) AS n FROM task_item")
        assert cursor.fetchall() == before


@pytest.mark.chaos
def test_the_server_is_frozen(scene: Scene) -> None:
    """SIGSTOP: connections stay open and nothing answers; once for a moment, once for longer than a lease."""
    scene.begin()
    for seconds in (1.0, LEASE_SECONDS + 2):
        with scene.arena.frozen():
            time.sleep(seconds)
        scene.wait_for_progress(LEASE_SECONDS + 2)
    scene.end()


@pytest.mark.chaos
def test_the_server_is_frozen_until_the_client_gives_up(arena: Arena, provider: Fake, tmp_path: Path) -> None:
    with Fleet(arena.worker_url + "&read_timeout=1.5&connect_timeout=1", tmp_path) as fleet:
        scene = Scene(arena, fleet, provider)
        scene.begin()
        for seconds in (2.0, 3.5, LEASE_SECONDS + 2):
            with arena.frozen():
                time.sleep(seconds)
            scene.wait_for_progress(LEASE_SECONDS + 2)
        scene.end(extra=2 * fleet.concurrency)


def kill_all(arena: Arena) -> None:
    for row in arena.sql("SELECT ID AS id FROM information_schema.PROCESSLIST WHERE USER = 'ai_worker'"):
        with suppress(pymysql.err.OperationalError):  # gone by itself
            arena.sql(f"KILL CONNECTION {row['id']}")


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of its own, in memory, that everything temporary is made on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a disk")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", kinds())
def test_the_disk_is_full(kind: str, small_disk: Path, provider: Fake, tmp_path: Path) -> None:
    """Results of 6 kB, and that again in JSON, need more room than there is; after some seconds somebody makes room. A server
    refuses what needs room, stands still, or ends: then it is started again, as systemd does."""
    with arena_on(kind) as arena, Fleet(arena.worker_url, tmp_path) as fleet:
        scene = Scene(arena, fleet, provider)
        scene.begin(1500, prefix="dlugi tekst " * 500)
        reserve(small_disk)
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        time.sleep(2 * LEASE_SECONDS)
        has_ended = not arena.server.is_alive()
        ballast.unlink()
        if has_ended:
            arena.start()
        assert ledger.open_items(arena.sql, scene.id_task) > 0, "there was room for everything"
        scene.wait_for_progress(30)
        print(f"{kind}: the server {'ended' if has_ended else 'lived on'}; workers heard {scene.errors()}")  # noqa: T201 -- see -rP
        scene.end(extra=2 * fleet.concurrency)


def reserve(disk: Path) -> None:
    """Gives all files that are there the room for their length: an InnoDB that cannot write its own log ends at once."""
    for path in disk.rglob("*"):
        if path.is_file() and path.stat().st_size:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
