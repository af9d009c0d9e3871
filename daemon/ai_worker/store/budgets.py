"""Money set aside before it is spent: no claim takes an item that its task's budget, or its model's for the day, cannot pay.

What is set aside for an item counts for as long as it is IN_PROGRESS; its commit puts what it really cost in its place, in one
transaction. A task's budget is looked at under the lock of its row, which every commit takes too; a model's under that of its row
in `ai_model_pace`, which only claims take: commits move money from what is set aside to what is spent, and free none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Protocol

from ai_worker.db import Transaction
from ai_worker.models import Item, Task, TaskStatus
from ai_worker.store.chains import model_states

_NOTHING: Final = Decimal(0)
_CENT: Final = Decimal("0.01")


Stored = Callable[[Item], Mapping[tuple[int, int], bytes]]
"""Tells what earlier attempts at an item have stored: by step and part, the digest of what it was made of."""


def nothing_stored(_: Item) -> Mapping[tuple[int, int], bytes]:
    """Of an item that nobody has worked on."""
    return {}


class Estimator(Protocol):
    """Tells what items will cost."""

    def prepare(self, models: Collection[int], tasks: Iterable[Task], /) -> None:
        """Whatever must be read or waited for before items of these tasks are estimated, for these models."""

    def __call__(self, item: Item, stored: Stored, /) -> Decimal | None:
        """USD, rather too high than too low; None where the price is not known. It is called while rows are locked, and asks what
        is stored of an item only if that takes several calls."""


@dataclass(slots=True)
class SetAside:
    """What came of it: the items that may be claimed, with what was set aside for them (None: neither budget applies).

    `short` are tasks for which all money is set aside already: some of it may come back. `spent` are models whose day's budget is
    spent, while others stand in for them. `paused` are tasks that were, with the reason.
    """

    items: dict[int, Decimal | None] = field(default_factory=dict)
    short: set[int] = field(default_factory=set)
    spent: set[int] = field(default_factory=set)
    paused: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Purse:
    """A budget, of a task or of a model's day: what is spent of it, and what is set aside."""

    budget: Decimal | None
    spent: Decimal
    reserved: Decimal
    model: str | None = None  # whose day it is

    def can_pay(self, cost: Decimal) -> bool:
        return self.budget is None or self.spent + self.reserved + cost <= self.budget

    def is_empty_for(self, cost: Decimal) -> str:
        """Why nothing goes on, in words."""
        whose = "" if self.model is None else f" of model {self.model} for the UTC day"
        return (
            f"the budget{whose} of {usd(self.budget or _NOTHING)} USD is spent: {usd(self.spent)} USD,"
            f" and the next item needs about {usd(cost)}"
        )


def is_limited(task: Task) -> bool:
    """Whether money must be set aside for its items."""
    return task.budget is not None or task.budget_per_day is not None


def set_aside(tx: Transaction, items: Sequence[Item], estimate: Estimator, known_spent: Collection[int]) -> SetAside:
    """Chooses those of the items, which are locked and pending, that can be paid; pauses their task where none ever can.

    `known_spent` are models of which this worker knows that their day is spent.
    """
    limited = [item for item in items if is_limited(item.task)]
    stored = _stored(tx, limited)
    needs = {item.id_task_item: estimate(item, stored) for item in limited}  # before the hot rows are locked
    found = SetAside()
    purses: dict[tuple[str, int], _Purse] = {}
    for id_task in sorted({item.task.id_task for item in items if item.task.budget is not None}):
        row = tx.query("lock_budget", {"id_task": id_task})[0]
        if row["status_id"] in {TaskStatus.PAUSED, TaskStatus.CANCELLED}:
            return found
        reserved = tx.query("reserved_of_task", {"id_task": id_task})[0]["reserved"]
        purses["task", id_task] = _Purse(row["budget"], row["cost"] or _NOTHING, reserved or _NOTHING)
    for id_ai_model in sorted({item.task.id_ai_model for item in items if item.task.budget_per_day is not None}):
        purses["day", id_ai_model] = _purse_of_day(tx, id_ai_model)
    refused: dict[int, tuple[Item, _Purse | None]] = {}  # by task, the first one
    for item in items:
        its = [purses[key] for key in (("task", item.task.id_task), ("day", item.task.id_ai_model)) if key in purses]
        need = needs.get(item.id_task_item)
        if not is_limited(item.task):
            found.items[item.id_task_item] = None
        elif need is None:
            refused.setdefault(item.task.id_task, (item, None))
        elif (empty := next((purse for purse in its if not purse.can_pay(need)), None)) is not None:
            refused.setdefault(item.task.id_task, (item, empty))
        else:
            found.items[item.id_task_item] = need
            for purse in its:
                purse.reserved += need
    if not found.items:
        for item, empty in refused.values():
            _refuse(tx, item, empty, needs[item.id_task_item], found, known_spent)
    return found


