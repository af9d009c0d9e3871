"""What a person wants done, made into a task: for the command line, the HTTP API and the dashboard alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from ai_worker import prices
from ai_worker.errors import UsageError
from ai_worker.library import Library
from ai_worker.models import DEFAULT_QUEUE, Lane, Model, Need, PersonalData
from ai_worker.providers import makes_pictures, takes_batches
from ai_worker.store.groups import Groups
from ai_worker.store.models import Models
from ai_worker.store.new_tasks import CACHE_SECONDS, NewTask
from ai_worker.task_types import TaskType, refuse_unknown_parameters, stepped
from ai_worker.task_types.library import Image

LONGEST_DESCRIPTION: Final = 65_535  # bytes of task.description
LONGEST_SUBMIT_KEY: Final = 190  # characters of task.submit_key


@dataclass(frozen=True, slots=True)
class Wish:
    """A task in the words of who asks for it: models and groups by their names. The fields are those of `NewTask` otherwise.

    Without a model's name it is the only one there is. `scheduled_at` is in UTC without a zone, `budget` in USD.
    """

    type_name: str = "correction"
    model_name: str | None = None
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    scheduled_at: datetime | None = None
    after: Mapping[int, Need] = field(default_factory=dict)
    group: str | None = None
    result_seconds: int | None = None
    personal_data: PersonalData = PersonalData.OFF
    max_attempts: int = 3
    fallbacks: tuple[str, ...] = ()
    budget: Decimal | None = None
    lane: Lane = Lane.ONLINE
    pack: int = 1
    cache_seconds: int = CACHE_SECONDS
    key: str | None = None

    def task(self, library: Library, models: Models, groups: Groups) -> tuple[NewTask, Model]:
        """The task to be made, and its first model. Raises UsageError for what is wrong, or could only end badly."""
        kind, id_prompt = library.named(self.type_name)
        chain = _chain(models, self.model_name, self.fallbacks)
        model = chain[0]
        task = NewTask(
            model.id_ai_model,
            self.type_name,
            self.description,
            self.parameters,
            self.priority,
            self.scheduled_at,
            self.max_attempts,
            self.key,
            fallbacks=tuple(each.id_ai_model for each in chain[1:]),
            lane=self.lane,
            pack=self.pack,
            cache_seconds=self.cache_seconds,
            budget=self.budget,
            queue=self.queue,
            id_prompt=id_prompt,
            id_task_group=None if self.group is None else groups.id_of(self.group),
            result_seconds=self.result_seconds,
            personal_data=self.personal_data,
            after=self.after,
        )
        check(models, task, chain, kind)
        return task, model


def parameter(pair: str) -> tuple[str, Any]:
    """`KEY=VALUE` as a parameter of a task type; the value is JSON where it can be. Raises UsageError for anything else."""
    name, separator, text = pair.partition("=")
    if not separator or not name:
        raise UsageError(f"--param {pair!r} is not KEY=VALUE, for example --param target_language=pl")
    try:
        return name, json.loads(text)
    except (ValueError, RecursionError):
        return name, text


def model_of(models: Models, name: str | None) -> Model:
    """The active model of that name, or the only one. Raises UsageError when there is none, or more to choose from."""
    if name is not None:
        found = models.get(name)
    else:
        known = [each for each in models.all() if each.is_active]
        if not known:
            raise UsageError("there is no model yet; `ai-worker model add` makes one, and the provider `offline` needs no key")
        if len(known) > 1:
            raise UsageError(f"name one of the models with --model: {', '.join(each.name for each in known)}")
        found = known[0]
    if not found.is_active:
        raise UsageError(f"model {found.name!r} is switched off; `ai-worker model set {found.name} --active` switches it on")
    return found


def check(models: Models, task: NewTask, chain: Sequence[Model], kind: TaskType) -> None:
    """Raises UsageError for what is wrong with a task of this kind for these models, or could only end badly."""
    as_stored = task.as_task()
    kind.validate(as_stored)
    refuse_unknown_parameters(kind, as_stored)
    with_steps = stepped(kind)
    for step in () if with_steps is None else with_steps.steps(as_stored):
        if step.model is not None:
            try:
                models.get(step.model)
            except UsageError as error:
                raise UsageError(f"step {step.name!r}: {error}") from None
    for model in chain:
        if isinstance(kind, Image) and not makes_pictures(model.provider):
            raise UsageError(
                f"model {model.name!r}: the provider {model.provider!r} makes no pictures; use a model of openai or gemini"
            )
        if task.budget is not None and prices.price(model) is None:
            raise UsageError(
                f"--budget {task.budget}: the price of model {model.name!r} is not known, so nobody can keep to it; "
                f"`ai-worker model set {model.name} --price-input … --price-output …` says it"
            )
        if task.lane is Lane.BATCH and not takes_batches(model.provider):
            raise UsageError(f"--lane batch: the provider {model.provider!r} of model {model.name!r} takes no batches")


def _chain(models: Models, name: str | None, fallbacks: tuple[str, ...]) -> list[Model]:
    """The models of the task, in order."""
    chain = [model_of(models, name)]
    for fallback in fallbacks:
        found = model_of(models, fallback)
        if found.id_ai_model in {each.id_ai_model for each in chain}:
            raise UsageError(f"--fallback {fallback!r}: that model stands before it already")
        chain.append(found)
    return chain
