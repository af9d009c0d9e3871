"""A primary and its replica: real replication, a planned switch-over, and a primary that dies.

    with pair_on("mariadb") as pair:            # or "mysql"; semi_sync=True: no commit is answered before the replica has it
        with Fleet(pair.worker_url, folder): …  # the URL names both hosts
        pair.switch_over()                      # planned: the replica catches up first
        pair.fail_over()                        # the primary is killed, the replica takes its place with what it has
        pair.rejoin()                           # who was killed comes back as a replica, with the data of the new primary
        pair.primary.sql("SELECT …")

The replica refuses writes, also of administrators on MySQL. Replication is by GTID and row by row, from the first statement on.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_worker import embedded
from tests.chaos.arena import ADMINISTRATOR, DATABASE, PASSWORD, Arena, program_of
from tests.servers import free_port

CATCH_UP_SECONDS = 60


@dataclass
class Pair:
    """Two servers, of which `primary` takes the writes now."""

    first: Arena
    second: Arena
    semi_sync: bool
    primary: Arena

    @property
    def replica(self) -> Arena:
        return self.second if self.primary is self.first else self.first

    @property
    def worker_url(self) -> str:
        """Of the user `ai_worker`, both hosts in a list, as the configuration of a worker names them."""
        return self.url_of("ai_worker")

    def url_of(self, user: str) -> str:
        hosts = ",".join(f"{arena.host}:{arena.port}" for arena in (self.first, self.second))
        return f"mysql://{user}:{PASSWORD}@{hosts}/{DATABASE}?ssl=off"

    def sql(self, statement: str, parameters: Any = None) -> list[dict[str, Any]]:
        """Plain SQL on whichever is the primary now; see `Arena.sql`."""
        return self.primary.sql(statement, parameters)

    def switch_over(self) -> float:
        """The replica takes over once it has all; the seconds in which nobody took writes. Both servers must run."""
        old, new = self.primary, self.replica
        began = time.monotonic()
        _set_read_only(old, on=True)
        _catch_up(new, _position(old))
        _promote(new, self.semi_sync)
        seconds = time.monotonic() - began
        self.primary = new
        self._follow(old, new)
        return seconds

    def fail_over(self) -> float:
        """Kills the primary; the replica takes over with what it was sent; the seconds from the kill on. Then `rejoin`."""
        old, new = self.primary, self.replica
        began = time.monotonic()
        old.kill()
        old.forget_connection()
        _apply_what_came(new)
        _promote(new, semi_sync=False)  # or it would wait for a replica that there is not
        self.primary = new
        return time.monotonic() - began

    def revive(self) -> None:
        """Starts the primary again after it was killed or stopped, with the replica behind it."""
        self.primary.forget_connection()
        self.primary.start()
        if self.semi_sync:
            _wait_for_replicas(self.primary, on=True)
        _catch_up(self.replica, _position(self.primary))

    def stop_sending(self) -> None:
        """What the primary commits from now on stays on it alone: a replica that is behind, without end. Not for `semi_sync`."""
        self.replica.sql("STOP REPLICA IO_THREAD" if self.replica.kind == "mysql" else "STOP SLAVE IO_THREAD")

    def rejoin(self) -> None:
        """Whoever was killed comes back as the replica of the other, with its data: its own may hold what nobody else has.

        The copy is taken while the primary stands still (SIGSTOP, about a second): what a snapshot of the disk would hold, and
        what a server starts from after a crash.
        """
        primary, new = self.primary, self.replica
        new.kill()
        new.forget_connection()
        target = new.server.folder / "data"
        shutil.rmtree(target, ignore_errors=True)  # there is none yet when the pair is made
        with primary.frozen():
            time.sleep(0.05)  # writes that were under way in the kernel
            shutil.copytree(primary.server.folder / "data", target, ignore=_not_of_the_copy)
        new.start()
        self._follow(new, primary)
        _catch_up(new, _position(primary))
        if self.semi_sync:
            _wait_for_replicas(primary, on=True)

    def is_caught_up(self) -> bool:
        """Whether the replica has all that the primary has now."""
        return _has(self.replica, _position(self.primary))

    def _follow(self, replica: Arena, primary: Arena) -> None:
        _set_read_only(replica, on=True)
        if self.semi_sync:
            _wait_for_replicas(replica, on=False)
        if replica.kind == "mysql":
            replica.sql("STOP REPLICA")
            replica.sql(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = %s, SOURCE_PORT = %s, SOURCE_USER = %s, SOURCE_PASSWORD = %s,"
                " SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1, SOURCE_RETRY_COUNT = 86400",
                [primary.host, primary.port, ADMINISTRATOR, PASSWORD],
            )
            replica.sql("START REPLICA")
            return
        replica.sql("STOP SLAVE")
        replica.sql("RESET SLAVE ALL")
        replica.sql("SET GLOBAL gtid_slave_pos = @@GLOBAL.gtid_binlog_pos")
        replica.sql(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s,"
            " MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1",
            [primary.host, primary.port, ADMINISTRATOR, PASSWORD],
        )
        replica.sql("START SLAVE")


@contextmanager
def pair_on(kind: str, *options: str, semi_sync: bool = False) -> Iterator[Pair]:
    """A primary and its replica, migrated, with the users of sql/grants.sql. `options`: further ones of both servers."""
    with tempfile.TemporaryDirectory(prefix="ai-worker-pair-") as folder:
        arenas = []
        for number in (1, 2):
            port = free_port()
            server = embedded.Server(Path(folder) / f"server{number}", program_of(kind))
            arenas.append(Arena(kind, server, port, options=[*_options(kind, number, semi_sync), *options]))
        first, second = arenas
        pair = Pair(first, second, semi_sync, primary=first)
        try:
            first.start()
            first.prepare()
            pair.rejoin()
            yield pair
        finally:
            for arena in arenas:
                arena.forget_connection()
                arena.server.stop()


def _options(kind: str, number: int, semi_sync: bool) -> Sequence[str]:
    options = [f"--server-id={number}", "--log-bin=binlog", "--relay-log=relay", "--binlog-format=ROW"]
    if kind == "mysql":
        options += ["--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--skip-replica-start"]
        if semi_sync:
            options += ["--plugin-load-add=semisync_source.so", "--plugin-load-add=semisync_replica.so"]
            options += ["--loose-rpl-semi-sync-replica-enabled=1"]
    else:
        options += ["--log-slave-updates=ON", "--gtid-strict-mode=ON", "--skip-slave-start"]
        if semi_sync:
            options += ["--rpl-semi-sync-slave-enabled=ON", "--rpl-semi-sync-master-wait-point=AFTER_SYNC"]
    return options


def _not_of_the_copy(_: str, names: list[str]) -> list[str]:
    """Files that say who a server is, or whom it followed; and a disk's own."""
    own = ("auto.cnf", "master.info", "relay", "lost+found")
    return [name for name in names if name.startswith(own) or name.endswith((".pid", ".sock"))]


