"""What a commit does with outcomes of which it cannot take for granted that their items are as they were claimed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ai_worker.db import Row, Transaction
from ai_worker.models import Item, ItemStatus, Outcome, OutcomeKind
from ai_worker.store.ledger import LATE, MESSAGE_CHARACTERS, Changes, EndedTask, uuid_bytes


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a group of outcomes. `lost` ones came after somebody else's claim; their cost is on the books."""

    stored: list[Outcome] = field(default_factory=list)
    lost: list[Outcome] = field(default_factory=list)
    ended: list[EndedTask] = field(default_factory=list)


def one_by_one(tx: Transaction, changes: Changes, group: Sequence[Outcome], touched: Iterable[int]) -> Committed:
    """For a group with anything but results in it, or with items that are no longer as they were claimed."""
    ids = [outcome.item.id_task_item for outcome in group]
    rows = {row["id_task_item"]: row for row in tx.query("lock_committed", {"items": ids})}
    landed = _landed(tx, [each for each in group if not _is_held(each.item, rows.get(each.item.id_task_item))])
    words = _last_words(tx, [each for each in group if each.kind is OutcomeKind.FAILED and each.item.task.position])
    stored: list[Outcome] = []
    lost: list[Outcome] = []
    late: list[Outcome] = []
    for outcome in group:
        row = rows.get(outcome.item.id_task_item)
        if (known := landed.get(uuid_bytes(outcome.item.operation_uuid))) is not None:
            (stored if known else lost).append(outcome)
        elif row is not None and _fence_holds(outcome, row):
            changes.add(words.get(outcome.item.id_task_item, outcome), ItemStatus(row["status_id"]))
            stored.append(outcome)
        elif outcome.kind is OutcomeKind.RELEASED:
            changes.add_freed(outcome)
            stored.append(outcome)  # given back already, by an earlier run of this or by a rescue
        else:
            late.append(outcome)
    rescued = _rescued(tx, late)
    for outcome in late:
        is_there = outcome.item.id_task_item in rows
        # Where no rescue took the claim away, the server lost it, in a fail-over: the item was never charged for it.
        changes.add_lost(
            outcome, is_there=is_there, is_charged=not is_there or uuid_bytes(outcome.item.operation_uuid) in rescued
        )
    lost += late
    # Tasks are looked at also after an earlier run landed: that is cheap, and what it returned was lost with its answer.
    return Committed(stored, lost, changes.write(tx, touched))


def _last_words(tx: Transaction, refusals: Sequence[Outcome]) -> dict[int, Outcome]:
    """Refusals by the last model of a chain, by item, each with what the models before it had said of the item."""
    if not refusals:
        return {}
    said: dict[int, dict[int, str]] = {outcome.item.id_task_item: {} for outcome in refusals}
    for row in sorted(tx.query("last_words", {"items": list(said)}), key=lambda row: row["finished_at"]):
        said[row["id_task_item"]][row["id_ai_model"]] = f"{row['name']}: {row['error_message']}"
    completed = {}
    for outcome in refusals:
        task = outcome.item.task
        earlier = said[outcome.item.id_task_item]
        words = [outcome.error_message or "", *(earlier[each] for each in task.chain[: task.position] if each in earlier)]
        bounded = [word[: MESSAGE_CHARACTERS // len(words) - 10] for word in words]  # less "; before, "
        completed[outcome.item.id_task_item] = outcome._replace(error_message="; before, ".join(bounded))
    return completed


def _landed(tx: Transaction, outcomes: Sequence[Outcome]) -> dict[bytes, bool]:
    """Which of these attempts are on record already, and whether in time: an earlier commit landed and its answer was lost."""
    if not outcomes:
        return {}
    operations = [uuid_bytes(outcome.item.operation_uuid) for outcome in outcomes]
    rows = tx.query("landed_operations", {"operations": operations})
    return {row["operation_uuid"]: row["outcome"] != OutcomeKind.LOST and row["error_kind"] != LATE for row in rows}


def _rescued(tx: Transaction, outcomes: Sequence[Outcome]) -> set[bytes]:
    """Which of these attempts a rescue has put on record as lost."""
    if not outcomes:
        return set()
    operations = [uuid_bytes(outcome.item.operation_uuid) for outcome in outcomes]
    return {row["operation_uuid"] for row in tx.query("rescued_operations", {"operations": operations})}


def _is_held(item: Item, row: Row | None) -> bool:
    """Whether the row is in progress under this very claim: the plain case."""
    return row is not None and row["status_id"] == ItemStatus.IN_PROGRESS and row["claim_token"] == item.claim_token


def _fence_holds(outcome: Outcome, row: Row) -> bool:
    """Whether the item is still this attempt's: by token and attempt; of an item given back since, only a result is taken."""
    item = outcome.item
    if row["claim_token"] != item.claim_token or row["attempt"] != item.attempt:
        return False
    return bool(row["status_id"] == ItemStatus.IN_PROGRESS or outcome.kind is OutcomeKind.PROCESSED)
