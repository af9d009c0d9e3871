"""The verbs of `store`, as the state machine and its pairs use them: each with what the model says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from ai_worker.models import NO_USAGE, Filters, Item, ItemStatus, Outcome, Result, Usage
from ai_worker.store.queue import Rescued
from tests.chaos.model.protocol import Ended, Protocol, Refused, require, tokens_of
from tests.chaos.model.world import LEASE_SECONDS, Act, Held, Worker, World

KINDS: Final = ("processed", "retry", "retry at once", "failed", "failed unpaid", "postponed", "released")
FAR: Final = 3600.0  # seconds; what is put off so long is due when the test says so


class Acts:
    """The verbs on one world. Those of which there is nothing to do now are None."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._decided = 0

    # ----- claims

    def look(self, worker: Worker) -> Act:
        """The list of runnable tasks, which the worker then claims from until it looks again."""

        def agree(model: Protocol, tasks: Any) -> None:
            _resolve(model, worker)
            found = [task.id_task for task in tasks]
            require(found == model.runnable(), f"runnable were {found}, and were to be {model.runnable()}")

        def after(tasks: Any) -> None:
            worker.looked_at = tasks
            worker.doubts.clear()

        return Act("look", lambda: worker.queue.runnable(Filters()), agree, after, writes=bool(worker.doubts))

    def claim(self, worker: Worker, which: int | None, size: int, after: int) -> Act | None:
        """From one of the tasks last looked at, above a watermark, or (None) from all of them together."""
        if not worker.looked_at:
            return None
        tasks = worker.looked_at if which is None else [worker.looked_at[which % len(worker.looked_at)]]
        ids = [task.id_task for task in tasks]

        def agree(model: Protocol, items: Any) -> None:
            _resolve(model, worker)
            for item in items:
                state = model.items.get(item.id_task_item)
                require(state is not None, f"item {item.id_task_item} was claimed, and is not there")
                seen = (state.attempt + 1, state.lost_count) if state else None
                require(seen == (item.attempt, item.lost_count), f"item {item.id_task_item} is not as it was claimed")
            model.claim(worker.id_worker, ids, size, after, tokens_of(items))

        def heard(items: Any) -> None:
            worker.doubts.clear()
            worker.hand += map(Held, items)

        def lost(model: Protocol, has_landed: bool) -> None:
            if has_landed:
                found = self._world.look()["task_item"]
                in_progress = {key: row for key, row in found.items() if row[1] == ItemStatus.IN_PROGRESS}
                got = {key: row[4] for key, row in in_progress.items() if key in model.items and row[4] != model.items[key].token}
                model.claim(worker.id_worker, ids, size, after, got)
                worker.doubts.append(got)

        return Act(
            "claim",
            lambda: worker.queue.claim(worker.id_worker, tasks, size, after=after),
            agree,
            heard,
            None if worker.doubts else lost,
            locks=_claimed,
        )

    def claim_new(self, worker: Worker, item: int) -> Act:
        def agree(model: Protocol, items: Any) -> None:
            _resolve(model, worker)
            model.claim_new(worker.id_worker, item, items[0].claim_token if items else None)

        def after(items: Any) -> None:
            worker.doubts.clear()
            worker.hand += map(Held, items)

        return Act("claim new", lambda: worker.queue.claim_new(worker.id_worker, item, Filters()), agree, after, locks=_claimed)

    # ----- commits

    def decide(self, held: Held, kind: str) -> None:
        """How the item's attempt has ended: decided once. Tokens and cost are each time different ones."""
        if held.outcome is not None:
            return
        self._decided = number = self._decided + 1
        item, usage = held.item, Usage(tokens_input=number, tokens_output=1000 + number)
        cost = None if number % 5 == 0 else Decimal(number).scaleb(-6)
        if kind == "processed":
            held.outcome = Outcome.processed(item, Result(f"wynik {number}", None, {}), usage, cost, 5)
        elif kind.startswith("retry"):
            held.outcome = Outcome.retry(item, "bad_answer", "?", 0.0 if kind == "retry at once" else FAR, usage, cost, 5)
        elif kind.startswith("failed"):
            if kind == "failed unpaid":
                usage, cost = NO_USAGE, None
            held.outcome = Outcome.failed(item, "content_refused", "?", usage, cost, 5)
        elif kind == "postponed":
            held.outcome = Outcome.postponed(item, "rate_limited", "429", FAR, NO_USAGE, None, 5)
        else:
            held.outcome = Outcome.released(item)

    def commit(self, worker: Worker, group: Sequence[Held], with_held: bool) -> Act:
        """Decided ones in one group. `with_held`: the worker says of which tasks it holds more."""
        outcomes = [each.outcome for each in group if each.outcome is not None]
        kept = [each.item.task.id_task for each in worker.hand if not any(each is other for other in group)]
        held = kept if with_held else []

        def after(_: Any) -> None:
            worker.hand = [each for each in worker.hand if not any(each is other for other in group)]

        return self._commit("commit", worker, outcomes, held, after)

    def commit_again(self, worker: Worker, outcomes: Sequence[Outcome]) -> Act:
        """What was committed before, by somebody who did not hear of it."""
        return self._commit("commit again", worker, outcomes, [], lambda _: None)

    @staticmethod
    def _commit(name: str, worker: Worker, outcomes: Sequence[Outcome], held: Iterable[int], after: Callable[[Any], None]) -> Act:
        def agree(model: Protocol, committed: Any) -> None:
            stored, lost, ended = model.commit(worker.id_worker, outcomes, held)
            found = [{each.item.operation_uuid.replace("-", "") for each in some} for some in (committed.stored, committed.lost)]
            wanted = [{each.hex() for each in some} for some in (stored, lost)]
            require(found == wanted, f"stored and lost were {found}, and were to be {wanted}")
            require(_ended(committed.ended) == ended, f"ended: {committed.ended}, and was to be {ended}")

        def lost(model: Protocol, has_landed: bool) -> None:
            if has_landed:
                model.commit(worker.id_worker, outcomes, held)

        locks = frozenset(each.item.id_task_item for each in outcomes)
        return Act(name, lambda: worker.queue.commit(worker.id_worker, outcomes, held), agree, after, lost, locks=lambda _: locks)

    # ----- upkeep

    def rescue(self, worker: Worker) -> Act:
        def agree(model: Protocol, found: Any) -> None:
            wanted = model.rescue()
            if found is ...:  # run again after it had landed, it has taken the next one
                model.rescue()
            else:
                _require_rescued(found, wanted)

        return Act("rescue", worker.queue.rescue, agree, exact=False)

    def rescue_orphans(self, worker: Worker) -> Act:
        def agree(model: Protocol, found: Any) -> None:
            wanted = model.rescue_orphans()
            if found is not ...:
                _require_rescued(found, wanted)

        return Act("rescue orphans", worker.queue.rescue_orphans, agree, exact=False)

    def promote(self, worker: Worker) -> Act:
        return self._counted("promote", worker.queue.promote_due, Protocol.promote)

    def reopen(self, worker: Worker, after: int) -> Act:
        return self._counted("reopen", lambda: worker.queue.reopen_for_new_items(after), lambda model: model.reopen(after))

    def end_forgotten(self, worker: Worker) -> Act:
        def agree(model: Protocol, found: Any) -> None:
            wanted = model.end_forgotten()
            require(found is ... or _ended(found) == wanted, f"ended: {found}, and was to be {wanted}")

        return Act("end forgotten", worker.queue.end_forgotten, agree, exact=False)

    def beat(self, worker: Worker) -> Act:
        """A worker that finds its row given up registers anew."""

        def agree(model: Protocol, is_alive: Any) -> None:
            state = model.workers[worker.id_worker]
            require(is_alive == (not state.is_lost and not state.is_ended), "a heartbeat was taken, or not")
            if is_alive:
                state.over = None

        def after(is_alive: Any) -> None:
            if not is_alive:
                worker.id_worker = self._world.register()

        numbers: dict[str, Any] = {"in_flight": 0, "processed": 0, "failed": 0}
        numbers |= {"host": "host", "pid": 1, "lease_seconds": LEASE_SECONDS}
        return Act("beat", lambda: worker.queue.beat(worker.id_worker, **numbers), agree, after)

    def end(self, worker: Worker) -> Act:
        """In good order, but with what is still in its hands: orphans."""

        def agree(model: Protocol, _: Any) -> None:
            model.workers[worker.id_worker].is_ended = True

        return Act("end of worker", lambda: worker.queue.end_worker(worker.id_worker, processed=0, failed=0), agree)

    # ----- people

    def retry(self, id_task: int, item: int | None) -> Act:
        return self._counted("retry", lambda: self._world.tasks.retry(id_task, item), lambda model: model.retry(id_task, item))

    def retry_all(self, id_task: int) -> Act:
        return self.retry(id_task, None)

    def pause(self, id_task: int) -> Act:
        return self._counted("pause", lambda: _none(self._world.tasks.pause(id_task)), lambda model: model.pause(id_task))

    def resume(self, id_task: int) -> Act:
        def run() -> int:
            return self._world.tasks.resume(id_task).items

        return self._counted("resume", run, lambda model: model.resume(id_task))._replace(takes_steps=True)

    def cancel(self, id_task: int) -> Act:
        def run() -> int:
            return self._world.tasks.cancel(id_task).items

        return self._counted("cancel", run, lambda model: model.cancel(id_task))._replace(takes_steps=True)

    def delete(self, item: int) -> Act:
        """By plain SQL, whatever it is doing."""

        def agree(model: Protocol, _: Any) -> None:
            model.items.pop(item, None)

        return Act("delete", lambda: self._world.execute(f"DELETE FROM task_item WHERE id_task_item = {item}"), agree)

    @staticmethod
    def _counted(name: str, run: Callable[[], Any], verb: Callable[[Protocol], int | Refused | None]) -> Act:
        def agree(model: Protocol, found: Any) -> None:
            wanted = verb(model)
            require(found is ... or found == wanted, f"{name} returned {found}, and was to return {wanted}")

        return Act(name, run, agree, exact=False)


def _claimed(items: Iterable[Item]) -> frozenset[int]:
    return frozenset(item.id_task_item for item in items)


def _resolve(model: Protocol, worker: Worker) -> None:
    """A worker gives back what it does not know whether it has claimed before it claims anything else."""
    for each in worker.doubts:
        for item, token in each.items():
            model.unclaim(token, [item])


def _require_rescued(found: Rescued, wanted: tuple[int | None, int, list[Ended]]) -> None:
    seen = (found.id_worker, found.items, _ended(found.ended))
    require(seen == wanted, f"rescued were {seen}, and were to be {wanted}")


def _ended(found: Iterable[Any]) -> list[Ended]:
    return [Ended(each.id_task, each.status, each.records_processed, each.records_failed) for each in found]


def _none(_: object) -> None:
    return None