def _set_read_only(arena: Arena, *, on: bool) -> None:
    arena.sql(f"SET GLOBAL {'super_read_only' if arena.kind == 'mysql' else 'read_only'} = {int(on)}")
    if arena.kind == "mysql" and not on:
        arena.sql("SET GLOBAL read_only = 0")  # super_read_only has switched it on


def _wait_for_replicas(arena: Arena, *, on: bool) -> None:
    """Semi-synchronous: a commit is answered only when the replica has it; for ever, rather than without one after a while."""
    prefix = "rpl_semi_sync_source" if arena.kind == "mysql" else "rpl_semi_sync_master"
    arena.sql(f"SET GLOBAL {prefix}_timeout = 3600000")
    arena.sql(f"SET GLOBAL {prefix}_enabled = {int(on)}")


def _position(arena: Arena) -> str:
    """The GTIDs of all that has been committed here."""
    name = "gtid_executed" if arena.kind == "mysql" else "gtid_binlog_pos"
    position: str = arena.sql(f"SELECT @@GLOBAL.{name} AS position")[0]["position"]
    return position


def _has(replica: Arena, position: str, seconds: float = 0) -> bool:
    if replica.kind == "mysql":
        if not seconds:
            return bool(replica.sql("SELECT GTID_SUBSET(%s, @@GLOBAL.gtid_executed) AS has", [position])[0]["has"])
        return replica.sql("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s) AS waited", [position, seconds])[0]["waited"] == 0
    return bool(replica.sql("SELECT MASTER_GTID_WAIT(%s, %s) AS waited", [position, seconds])[0]["waited"] == 0)


def _catch_up(replica: Arena, position: str) -> None:
    assert _has(replica, position, CATCH_UP_SECONDS), f"the replica has not come to {position}: {_state(replica)}"


def _state(replica: Arena) -> dict[str, Any]:
    rows = replica.sql("SHOW REPLICA STATUS" if replica.kind == "mysql" else "SHOW SLAVE STATUS")
    return {name: value for row in rows for name, value in row.items() if "Err" in name or "Running" in name or "Gtid" in name}


def _apply_what_came(replica: Arena) -> None:
    """Waits until all that the dead primary has sent is applied."""
    is_mysql = replica.kind == "mysql"
    replica.sql("STOP REPLICA IO_THREAD" if is_mysql else "STOP SLAVE IO_THREAD")
    (status,) = replica.sql("SHOW REPLICA STATUS" if is_mysql else "SHOW SLAVE STATUS")
    if received := status["Retrieved_Gtid_Set" if is_mysql else "Gtid_IO_Pos"]:
        _catch_up(replica, received)


def _promote(arena: Arena, semi_sync: bool) -> None:
    for statement in ("STOP REPLICA", "RESET REPLICA ALL") if arena.kind == "mysql" else ("STOP SLAVE", "RESET SLAVE ALL"):
        arena.sql(statement)
    if semi_sync:
        _wait_for_replicas(arena, on=True)
    _set_read_only(arena, on=False)
