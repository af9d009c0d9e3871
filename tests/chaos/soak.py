"""`python -m tests.chaos.soak --minutes 30`: hours of work in minutes, and whether anything grows that should not.

Workers at full speed with the rights of sql/grants.sql, on several kinds of work and a provider that makes mistakes; a web with
visitors, `prune` behind them all, and a connection killed every ten seconds. Every task is audited when it has ended. Memory,
file descriptors, threads, connections and the tables' files are read every few seconds; after a warm-up a line is laid through
each, and fails the run where it climbs by more than the bound that is printed beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store.tokens import Scope, Tokens
from ai_worker.web.access import COOKIE
from tests.acceptance.fleet import Fake, fake_provider
from tests.chaos.arena import Arena, arena_on, kinds
from tests.chaos.fleet import Fleet, Process
from tests.chaos.ledger import wait_until
from tests.chaos.soak_load import (
    CUT_SECONDS,
    FAULTS,
    KINDS,
    POOL,
    PRUNE_SECONDS,
    RESET_SECONDS,
    Application,
    Beside,
    Cutter,
    Housekeeping,
    Visitors,
)
from tests.chaos.soak_samples import Sampler, Verdict, rows_of

WORKERS = 3
LEASE_SECONDS = 30  # as shipped: nobody is meant to die here, on a busy machine neither
WARM_UP = 0.25  # of the time: caches fill, files reach the size that they keep
SERVER_OPTIONS = ("--innodb-buffer-pool-size=256M",)


@dataclass(frozen=True)
class Soak:
    """What a soak came to. `faults`: what is wrong besides measures that grow."""

    server: str
    seed: int
    seconds: float
    items: int
    tasks: int
    pruned: int
    requests: int
    away: int
    cut: int
    rows: dict[str, int]
    verdicts: Sequence[Verdict]
    faults: Sequence[str]

    @property
    def is_flat(self) -> bool:
        return not self.faults and all(verdict.is_flat for verdict in self.verdicts)

    def report(self) -> str:
        rate = f"{self.items / self.seconds:,.0f}/s: as many as {self.items / 48 / 3600:.1f}/s for 48 hours"
        lines = [
            f"soak on {self.server}, {self.seconds / 60:.1f} minutes, seed {self.seed}, {os.cpu_count()} cores",
            f"items {self.items:,} in {self.tasks:,} tasks ({rate}); lost 0, twice 0, every task audited",
            f"pruned {self.pruned:,} items; HTTP requests {self.requests:,} (503 {self.away}); connections killed {self.cut}",
            f"{'measure, after the warm-up':34} {'least':>9} {'median':>9} {'most':>9}",
            *[verdict.line() for verdict in self.verdicts],
            "rows at the end: " + ", ".join(f"{table} {count}" for table, count in sorted(self.rows.items()) if count),
            *[f"WRONG: {fault}" for fault in self.faults],
            "flat" if self.is_flat else "NOT FLAT",
        ]
        return "\n".join(lines)


def soak(
    arena: Arena,
    folder: Path,
    seconds: float,
    seed: int,
    *,
    workers: int = WORKERS,
    step: float = 5.0,
    samples: Path | None = None,
) -> Soak:
    """Runs it for so many seconds on a server of its own. Raises when work is lost, done twice or miscounted.

    samples: a file for all that was read.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider(50))
        provider.script(*FAULTS)
        application = Application(arena, provider)
        stack.callback(application.close)
        fleet = stack.enter_context(Fleet(arena.worker_url, folder, env={"AI_WORKER_LEASE_SECONDS": f"{LEASE_SECONDS}"}))
        processes = {process.name: process for process in (fleet.start() for _ in range(workers))}
        web, base = _web(fleet, arena)
        processes[web.name] = web
        visitors = _visitors(stack, arena, base)
        housekeeping = Housekeeping(arena)
        cutter = Cutter(arena, random.Random(seed))  # noqa: S311 -- chance that can be repeated
        sampler = Sampler(
            arena,
            {name: process.pid for name, process in processes.items()},
            lambda: time.monotonic() - began,
            {"items audited so far": lambda: application.audited},
        )
        with ExitStack() as threads:
            beside = [
                threads.enter_context(each)
                for each in (
                    Beside("application", application.turn, 0.1),
                    Beside("visitors", visitors.turn, 0.05),
                    Beside("housekeeping", housekeeping.turn, PRUNE_SECONDS),
                    Beside("cutter", cutter.turn, CUT_SECONDS),
                    Beside("provider", lambda: _reset(provider), RESET_SECONDS),
                )
            ]
            while time.monotonic() - began < seconds:
                time.sleep(step)
                for each in beside:
                    each.check()
                for process in processes.values():
                    assert process.is_running, f"{process.name} has ended:\n{process.background.text()[-3000:]}"
                sampler.take()
                if samples is not None:
                    sampler.save(samples)
            application.is_closing = True

            def is_done() -> bool:
                for each in beside:
                    each.check()
                return application.open_tasks == 0

            wait_until(is_done, 120, "the end of the last tasks", step=0.2)
        housekeeping.turn()
        rows = rows_of(arena)
        codes = fleet.drain()
        faults = [*_wrong_rows(rows, workers, time.monotonic() - began), *fleet.tracebacks()]
        if set(codes) != {0}:
            faults.append(f"exit codes {codes}")
        return Soak(
            server=arena.kind,
            seed=seed,
            seconds=time.monotonic() - began,
            items=application.audited,
            tasks=application.tasks,
            pruned=housekeeping.pruned,
            requests=visitors.requests,
            away=visitors.away,
            cut=cutter.cut,
            rows=rows,
            verdicts=sampler.verdicts(WARM_UP * seconds),
            faults=faults,
        )


