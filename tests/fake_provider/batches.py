"""Batches, whoever's they are: how they run, what can go wrong with them, and which rows are paid."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fake_provider.answering import Answering, Reply, failed
from tests.fake_provider.faults import FAILURES, Rule
from tests.fake_provider.wire import GEMINI, Ask, Tokens, Wire

NOTHING = Tokens(0, 0)
ENDED = ("completed", "failed", "expired", "cancelled")
STEPS = 20  # in how many portions a batch's rows are done
TICK = 0.005  # seconds between looks at what was asked for from outside


@dataclass(frozen=True)
class BatchSettings:
    """How batches run.

    seconds: from the creation to the end: a tenth each for validating and finalizing, the rest for the rows.
    hold: they stop before the row number `hold_after` (0: before any row; more than there are: before finalizing) until they are
        released.
    expire_after: they expire when so many rows are done; None: never. `expire_times` batches do, None for all.
    idempotency: whether OpenAI's server gives the same batch again to the same Idempotency-Key.
    gemini_metadata: whether Gemini gives each row's metadata back, as its reference says; servers were seen that do not.
    gemini_keeps: whether an expired batch of Gemini's has the results of the rows done. Its guide says there are none.
    """

    seconds: float = 0.5
    hold: bool = False
    hold_after: int = 0
    expire_after: int | None = None
    expire_times: int | None = 1
    idempotency: bool = True
    gemini_metadata: bool = True
    gemini_keeps: bool = False


@dataclass
class Row:
    """A request of a batch. `ask` is None where it is malformed; `reply` None until it is done, and where it never was."""

    key: str | None
    ask: Ask | None
    metadata: dict[str, Any] | None = None
    reply: Reply | None = None

    @property
    def good(self) -> bool:
        return self.reply is not None and self.reply.status < 400


@dataclass
class Batch:
    """`status` is in OpenAI's words; `at` holds the moment (seconds since 1970) that each status began."""

    id: str
    wire: Wire
    rows: list[Row]
    about: dict[str, Any]  # what the vendor's API says of it beside its state
    problems: list[dict[str, Any]] = field(default_factory=list)  # why it fails in validation
    status: str = "validating"
    at: dict[str, float] = field(default_factory=dict)
    released: bool = False
    cancelling: bool = False
    good: int = 0  # rows answered
    bad: int = 0  # rows answered with an error
    tokens: Tokens = NOTHING  # what its rows are billed

    def enter(self, status: str) -> None:
        self.status = status
        self.at[status] = time.time()

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Batches:
    """All batches of a server, and their work. Runs in the server's loop; settings and `release` may come from any thread.

    strike: finds the rule that strikes a row. notify: is called whenever a batch has begun something new.
    """

    def __init__(
        self,
        settings: BatchSettings,
        answering: Answering,
        strike: Callable[[Ask], Rule | None],
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.all: dict[str, Batch] = {}
        self.created: list[Batch] = []  # also those deleted since
        self.rows_per_text: Counter[str] = Counter()
        self.rows_done = 0
        self._answering = answering
        self._strike = strike
        self._notify = notify
        self._number = 0
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def new_id(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number:08d}"

    def add(self, batch: Batch) -> None:
        """Takes the batch on: from here on it runs, and is paid."""
        self.all[batch.id] = batch
        self.created.append(batch)
        self._enter(batch, "validating")
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def newest_first(self, wire_is_gemini: bool) -> list[Batch]:
        return [batch for batch in reversed(self.all.values()) if (batch.wire is GEMINI) is wire_is_gemini]

    def release(self) -> int:
        """Lets all batches that are held go on; how many there are."""
        waiting = [batch for batch in self.created if not batch.ended and not batch.released]
        for batch in waiting:
            batch.released = True
        return len(waiting)

    def close(self) -> None:
        """Nothing more is done for any of them."""
        self._closed = True

    def counts(self) -> dict[str, Any]:
        """`batches`: each in order of creation, with what its maker said of it; `batch_rows`: how often each text was done, and
        so billed; the sums."""
        told = [
            {
                "id": batch.id,
                "vendor": "gemini" if batch.wire is GEMINI else "openai",
                "status": batch.status,
                "rows": len(batch.rows),
                "good": batch.good,
                "bad": batch.bad,
                **batch.about,
            }
            for batch in self.created
        ]
        tokens = [batch.tokens for batch in self.created]
        return {
            "batches": told,
            "batch_rows": dict(self.rows_per_text),
            "batch_rows_done": self.rows_done,
            "batch_tokens": {"input": sum(one.input for one in tokens), "output": sum(one.output for one in tokens)},
        }

    def _enter(self, batch: Batch, status: str) -> None:
        batch.enter(status)
        self._notify()

    # -- running -----------------------------------------------------------------------------------------------------

    async def _run(self, batch: Batch) -> None:
        seconds = self.settings.seconds
        await asyncio.sleep(seconds * 0.1)
        if batch.problems:
            self._enter(batch, "failed")
            return
        if not batch.cancelling:
            self._enter(batch, "in_progress")
        how = await self._work(batch, seconds * 0.8)
        if self._closed:
            return
        if how == "completed":
            self._enter(batch, "finalizing")
            await asyncio.sleep(seconds * 0.1)
        elif how == "expired" and batch.wire is GEMINI and not self.settings.gemini_keeps:
            self._forget(batch)
        self._enter(batch, how)

    async def _work(self, batch: Batch, seconds: float) -> str:
        """Does the rows; the status that the batch ends with."""
        portion, expires, held = max(1, len(batch.rows) // STEPS), None, False
        for number, row in enumerate(batch.rows):
            if self.settings.hold and number >= self.settings.hold_after and not held:
                held = await self._held(batch)
            if number == 0:
                expires = self._expiry()
            if self._closed or batch.cancelling:
                return "cancelled"
            if expires is not None and number >= expires:
                return "expired"
            self._do(batch, row)
            if number % portion == portion - 1:
                await asyncio.sleep(seconds / STEPS)
        if self.settings.hold and not held:
            await self._held(batch)
        return "cancelled" if batch.cancelling else "completed"

    async def _held(self, batch: Batch) -> bool:
        self._notify()
        while self.settings.hold and not (batch.released or batch.cancelling or self._closed):  # noqa: ASYNC110 -- set by threads
            await asyncio.sleep(TICK)
        return True

    def _expiry(self) -> int | None:
        """After how many rows the batch that begins now expires; the setting is used up by it."""
        settings = self.settings
        if settings.expire_after is None or settings.expire_times == 0:
            return None
        if settings.expire_times is not None:
            self.settings = replace(settings, expire_times=settings.expire_times - 1)
        return settings.expire_after

    def _do(self, batch: Batch, row: Row) -> None:
        if row.ask is None:
            row.reply = failed(batch.wire, FAILURES["400"])
            batch.bad += 1
            return
        self.rows_done += 1
        reply = self._answering.reply(batch.wire, row.ask, self._strike(row.ask), self.rows_done)
        if reply.ends != "whole" or reply.content_type != "application/json":
            reply = failed(batch.wire, FAILURES["500"])  # what breaks a connection is an error of the vendor's in here
        row.reply = reply
        batch.good += row.good
        batch.bad += not row.good
        if reply.tokens is not None:
            batch.tokens = batch.tokens.plus(reply.tokens)
            self.rows_per_text.update(row.ask.texts)

    def _forget(self, batch: Batch) -> None:
        """The rows done are lost, and not billed."""
        for row in batch.rows:
            if row.reply is not None and row.reply.tokens is not None and row.ask is not None:
                self.rows_per_text.subtract(row.ask.texts)
            row.reply = None
        self.rows_per_text = +self.rows_per_text
        batch.good, batch.bad, batch.tokens = 0, 0, NOTHING