def set_aside_for_step(tx: Transaction, item: Item, need: Decimal | None) -> SetAside:
    """Sets money aside for a step of an item, which is locked, on the day of its model, which is not the one that it was claimed
    for. As a claim does it: where all money is set aside the task is in `short`, where it is spent the task is paused.

    From then on what is set aside for the item counts for this model's day.
    """
    found = SetAside()
    purse = _purse_of_day(tx, item.task.id_ai_model, but=item.id_task_item)
    if purse.budget is not None and need is None:
        _refuse(tx, item, None, None, found, ())
    elif not purse.can_pay(need or _NOTHING):
        _refuse(tx, item, purse, need, found, ())
    else:
        key = {"id_task_item": item.id_task_item, "id_ai_model": item.task.id_ai_model}
        tx.execute("reserve_step", {**key, "reserved": need or _NOTHING, "is_all": item.task.budget is None})
        found.items[item.id_task_item] = need
    return found


def _purse_of_day(tx: Transaction, id_ai_model: int, but: int = 0) -> _Purse:
    """That of a model's day, locked against other claims; what is set aside for the item `but` is left out."""
    tx.execute("lock_pace", {"id_ai_model": id_ai_model})
    row = tx.query("model_budget", {"id_ai_model": id_ai_model, "but": but})[0]
    return _Purse(row["budget_per_day"], row["spent"] or _NOTHING, row["reserved"] or _NOTHING, row["name"])


def _stored(tx: Transaction, items: Sequence[Item]) -> Stored:
    """What is stored of these items, read together when one is first asked for."""
    found: dict[int, dict[tuple[int, int], bytes]] | None = None

    def of(item: Item) -> Mapping[tuple[int, int], bytes]:
        nonlocal found
        if found is None:
            found = {each.id_task_item: {} for each in items}
            for id_task_item, step, part, digest in tx.tuples("stored_steps", {"items": list(found)}):
                found[id_task_item][step, part] = digest
        return found[item.id_task_item]

    return of


def _refuse(
    tx: Transaction, item: Item, purse: _Purse | None, need: Decimal | None, found: SetAside, known_spent: Collection[int]
) -> None:
    """What becomes of a task none of whose items can be paid now."""
    task = item.task
    if purse is None or need is None:
        name = tx.query("model_name", {"id_ai_model": task.id_ai_model})[0]["name"]
        _pause(tx, found, task, f"it has a budget, and the price of model {name} is not known", is_for_today=False)
    elif purse.reserved > 0:
        found.short.add(task.id_task)
    elif purse.model is None:
        _pause(tx, found, task, purse.is_empty_for(need), is_for_today=False)
    elif _has_substitute(tx, task, known_spent):
        found.spent.add(task.id_ai_model)
    else:
        _pause(tx, found, task, f"{purse.is_empty_for(need)}; it goes on by itself at 00:00 UTC", is_for_today=True)


def _has_substitute(tx: Transaction, task: Task, known_spent: Collection[int]) -> bool:
    """Whether another model of the chain may take the task's items today: also one that is stopped, for it may come back."""
    others = [each for each in task.chain if each != task.id_ai_model and each not in known_spent]
    if not others:
        return False
    states = model_states(tx.query("model_states", {"any_model": True, "model_names": ("",)}))
    return any(each in states and states[each].is_active for each in others)


def _pause(tx: Transaction, found: SetAside, task: Task, reason: str, *, is_for_today: bool) -> None:
    if tx.execute("pause_unpaid", {"id_task": task.id_task, "reason": reason[:500], "is_for_today": is_for_today}):
        found.paused[task.id_task] = reason


def usd(amount: Decimal) -> str:
    """An amount as people write it: two decimals, and more where it is small."""
    digits = 2 if amount == amount.quantize(_CENT) else 4 if amount >= _CENT else 6 if amount >= Decimal("0.0001") else 9
    return f"{amount:.{digits}f}"
