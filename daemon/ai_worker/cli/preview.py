"""The dry run: what a run would send, roughly how many tokens that is, and what it would cost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from itertools import islice

import click

from ai_worker import prices
from ai_worker.cli import context
from ai_worker.db import Database
from ai_worker.errors import AiWorkerError, ItemRejected, UsageError
from ai_worker.models import Filters, Item, Model, Prompt, Usage
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.task_types import task_type
from ai_worker.text import estimate_tokens, harmless

PREVIEWED_PROMPTS = 10


@dataclass(slots=True)
class _Sum:
    """What the items came to so far."""

    items: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Decimal = Decimal(0)
    unpriced: set[str] = field(default_factory=set)  # models
    stopped: Counter[str] = field(default_factory=Counter)  # items by model

    def add(self, model: Model, usage: Usage, cost: Decimal | None) -> None:
        self.usage += usage
        if cost is None:
            self.unpriced.add(model.name)
        else:
            self.cost += cost

    @property
    def known_cost(self) -> Decimal | None:
        return None if self.unpriced else self.cost


def preview(db: Database, filters: Filters, max_items: int | None, *, as_json: bool) -> None:
    """Shows what a run would send, task by task; the first prompts in full, of the others their sums. Reads only.

    Items whose model is stopped are in it: they are sent as soon as the model answers again. What waits for a time, or for
    somebody to resume it, is not. `max_items` bounds what is looked at, and shows all of that.
    """
    queue = Queue(db)
    model_of = cache(Models(db).get)
    shown = max_items or PREVIEWED_PROMPTS
    total = _Sum()
    for item in islice(_items(queue, filters), max_items):
        model = model_of(item.task.id_ai_model)
        total.items += 1
        if item.task.is_probe:
            total.stopped[model.name] += 1
        try:
            prompt = task_type(item.task.task_type).prompt(item)
        except (ItemRejected, UsageError) as error:
            if total.items <= shown:
                _show_rejected(item, error, as_json)
            continue
        usage = Usage(
            estimate_tokens(prompt.system) + estimate_tokens(prompt.user),
            prompt.tokens_output_expected or estimate_tokens(item.text_original),
        )
        cost = prices.cost(model, usage)
        total.add(model, usage, cost)
        if total.items <= shown:
            _show(item, model, prompt, usage, cost, as_json)
    if as_json:
        _emit_total(total)
    else:
        _show_total(total, shown)


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
    _say(f"--- task {item.task.id_task}, item {item.id_task_item}, model {model.name}")
    _say(f"[system]\n{prompt.system}\n[user]\n{prompt.user}")
    _say(f"[about {usage.tokens_input} tokens in, {usage.tokens_output} out, {context.money(cost)}]\n")


def _show_rejected(item: Item, error: AiWorkerError, as_json: bool) -> None:
    if as_json:
        context.emit_json({"id_task": item.task.id_task, "id_task_item": item.id_task_item, "error": str(error)})
    else:
        _say(f"--- task {item.task.id_task}, item {item.id_task_item}: would end in ERROR: {error}\n")


def _emit_total(total: _Sum) -> None:
    numbers = {"tokens_input": total.usage.tokens_input, "tokens_output": total.usage.tokens_output}
    stopped = {"stopped_models": sorted(total.stopped)}
    context.emit_json({"dry_run": True, "items": total.items, **numbers, "cost": total.known_cost, **stopped})


def _show_total(total: _Sum, shown: int) -> None:
    if total.items > shown:
        _say(f"({total.items - shown} more prompts are not shown; --max-item N shows N)")
    for name, count in sorted(total.stopped.items()):
        _say(f"model {name} is stopped: {count} of these items wait for it; `ai-worker model test {name}` tries it")
    for name in sorted(total.unpriced):
        _say(f"the price of model {name} is not known: `ai-worker model set {name} --price-input … --price-output …`")
    tokens = f"{context.number(total.usage.tokens_input)} tokens in and {context.number(total.usage.tokens_output)} out"
    cost = context.money(total.known_cost)
    _say(f"dry run: {total.items} items, about {tokens}, cost about {cost}; nothing was sent or written")
