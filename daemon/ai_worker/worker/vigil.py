"""A worker under a service manager: when it is ready, how it is getting on, that it is alive, and that it needs longer.

The watchdog is fed in the loop, and by proof only: the loop turns, or this would not run; the claim loop comes round; and no
call is under way beyond its own deadline. Where one of these fails, the watchdog is left to bite: the process is aborted, its
stacks are in the journal, a new one is started, and the items are free again after the lease.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from collections.abc import Callable
from typing import Final

from ai_worker import notify
from ai_worker.log import Event
from ai_worker.worker.accounts import Accounts
from ai_worker.worker.claiming import Claiming
from ai_worker.worker.lease import Lease
from ai_worker.worker.slots import Slots
from ai_worker.worker.under_way import UnderWay

STATUS_SECONDS: Final = 5.0  # between two lines, and between two requests for more time
FEEDS: Final = 3  # of the watchdog in its time
STANDSTILL_SECONDS: Final = 300.0  # at the least, see `Vigil`
OVERTIME_SECONDS: Final = 30.0  # after the drain time: the last commits. Longer than that nobody asks for


class Vigil:
    """Used in the loop. Where no service manager listens, it does nothing.

    Parameters
    ----------
    draining: set when the worker has been told to stop.
    drain_until: until when it then has time, by the monotonic clock.
    longest: seconds that one look for work may take until it ends by itself, while the database answers others: who changes a
        table locks it for as long as that takes.
    """

    def __init__(
        self,
        lease: Lease,
        slots: Slots,
        accounts: Accounts,
        claiming: Claiming,
        under_way: UnderWay,
        draining: asyncio.Event,
        drain_until: Callable[[], float],
        longest: float,
    ) -> None:
        self._lease = lease
        self._slots = slots
        self._accounts = accounts
        self._claiming = claiming
        self._under_way = under_way
        self._draining = draining
        self._drain_until = drain_until
        self._standstill = max(STANDSTILL_SECONDS, 2 * longest)
        self._is_ready = False
        self._owes_ready = False  # the manager has not taken it yet
        self._has_said: str | None = None
        self._counted = (time.monotonic(), 0)
        watchdog = notify.watchdog_seconds()
        self._every = min(STATUS_SECONDS, watchdog / FEEDS) if watchdog else STATUS_SECONDS

    async def run(self) -> None:
        """Until it is cancelled, at the worker's very end."""
        if not notify.is_heard():
            return
        looking = asyncio.create_task(self._claiming.has_looked.wait())
        draining = asyncio.create_task(self._draining.wait())
        try:
            while not (looking.done() or draining.done()):
                await asyncio.wait([looking, draining], timeout=self._every, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    notify.tell(notify.extend(), notify.status("starting: waits for the database"))
            if not draining.done():
                self._is_ready = True
                self._say_ready(notify.ALIVE, self._status())
            while not draining.done():
                await asyncio.wait([draining], timeout=self._every)
                self._tell()
            notify.tell(notify.STOPPING)
            while True:
                self._tell_draining()
                await asyncio.sleep(min(self._every, 1.0))
        finally:
            looking.cancel()
            draining.cancel()
            if self._draining.is_set():
                notify.tell(notify.ALIVE, notify.extend())  # for threads that still wait for an absent database

    def reloading(self) -> None:
        """Settings are being read anew, until `reloaded`."""
        if self._is_ready and not self._draining.is_set():
            notify.tell(notify.reloading())

    def reloaded(self) -> None:
        """This is over, whatever came of it."""
        if self._is_ready and not self._draining.is_set():  # one that still starts must not be taken to be ready
            self._say_ready()

    def _say_ready(self, *lines: str) -> None:
        """Until it is taken: a manager that waits for it in vain ends the worker."""
        self._owes_ready = not notify.tell(notify.READY, *lines)

    def _tell(self) -> None:
        if self._owes_ready:
            self._say_ready()
        if (trouble := self._trouble()) is None:
            notify.tell(notify.ALIVE, self._status())
        elif trouble != self._has_said:
            self._lease.log(Event.STUCK, reason=trouble)
            notify.tell(notify.status(trouble))
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(sys.__stderr__)  # of all threads, one of which may be what hangs
        self._has_said = trouble

    def _trouble(self) -> str | None:
        """Why the watchdog gets nothing; None while all is well, also while nothing can be done because the database is away."""
        if (overdue := self._under_way.overdue()) > 0:
            return f"{overdue} calls are under way beyond their deadlines"
        if self._claiming.standstill > self._standstill and self._lease.may_claim:
            return f"no look for work has come to its end for {self._claiming.standstill:.0f} s, though the database answers"
        return None

    def _status(self) -> str:
        in_flight, processed, failed = self._accounts.load()
        ended, now = processed + failed, time.monotonic()
        since, before = self._counted
        rate = (ended - before) / (now - since) if now > since else 0.0
        self._counted = (now, ended)
        if not self._lease.may_claim:
            return notify.status(f"waits for the database; {self._accounts.in_hand} results in hand")
        return notify.status(f"{in_flight} in flight, {rate:.1f} items/s; {processed} processed, {failed} failed so far")

    def _tell_draining(self) -> None:
        """The watchdog is fed meanwhile: a drain has a time limit of its own."""
        left = self._drain_until() - time.monotonic()
        text = f"draining: {self._slots.in_flight} in flight, {max(0.0, left):.0f} s left"
        if left + OVERTIME_SECONDS > 0:
            notify.tell(notify.ALIVE, notify.extend(), notify.status(text))
