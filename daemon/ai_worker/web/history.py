"""What the fleet has done, minute by minute: kept by each process, so that only the latest minutes are read again."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Final

from ai_worker.counts import Work
from ai_worker.store.counters import Counters

MINUTE: Final = timedelta(minutes=1)
LONGEST: Final = 24 * 60  # minutes that are kept
AGAIN: Final = 5  # minutes that are read again: workers write with their heartbeat, and later where the database was away


class History:
    """The last day. Callable from any thread."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lock = threading.Lock()
        self._works: dict[datetime, Work] = {}

    def minutes(self, count: int) -> list[tuple[datetime, Work]]:
        """The last `count` minutes (at most LONGEST), the present one last: their beginnings (UTC, without a zone) and work."""
        with self._lock:
            latest = self._counters.minute()
            wanted = [latest - back * MINUTE for back in range(count - 1, -1, -1)]
            missing = next((at for at in wanted if at not in self._works), latest)
            series = self._counters.series(min(count, max(AGAIN, (latest - missing) // MINUTE + 1)))
            self._works.update(zip(series.minutes, series.fleet, strict=True))
            for at in [each for each in self._works if each <= latest - LONGEST * MINUTE]:
                del self._works[at]
            return [(at, self._works.get(at) or Work()) for at in wanted]