def _web(fleet: Fleet, arena: Arena) -> tuple[Process, str]:
    """The web as a process of its own, on a free port, with the rights of `ai_worker_web`; and its address."""
    web = fleet.start("--port", "0", command="web", url=arena.url_of("ai_worker_web"), name="web")
    web.background.wait_for("WEB_START")
    found = re.search(r"http://127\.0\.0\.1:\d+", web.background.text())
    assert found, web.background.text()
    return web, found[0]


def _visitors(stack: ExitStack, arena: Arena, base: str) -> Visitors:
    with contextlib.closing(Database(parse_database_url(arena.admin_url))) as database:
        tokens = Tokens(database)
        token = tokens.add("soak", [Scope.ADMIN])
        principal = tokens.principal(token)
        assert principal is not None
        visitors = Visitors(base, token, (COOKIE, tokens.log_in(principal)), KINDS[0].name)
    stack.callback(visitors.close)
    return visitors


def _reset(provider: Fake) -> None:
    """Lets the fake forget what it has counted. One that is too busy to answer is asked again at its next turn."""
    with contextlib.suppress(OSError):
        provider.post("_reset")
    for _ in range(10):  # its faults went with the rest
        with contextlib.suppress(OSError):
            provider.script(*FAULTS)
            return
    raise AssertionError("the fake provider does not answer")


def _wrong_rows(rows: dict[str, int], workers: int, seconds: float) -> list[str]:
    """Tables that hold more than what there is to hold; by then, all tasks but the newest have been pruned."""
    most = {
        # Only what came over HTTP in the last seconds.
        "task": 300,
        "task_item": 300,
        "task_attempt": 300,
        "worker": workers * 2,  # a second row for one that had lost its lease
        "worker_minute": workers * len(KINDS) * int(seconds / 60 + 2),  # the charts' rows are kept for eight days
        "worker_counter": 150 * workers * 2,
        "ai_model_share": workers * 2 * len(KINDS),
        "result_cache": POOL,
        "web_session": 1,
        "api_token": 1,
        "ai_model_day": 16 * len(KINDS) * 2,  # in sixteen parts; midnight may pass
    }
    # One answer is kept for each request that had an Idempotency-Key, for a day.
    told = {"web_request", "prompt", "schema_migration", "task_status", "task_item_status", "review_status"}
    known = most | {"ai_model": len(KINDS), "ai_model_pace": len(KINDS)}
    return [
        f"{table} has {count} rows, more than {known.get(table, 0)}"
        for table, count in rows.items()
        if table not in told and count > known.get(table, 0)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--server", choices=kinds(), default="mariadb")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("AI_WORKER_TEST_SEED") or secrets.randbelow(2**32)))
    parser.add_argument("--samples", type=Path, help="a file for all samples, as JSON")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201 -- what a command says
    with tempfile.TemporaryDirectory(prefix="ai-worker-soak-") as folder, arena_on(options.server, *SERVER_OPTIONS) as arena:
        seconds = options.minutes * 60
        done = soak(arena, Path(folder), seconds, options.seed, workers=options.workers, samples=options.samples)
    print(done.report(), flush=True)  # noqa: T201 -- what a command says
    return 0 if done.is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
