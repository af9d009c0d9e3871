"""The worker's row and its heartbeat: the right to its claims, kept from a thread of its own."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, TypeVar

from ai_worker import __version__
from ai_worker.errors import DatabaseError
from ai_worker.log import Event, Log
from ai_worker.store.queue import Queue

P = ParamSpec("P")
T = TypeVar("T")

BEATS_PER_LEASE: Final = 6
SELF_FENCE: Final = 0.6  # of the lease without a beat: no new claims, well before anybody may rescue
STUCK: Final = 1 / 3  # of the lease without a tick of the loop: a stuck loop must lose its lease, not hold it for ever


class Lease:
    """Registers a worker, beats for it, and registers anew when the lease was lost.

    Parameters
    ----------
    lease_seconds: after this long without a heartbeat others may take the worker's items.
    """

    _load: Callable[[], tuple[int, int, int]]
    _on_lost: Callable[[], None]
    _on_beat: Callable[[], None]

    def __init__(
        self,
        queue: Queue,
        *,
        lease_seconds: float,
        mode: str,
        concurrency: int,
        name: str | None,
    ) -> None:
        self._queue = queue
        # Or a lease that outlived an outage would run out between two attempts to connect.
        queue.db.longest_pause = min(queue.db.longest_pause, lease_seconds / BEATS_PER_LEASE)
        self._seconds = lease_seconds
        self._mode = mode
        self._concurrency = concurrency
        self.host = name or socket.gethostname()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_for_ever, name="heartbeat", daemon=True)
        self._last_beat = self._last_tick = time.monotonic()
        self._steady_since = -math.inf  # since the last gap in our own heartbeat
        self.id_worker = 0
        self.log = Log()
        """One object for good, whose lines carry the present `id_worker`."""

    def start(
        self,
        load: Callable[[], tuple[int, int, int]],
        on_lost: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Registers the worker and begins to beat.

        `load` gives (in flight, processed, failed) for the worker's row, `on_lost` is told that others may have taken the
        worker's items, `on_beat` of each beat, also one that only found the lease lost. All are called from the heartbeat's
        thread, which they must not hold up.
        """
        self._load, self._on_lost, self._on_beat = load, on_lost, on_beat
        self._register()
        self._steady_since = self._queue.db.back_at  # who had to wait for the database begins with the end of an outage
        self._thread.start()

    def stop(self) -> None:
        """Ends the heartbeat and the worker's row, which must hold nothing any more."""
        self._stop.set()
        self._thread.join(timeout=self._seconds)
        _, processed, failed = self._load()
        self._queue.end_worker(self.id_worker, processed=processed, failed=failed)

    def abandon(self) -> None:
        """No more beats; others tidy up when the lease is over."""
        self._stop.set()

    def say_draining(self, aside: Callable[..., None]) -> None:
        """Has the worker's row say that it claims nothing more; `aside` does what nobody waits for, see `Thread.aside`."""
        aside(self.own(self._queue.draining))

    def tick(self) -> None:
        """The loop is alive. Called by it, every second or so."""
        self._last_tick = time.monotonic()

    def own(self, verb: Callable[Concatenate[int, P], T]) -> Callable[P, T]:
        """The verb, done under this worker's id: the one that it has then, as it gets another with each lease."""

        def done(*arguments: P.args, **named: P.kwargs) -> T:
            return verb(self.id_worker, *arguments, **named)

        return done

    @property
    def is_dead(self) -> bool:
        """Whether the heartbeat's thread has ended before it was told to."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stop.is_set()

    @property
    def may_claim(self) -> bool:
        """Whether a beat succeeded recently enough to take on more."""
        return time.monotonic() - self._last_beat < SELF_FENCE * self._seconds

    @property
    def may_rescue(self) -> bool:
        """Whether the silence of others means that they are dead: not while our own heartbeat has only just come back, or begun.

        After an outage of the database every lease is stale, and whoever is first back must give the others time for a beat.
        """
        return time.monotonic() - self._steady_since >= self._seconds

    def _register(self) -> None:
        self.id_worker = self._queue.register(
            host=self.host,
            pid=os.getpid(),
            version=__version__,
            mode=self._mode,
            concurrency=self._concurrency,
            lease_seconds=self._seconds,
        )
        self.log.carry(worker=self.id_worker)
        self._last_beat = time.monotonic()

    def _beat_for_ever(self) -> None:
        interval = self._seconds / BEATS_PER_LEASE
        while not self._stop.wait(interval):
            if time.monotonic() - self._last_tick > STUCK * self._seconds:
                self.log(Event.HEARTBEAT_LATE, seconds=round(time.monotonic() - self._last_tick, 1), reason="the loop is stuck")
                continue
            began = time.monotonic()
            try:
                self._beat()
            except DatabaseError as error:
                self.log(Event.HEARTBEAT_LATE, seconds=round(time.monotonic() - self._last_beat, 1), reason=str(error))
                continue
            except Exception as error:  # noqa: BLE001 -- a heart that has stopped for good leaves a worker that never claims again
                reason = f"{type(error).__name__}: {error}"
                self.log(Event.HEARTBEAT_LATE, seconds=round(time.monotonic() - self._last_beat, 1), reason=reason)
                continue
            if began - self._last_beat > 2.5 * interval or time.monotonic() - began > interval:
                self._steady_since = time.monotonic()
            self._last_beat = began
            self._on_beat()

    def _beat(self) -> None:
        in_flight, processed, failed = self._load()
        if self._queue.beat(
            self.id_worker,
            host=self.host,
            pid=os.getpid(),
            lease_seconds=self._seconds,
            in_flight=in_flight,
            processed=processed,
            failed=failed,
        ):
            return
        # Items in flight keep their fence: what nobody else has claimed meanwhile can still be committed.
        self._on_lost()
        self.log(Event.LEASE_LOST, seconds=round(time.monotonic() - self._last_beat, 1))
        self._register()
