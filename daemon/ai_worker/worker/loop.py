"""The heart of the worker: claims into free slots, runs calls, commits in groups, and stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from ai_worker import __version__
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.log import ERROR, Event, of_item
from ai_worker.models import NO_USAGE, Filters, Item, Outcome, OutcomeKind, Secret, Task
from ai_worker.retry import attempt_delay
from ai_worker.store.batches import Batches
from ai_worker.store.budgets import is_limited
from ai_worker.store.models import Models
from ai_worker.store.queue import Committed, Queue, Waiting
from ai_worker.worker.backgrounds import Backgrounds
from ai_worker.worker.batches import BatchLane
from ai_worker.worker.breaker import Breaker
from ai_worker.worker.calls import Caller
from ai_worker.worker.commits import Commits
from ai_worker.worker.congestion import Throttle
from ai_worker.worker.courier import Courier
from ai_worker.worker.endpoints import Endpoints
from ai_worker.worker.estimates import Estimates
from ai_worker.worker.learning import Learner
from ai_worker.worker.lease import Lease
from ai_worker.worker.library import Library
from ai_worker.worker.listener import Listener
from ai_worker.worker.pacer import Pacer
from ai_worker.worker.picker import Picker
from ai_worker.worker.shared_picker import SharedPicker
from ai_worker.worker.shares import Shares
from ai_worker.worker.sharing import Sharing
from ai_worker.worker.signals import stop_signals
from ai_worker.worker.slots import Slots
from ai_worker.worker.steps import stepwise
from ai_worker.worker.twins import WAITING_PER_SLOT, Twins
from ai_worker.worker.upkeep import Upkeep, log_ended

T = TypeVar("T")

CLAIM_ROWS: Final = 500
MANY: Final = 2**31  # items: no bound
LINGER_SECONDS: Final = 0.01  # after a slot is free, for more of them: claiming one row at a time costs a transaction each
LOOK_SECONDS: Final = 0.2  # between looks at what others may change
BATCH_LOOK_SECONDS: Final = 2.0  # the same, when only batches are waited for
BUSY_SHARE: Final = 10  # with more than a tenth of its slots in use a worker leaves the listening to others
UPKEEP_SECONDS: Final = 1.0
DEFERRED_HORIZON: Final = 60.0  # `run` waits for items due within this many seconds
POLL_SECONDS: Final = 0.02  # while stopping
STORE_SECONDS: Final = 5.0  # at the least, for the last commit, also when the drain time is over
ABORT_SECONDS: Final = 2.0  # the same, when told to stop at once
STUCK_SECONDS: Final = 300.0  # ... but no longer than this without getting one done: it may be told to slow down for ever
OUTAGE_SECONDS: Final = 60.0  # `run` without a result in hand gives up on an absent database after this long


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How one worker works. Times in seconds.

    `forever` is the daemon's mode; else the worker ends when nothing is left, or after `max_items` items.
    """

    forever: bool
    concurrency: int = 50
    max_items: int | None = None
    lease_seconds: float = 30.0
    drain_seconds: float = 30.0
    request_timeout: float = 120.0
    name: str | None = None
    prompt_folder: Path | None = None


@dataclass(slots=True)
class Summary:
    """What a worker did. `waiting` is what its filters left open at its end, None when it was told to stop."""

    processed: int = 0
    failed: int = 0
    deferred: int = 0
    released: int = 0
    waiting: Waiting | None = None
    stopped_models: dict[str, str] = field(default_factory=dict)  # name -> reason, those that this worker ran into
    unusable_models: dict[str, str] = field(default_factory=dict)  # the same, of those that only this process cannot use


