"""Task types: what is done to an item, found through the entry-point group `ai_worker.task_types`.

A task type renders the prompt and turns the model's answer into a result. The built-in ones are registered in pyproject.toml
exactly as a third party registers its own.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Final, Protocol, runtime_checkable

from ai_worker.errors import ConfigurationError, UsageError
from ai_worker.models import Completion, Item, Prompt, Result, Task

ENTRY_POINT_GROUP = "ai_worker.task_types"

TIME_LIMIT: Final = "time_limit"
"""The parameter, of any type, that says after how many seconds an attempt is broken off."""


class TaskType(Protocol):
    """Stateless; one instance serves all items."""

    name: str

    def validate(self, task: Task) -> None:
        """Raises UsageError, naming the parameter, when `task.parameters` cannot work: `categorization` without categories."""

    def prompt(self, item: Item) -> Prompt:
        """What to send for this item. Raises ItemRejected when nothing can be sent (an empty text)."""

    def parse(self, item: Item, completion: Completion) -> Result:
        """The result to store. Raises BadAnswer, naming the check, when the answer is of no use; ContentRefused for a refusal."""


@runtime_checkable
class HasFallback(Protocol):
    """A task type that never leaves an item without a result."""

    def fallback(self, item: Item, kind: str, message: str) -> Result | None:
        """What to store of an item that would be set aside for good: for the error `kind`, with `message`. None for nothing."""


def fallback(task_type: TaskType, item: Item, kind: str, message: str) -> Result | None:
    """The result that a task type gives instead of a failure; None where it gives none."""
    return task_type.fallback(item, kind, message) if isinstance(task_type, HasFallback) else None


@cache
def task_type(name: str) -> TaskType:
    """The task type registered as `name`.

    Raises UsageError when there is none, naming those there are; ConfigurationError when its package does not let itself be
    loaded.
    """
    found = entry_points(group=ENTRY_POINT_GROUP)
    if name not in found.names:
        raise UsageError(f"unknown task type {name!r}; known ones: {', '.join(sorted(found.names))}")
    try:
        loaded: TaskType = found[name].load()()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"task type {name!r} cannot be loaded: {reason}: reinstall its package") from error
    return loaded


def task_type_names() -> list[str]:
    """The names of all registered task types, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)
