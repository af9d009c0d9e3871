"""The state machine: draws who does what next, two workers or three, and at the end lets everything be finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ai_worker.models import ItemStatus, Outcome, TaskStatus
from tests.chaos.model.acts import KINDS, Acts
from tests.chaos.model.protocol import OPEN, Disagreement, require
from tests.chaos.model.world import Act, Fault, Held, Worker, World

WORKERS = st.integers(0, 2)
PLACES = st.integers(0, 9)  # the item, the task, … of this number, counted round
COUNTS = st.integers(1, 4)
FAULTS = st.one_of(st.none(), st.none(), st.builds(Fault, st.integers(0, 9), st.sampled_from(["before", "after"]), st.booleans()))
OUTCOMES = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)
WORK = ("claim", "commit", "rescue")
VERBS = (*WORK, "claim", "commit", "claim new", "rescue orphans", "promote", "retry", "pause", "resume", "cancel", "delete")


class Together(NamedTuple):
    """Two verbs of two workers, and how many statements of each come before the other's next."""

    verbs: tuple[str, str]
    workers: list[int]
    places: tuple[int, int]
    kinds: list[str]
    first: int
    second: int


def pairs(verbs: Sequence[str]) -> st.SearchStrategy[Together]:
    verb = st.sampled_from(verbs)
    return st.builds(
        Together,
        st.tuples(verb, verb),
        st.permutations(range(3)),
        st.tuples(PLACES, PLACES),
        OUTCOMES,
        st.integers(0, 12),
        st.integers(0, 12),
    )


