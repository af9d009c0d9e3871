"""One fault at a time: a task under work, somebody struck, and the time until all that he held was in other hands."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.fleet import Fake, insert_task
from tests.chaos import ledger
from tests.chaos.arena import Arena
from tests.chaos.fleet import LEASE_SECONDS, Fleet, Process
from tests.chaos.ledger import Account

RECOVERY_SECONDS = LEASE_SECONDS + 2.0
"""What is promised: after a worker's death its items are free again within a lease and this much."""

INSIDE = Path(__file__).parent / "inside"


def inside(folder: Path) -> dict[str, str]:
    """The environment of a worker that `strike` can reach from within."""
    paths = [str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_ORDERS": str(folder)}


def faked_time(clock: str = "+0") -> dict[str, str] | None:
    """The environment of a program whose wall clock is wrong, in libfaketime's words; None where that is not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        return None
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}


@dataclass
class Scene:
    """A task of so many items, done by the workers of a fleet with the answers of a fake provider."""

    arena: Arena
    fleet: Fleet
    provider: Fake
    items: int
    id_task: int = 0

    def __post_init__(self) -> None:
        self.id_task = insert_task(self.arena.sql, self.provider, ledger.texts(self.items, f"{time.monotonic_ns()}/"))

    def strike(self, process: Process, order: str) -> None:
        """Does within the process what `inside/sitecustomize.py` offers. It must have been started with `inside(…)`."""
        (self.fleet.folder / f"order-{process.pid}").write_text(order, encoding="utf-8")
        os.kill(process.pid, signal.SIGUSR1)

    def held_by(self, process: Process) -> int:
        """Items that this worker's leases hold now."""
        statement = "SELECT COUNT(*) AS n FROM task_item i JOIN worker w ON w.id_worker = i.id_worker WHERE w.host = %s"
        count: int = self.arena.sql(statement, [process.name])[0]["n"]
        return count

    def wait_until_calling(self, process: Process, count: int) -> None:
        """Until the worker has so many items under work, and calls under way."""
        ledger.wait_until(lambda: self.held_by(process) >= count, 60, f"{process.name} holds {count} items", step=0.02)
        ledger.wait_until(lambda: self.provider.counts()["in_flight"] >= 1, 60, "calls are under way", step=0.02)

    def wait_until_free(self, process: Process, since: float, within: float = RECOVERY_SECONDS) -> float:
        """The seconds from `since` (of time.monotonic()) until nothing is held by the worker. Fails the test beyond `within`."""
        left = within + since - time.monotonic()
        ledger.wait_until(lambda: self.held_by(process) == 0, left, f"{process.name} holds nothing", step=0.02)
        return time.monotonic() - since

    def outcomes(self, name: str) -> int:
        """How many attempts have ended so, by now."""
        statement = "SELECT COUNT(*) AS n FROM task_attempt WHERE id_task = %s AND outcome = %s"
        count: int = self.arena.sql(statement, [self.id_task, name])[0]["n"]
        return count

    def end(self, timeout: float = 60, *, may_fail: bool = False) -> Account:
        """Waits until all is done, stops the workers in good order, and audits."""
        ledger.wait_until(lambda: ledger.open_items(self.arena.sql, self.id_task) == 0, timeout, "all items done")
        codes = {process.name: process.drain() for process in self.fleet.running}
        assert set(codes.values()) <= {0}, codes
        return ledger.audit(self.arena.sql, self.provider, self.id_task, may_fail=may_fail)


def report(fault: str, account: Account, **figures: object) -> None:
    """The block of figures of one fault, as docs/guarantees.md quotes it; pytest shows it with -rP or -s."""
    facts = {
        "items": account.items,
        "processed": account.processed,
        "failed": account.failed,
        "lost": 0,
        "twice": 0,
        "calls": account.calls,
        "extra calls": account.extra_calls,
        **figures,
    }
    shown = " · ".join(f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items())
    print(f"{fault}: {shown}")  # noqa: T201 -- the figures are what the run is for
