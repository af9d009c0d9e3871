"""`retry`, `pause`, `resume`, `cancel`, `priority`: what a person does to a task that is there."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.money import Usd
from ai_worker.errors import UsageError
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store.reports import Reports
from ai_worker.store.tasks import Change, Tasks

_ID = click.argument("id_task", metavar="ID", type=int)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print what changed as JSON.")


@click.command()
@_ID
@click.option("--item", "id_task_item", type=int, help="Only this item.")
@click.option("--kind", metavar="KIND", help="Only those that failed for this kind of reason, as `status ID` names them.")
@_JSON
def retry(id_task: int, id_task_item: int | None, kind: str | None, as_json: bool) -> None:
    """Bring back items that ended in ERROR, with their attempts counted anew.

    A task that had ended goes on.
    """
    if id_task_item is not None and kind is not None:
        raise UsageError("--item and --kind: give one of them")
    with context.database() as db:
        items = Tasks(db).retry(id_task, id_task_item, kind=kind)
        after = Reports(db).task(id_task).status
    nothing = "no item is in ERROR" if kind is None else f"no item is in ERROR for {kind!r}"
    _tell(id_task, after, items, as_json, f"{_items(items)} brought back, now {after.name}" if items else nothing)


@click.command()
@_ID
@_JSON
def pause(id_task: int, as_json: bool) -> None:
    """Stop claiming items of a task; calls in flight are finished and stored."""
    change = _change(lambda tasks: tasks.pause(id_task))
    _tell(id_task, change.after, 0, as_json, "was paused already" if change.before is change.after else "paused")


@click.command()
@_ID
@click.option("--budget", type=Usd(), help="What it may cost from now on, with what it has cost so far.")
@_JSON
def resume(id_task: int, budget: Decimal | None, as_json: bool) -> None:
    """Go on with a paused task, or with a cancelled one and its cancelled items."""
    change = _change(lambda tasks: tasks.resume(id_task, budget))
    text = "was not paused" if change.before not in {TaskStatus.PAUSED, TaskStatus.CANCELLED} else "resumed"
    if change.items:
        text += f" with {_items(change.items)}"
    if change.before is not change.after:
        text += f", now {change.after.name}"
    _tell(id_task, change.after, change.items, as_json, text)


@click.command()
@_ID
@_JSON
def cancel(id_task: int, as_json: bool) -> None:
    """End a task: what waits is cancelled; results of calls in flight are still stored."""
    with context.database() as db:
        change = Tasks(db).cancel(id_task)
        in_flight = Reports(db).task(id_task).items[ItemStatus.IN_PROGRESS]
    text = (
        "was cancelled already"
        if change.before is change.after and not change.items
        else f"cancelled, with {_items(change.items)}"
    )
    if in_flight:
        text += f"; {_items(in_flight)} in flight will still be stored"
    _tell(id_task, change.after, change.items, as_json, text)


@click.command(context_settings={"ignore_unknown_options": True})  # a negative number is no option
@_ID
@click.argument("number", metavar="N", type=click.IntRange(-32767, 32767))
@_JSON
def priority(id_task: int, number: int, as_json: bool) -> None:
    """Change a task's priority: higher ones go first, 0 is the default."""
    with context.database() as db:
        Tasks(db).set_priority(id_task, number)
    if as_json:
        context.emit_json({"id_task": id_task, "priority": number})
    else:
        click.echo(f"task {id_task}: priority {number}")


def _change(verb: Callable[[Tasks], Change]) -> Change:
    with context.database() as db:
        return verb(Tasks(db))


def _tell(id_task: int, after: TaskStatus, items: int, as_json: bool, text: str) -> None:
    if as_json:
        context.emit_json({"id_task": id_task, "status": after.name, "items": items})
    else:
        click.echo(f"task {id_task}: {text}")


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{formats.number(count)} items"
