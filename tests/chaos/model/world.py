"""The real tables beside the model: verbs are done to both, and after each one all rows are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pymysql
import pymysql.cursors
from pymysql.constants import CLIENT

from ai_worker.database_url import parse_database_url
from ai_worker.errors import DatabaseAway, DatabaseError, UsageError
from ai_worker.models import Item, Outcome, Task
from ai_worker.store.queue import Queue
from ai_worker.store.tasks import Tasks
from tests.chaos.model.protocol import REFUSED, Disagreement, ItemState, Protocol, TaskState, WorkerState
from tests.chaos.model.watched import Loss, Pair, WatchedDatabase
from tests.servers import TestServer

NOTHING: frozenset[int] = frozenset()
MAX_LOSSES = 3  # instead of twenty, so that an item is set aside within an example
LEASE_SECONDS = 3600.0  # nobody's lease is over but by the test

# All that the model knows of, in one exchange. Texts are short here.
LOOK = """
SELECT id_task, status_id, started_at IS NOT NULL, finished_at IS NOT NULL, priority, records_processed, records_failed,
       tokens_input, tokens_output, cost FROM task;
SELECT id_task_item, id_task, status_id, attempt, lost_count, claim_token, id_worker, available_at <= UTC_TIMESTAMP(6),
       tokens_input, tokens_output, cost, text_corrected, error_kind FROM task_item;
SELECT operation_uuid, id_task, id_task_item, attempt, id_worker, outcome, error_kind, tokens_input, tokens_output, cost
  FROM task_attempt;
SELECT id_worker, lost_at IS NOT NULL, ended_at IS NOT NULL, lease_until < UTC_TIMESTAMP(6) FROM worker;
SELECT 'all', CAST(SUM(attempts) AS UNSIGNED), CAST(SUM(tokens_input) AS UNSIGNED), CAST(SUM(tokens_output) AS UNSIGNED),
       SUM(cost)
  FROM ai_model_day HAVING COUNT(*) > 0"""
TABLES = ("task", "task_item", "task_attempt", "worker", "ai_model_day")
CLEAN = ";".join(f"DELETE FROM {each}" for each in ("task_item", "task_attempt", "worker", "ai_model_day", "task"))


@dataclass
class Held:
    """An item in a worker's hands; its outcome, once that has been decided."""

    item: Item
    outcome: Outcome | None = None


@dataclass
class Worker:
    """A worker process. It goes by another id after it was given up; its hands stay full."""

    id_worker: int
    queue: Queue
    hand: list[Held] = field(default_factory=list)
    looked_at: list[Task] = field(default_factory=list)
    doubts: list[dict[int, bytes]] = field(default_factory=list)  # claims that landed without its hearing of them


class Act(NamedTuple):
    """A verb. `agree` does it to a model, and raises Disagreement when that would have returned something else; `after` is told
    what was returned, once that is settled; `lost` is told instead that nothing was, and whether it has landed. `locks` says, of
    what it returned, which items it held locked, also those that it left as they were: at the same time others pass them over.

    `exact` verbs must return the same when a connection was lost on the way. One that `takes_steps` is several transactions: what
    it returns at the same time as another verb counts what it met on its way.
    """

    name: str
    run: Callable[[], Any]
    agree: Callable[[Protocol, Any], None]
    after: Callable[[Any], None] = lambda _: None
    lost: Callable[[Protocol, bool], None] | None = None
    exact: bool = True
    writes: bool = True
    takes_steps: bool = False
    locks: Callable[[Any], frozenset[int]] = lambda _: NOTHING


class Fault(NamedTuple):
    """Where a connection breaks; see `watched.Loss`."""

    at: int
    when: Any
    for_long: bool


