"""Every error this package raises on purpose.

AiWorkerError                     a message for people; `exit_code` for the shell
├── UsageError              2     the command line, or a file named on it, is wrong
│   └── NotFound            2     what it names is not there
├── ConfigurationError     78     settings, keys or the server's set-up are wrong: a restart does not help
│   └── SchemaMismatch     78     the database's schema is too old or too new for this version
├── DatabaseError           1     the server refused a statement
│   ├── ValueRefused        1     because of a value in it: too long, of the wrong kind, against a CHECK
│   ├── DatabaseAway       75     no server could be reached, or none that accepts writes: try later
│   └── DatabaseRefused    78     the server does not let us in: user, password, database name, TLS
├── WorkerBroken            1     a worker cannot go on: a thread of it has died, no memory is left
├── ItemFailed              1     an item that was waited for ended without a result
├── ItemMissing             1     an item that was waited for is not there
├── WaitTimeout             1     no result yet when the time was over
└── ProviderError                 a model call that brought no usable answer; sorted by what must happen next
    ├── Transient                 call retry, in memory: the same request may succeed soon
    │   ├── RateLimited           429: slower, please
    │   ├── Overloaded            408, 409, 500, 502, 503, 504, 529
    │   │   └── Shed              the cheaper tier has no room now; the online one may
    │   └── NetworkFailed         no connection, connection lost, time-out
    ├── ModelStopped              no item can succeed on this model now: it is stopped for every worker
    │   ├── QuotaExhausted        money or quota is spent
    │   ├── AccessDenied          401, 403: key wrong or not allowed
    │   └── ModelUnknown          404: no such model or endpoint
    ├── ItemRejected              this item will never succeed as it is: dead letter
    │   ├── ContentRefused        the provider's or the model's policy refused the text
    │   ├── InputTooLong          413, or more tokens than the model takes
    │   └── InvalidRequest        400, 422
    ├── TimedOut                  the attempt's time limit is over: a later attempt
    └── BadAnswer                 the call succeeded (and cost money) but its answer cannot be used
"""

from __future__ import annotations

from typing import ClassVar

from ai_worker.models import NO_USAGE, Limits, Usage

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ITEMS_FAILED = 3
EXIT_TEMPORARY = 75  # sysexits.h EX_TEMPFAIL
EXIT_CONFIGURATION = 78  # sysexits.h EX_CONFIG


class AiWorkerError(Exception):
    """Base of all errors with a message meant for people."""

    exit_code: ClassVar[int] = EXIT_FAILED


class UsageError(AiWorkerError):
    """The command line, or a file named on it, is wrong."""

    exit_code = EXIT_USAGE


class NotFound(UsageError):
    """What was asked for by its name or number is not there."""


class ConfigurationError(AiWorkerError):
    """Settings, keys or the server's set-up are wrong; starting again will not help."""

    exit_code = EXIT_CONFIGURATION


class CannotMask(ConfigurationError):
    """This host lacks what it takes to find personal data, and must not process an item whose task asks for that."""


class SchemaMismatch(ConfigurationError):
    """The database's schema is older than the one this version was written for, or newer and not compatible with it."""


class DatabaseError(AiWorkerError):
    """The server refused a statement. `code` is the server's error number, 0 where there is none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ValueRefused(DatabaseError):
    """The server does not take a value of the statement; the same statement will never succeed."""


class DatabaseAway(DatabaseError):
    """No server could be reached, or none of them accepts writes, or conflicts on it would not end: later it may work."""

    exit_code = EXIT_TEMPORARY


class DatabaseRefused(DatabaseError):
    """The server answered, and does not let us in: user, password, database name or TLS are wrong."""

    exit_code = EXIT_CONFIGURATION


class WorkerBroken(AiWorkerError):
    """A worker cannot go on, and must be started anew: a thread of it has died, or no memory is left."""


class ItemFailed(AiWorkerError):
    """An item that was waited for ended without a result.

    Parameters
    ----------
    id_task_item: which.
    kind: `task_item.error_kind`, or `cancelled`.
    message: `task_item.error_message`, or why there is none.
    """

    def __init__(self, id_task_item: int, kind: str, message: str) -> None:
        super().__init__(f"item {id_task_item}: {kind}: {message}")
        self.id_task_item = id_task_item
        self.kind = kind
        self.message = message


class ItemMissing(AiWorkerError, LookupError):
    """An item that was waited for is not there: it never was, or somebody has deleted it."""


class WaitTimeout(AiWorkerError, TimeoutError):
    """No result yet when the time was over. The item is worked on all the same, and can be waited for again."""


class ProviderError(AiWorkerError):
    """A model call that brought no usable answer.

    Parameters
    ----------
    message: what happened, in words; never holds a key.
    usage: tokens that were billed all the same.
    code: the provider's own error code, for the record.
    retry_after: seconds after which the provider said to come back, None if it said nothing.
    limits: what the provider said that it allows per minute, None if it said nothing.
    """

    kind: ClassVar[str] = "provider"

    def __init__(
        self,
        message: str,
        *,
        usage: Usage = NO_USAGE,
        code: str | None = None,
        retry_after: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(message)
        self.usage = usage
        self.code = code
        self.retry_after = retry_after
        self.limits = limits


class Transient(ProviderError):
    """The same request may succeed soon: retried within the attempt."""

    kind = "transient"


class RateLimited(Transient):
    """Too many requests or tokens per minute."""

    kind = "rate_limited"


class Overloaded(Transient):
    """The provider is overloaded or broken."""

    kind = "overloaded"


class Shed(Overloaded):
    """The provider's cheaper tier has no room now; in the lane online the same request may succeed at once. Nothing is billed."""

    kind = "shed"


class NetworkFailed(Transient):
    """No connection, a connection lost in mid-answer, or a time-out."""

    kind = "network"


class ModelStopped(ProviderError):
    """No item can succeed on this model now; it is stopped for every worker and its items wait, uncharged."""

    kind = "model_stopped"


class QuotaExhausted(ModelStopped):
    """The account's money or quota is spent."""

    kind = "quota_exhausted"


class AccessDenied(ModelStopped):
    """The API key is wrong, missing or lacks a permission."""

    kind = "access_denied"


class ModelUnknown(ModelStopped):
    """The provider knows no such model or endpoint."""

    kind = "model_unknown"


class ItemRejected(ProviderError):
    """This item will not succeed however often it is sent: dead letter."""

    kind = "item_rejected"


class ContentRefused(ItemRejected):
    """The provider's filter or the model itself refused the content."""

    kind = "content_refused"


class InputTooLong(ItemRejected):
    """The text is longer than the model takes."""

    kind = "input_too_long"


class InvalidRequest(ItemRejected):
    """The provider called the request invalid."""

    kind = "invalid_request"


class PersonalDataFound(ItemRejected):
    """Nothing of the item may be sent: what is personal in it is to be blocked, or cannot be masked. Names kinds, no values."""

    kind = "personal_data"


class TimedOut(ProviderError):
    """The attempt has taken as long as its task or queue allows, and its call was broken off."""

    kind = "timeout"


class BadAnswer(ProviderError):
    """The call succeeded, but its answer cannot be used: empty, cut short, of the wrong shape, or failing a check."""

    kind = "bad_answer"
