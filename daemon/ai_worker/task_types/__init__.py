"""Task types: what is done to an item, found through the entry-point group `ai_worker.task_types`.

A task type renders the prompt and turns the model's answer into a result. The built-in ones are registered in pyproject.toml
exactly as a third party registers its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable

from ai_worker.errors import ConfigurationError, UsageError
from ai_worker.models import Completion, Item, Needs, Prompt, Result, Step, StepResult, Task

if TYPE_CHECKING:  # what it is made of takes long to import, and most commands do without
    from ai_worker.task_types.prompt_file import PromptFile

ENTRY_POINT_GROUP = "ai_worker.task_types"
DEFAULT_KIND = "custom"  # of a prompt that says nothing of its kind, and is called as no task type is

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


@runtime_checkable
class HasNeeds(Protocol):
    """A task type whose prompts may hold more than their items."""

    def needs(self, task: Task) -> Needs | None:
        """What is to be drawn into the prompts of the task's items; None: nothing. Raises UsageError as `validate` does."""


def needs(task_type: TaskType, task: Task) -> Needs | None:
    """What is to be drawn into `Item.background` before a prompt is made; None where nothing is."""
    asked = getattr(task_type, "needs", None)  # on the way of every item, where an isinstance of a protocol would be felt
    wanted: Needs | None = None if asked is None else asked(task)
    return wanted


def fallback(task_type: TaskType, item: Item, kind: str, message: str) -> Result | None:
    """The result that a task type gives instead of a failure; None where it gives none."""
    made = getattr(task_type, "fallback", None)  # no isinstance: it does not see what a type around another one passes on
    result: Result | None = None if made is None else made(item, kind, message)
    return result


def refuse_unknown_parameters(kind: TaskType, task: Task) -> None:
    """Raises UsageError where a parameter has a name that nothing would read, for whoever makes a task. A plug-in may have any.

    Workers do not ask: tasks that are there already may carry what is of use to others.
    """
    names = getattr(kind, "parameter_names", None)
    known: frozenset[str] | None = None if names is None else names(task)
    if known is not None and (unknown := sorted(task.parameters.keys() - known)):
        listed = ", ".join(sorted(known))
        raise UsageError(f"task type {task.task_type}: unknown parameter {unknown[0]!r}; known ones: {listed}")


def is_new_version(kind: TaskType) -> bool:
    """Whether a result of the type is its text in a new version, and may take its place. Of a plug-in\'s nobody knows."""
    return getattr(kind, "keeps_layout", False) is True


class SteppedTaskType(TaskType, Protocol):
    """One whose items may take several calls, one after the other. Types made of a prompt file are; a plug-in's need not be."""

    def steps(self, task: Task) -> Sequence[Step]:
        """The calls that an item of the task takes, in order; at least one."""

    def step_identity(self, task: Task, number: int) -> bytes:
        """Stands for all that step `number` is made of, beside its item: a stored result counts while that is the same."""

    def step_prompt(self, item: Item, number: int, earlier: Mapping[str, StepResult]) -> Prompt:
        """What to send for step `number`, from 1; `earlier` has the results of those before, by name. Raises as `prompt` does."""

    def parse_step(self, item: Item, number: int, completion: Completion) -> StepResult:
        """The result of step `number`. Raises as `parse` does."""

    def combined(self, item: Item, results: Mapping[str, StepResult]) -> Result:
        """The result to store, of those of all steps by name."""


def stepped(kind: TaskType) -> SteppedTaskType | None:
    """The task type as one of steps; None where it does not know of them, and each item takes exactly one call."""
    return cast(SteppedTaskType, kind) if hasattr(kind, "steps") else None


class SplittingTaskType(SteppedTaskType, Protocol):
    """One that takes long texts in parts, each of which is sent as step 1 of an item with that text."""

    def split(self, item: Item, most: int | None = None) -> Sequence[str]:
        """The parts of the item's text, none of more than `most` tokens; empty where it is sent as it is. Joined, they are it."""

    def joined(self, item: Item, results: Sequence[StepResult]) -> Result:
        """The result to store, of those of all parts in order; of a part of blanks alone that part itself, without data."""


def splitting(kind: TaskType) -> SplittingTaskType | None:
    """The task type as one that splits long texts; None where it sends each as it is."""
    return cast(SplittingTaskType, kind) if hasattr(kind, "split") else None


def is_simple(kind: TaskType, task: Task) -> bool:
    """Whether an item of the task takes exactly one call, made of nothing but the item and its task.

    Only such items may share a call with others, or be handed in by the batch: of any other the calls depend on what is known
    only when its turn comes.
    """
    by_steps = stepped(kind)
    if by_steps is not None and len(by_steps.steps(task)) > 1:
        return False
    return needs(kind, task) is None


@cache
def task_type(name: str) -> TaskType:
    """The task type registered as `name`.

    Raises UsageError when there is none, naming those there are; ConfigurationError when its package does not let itself be
    loaded.
    """
    return _loaded(name)


def task_type_of(file: PromptFile) -> TaskType:
    """The task type that a prompt file makes: of the class that its `kind` names; by default its own name's, else `custom`.

    Raises ConfigurationError when there is no such kind, or one that has no prompt files.
    """
    kind = file.kind or (file.name if file.name in task_type_names() else DEFAULT_KIND)
    try:
        return _loaded(kind, file)
    except UsageError as error:
        raise ConfigurationError(f"{file.origin}: kind: {error}") from None


def _loaded(name: str, *file: PromptFile) -> TaskType:
    found = entry_points(group=ENTRY_POINT_GROUP)
    if name not in found.names:
        raise UsageError(f"unknown task type {name!r}; known ones: {', '.join(sorted(found.names))}")
    try:
        made = found[name].load()
        loaded: TaskType | None = made(*file) if not file or hasattr(made, "takes_prompt_files") else None
    except Exception as error:
        if file and isinstance(error, ConfigurationError):  # what is wrong is the file
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"task type {name!r} cannot be loaded: {reason}: reinstall its package") from error
    if loaded is None:
        raise UsageError(f"the task type {name!r} has no prompt files")
    return loaded


def task_type_names() -> list[str]:
    """The names of all registered task types, sorted."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)
