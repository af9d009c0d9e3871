"""Dry runs: what would be sent, roughly how many tokens that is, and what it would cost."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import cache
from itertools import islice

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.db import Database
from ai_worker.errors import AiWorkerError, ItemRejected, UsageError
from ai_worker.estimate import Estimate
from ai_worker.library import KindOf, Library
from ai_worker.models import Filters, Item, Model, Prompt, Usage
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.text import harmless

PREVIEWED_PROMPTS = 10


def preview(db: Database, library: Library, filters: Filters, max_items: int | None, *, as_json: bool) -> None:
    """Shows what a run would send, task by task; the first prompts in full, of the others their sums. Reads only.

    Items whose model is stopped are in it: they are sent as soon as the model answers again. What waits for a time, or for
    somebody to resume it, is not. `max_items` bounds what is looked at, and shows all of that.
    """
    queue = Queue(db)
    model_of = cache(Models(db).get)
    items = ((item, model_of(item.task.id_ai_model)) for item in islice(_items(queue, filters), max_items))
    show(items, max_items or PREVIEWED_PROMPTS, library.kind, as_json=as_json)


def show(items: Iterable[tuple[Item, Model]], shown: int, kind_of: KindOf, *, as_json: bool) -> Estimate:
    """Prints the first `shown` prompts, and the sums of all."""
    total = Estimate(kind_of)
    for item, model in items:
        try:
            prompt, usage, cost = total.add(item, model)
        except (ItemRejected, UsageError) as error:
            if total.items <= shown:
                _show_rejected(item, error, as_json)
        else:
            if total.items <= shown:
                _show(item, model, prompt, usage, cost, as_json)
    total.finish()
    if as_json:
        _emit_total(total)
    else:
        _show_total(total, shown)
    return total


def _items(queue: Queue, filters: Filters) -> Iterator[Item]:
    for task in queue.preview_tasks(filters):
        yield from queue.preview(task, filters.id_task_item)


def _say(text: str) -> None:
    """Prints texts of rows and people: as they are to a file or a pipe, unable to steer it to a terminal."""
    # click would take colours out of what is piped; a prompt's are the prompt's.
    click.echo(harmless(text) if sys.stdout.isatty() else text, color=True)


def _show(item: Item, model: Model, prompt: Prompt, usage: Usage, cost: Decimal | None, as_json: bool) -> None:
    if as_json:
        place = {"id_task": item.task.id_task, "id_task_item": item.id_task_item, "model": model.name}
        numbers = {"tokens_input": usage.tokens_input, "tokens_output": usage.tokens_output}
        context.emit_json({**place, "system": prompt.system, "user": prompt.user, **numbers, "cost": cost})
        return
    _say(f"--- {_place(item)}, model {model.name}")
    _say(f"[system]\n{prompt.system}\n[user]\n{prompt.user}")
    _say(f"[about {usage.tokens_input} tokens in, {usage.tokens_output} out, {formats.money(cost)}]\n")


def _show_rejected(item: Item, error: AiWorkerError, as_json: bool) -> None:
    if as_json:
        context.emit_json({"id_task": item.task.id_task, "id_task_item": item.id_task_item, "error": str(error)})
    else:
        _say(f"--- {_place(item)}: would end in ERROR: {error}\n")


def _place(item: Item) -> str:
    """The item's name; of one that is not stored yet, which row of its file it is."""
    return f"task {item.task.id_task}, item {item.id_task_item}" if item.task.id_task else f"row {item.id_task_item}"


def _emit_total(total: Estimate) -> None:
    numbers = {"tokens_input": total.usage.tokens_input, "tokens_output": total.usage.tokens_output}
    counts = {"items": total.items, "calls": total.calls, "twins": total.twins}
    stopped = {"stopped_models": sorted(total.stopped)}
    context.emit_json({"dry_run": True, **counts, **numbers, "cost": total.known_cost, **stopped})


def _show_total(total: Estimate, shown: int) -> None:
    if shown and total.items > shown:
        _say(f"({total.items - shown} more prompts are not shown)")
    for name, count in sorted(total.stopped.items()):
        _say(f"model {name} is stopped: {count} of these items wait for it; `ai-worker model test {name}` tries it")
    for name in sorted(total.unpriced):
        _say(f"the price of model {name} is not known: `ai-worker model set {name} --price-input … --price-output …`")
    if total.twins:
        _say(f"{formats.number(total.twins)} of the items are the same work as others and need no call of their own")
    tokens = f"{formats.number(total.usage.tokens_input)} tokens in and {formats.number(total.usage.tokens_output)} out"
    is_packed = total.calls + total.twins + total.rejected < total.items
    calls = "" if not is_packed else f" in {formats.number(total.calls)} calls"
    cost = formats.money(total.known_cost)
    _say(f"dry run: {total.items} items{calls}, about {tokens}, cost about {cost}; nothing was sent or written")
