"""A database whose every statement passes a gate: there a connection can be lost, or a verb made to wait for another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pymysql
from pymysql.constants import COMMAND

from ai_worker.db import Database
from ai_worker.db.session import Session
from ai_worker.errors import DatabaseAway

T = TypeVar("T")
Gate = Callable[[Any, str, Callable[[], None]], None]
"""Called with the connection, the statement, and what sends it."""

BLOCKED_SECONDS = 0.03  # a statement that takes so long waits for a lock of the other verb's
HANG_SECONDS = 30.0


class WatchedDatabase(Database):
    """A `Database` that tells the gate of its thread, if there is one, of each statement before it is sent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gates = threading.local()

    @contextmanager
    def gate(self, gate: Gate) -> Iterator[None]:
        """For the statements of this thread, for the length of the block."""
        self._gates.present = gate
        try:
            yield
        finally:
            self._gates.present = None

    def _connect_once(self) -> Session:
        gate = getattr(self._gates, "present", None)
        if isinstance(gate, Loss) and gate.is_away:
            raise DatabaseAway("the test has taken the database away")
        session = super()._connect_once()
        connection = session.connection
        send = connection._execute_command

        def execute_command(command: int, sql: str | bytes) -> None:
            gate = getattr(self._gates, "present", None)
            if gate is None or command != COMMAND.COM_QUERY:
                send(command, sql)
            else:
                text = sql if isinstance(sql, str) else sql[:20].decode("ascii", "replace")
                gate(connection, text, lambda: send(command, sql))

        connection._execute_command = execute_command
        return session


@dataclass
class Loss:
    """A gate that breaks the connection at one statement, counted from 0: before it is sent, or instead of its answer.

    With `for_long` no connection is to be had after that, and the verb gives up. `has_landed` says whether the statement was
    executed and was, or ended, a transaction. `is_gone(connection id)` tells whether the server has noticed and rolled back.
    """

    at: int
    when: Literal["before", "after"]
    for_long: bool
    is_gone: Callable[[int], bool]
    is_away: bool = False
    has_struck: bool = False
    has_landed: bool = False
    _seen: int = 0
    _is_open: bool = False

    def __call__(self, connection: Any, sql: str, send: Callable[[], None]) -> None:
        number, self._seen = self._seen, self._seen + 1
        is_inside = self._is_open and sql != "COMMIT"
        self._is_open = sql == "BEGIN" or (self._is_open and sql not in {"COMMIT", "ROLLBACK"})
        if self.has_struck or number != self.at:
            send()
            return
        if self.when == "after":
            send()
            connection._read_query_result()
            self.has_landed = not is_inside and sql != "BEGIN"
        self.has_struck, self._is_open = True, False
        self.is_away = self.for_long
        session = connection.thread_id()
        connection._force_close()
        deadline = time.monotonic() + HANG_SECONDS
        while not self.is_gone(session):  # until then the locks of the broken transaction are held
            assert time.monotonic() < deadline, "the server does not notice that the connection is gone"
            time.sleep(0.0005)
        raise pymysql.err.OperationalError(2013, "the test has broken the connection")


class _Steps:
    """A gate that lets statements through one by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._permits = 0
        self._is_waiting = False
        self._is_free = False
        self._is_done = False

    def __call__(self, connection: Any, sql: str, send: Callable[[], None]) -> None:
        with self._changed:
            self._is_waiting = True
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits or self._is_free, HANG_SECONDS), "nobody lets the verb go on"
            self._permits = max(0, self._permits - 1)
            self._is_waiting = False
        send()

    def done(self) -> None:
        with self._changed:
            self._is_done = True
            self._changed.notify_all()

    @property
    def is_done(self) -> bool:
        return self._is_done

    def let(self, statements: int) -> None:
        """Lets so many statements through, one after the other; fewer when the verb ends, or one waits for a lock."""
        for _ in range(statements):
            if not self._arrived():
                return
            with self._changed:
                if self._is_done:
                    return
                self._permits += 1
                self._is_waiting = False
                self._changed.notify_all()
        self._arrived()

    def let_all(self) -> None:
        """Lets the verb run to its end, or until it waits for a lock."""
        with self._changed:
            self._is_free = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_done, BLOCKED_SECONDS)

    def _arrived(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._is_waiting or self._is_done, BLOCKED_SECONDS)


class Pair:
    """Two threads, each with a connection of its own, that run two verbs statement by statement."""

    def __init__(self, db: WatchedDatabase) -> None:
        self._db = db
        self._threads = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        self.is_over_first = False

    def run(self, one: Callable[[], Any], other: Callable[[], Any], first: int, second: int) -> tuple[Any, Any]:
        """`first` statements of `one`, then `second` of `other`, then the rest of `one`, then the rest of `other`.

        What has to wait for a lock waits, and the other goes on. What both return. `is_over_first` then says whether `one` had no
        more to say when `other` began.
        """
        steps = (_Steps(), _Steps())
        begun = self._begin(0, steps[0], one)
        steps[0].let(first)
        self.is_over_first = steps[0].is_done
        after = self._begin(1, steps[1], other)
        steps[1].let(second)
        steps[0].let_all()
        steps[1].let_all()
        wait((begun, after), HANG_SECONDS)  # also when one of them fails: the next pair needs both threads
        return begun.result(0), after.result(0)

    def _begin(self, number: int, steps: _Steps, verb: Callable[[], T]) -> Future[T]:
        def run() -> T:
            try:
                with self._db.gate(steps):
                    return verb()
            finally:
                steps.done()

        return self._threads[number].submit(run)

    def close(self) -> None:
        for each in self._threads:
            each.shutdown()
