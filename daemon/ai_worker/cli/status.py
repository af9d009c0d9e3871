"""`status`, `watch`, `workers`: what is going on."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from decimal import Decimal

import click

from ai_worker import formats
from ai_worker.cli import changes, context, progress
from ai_worker.cli.pace import HEADINGS, Pace
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, UsageError
from ai_worker.models import DEFAULT_QUEUE, ItemStatus, Need, TaskStatus
from ai_worker.output.reports import as_dict, eta, worker_as_dict
from ai_worker.store.callbacks import Callbacks
from ai_worker.store.edits import edits_of
from ai_worker.store.reports import BatchReport, Dependency, ErrorGroup, Reports, StoppedModel, TaskReport, WorkerReport
from ai_worker.store.schedules import Schedules

# What stops a model (errors.ModelStopped and below), and what to do about it.
WHY_STOPPED = {
    "quota_exhausted": "the account's money or quota is spent: top it up",
    "access_denied": "its API key is wrong or lacks a permission: `ai-worker model set` takes another one",
    "model_unknown": "the provider knows no such model or endpoint: `ai-worker model set` changes it",
    "model_stopped": "the provider refuses an option of it: `ai-worker model set` changes it",
}

_ID = click.argument("id_task", metavar="[ID]", type=int, required=False)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_ID
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many tasks to list, newest first."
)
@click.option(
    "--changes",
    "with_changes",
    is_flag=True,
    help="Of one task: what its corrections changed, by kind, and the most edited items.",
)
@_JSON
def status(id_task: int | None, limit: int, with_changes: bool, as_json: bool) -> None:
    """What is going on: all tasks, or one with its numbers and its errors by kind."""
    if with_changes and id_task is None:
        raise UsageError("--changes wants the ID of a task")
    with context.database() as db:
        reports = Reports(db)
        if id_task is not None:
            task = reports.task(id_task)
            edits = edits_of(db, id_task) if with_changes else None
            if as_json:
                context.emit_json(as_dict(task) | ({"changes": changes.as_dict(edits)} if edits else {}))
            else:
                stopped = reports.stopped_models() if task.model_stopped else []
                _show_task(task, reports.batches(id_task), reports.workers(), stopped)
                for number, line in enumerate(changes.lines(edits) if edits else ()):
                    click.echo(f"  {'' if number else 'changes':<12} {visible(line)}")
            return
        tasks = reports.tasks(limit)
        if as_json:
            context.emit_json([as_dict(task) for task in tasks])
        else:
            _show_tasks(tasks)
            _show_stopped(reports.stopped_models())
            _show_given_up(db)


@click.command()
@_ID
@click.option("--interval", type=click.FloatRange(0.1), help="Seconds between two looks.  [default: 1 on a terminal, else 10]")
def watch(id_task: int | None, interval: float | None) -> int:
    """What is going on, live: one task until it ends, or all tasks until Ctrl-C.

    On a terminal the picture is drawn anew, elsewhere there is a line per interval. Of the models in use it shows the calls and
    tokens of the last minute against the limits (~ where they were learnt from the provider), whether they are stopped, and
    the money per hour and today. Exit code 3 says that items ended in ERROR, 1 that the task was cancelled.
    """
    on_terminal = sys.stdout.isatty()
    interval = interval or (1.0 if on_terminal else 10.0)
    with context.database(patience=60) as db:
        reports = Reports(db)
        try:
            if id_task is not None:
                return progress.follow(reports, id_task, interval=interval, to_stderr=False)
            pace = Pace()
            while True:
                _watch_all(reports, pace, on_terminal)
                time.sleep(interval)
        except KeyboardInterrupt:  # how a person ends it
            return EXIT_DONE


@click.command()
@click.option("--all", "with_ended", is_flag=True, help="Those that ended within the last day, too.")
@_JSON
def workers(with_ended: bool, as_json: bool) -> None:
    """Which workers are alive, and what they hold; which models are stopped, and why."""
    with context.database() as db:
        reports = Reports(db)
        found = reports.workers(with_ended=with_ended)
        stopped = reports.stopped_models()
    if as_json:
        context.emit_json([worker_as_dict(worker) for worker in found])
        return
    if found:
        headings = ("ID", "STATE", "HOST", "PID", "MODE", "IN FLIGHT", "DONE", "FAILED", "LAST SEEN")
        context.emit_table(headings, [_worker_row(worker) for worker in found], right=(0, 3, 5, 6, 7))
    else:
        click.echo("no worker is running; `ai-worker run` or `ai-worker daemon` starts one")
    _show_stopped(stopped)


def visible(text: str) -> str:
    """A text of somebody else's on one line of a terminal that it must not steer."""
    return "".join(char if char.isprintable() else " " for char in text)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _show_task(
    task: TaskReport, batches: Sequence[BatchReport], workers: Sequence[WorkerReport], stopped: Sequence[StoppedModel]
) -> None:
    click.echo(
        click.style(f"task {task.id_task}  {task.status.name}", bold=True) + f"  {task.task_type} by {visible(task.model)}"
    )
    for name, text in [*_numbers(task), *map(_batch, batches), *_moments(task)]:
        click.echo(f"  {name:<12} {text}")
    for title, wanted in (("failed", ItemStatus.ERROR), ("waiting", ItemStatus.DEFERRED)):
        groups = [group for group in task.errors if group.status is wanted]
        if groups:
            click.echo(f"  {title}")
            for group in groups:
                click.echo(f"    {_group(group)}")
    for hint in _hints(task, workers, stopped):
        click.echo(f"  → {hint}")