class Worker:
    """One worker process. `run()` once; `drain()` from a signal handler or another task.

    Parameters
    ----------
    queue, models: the verbs it uses.
    decrypt: turns `ai_model.api_key_encrypted` into the key.
    give_up: ends all waiting for an absent database; called when the drain time is over.
    on_progress: called in the loop after each commit with the summary so far.
    open_secret: turns a group's `secret_encrypted` into what its callback is signed with; see `Keyring.decrypt_group`.
    """

    _slots: Slots

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
    ) -> None:
        self._queue = queue
        self._filters = filters
        self._options = options
        self._give_up = give_up
        self._on_progress = on_progress
        self._open: Counter[int] = Counter()  # by task: claimed, and not yet known to be stored
        self._commits = Commits(self._store, self._account, self._refused, self._kept)
        self._claimed = 0
        self._is_claiming = False  # by what room there was: it must not be taken meanwhile
        self._has_ended = False
        self._progress_at = time.monotonic()
        self._has_looked_everywhere = False
        self._draining = asyncio.Event()  # claim nothing more
        self._aborting = asyncio.Event()  # and wait for nothing more
        self._work_seen = asyncio.Event()
        self._lease = Lease(
            queue,
            lease_seconds=options.lease_seconds,
            mode="daemon" if options.forever else "run",
            concurrency=options.concurrency,
            name=options.name,
            load=lambda: (self._slots.in_flight, self._summary.processed, self._summary.failed),
            on_lost=lambda: self._from_thread(self._slots.give_back),
        )
        self._courier = Courier(
            queue.callbacks, lambda verb, *values: self._in_thread(self._upkeep_thread, verb, *values), open_secret, self._lease
        )
        self._upkeep = Upkeep(
            queue, self._lease, options.lease_seconds, self._wake_from_thread, lambda: self._from_thread(self._courier.wake)
        )
        self._listener = Listener(queue.turns(), filters, self._busy_models, polls=not options.forever)
        # One thread for each kind of database work, so that a slow commit never holds up a claim; each has its connection.
        self._claim_thread, self._commit_thread, self._upkeep_thread, self._pace_thread, self._cache_thread = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("claim", "commit", "upkeep", "pace", "cache")
        )
        self._endpoints = Endpoints(
            lambda id_ai_model: self._in_thread(self._upkeep_thread, models.get, id_ai_model),
            decrypt,
            request_timeout=options.request_timeout,
            max_connections=options.concurrency,
        )
        self._breaker = Breaker(
            lambda *stopped: self._in_thread(self._upkeep_thread, models.stop, *stopped),
            lambda id_ai_model: self._in_thread(self._upkeep_thread, models.resume, id_ai_model),
            self._endpoints.name,
            lambda: self._lease.log,
            self._look_again,
        )
        self._library = Library(queue.prompts, options.prompt_folder, lambda work: self._in_thread(self._upkeep_thread, work))
        self._estimates = Estimates(models.all, self._library.kind)
        queue.estimate_with(self._estimates)
        self._summary = Summary(stopped_models=self._breaker.stopped, unusable_models=self._breaker.unusable)
        self._pacer = Pacer(
            lambda *wanted: self._in_thread(self._pace_thread, queue.pace.lease, *wanted),
            lambda task: self._learner.limits(task),  # noqa: PLW0108 -- made later
            lambda id_ai_model: self._learner.held_until(id_ai_model),  # noqa: PLW0108 -- the same
            slots=options.concurrency,
            held=self._held,
            away=self._pause_call,
            on_ready=self._look_now,
        )
        self._twins = Twins(
            lambda questions: self._in_thread(self._cache_thread, queue.cache.ask, self._lease.id_worker, questions),
            lambda questions: self._in_thread(self._cache_thread, queue.cache.abandon, self._lease.id_worker, questions),
            self._away,
            WAITING_PER_SLOT * options.concurrency,
            lambda: self._lease.log,
        )
        self._shares = Shares(
            lambda id_ai_model, *numbers: self._in_thread(
                self._pace_thread, queue.shares.renew, id_ai_model, self._lease.id_worker, *numbers
            ),
            slots=options.concurrency,
            held=self._places,
            on_ready=self._look_now,
        )
        self._learner = Learner(
            lambda verb, *subject, **values: self._in_background(
                self._pace_thread, getattr(queue.pace, verb), *subject, **values
            ),
            self._pacer.hold,
            self._held,
            lambda seconds, action: self._loop.call_later(seconds, action),  # noqa: PLW0108 -- there is no loop yet
        )
        self._throttle = Throttle(options.concurrency, self._held)
        caller = Caller(
            self._endpoints,
            self._library,
            self._draining,
            self._breaker,
            self._pacer,
            self._throttle,
            self._learner,
            self._twins,
            Backgrounds(lambda wanted: self._in_thread(self._cache_thread, queue.backgrounds.draw, wanted)),
            self._away,
            self._pause_call,
            partial(
                stepwise,
                steps=queue.steps,
                take_probe=queue.take_probe,
                id_worker=lambda: self._lease.id_worker,
                in_thread=lambda *verb: self._in_thread(self._commit_thread, *verb),
                endpoints=self._endpoints,
                slots=lambda: self._slots,
                saw=self._pacer.saw,
                stopping=self._draining,
                breaker=self._breaker,
            ),
            lambda: self._lease.log,
        )
        sharing = Sharing(filters.queues, options.concurrency) if len(filters.queues) > 1 else None
        self._slots = Slots(
            options.concurrency,
            caller.outcome,
            self._settle,
            self._defect,
            lambda: self._lease.may_claim,
            self._may_add,
            sharing,
        )
        self._batches = BatchLane(
            Batches(queue),
            filters,
            self._endpoints,
            self._breaker,
            self._lease,
            self._library,
            stopping=self._draining,
            on_stored=self._tell,
            on_refused=self._refused,
            room=lambda: self._left,
            on_claimed=self._fetched,
            on_change=self._look_again,
        )
        self._picker: Picker | SharedPicker = Picker(queue, filters, self._room, self._busy_models, self._batches.takes)
        self._shared: SharedPicker | None = None
        if sharing is not None:
            self._picker = self._shared = SharedPicker(
                queue,
                filters,
                lambda: self._slots.rooms(len(self._commits)),
                sharing.held,
                self._room,
                self._busy_models,
                self._breaker.shunned,
                self._batches.takes,
            )

    async def run(self) -> Summary:
        """Works until nothing is left, or until told to stop. Raises DatabaseAway when the database stayed away."""
        self._loop = asyncio.get_running_loop()
        self._pacer.start()
        with stop_signals(self._on_signal):
            return await self._run()

    async def _run(self) -> Summary:
        await self._in_thread(self._claim_thread, self._library.open)
        await self._in_thread(self._claim_thread, self._lease.start)
        options = self._options
        self._lease.log(
            Event.START,
            host=self._lease.host,
            pid=os.getpid(),
            version=__version__,
            mode="daemon" if options.forever else "run",
            concurrency=options.concurrency,
        )
        for broken in self._library.broken.values():
            self._lease.log(Event.PROMPT_BROKEN, message=broken)
        helpers = [
            asyncio.create_task(each) for each in (self._tick(), self._keep_up(), self._shares.keep(), self._courier.run())
        ]
        claiming = asyncio.create_task(self._claim_loop())
        committing = asyncio.create_task(self._commits.run())
        batching = asyncio.create_task(self._batches.run())
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait([claiming, committing, draining], return_when=asyncio.FIRST_COMPLETED)
            if not options.forever and claiming.done() and not claiming.exception() and not self._draining.is_set():
                await self._courier.last_round(self._upkeep.keep_time)
            await self._finish(claiming, committing)
            if not self._aborting.is_set():
                await self._courier.settle()
        finally:
            if not self._has_ended:
                self._lease.abandon()
                self._give_up()  # threads that still wait for an absent database must not hold up the exit
            tasks = [*helpers, claiming, committing, batching, draining]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._twins.aclose()
            await self._batches.aclose()
            await self._endpoints.aclose()
            await self._listener.aclose()
            threads = (self._claim_thread, self._commit_thread, self._upkeep_thread, self._pace_thread, self._cache_thread)
            for executor in threads:
                executor.shutdown(wait=False, cancel_futures=True)
        return self._summary

    def drain(self) -> None:
        """Claim nothing more, finish what can be finished in the drain time, give back the rest. Call it in the loop."""
        if not self._draining.is_set():
            self._lease.log(Event.DRAIN, in_flight=self._slots.in_flight, drain_seconds=self._options.drain_seconds)
            self._draining.set()
            self._listener.leave()
            self._pacer.stop()
            self._slots.give_back()
            self._slots.wake()
            self._twins.drain()
            self._batches.wake()
            self._work_seen.set()

    def abort(self) -> None:
        """Stop at once: calls in flight are broken off and their items given back."""
        self.drain()
        self._aborting.set()

    # ----- claiming

    async def _claim_loop(self) -> None:
        new_item: int | None = None
        away_since: float | None = None
        while not self._draining.is_set():
            size = await self._wait_for_slots()
            if size is None:
                return
            if not self._lease.may_claim:
                self._listener.leave()
                await self._pause(self._options.lease_seconds / 20)
                continue
            self._work_seen.clear()  # what is seen from here on may be missed by this look, and leads to another
            self._is_claiming = True
            try:
                items = await self._in_thread(self._claim_thread, self._picker.take, self._lease.id_worker, size, new_item)
            except DatabaseAway:
                away_since = away_since or time.monotonic()
                if self._may_wait_no_longer(away_since):
                    raise
                continue
            finally:
                self._is_claiming = False
            away_since = None
            new_item = None
            self._batches.offer(self._picker.taken_for_batches())
            if (seconds := self._queue.limits.new_wait()) is not None:
                self._loop.call_later(seconds, self._look_now)
            if items:
                self._begin(items)
                self._listener.found()
                if self._slots.in_flight > self._options.concurrency // BUSY_SHARE:
                    self._listener.leave()
            elif self._shared is not None and self._shared.has_waiting:
                continue  # not all queues were looked at
            elif not self._options.forever and await self._is_done():
                return
            else:
                self._slots.offer()
                new_item = await self._listener.wait(self._work_seen)

    async def _wait_for_slots(self) -> int | None:
        """How many items may be claimed now; None when no more ever. Waits for a slot, and a moment longer for a few."""
        options = self._options
        while not self._draining.is_set():
            left = self._left
            free = self._slots.free(len(self._commits))
            if left <= 0:
                has_batches = not self._is_holding and await self._batches.has_own()
                if not self._is_holding and not has_batches:
                    return None
                self._listener.leave()
                await self._pause(BATCH_LOOK_SECONDS if has_batches else LOOK_SECONDS)  # what is given back may be claimed again
            elif free <= 0 and self._shared is not None:
                if await self._shared.overtakes(self._slots.changed):
                    return min(CLAIM_ROWS, left)
            elif free <= 0:
                await self._slots.changed()
            else:
                if free < min(options.concurrency // 10, left):
                    await asyncio.sleep(LINGER_SECONDS)
                    free = self._slots.free(len(self._commits))
                if free > 0:  # fewer may be ahead by now
                    return min(free, CLAIM_ROWS, left)
        return None

    @property
    def _left(self) -> int:
        """How many more items may be claimed, at once or at all."""
        return MANY if self._options.max_items is None else self._options.max_items - self._claimed

    @property
    def _is_holding(self) -> bool:
        """Whether any item is in flight, its outcome not yet stored, or the model that it proved well not yet resumed."""
        return bool(self._slots or self._commits or self._breaker.is_resuming)

    def _busy_models(self) -> list[int]:
        return self._blocked_models() + self._pacer.busy_models() + self._shares.full_models()

    def _blocked_models(self) -> list[int]:
        """Those that may take no more for a while; others only wait for their sending time."""
        return self._slots.full_models() + self._throttle.full_models() + self._breaker.shunned()

    def _room(self, task: Task) -> int:
        return min(self._slots.room(task), self._throttle.room(task.id_ai_model), self._shares.room(task), self._pacer.room(task))

    def _may_add(self, task: Task) -> bool:
        """Whether an item of the task may have one more call; the pace is kept by the call itself."""
        room = (self._slots.room(task), self._throttle.room(task.id_ai_model), self._shares.room(task))
        return not self._is_claiming and min(room) > 0

    def _begin(self, items: list[Item]) -> None:
        counts = Counter(item.task.id_task for item in items)
        self._open.update(counts)
        self._fetched(counts)
        self._pacer.saw({item.task.id_task: item.task for item in items}.values())
        self._slots.fill(items)
        if self._draining.is_set():
            self._slots.give_back()

    def _fetched(self, counts: Mapping[int, int]) -> None:
        """So many items were claimed, by task; into a slot or into a batch."""
        self._claimed += sum(counts.values())
        self._lease.log.each(Event.FETCH, [{"task": id_task, "count": count} for id_task, count in counts.items()])

    def _defect(self, item: Item, error: BaseException) -> Outcome:
        """Charged and put off, because an item given back at once would meet it again at once, for ever."""
        message = f"{type(error).__name__}: {error}"
        self._lease.log(Event.LIBRARY, level=ERROR, exc_info=error, logger="worker", message=message)
        return Outcome.retry(item, "internal", message, attempt_delay(item.tries), NO_USAGE, None, 0)

    def _settle(self, item: Item, outcome: Outcome) -> None:
        if is_limited(item.task):
            self._estimates.learn(outcome)
        self._commits.put(self._twins.keyed(outcome))
        if self._slots.has_limit(item.task.id_ai_model) or self._throttle.caps(item.task.id_ai_model):
            self._wake()  # the claim may be waiting for just this model

    async def _is_done(self) -> bool:
        """Whether a `run` may end: nothing in flight or in hand, nothing claimable, soon due, or held by a silent worker."""
        if self._is_holding:
            return False
        began = time.monotonic()
        while not self._draining.is_set():
            waiting, others = await self._in_thread(self._claim_thread, self._look_around)
            if waiting.pending > waiting.blocked:
                return False
            due = waiting.due_seconds
            # A worker that has beaten since we ran out of work is alive and will finish its own; a silent one may be dead.
            is_anybody_silent = any(silent > time.monotonic() - began for silent in others)
            is_stuck = time.monotonic() - self._progress_at > STUCK_SECONDS
            if not is_anybody_silent and (due is None or due > DEFERRED_HORIZON or is_stuck):
                if not (await self._batches.open()).batches:
                    self._summary.waiting = waiting
                    return True
                await self._pause(BATCH_LOOK_SECONDS)
            else:
                await self._pause(min(LOOK_SECONDS, max(due or LOOK_SECONDS, 0.005)))
        return True

    def _look_around(self) -> tuple[Waiting, list[float]]:
        self._queue.promote_due()
        if not self._has_looked_everywhere:
            self._upkeep.reopen_all()
            self._upkeep.keep_time()  # a schedule that is due makes work
            self._has_looked_everywhere = True
        # In this order: what another worker gives back between the two looks is seen by the second.
        others = self._queue.others_at_work(self._lease.id_worker, self._filters)
        return self._queue.waiting(self._filters, self._blocked_models()), others

    # ----- committing

    async def _store(self, group: Sequence[Outcome]) -> Committed:
        counts = Counter([outcome.item.task.id_task for outcome in group])
        held = [id_task for id_task, count in counts.items() if self._open[id_task] > count]
        return await self._in_thread(self._commit_thread, self._queue.commit, self._lease.id_worker, group, held)

    def _refused(self, outcome: Outcome, message: str) -> None:
        name = self._endpoints.name(outcome.item.task.id_ai_model)
        self._lease.log(
            Event.ERROR,
            **of_item(outcome.item, name),
            kind="unstorable",
            message=message,
            outcome=OutcomeKind.FAILED.value,
            tokens_input=outcome.usage.tokens_input,
            tokens_output=outcome.usage.tokens_output,
        )

    def _kept(self, error: DatabaseError) -> None:
        self._lease.log(
            Event.DATABASE_AWAY, reason=f"{len(self._commits)} results in hand are kept: {error}", commit_in_doubt=False
        )

    def _account(self, committed: Committed) -> None:
        for id_task, count in Counter([outcome.item.task.id_task for outcome in chain(committed.stored, committed.lost)]).items():
            self._open[id_task] -= count
            if not self._open[id_task]:
                del self._open[id_task]
        self._tell(committed)

    def _tell(self, committed: Committed) -> None:
        """Counts and logs what was stored, of a slot's or of a batch's items."""
        summary, log = self._summary, self._lease.log
        released = 0
        done: list[dict[str, Any]] = []
        for outcome in committed.stored:
            if outcome.kind is OutcomeKind.PROCESSED:
                done.append(self._fields(outcome))
                if outcome.item.task.is_probe and outcome.is_answer:
                    self._breaker.answered(outcome.item)
            elif outcome.kind is OutcomeKind.FAILED:
                summary.failed += 1
                self._progress_at = time.monotonic()
            elif outcome.kind is OutcomeKind.RELEASED:
                released += 1
                self._claimed -= 1  # it was not done, so it does not count for --max-item
            else:
                summary.deferred += 1
        if done:
            summary.processed += len(done)
            self._progress_at = time.monotonic()
            log.each(Event.DONE, done)
        for outcome in committed.lost:
            log(Event.CLAIM_LOST, **self._fields(outcome))
        if released:
            summary.released += released
            log(Event.RELEASE, count=released)
        log_ended(log, committed.ended)
        self._twins.settled(committed)
        if self._queue.limits.has_freed():
            self._look_now()
        self._on_progress(summary)
        self._slots.wake()
        if not self._options.forever and not self._is_holding:
            self._wake()  # it may be done

    def _fields(self, outcome: Outcome) -> dict[str, Any]:
        item, usage = outcome.item, outcome.usage
        fields = of_item(item, self._endpoints.name(item.task.id_ai_model))
        fields["tokens_input"], fields["tokens_output"] = usage.tokens_input, usage.tokens_output
        fields["cost"] = None if outcome.cost is None else format(outcome.cost, "f")
        fields["latency_ms"] = outcome.latency_ms
        return fields

    # ----- upkeep

    async def _tick(self) -> None:
        while True:
            self._lease.tick()
            self._slots.tidy()
            await asyncio.sleep(self._options.lease_seconds / 10)

    async def _keep_up(self) -> None:
        while True:
            await self._listener.on_duty()
            self._batches.tend()
            try:
                await self._in_thread(self._upkeep_thread, self._upkeep.step)
            except DatabaseAway:
                pass  # said by whoever lost the connection
            except Exception as error:  # noqa: BLE001 -- a fleet that nobody tidies up after loses items: log it and go on
                self._lease.log(Event.LIBRARY, level=ERROR, exc_info=error, logger="upkeep", message=str(error))
            await asyncio.sleep(UPKEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter

    # ----- stopping

    def _on_signal(self) -> None:
        """From a signal handler, made safe for the loop: the first asks to drain, the second to stop at once."""
        if self._draining.is_set():
            self.abort()
        else:
            self.drain()

    async def _finish(self, claiming: asyncio.Task[None], committing: asyncio.Task[None]) -> None:
        """Everything after the last claim: wait, break off, give back, store, and end the worker's row."""
        failure = next((task.exception() for task in (claiming, committing) if task.done() and task.exception()), None)
        if failure is not None:
            self.drain()
        deadline = time.monotonic() + self._options.drain_seconds
        await self._until(
            lambda: (not self._slots and claiming.done() and not self._batches.is_driving) or self._aborting.is_set(),
            deadline - time.monotonic(),
        )
        self._draining.set()
        storing_since = time.monotonic()
        while self._slots:
            self._slots.give_back()
            self._slots.cancel()
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() - storing_since > STORE_SECONDS:  # they wait for transactions that store steps
                self._give_up()
        patience = ABORT_SECONDS if self._aborting.is_set() else max(STORE_SECONDS, deadline - time.monotonic())
        await self._until(lambda: not self._is_holding or committing.done(), patience)
        if unstored := len(self._commits):
            raise failure or DatabaseAway(
                f"the database stayed away while {unstored} results were in hand; their items are free again after the lease"
            )
        with contextlib.suppress(TimeoutError, DatabaseError):  # the row is tidied up by others when its lease is over
            await asyncio.wait_for(asyncio.to_thread(self._lease.stop), timeout=STORE_SECONDS)
            self._has_ended = True
        done = self._summary
        self._lease.log(Event.STOP, processed=done.processed, failed=done.failed, deferred=done.deferred, released=done.released)
        if failure is not None:
            raise failure

    @staticmethod
    async def _until(condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 -- many things may change, and only while stopping
            await asyncio.sleep(POLL_SECONDS)

    # ----- small helpers

    async def _in_thread(self, executor: ThreadPoolExecutor, verb: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(executor, verb, *arguments)

    def _in_background(self, executor: ThreadPoolExecutor, verb: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Does what nobody waits for; without a database it is not worth doing later."""

        def work() -> None:
            with contextlib.suppress(DatabaseError):
                verb(*arguments, **named)

        with contextlib.suppress(RuntimeError):  # the worker has just ended
            executor.submit(work)

    async def _pause(self, seconds: float) -> None:
        """Waits for work to appear, a drain, or the time to pass."""
        self._work_seen.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work_seen.wait(), seconds)

    def _look_again(self) -> None:
        """At the tasks, from the start: which models may be used has changed."""
        self._picker.forget()
        self._slots.give_back(self._breaker.shunned())
        self._wake()

    def _look_now(self) -> None:
        """At all tasks: there are items that could not be claimed before."""
        self._picker.forget()
        self._slots.offer()
        self._wake()

    def _held(self, id_ai_model: int) -> int:
        return self._slots.held(id_ai_model)

    def _places(self, id_ai_model: int) -> int:
        return self._slots.places(id_ai_model)

    def _away(self, *, soon: bool = False) -> AbstractAsyncContextManager[Callable[[], None]]:
        return self._slots.away(soon=soon)  # the slots are made after those who make their calls

    def _pause_call(self) -> AbstractAsyncContextManager[object]:
        return self._slots.away(keeps_place=True)

    def _wake(self) -> None:
        self._work_seen.set()

    def _wake_from_thread(self) -> None:
        self._from_thread(self._work_seen.set)

    def _from_thread(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has just closed
            self._loop.call_soon_threadsafe(action)

    def _may_wait_no_longer(self, away_since: float) -> bool:
        return not self._options.forever and not self._is_holding and time.monotonic() - away_since > OUTAGE_SECONDS
