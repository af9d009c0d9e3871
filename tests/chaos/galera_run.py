"""Workers on a Galera cluster of which one node after the other is killed: is anything lost, done twice, or slow to come back?

    python -m tests.chaos.galera_run [--seconds 300] [--every 20] [--writers many|one] [--seed N]

`--writers many`: each worker's URL begins with another node. `one`: all begin with the same. Every `--every` seconds the next
node gets SIGKILL and is started again five seconds later; it has joined again before the next one goes. Work is added all the
time, at one node after the other. Prints its figures, and ends with 1 where a promise was not held.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pymysql

from tests.acceptance.fleet import Fake, fake_provider
from tests.chaos import galera, ledger
from tests.chaos.conftest import SEED
from tests.chaos.fleet import Fleet
from tests.chaos.galera import Cluster, Node

LEASE_SECONDS = 15  # longer than the cluster takes to give up a node that is silent, with room for a busy machine
BACK_WITHIN = 10.0
_BACK = 0.8  # of the rate before the kill
_WINDOW = 1.0
_DOWN_SECONDS = 5.0  # as the systemd unit of Debian and MariaDB waits (RestartSec)
_TASK_ITEMS = 500


class Meter(threading.Thread):
    """How many items are done, asked ten times a second of any node that answers."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._ended = threading.Event()
        self._samples: list[tuple[float, int]] = []

    def run(self) -> None:
        connections: dict[str, pymysql.Connection[pymysql.cursors.DictCursor]] = {}
        while not self._ended.wait(0.1):
            for node in self._cluster.nodes:
                if not node.is_up:
                    connections.pop(node.name, None)
                    continue
                try:
                    if node.name not in connections:
                        connections[node.name] = node.connect()
                    with connections[node.name].cursor() as cursor:
                        cursor.execute("SELECT CAST(SUM(records_processed) AS SIGNED) AS n FROM ai_worker.task")
                        count = cursor.fetchall()[0]["n"] or 0
                except (pymysql.err.Error, OSError):
                    connections.pop(node.name, None)
                    continue
                self._samples.append((time.monotonic(), max(count, self._samples[-1][1] if self._samples else 0)))
                break

    def end(self) -> None:
        self._ended.set()
        self.join()

    def count_at(self, moment: float) -> float:
        """How many were done at this moment: the sample before it."""
        return max((count for at, count in self._samples if at <= moment), default=0)

    def rate(self, since: float, until: float) -> float:
        """Items a second."""
        return (self.count_at(until) - self.count_at(since)) / (until - since)

    def back_after(self, kill: float, before: float, until: float) -> float | None:
        """Seconds from the kill to the end of the first whole second with 80 % of the rate before, after the first one without;
        0 where there is none without, None where it did not come back."""
        starts = [at for at, _ in self._samples if kill <= at <= until - _WINDOW]
        has_dipped = False
        for start in starts:
            is_fast = self.rate(start, start + _WINDOW) >= _BACK * before
            if has_dipped and is_fast:
                return start + _WINDOW - kill
            has_dipped = has_dipped or not is_fast
        return None if has_dipped else 0.0


class Probe(threading.Thread):
    """One small write after the other, at whichever node takes it: how long does the cluster itself take none?"""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._ended = threading.Event()
        self._written: list[float] = []
        cluster.sql("CREATE TABLE galera_probe (id INT PRIMARY KEY, n INT NOT NULL)")
        cluster.sql("INSERT INTO galera_probe VALUES (1, 0)")

    def run(self) -> None:
        node, connection = self._cluster.nodes[0], None
        while not self._ended.wait(0.05):
            try:
                if connection is None:
                    connection = node.connect()
                with connection.cursor() as cursor:
                    cursor.execute("UPDATE ai_worker.galera_probe SET n = n + 1 WHERE id = 1")
                self._written.append(time.monotonic())
            except (pymysql.err.Error, OSError):
                connection = None
                node = next((each for each in self._cluster.nodes if each.is_up and each is not node), node)

    def end(self) -> None:
        self._ended.set()
        self.join()

    def longest_wait(self, since: float, until: float) -> float:
        """Seconds between two writes, at most, of those that began or ended in this time."""
        times = [at for at in self._written if since - 1 <= at <= until]
        return max((later - earlier for earlier, later in pairwise(times)), default=until - since)


