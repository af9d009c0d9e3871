"""`run` and `daemon`: the worker, put together from the settings."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from ai_worker import formats, notify
from ai_worker.cli import context
from ai_worker.cli.preview import preview
from ai_worker.cli.queue_options import WeightedQueue, distinct
from ai_worker.cli.reload import Reload
from ai_worker.config import Settings
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, EXIT_FAILED, EXIT_ITEMS_FAILED, ConfigurationError, UsageError
from ai_worker.log import Log
from ai_worker.models import Filters, ItemStatus, QueueShare
from ai_worker.store.batches import Batches
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.worker import Summary, Worker, WorkerOptions, runtime, tracing

HELD_SHOWN: Final = 5  # tasks that wait for others


def process(
    settings: Settings,
    db: Database,
    *,
    filters: Filters,
    forever: bool = False,
    max_items: int | None = None,
    concurrency: int | None = None,
    metrics_port: int | None = None,
    on_progress: Callable[[Summary], None] = lambda _: None,
    queue: Queue | None = None,
) -> Summary:
    """Runs one worker in this thread until it is done (`run`) or told to stop (`daemon`). `queue`: other verbs than the usual."""
    queue = queue or Queue(db)
    queue.keep_files_in(_files_folder(settings))
    ring = context.keyring(settings)
    traces = tracing.begin(settings.traces, db.url.database, Log())
    worker = Worker(
        queue,
        Models(db),
        ring.decrypt,
        filters=filters,
        options=WorkerOptions(
            forever=forever,
            concurrency=concurrency or settings.concurrency,
            max_items=max_items,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_seconds,
            request_timeout=settings.request_timeout_seconds,
            name=settings.worker_name,
            prompt_folder=settings.prompt_folder,
            names_file=settings.personal_names_file,
            metrics_port=settings.metrics_port if metrics_port is None else metrics_port,
            metrics_host=settings.metrics_host,
        ),
        give_up=db.give_up,
        on_progress=on_progress,
        open_secret=ring.decrypt_group,
        reload=Reload(settings, concurrency) if forever else None,
        tracing=traces,
    )
    try:
        return runtime.run(worker.run())
    finally:
        traces.close(min(tracing.FLUSH_SECONDS, settings.drain_seconds))


def _files_folder(settings: Settings) -> Path | None:
    """The folder for pictures. Raises ConfigurationError where it is not there: results would be kept in hand until it is."""
    folder = settings.files_folder
    if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigurationError(f"AI_WORKER_FILES_FOLDER is {folder}, which is no folder that this user may write to")
    return folder


def _filter_options(command: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option(
            "--queue",
            "queues",
            type=WeightedQueue(),
            multiple=True,
            callback=distinct,
            metavar="NAME[:WEIGHT]",
            help="Only tasks of this queue; may be repeated: while several have work, slots are shared by weight.",
        ),
        click.option("--model", "models", multiple=True, metavar="NAME", help="Only tasks of this model; may be repeated."),
        click.option("--type", "task_types", multiple=True, metavar="TYPE", help="Only tasks of this type; may be repeated."),
        click.option("--concurrency", type=click.IntRange(1, 2000), help="Model calls in flight.  [AI_WORKER_CONCURRENCY, 50]"),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            help="Tell Prometheus of this worker at this port, 0 for any.  [AI_WORKER_METRICS_PORT, none]",
        ),
        click.option("--max-item", "max_items", type=click.IntRange(1), help="Stop after so many items."),
        click.option("--task-item", "id_task_item", type=click.IntRange(1), metavar="ID", help="Only this item."),
        click.option("--task", "id_task", type=click.IntRange(1), metavar="ID", help="Only this task."),
    ):
        command = option(command)
    return command


@click.command()
@_filter_options
@click.option("--dry-run", is_flag=True, help="Show the prompts, with estimated tokens and cost; send and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.option("--request", type=click.IntRange(1), hidden=True, help="What was asked for over HTTP under this number.")
def run(
    id_task: int | None,
    id_task_item: int | None,
    max_items: int | None,
    concurrency: int | None,
    metrics_port: int | None,
    task_types: tuple[str, ...],
    models: tuple[str, ...],
    queues: tuple[QueueShare, ...],
    dry_run: bool,
    as_json: bool,
    request: int | None,
) -> int:
    """Process what is there, the oldest task of the highest priority first, and exit when nothing is left.

    Items that wait for a retry due within a minute are waited for; later ones stay DEFERRED for the next run. Any number of
    runs and daemons may work at the same time. A task that waits for others (`submit --after`) is done when these
    have ended in this run; otherwise it is named and left. Exit code 3: done, but some items ended in ERROR; 1: items wait for a
    model that has stopped, or a task for a larger budget.
    """
    if request is not None:
        from ai_worker.cli.requested import run_request

        return run_request(request, as_json=as_json)
    settings = context.settings()
    with context.database(settings) as db:
        filters = checked_filters(settings, db, id_task, id_task_item, task_types, models, queues)
        if dry_run:
            preview(db, context.library(settings, db, publish=False), filters, max_items, as_json=as_json)
            return EXIT_DONE
        if filters.id_task_item is not None and not is_claimable(db, filters.id_task_item):
            return EXIT_DONE
        with _Progress(db, filters) as progress:
            summary = process(
                settings,
                db,
                filters=filters,
                max_items=max_items,
                concurrency=concurrency,
                metrics_port=metrics_port,
                on_progress=progress.show,
            )
        left = Batches(Queue(db)).open(filters).batches
    return report(summary, left, as_json)


@click.command()
@_filter_options
def daemon(
    id_task: int | None,
    id_task_item: int | None,
    max_items: int | None,
    concurrency: int | None,
    metrics_port: int | None,
    task_types: tuple[str, ...],
    models: tuple[str, ...],
    queues: tuple[QueueShare, ...],
) -> int:
    """Process what comes, for ever: for systemd, NSSM, or a terminal.

    SIGTERM, Ctrl-C or Ctrl-Break: claims nothing more, finishes what it can within AI_WORKER_DRAIN_SECONDS, gives the rest back
    uncharged, exits 0. A second one stops at once. SIGHUP reads the settings anew.

    Under systemd (Type=notify) it is ready after its first look for work, waits for a database that is away, feeds the watchdog
    while it gets on, and asks for the time that a drain takes.
    """
    settings = context.settings()
    if sys.__stderr__ is not None:
        # A watchdog ends us by SIGABRT: the stack says what hung. The loop's alone: threads that run are not safe to read.
        faulthandler.enable(sys.__stderr__, all_threads=False)
    try:
        with _connected(settings) as db:
            filters = checked_filters(settings, db, id_task, id_task_item, task_types, models, queues)
            db.patience = float("inf")  # once begun, a daemon outlives any outage of the database
            process(
                settings,
                db,
                filters=filters,
                forever=True,
                max_items=max_items,
                concurrency=concurrency,
                metrics_port=metrics_port,
            )
    except KeyboardInterrupt:
        pass  # told to stop before the worker began, or after its end: it holds nothing
    return EXIT_DONE


@contextmanager
def _connected(settings: Settings) -> Iterator[Database]:
    """The database. A service waits for it, and has its manager know; otherwise DatabaseAway is raised after a while.

    A host that boots starts its services in any order, and those that give up too often are not started again.
    """
    from ai_worker import migrate

    patience = {"patience": float("inf")} if notify.is_heard() else {}
    with context.database(settings, check=False, **patience) as db:
        with notify.waiting(lambda: "starting: waits for the database" if db.is_away else None):
            migrate.check(db)
        yield db


def checked_filters(
    settings: Settings,
    db: Database,
    id_task: int | None,
    id_task_item: int | None,
    task_types: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    queues: tuple[QueueShare, ...] = (),
) -> Filters:
    """The filters, with the task of a named item. Raises UsageError for whatever does not exist."""
    if task_types:
        library = context.library(settings, db, publish=False)
        for name in task_types:
            library.named(name)
    names = tuple(Models(db).get(name).name for name in models)
    queue = Queue(db)
    if id_task is not None and not queue.has_task(id_task):
        raise UsageError(f"there is no task {id_task}; `ai-worker status` lists those there are")
    if id_task_item is not None:
        found = queue.task_of(id_task_item)
        if found is None:
            raise UsageError(f"there is no item {id_task_item}")
        if id_task not in {None, found[0]}:
            raise UsageError(f"item {id_task_item} belongs to task {found[0]}, not to task {id_task}")
        id_task = found[0]
    return Filters(id_task, id_task_item, task_types, names, queues)


def is_claimable(db: Database, id_task_item: int) -> bool:
    """Whether a run can do something for this item; says why not where it cannot."""
    found = Queue(db).task_of(id_task_item)
    status = found[1] if found else ItemStatus.CANCELLED
    if status in {ItemStatus.PENDING, ItemStatus.DEFERRED, ItemStatus.IN_PROGRESS}:
        return True
    hint = f"; `ai-worker retry {found[0]} --item {id_task_item}` brings it back" if found and status is ItemStatus.ERROR else ""
    click.echo(f"nothing to do: item {id_task_item} is {status.name}{hint}", err=True)
    return False


def report(summary: Summary, batches: int, as_json: bool) -> int:
    """Tells what was done and what not; the exit code. `batches` are those that it leaves open: it was told to stop."""
    counts = counts_of(summary)
    waiting = summary.waiting
    for name, reason in summary.stopped_models.items():
        click.echo(f"model {name} is stopped for every worker: {reason}; `ai-worker model test {name}` tries it", err=True)
    for name, reason in summary.unusable_models.items():
        click.echo(f"model {name} cannot be used from here: {reason}; `ai-worker doctor` looks into it", err=True)
    if waiting and waiting.pending:
        items = "1 item waits" if waiting.pending == 1 else f"{waiting.pending} items wait"
        click.echo(f"{items}: no model can take them now; see `ai-worker status`", err=True)
    for id_task, reason in waiting.paused.items() if waiting else ():
        click.echo(f"task {id_task} is paused: {reason}; see `ai-worker status {id_task}`", err=True)
    tell_held(waiting.held if waiting else {})
    if batches:
        named = "1 batch is still open: its" if batches == 1 else f"{batches} batches are still open: their"
        click.echo(f"{named} results are stored by any later `ai-worker run` or `ai-worker daemon`", err=True)
    if as_json:
        context.emit_json(counts)
    else:
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
    return exit_code_of(summary)


def counts_of(summary: Summary) -> dict[str, int]:
    """What was done with how many items, as `--json` prints it."""
    counts: dict[str, int] = {name: getattr(summary, name) for name in ("processed", "failed", "deferred", "released")}
    return counts if summary.waiting is None else counts | {"deferred": summary.waiting.deferred}


def exit_code_of(summary: Summary) -> int:
    """How a run has ended."""
    waiting = summary.waiting
    # A model that is stopped while the next one of its tasks has done all their items is no failure of the run.
    is_open = waiting is None or waiting.pending or waiting.deferred
    if ((summary.stopped_models or summary.unusable_models) and is_open) or (waiting and (waiting.pending or waiting.paused)):
        return EXIT_FAILED
    return EXIT_ITEMS_FAILED if summary.failed else EXIT_DONE


def tell_held(held: Mapping[int, str]) -> None:
    """Says which tasks wait for others, the first few of them."""
    for id_task, whom in list(held.items())[:HELD_SHOWN]:
        click.echo(f"task {id_task} waits for {whom}; see `ai-worker status {id_task}`", err=True)
    if len(held) > HELD_SHOWN:
        click.echo("more tasks wait for others", err=True)


class _Progress:
    """One line that is written over on a terminal; elsewhere the log tells."""

    def __init__(self, db: Database, filters: Filters) -> None:
        self._is_shown = sys.stderr.isatty()
        self._total = Queue(db).waiting(filters).pending if self._is_shown else 0
        self._began = self._last = time.monotonic()

    def show(self, summary: Summary) -> None:
        now = time.monotonic()
        if not self._is_shown or now - self._last < 0.2:
            return
        self._last = now
        done = summary.processed + summary.failed
        rate = done / (now - self._began)
        left = max(0, self._total - done)
        eta = formats.duration(left / rate) if rate else "?"
        click.echo(
            f"\r\x1b[K{done} of {self._total} items, {summary.failed} failed, {rate:.1f}/s, {eta} to go", err=True, nl=False
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._last != self._began:
            click.echo("\r\x1b[K", err=True, nl=False)
