"""A task followed live: its numbers, its rate over the last seconds, and the one line that shows them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

import click

from ai_worker import formats
from ai_worker.errors import EXIT_DONE, EXIT_FAILED, EXIT_ITEMS_FAILED
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store.reports import Reports, TaskReport

WINDOW = 30.0  # seconds over which the rate is taken
SAMPLE = 0.5  # seconds between two looks, at least


@dataclass(frozen=True, slots=True)
class Sample:
    """A task as it stood at one moment; `rate` is in items per second, None as long as nothing moves."""

    task: TaskReport
    rate: float | None

    @property
    def eta(self) -> float | None:
        """Seconds until the last open item, at this rate."""
        return self.task.open / self.rate if self.rate and self.task.open else None

    @property
    def cost_to_go(self) -> Decimal | None:
        """USD that the open items will cost, at what the others have cost on average; None while that is not known."""
        done = self.task.records_processed + self.task.records_failed
        return self.task.cost / done * self.task.open if self.task.cost is not None and done and self.task.open else None

    @property
    def cost_per_hour(self) -> Decimal | None:
        """USD, at this rate."""
        done = self.task.records_processed + self.task.records_failed
        if self.task.cost is None or not done or self.rate is None:
            return None
        return self.task.cost / done * Decimal(self.rate) * 3600


def samples(reports: Reports, id_task: int) -> Iterator[Sample]:
    """Looks at a task until it is over, twice a second, or as rarely as keeps counting a huge task from becoming a load."""
    seen: deque[tuple[float, int]] = deque()
    while True:
        began = time.monotonic()
        task = reports.task(id_task)
        took = time.monotonic() - began
        seen.append((began, task.records_processed + task.records_failed))
        while began - seen[0][0] > WINDOW:
            seen.popleft()
        passed, done = began - seen[0][0], seen[-1][1] - seen[0][1]
        yield Sample(task, done / passed if passed and done > 0 else None)
        if task.is_over:
            return
        time.sleep(max(SAMPLE, 10 * took))


def follow(reports: Reports, id_task: int, *, interval: float, to_stderr: bool) -> int:
    """Shows a task until it is over: a line that is drawn anew on a terminal, else a line per `interval` seconds.

    Returns the exit code: 3 when items ended in ERROR, 1 when the task was cancelled.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    on_terminal = stream.isatty()
    shown = 0.0
    last = None
    for last in samples(reports, id_task):
        if on_terminal:
            click.echo(f"\r\x1b[K{line(last)}", nl=last.task.is_over, err=to_stderr)
        elif last.task.is_over or time.monotonic() - shown >= interval:
            click.echo(line(last), err=to_stderr)
            shown = time.monotonic()
    if last is None or last.task.status is TaskStatus.CANCELLED:
        return EXIT_FAILED
    return EXIT_ITEMS_FAILED if last.task.status is TaskStatus.ERROR else EXIT_DONE


def line(sample: Sample) -> str:
    """A task in one line: `task 7  IN_PROGRESS  450 of 1,500 (30 %)  12.3/s  ETA 1 min 25 s  $0.01 ($1.20/h, $0.03 to go)`."""
    task = sample.task
    done = task.records_processed + task.records_failed
    share = f" ({100 * done // task.total} %)" if task.total else ""
    parts = [f"task {task.id_task}", task.status.name, f"{formats.number(done)} of {formats.number(task.total)}{share}"]
    if sample.rate is not None and not task.is_over:
        parts.append(f"{sample.rate:.1f}/s")
        if sample.eta is not None:
            parts.append(f"ETA {formats.duration(sample.eta)}")
    if task.steps is not None:
        parts.append(f"steps {formats.number(task.steps.done)} of {formats.number(task.steps.total)}")
    if task.records_failed:
        parts.append("1 error" if task.records_failed == 1 else f"{formats.number(task.records_failed)} errors")
    if task.items[ItemStatus.DEFERRED]:
        parts.append(f"{formats.number(task.items[ItemStatus.DEFERRED])} deferred")
    if task.cost is not None:
        parts.append(_money(sample))
    if task.model_stopped and not task.is_over:
        parts.append(f"model {task.model} is stopped")
    return "  ".join(parts)


def _money(sample: Sample) -> str:
    """`$0.0123 ($1.20/h, $0.0287 to go)`; of a task that is over or costs nothing, what it has cost."""
    spent = formats.money(sample.task.cost)
    if sample.task.is_over or not sample.task.cost or sample.cost_to_go is None:
        return spent
    to_go = f"{formats.money(sample.cost_to_go)} to go"
    per_hour = "" if sample.cost_per_hour is None else f"{formats.money(sample.cost_per_hour)}/h, "
    return f"{spent} ({per_hour}{to_go})"


@contextlib.contextmanager
def row_counter() -> Iterator[Callable[[int], None]]:
    """Shows how many rows were read, on a terminal only; the line is gone at the end.

    What is shown must never disturb what is done: a terminal that has gone is no reason to give up half-way.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    shown = 0.0

    def show(count: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            with contextlib.suppress(OSError):
                click.echo(f"\r\x1b[K{formats.number(count)} rows", nl=False, err=True)

    try:
        yield show
    finally:
        with contextlib.suppress(OSError):
            click.echo("\r\x1b[K", nl=False, err=True)
