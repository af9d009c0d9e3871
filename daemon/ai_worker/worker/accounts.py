"""What a worker has taken on, what became of it, and what is told of that."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from ai_worker.counts import Counts
from ai_worker.errors import DatabaseError
from ai_worker.log import ERROR, Event, of_item
from ai_worker.models import NO_USAGE, Item, Outcome, OutcomeKind
from ai_worker.retry import attempt_delay
from ai_worker.store.budgets import is_limited
from ai_worker.store.committing import Committed
from ai_worker.store.queue import Waiting
from ai_worker.worker.breakdown import NO_MEMORY, Breakdown
from ai_worker.worker.breaker import Breaker
from ai_worker.worker.commits import Commits
from ai_worker.worker.congestion import Throttle
from ai_worker.worker.endpoints import Endpoints
from ai_worker.worker.estimates import Estimates
from ai_worker.worker.lease import Lease
from ai_worker.worker.options import WorkerOptions
from ai_worker.worker.slots import Slots
from ai_worker.worker.twins import Twins
from ai_worker.worker.upkeep import log_ended

MANY: Final = 2**31  # items: no bound


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


class Accounts:
    """Every claimed item comes in here once, and goes out once its outcome is stored. Used in the loop.

    Parameters
    ----------
    store: writes a group of outcomes in one transaction, see `store.queue.Queue.commit`; of the named tasks, more are in hand.
    has_freed: whether a commit has made room below a limit of the queues, see `store.limits.Limits.has_freed`.
    work_seen: to be set when the claim may find something, or find that it is done.
    on_room: told when items may be claimed that could not be before.
    on_progress: told after each transaction, with the summary so far.
    """

    def __init__(
        self,
        store: Callable[[Sequence[Outcome], Sequence[int]], Awaitable[Committed]],
        has_freed: Callable[[], bool],
        options: WorkerOptions,
        lease: Lease,
        slots: Slots,
        endpoints: Endpoints,
        breaker: Breaker,
        throttle: Throttle,
        twins: Twins,
        estimates: Estimates,
        counts: Counts,
        breakdown: Breakdown,
        *,
        work_seen: asyncio.Event,
        on_room: Callable[[], None],
        on_progress: Callable[[Summary], None],
    ) -> None:
        self._store = store
        self._has_freed = has_freed
        self._options = options
        self._log = lease.log
        self._slots = slots
        self._endpoints = endpoints
        self._breaker = breaker
        self._throttle = throttle
        self._twins = twins
        self._estimates = estimates
        self._counts = counts
        self._breakdown = breakdown
        self._work_seen = work_seen
        self._on_room = on_room
        self._on_progress = on_progress
        self._commits = Commits(self._store_group, self._stored, self.refused, self._kept)
        self._claimed = 0
        self._open: Counter[int] = Counter()  # by task: in slots or in hand, and not yet known to be stored
        self.summary = Summary(stopped_models=breaker.stopped, unusable_models=breaker.unusable)
        self.progress_at = time.monotonic()
        """When the latest item was done, for good or ill."""

    # ----- what there is

    @property
    def in_hand(self) -> int:
        """How many outcomes are not yet known to be stored."""
        return len(self._commits)

    @property
    def is_holding(self) -> bool:
        """Whether any item is in flight, its outcome not yet stored, or the model that it proved well not yet resumed."""
        return bool(self._slots or self._commits or self._breaker.is_resuming)

    def known(self) -> set[tuple[int, bytes]]:
        """All items in slots or in hand, each with its claim."""
        items = chain(self._slots, (outcome.item for outcome in self._commits))
        return {(item.id_task_item, item.claim_token) for item in items}

    def left(self) -> int:
        """How many more items may be claimed, at once or at all."""
        return MANY if self._options.max_items is None else self._options.max_items - self._claimed

    def load(self) -> tuple[int, int, int]:
        """In flight, processed, failed: for the worker's row. Callable from any thread."""
        return self._slots.in_flight, self.summary.processed, self.summary.failed

    # ----- what comes in

    def took(self, items: Sequence[Item]) -> None:
        """These were claimed, for the slots."""
        counts = Counter(item.task.id_task for item in items)
        self._open.update(counts)
        # FETCH of a task goes with the items that are told of: each of them has its line before its DONE.
        keeps = self._log.keeps
        told = None if self._log.keeps_all() else {item.task.id_task for item in items if keeps(item.id_task_item)}
        self.fetched(counts, told)

    def fetched(self, counts: Mapping[int, int], told: Collection[int] | None = None) -> None:
        """So many items were claimed, by task; into a slot or into a batch. The log tells of some of the tasks, or of all."""
        items = sum(counts.values())
        self._claimed += items
        self._counts.claimed(items)
        rows = [{"task": id_task, "count": count} for id_task, count in counts.items() if told is None or id_task in told]
        self._log.each(Event.FETCH, rows, left_out=len(counts) - len(rows))

    # ----- what goes out

    def settle(self, item: Item, outcome: Outcome) -> None:
        """So the item's attempt has ended."""
        if is_limited(item.task):
            self._estimates.learn(outcome)
        self._commits.put(self._twins.keyed(outcome))
        if self._slots.has_limit(item.task.id_ai_model) or self._throttle.caps(item.task.id_ai_model):
            self._work_seen.set()  # the claim may be waiting for just this model

    def defect(self, item: Item, error: BaseException) -> Outcome:
        """Charged and put off, because an item given back at once would meet it again at once, for ever."""
        message = f"{type(error).__name__}: {error}"
        self._log(Event.LIBRARY, level=ERROR, exc_info=error, logger="worker", message=message)
        if isinstance(error, MemoryError):
            self._breakdown(NO_MEMORY)
        return Outcome.retry(item, "internal", message, attempt_delay(item.tries), NO_USAGE, None, 0)

    async def run(self) -> None:
        """Stores outcomes, for ever."""
        await self._commits.run()

    async def _store_group(self, group: Sequence[Outcome]) -> Committed:
        counts = Counter([outcome.item.task.id_task for outcome in group])
        return await self._store(group, [id_task for id_task, count in counts.items() if self._open[id_task] > count])

    def _stored(self, committed: Committed) -> None:
        for id_task, count in Counter([outcome.item.task.id_task for outcome in chain(committed.stored, committed.lost)]).items():
            self._open[id_task] -= count
            if not self._open[id_task]:
                del self._open[id_task]
        self.tell(committed)

    def tell(self, committed: Committed) -> None:
        """Counts and logs what was stored, of a slot's or of a batch's items."""
        summary, log = self.summary, self._log
        self._counts.attempted(committed.stored, committed.lost)
        processed = released = 0
        keeps_all = log.keeps_all()
        done: list[dict[str, Any]] = []
        for outcome in committed.stored:
            if outcome.kind is OutcomeKind.PROCESSED:
                processed += 1
                if keeps_all or log.keeps(outcome.item.id_task_item):
                    done.append(self._fields(outcome))
                if outcome.item.task.is_probe and outcome.is_answer:
                    self._breaker.answered(outcome.item)
            elif outcome.kind is OutcomeKind.FAILED:
                summary.failed += 1
                self.progress_at = time.monotonic()
            elif outcome.kind is OutcomeKind.RELEASED:
                released += 1
                self._claimed -= 1  # it was not done, so it does not count for --max-item
            else:
                summary.deferred += 1
        if processed:
            summary.processed += processed
            self.progress_at = time.monotonic()
            log.each(Event.DONE, done, left_out=processed - len(done))
        for outcome in committed.lost:
            log(Event.CLAIM_LOST, **self._fields(outcome))
        if released:
            summary.released += released
            log(Event.RELEASE, count=released)
        log_ended(log, committed.ended)
        self._twins.settled(committed)
        if self._has_freed():
            self._on_room()
        self._on_progress(summary)
        self._slots.wake()
        if not self._options.forever and not self.is_holding:
            self._work_seen.set()  # it may be done

    def refused(self, outcome: Outcome, message: str) -> None:
        """The database does not take this one."""
        self._log(
            Event.ERROR,
            **of_item(outcome.item, self._endpoints.name(outcome.item.task.id_ai_model)),
            kind="unstorable",
            message=message,
            outcome=OutcomeKind.FAILED.value,
            tokens_input=outcome.usage.tokens_input,
            tokens_output=outcome.usage.tokens_output,
        )

    def _kept(self, error: DatabaseError) -> None:
        self._log(Event.DATABASE_AWAY, reason=f"{self.in_hand} results in hand are kept: {error}", commit_in_doubt=False)

    def _fields(self, outcome: Outcome) -> dict[str, Any]:
        item, usage = outcome.item, outcome.usage
        fields = of_item(item, self._endpoints.name(item.task.id_ai_model))
        fields["tokens_input"], fields["tokens_output"] = usage.tokens_input, usage.tokens_output
        fields["cost"] = None if outcome.cost is None else format(outcome.cost, "f")
        fields["latency_ms"] = outcome.latency_ms
        return fields
