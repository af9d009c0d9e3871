"""The options of the commands that make a task, `submit` and `import`: one list of them, read in one place.

A new option is a line of `_OPTIONS`, a field of `TaskOptions` of the same name, and its use in `TaskOptions.plan`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click

from ai_worker.cli import order
from ai_worker.cli.money import Usd
from ai_worker.cli.queue_options import QueueName
from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.library import Library
from ai_worker.models import DEFAULT_QUEUE, Lane, Model, Need, PersonalData
from ai_worker.planning import LONGEST_DESCRIPTION, LONGEST_SUBMIT_KEY, Wish, parameter
from ai_worker.store.groups import Groups
from ai_worker.store.models import Models
from ai_worker.store.new_tasks import NewTask


def _age(text: str) -> int:
    return order.seconds_of(text, "--cache-age", ", or 0 for no answers from before")


def _moment(text: str) -> datetime:
    """A time of day of the caller's, in UTC without a zone, as the database keeps it."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise UsageError(f"--at {text!r} is not a time; write it as 2026-12-24T18:00 or 2026-12-24T18:00+01:00") from None


def parameters_of(pairs: tuple[str, ...]) -> dict[str, Any]:
    """What `--param` gives, by name."""
    return dict(map(parameter, pairs))


def description_of(text: str) -> str:
    if len(text.encode("utf-8", "replace")) > LONGEST_DESCRIPTION:
        raise UsageError(f"--description is longer than {LONGEST_DESCRIPTION:,} bytes")
    return text


def _key(text: str) -> str:
    if not 0 < len(text) <= LONGEST_SUBMIT_KEY:
        raise UsageError(f"--key must have 1 to {LONGEST_SUBMIT_KEY} characters")
    return text


def given(read: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """What click calls to turn an option's text into its value; one that was not given stays None."""
    return lambda _context, _parameter, value: None if value is None else read(value)


_OPTIONS = (
    click.option("--type", "type_name", default="correction", show_default=True, help="What is done to each row."),
    click.option("--model", "model_name", help="The model that does it; may be left out when there is only one."),
    click.option(
        "--description", default="", callback=given(description_of), help="The instruction for the model, in your words."
    ),
    click.option(
        "--param",
        "parameters",
        multiple=True,
        callback=given(parameters_of),
        metavar="KEY=VALUE",
        help="Parameter of the type; JSON where it can be. Repeatable.",
    ),
    click.option(
        "--queue", type=QueueName(), default=DEFAULT_QUEUE, show_default=True, help="Which workers take it: see `run --queue`."
    ),
    click.option("--priority", type=click.IntRange(-32767, 32767), default=0, show_default=True, help="Higher ones go first."),
    click.option(
        "--at",
        "scheduled_at",
        callback=given(_moment),
        metavar="TIME",
        help="Not before this time: 2026-12-24T18:00, local unless it names a zone.",
    ),
    click.option(
        "--after",
        multiple=True,
        callback=given(order.after),
        metavar="ID",
        help="Not before task ID has succeeded; ID:end: has ended, in whatever way. Repeatable.",
    ),
    click.option("--group", metavar="NAME", help="The open group that it joins; see `ai-worker group`."),
    click.option(
        "--result-ttl",
        "result_seconds",
        callback=given(order.result_seconds),
        metavar="AGE",
        help="Results are cleared so long after its end: 7d, 12h.  [default: never]",
    ),
    click.option(
        "--personal-data",
        callback=given(PersonalData),
        type=click.Choice([each.value for each in PersonalData]),
        default=PersonalData.OFF.value,
        show_default=True,
        help="mask: placeholders go to the model, the values come back. block: rows with any are not sent.",
    ),
    click.option(
        "--max-attempts", type=click.IntRange(1, 255), default=3, show_default=True, help="Per row, before it is set aside."
    ),
    click.option(
        "--fallback",
        "fallbacks",
        multiple=True,
        metavar="MODEL",
        help="Next when the ones before are stopped or refuse. Repeatable.",
    ),
    click.option("--budget", type=Usd(), help="What it may cost; when that is spent, the task is paused."),
    click.option(
        "--lane",
        callback=given(Lane),
        type=click.Choice(["online", "flex", "batch"]),
        default="online",
        show_default=True,
        help="flex: the provider's cheaper tier. batch: half price, answers within a day.",
    ),
    click.option(
        "--pack", type=click.IntRange(1, 100), default=1, show_default=True, help="Up to so many short rows in one call."
    ),
    click.option(
        "--cache-age",
        "cache_seconds",
        callback=given(_age),
        metavar="AGE",
        default="30d",
        show_default=True,
        help="How old an earlier answer to the same work may be: 12h, 30d, or 0 for none.",
    ),
    click.option("--key", callback=given(_key), help="Makes it safe to repeat: the same key never makes a second task."),
)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What was given for the task, as the command line has it."""

    type_name: str
    model_name: str | None
    description: str
    parameters: dict[str, Any]
    queue: str
    priority: int
    scheduled_at: datetime | None
    after: dict[int, Need]
    group: str | None
    result_seconds: int | None
    personal_data: PersonalData
    max_attempts: int
    fallbacks: tuple[str, ...]
    budget: Decimal | None
    lane: Lane
    pack: int
    cache_seconds: int
    key: str | None

    def plan(self, db: Database, library: Library) -> tuple[NewTask, Model]:
        """The task to be made, and its first model. Raises UsageError for what is wrong, or could only end badly."""
        wish = Wish(**{each.name: getattr(self, each.name) for each in fields(self)})
        task, model = wish.task(library, Models(db), Groups(db))
        if task.lane is Lane.BATCH and task.pack > 1:
            note("batches do not pack: --pack changes nothing")
        return task, model


def task_options(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command the options of a task; it gets them as one argument, `options`."""

    @functools.wraps(command)
    def with_options(**given: Any) -> int:
        own = {each.name: given.pop(each.name) for each in fields(TaskOptions)}
        return command(options=TaskOptions(**own), **given)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


def warn_of_stopped(model: Model) -> None:
    """Says that the items will wait, when they will."""
    if model.stopped_at is not None:
        note(f"model {model.name} is stopped ({model.stopped_kind}: {model.stopped_reason}); the items wait for it")


def note(text: str) -> None:
    """A word to the caller on standard error."""
    click.echo(f"note: {text}", err=True)
