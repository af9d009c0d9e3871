"""`queue`: limits of queues and task types, and what waits in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.queue_options import QueueName
from ai_worker.cli.task_options import note
from ai_worker.errors import EXIT_DONE, UsageError
from ai_worker.store.limits import QueueLimit
from ai_worker.store.queues import Queues

LONGEST_TYPE = 50  # characters of queue_limit.task_type
LARGEST = 4_294_967_295  # of its other columns

_UNITS = {"s": 1, "m": 60, "h": 3600}


class _Limit(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.3, and we take 8.1
    """A whole number above zero, or a length of time in seconds; `none` takes the limit away, which is 0 here."""

    def __init__(self, *, is_time: bool = False) -> None:
        self.name = "TIME" if is_time else "N"
        self._units = _UNITS if is_time else {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        number, unit = (text[:-1], self._units[text[-1:]]) if text[-1:] in self._units else (text, 1)
        if text == "none":
            return 0
        if not (number.isascii() and number.isdigit() and int(number) * unit <= LARGEST):
            example = "30s, 5m, or 1h" if self._units else "a whole number"
            self.fail(f"{text!r} is no limit: give {example}; `none` takes it away", param, ctx)
        if not int(number):  # whoever means "nothing may begin" must not end up without a limit
            self.fail(f"{text!r} lets nothing through: `none` takes the limit away, `ai-worker pause` stops a task", param, ctx)
        if self._units and number == text:
            self.fail(f"{text!r} has no unit; write {text}s, {text}m or {text}h", param, ctx)
        return int(number) * unit


def _which(command: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option("--type", "task_type", default="", metavar="TYPE", help="Only tasks of this type.  [default: all]"),
        click.option("--any", "is_any", is_flag=True, help="All queues together, instead of a NAME."),
        click.argument("name", metavar="[NAME]", required=False),
    ):
        command = option(command)
    return command


@click.group()
def queue() -> None:
    """Limits of queues and task types, kept by the whole fleet, and what waits in each queue.

    Workers learn of a change within a few seconds.
    """


@queue.command("set")
@_which
@click.option("--per-minute", type=_Limit(), help="So many items begun in a minute.")
@click.option("--at-once", type=_Limit(), help="So many items in progress at a time.")
@click.option("--time-limit", type=_Limit(is_time=True), help="So long may one attempt take: 30s, 5m.")
def set_(
    name: str | None, is_any: bool, task_type: str, per_minute: int | None, at_once: int | None, time_limit: int | None
) -> int:
    """Set limits of the queue NAME (or `-` for all queues together), or of one task type in it.

    What is not named stays as it is; `none` takes a limit away. Limits of a queue, of a type, and of a type in a queue hold
    together: the strictest counts.
    """
    given = {"per_minute": per_minute, "at_once": at_once, "time_limit": time_limit}
    limits = {limit: value or None for limit, value in given.items() if value is not None}
    wanted = _queue(name, is_any)
    if not limits:
        raise UsageError("name a limit: --per-minute, --at-once or --time-limit")
    if len(task_type) > LONGEST_TYPE or not task_type.isascii():
        raise UsageError(f"--type {task_type!r} is no name of a task type")
    settings = context.settings()
    with context.database(settings) as db:
        known = context.library(settings, db, publish=False).names() if task_type else [task_type]
        found = Queues(db).set(wanted, task_type, limits)
    if task_type not in known:  # another host may know it
        note(f"nobody here knows a task type {task_type!r}; known ones: {', '.join(known)}")
    click.echo(f"{_subject(wanted, task_type)}: {_words(found) if found else 'no limits'}")
    return EXIT_DONE


@queue.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> int:
    """What is open in each queue, and all limits."""
    with context.database() as db:
        queues = Queues(db)
        limits, reports = queues.limits(), queues.reports()
    if as_json:
        context.emit_json(
            {
                "queues": [{name: getattr(each, name) for name in type(each).__slots__} for each in reports],
                "limits": [
                    {**each._asdict(), "queue": each.queue or None, "task_type": each.task_type or None} for each in limits
                ],
            }
        )
        return EXIT_DONE
    if reports:
        headings = ("QUEUE", "TASKS", "PENDING", "DEFERRED", "IN FLIGHT", "OLDEST")
        rows = [
            (
                each.queue,
                *map(formats.number, (each.tasks, each.pending, each.deferred, each.in_flight)),
                formats.duration(each.oldest_seconds),
            )
            for each in reports
        ]
        context.emit_table(headings, rows, right=range(1, 6))
    else:
        click.echo("nothing is open in any queue")
    for each in limits:
        click.echo(f"limit of {_subject(each.queue, each.task_type)}: {_words(each)}")
    return EXIT_DONE


@queue.command()
@_which
def remove(name: str | None, is_any: bool, task_type: str) -> int:
    """Take all limits of the queue NAME away, or of one task type in it; its tasks stay."""
    wanted = _queue(name, is_any)
    with context.database() as db:
        if not Queues(db).remove(wanted, task_type):
            raise UsageError(f"{_subject(wanted, task_type)} has no limits; `ai-worker queue list` shows those there are")
    click.echo(f"{_subject(wanted, task_type)}: no limits")
    return EXIT_DONE


def _queue(name: str | None, is_any: bool) -> str:
    """The column's value: empty for all queues."""
    is_any = is_any or name == "-"
    if is_any and name not in {None, "-"}:
        raise UsageError("name a queue, or --any, and not both")
    if is_any or name is None:
        if name is None and not is_any:
            raise UsageError("name a queue, or --any for all queues together")
        return ""
    return QueueName().convert(name, None, None)


def _subject(queue_name: str, task_type: str) -> str:
    whose = f"queue {queue_name}" if queue_name else "all queues together"
    return f"{whose}, type {task_type}" if task_type else whose


def _words(limit: QueueLimit) -> str:
    words = [
        *([f"{formats.number(limit.per_minute)} a minute"] * bool(limit.per_minute)),
        *([f"{formats.number(limit.at_once)} at once"] * bool(limit.at_once)),
        *([f"{limit.time_limit} s for an attempt"] * bool(limit.time_limit)),
    ]
    return ", ".join(words)