def _numbers(task: TaskReport) -> list[tuple[str, str]]:
    rows = [("items", _items(task))]
    if task.description:
        rows.insert(0, ("instruction", visible(task.description[:200])))
    if task.steps is not None:
        whose = "1 item" if task.steps.items == 1 else f"{formats.number(task.steps.items)} items"
        rows.append(("steps", f"{formats.number(task.steps.done)} of {formats.number(task.steps.total)}, of {whose} in progress"))
    if task.status_reason:
        rows.append(("reason", visible(task.status_reason)))
    if task.rate is not None:
        left = f", done in about {formats.duration(eta(task))}" if eta(task) is not None else ""
        rows.append(("rate", f"{task.rate:.1f} items/s{left}"))
    if task.started_at is not None:
        rows.append(("tokens", f"{formats.number(task.tokens_input)} in, {formats.number(task.tokens_output)} out"))
        rows.append(("cost", formats.money(task.cost)))
    if task.fallbacks:
        rows.append(("fallbacks", ", ".join(map(visible, task.fallbacks))))
    if task.budget is not None:
        reserved = f", {formats.money(task.reserved)} reserved for items in flight" if task.reserved else ""
        rows.append(("budget", f"{formats.money(task.cost or Decimal(0))} of {formats.money(task.budget)} spent{reserved}"))
    if task.queue != DEFAULT_QUEUE:
        rows.append(("queue", visible(task.queue)))
    if task.priority:
        rows.append(("priority", str(task.priority)))
    return rows + [("after", waits_for(each)) for each in task.after]


def waits_for(each: Dependency) -> str:
    """A task that another one comes after, on one line."""
    stands = "is not there any more" if each.status is None else each.status.name
    how = "success" if each.needs is Need.SUCCESS else "end"
    return f"task {each.id_task}, needs its {how}: {stands}, {'met' if each.is_met else 'not met'}"


def _batch(batch: BatchReport) -> tuple[str, str]:
    parts = [batch.state, f"{formats.number(batch.items)} items", batch.provider_batch_id, batch.message]
    return "batch", ", ".join(visible(part) for part in parts if part)


def _moments(task: TaskReport) -> list[tuple[str, str]]:
    moments = {
        "created": task.created_at,
        "scheduled": task.scheduled_at,
        "started": task.started_at,
        "finished": task.finished_at,
        "goes on": task.resume_at,
    }
    return [(name, formats.iso(moment) or "") for name, moment in moments.items() if moment is not None]


def _items(task: TaskReport) -> str:
    parts = [f"{formats.number(task.items[each])} {_WORDS[each]}" for each in _WORDS if task.items[each]]
    return f"{formats.number(task.total)}: {', '.join(parts)}" if parts else "none yet"


_WORDS = {
    ItemStatus.PROCESSED: "processed",
    ItemStatus.ERROR: "in error",
    ItemStatus.IN_PROGRESS: "in progress",
    ItemStatus.PENDING: "pending",
    ItemStatus.DEFERRED: "deferred",
    ItemStatus.CANCELLED: "cancelled",
}


def _group(group: ErrorGroup) -> str:
    due = f", next try in {formats.duration(max(0.0, group.due_seconds))}" if group.due_seconds is not None else ""
    example = f"; item {group.id_task_item}: {visible(group.message[:160])}" if group.message else ""
    return f"{formats.number(group.items)} × {group.kind}{due}{example}"