class World:
    """One database for many examples; `begin` empties it."""

    def __init__(self, server: TestServer, url: str) -> None:
        self.url = url
        self.db = WatchedDatabase(parse_database_url(url), patience=0.0)
        self.tasks = Tasks(self.db)
        self.pair = Pair(self.db)
        self._server = server
        self._sql = self._connect(parse_database_url(url).database)
        self._deaths = 0
        self.model = Protocol(MAX_LOSSES)
        self.workers: list[Worker] = []
        self.id_ai_model = 0
        self.name = server.name
        self.problem: Exception | None = None
        self.made_at = time.monotonic()
        self.begun = 0
        self.steps = 0
        self.acts: dict[str, int] = {}

    def begin(self) -> None:
        """Empty tables and one model for the next example."""
        self.begun += 1
        self.sql(CLEAN)
        if not self.id_ai_model:
            self.sql(
                "INSERT INTO ai_model (name, provider) VALUES ('m', 'echo')"
                " ON DUPLICATE KEY UPDATE id_ai_model = LAST_INSERT_ID(id_ai_model)"
            )
            self.id_ai_model = self._sql.insert_id()
        self.model = Protocol(MAX_LOSSES)
        self.workers = []

    def close(self) -> None:
        self.pair.close()
        self.db.close()
        self._sql.close()

    def sql(self, statements: str) -> list[tuple[tuple[Any, ...], ...]]:
        """Plain SQL, as another application sends it: the rows of each of the statements."""
        with self._sql.cursor() as cursor:
            cursor.execute(statements)
            found = [cursor.fetchall()]
            while cursor.nextset():
                found.append(cursor.fetchall())
            return found

    # ----- what others do, by plain SQL

    def new_task(self, priority: int) -> int:
        self.sql(f"INSERT INTO task (id_ai_model, priority, max_attempts) VALUES ({self.id_ai_model}, {priority}, 2)")
        id_task: int = self._sql.insert_id()
        self.model.tasks[id_task] = TaskState(priority)
        return id_task

    def insert(self, id_task: int, count: int) -> None:
        rows = ", ".join([f"({id_task}, 'tekst')"] * count)
        self.sql(f"INSERT INTO task_item (id_task, text_original) VALUES {rows}")
        first = self._sql.insert_id()
        self.model.items |= {first + number: ItemState(id_task) for number in range(count)}

    def execute(self, statement: str) -> None:
        """Plain SQL of this thread's: it may be one verb of a pair."""
        self.db.transaction(lambda tx: tx.raw(statement))

    def make_due(self) -> None:
        """Time passes: everything that was put off is due."""
        self.sql("UPDATE task_item SET available_at = '2020-01-01' WHERE status_id = 4")
        for each in self.model.items.values():
            each.is_due = True if each.is_due is not None else None

    def lease_is_over(self, worker: Worker) -> None:
        self._deaths += 1
        self.sql(
            f"UPDATE worker SET lease_until = '2020-01-01' + INTERVAL {self._deaths} SECOND WHERE id_worker = {worker.id_worker}"
        )
        self.model.workers[worker.id_worker].over = self._deaths

    def register(self) -> int:
        self.sql(
            "INSERT INTO worker (host, pid, version, mode, concurrency, lease_until)"
            f" VALUES ('host', 1, '0', 'daemon', 1, UTC_TIMESTAMP(6) + INTERVAL {LEASE_SECONDS:.0f} SECOND)"
        )
        id_worker: int = self._sql.insert_id()
        self.model.workers[id_worker] = WorkerState()
        return id_worker

    def new_queue(self) -> Queue:
        return Queue(self.db)

    # ----- verbs

    def do(self, act: Act, fault: Fault | None = None, *, compared: bool = True) -> Any:
        """A verb on the database and on the model, and the comparison. With a fault, its connection is lost on the way.

        What it returned, or, with a fault, whether that has struck.
        """
        self.acts[act.name] = self.acts.get(act.name, 0) + 1
        with self._noting():
            if fault is None:
                observed = _answer(act.run)
                act.agree(self.model, observed)
                act.after(observed)
            else:
                observed = self._with_fault(act, fault)
            if compared and act.writes:
                self.compare()
            return observed

    def _with_fault(self, act: Act, fault: Fault) -> bool:
        loss = Loss(fault.at, fault.when, fault.for_long and act.lost is not None, self._is_gone)
        try:
            with self.db.gate(loss):
                observed = _answer(act.run)
        except DatabaseAway:
            if act.lost is None or not loss.is_away:
                raise
            act.lost(self.model, loss.has_landed)
            return True
        if loss.has_struck:
            self.acts["connection lost"] = self.acts.get("connection lost", 0) + 1
        if act.exact or not loss.has_landed:
            act.agree(self.model, observed)
        else:
            act.agree(self.model, ...)
        act.after(observed)
        return loss.has_struck

    def at_once(self, one: Act, other: Act, first: int, second: int) -> None:
        """Two verbs at the same time: what comes of it must be what comes of one after the other, in one order or the other.

        But one may have passed over what the other held locked: a late commit what is another's by now, a claim what a search for
        orphans would have found a moment later. The next one finds it.
        """
        self.acts["two at once"] = self.acts.get("two at once", 0) + 1
        with self._noting():
            self._at_once(one, other, first, second)

    def _at_once(self, one: Act, other: Act, first: int, second: int) -> None:
        answers = self.pair.run(lambda: _answer(one.run), lambda: _answer(other.run), first, second)
        found = self.look()
        problems = []
        locked = (other.locks(answers[1]), one.locks(answers[0]))  # for each, what the other one held
        acts = list(zip((one, other), answers, locked, strict=True))
        for are_passed_over in (False, True):
            for order in (acts, acts[::-1]):
                model = self.model.copy()
                try:
                    for act, answer, others in order:
                        model.locked = others if are_passed_over else NOTHING
                        act.agree(model, ... if act.takes_steps and answer is not REFUSED else answer)
                    model.locked = NOTHING
                    difference(model, found)
                except Disagreement as error:
                    problems.append(f"{' then '.join(act.name for act, *_ in order)}: {error}")
                    continue
                self.model = model
                for act, answer, _ in acts:
                    act.after(answer)
                return
        raise Disagreement(f"{one.name} and {other.name} at once are like neither order\n" + "\n".join(problems))

    def look(self) -> dict[str, dict[Any, tuple[Any, ...]]]:
        """All tables as they are."""
        self.steps += 1
        found = self.sql(LOOK)
        return {table: {row[0]: row[1:] for row in rows} for table, rows in zip(TABLES, found, strict=True)}

    def compare(self) -> None:
        difference(self.model, self.look())

    # ----- inside

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """What two verbs at once have done need not come again when the example is repeated: the first problem is kept."""
        try:
            yield
        except (AssertionError, DatabaseError) as error:
            self.problem = self.problem or error
            raise

    def _is_gone(self, session: int) -> bool:
        return not self.sql(f"SELECT ID FROM information_schema.processlist WHERE ID = {session}")[0]

    def _connect(self, database: str) -> pymysql.Connection[Any]:
        ((host, port),) = self._server.admin.hosts
        return pymysql.connect(
            host=host,
            port=port,
            user=self._server.admin.user,
            password=self._server.admin.password.reveal(),
            database=database,
            charset="utf8mb4",
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            ssl_disabled=True,
            init_command="SET time_zone = '+00:00', sql_mode = ''",
        )


def _answer(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except UsageError:
        return REFUSED


def difference(model: Protocol, found: dict[str, dict[Any, tuple[Any, ...]]]) -> None:
    """Raises Disagreement, naming each row that is not as the model has it."""
    expected = model.rows()
    if expected == found:
        return
    lines = []
    for table in TABLES:
        for key in sorted(expected[table].keys() | found[table].keys(), key=str):
            is_now, was_to_be = found[table].get(key), expected[table].get(key)
            if is_now != was_to_be:
                lines.append(f"  {table} {key!r}: is {is_now}, was to be {was_to_be}")
    raise Disagreement("\n".join(lines))