class ProtocolMachine(RuleBasedStateMachine):
    """Its subclass names the world. Choices are numbers, so that an example is the same on every database."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()
        self.acts = Acts(self.world)
        self.committed: list[list[Outcome]] = []
        self.workers = [self._new_worker() for _ in range(3)]

    # ----- rows come

    @initialize(items=COUNTS, others=st.integers(0, 3), priority=st.integers(-1, 1))
    def begin(self, items: int, others: int, priority: int) -> None:
        self.world.insert(self.world.new_task(priority), items)
        if others:
            self.world.insert(self.world.new_task(0), others)

    @precondition(lambda self: len(self.world.model.items) < 12)
    @rule(task=PLACES, count=COUNTS, priority=st.one_of(st.none(), st.integers(-1, 1)))
    def insert(self, task: int, count: int, priority: int | None) -> None:
        """Items, into a task that is there or (with a priority) into a new one."""
        is_new = priority is not None and len(self.world.model.tasks) < 3
        self.world.insert(self.world.new_task(priority or 0) if is_new else self._task(task), count)
        self.world.compare()

    # ----- workers

    @rule(worker=WORKERS, which=st.one_of(st.none(), PLACES), size=COUNTS, is_stale=st.booleans(), fault=FAULTS)
    def claim(self, worker: int, which: int | None, size: int, is_stale: bool, fault: Fault | None) -> None:
        it = self.workers[worker]
        if not is_stale:
            self.world.do(self.acts.look(it))
        self._do(self.acts.claim(it, which, size, 0), fault)

    @rule(worker=WORKERS, which=PLACES, size=COUNTS, watermark=PLACES)
    def claim_above(self, worker: int, which: int, size: int, watermark: int) -> None:
        it = self.workers[worker]
        self.world.do(self.acts.look(it))
        self._do(self.acts.claim(it, which, size, self._item(watermark)))

    @rule(worker=WORKERS, item=PLACES, fault=FAULTS)
    def claim_new(self, worker: int, item: int, fault: Fault | None) -> None:
        if self.world.model.items:
            self._do(self.acts.claim_new(self.workers[worker], self._item(item)), fault and fault._replace(for_long=False))

    @rule(worker=WORKERS, first=PLACES, kinds=OUTCOMES, with_held=st.booleans(), fault=FAULTS)
    def commit(self, worker: int, first: int, kinds: list[str], with_held: bool, fault: Fault | None) -> None:
        self._do(self._commit(self.workers[worker], first, kinds, with_held), fault)

    @rule(worker=WORKERS, first=PLACES, count=COUNTS, fault=FAULTS)
    def commit_results(self, worker: int, first: int, count: int, fault: Fault | None) -> None:
        self._do(self._commit(self.workers[worker], first, ["processed"] * count, False), fault)

    @precondition(lambda self: self.committed)
    @rule(worker=WORKERS, which=PLACES)
    def commit_again(self, worker: int, which: int) -> None:
        self._do(self.acts.commit_again(self.workers[worker], self.committed[which % len(self.committed)]))

    @rule(worker=WORKERS, what=st.sampled_from(["falls silent", "dies", "ends", "beats"]))
    def life(self, worker: int, what: str) -> None:
        """Silent: frozen or cut off; its lease is over, its hands are full. Dead: killed, and another process in its place."""
        it = self.workers[worker]
        if what == "ends":
            self.world.do(self.acts.end(it))
        elif what == "beats":
            self.world.do(self.acts.beat(it))
        else:
            self.world.lease_is_over(it)
            if what == "dies":
                self.workers[worker] = self._new_worker()
            self.world.compare()

    @rule(pair=st.permutations(range(3)), what=st.sampled_from(["processed", "failed", "retry at once", None]))
    def is_taken_over(self, pair: list[int], what: str | None) -> None:
        """A worker falls silent, and another one gets what it held, while it goes on with it. That may be tried again then."""
        silent, other = self.workers[pair[0]], self.workers[pair[1]]
        items = {held.item.id_task_item for held in silent.hand}
        self.world.lease_is_over(silent)
        while self.world.model.is_anybody_stale():
            self.world.do(self.acts.rescue(other))
        self.world.do(self.acts.look(other))
        self._do(self.acts.claim(other, None, 12, 0))
        if what is not None:
            group = [held for held in other.hand if held.item.id_task_item in items]
            self._do(self._commit_group(other, group, [what] * len(group), False))
        if what == "failed":
            for id_task in sorted(self.world.model.tasks):
                self.world.do(self.acts.retry_all(id_task))
            self.world.do(self.acts.look(other))
            self._do(self.acts.claim(other, None, 12, 0))

    # ----- upkeep

    @rule(
        worker=WORKERS,
        what=st.sampled_from(["rescue", "rescue", "orphans", "promote", "time", "reopen", "forgotten"]),
        fault=FAULTS,
    )
    def upkeep(self, worker: int, what: str, fault: Fault | None) -> None:
        it, acts = self.workers[worker], self.acts
        if what == "time":
            self.world.make_due()
        verbs = {"rescue": acts.rescue, "orphans": acts.rescue_orphans, "promote": acts.promote, "time": acts.promote}
        if what in verbs:
            self._do(verbs[what](it), fault)
        else:
            self._do(acts.reopen(it, 0) if what == "reopen" else acts.end_forgotten(it), fault)

    # ----- people

    @rule(task=PLACES, item=PLACES, what=st.sampled_from(["retry", "retry one", "pause", "resume", "resume", "cancel", "delete"]))
    def people(self, task: int, item: int, what: str) -> None:
        id_task, acts = self._task(task), self.acts
        if what == "delete":
            self.world.do(acts.delete(self._item(item)))
        elif what == "retry one":
            self.world.do(acts.retry(id_task, self._item(item)))
        else:
            self.world.do(
                {"retry": acts.retry_all, "pause": acts.pause, "resume": acts.resume, "cancel": acts.cancel}[what](id_task)
            )

    @rule(task=PLACES, priority=st.integers(-2, 2))
    def set_priority(self, task: int, priority: int) -> None:
        self.world.tasks.set_priority(self._task(task), priority)
        self.world.model.tasks[self._task(task)].priority = priority
        self.world.compare()

    # ----- two at once

    @rule(pair=pairs(VERBS))
    def at_once(self, pair: Together) -> None:
        self._at_once(pair)

    @rule(pair=pairs(WORK))
    def work_at_once(self, pair: Together) -> None:
        """Of workers alone, and there is work to be done."""
        for each in pair.workers[:2]:
            self.world.do(self.acts.look(self.workers[each]))
            self._do(self.acts.claim(self.workers[each], None, 2, 0))
        self._at_once(pair)

    @precondition(lambda self: len(self.world.model.items) < 12)
    @rule(pair=pairs(("commit", "commit", "rescue", "cancel", "pause", "delete")), is_late=st.booleans())
    def last_items_at_once(self, pair: Together, is_late: bool) -> None:
        """The last two items of a task, with one worker each, the first of which may have fallen silent."""
        id_task = self.world.new_task(2)
        self.world.insert(id_task, 2)
        one, other = (self.workers[each] for each in pair.workers[:2])
        for worker in (one, other):
            self.world.do(self.acts.look(worker))
            place = [task.id_task for task in worker.looked_at].index(id_task)
            self._do(self.acts.claim(worker, place, 1, 0))
        if is_late:
            self.world.lease_is_over(one)
        item = one.hand[-1].item.id_task_item
        verbs: dict[str, Callable[[], Act | None]] = {
            "commit": lambda: self._commit_group(other, other.hand[-1:], pair.kinds[-1:], False),
            "rescue": lambda: self.acts.rescue(other),
            "cancel": lambda: self.acts.cancel(id_task),
            "pause": lambda: self.acts.pause(id_task),
            "delete": lambda: self.acts.delete(item),
        }
        second = verbs[pair.verbs[1]]()
        first = self._commit_group(one, one.hand[-1:], pair.kinds[:1], False)
        if first is not None and second is not None:
            self.world.at_once(first, second, pair.first, pair.second)

    def _at_once(self, pair: Together) -> None:
        acts = [
            self._verb(verb, self.workers[worker], place, pair.kinds)
            for verb, worker, place in zip(pair.verbs, pair.workers[:2], pair.places, strict=True)
        ]
        one, other = acts
        if one is None or other is None or set(pair.verbs) == {"cancel", "resume"}:  # these two take several steps each
            self._do(one or other)
        else:
            self.world.at_once(one, other, pair.first, pair.second)

    def _verb(self, verb: str, worker: Worker, place: int, kinds: list[str]) -> Act | None:
        task, item, acts = self._task(place), self._item(place), self.acts
        if verb.startswith("claim"):
            self.world.do(acts.look(worker))  # not in the pair: it is a step of its own
        verbs: dict[str, Callable[[], Act | None]] = {
            "claim": lambda: acts.claim(worker, None if place % 3 == 0 else place, 1 + place % 4, 0),
            "claim new": lambda: acts.claim_new(worker, item),
            "commit": lambda: self._commit(worker, place, kinds, False),
            "rescue": lambda: acts.rescue(worker),
            "rescue orphans": lambda: acts.rescue_orphans(worker),
            "promote": lambda: acts.promote(worker),
            "retry": lambda: acts.retry_all(task),
            "pause": lambda: acts.pause(task),
            "resume": lambda: acts.resume(task),
            "cancel": lambda: acts.cancel(task),
            "delete": lambda: acts.delete(item),
        }
        return verbs[verb]()

    # ----- the end

    def teardown(self) -> None:
        """Whatever has happened: a worker that goes on finishes everything, and nothing is left."""
        world, worker = self.world, self._new_worker()
        if not world.model.tasks:
            return
        for each in self.workers:
            world.lease_is_over(each)
        while world.model.is_anybody_stale():
            self._finish(self.acts.rescue(worker))
        self._finish(self.acts.rescue_orphans(worker))
        world.make_due()
        self._finish(self.acts.promote(worker))
        for id_task, task in sorted(world.model.tasks.items()):
            if task.status in {TaskStatus.PAUSED, TaskStatus.CANCELLED}:
                self._finish(self.acts.resume(id_task))
        self._finish(self.acts.reopen(worker, 0))
        while self._finish(self.acts.look(worker)):
            self._finish(self.acts.claim(worker, 0, 20, 0))
            self._finish(self._commit(worker, 0, ["processed"] * 20, False))
        self._finish(self.acts.end_forgotten(worker))
        world.compare()
        model = world.model
        left = [key for key, each in model.items.items() if each.status in OPEN or each.status is ItemStatus.CANCELLED]
        require(not left, f"items {left} are left over")
        open_tasks = [key for key, each in model.tasks.items() if not each.is_finished and model.of_task(key)]
        require(not open_tasks, f"tasks {open_tasks} have not ended")

    def _finish(self, act: Act | None) -> Any:
        if act is None:
            raise Disagreement("there is work, and nothing to do")
        return self.world.do(act, compared=False)

    # ----- inside

    def _do(self, act: Act | None, fault: Fault | None = None) -> None:
        if act is not None:
            self.world.do(act, fault)

    def _commit(self, worker: Worker, first: int, kinds: list[str], with_held: bool) -> Act | None:
        start = first % max(1, len(worker.hand))
        return self._commit_group(worker, worker.hand[start : start + len(kinds)], kinds, with_held)

    def _commit_group(self, worker: Worker, group: list[Held], kinds: list[str], with_held: bool) -> Act | None:
        if not group:
            return None
        for held, kind in zip(group, kinds, strict=False):
            self.acts.decide(held, kind)
        self.committed.append([each.outcome for each in group if each.outcome is not None])
        return self.acts.commit(worker, group, with_held)

    def _new_worker(self) -> Worker:
        return Worker(self.world.register(), self.world.new_queue())

    def _task(self, place: int) -> int:
        tasks = sorted(self.world.model.tasks)
        return tasks[place % len(tasks)]

    def _item(self, place: int) -> int:
        items = sorted(self.world.model.items)
        return items[place % len(items)] if items else 0


def machine_on(world: World) -> type[ProtocolMachine]:
    """The machine on this world."""
    return type("TheProtocol", (ProtocolMachine,), {"world": world})
