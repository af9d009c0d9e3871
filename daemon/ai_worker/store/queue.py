"""How items move: claim, commit, release, rescue, and what keeps tasks' ends right. The protocol is in DB_Description.md.

Every method is one transaction and may be called from any thread. The fence of an item is its claim token and attempt: whoever
commits names both, and a new claim overwrites them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from ai_worker.counts import Metric
from ai_worker.db import Database, Transaction
from ai_worker.models import Filters, Item, ItemStatus, Outcome, OutcomeKind, Task, TaskStatus
from ai_worker.store.background import Backgrounds
from ai_worker.store.budgets import Estimator, SetAside
from ai_worker.store.cache import Cache
from ai_worker.store.callbacks import Callbacks
from ai_worker.store.chains import foreseen, model_states
from ai_worker.store.claims import PROBE_SECONDS, Claims, filter_columns, json_object, task_of_row
from ai_worker.store.committing import Committed, one_by_one
from ai_worker.store.expiry import Expiry
from ai_worker.store.files import to_folder
from ai_worker.store.groups import Groups
from ai_worker.store.ledger import (
    Changes,
    EndedTask,
    NotAsClaimed,
    give_back,
    settle,
)
from ai_worker.store.pace import Pace
from ai_worker.store.prompts import Prompts
from ai_worker.store.schedules import Schedules
from ai_worker.store.shares import Shares
from ai_worker.store.steps import Steps
from ai_worker.store.turns import Turns

RESCUE_ROWS: Final = 500  # in one step; the LIMIT of `items_of_worker` and `orphaned_items`


@dataclass(frozen=True, slots=True)
class Rescued:
    """What one step of a rescue did. `more` says that there may be more to do at once; `models` counts the items by model."""

    id_worker: int | None = None
    items: int = 0
    more: bool = False
    ended: list[EndedTask] = field(default_factory=list)
    models: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What filters leave open: pending items, `blocked` ones of them, that no model can take now, and deferred ones, with the
    seconds until the first of these is due. `paused` are tasks that wait for money, with the reason: those that this worker has
    come across, or was asked for. `held` are tasks with work that wait for others, and for whom: `task 7 (ERROR)`."""

    pending: int
    blocked: int
    deferred: int
    due_seconds: float | None
    paused: Mapping[int, str] = field(default_factory=dict)
    held: Mapping[int, str] = field(default_factory=dict)


class Due(NamedTuple):
    """What time has brought: a schedule, a closed group that may end, a callback to be sent, results to be cleared, the
    end of a worker's lease."""

    has_schedule: bool
    has_group: bool
    has_callback: bool
    has_expired: bool
    has_stale: bool


