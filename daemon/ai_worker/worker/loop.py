"""A worker's life: it starts, works until nothing is left or it is told to stop, and stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Final

from ai_worker import __version__
from ai_worker.counts import Metric
from ai_worker.errors import ConfigurationError, DatabaseAway, DatabaseError
from ai_worker.log import ERROR, Event
from ai_worker.models import Filters, Secret
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.worker import metrics
from ai_worker.worker.accounts import Summary
from ai_worker.worker.assembly import Assembly
from ai_worker.worker.options import Reloaded, WorkerOptions
from ai_worker.worker.signals import OneAtATime, reload_signal, stop_signals
from ai_worker.worker.tracing import OFF, Tracing
from ai_worker.worker.vigil import Vigil

UPKEEP_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.02  # while stopping
STORE_SECONDS: Final = 5.0  # at the least, for the last commit, also when the drain time is over
ABORT_SECONDS: Final = 2.0  # the same, when told to stop at once


class Worker:
    """One worker process. `run()` once; `drain()` from a signal handler or another task.

    Parameters
    ----------
    queue, models: the verbs it uses.
    decrypt: turns `ai_model.api_key_encrypted` into the key.
    give_up: ends all waiting for an absent database; called when the drain time is over.
    on_progress: called in the loop after each commit with the summary so far.
    open_secret: turns a group's `secret_encrypted` into what its callback is signed with; see `Keyring.decrypt_group`.
    reload: reads the settings anew, at SIGHUP, and puts into force what is not the worker's own. Called in a thread. Raises
        ConfigurationError when they are wrong: then all stays as it is. Without it SIGHUP keeps its meaning.
    tracing: told of attempts, calls, claims and commits; see `tracing.begin`.
    """

    def __init__(
        self,
        queue: Queue,
        models: Models,
        decrypt: Callable[[int, bytes], Secret],
        *,
        filters: Filters,
        options: WorkerOptions,
        give_up: Callable[[], None] = lambda: None,
        on_progress: Callable[[Summary], None] = lambda _: None,
        open_secret: Callable[[int, bytes, str], Secret] | None = None,
        reload: Callable[[], Reloaded] | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self._parts = Assembly(queue, models, decrypt, filters, options, on_progress, open_secret, tracing)
        self._options = options
        self._give_up = give_up
        self._reload = reload
        self._reloading = OneAtATime(self._read_anew)
        self._log = self._parts.lease.log
        self._draining = self._parts.draining
        self._drain_until = math.inf
        self._lag = 0.0  # seconds, of the loop at its latest tick
        self._aborting = asyncio.Event()  # wait for nothing more
        parts = self._parts
        watched = parts.lease, parts.slots, parts.accounts, parts.claiming, parts.under_way, parts.draining
        self._vigil = Vigil(*watched, drain_until=lambda: self._drain_until, longest=queue.db.longest)
        self._has_ended = False

    async def run(self) -> Summary:
        """Works until nothing is left, or until told to stop. Raises DatabaseAway when the database stayed away."""
        self._parts.threads.start()
        self._parts.pacer.start()
        with (
            stop_signals(self._on_signal),
            reload_signal(self._on_reload) if self._reload else contextlib.nullcontext(),
            self._metrics(),
        ):
            # A `run` is nobody's service, though it may have been started by one, and have its environment.
            watched = asyncio.create_task(self._vigil.run()) if self._options.forever else None
            try:
                await self._start()
                await self._work()
            finally:
                if watched is not None:
                    watched.cancel()
        return self._parts.accounts.summary

    def _metrics(self) -> AbstractContextManager[None]:
        parts, options = self._parts, self._options
        name, held = parts.endpoints.name, parts.slots.held
        return metrics.serving(options.metrics_port, options.metrics_host, parts.counts, name, self._gauges, held, self._log)

    def _gauges(self) -> dict[Metric, float]:
        """What this process alone knows of itself. Called from any thread."""
        connections = self._parts.reporter.connections
        return {Metric.LOOP_LAG: self._lag, Metric.CONCURRENCY: self._options.concurrency, Metric.CONNECTIONS: connections}

    async def _start(self) -> None:
        parts, options = self._parts, self._options
        await parts.threads.claim(parts.library.open)
        on_lost = parts.threads.in_loop(self._on_lost)
        # In a thread of its own: what cannot be written now must not hold up the heartbeat.
        on_beat = partial(parts.threads.counts.aside, parts.reporter.report)
        await parts.threads.claim(parts.lease.start, parts.accounts.load, on_lost, on_beat)
        self._log(
            Event.START,
            host=parts.lease.host,
            pid=os.getpid(),
            version=__version__,
            mode=options.mode,
            concurrency=options.concurrency,
        )
        for broken in parts.library.broken.values():
            self._log(Event.PROMPT_BROKEN, message=broken)

    async def _work(self) -> None:
        parts = self._parts
        beside = (
            self._tick(),
            self._keep_up(),
            parts.shares.keep(),
            parts.courier.run(),
            parts.batches.run(),
            parts.strays.keep(),
        )
        tasks = [asyncio.create_task(each) for each in beside]
        claiming = asyncio.create_task(parts.claiming.run())
        committing = asyncio.create_task(parts.accounts.run())
        draining = asyncio.create_task(self._draining.wait())
        tasks.append(asyncio.create_task(parts.breakdown.came()))
        try:
            await asyncio.wait([claiming, committing, draining, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if not self._options.forever and claiming.done() and not claiming.exception() and not self._draining.is_set():
                await parts.courier.last_round(parts.upkeep.keep_time)
            await self._finish(claiming, committing, tasks)
            if not self._aborting.is_set():
                await parts.courier.settle()
        finally:
            if not self._has_ended:
                parts.lease.abandon()
                self._give_up()  # threads that still wait for an absent database must not hold up the exit
            tasks += [claiming, committing]
            for task in (*tasks, draining):
                task.cancel()
            await asyncio.gather(*tasks, draining, return_exceptions=True)
            await parts.twins.aclose()
            await parts.batches.aclose()
            await parts.endpoints.aclose()
            await parts.listener.aclose()
            parts.threads.close()

    def _on_lost(self) -> None:
        self._parts.counts.add(Metric.LEASES_LOST)
        self._parts.slots.give_back()

    # ----- what goes on all the time

    async def _tick(self) -> None:
        while True:
            self._parts.lease.tick()
            if dead := [*self._parts.threads.dead(), *(["heartbeat"] if self._parts.lease.is_dead else [])]:
                self._parts.breakdown(f"threads of it have died: {', '.join(dead)}")
            self._parts.slots.tidy()
            self._log.tell_left_out()
            woken_at = time.monotonic() + self._options.lease_seconds / 10
            await asyncio.sleep(self._options.lease_seconds / 10)
            self._lag = max(0.0, time.monotonic() - woken_at)

    async def _keep_up(self) -> None:
        parts = self._parts
        while True:
            await parts.listener.on_duty()
            parts.batches.tend()
            try:
                await parts.threads.upkeep(parts.upkeep.step)
            except DatabaseAway:
                pass  # said by whoever lost the connection
            except Exception as error:  # noqa: BLE001 -- a fleet that nobody tidies up after loses items: log it and go on
                self._log(Event.LIBRARY, level=ERROR, exc_info=error, logger="upkeep", message=str(error))
            await asyncio.sleep(UPKEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    # ----- stopping

    def drain(self) -> None:
        """Claim nothing more, finish what can be finished in the drain time, give back the rest. Call it in the loop."""
        if not self._draining.is_set():
            parts = self._parts
            self._log(Event.DRAIN, in_flight=parts.slots.in_flight, drain_seconds=self._options.drain_seconds)
            self._drain_until = time.monotonic() + self._options.drain_seconds
            self._draining.set()
            parts.lease.say_draining(parts.threads.pace.aside)
            parts.listener.leave()
            parts.pacer.stop()
            parts.slots.give_back()
            parts.slots.wake()
            parts.twins.drain()
            parts.batches.wake()
            parts.work_seen.set()

    def abort(self) -> None:
        """Stop at once: calls in flight are broken off and their items given back."""
        self.drain()
        self._aborting.set()

    def _on_signal(self) -> None:
        """From a signal handler, made safe for the loop: the first asks to drain, the second to stop at once."""
        if self._draining.is_set():
            self.abort()
        else:
            self.drain()

    # ----- other settings

    def _on_reload(self) -> None:
        """From a signal handler, made safe for the loop."""
        if not self._draining.is_set():
            self._reloading.ask()

    async def _read_anew(self) -> None:
        if self._reload is None:
            return
        self._vigil.reloading()
        try:
            new = await asyncio.to_thread(self._reload)
        except ConfigurationError as error:
            self._log(Event.RELOAD_REFUSED, message=str(error))
        else:
            self._options = replace(self._options, drain_seconds=new.drain_seconds, concurrency=new.concurrency)
            self._parts.slots.resize(new.concurrency)
            self._log(Event.RELOADED, changed=new.changed, at_restart=new.at_restart)
        finally:
            self._vigil.reloaded()

    async def _finish(
        self, claiming: asyncio.Task[None], committing: asyncio.Task[None], beside: Sequence[asyncio.Task[None]]
    ) -> None:
        """Everything after the last claim: wait, break off, give back, store, and end the worker's row."""
        parts, slots = self._parts, self._parts.slots
        ended = [task for task in (claiming, committing, *beside) if task.done()]
        failure = next((task.exception() for task in ended if task.exception()), None)
        if failure is not None:
            self.drain()
        if parts.threads.claim.is_dead:
            claiming.cancel()  # it waits for that for ever
        if parts.threads.commit.is_dead:  # what is in hand cannot be stored here: the sooner it ends, the sooner others may begin
            self.abort()
            committing.cancel()
        deadline = min(self._drain_until, time.monotonic() + self._options.drain_seconds)
        await self._until(
            lambda: (not slots and claiming.done() and not parts.batches.is_driving) or self._aborting.is_set(),
            deadline - time.monotonic(),
        )
        self._draining.set()
        storing_since = time.monotonic()
        while slots:
            slots.give_back()
            slots.cancel()
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() - storing_since > STORE_SECONDS:  # they wait for transactions that store steps
                self._give_up()
        patience = ABORT_SECONDS if self._aborting.is_set() else max(STORE_SECONDS, deadline - time.monotonic())
        await self._until(lambda: not parts.accounts.is_holding or committing.done(), patience)
        if unstored := parts.accounts.in_hand:
            raise failure or DatabaseAway(
                f"the database stayed away while {unstored} results were in hand; their items are free again after the lease"
            )
        with contextlib.suppress(TimeoutError, DatabaseError):  # the row is tidied up by others when its lease is over
            await asyncio.wait_for(asyncio.to_thread(parts.lease.stop), timeout=STORE_SECONDS)
            self._has_ended = True
        if self._has_ended:
            await self._report_at_last()
        done = parts.accounts.summary
        self._log.tell_left_out(every=0)
        self._log(Event.STOP, processed=done.processed, failed=done.failed, deferred=done.deferred, released=done.released)
        if failure is not None:
            raise failure

    async def _report_at_last(self) -> None:
        try:
            await asyncio.wait_for(asyncio.to_thread(self._parts.reporter.close), timeout=STORE_SECONDS)
        except TimeoutError:
            self._give_up()  # or its thread would hold up the exit until the database is back
        except DatabaseError:
            pass  # nothing depends on it

    @staticmethod
    async def _until(condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 -- many things may change, and only while stopping
            await asyncio.sleep(POLL_SECONDS)
