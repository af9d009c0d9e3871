"""The database: a small class of our own on PyMySQL. Nothing else imports the driver.

`Database` stands for one logical database that may live on several hosts, of which one accepts writes. It can be used from any
thread: each thread that calls it gets a connection of its own, and a `Transaction` refuses to be used by another thread than
the one that it was made for, after its end, or inside another one.

Statements are the named blocks of sql/queries.sql. A transaction is a function that may be run again from its start: after a
deadlock, a lock time-out, a lost connection, or a COMMIT whose answer was lost. In the last case `Transaction.in_doubt` is true,
and the function has to look first whether its earlier run landed (by `operation_uuid`, claim token or key).
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from ai_worker.database_url import DatabaseUrl
from ai_worker.db.failures import READ_ONLY, CommitLostError, ConflictError, ConnectionLostError, TroubledError, code_of, name_of
from ai_worker.db.session import Session
from ai_worker.db.statements import sql_folder, statements
from ai_worker.db.transaction import Parameters, Row, Transaction
from ai_worker.errors import DatabaseAway, DatabaseError, DatabaseRefused
from ai_worker.log import Event, Log

__all__ = ["Database", "Parameters", "Row", "Transaction", "sql_folder", "statements"]

T = TypeVar("T")

log = Log()

MAX_CONFLICTS: Final = 20
MAX_LOSSES: Final = 5
LONGEST_PAUSE: Final = 5.0  # seconds


class _Place:
    """Where a database is now: the host that worked last, and how often it has moved since the start."""

    def __init__(self) -> None:
        self.preferred = self.moves = 0


class Database:
    """A database on one of several hosts.

    All threads are on one host. When one of them has had to go to another, or was told that its own has become read-only, the
    others follow at their next statement: a thread that only reads would not notice that it is on a former primary.

    Parameters
    ----------
    url: where it is; see `database_url.parse_database_url`.
    patience: seconds to go on trying when no host can be reached or written to, before `DatabaseAway` is raised. Waiting ends
        at once after `give_up()`.
    writable: whether a host that is read-only, or not synced with its cluster, will not do.
    beside: another one for the same database; the two follow each other from host to host.
    """

    def __init__(
        self, url: DatabaseUrl, *, patience: float = 10.0, writable: bool = True, beside: Database | None = None
    ) -> None:
        self.url = url
        self._writable = writable
        self.patience = patience
        self.longest_pause = LONGEST_PAUSE
        """Seconds between two attempts to connect, at most."""
        self.back_at = -math.inf
        """When the last wait for a server that was away ended, on the monotonic clock."""
        self._local = threading.local()
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self._hosts = url.hosts or ((url.unix_socket or "localhost", 0),)
        self._place: _Place = beside._place if beside else _Place()
        self._has_been_in = False
        self._given_up = threading.Event()
        self.is_away = False
        """Whether a thread waits for a server that cannot be reached."""
        self.conflicts = 0
        """How many transactions were run again after a deadlock or a lock timeout."""
        self.losses = 0
        """How many connections were lost."""

    def connect(self) -> None:
        """Connects this thread now instead of at its first statement. Raises DatabaseAway or DatabaseRefused."""
        self._session()

    def query(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """The rows of a named SELECT, outside of any transaction."""
        return self._repeat(lambda statement: statement.query(name, parameters), autocommit=True)

    def execute(self, name: str, parameters: Parameters | None = None) -> int:
        """Runs one named statement as a transaction of its own; it must be safe to repeat. The number of rows it matched."""
        return self._repeat(lambda statement: statement.execute(name, parameters), autocommit=True)

    def execute_for_id(self, name: str, parameters: Parameters | None = None) -> tuple[int, int]:
        """The same with the value that the statement gave to LAST_INSERT_ID(…), 0 where it came to none: an answer of one number,
        from an UPDATE, without a SELECT."""
        return self._repeat(lambda statement: statement.execute_for_id(name, parameters), autocommit=True)

    def execute_many(self, name: str, rows: Sequence[Parameters | Sequence[Any]]) -> int:
        """A named statement for many rows, see `Transaction`: each of its statements a transaction of its own, safe to repeat."""
        return self._repeat(lambda statement: statement.execute_many(name, rows), autocommit=True)

    def pages(self, name: str, parameters: Parameters, *, key: str, size: int = 1000) -> Iterator[Row]:
        """All rows of a named SELECT that goes on after `%(after)s` and stops at `%(size)s`, ordered by the column `key`.

        Streams without a long transaction: each page is a statement of its own.
        """
        after = 0
        while True:
            rows = self.query(name, {**parameters, "after": after, "size": size})
            yield from rows
            if len(rows) < size:
                return
            after = rows[-1][key]

    def transaction(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in one transaction and returns what it returns. `work` may be run several times: see the module's text."""
        return self._repeat(work, autocommit=False)

    @property
    def longest(self) -> float:
        """Seconds until a statement that a reachable server does not answer, because of somebody's lock say, is given up."""
        return MAX_LOSSES * (self.url.connect_timeout + self.url.read_timeout)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._sessions)

    def give_up(self) -> None:
        """From now on nobody waits for a database that is away, nor for an answer; callable from any thread."""
        self._given_up.set()
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.interrupt()

    def close(self) -> None:
        """Closes the connections of all threads. Call it when none of them is at work any more."""
        with self._lock:
            sessions, self._sessions = self._sessions, set()
        for session in sessions:
            session.close()

    def _repeat(self, work: Callable[[Transaction], T], *, autocommit: bool) -> T:
        in_doubt = False
        conflicts = losses = troubles = 0
        patient_until = 0.0
        while True:
            session = self._session()
            if session.in_transaction:
                raise RuntimeError("a transaction inside a transaction")
            try:
                return session.run(work, in_doubt, autocommit)
            except (ConnectionLostError, CommitLostError) as error:
                if self._given_up.is_set():  # nobody wants the answer any more: it may be `give_up` that broke the connection
                    raise DatabaseAway(f"{name_of(session.host)}: given up: {error}") from error
                in_doubt = in_doubt or isinstance(error, CommitLostError)
                if error.__cause__ is not None and code_of(error.__cause__) in READ_ONLY:
                    self._place.moves += 1
                losses += 1
                with self._lock:
                    self.losses += 1
                log(Event.DATABASE_AWAY, host=name_of(session.host), reason=str(error), commit_in_doubt=in_doubt)
                if losses >= MAX_LOSSES:
                    raise DatabaseAway(f"{name_of(session.host)}: the connection was lost {losses} times: {error}") from error
            except TroubledError as error:
                in_doubt = in_doubt or error.in_doubt
                if not troubles:
                    log(Event.DATABASE_AWAY, host=name_of(session.host), reason=str(error), commit_in_doubt=in_doubt)
                    patient_until = time.monotonic() + self.patience
                troubles += 1
                if time.monotonic() >= patient_until or self._given_up.wait(_pause(troubles)):
                    raise DatabaseAway(
                        f"{name_of(session.host)} cannot go on: {error}", code_of(error.__cause__ or error)
                    ) from error
            except ConflictError as error:
                in_doubt = in_doubt or error.in_doubt
                conflicts += 1
                with self._lock:
                    self.conflicts += 1
                log(Event.CONFLICT, attempt=conflicts, reason=str(error))
                if conflicts >= MAX_CONFLICTS:
                    raise DatabaseAway(f"gave up after {conflicts} conflicts: {error}", 1213) from error
                time.sleep(random.uniform(0.0, 0.002 * 2 ** min(conflicts, 7)))  # noqa: S311 -- jitter

    def _session(self) -> Session:
        session: Session | None = getattr(self._local, "session", None)
        # Where one thread has left a host, the others follow: it may be a replica by now, with old data, or a node of a cluster
        # on which the threads of one process would be in one another's way.
        if session is not None and session.is_open:
            is_ours = session.move == self._place.moves and not session.is_stale
            if session.in_transaction or is_ours:
                return session
        if session is not None:
            self._forget(session)
        session = self._connect()
        self._local.session = session
        with self._lock:
            self._sessions.add(session)
        return session

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)
        session.close()

    def _connect(self) -> Session:
        def note(state: RetryCallState) -> None:
            self.is_away = True
            if state.attempt_number == 1 and state.outcome is not None:
                log(Event.DATABASE_AWAY, reason=str(state.outcome.exception()), commit_in_doubt=False)

        retrying = Retrying(
            retry=retry_if_exception_type(DatabaseAway),
            wait=wait_random_exponential(multiplier=0.1, max=self.longest_pause),
            stop=stop_after_delay(self.patience) | stop_when_event_set(self._given_up),
            sleep=sleep_using_event(self._given_up),
            before_sleep=note,
            reraise=True,
        )
        session = retrying(self._connect_once)
        self.is_away = False
        if retrying.statistics.get("attempt_number", 1) > 1:
            self.back_at = time.monotonic()
            log(Event.DATABASE_BACK, host=name_of(session.host))
        return session

    def _connect_once(self) -> Session:
        """Tries each host once, beginning with the one that worked last.

        Refused for good is who is refused by all hosts before any has let him in. Later it is a password being changed, or a
        replica being made anew: a worker with results in hand waits for that.
        """
        place, moves = self._place, self._place.moves
        problems: list[DatabaseError] = []
        for step in range(len(self._hosts)):
            index = (place.preferred + step) % len(self._hosts)
            try:
                session = Session(self.url, self._hosts[index], self._writable)
            except (DatabaseAway, DatabaseRefused) as error:
                problems.append(error)
                continue
            if index != place.preferred:
                place.preferred = index
                place.moves = moves = place.moves + 1
            session.move = moves
            self._has_been_in = True
            return session
        text = "; ".join(map(str, problems))
        if all(isinstance(problem, DatabaseRefused) for problem in problems) and not self._has_been_in:
            raise DatabaseRefused(text, problems[0].code)
        raise DatabaseAway(f"no database server to work with: {text}")


def _pause(times: int) -> float:
    """Seconds until a server that was in trouble so many times is asked again."""
    return min(0.1 * 2.0 ** min(times, 6), 2.0) * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter
