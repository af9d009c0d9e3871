"""Everything at once: workers, the database, the network and the provider fail for minutes, in a plan drawn from a seed.

    python -m tests.chaos.storm                       # 50,000 items on MariaDB, about nine minutes
    python -m tests.chaos.storm --server mysql --seed 7
    python -m tests.chaos.storm --short

An application inserts rows all the while; a supervisor starts a new worker for each that dies, as a service manager does. At
the end every item is held against its result, its attempts, the counters and the provider's own count of calls. The seed fixes
what happens and when, not how threads and processes interleave.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymysql

from ai_worker.errors import EXIT_TEMPORARY
from tests.acceptance.fleet import Fake, fake_provider
from tests.chaos import figures, ledger
from tests.chaos.arena import DATABASE, LOST, PASSWORD, Patient
from tests.chaos.fleet import LEASE_SECONDS, Fleet, Process
from tests.chaos.nursery import Nursery
from tests.chaos.recovery import Recovery
from tests.chaos.relay import Relay
from tests.chaos.replicas import Pair, pair_on
from tests.chaos.storm_plan import BILLED, SHORT, WHOLE, Fault, Plan, Scale, plan
from tests.conftest import Sql

LATENCY_MS = 300
LEAD = 600  # so many items more than its share of the time has the application inserted
STRUCK = "plain-"  # what the texts contain that the provider's faults strike
READ_ONLY = frozenset({1290, 1792, 1836})
SETTINGS = {"AI_WORKER_REQUEST_TIMEOUT_SECONDS": "10"}
# Servers are killed here, kernels are not: what is written is there again, without waiting for the disk at each commit.
SERVER_OPTIONS = ("--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0")

# name of the task: its share of the items, and its columns
TASKS: dict[str, tuple[float, dict[str, Any]]] = {
    "plain-a": (0.35, {}),
    "plain-b": (0.25, {"priority": 1}),
    "plain-c": (0.15, {}),
    "plain-d": (0.05, {"lane": "flex"}),
    "packed": (0.10, {"pack": 8}),
    "echo": (0.10, {}),
}


class Storm:
    """One run on a pair of servers; `run` fails the test, or returns the block of figures.

    folder: for the workers' logs. say: what is told of the progress.
    """

    def __init__(
        self, pair: Pair, provider: Fake, folder: Path, scale: Scale, seed: int, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._pair = pair
        self._provider = provider
        self._folder = folder
        self._scale = scale
        self._seed = seed
        self._say = say
        self._rng = random.Random(seed)  # noqa: S311 -- chance that can be repeated is the point
        self._plan: Plan = plan(scale, self._rng, LEASE_SECONDS)
        self._choice = random.Random(seed)  # noqa: S311 -- the same; of a thread of its own
        self._stopped = threading.Event()  # it is all done, or something has failed
        self._happened: Counter[str] = Counter()
        self._calls_cut = 0
        self._recovery = Recovery(self._sql())
        self._tasks: dict[str, int] = {}
        self._crew = _Crew(scale.workers)

    def run(self) -> str:
        host, port = self._provider.url.removeprefix("http://").split(":")
        servers = [(arena.host, arena.port) for arena in (self._pair.first, self._pair.second)]
        with Relay(servers[0]) as first, Relay(servers[1]) as second, Relay((host, int(port))) as to_provider:
            self._to_databases, self._to_provider = (first, second), to_provider
            hosts = ",".join(f"127.0.0.1:{relay.port}" for relay in self._to_databases)
            url = f"mysql://ai_worker:{PASSWORD}@{hosts}/{DATABASE}?ssl=off"
            with (
                Nursery() as nursery,
                Fleet(url, self._folder, self._scale.concurrency, env=SETTINGS, nursery=nursery) as fleet,
            ):
                return self._run(fleet)

    def _run(self, fleet: Fleet) -> str:
        self._make_tasks()
        sql = self._sql()
        self._began = time.monotonic()
        with ThreadPoolExecutor(max_workers=8) as pool:
            for_ever = [
                pool.submit(self._crew.supervise, fleet, self._stopped.is_set),
                pool.submit(self._recovery.watch, self._stopped.is_set),
            ]
            try:
                self._until(lambda: self._crew.is_complete, for_ever, 60, sql)
                self._began = time.monotonic()
                lanes = [
                    pool.submit(lane) for lane in (self._application, self._on_workers, self._on_database, self._on_provider)
                ]
                self._until(lambda: all(lane.done() for lane in lanes), [*lanes, *for_ever], self._scale.seconds * 3 + 60, sql)
                at_least = 60 + self._scale.items / 100  # what is left, at a slow machine's pace
                self._until(lambda: ledger.open_items(sql) == 0, for_ever, at_least, sql)
            finally:
                self._stopped.set()
        return self._verdict(fleet, time.monotonic() - self._began)

    def _until(self, is_so: Callable[[], bool], threads: list[Future[None]], timeout: float, sql: Sql) -> None:
        """Waits for it; fails with whatever one of the threads has failed with."""
        deadline, told = time.monotonic() + timeout, time.monotonic()
        while not is_so():
            for thread in threads:
                if thread.done():
                    thread.result()
            assert time.monotonic() < deadline, f"not done after {timeout:.0f} s; {dict(self._happened)}"
            if time.monotonic() - told > 15:
                told = time.monotonic()
                left = ledger.open_items(sql)
                self._say(f"{told - self._began:4.0f} s: {left} items open; {dict(self._happened)}")
            time.sleep(0.2)

    # ----- the faults, lane by lane

    def _due(self, faults: list[Fault]) -> Iterator[Fault]:
        """The faults, each when its time has come."""
        for fault in faults:
            if self._stopped.wait(max(0.0, self._began + fault.at - time.monotonic())):
                return
            yield fault

    def _on_workers(self) -> None:
        for fault in self._due(self._plan.workers):
            while (victim := self._crew.victim(self._choice, self._recovery.holding())) is None:
                if self._stopped.wait(0.05):
                    return
            if fault.kind == "kill":
                self._crew.kill(victim)
                self._recovery.lost(victim.name)
            elif fault.kind == "freeze":
                self._crew.freeze(victim, fault.seconds)
                self._recovery.lost(victim.name)
            else:
                self._crew.drain(victim)
            self._happened[f"worker {fault.kind}"] += 1

    def _on_database(self) -> None:
        for fault in self._due(self._plan.database):
            with self._recovery.outage():
                if fault.kind == "killed":
                    self._pair.primary.kill()
                    self._pair.revive()
                elif fault.kind == "cut off":
                    self._each_database(Relay.cut)
                    self._stopped.wait(fault.seconds)
                    self._each_database(Relay.mend)
                elif fault.kind == "silent":
                    self._each_database(Relay.hold)
                    self._stopped.wait(fault.seconds)
                    self._each_database(Relay.release)
                elif fault.kind == "switch-over":
                    self._pair.switch_over()
                else:
                    self._pair.fail_over()
            if fault.kind == "fail-over":
                with self._recovery.outage():  # the copy is taken of a server that stands still
                    self._pair.rejoin()
            self._happened[f"database {fault.kind}"] += 1

    def _each_database(self, act: Callable[[Relay], object]) -> None:
        for relay in self._to_databases:
            act(relay)

    def _on_provider(self) -> None:
        for fault in self._due(self._plan.provider):
            if fault.kind == "cut off":
                self._calls_cut += self._to_provider.cut()
                self._stopped.wait(fault.seconds)
                self._to_provider.mend()
            elif fault.kind == "silent":
                self._to_provider.hold()
                self._stopped.wait(fault.seconds)
                self._to_provider.release()
            elif fault.rule is not None:
                self._provider.script({**fault.rule, "contains": STRUCK})
                self._stopped.wait(fault.seconds)
                self._provider.script()
            self._happened[f"provider {fault.kind}"] += 1

    # ----- the application

    def _make_tasks(self) -> None:
        sql = self._sql()
        address = f"http://127.0.0.1:{self._to_provider.port}/v1"
        sql(
            "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output, options) VALUES"
            " ('fake', 'openai', 'fake', %s, 1, 2, NULL), ('echo', 'echo', NULL, NULL, NULL, NULL, '{\"delay_ms\": 300}')",
            [address],
        )
        models = {row["name"]: row["id_ai_model"] for row in sql("SELECT name, id_ai_model FROM ai_model")}
        for name, (_, columns) in TASKS.items():
            row = {
                "id_ai_model": models["echo" if name == "echo" else "fake"],
                "description": "Correct the text.",
                "max_attempts": 50,  # that none is given up: the provider spoils many answers on purpose
                "cache_seconds": 0,
                "submit_key": name,
                **columns,
            }
            sql(f"INSERT INTO task ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values()))
        self._tasks = {row["submit_key"]: row["id_task"] for row in sql("SELECT submit_key, id_task FROM task")}

    def _application(self) -> None:
        """Inserts the items, a little ahead of their share of the time, so that there is always work and never all of it."""
        rows = [
            (self._tasks[name], text)
            for name, (share, _) in TASKS.items()
            for text in ledger.texts(round(self._scale.items * share), f"{name} ")
        ]
        self._rng.shuffle(rows)
        inserting = _Inserting(self._connect_as_application)
        for start in range(0, len(rows), 100):
            at = self._began + (start - LEAD) / len(rows) * self._scale.seconds
            if self._stopped.wait(max(0.0, at - time.monotonic())):
                return
            inserting.insert(rows[start : start + 100])

    # ----- the end

    def _verdict(self, fleet: Fleet, seconds: float) -> str:
        assert set(fleet.drain()) <= {0}
        sql = self._sql()
        of_provider = [id_task for name, id_task in self._tasks.items() if name != "echo"]
        account = ledger.audit(sql, self._provider, *of_provider)
        echoed = ledger.audit(sql, None, self._tasks["echo"])
        ledger.assert_histories(sql, *self._tasks.values())
        assert fleet.tracebacks() == []
        per_fault = self._provider.counts()["per_fault"]
        spoilt = sum(per_fault.get(fault, 0) for fault in BILLED)
        lost = account.lost_attempts + echoed.lost_attempts
        calm, disturbed = self._recovery.seconds(disturbed=False), self._recovery.seconds(disturbed=True)
        happened = self._happened
        block = figures.show(
            f"Storm on {self._pair.first.kind}",
            {
                "seed": str(self._seed),
                "seconds": seconds,
                "items": account.items + echoed.items,
                "lost": 0,  # the audit has passed
                "committed twice": 0,
                "ended as dead letters": account.failed + echoed.failed,
                "workers killed": f"{happened['worker kill']} (SIGKILL), {happened['worker freeze']} frozen past the lease"
                f" (SIGSTOP, SIGCONT), {happened['worker drain']} drained (SIGTERM)",
                "database": f"{happened['database killed']} kills, {happened['database switch-over']} switch-overs,"
                f" {happened['database fail-over']} fail-overs",
                "network cuts": f"{happened['database cut off']} + {happened['database silent']} silences to the database,"
                f" {happened['provider cut off']} + {happened['provider silent']} silences to the provider",
                "provider's misdeeds": f"{happened['provider fails']} spells: "
                + ", ".join(f"{count} {fault}" for fault, count in sorted(per_fault.items())),
                "attempts": account.attempts + echoed.attempts,
                "attempts lost with their worker": lost,
                "items held at kills and freezes": self._recovery.held,
                "calls": account.calls,
                "extra calls": account.extra_calls,
                "… at most": f"{self._recovery.held} in flight at kills and freezes + {self._calls_cut} at cuts"
                f" + {spoilt} spoilt by the provider",
                "recovery after a kill": figures.spread(calm),
                "… or after an outage since": figures.spread(disturbed),
            },
        )
        assert account.extra_calls <= self._recovery.held + self._calls_cut + spoilt
        assert lost <= self._recovery.held, "claims were taken from workers that nobody had killed"
        assert max([*calm, *disturbed], default=0.0) <= LEASE_SECONDS + self._scale.recovery_seconds
        return block

    def _connect(self) -> pymysql.Connection[Any]:
        return self._pair.primary.connect()

    def _connect_as_application(self) -> pymysql.Connection[Any]:
        """With an application's rights: an administrator could write on a server that is just handing over."""
        return self._pair.primary.test_server.connect(DATABASE, "ai_worker_app", PASSWORD)

    def _sql(self) -> Sql:
        """Plain SQL on whichever server is the primary; for one thread."""
        patient, there = Patient(self._connect), self._pair.primary

        def run(statement: str, parameters: Any = None) -> list[dict[str, Any]]:
            nonlocal there
            if there is not self._pair.primary:
                patient.forget()
                there = self._pair.primary
            return patient(statement, parameters)

        return run


