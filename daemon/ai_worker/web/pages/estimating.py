"""What a task that is stored, but not begun, will take: reckoned from items all over it, in a time that a page has."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Final, NamedTuple

from ai_worker.errors import ItemRejected, UsageError
from ai_worker.estimate import Estimate
from ai_worker.models import Item, Task
from ai_worker.web.services import Services

SAMPLE: Final = 200  # items
_SECONDS: Final = 0.1  # of prompts that are made for it; those of a type with long instructions take longer


class Foreseen(NamedTuple):
    """What a task will take. `cost` in USD, None where a price is not known; `looked_at` of its items the sums were made from;
    `rejected` is how many of these would end in ERROR at once, and `reason` the first one's."""

    items: int
    looked_at: int
    calls: int
    tokens_input: int
    tokens_output: int
    cost: Decimal | None
    rejected: int
    reason: str | None
    prompt: tuple[str, str] | None
    model_stopped: str | None

    @property
    def is_scaled(self) -> bool:
        """Whether it is an extrapolation."""
        return self.looked_at < self.items


def estimated(services: Services, id_task: int, items: int) -> Foreseen:
    """In a thread: the estimate of a task of so many pending items. Raises NotFound when there is no such task."""
    library = services.library()
    task: Task = services.browsing.as_task(id_task)
    model = services.models.get(task.id_ai_model)
    total = Estimate(library.kind)
    prompt = reason = None
    until = time.monotonic() + _SECONDS
    for number, text, context in services.browsing.sample(id_task, SAMPLE):
        item = Item(number, task, text, context, 1, 0, b"", "")
        try:
            made, _, _ = total.add(item, model)
            prompt = prompt or (made.system, made.user)
        except (ItemRejected, UsageError) as error:
            reason = reason or str(error)
        if time.monotonic() > until:
            break
    total.finish()
    looked_at = total.items
    scale = items / looked_at if looked_at else 0.0
    cost = total.known_cost
    return Foreseen(
        items,
        looked_at,
        round(total.calls * scale),
        round(total.usage.tokens_input * scale),
        round(total.usage.tokens_output * scale),
        None if cost is None else cost * Decimal(scale),
        total.rejected,
        reason,
        prompt,
        f"{model.stopped_kind}: {model.stopped_reason}" if model.stopped_at is not None else None,
    )
