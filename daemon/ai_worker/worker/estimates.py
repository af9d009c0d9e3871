"""What an item will cost, told before it is sent: the money that a claim sets aside where there is a budget."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Final

from ai_worker import prices
from ai_worker.library import KindOf
from ai_worker.models import Item, Lane, Model, Outcome, Task
from ai_worker.prices import with_margin
from ai_worker.store.budgets import Stored, nothing_stored
from ai_worker.store.steps import Place
from ai_worker.task_types import TaskType, needs
from ai_worker.task_types.foreseen import foreseen
from ai_worker.text import estimate_tokens
from ai_worker.worker.steps import Parted, Stepped, digests_of, work_of

FRESH_SECONDS: Final = 5.0  # how long prices are trusted: a person who sets one and resumes a task must not see it paused again
LATEST: Final = 100
FEW: Final = 20  # so many items must have cost less than was estimated before less is set aside for the next ones
MOST_TASKS: Final = 1000  # remembered; the oldest are forgotten

_NOTHING, _ONE = Decimal(0), Decimal(1)


class Estimates:
    """Estimates by the rendered prompt and the prices, corrected by what the task's latest items have cost.

    `fetch` gives all models, `kind_of` a task's type. Claims ask in one thread; `learn` may be called in another.
    """

    def __init__(self, fetch: Callable[[], Iterable[Model]], kind_of: KindOf) -> None:
        self._fetch = fetch
        self._kind_of = kind_of
        self._models: dict[int, Model] = {}
        self._kinds: dict[str, TaskType] = {}  # by name: of a task that was pinned to another prompt a moment ago
        self._fetched_at = float("-inf")
        # (task, model) -> of the latest items, the real cost, by its estimate and as it is
        self._seen: dict[tuple[int, int], tuple[tuple[Decimal, Decimal], ...]] = {}

    def prepare(self, models: Collection[int], tasks: Iterable[Task] = ()) -> None:
        """Reads the prices of these models and the prompts of these tasks, where they are not at hand: an estimate is made inside
        of a transaction, and can ask nobody."""
        for task in tasks:
            with contextlib.suppress(Exception):  # what is wrong with it, its items are told when they are worked on
                self._kinds[task.task_type] = self._kind_of(task)
        if time.monotonic() - self._fetched_at > FRESH_SECONDS or not self._models.keys() >= set(models):
            self._models = {model.id_ai_model: model for model in self._fetch()}
            self._fetched_at = time.monotonic()

    def __call__(self, item: Item, stored: Stored = nothing_stored) -> Decimal | None:
        """USD that one item will cost on its task's model, rather too high than too low; None where the price is not known.

        What is stored of it, and was made of what would be sent now, costs nothing more.
        """
        raw = self._raw(item, stored)
        if raw is None:
            return None
        seen = self._seen.get((item.task.id_task, item.task.id_ai_model), ())
        ratio = max([each for each, _ in seen], default=_ONE)
        if len(seen) < FEW:
            ratio = max(ratio, _ONE)
        dearest = max([cost for _, cost in seen], default=_NOTHING)
        return with_margin(max(raw * ratio, dearest))

    def learn(self, outcome: Outcome) -> None:
        """An item has cost so much: the next ones of its task are estimated accordingly.

        Of one that takes several calls the outcome tells only what was not stored yet, which is no measure of the whole.
        """
        item = outcome.item
        if not outcome.cost or outcome.lane is Lane.CACHE or self._takes_several_calls(item) or not (raw := self._raw(item)):
            return
        key = (item.task.id_task, item.task.id_ai_model)
        self._seen[key] = (*self._seen.pop(key, ())[1 - LATEST :], (outcome.cost / raw, outcome.cost))
        if len(self._seen) > MOST_TASKS:
            del self._seen[next(iter(self._seen))]

    def _takes_several_calls(self, item: Item) -> bool:
        model = self._models.get(item.task.id_ai_model)
        try:
            return model is not None and work_of(self._kind_of(item.task), item, model) is not None
        except Exception:  # noqa: BLE001 -- it has come to an end, and nothing can be learnt of it
            return True

    def _raw(self, item: Item, stored: Stored = nothing_stored) -> Decimal | None:
        model = self._models.get(item.task.id_ai_model)
        if model is None or prices.price(model) is None:
            return None
        try:
            kind = self._known(item.task)
            work, wanted = work_of(kind, item, model), needs(kind, item.task)
            missing = None if work is None else _missing(digests_of(work, item), stored(item))
            if isinstance(work, Parted):  # the first part is about as long as any
                item = item._replace(text_original=work.parts[0])
            prompts = [prompt for _, prompt in foreseen(kind, item)]
        except Exception:  # noqa: BLE001 -- whatever is wrong with it, also in a plug-in, it ends without a call and says so then
            return _NOTHING
        drawn = 0 if wanted is None else wanted.tokens * (bool(wanted.results or wanted.facts) + bool(wanted.examples))
        models = self._of_steps(work, model) if isinstance(work, Stepped) else [model]
        # The cheaper synchronous tier may be shed, and is then paid as the usual one.
        is_batch = item.task.lane is Lane.BATCH and not item.is_single and work is None
        lane = Lane.BATCH if is_batch else Lane.ONLINE
        total, said = _NOTHING, 0
        for number, (prompt, its) in enumerate(zip(prompts, models, strict=True), 1):
            # A later step reads, at most, all that the ones before have said.
            cost = prices.expected(its, prompt, lane, drawn + said)
            if cost is None:
                return None
            said += prompt.tokens_output_expected or estimate_tokens(prompt.text)
            if missing is None or isinstance(work, Parted) or Place(number) in missing:
                total += cost
        return total * len(missing) if missing is not None and isinstance(work, Parted) else total

    def _known(self, task: Task) -> TaskType:
        try:
            return self._kind_of(task)
        except Exception:
            if (kind := self._kinds.get(task.task_type)) is None:
                raise
            return kind

    def _of_steps(self, work: Stepped, own: Model) -> list[Model]:
        """The model of each step; of an unknown one the task's own: the item ends with that, and costs nothing more."""
        by_name = {model.name: model for model in self._models.values()}
        return [own if step.model is None else by_name.get(step.model, own) for step in work.steps]


def _missing(digests: Mapping[Place, bytes], stored: Mapping[tuple[int, int], bytes]) -> set[Place]:
    """The steps or parts that have yet to be sent."""
    return {place for place, digest in digests.items() if stored.get(place) != digest}