class _Crew:
    """The workers that are kept up: who is killed is replaced at once, who is frozen thaws by himself."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.RLock()
        self._working: list[Process] = []
        self._leaving: list[Process] = []
        self._frozen: list[tuple[float, Process]] = []

    @property
    def is_complete(self) -> bool:
        """Whether all have begun to look for work."""
        with self._lock:
            return len(self._working) == self._size and all('"START"' in each.background.text() for each in self._working)

    def victim(self, rng: random.Random, holding: dict[str, int]) -> Process | None:
        """One of those that hold something now, who are not frozen yet."""
        with self._lock:
            candidates = [process for process in self._working if holding.get(process.name)]
            return rng.choice(candidates) if candidates else None

    def kill(self, process: Process) -> None:
        with self._lock:
            self._working.remove(process)
            process.kill()

    def drain(self, process: Process) -> None:
        with self._lock:
            self._working.remove(process)
            self._leaving.append(process)
            process.signal(signal.SIGTERM)

    def freeze(self, process: Process, seconds: float) -> None:
        with self._lock:
            self._working.remove(process)
            self._frozen.append((time.monotonic() + seconds, process))
            process.freeze()

    def supervise(self, fleet: Fleet, until: Callable[[], bool]) -> None:
        """Until told to end, with nobody frozen any more. Fails when one ends that nobody has ended, unless it had found no
        database to begin with: a service manager starts it again."""
        while not (until() and not self._frozen):
            with self._lock:
                for process in [each for each in self._working if not each.is_running]:
                    text = process.background.text()
                    waited_in_vain = process.background.process.returncode == EXIT_TEMPORARY and '"START"' not in text
                    assert waited_in_vain, f"{process.name} ended by itself:\n{text[-3000:]}"
                    self._working.remove(process)
                for process in [each for each in self._leaving if not each.is_running]:
                    self._leaving.remove(process)
                    assert process.background.process.returncode == 0, process.background.text()[-3000:]
                for thaws_at, process in [*self._frozen]:
                    if time.monotonic() >= thaws_at:
                        process.thaw()
                        self._frozen.remove((thaws_at, process))
                        self._working.append(process)
                if len(self._working) + len(self._frozen) < self._size and not until():
                    self._working.append(fleet.start())
            time.sleep(0.1)


class _Inserting:
    """Inserts rows over a connection that may break at any moment, each row once: it looks before it tries again."""

    def __init__(self, connect: Callable[[], pymysql.Connection[Any]]) -> None:
        self._connect = connect
        self._sql = Patient(connect)

    def insert(self, rows: list[tuple[int, str]]) -> None:
        """All of them or, with an error, none."""
        statement = f"INSERT INTO task_item (id_task, text_original) VALUES {', '.join(['(%s, %s)'] * len(rows))}"
        values = [value for row in rows for value in row]
        while True:
            try:
                with self._connect() as connection, connection.cursor() as cursor:
                    cursor.execute(statement, values)
                    return
            except (pymysql.err.OperationalError, pymysql.err.InterfaceError) as error:
                if error.args[0] not in LOST | READ_ONLY:
                    raise
            time.sleep(0.1)
            self._sql.forget()  # the primary may be another one now
            if self._sql("SELECT 1 FROM task_item WHERE id_task = %s AND text_original = %s", rows[0]):
                return


def storm_on(kind: str, scale: Scale, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> str:
    """A storm on new servers of this kind; the block of figures."""
    with pair_on(kind, *SERVER_OPTIONS, semi_sync=True) as pair, fake_provider(LATENCY_MS) as provider:
        return Storm(pair, provider, folder, scale, seed, say).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--server", choices=["mariadb", "mysql"], default="mariadb")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--short", action="store_true", help="about twenty seconds, as in CI")
    parser.add_argument("--keep", type=Path, help="a folder for the workers' logs, which are thrown away otherwise")
    parser.add_argument("--share", type=float, default=1.0, help="so much of everything, and of the time (0 to 1)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201 -- needed most where the run fails
    with tempfile.TemporaryDirectory(prefix="ai-worker-storm-") as folder:
        where = options.keep or Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        storm_on(
            options.server,
            SHORT if options.short else WHOLE.part(options.share),
            options.seed,
            where,
            lambda line: print(line, flush=True),  # noqa: T201 -- so that nine minutes are not silent
        )


if __name__ == "__main__":
    main()
