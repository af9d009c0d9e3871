"""Names of queues on the command line: a task's, and those that a worker takes from, with their weights."""

from __future__ import annotations

from typing import Any

import click

from ai_worker.models import QUEUE_NAME, QueueShare

MOST_WEIGHT = 1000


class QueueName(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.3, and we take 8.1
    """A queue's name, as `task.queue` holds it."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not QUEUE_NAME.fullmatch(value):
            self.fail(f"{value!r} is no name of a queue: up to 50 letters, digits, dots, dashes and underscores", param, ctx)
        return str(value)


class WeightedQueue(click.ParamType):  # type: ignore[type-arg]  # the same
    """`NAME` or `NAME:WEIGHT`."""

    name = "NAME[:WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> QueueShare:
        if isinstance(value, QueueShare):
            return value
        name, colon, weight = value.partition(":")
        if colon and not (weight.isascii() and weight.isdigit() and 1 <= int(weight) <= MOST_WEIGHT):
            self.fail(f"{value!r}: the weight is a whole number from 1 to {MOST_WEIGHT}, as in `reply:5`", param, ctx)
        return QueueShare(QueueName().convert(name, param, ctx), int(weight) if colon else 1)


def distinct(_context: click.Context, _parameter: click.Parameter, queues: tuple[QueueShare, ...]) -> tuple[QueueShare, ...]:
    """A callback of the option: refuses a queue that is named twice."""
    names = [queue.name for queue in queues]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"the queue {name!r} is named twice")
    return queues