class Queue:
    """The verbs of a worker on the tables `task`, `task_item`, `task_attempt` and `worker`."""

    def __init__(self, db: Database) -> None:
        self.db = self._db = db
        self._claims = Claims(db)
        self._folder: Path | None = None
        self.limits: Final = self._claims.limits
        self.pace: Final = Pace(db)
        self.shares: Final = Shares(db)
        self.cache: Final = Cache(db)
        self.schedules: Final = Schedules(db)
        self.groups: Final = Groups(db)
        self.callbacks: Final = Callbacks(db)
        self.expiry: Final = Expiry(db)
        self.steps: Final = Steps(db)
        self.backgrounds: Final = Backgrounds(db)
        self.prompts: Final = Prompts(db)

    def counters(self) -> Mapping[Metric, float]:
        """What the database itself counts for this process: transactions run again, connections lost."""
        return {Metric.DEADLOCKS: self._db.conflicts, Metric.DATABASE_LOST: self._db.losses}

    def turns(self) -> Turns:
        """What idle workers share the waiting by, on a connection of its own."""
        return Turns(Database(self._db.url, patience=0.0, beside=self._db))

    # ----- the worker's own row

    def register(self, *, host: str, pid: int, version: str, mode: str, concurrency: int, lease_seconds: float) -> int:
        """A new worker row with a fresh lease; its id."""
        parameters = {"host": host, "pid": pid, "version": version, "mode": mode, "concurrency": concurrency}
        idle = {"in_flight": 0, "items_processed": 0, "items_failed": 0, **lease_column(lease_seconds)}
        written: list[int] = []  # survives a repeat of the transaction

        def work(tx: Transaction) -> int:
            me = {"host": host, "pid": pid}
            if not (tx.in_doubt and written and tx.execute("beat", {"id_worker": written[0], **me, **idle})):
                written[:] = [tx.insert("register_worker", {**parameters, **lease_column(lease_seconds)})]
            return written[0]

        return self._db.transaction(work)

    def beat(
        self, id_worker: int, *, host: str, pid: int, lease_seconds: float, in_flight: int, processed: int, failed: int
    ) -> bool:
        """The heartbeat, of the process that registered as `host` and `pid`.

        False when the lease is gone: others have begun to give this worker's items back, or the row is not there, or another's.
        """
        numbers = {"in_flight": in_flight, "items_processed": processed, "items_failed": failed}
        me = {"id_worker": id_worker, "host": host, "pid": pid}
        return bool(self._db.execute("beat", {**me, **numbers, **lease_column(lease_seconds)}))

    def draining(self, id_worker: int) -> None:
        """The worker claims nothing more, and finishes what it holds."""
        self._db.execute("worker_draining", {"id_worker": id_worker})

    def end_worker(self, id_worker: int, *, processed: int, failed: int) -> None:
        """The worker has stopped in good order and holds nothing."""
        self._db.execute("end_worker", {"id_worker": id_worker, "items_processed": processed, "items_failed": failed})

    # ----- claim

    def estimate_with(self, estimate: Estimator) -> None:
        """From now on money is set aside by this: USD that an item will cost, rather too high than too low; None: not known."""
        self._claims.estimate_with(estimate)

    def reserve_for_step(self, item: Item, need: Decimal | None) -> SetAside:
        """What `Steps.reserve` does; a task that is paused by it is one that this worker knows to wait for money."""
        found = self.steps.reserve(item, need)
        self._claims.note(found)
        return found

    def beside(self) -> Queue:
        """A queue that sets money aside as this one does, for claims that are not this one's to resolve when in doubt."""
        beside = Queue(self._db)
        beside._claims.share_money(self._claims)
        return beside

    def runnable(self, filters: Filters, busy_models: Iterable[int] = ()) -> list[Task]:
        """Tasks with pending items that may be worked on now, the best first; what only `busy_models` could take is left out.

        A task with fallbacks is there for the model that takes its items now, and before it for each one that is stopped and may
        be tried again.
        """
        return self._claims.runnable(filters, tuple(busy_models))

    def claim(
        self,
        id_worker: int,
        tasks: Sequence[Task],
        size: int,
        *,
        after: int = 0,
        id_task_item: int | None = None,
        single: bool | None = None,
        busy_models: Iterable[int] = (),
    ) -> list[Item]:
        """Takes up to `size` pending items of these tasks, all for one model, in the order of the key where it is one task.

        `after` is the watermark of the single task: items up to this key are passed over. An empty list means that nothing
        was there to take now, above the watermark. An item that the model has refused comes with its task for the next one of the
        chain; where that cannot take it now, or is one of `busy_models`, it is put off instead. Of a single task in the lane
        batch, `single` says whether items are wanted that came back from a batch, or only others.
        """
        return self._claims.claim(id_worker, tasks, size, after, id_task_item, single, tuple(busy_models))

    def claim_new(self, id_worker: int, id_task_item: int, filters: Filters, busy_models: Iterable[int] = ()) -> list[Item]:
        """Takes one item that has just come in, if these filters want it; also of a task that had ended, which then goes on.

        An empty list says nothing of other items, nor of a stopped model's, which is for `claim` to try.
        """
        return self._claims.claim_new(id_worker, id_task_item, filters, tuple(busy_models))

    def with_items_for_batches(self, tasks: Sequence[int]) -> set[int]:
        """Which of these tasks have pending items that did not come back from a batch."""
        return {row["id_task"] for row in self._db.query("tasks_with_items_for_batches", {"tasks": tasks})}

    # ----- commit

    def keep_files_in(self, folder: Path | None) -> None:
        """From now on files of results are kept in this folder; None: in the database."""
        self._folder = folder

    def commit(self, id_worker: int, outcomes: Sequence[Outcome], held_tasks: Iterable[int] = ()) -> Committed:
        """Writes a group of outcomes, their attempts and their tasks' counters in one transaction.

        An outcome whose item has been claimed by somebody else since is refused: only its tokens and cost are recorded, as a
        lost attempt. A result (not a failure) of an item that was given back and not yet claimed again still counts.
        `held_tasks` are those of which the caller holds more items: they cannot have ended yet, and are not looked at.
        """
        group = sorted(outcomes, key=lambda outcome: outcome.item.id_task_item)
        touched = {outcome.item.task.id_task for outcome in group}.difference(held_tasks)
        if not group:
            return Committed()
        in_folder = self._folder is not None
        if self._folder is not None and any(outcome.result and outcome.result.files for outcome in group):
            to_folder(self._folder, group)

        def at_once(tx: Transaction) -> Committed:
            changes = Changes(id_worker, files_in_folder=in_folder)
            for outcome in group:
                changes.add_result(outcome)
            return Committed(list(group), [], changes.write(tx, touched))

        committed = None
        if all(outcome.kind is OutcomeKind.PROCESSED for outcome in group):
            with suppress(NotAsClaimed):
                committed = self._db.transaction(at_once)
        if committed is None:
            committed = self._db.transaction(
                lambda tx: one_by_one(tx, Changes(id_worker, files_in_folder=in_folder), group, touched)
            )
        self._claims.paid(outcome.item.task.id_task for outcome in group)
        self.limits.freed(group)
        return committed

    # ----- rescue and upkeep

    def rescue(self) -> Rescued:
        """Gives back up to 500 items of one worker whose lease is over; the worker's row ends with its last item."""

        def work(tx: Transaction) -> Rescued:
            stale = tx.query("lock_stale_worker")
            if not stale:
                return Rescued()
            id_worker = stale[0]["id_worker"]
            tx.execute("mark_worker_lost", {"id_worker": id_worker})
            candidates = {row["id_task_item"]: id_worker for row in tx.query("items_of_worker", {"id_worker": id_worker})}
            models, ended = give_back(tx, candidates)
            count = sum(models.values())
            is_through = len(candidates) < RESCUE_ROWS
            if is_through:
                tx.execute("end_lost_worker", {"id_worker": id_worker})
            # Where all candidates are locked by others, trying again at once would be a loop without a pause.
            return Rescued(id_worker, count, is_through or count > 0, ended, models)

        return self._db.transaction(work)

    def rescue_orphans(self) -> Rescued:
        """Gives back up to 500 items whose owner has ended or is unknown: claims that landed after their worker was given up."""
        candidates = {row["id_task_item"]: row["id_worker"] for row in self._db.query("orphaned_items")}
        if not candidates:
            return Rescued()
        models, ended = self._db.transaction(lambda tx: give_back(tx, candidates))
        count = sum(models.values())
        return Rescued(None, count, count > 0 and len(candidates) == RESCUE_ROWS, ended, models)

    def uptime(self) -> float:
        """Seconds since the database server started."""
        return float(self._db.query("uptime")[0]["Value"])

    def promote_due(self) -> int:
        """Makes up to 500 deferred items pending whose time has come; how many."""

        def work(tx: Transaction) -> int:
            items = [row["id_task_item"] for row in tx.query("lock_due")]
            return tx.execute("promote_due", {"items": items}) if items else 0

        return self._db.transaction(work)

    def next_due(self) -> float | None:
        """Seconds until the next deferred item of any task is due; zero or less when one is; None when there is none."""
        seconds = self._db.query("next_due")[0]["seconds"]
        return None if seconds is None else float(seconds)

    def newest_item(self) -> int:
        """The highest item key there is."""
        newest: int = self._db.query("newest_item")[0]["id_task_item"]
        return newest

    def reopen_for_new_items(self, after: int) -> int:
        """Reopens finished tasks that have open items with keys above `after`; how many."""
        return self._reopen([row["id_task"] for row in self._db.query("finished_tasks_of_new_items", {"after": after})])

    def reopen_page(self, before: int | None = None) -> int | None:
        """Reopens finished tasks with open items among the next thousand below `before`; where to go on, None at the end."""
        page = self._db.query("finished_tasks_page", {"before": before or 2**63})
        self._reopen([row["id_task"] for row in page if row["is_open"]])
        return page[-1]["id_task"] if len(page) == 1000 else None

    def _reopen(self, tasks: list[int]) -> int:
        return self._db.execute("reopen_tasks", {"tasks": tasks}) if tasks else 0

    def end_forgotten(self) -> list[EndedTask]:
        """Ends tasks in progress that have no open item left because somebody deleted the last ones."""
        tasks = {row["id_task"] for row in self._db.query("open_tasks_without_open_items")}
        return self._db.transaction(lambda tx: settle(tx, {}, tasks, {})) if tasks else []

    def look_at_time(self) -> Due:
        """What is due besides items, in one look without a lock."""
        return Due(**{name: bool(value) for name, value in self._db.query("look_at_time")[0].items()})

    def resume_due(self) -> int:
        """Goes on with tasks that were paused for the day, when that is over; how many."""
        tasks = [row["id_task"] for row in self._db.query("tasks_to_resume")]
        return self._db.execute("resume_tasks", {"tasks": tasks}) if tasks else 0

    def take_probe(self, id_ai_model: int, seconds: int = PROBE_SECONDS) -> bool:
        """Whether this worker may try a stopped model with one item; nobody else may for the next `seconds`."""
        return bool(self._db.execute("take_probe", {"id_ai_model": id_ai_model, "seconds": seconds}))

    def leave_probe(self, id_ai_model: int) -> None:
        """This worker has found nothing to try the model with: whoever has something may, at once."""
        self._db.execute("leave_probe", {"id_ai_model": id_ai_model, "seconds": PROBE_SECONDS})

    # ----- looking ahead

    def waiting(self, filters: Filters, busy_models: Iterable[int] = ()) -> Waiting:
        """What is left open for these filters; `busy_models` take no items now, as stopped ones do."""
        spent = self._claims.spent_models
        models = {"busy_models": (0, *busy_models, *spent), "spent_models": (0, *spent)}
        row = self._db.query("waiting_items", {**filter_columns(filters), **models})[0]
        pending, blocked, deferred = (int(row[name] or 0) for name in ("pending", "blocked", "deferred"))
        due = row["due_seconds"]
        known = {*self._claims.limited, filters.id_task}
        unpaid = self._db.query("unpaid_tasks", filter_columns(filters))
        paused = {row["id_task"]: row["status_reason"] for row in unpaid if row["id_task"] in known}
        return Waiting(pending, blocked, deferred, None if due is None else float(due), paused, self._held(filters))

    def _held(self, filters: Filters) -> dict[int, str]:
        """Tasks that these filters want, and that wait for others: by task, for whom, and whether in vain."""
        held: dict[int, list[str]] = {}
        for row in self._db.query("held_tasks", filter_columns(filters)):
            lost = ", which has ended otherwise than needed" if row["is_lost"] else ""
            text = f"task {row['after_id_task']} ({TaskStatus(row['status_id']).name}{lost})"
            held.setdefault(row["id_task"], []).append(text)
        return {id_task: ", ".join(texts) for id_task, texts in held.items()}

    def others_at_work(self, id_worker: int, filters: Filters) -> list[float]:
        """For each other worker that holds items these filters want: the seconds since its last heartbeat."""
        rows = self._db.query("others_at_work", {"id_worker": id_worker, **filter_columns(filters)})
        return [float(row["silent_seconds"]) for row in rows]

    def has_task(self, id_task: int) -> bool:
        """Whether there is such a task."""
        return bool(self._db.query("task_states", {"tasks": [id_task]}))

    def task_of(self, id_task_item: int) -> tuple[int, ItemStatus] | None:
        """The task of an item, and the item's status; None when there is no such item."""
        rows = self._db.query("item_of", {"id_task_item": id_task_item})
        return (rows[0]["id_task"], ItemStatus(rows[0]["status_id"])) if rows else None

    def preview_tasks(self, filters: Filters) -> Iterator[Task]:
        """Every task that a run would come to, oldest first, streamed; `is_probe` are those whose models are stopped.

        Each is for the model that would take its items now.
        """
        states = None
        for row in self._db.pages("preview_tasks", filter_columns(filters), key="id_task", size=500):
            task: Task | None = task_of_row(row)
            if row["fallbacks"]:
                states = states or model_states(self._db.query("model_states", filter_columns(filters)))
                task = foreseen(task_of_row(row), states)
            if task is not None:
                yield task

    def preview(self, task: Task, id_task_item: int | None = None) -> Iterable[Item]:
        """The pending items of a task as a claim would see them, without a claim, streamed."""
        parameters = {"id_task": task.id_task, "id_task_item": id_task_item}
        for row in self._db.pages("preview_items", parameters, key="id_task_item", size=500):
            yield Item(
                id_task_item=row["id_task_item"],
                task=task,
                text_original=row["text_original"],
                context=json_object(row["context"]),
                attempt=row["attempt"] + 1,
                lost_count=row["lost_count"],
                claim_token=bytes(16),
                operation_uuid="",
                refused=row["refused"],
                is_single=bool(row["is_single"]),
                context_key=row["context_key"],
            )


def lease_column(seconds: float) -> dict[str, int]:
    """How long a worker's lease lasts, as the statements take it."""
    return {"lease_us": int(seconds * 1e6)}