def _hints(task: TaskReport, workers: Sequence[WorkerReport], stopped: Sequence[StoppedModel]) -> list[str]:
    """Why nothing moves, or what can be done next."""
    hints = []
    if task.open and task.status is TaskStatus.PAUSED:
        more = (
            " --budget USD" if task.budget is not None and "budget" in (task.status_reason or "") and not task.resume_at else ""
        )
        if more and (unpriced := re.search(r"the price of model (.+) is not known", task.status_reason or "")):
            more = ""  # more money is no remedy
            hints.append(
                f"`ai-worker model set {shlex.quote(visible(unpriced[1]))} --price-input … --price-output …` says the price"
            )
        hints.append(f"`ai-worker resume {task.id_task}{more}` goes on")
    elif task.open and task.model_stopped:
        for each in stopped:
            if each.name == task.model:
                command = f"ai-worker model test {shlex.quote(visible(each.name))}"
                hints.append(f"model {visible(each.name)} is stopped: {_why_and_when(each)}; `{command}` tries it now")
    elif task.open and (unmet := [each for each in task.after if not each.is_met]):
        hints.append(f"waits for {', '.join(f'task {each.id_task}' for each in unmet)}")
        hints += [
            f"`ai-worker retry {each.id_task}` brings back what failed there" for each in unmet if each.status is TaskStatus.ERROR
        ]
    elif task.open and task.is_ahead:
        hints.append(f"starts at {formats.iso(task.scheduled_at)}")
    elif task.open and task.status is not TaskStatus.CANCELLED and not any(each.state in {"alive", "late"} for each in workers):
        hints.append(f"no worker is running; `ai-worker run --task {task.id_task}` starts one")
    if task.status is TaskStatus.CANCELLED:
        hints.append(f"`ai-worker resume {task.id_task}` goes on with what was cancelled")
    if task.items[ItemStatus.ERROR] and task.status is not TaskStatus.CANCELLED:
        hints.append(f"`ai-worker retry {task.id_task}` brings back what failed")
    if task.items[ItemStatus.PROCESSED]:
        hints.append(f"`ai-worker results {task.id_task}` prints the results")
    return hints


def _show_tasks(tasks: Sequence[TaskReport]) -> None:
    if not tasks:
        click.echo("no task yet; `ai-worker submit FILE` makes one")
        return
    # Columns that are there only when they have something to say.
    with_priority, with_start = any(task.priority for task in tasks), any(task.is_ahead for task in tasks)
    with_queue = any(task.queue != DEFAULT_QUEUE for task in tasks)
    headings = (
        *("ID", "STATUS", *["STARTS"] * with_start, "TYPE", "MODEL", "ITEMS", "DONE", "ERROR", "OPEN", "COST"),
        *(*["QUEUE"] * with_queue, *["PRIORITY"] * with_priority, "INSTRUCTION"),
    )
    rows = [
        (
            task.id_task,
            task.status.name,
            *[formats.iso(task.scheduled_at) if task.is_ahead else None] * with_start,
            task.task_type,
            visible(_shortened(task.model, 30)),
            formats.number(task.total),
            formats.number(task.records_processed),
            formats.number(task.records_failed),
            formats.number(task.open),
            None if task.cost is None else formats.money(task.cost),
            *[visible(task.queue)] * with_queue,
            *[task.priority or None] * with_priority,
            visible(_shortened(task.description, 40)),
        )
        for task in tasks
    ]
    numbers = {"ID", "ITEMS", "DONE", "ERROR", "OPEN", "COST", "PRIORITY"}
    context.emit_table(headings, rows, right=[column for column, heading in enumerate(headings) if heading in numbers])


def _show_stopped(models: Sequence[StoppedModel]) -> None:
    for model in models:
        click.echo(f"model {visible(model.name)} is stopped since {formats.iso(model.stopped_at)}: {_why_and_when(model)}")


def _show_given_up(db: Database) -> None:
    """What does not go on by itself: callbacks that were given up, schedules that cannot fire."""
    for each in Callbacks(db).given_up():
        what = f"the callback of group {visible(each.group)} was given up: {visible(each.reason or '')}"
        click.echo(f"{what}; `ai-worker group retry {shlex.quote(visible(each.group))}` sends it again")
    for broken in Schedules(db).broken():
        click.echo(f"schedule {visible(broken.name)} does not fire: {visible(broken.message)}")


def _why_and_when(model: StoppedModel) -> str:
    again = "at the next claim" if model.probe_seconds <= 0 else f"in {formats.duration(model.probe_seconds)}"
    return f"{WHY_STOPPED.get(model.kind, model.kind)} ({visible(model.reason)}); tried again {again}"


def _watch_all(reports: Reports, pace: Pace, on_terminal: bool) -> None:
    tasks = reports.tasks(20)
    pace.look(reports.models())
    if on_terminal:
        click.echo("\x1b[H\x1b[J", nl=False)
        _show_tasks(tasks)
        if rows := pace.rows():
            click.echo()
            context.emit_table(HEADINGS, [(visible(str(name)), *rest) for name, *rest in rows], right=range(2, len(HEADINGS)))
        _show_stopped(reports.stopped_models())
        return
    at_work = [task for task in tasks if not task.is_over]
    if not at_work:
        click.echo("no open task")
    for task in at_work:
        click.echo(progress.line(progress.Sample(task, task.rate)))
    for name, *rest in pace.rows():
        told = "  ".join(f"{value} {heading.lower()}" for heading, value in zip(HEADINGS[2:], rest[1:], strict=True) if value)
        click.echo(f"model {visible(str(name))}  {rest[0]}  {told}")


def _worker_row(worker: WorkerReport) -> tuple[object, ...]:
    return (
        worker.id_worker,
        worker.state,
        visible(worker.host),
        worker.pid,
        worker.mode,
        f"{worker.in_flight} of {worker.concurrency}",
        formats.number(worker.items_processed),
        formats.number(worker.items_failed),
        f"{formats.duration(worker.silent_seconds)} ago",
    )
