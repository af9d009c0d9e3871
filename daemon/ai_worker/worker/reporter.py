"""Tells the database what this worker has counted: a few rows after each heartbeat, and the rest at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from ai_worker.counts import Counts, Key, Reading, Work
from ai_worker.errors import DatabaseAway
from ai_worker.log import WARNING, Event, Log
from ai_worker.store.counters import Counters, Minute

WAIT_SECONDS: Final = 2.0  # for a report that is under way


class Reporter:
    """Callable from any thread; one report at a time. Nothing depends on it: what one cannot write, the next one does.

    Parameters
    ----------
    id_worker: the worker's present id. With another one than before, what has been counted so far is the former's.
    """

    def __init__(self, counts: Counts, counters: Counters, id_worker: Callable[[], int], log: Log) -> None:
        self._counts = counts
        self._counters = counters
        self._present = id_worker
        self._id_worker: int | None = None
        self._before: Mapping[Key, float] = {}  # what was counted under former ids
        self._written: dict[Key, float] = {}  # under this one, and stands in the database
        self._work: Mapping[int, Work] = {}  # all that has its minute
        self._minutes: dict[Minute, Work] = {}  # of the latest minute, and of any that is not yet written
        self._unwritten: set[Minute] = set()
        self._lock = threading.Lock()
        self._log = log
        self._is_refused = False

    @property
    def connections(self) -> int:
        """How many connections the worker holds to the database."""
        return self._counters.connections

    def report(self) -> None:
        """Writes what has changed; nothing while another thread is at it. What goes wrong is logged, once, and never raised."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._report()
            self._is_refused = False
        except DatabaseAway:
            pass  # said by whoever lost the connection
        except Exception as error:  # noqa: BLE001 -- a right that was not granted, say: work is done without being counted
            if not self._is_refused:
                self._log(Event.LIBRARY, level=WARNING, exc_info=error, logger="counters", message=str(error))
            self._is_refused = True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Writes what is left, for the last time, and adds the counters to those of workers that are no longer there.

        Else every `run` from cron would leave as many rows to add up each time that somebody looks. Raises DatabaseError.
        """
        if self._lock.acquire(timeout=WAIT_SECONDS):  # and never released
            self._report()
            if self._id_worker is not None:
                self._counters.fold([self._id_worker])

    def _report(self) -> None:
        reading, present = self._counts.read(), self._present()
        if self._id_worker is None:
            self._id_worker = present
        self._write(self._id_worker, reading)
        if present != self._id_worker:
            self._id_worker, self._before, self._written = present, reading.values, {}

    def _write(self, id_worker: int, reading: Reading) -> None:
        totals = {key: value - self._before.get(key, 0) for key, value in reading.values.items()}
        changed = {key: value for key, value in totals.items() if value != self._written.get(key, 0)}
        if reading.work != self._work:
            self._add(self._counters.minute(), id_worker, reading.work)
        if not changed and not self._unwritten:
            return
        self._counters.write(id_worker, changed, {each: self._minutes[each] for each in self._unwritten})
        self._written |= changed
        self._unwritten.clear()

    def _add(self, minute_at: datetime, id_worker: int, work: Mapping[int, Work]) -> None:
        """What is new belongs to this minute, and stays there, also when it cannot be written now."""
        kept = {each: done for each, done in self._minutes.items() if each.minute_at == minute_at or each in self._unwritten}
        for id_ai_model, done in work.items():
            known = self._work.get(id_ai_model, Work())
            if done != known:
                minute = Minute(minute_at, id_worker, id_ai_model)
                kept[minute] = kept.get(minute, Work()) + (done - known)
                self._unwritten.add(minute)
        self._minutes, self._work = kept, work