class Feeder(threading.Thread):
    """An application that keeps some thousand items waiting: tasks in a transaction each, at one node after the other."""

    def __init__(self, cluster: Cluster, provider: Fake) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._ended = threading.Event()
        self.tasks: list[int] = []
        self.error: BaseException | None = None
        cluster.sql(
            "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output)"
            " VALUES ('fake', 'openai', 'fake', %s, 1, 2)",
            [provider.url + "/v1"],
        )

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                if ledger.open_items(self._cluster.sql) < 6 * _TASK_ITEMS:
                    self.add()
                else:
                    self._ended.wait(0.3)
        except BaseException as error:  # whatever it is, the run must tell it
            self.error = error
            raise

    def end(self) -> None:
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error

    def add(self) -> int:
        """One task more. Where a node dies under it, the next one is asked whether it landed."""
        key = f"Correct the text. ({len(self.tasks) + 1})"
        texts = ledger.texts(_TASK_ITEMS, f"{len(self.tasks) + 1}.")
        deadline = time.monotonic() + 60
        while not (landed := self._cluster.sql("SELECT id_task FROM task WHERE description = %s", [key])):
            node = self._cluster.nodes[len(self.tasks) % len(self._cluster.nodes)]
            try:
                _insert(node if node.is_up else next(each for each in self._cluster.nodes if each.is_up), key, texts)
            except (pymysql.err.Error, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        id_task: int = landed[0]["id_task"]
        self.tasks.append(id_task)
        return id_task


def _insert(node: Node, key: str, texts: list[str]) -> None:
    with node.connect() as connection, connection.cursor() as cursor:
        cursor.execute("USE ai_worker")
        connection.begin()
        cursor.execute("INSERT INTO task (id_ai_model, description) SELECT MAX(id_ai_model), %s FROM ai_model", [key])
        id_task = cursor.lastrowid
        cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [(id_task, text) for text in texts])
        connection.commit()


@dataclass
class Kill:
    """One node's SIGKILL. `before`: items a second; `back`, `rejoined`: seconds after it, None where it did not come."""

    node: str
    at: float
    before: float = 0.0
    back: float | None = None
    stood: float = 0.0  # seconds in which the cluster took no write at all, at most
    rejoined: float = 0.0


@dataclass
class Report:
    """What a run came to."""

    writers: str
    seconds: float
    kills: list[Kill]
    account: ledger.Account
    lost: int
    twice: int
    conflicts: int
    lost_connections: int
    rate: float
    seed: int
    broken: list[str] = field(default_factory=list)

    def text(self) -> str:
        backs = [kill.back for kill in self.kills if kill.back is not None]
        lines = [
            f"writers {self.writers}, {self.seconds:.0f} s, seed {self.seed}",
            f"items {self.account.items}, processed {self.account.processed}, {self.rate:.0f} a second",
            f"lost {self.lost}, twice {self.twice}",
            f"attempts {self.account.attempts}, calls {self.account.calls}, of them extra {self.account.extra_calls}",
            f"node kills {len(self.kills)}; conflicts repeated {self.conflicts}, connections lost {self.lost_connections}",
            f"throughput back after p50 {statistics.median(backs) if backs else 0:.1f} s, max {max(backs, default=0):.1f} s",
            f"the cluster itself took no write for at most {max((kill.stood for kill in self.kills), default=0):.1f} s",
            f"nodes synced again after max {max((kill.rejoined for kill in self.kills), default=0):.1f} s",
            *(
                f"  {kill.node}: {kill.before:.0f}/s before, back after {'never' if kill.back is None else f'{kill.back:.1f} s'},"
                f" synced after {kill.rejoined:.1f} s, no write at all for {kill.stood:.1f} s"
                for kill in self.kills
            ),
            *(f"BROKEN: {each}" for each in self.broken),
        ]
        return "\n".join(lines)


