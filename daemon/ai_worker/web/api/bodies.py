"""What comes in as JSON. Times name their zone, amounts of money are strings in USD, so that none is rounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from ai_worker.models import DEFAULT_QUEUE, QUEUE_NAME, Need, PersonalData, ReviewStatus
from ai_worker.planning import LONGEST_DESCRIPTION
from ai_worker.store.new_tasks import CACHE_SECONDS
from ai_worker.store.reviews import LONGEST_NOTE

LARGEST_ID: Final = 2**63 - 1
MOST_ITEMS: Final = 10_000  # of one request; a task of more is a file for `ai-worker submit`, or several tasks
LONGEST_KEY: Final = 190

Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


def _as_stored(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses what Python's JSON knows and the database's does not."""
    json.dumps(value, allow_nan=False)
    return value


def _short_enough(value: str) -> str:
    if len(value.encode()) > LONGEST_DESCRIPTION:
        raise ValueError(f"longer than {LONGEST_DESCRIPTION:,} bytes")
    return value


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs its zone, as in 2026-12-24T18:00:00+01:00")
    try:
        return value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("a time beyond the calendar") from None


def _amount(value: str) -> str:
    if not Decimal("1e-9") <= Decimal(value) < Decimal(10) ** 9:
        raise ValueError("an amount must be above zero and below a billion")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_as_stored)]
Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)]
Budget = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", examples=["5.00"]), AfterValidator(_amount)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewItemIn(_In):
    """A text to be worked on. `key` is your own, `context` what the prompt may know beside it, `context_key` its subject."""

    text: Annotated[str, Field(min_length=1)]
    key: Key | None = None
    context: JsonObject | None = None
    context_key: Key | None = None


def _kind_of_item(value: object) -> str | None:
    return "(text)" if isinstance(value, str) else "(object)" if isinstance(value, dict | NewItemIn) else None


# Told apart by their kind, so that a wrong item is told once, and not as what it is not. Tags in parentheses are in no answer.
ItemIn = Annotated[
    Annotated[str, Field(min_length=1), Tag("(text)")] | Annotated[NewItemIn, Tag("(object)")],
    Discriminator(
        _kind_of_item,
        custom_error_type="item",
        custom_error_message="An item is a text, or an object with a field `text`",
    ),
]


class AfterIn(_In):
    """A task that must have ended before: successfully, or in whatever way."""

    id_task: Id
    needs: Need = Need.SUCCESS


class NewTaskIn(_In):
    """A task to be made, with all its items in one transaction. The fields are the options of `ai-worker submit`."""

    items: Annotated[list[ItemIn], Field(min_length=1, max_length=MOST_ITEMS)]
    type: Annotated[str, Field(min_length=1, max_length=50)] = "correction"
    model: Annotated[str, Field(max_length=100)] | None = None
    fallbacks: Annotated[list[str], Field(max_length=20)] = []
    description: Annotated[str, AfterValidator(_short_enough)] = ""
    parameters: JsonObject = {}
    key: Key | None = Field(None, description="Makes it safe to repeat, for ever: the same key never makes a second task.")
    priority: Annotated[int, Field(ge=-32_767, le=32_767)] = 0
    scheduled_at: (
        Annotated[
            datetime,
            AfterValidator(_in_utc),
            WithJsonSchema({"type": "string", "format": "date-time"}),
            Field(description="Not before."),
        ]
        | None
    ) = None
    after: Annotated[list[AfterIn], Field(max_length=100)] = []
    queue: Annotated[str, Field(pattern=rf"^{QUEUE_NAME.pattern}$")] = DEFAULT_QUEUE
    group: Annotated[str, Field(max_length=100)] | None = None
    budget: Budget | None = None
    lane: Literal["online", "flex", "batch"] = "online"
    pack: Annotated[int, Field(ge=1, le=100)] = 1
    max_attempts: Annotated[int, Field(ge=1, le=255)] = 3
    cache_seconds: Annotated[int, Field(ge=0, le=4_294_967_295)] = CACHE_SECONDS
    result_seconds: Annotated[int, Field(ge=1, le=4_294_967_295)] | None = None
    personal_data: Annotated[
        PersonalData,
        Field(description="`mask`: placeholders go to the model, the values come back. `block`: items with any are not sent."),
    ] = PersonalData.OFF

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "type": "correction",
                "model": "gpt",
                "items": ["Poszłem do domu.", {"text": "Ide tam gdzie zawsze", "key": "article-7"}],
            }
        },
    )


class RetryIn(_In):
    """Which items of the task are brought back from ERROR: all, or one."""

    id_task_item: Id | None = None


class ResumeIn(_In):
    """`budget` is what the task may cost from now on, in USD, with what it has cost so far."""

    budget: Budget | None = None


class ReviewIn(_In):
    """What you say of an item. `text` takes the place of the model's result, for `accept` only."""

    verdict: Literal["accept", "reject", "reset"]
    text: Annotated[str, Field(min_length=1)] | None = None
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] | None = None

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"verdict": "accept", "text": "Poszedłem do domu."}})


class RunIn(_In):
    """What is to be worked on: everything that waits, a task, an item, or so many items."""

    task: Id | None = None
    task_item: Id | None = None
    max_item: Annotated[int, Field(ge=1, le=4_294_967_295)] | None = None
    dry_run: bool = False

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"task": 7}})


VERDICTS: Final = {"accept": ReviewStatus.ACCEPTED, "reject": ReviewStatus.REJECTED, "reset": ReviewStatus.UNREVIEWED}
