"""The rows of a batch: items into prompts within the provider's bounds, and what came back into outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ai_worker.errors import ConfigurationError, ItemRejected, ModelStopped, ProviderError, Transient, UsageError
from ai_worker.library import KindOf
from ai_worker.log import Event, Log
from ai_worker.models import NO_USAGE, Completion, Item, Lane, Model, Outcome, OutcomeKind, PersonalData, Prompt
from ai_worker.providers import Provider
from ai_worker.task_types import is_simple
from ai_worker.worker.attempt import INVALID_TASK, Attempt
from ai_worker.worker.steps import work_of

ROWS: Final = 5_000  # of one batch, where its provider names no bound of its own
BYTES: Final = 20_000_000  # ... of prompts
UNDONE: Final = "batch"  # error_kind of what a batch gave back
_TURN: Final = 50  # rows between which others get their turn in the loop


class Bounds(NamedTuple):
    """How much one batch takes: rows, and bytes of prompts."""

    rows: int = ROWS
    bytes: int = BYTES


def bounds(provider: Provider) -> Bounds:
    """What a provider says that it takes at once (its `batch_limits`: rows and bytes), but no more than is ours."""
    rows, size = getattr(provider, "batch_limits", None) or (ROWS, BYTES)
    return Bounds(max(1, min(rows, ROWS)), max(1, min(size, BYTES)))


def row_id(item: Item, kind_of: KindOf) -> str:
    """What an item is called in its batch: its key, by which a person finds it too.

    Of masked texts with a mark after it, as what comes back must be read as it was sent: where the list of names has changed in
    the hours between, the answer is nobody's, and the item is sent anew.
    """
    if item.task.personal_data is not PersonalData.MASK:
        return str(item.id_task_item)
    mark: str = getattr(kind_of(item.task), "mark")(item)  # noqa: B009 -- of a masking type alone, which is none of the protocol's
    return f"{item.id_task_item}-{mark}"


@dataclass(slots=True)
class Rendered:
    """Items made ready: `prompts` to be handed in, `outcomes` of items that cannot be, `left` over for another batch."""

    prompts: list[tuple[str, Prompt]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)


async def rendered(items: Sequence[Item], model: Model, limit: Bounds, log: Log, kind_of: KindOf) -> Rendered:
    """The prompts of these items, as far as they fit. One that is too long by itself for any batch is to be sent alone."""
    found, size = Rendered(), 0
    for number, item in enumerate(items):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        attempt = _attempt(item, model, log)
        try:
            attempt.type = kind_of(item.task)
            if not is_simple(attempt.type, item.task):
                found.outcomes.append(undone(item, "its calls depend on what is known only when they are made"))
                continue
            if work_of(attempt.type, item, model) is not None:
                found.outcomes.append(undone(item, "its text is sent in parts, each of which is stored when it is done"))
                continue
            prompt = attempt.type.prompt(item)
            if prompt.image is not None:
                found.outcomes.append(undone(item, "batches are of texts: a picture is asked for alone"))
                continue
        except ItemRejected as error:  # by its own text, whichever model it were for
            found.outcomes.append(attempt.failed(error.kind, str(error)))
            continue
        except Exception as error:  # noqa: BLE001 -- a plug-in's bug must cost its item, not the batch
            found.outcomes.append(_failed(attempt, error))
            continue
        length = _bytes(prompt)
        if length > limit.bytes:
            found.outcomes.append(undone(item, f"its prompt of {length} bytes is too long for a batch"))
        elif len(found.prompts) >= limit.rows or size + length > limit.bytes:
            found.left.append(item)
        else:
            size += length
            found.prompts.append((row_id(item, kind_of), prompt._replace(lane=Lane.BATCH)))
    return found


def size_of(item: Item, kind_of: KindOf) -> int:
    """About how many bytes an item's prompt takes: before it is claimed nobody knows."""
    try:
        return _bytes(kind_of(item.task).prompt(item))
    except Exception:  # noqa: BLE001 -- for a size alone; what is wrong with it ends the item when it is rendered
        return len(item.text_original)


def answered(item: Item, model: Model, answer: Completion | ProviderError, log: Log, kind_of: KindOf) -> Outcome:
    """How an item's attempt ends by what its batch brought. What is tried again is tried alone: a batch takes up to a day."""
    attempt = _attempt(item, model, log)
    attempt.bill(answer.usage, Lane.BATCH)
    try:
        attempt.type = kind_of(item.task)
        if isinstance(answer, ProviderError):
            outcome = _failed(attempt, answer)
        else:
            outcome = attempt.processed(attempt.type.parse(item, answer))
    except Exception as error:  # noqa: BLE001 -- a plug-in's bug must cost its item, not the batch
        outcome = _failed(attempt, error)
    return outcome._replace(latency_ms=None)  # it says when the batch was looked at, and no more


def undone(item: Item, message: str, *, single: bool = True) -> Outcome:
    """An item that comes back, uncharged, to be sent alone, or (not `single`) in another batch."""
    return Outcome.postponed(item, UNDONE, message, 0.0, NO_USAGE, None, 0)._replace(
        single=single, lane=Lane.BATCH, latency_ms=None
    )


def _attempt(item: Item, model: Model, log: Log) -> Attempt:
    attempt = Attempt(item, log)
    attempt.model, attempt.lane = model, Lane.BATCH
    return attempt


def _failed(attempt: Attempt, error: Exception) -> Outcome:
    """The rows of the error table, as for a call online; only that nothing waits here, since it waited in the batch."""
    match error:
        case UsageError():
            return attempt.failed(INVALID_TASK, str(error))
        case ConfigurationError():
            outcome = attempt.retry("internal", str(error), None)
        case ItemRejected():
            outcome = attempt.refused(error.kind, str(error))
        case ModelStopped():
            return attempt.given_back(error.kind)
        case Transient():
            outcome = undone(attempt.item, f"{error.kind}: {error}")
            return outcome._replace(usage=attempt.usage, cost=attempt.cost)
        case ProviderError():
            outcome = attempt.retry(error.kind, str(error), None)
        case _:
            attempt.log(Event.LIBRARY, exc_info=error, logger="plug-in", message=f"{type(error).__name__}: {error}")
            outcome = attempt.retry("internal", f"{type(error).__name__}: {error}", None)
    has_ended = outcome.kind in {OutcomeKind.FAILED, OutcomeKind.PROCESSED}
    return outcome if has_ended else outcome._replace(single=True)


def _bytes(prompt: Prompt) -> int:
    """About what a prompt takes in a batch's file: its texts, and the schema of its answer."""
    return len(prompt.user.encode("utf-8", "replace")) + len(prompt.system.encode("utf-8", "replace")) + len(repr(prompt.schema))