def run(folder: Path, *, seconds: float, every: float, writers: str, seed: int, concurrency: int = 5) -> Report:
    """The run. Raises AssertionError where something was lost or done twice; a slow return is in the report's `broken`."""
    rng = random.Random(seed)  # noqa: S311 -- chance that can be repeated is the point
    with galera.cluster_of() as cluster, fake_provider(200) as provider:
        fleet = Fleet(
            cluster.url(), folder, concurrency, {"AI_WORKER_LEASE_SECONDS": str(LEASE_SECONDS), "AI_WORKER_LOG_LEVEL": "debug"}
        )
        meter, feeder, probe = Meter(cluster), Feeder(cluster, provider), Probe(cluster)
        with fleet:
            for number in range(len(cluster.nodes)):
                fleet.start(url=cluster.url(number if writers == "many" else 0))
            feeder.add()
            for thread in (meter, feeder, probe):
                thread.start()
            provider.wait_for_requests(500, 60)
            time.sleep(5)
            began = time.monotonic()
            kills = _kill_in_turn(cluster, began, seconds, every, rng)
            ended = time.monotonic()
            feeder.end()
            ledger.wait_until(
                lambda: ledger.open_items(cluster.sql) == 0, LEASE_SECONDS + 60, lambda: f"all done: {_open(cluster)}"
            )
            meter.end()
            probe.end()
            assert set(fleet.drain()) == {0}
            assert fleet.tracebacks() == []
            account = ledger.audit(cluster.sql, provider, *feeder.tasks)
            twice = cluster.sql(
                "SELECT COUNT(*) - COUNT(DISTINCT id_task_item) AS n FROM task_attempt WHERE outcome = 'processed'"
            )[0]["n"]
            words = [process.background.text() for process in fleet.processes]
        for number, kill in enumerate(kills):
            kill.before = meter.rate(kill.at - 8, kill.at)
            until = kills[number + 1].at if number + 1 < len(kills) else ended
            kill.back = meter.back_after(kill.at, kill.before, until)
            kill.stood = probe.longest_wait(kill.at, until)
        slow = [kill for kill in kills if kill.back is None or kill.back > BACK_WITHIN]
        return Report(
            writers,
            ended - began,
            kills,
            account,
            len(feeder.tasks) * _TASK_ITEMS - account.processed,
            twice,
            sum(text.count('"CONFLICT"') for text in words),
            sum(text.count('"DATABASE_AWAY"') for text in words),
            meter.rate(began, ended),
            seed,
            [f"{kill.node}'s kill: not back within {BACK_WITHIN:g} s" for kill in slow],
        )


def _open(cluster: Cluster) -> object:
    return cluster.sql(
        "SELECT i.status_id, i.attempt, w.host, w.ended_at, COUNT(*) AS n FROM task_item i LEFT JOIN worker w USING (id_worker)"
        f" WHERE i.status_id IN {ledger.OPEN} GROUP BY 1, 2, 3, 4 LIMIT 10"
    )


def _kill_in_turn(cluster: Cluster, began: float, seconds: float, every: float, rng: random.Random) -> list[Kill]:
    kills: list[Kill] = []
    while (at := began + every * len(kills)) + every <= began + seconds + 0.1:
        time.sleep(max(0.0, at + rng.uniform(0, 1) - time.monotonic()))
        node = cluster.nodes[len(kills) % len(cluster.nodes)]
        kill = Kill(node.name, time.monotonic())
        kills.append(kill)
        node.kill()
        time.sleep(_DOWN_SECONDS)
        node.start()
        kill.rejoined = time.monotonic() - kill.at
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=20)
    parser.add_argument("--writers", choices=["many", "one"], default="many")
    parser.add_argument("--seed", type=int, default=int(os.environ.get(SEED) or secrets.randbelow(2**32)))
    options = parser.parse_args()
    if missing := galera.missing():
        sys.exit(missing)
    print(f"{SEED}={options.seed}", flush=True)  # noqa: T201 -- this is a program
    with tempfile.TemporaryDirectory(prefix="ai-worker-galera-logs-") as folder:
        report = run(Path(folder), seconds=options.seconds, every=options.every, writers=options.writers, seed=options.seed)
    print(report.text())  # noqa: T201 -- this is a program
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
