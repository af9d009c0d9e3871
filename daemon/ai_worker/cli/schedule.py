"""`schedule`: tasks that come again and again."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import Any

import click

from ai_worker import formats
from ai_worker.cli import context, order
from ai_worker.cli.money import Usd
from ai_worker.cli.queue_options import QueueName
from ai_worker.cli.status import visible
from ai_worker.cli.task_options import description_of, given, parameters_of
from ai_worker.cron import Cron
from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.models import DEFAULT_QUEUE, Lane, PersonalData
from ai_worker.planning import check, model_of
from ai_worker.rows import Layout, RowFile, format_of
from ai_worker.store.health import Health
from ai_worker.store.models import Models
from ai_worker.store.new_tasks import NewTask
from ai_worker.store.schedules import MOST_ITEMS, Missed, NewSchedule, Schedule, Schedules
from ai_worker.store.tasks import Tasks

SHOWN_TIMES = 5
EARLIEST, LATEST = datetime(2000, 1, 1), datetime(9000, 1, 1)  # noqa: DTZ001 -- in UTC, as the database keeps them
LONGEST_ITEMS = 4_000_000  # characters of schedule.items: they are read and written each time that it fires

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def schedule() -> None:
    """Tasks that come again and again, each time once, on whichever host a worker runs."""


@schedule.command()
@click.argument("name")
@click.option("--cron", required=True, metavar="EXPRESSION", help='Five fields, for example "0 2 * * *": every night at two.')
@click.option(
    "--tz", "zone", default="UTC", show_default=True, metavar="ZONE", help="The zone it goes by, for example Europe/Warsaw."
)
@click.option("--type", "type_name", required=True, help="What is done to each item.")
@click.option("--model", "model_name", help="The model that does it; may be left out when there is only one.")
@click.option("--description", default="", callback=given(description_of), help="The instruction for the model, in your words.")
@click.option(
    "--param", "params", multiple=True, metavar="KEY=VALUE", help="Parameter of the type; JSON where it can be. Repeatable."
)
@click.option("--priority", type=click.IntRange(-32767, 32767), default=0, show_default=True, help="Higher ones go first.")
@click.option("--queue", type=QueueName(), default=DEFAULT_QUEUE, show_default=True, help="The queue of its tasks.")
@click.option("--budget", type=Usd(), help="What each of its tasks may cost; when that is spent, the task is paused.")
@click.option(
    "--lane",
    callback=given(Lane),
    type=click.Choice([each.value for each in Lane]),
    default=Lane.ONLINE.value,
    show_default=True,
    help="flex: the provider's cheaper tier. batch: half price, answers within a day.",
)
@click.option(
    "--result-ttl",
    "result_seconds",
    callback=given(order.result_seconds),
    metavar="AGE",
    help="Results are cleared so long after their task's end: 7d, 12h.  [default: never]",
)
@click.option(
    "--personal-data",
    callback=given(PersonalData),
    type=click.Choice([each.value for each in PersonalData]),
    default=PersonalData.OFF.value,
    show_default=True,
    help="mask: placeholders go to the model, the values come back. block: rows with any are not sent.",
)
@click.option(
    "--missed",
    type=click.Choice([each.value for each in Missed]),
    default=Missed.ONCE.value,
    show_default=True,
    help="Times that no worker was there for: one task for all of them, a task for each, or none.",
)
@click.option(
    "--start",
    metavar="TIME",
    help="The first time is not before this: 2026-12-24T18:00, in ZONE unless it names one.  [default: now]",
)
@click.option("--text", "texts", multiple=True, help="An item; {date} and {time} stand for when it is due. Repeatable.")
@click.option("--items", "file", metavar="FILE", help="Items from a .csv, .jsonl or .txt, read once, now.")
@_JSON
def add(
    name: str,
    cron: str,
    zone: str,
    type_name: str,
    model_name: str | None,
    description: str,
    params: tuple[str, ...],
    priority: int,
    queue: str,
    budget: Decimal | None,
    lane: Lane,
    result_seconds: int | None,
    personal_data: PersonalData,
    missed: str,
    start: str | None,
    texts: tuple[str, ...],
    file: str | None,
    as_json: bool,
) -> None:
    """Make a schedule NAME. Each time that EXPRESSION comes, a worker makes a task with these items.

    \b
    ai-worker schedule add nightly --cron "0 2 * * *" --tz Europe/Warsaw \\
        --type summary --description "Sum the day up" --text "Orders of {date}"

    At changes to and from summer time it goes by Debian's cron: a time that is skipped fires right after the change, one that
    comes twice fires once; where minute or hour begin with `*`, what the clock on the wall shows counts.
    """
    settings = context.settings()
    if bool(texts) == bool(file):
        raise UsageError("say what its items are: --text, once or several times, or --items FILE")
    if blank := [text for text in texts if not text.strip()]:
        raise UsageError(f"--text {blank[0]!r}: an item must have a text")
    times = Cron(cron, zone)
    parameters = parameters_of(params)
    with context.database(settings) as db:
        model = model_of(Models(db), model_name)
        kind, _ = context.library(settings, db).named(type_name)
        task = NewTask(model.id_ai_model, type_name, description, parameters, priority, lane=lane, budget=budget, queue=queue)
        check(Models(db), task, [model], kind)
        items = [{"text": text} for text in texts] if file is None else _items(db, file)
        if sum(len(json.dumps(item)) for item in items) > LONGEST_ITEMS:
            raise UsageError(f"the items are longer than {LONGEST_ITEMS:,} characters; `ai-worker submit` takes more, from cron")
        new = NewSchedule(
            name,
            cron,
            zone,
            model.id_ai_model,
            type_name,
            items,
            Missed(missed),
            description,
            parameters,
            priority,
            queue,
            lane=lane,
            budget=budget,
            result_seconds=result_seconds,
            personal_data=personal_data,
            start=None if start is None else _moment(start, times),
        )
        first = Schedules(db).add(new)
    if as_json:
        context.emit_json({"schedule": name, "next_at": first, "items": len(items)})
    else:
        click.echo(f"schedule {visible(name)} fires first at {_both(first, times)}")


@schedule.command("list")
@_JSON
def list_(as_json: bool) -> None:
    """All schedules: when each fires next, in its zone and in UTC, and the last task that it made."""
    with context.database() as db:
        found = Schedules(db).all()
    if as_json:
        context.emit_json([_as_dict(each) for each in found])
        return
    if not found:
        click.echo("no schedule yet; `ai-worker schedule add NAME` makes one")
        return
    headings = ("SCHEDULE", "CRON", "ZONE", "NEXT", "NEXT (UTC)", "LAST TASK", "MISSED", "TYPE", "MODEL")
    context.emit_table(headings, [_row(each) for each in found], right=(5,))
    for each in found:
        if each.message:
            click.echo(f"{visible(each.name)}: {visible(each.message)}")


@schedule.command()
@click.argument("name")
@_JSON
def show(name: str, as_json: bool) -> None:
    """One schedule, with the next five times that it fires."""
    with context.database() as db:
        found = Schedules(db).get(name)
        now = Health(db).now()
    times = _times(found, now)
    if as_json:
        context.emit_json(_as_dict(found) | {"times": times})
        return
    state = "" if found.is_active else "  paused"
    click.echo(click.style(f"schedule {visible(found.name)}", bold=True) + f"  {found.cron} {found.time_zone}{state}")
    click.echo(f"  {'makes':<10} a task of type {found.task_type} by {visible(found.model)}, {_count(found.items)}")
    if found.description:
        click.echo(f"  {'for':<10} {visible(found.description[:200])}")
    if found.budget is not None:
        click.echo(f"  {'budget':<10} {formats.money(found.budget)} each")
    if found.lane is not Lane.ONLINE:
        click.echo(f"  {'lane':<10} {found.lane.value}")
    click.echo(f"  {'missed':<10} {found.missed.value}")
    if found.last_task is not None:
        click.echo(f"  {'last':<10} task {found.last_task}, due {formats.iso(found.last_due_at)}")
    if found.message:
        click.echo(f"  {'message':<10} {visible(found.message)}")
    for label, time in zip(("next", *[""] * SHOWN_TIMES), times, strict=False):
        click.echo(f"  {label:<10} {_both(time, Cron(found.cron, found.time_zone))}")


@schedule.command()
@click.argument("name")
def remove(name: str) -> None:
    """Take a schedule away. The tasks that it made stay."""
    with context.database() as db:
        Schedules(db).remove(name)
    click.echo(f"schedule {visible(name)} removed")


@schedule.command()
@click.argument("name")
def pause(name: str) -> None:
    """Let a schedule not fire until it is resumed."""
    with context.database() as db:
        Schedules(db).pause(name)
    click.echo(f"schedule {visible(name)} paused")


@schedule.command()
@click.argument("name")
def resume(name: str) -> None:
    """Let a schedule fire again, from now on; also one that could not fire and was put right."""
    with context.database() as db:
        schedules = Schedules(db)
        next_at = schedules.resume(name)
        found = schedules.get(name)
    click.echo(f"schedule {visible(name)} fires next at {_both(next_at, Cron(found.cron, found.time_zone))}")


def _items(db: Database, file: str) -> list[dict[str, Any]]:
    """The rows of a file, as `submit` reads them."""
    found = []
    with RowFile.open(file, Layout(format_of(file), packet=Tasks(db).packet())) as source:
        for row in source.rows():
            item: dict[str, Any] = {"text": row.text_original}
            if row.external_key is not None:
                item["external_key"] = row.external_key
            if row.context is not None:
                item["context"] = json.loads(row.context)
            if row.context_key is not None:
                item["context_key"] = row.context_key
            found.append(item)
            if len(found) > MOST_ITEMS:
                raise UsageError(f"{file} holds more than {MOST_ITEMS:,} rows; `ai-worker submit` takes more, from cron")
    return found


def _moment(text: str, times: Cron) -> datetime:
    """A time of the schedule's zone, unless it names its own, in UTC without a zone."""
    moment = None
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(text)
        moment = (found if found.tzinfo else found.replace(tzinfo=times.zone)).astimezone(UTC).replace(tzinfo=None)
    if moment is None or not EARLIEST <= moment <= LATEST:
        raise UsageError(f"--start {text!r} is not a time; write it as 2026-12-24T18:00 or 2026-12-24T18:00+01:00")
    return moment


