"""The values that travel between the modules. Plain, immutable, without behaviour that needs a database or a network.

Those made for each item are named tuples: a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self

DEFAULT_QUEUE: Final = "default"
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}", re.ASCII)
"""What a queue may be called, for `run --queue` to name it."""
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class TaskStatus(IntEnum):
    """`task.status_id`; the names stand in the table `task_status` too."""

    NEW = 0
    IN_PROGRESS = 1
    COMPLETED = 2
    ERROR = 3
    PAUSED = 4
    CANCELLED = 5


class ItemStatus(IntEnum):
    """`task_item.status_id`; the names stand in the table `task_item_status` too."""

    PENDING = 0
    PROCESSED = 1
    IN_PROGRESS = 2
    ERROR = 3
    DEFERRED = 4
    CANCELLED = 5


class ReviewStatus(IntEnum):
    """`task_item.review_status_id`; the names stand in the table `review_status` too."""

    UNREVIEWED = 0
    ACCEPTED = 1
    REJECTED = 2


class Lane(StrEnum):
    """How an item reaches its model: `task.lane` is one of the first three, `task_attempt.lane` what it really was."""

    ONLINE = "online"
    FLEX = "flex"  # the provider's cheaper synchronous tier
    BATCH = "batch"  # handed in by the thousand, at half price
    CACHE = "cache"  # answered from an earlier result: nothing was sent


class PersonalData(StrEnum):
    """`task.personal_data`: what becomes of personal data in what is sent for an item."""

    OFF = "off"  # it is sent as it is
    MASK = "mask"  # placeholders are sent in its place, and the values come back into the result
    BLOCK = "block"  # an item with any is not sent


class Secret:
    """A string that does not show itself: not in `repr`, `str`, a log or a traceback. `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call. `tokens_input` includes `tokens_cached`; `tokens_output` includes `tokens_reasoning` and
    `tokens_image`, those of pictures that were made, which may have a price of their own."""

    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    tokens_image: int = 0

    def __add__(self, other: Usage) -> Usage:
        if self is NO_USAGE:
            return other
        return Usage(
            self.tokens_input + other.tokens_input,
            self.tokens_output + other.tokens_output,
            self.tokens_cached + other.tokens_cached,
            self.tokens_reasoning + other.tokens_reasoning,
            self.tokens_image + other.tokens_image,
        )


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Model:
    """One row of `ai_model`: an endpoint, a model name, a key, limits and prices.

    `api_key_encrypted` is what the database holds; only `keys.Keyring` turns it into a `Secret`.
    Prices are in USD per million tokens, `budget_per_day` in USD per UTC day; None means "not set here".
    """

    id_ai_model: int
    name: str
    provider: str
    model: str | None = None
    base_url: str | None = None
    api_key_encrypted: bytes | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    max_in_flight: int | None = None
    price_input: Decimal | None = None
    price_cached: Decimal | None = None
    price_output: Decimal | None = None
    budget_per_day: Decimal | None = None
    is_active: bool = True
    stopped_kind: str | None = None
    stopped_reason: str | None = None
    stopped_at: datetime | None = None
    probe_at: datetime | None = None


class Need(StrEnum):
    """`task_dependency.needs`: how a task must have ended for another to begin."""

    SUCCESS = "success"  # COMPLETED
    END = "end"  # COMPLETED, ERROR or CANCELLED


class Limits(NamedTuple):
    """What a model takes per minute, as it was configured or as its provider says; None where nobody says."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


NO_LIMITS = Limits()


class Learnt(NamedTuple):
    """What workers have learnt of a model's limits per minute.

    `growth` is by how much per second the requests grow, at first, from the moment `since` on (of `time.monotonic`; where that is
    later than now, not yet); 0 where the provider has named the limits.
    """

    requests_per_minute: int | None
    tokens_per_minute: int | None
    growth: float
    since: float


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs to know of a `task` row. `id_ai_model` is the model that a claim is for: one of `chain`.

    `cache_seconds` is how old an earlier answer may be (0: none is taken), `budget` is in USD, and `budget_per_day`, which is the
    model's, too; `chain` are the task's models in order.
    """

    id_task: int
    id_ai_model: int
    task_type: str
    description: str
    parameters: Mapping[str, Any]
    max_attempts: int
    priority: int
    status: TaskStatus
    max_in_flight: int | None = None  # of its model
    limits: Limits = NO_LIMITS  # of its model, for the whole fleet, as they were configured
    learnt: Learnt | None = None
    is_probe: bool = False  # its model is stopped and due to be tried again, with one item
    lane: Lane = Lane.ONLINE
    pack: int = 1  # items in one call, at most
    cache_seconds: int = 0
    budget: Decimal | None = None
    chain: tuple[int, ...] = ()
    budget_per_day: Decimal | None = None
    queue: str = DEFAULT_QUEUE
    id_prompt: int | None = None  # the prompt that it is pinned to
    time_limit: int | None = None  # seconds that an attempt may take, by its queue's or type's limit
    personal_data: PersonalData = PersonalData.OFF

    @property
    def position(self) -> int:
        """The place in the chain, from 0, of the model that this claim is for."""
        return self.chain.index(self.id_ai_model) if self.id_ai_model in self.chain else 0

    @property
    def has_further_model(self) -> bool:
        """Whether another model may take what this one refuses."""
        return self.position + 1 < len(self.chain)


class QueueShare(NamedTuple):
    """A queue that a worker takes from. While several have work, each gets slots in proportion to its `weight`."""

    name: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Filters:
    """Which items a worker takes. Empty means all."""

    id_task: int | None = None
    id_task_item: int | None = None
    task_types: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    queues: tuple[QueueShare, ...] = ()


class Needs(NamedTuple):
    """What a task wants drawn into its items' prompts.

    Of the same `context_key` so many of the latest `results` (of tasks of these `types`; none: of all) and `facts`, together at
    most so many `tokens`; and so many reviewed `examples` of the same task, accepted and rejected, again within `tokens`.
    """

    results: int = 0
    facts: int = 0
    examples: int = 0
    tokens: int = 1000
    types: tuple[str, ...] = ()


class Example(NamedTuple):
    """A reviewed item of the same task: what the model made of `text`, and what a person made of that."""

    text: str
    answer: str  # as accepted; of a rejected one, what was rejected
    is_accepted: bool
    note: str | None = None


class Background(NamedTuple):
    """What is drawn into an item's prompt beside the item: of the same `context_key`, or reviewed items of the same task."""

    results: tuple[tuple[str, str], ...] = ()  # (text, result) of earlier items, oldest first
    facts: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


NO_BACKGROUND: Final = Background()


class Item(NamedTuple):
    """One claimed `task_item`: the row, its task, and the fence (`claim_token`, `attempt`) that its commit names.

    `attempt` counts all claims from 1; `lost_count` of the earlier ones were lost to crashes, which costs no retry.
    `operation_uuid` names the attempt, in the usual text form. It has gone past so many models of the task's chain, the last of
    which `refused` it; one that `is_single` is sent alone and online. `context_key` names its subject (a user, a conversation);
    `background` is filled in by whoever makes its prompt.
    """

    id_task_item: int
    task: Task
    text_original: str
    context: Mapping[str, Any]
    attempt: int
    lost_count: int
    claim_token: bytes
    operation_uuid: str
    refused: int = 0
    is_single: bool = False
    context_key: str | None = None
    background: Background = NO_BACKGROUND

    @property
    def tries(self) -> int:
        """How many attempts were charged, this one included."""
        return self.attempt - self.lost_count

    @property
    def is_last_attempt(self) -> bool:
        return self.tries >= self.task.max_attempts

    @property
    def subject(self) -> str | None:
        """Whom the item is about. None where its key is missing or blank: rows that name nobody must not see one another's."""
        return None if self.context_key is None or not self.context_key.strip() else self.context_key


class ImageRequest(NamedTuple):
    """That a picture is asked for, and which; None leaves it to the provider. `size` is `1024x1024` or a ratio such as `16:9`."""

    size: str | None = None
    quality: str | None = None
    format: str | None = None  # png, jpeg or webp


class File(NamedTuple):
    """What a model has made that is no text. A provider fills in the first two; the rest, which a worker adds, says what the
    bytes are: pixels, SHA-256, a small picture of it."""

    content: bytes
    mime_type: str
    width: int | None = None
    height: int | None = None
    sha256: bytes | None = None
    thumbnail: bytes | None = None


class Prompt(NamedTuple):
    """What a provider sends.

    `system` is fixed for all items of a task, so that providers' prompt caches hit; `user` holds the row's text, delimited.
    `schema` is the JSON schema of the answer, an object. `text` is the bare row text and `answer_field` the schema's
    property that takes the main text: for providers that are not language models (`offline`, `echo`).
    `tokens_output_expected` is an estimate, for dry runs, rates and budgets. `lane` is what is asked for. `fingerprint` is a
    SHA-256 over all that determines the answer but the model; None where the same prompt must not be answered from a cache.
    With `image` a picture is asked for, and `schema` means nothing.
    """

    system: str
    user: str
    schema: Mapping[str, Any]
    schema_name: str
    text: str
    answer_field: str
    task_type: str
    parameters: Mapping[str, Any] = NOTHING
    temperature: float | None = None
    tokens_output_expected: int = 0
    lane: Lane = Lane.ONLINE
    fingerprint: bytes | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    image: ImageRequest | None = None


class Completion(NamedTuple):
    """A model's answer. `text` is JSON that should fit the prompt's schema; `finish` says how the answer ended; `lane` is the one
    that it was served and is billed in, `limits` what the provider said of its own. `files` are the pictures that were asked for;
    `text` is then what the model said beside them, if anything.
    """

    text: str
    usage: Usage = NO_USAGE
    finish: Literal["stop", "length"] = "stop"
    model: str | None = None
    request_id: str | None = None
    lane: Lane = Lane.ONLINE
    limits: Limits | None = None
    files: tuple[File, ...] = ()


class Result(NamedTuple):
    """What is stored for an item: the main text, a summary of the changes, and the whole structured answer.

    `files` go into `task_item_file`, `facts` about the item's `context_key` into `context_fact`.
    """

    text_corrected: str | None
    change_summary: str | None
    data: Mapping[str, Any]
    files: tuple[File, ...] = ()
    facts: tuple[str, ...] = ()


class Step(NamedTuple):
    """One of several calls that an item of a task takes, one after the other. `model` names one; None: the task's own."""

    name: str
    model: str | None = None


class StepResult(NamedTuple):
    """What a finished step has brought: the text of its answer field, and the whole answer."""

    text: str
    data: Mapping[str, Any]


class OutcomeKind(StrEnum):
    """How an attempt ended; `task_attempt.outcome`."""

    PROCESSED = "processed"
    RETRY = "retry"  # failed, charged; deferred to a later attempt, or dead letter when that was the last
    FAILED = "failed"  # failed for good: dead letter
    POSTPONED = "postponed"  # not the item's fault: deferred, uncharged
    PASSED_ON = "passed_on"  # refused by its model: for the next one of the chain, at once, uncharged; on record as postponed
    RELEASED = "released"  # given back untouched, uncharged; leaves no row in task_attempt
    LOST = "lost"  # its worker died, or its result came after somebody else's claim


class Outcome(NamedTuple):
    """How one attempt at one item ended, ready to be committed. Made by the named constructors only.

    `cost` is in USD, None where the price is unknown; `delay` in seconds until the item may be claimed again. `single` says that
    from now on the item is sent alone and online. `cache_key` is that of the work which the item leads in the result cache: its
    commit stores the answer, or frees the work for another. A processed one with an `error_kind` has failed, and its result is
    what its task type gives instead: it goes on the record of the attempt, and is no answer to identical work.
    `is_joined` says that the result was joined from stored parts, which nobody needs any more.
    """

    item: Item
    kind: OutcomeKind
    usage: Usage = NO_USAGE
    cost: Decimal | None = None
    result: Result | None = None
    error_kind: str | None = None
    error_message: str | None = None
    delay: float = 0.0
    latency_ms: int | None = None
    lane: Lane = Lane.ONLINE
    single: bool = False
    cache_key: bytes | None = None
    is_joined: bool = False

    @classmethod
    def processed(cls, item: Item, result: Result, usage: Usage, cost: Decimal | None, latency_ms: int) -> Self:
        return cls(item, OutcomeKind.PROCESSED, usage, cost, result, latency_ms=latency_ms)

    @property
    def is_answer(self) -> bool:
        """Whether the model has answered, and the answer is stored."""
        return self.kind is OutcomeKind.PROCESSED and self.error_kind is None

    def instead(self, result: Result) -> Self:
        """What has failed, ended with a result that its task type gives instead of an answer."""
        return self._replace(kind=OutcomeKind.PROCESSED, result=result)

    @classmethod
    def retry(
        cls, item: Item, kind: str, message: str, delay: float, usage: Usage, cost: Decimal | None, latency_ms: int
    ) -> Self:
        """Charged. The last allowed attempt becomes `refused` here, so that nobody has to remember to ask."""
        if item.is_last_attempt:
            return cls.refused(item, kind, message, usage, cost, latency_ms)
        return cls(item, OutcomeKind.RETRY, usage, cost, None, kind, message, delay, latency_ms)

    @classmethod
    def refused(cls, item: Item, kind: str, message: str, usage: Usage, cost: Decimal | None, latency_ms: int) -> Self:
        """For a reason that another model may not share: passed on where the chain has one, `failed` where it has none."""
        outcome = OutcomeKind.PASSED_ON if item.task.has_further_model else OutcomeKind.FAILED
        return cls(item, outcome, usage, cost, None, kind, message, 0.0, latency_ms)

    @classmethod
    def failed(cls, item: Item, kind: str, message: str, usage: Usage, cost: Decimal | None, latency_ms: int) -> Self:
        return cls(item, OutcomeKind.FAILED, usage, cost, None, kind, message, 0.0, latency_ms)

    @classmethod
    def postponed(
        cls, item: Item, kind: str, message: str, delay: float, usage: Usage, cost: Decimal | None, latency_ms: int
    ) -> Self:
        return cls(item, OutcomeKind.POSTPONED, usage, cost, None, kind, message, delay, latency_ms)

    @classmethod
    def released(cls, item: Item) -> Self:
        return cls(item, OutcomeKind.RELEASED)
