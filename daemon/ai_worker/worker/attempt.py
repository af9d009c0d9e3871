"""One attempt at an item while it is under way: what it has cost so far, and the ways in which it can end."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal

from ai_worker import prices
from ai_worker.errors import Transient
from ai_worker.log import WARNING, Event, Log, of_item
from ai_worker.models import NO_USAGE, Item, Lane, Model, Outcome, OutcomeKind, Result, Usage
from ai_worker.retry import attempt_delay
from ai_worker.task_types import TaskType, fallback

POSTPONED_AS = 4  # a postponed item waits as one that has failed this often: it has had its call retries already
MOST_TOKENS = 10_000_000  # of one call; no model takes or gives as many
INVALID_TASK = "invalid_task"  # error_kind of items whose task has a type or parameters that cannot work

_TEXT = (str, type(None))


class GivenBackError(Exception):
    """The call is not made, and nothing is lost by giving the item back: the worker is stopping, or the model was stopped."""


class PutOffError(Exception):
    """The item waits for what is no fault of its own, and is not charged: for `delay` seconds, for the reason `kind`."""

    def __init__(self, kind: str, message: str, delay: float) -> None:
        super().__init__(message)
        self.kind = kind
        self.delay = delay


class Attempt:
    """One attempt under way: what it has cost so far, and its possible ends."""

    __slots__ = (
        *("_began", "_is_unpriced", "companions", "cost", "is_elsewhere", "is_spared", "item", "lane"),
        *("log", "model", "timer", "type", "usage"),
    )

    def __init__(self, item: Item, log: Log) -> None:
        self.item = item
        self.log = log
        self.model: Model | None = None
        self.type: TaskType | None = None  # asked for a result instead, where it fails for good
        self.timer: asyncio.Timeout | None = None  # breaks off its calls, where it has a time limit
        self.usage = NO_USAGE  # of the answer, and of failed calls that were billed all the same
        self.cost: Decimal | None = None  # the same in USD; None while nothing was billed, and where a price is not known
        self.lane = Lane.ONLINE  # of the latest call
        self.is_spared = False  # it was not called again, for its provider's sake
        self.is_elsewhere = False  # it has come to its end in a step that is for another model than its task
        self.companions = 0  # items that its calls are made for, beside this one
        self._is_unpriced = False
        self._began = time.monotonic()

    def bill(self, usage: Usage, lane: Lane) -> Usage:
        """Puts a call on the books, and returns its tokens within bounds."""
        self.lane = lane
        if usage is NO_USAGE or self.model is None:
            return usage
        usage = plausible(usage)
        self.book(usage, prices.cost(self.model, usage, lane), lane)
        return usage

    def book(self, usage: Usage, cost: Decimal | None, lane: Lane) -> None:
        """Puts tokens of a call on the books, and what they cost in USD; None where their price is not known."""
        self.lane = lane
        self.usage += usage
        self._is_unpriced |= cost is None
        self.cost = None if cost is None or self._is_unpriced else cost if self.cost is None else self.cost + cost

    # -- of an item that takes several calls: each has books of its own

    def for_step(self, item: Item, model: Model) -> Attempt:
        """A step of this attempt, with empty books; `item` is for the step's model, or has a part of the text."""
        step = Attempt(item, self.log)
        step.model, step.type = model, self.type
        return step

    def add(self, step: Attempt) -> None:
        """Takes over what a step was billed for and did not store."""
        self.is_spared |= step.is_spared
        if step.usage != NO_USAGE:
            self.book(step.usage, step.cost, step.lane)

    def end_with(self, step: Attempt) -> None:
        """The attempt ends as this step does, on the books of its model."""
        self.is_elsewhere = step.item.task.id_ai_model != self.item.task.id_ai_model
        self.item, self.model = step.item, step.model
        self.add(step)

    def clear(self) -> None:
        """What has been billed so far is stored."""
        self.usage, self.cost, self._is_unpriced = NO_USAGE, None, False

    @property
    def latency_ms(self) -> int:
        """Milliseconds since it began."""
        return milliseconds(self._began)

    def processed(self, result: Result) -> Outcome:
        """Raises TypeError when a plug-in made a result that is none."""
        if not isinstance(result.text_corrected, _TEXT):
            raise TypeError(f"the result's text is of the type {type(result.text_corrected).__name__}")
        return self._in_lane(Outcome.processed(self.item, result, self.usage, self.total(), milliseconds(self._began)))

    def from_cache(self, result: Result) -> Outcome:
        """Answered by the result of identical work: nothing was sent, and nothing is paid."""
        self.lane = Lane.CACHE
        return self.processed(result)

    def put_off(self, kind: str, message: str, delay: float) -> Outcome:
        """Not now, in `delay` seconds, for what became of identical work: nothing was sent, and nothing is charged."""
        self.lane = Lane.CACHE
        return self._postponed(kind, message, delay)

    def waits(self, error: PutOffError) -> Outcome:
        """For what is no fault of its own."""
        return self._logged(self._postponed(error.kind, str(error), error.delay))

    def postponed(self, error: Transient) -> Outcome:
        """Being told to slow down, or to come back later, says nothing about the item: it waits, and is not charged."""
        delay = attempt_delay(POSTPONED_AS, error.retry_after)
        return self._logged(self._postponed(error.kind, str(error), delay))

    def given_back(self, why: str) -> Outcome:
        """Not charged, and claimable at once; on the books where calls were billed all the same."""
        if self.usage == NO_USAGE:
            return Outcome.released(self.item)
        return self._postponed(why, "given back after calls that were billed", 0.0)

    def _postponed(self, kind: str, message: str, delay: float) -> Outcome:
        latency = milliseconds(self._began)
        return self._in_lane(Outcome.postponed(self.item, _column(kind), message, delay, self.usage, self.total(), latency))

    def retry(self, kind: str, message: str, retry_after: float | None) -> Outcome:
        delay = attempt_delay(self.item.tries, retry_after)
        latency = milliseconds(self._began)
        return self._logged(Outcome.retry(self.item, _column(kind), message, delay, self.usage, self.total(), latency))

    def refused(self, kind: str, message: str) -> Outcome:
        latency = milliseconds(self._began)
        return self._logged(Outcome.refused(self.item, _column(kind), message, self.usage, self.total(), latency))

    def failed(self, kind: str, message: str) -> Outcome:
        latency = milliseconds(self._began)
        return self._logged(Outcome.failed(self.item, _column(kind), message, self.usage, self.total(), latency))

    def total(self) -> Decimal | None:
        """USD of the attempt: what was billed, nothing where nothing was but would be, None where the price is not known."""
        if self.cost is None and not self._is_unpriced and self.model is not None:
            return prices.cost(self.model, NO_USAGE)
        return self.cost

    def _in_lane(self, outcome: Outcome) -> Outcome:
        return outcome if self.lane is Lane.ONLINE else outcome._replace(lane=self.lane)

    def _logged(self, outcome: Outcome) -> Outcome:
        outcome = self._in_lane(outcome)
        if outcome.kind is OutcomeKind.FAILED:
            outcome = self._saved(outcome)
        self.log(
            Event.ERROR,
            level=None if outcome.kind is OutcomeKind.FAILED else WARNING,
            **of_item(self.item, self.model.name if self.model else str(self.item.task.id_ai_model)),
            kind=outcome.error_kind,
            message=outcome.error_message,
            outcome=outcome.kind.value,
            tokens_input=self.usage.tokens_input,
            tokens_output=self.usage.tokens_output,
        )
        return outcome

    def _saved(self, outcome: Outcome) -> Outcome:
        """What would be a dead letter, with the result that its task type gives instead, if it gives one.

        Not where the task itself is wrong: a result would hide from whoever made it that none of its items can succeed.
        """
        if self.type is None or outcome.error_kind == INVALID_TASK:
            return outcome
        try:
            result = fallback(self.type, self.item, outcome.error_kind or "", outcome.error_message or "")
        except Exception as error:  # noqa: BLE001 -- a plug-in's bug leaves the item where it would be without a fallback
            self.log(Event.LIBRARY, exc_info=error, logger="plug-in", message=f"{type(error).__name__}: {error}")
            return outcome
        return outcome if result is None else outcome.instead(result)


def plausible(usage: Usage) -> Usage:
    """The tokens that a provider says it used, within what the columns take: an absurd number must not cost the answer."""
    if (
        0 <= usage.tokens_cached <= usage.tokens_input <= MOST_TOKENS
        and 0 <= usage.tokens_reasoning <= usage.tokens_output <= MOST_TOKENS
        and 0 <= usage.tokens_image <= usage.tokens_output
    ):
        return usage
    tokens_input, tokens_output, cached, reasoning = (
        min(max(0, tokens), MOST_TOKENS)
        for tokens in (usage.tokens_input, usage.tokens_output, usage.tokens_cached, usage.tokens_reasoning)
    )
    image = min(max(0, usage.tokens_image), tokens_output)
    return Usage(tokens_input, tokens_output, min(cached, tokens_input), min(reasoning, tokens_output), image)


def _column(kind: str) -> str:
    """An error's kind as its column takes it: a plug-in may name its own."""
    return kind.encode("ascii", "replace").decode()[:32]


def milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