def _times(each: Schedule, now: datetime) -> list[datetime]:
    """When it fires next, as far as that can be said."""
    if each.next_at is None or not each.is_active:
        return []
    try:
        later = Cron(each.cron, each.time_zone).times(max(each.next_at, now) if each.missed is not Missed.ALL else each.next_at)
        return [each.next_at, *islice(later, SHOWN_TIMES - 1)]
    except UsageError:  # a worker says so when it is due
        return [each.next_at]


def _both(moment: datetime | None, times: Cron) -> str:
    if moment is None:
        return "no time: it never comes"
    return f"{times.local(moment):%Y-%m-%d %H:%M %Z} ({formats.iso(moment)})"


def _local(each: Schedule) -> str | None:
    """The next time by the clock on the wall."""
    if each.next_at is None:
        return None
    try:
        return f"{Cron(each.cron, each.time_zone).local(each.next_at):%Y-%m-%d %H:%M}"
    except UsageError:
        return None


def _row(each: Schedule) -> tuple[object, ...]:
    last = each.last_task
    if not each.is_active:
        local, utc = "paused", None
    else:
        local, utc = _local(each) or "never", formats.iso(each.next_at)
    return (
        visible(each.name),
        each.cron,
        each.time_zone,
        local,
        utc,
        last,
        each.missed.value,
        each.task_type,
        visible(each.model),
    )


def _as_dict(each: Schedule) -> dict[str, Any]:
    return {
        "schedule": each.name,
        "cron": each.cron,
        "time_zone": each.time_zone,
        "missed": each.missed.value,
        "is_active": each.is_active,
        "next_at": each.next_at,
        "next_local": _local(each),
        "last_due_at": each.last_due_at,
        "last_task": each.last_task,
        "message": each.message,
        "task_type": each.task_type,
        "model": each.model,
        "description": each.description,
        "priority": each.priority,
        "queue": each.queue,
        "lane": each.lane.value,
        "budget": each.budget,
        "result_seconds": each.result_seconds,
        "personal_data": each.personal_data.value,
        "items": each.items,
    }


def _count(items: int) -> str:
    return "1 item" if items == 1 else f"{formats.number(items)} items"
