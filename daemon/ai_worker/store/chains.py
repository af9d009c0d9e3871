"""Tasks that name more than one model: which of them a claim is for, and who takes what another has refused.

The first model of the chain that is not stopped takes the task's items. One that is busy is waited for: a fallback stands in for
a model that is out of order, it does not share the load. An item that was refused goes to the models after the one that did so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ai_worker.db import Row
from ai_worker.models import Learnt, Limits, Task

BUSY_SECONDS: Final = 2.0  # until an item is tried again whose own model is busy
SHORTEST_PUT_OFF: Final = 5.0
LONGEST_PUT_OFF: Final = 300.0


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether a model may be called now; `is_due` says that it is stopped and may be tried again, else in `probe_seconds`."""

    is_active: bool
    is_stopped: bool
    is_due: bool
    probe_seconds: float
    is_wanted: bool
    columns: Mapping[str, Any]  # what a Task says of its model


def model_columns(row: Row) -> dict[str, Any]:
    """What a Task says of its model, by the names of the fields."""
    plain = {name: row[name] for name in ("id_ai_model", "max_in_flight", "budget_per_day")}
    limits = Limits(row["max_requests_per_minute"], row["max_tokens_per_minute"])
    learnt = row.get("learnt")
    return {**plain, "limits": limits, "learnt": None if learnt is None else _learnt(learnt)}


def _learnt(text: str) -> Learnt:
    """From the column `learnt` of the statements that tell of models: four numbers, of which the first two may be missing."""
    requests, tokens, growth, age = text.split("/")
    since = time.monotonic() - float(age) / 1e6
    return Learnt(int(requests) if requests else None, int(tokens) if tokens else None, float(growth), since)


def model_states(rows: Iterable[Row]) -> dict[int, ModelState]:
    """The states by `id_ai_model`, from `model_states`."""
    return {
        row["id_ai_model"]: ModelState(
            bool(row["is_active"]),
            bool(row["is_stopped"]),
            bool(row["is_due"]),
            float(row["probe_seconds"] or 0),
            bool(row["is_wanted"]),
            model_columns(row),
        )
        for row in rows
    }


def variants(task: Task, states: Mapping[int, ModelState], busy: Collection[int], spent: Collection[int]) -> list[Task]:
    """The task, for each model of its chain that a claim may be for now: those that are due for a probe, then one that works.

    `busy` models take nothing now; `spent` ones have spent their day's budget and count as stopped.
    """
    found: list[Task] = []
    for each in task.chain:
        state = states.get(each)
        if state is None or not state.is_active or each in spent:
            continue
        if state.is_stopped:
            if state.is_due and state.is_wanted and each not in busy:
                found.append(replace(task, **state.columns, is_probe=True))
            continue
        if state.is_wanted and each not in busy:
            found.append(replace(task, **state.columns, is_probe=False))
        break
    return found


def foreseen(task: Task, states: Mapping[int, ModelState]) -> Task | None:
    """The task for the model that its next item will probably go to, for a preview; None where none is in use."""
    active = [each for each in task.chain if each in states and states[each].is_active]
    working = [each for each in active if not states[each].is_stopped]
    for each in (working or active)[:1]:
        return replace(task, **states[each].columns, is_probe=not working)
    return None


def successor(
    task: Task,
    refused: int,
    states: Mapping[int, ModelState],
    busy: Collection[int],
    spent: Collection[int],
    take_probe: Callable[[int], bool],
) -> Task | float:
    """The task for the model that takes an item which `refused` models of the chain are done with; or the seconds to put it off.

    `take_probe` says whether this claim may be the one to try a stopped model that is due.
    """
    soonest = LONGEST_PUT_OFF
    for each in _rest(task.chain, refused):
        state = states.get(each)
        if state is None or not state.is_active or each in spent:
            continue
        if state.is_stopped:
            if state.is_due and each not in busy and take_probe(each):
                return replace(task, **state.columns, is_probe=True)
            soonest = min(soonest, state.probe_seconds)
        elif each in busy:
            return BUSY_SECONDS
        else:
            return replace(task, **state.columns, is_probe=False)
    return max(SHORTEST_PUT_OFF, soonest)


def _rest(chain: Sequence[int], refused: int) -> Sequence[int]:
    return chain[refused:] or chain[-1:]  # somebody has made the chain shorter
