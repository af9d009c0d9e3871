"""What an application gives to a client, read before anything is sent: it need not be typed, so each wrong value is answered with
the parameter's name, the value, and what it may be. All raise UsageError.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NoReturn, TypeVar

from ai_worker.errors import UsageError
from ai_worker.models import Need

E = TypeVar("E", bound=Enum)

LARGEST_ID: Final = 2**63 - 1
LONGEST_DESCRIPTION: Final = 65_535  # bytes of task.description
_LONGEST_SHOWN: Final = 100
_LEAST_USD, _MOST_USD = Decimal("1e-9"), Decimal(10) ** 9  # task.budget is DECIMAL(18,9)


def wrong(name: str, value: object, wanted: str) -> NoReturn:
    """Refuses a value."""
    shown = repr(value)
    shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 1]}…"
    raise UsageError(f"{name} {shown} must be {wanted}")


def whole(name: str, value: Any, minimum: int, maximum: int) -> int:
    """A whole number within bounds; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        wrong(name, value, f"a whole number from {minimum:,} to {maximum:,}")
    return value


def identity(name: str, value: Any) -> int:
    """The id of a row."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_ID:
        wrong(name, value, "an id, a whole number above 0")
    return value


def identities(name: str, value: Any) -> list[int]:
    """An id, or several."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [identity(name, value)]
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        wrong(name, value, "an id or several ids, whole numbers above 0")
    return [identity(name, each) for each in value]


def text(name: str, value: Any, most: int | None = None, least: int = 0) -> str:
    """A text of so many characters."""
    if not isinstance(value, str) or len(value) < least or (most is not None and len(value) > most):
        wrong(name, value, "a text" if most is None else f"a text of {least} to {most:,} characters")
    return value


def description(name: str, value: Any) -> str:
    """An instruction in words, as long as its column takes."""
    if len(text(name, value).encode("utf-8", "replace")) > LONGEST_DESCRIPTION:
        wrong(name, value, f"a text of up to {LONGEST_DESCRIPTION:,} bytes")
    return str(value)


def texts(name: str, value: Any) -> list[str]:
    """Several names; a single text is not taken for its letters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        wrong(name, value, "a list of names")
    return [text(name, each) for each in value]


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        wrong(name, value, "True or False")
    return value


def one_of(name: str, kind: type[E], value: Any, but: Collection[E] = ()) -> E:
    """A member of an enumeration, `but` not one of those: itself, or by its name or its text, in letters of either size."""
    known = [each for each in kind if each not in but]
    if isinstance(value, kind) and value in known:
        return value
    by_word = {word.casefold(): each for each in known for word in (each.name, each.value) if isinstance(word, str)}
    if isinstance(value, str) and value.casefold() in by_word:
        return by_word[value.casefold()]
    words = [each.value if isinstance(each.value, str) else each.name for each in known]
    wrong(name, value, f"one of {', '.join(map(repr, words))}")


def seconds(name: str, value: Any, maximum: int | None = None) -> float:
    """A length of time, above 0 and up to `maximum`; without one, 0 and less are taken too, and mean: not at all."""
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value == value  # noqa: PLR0124 -- not NaN
    if not is_number or (maximum is not None and not 0 < value <= maximum):
        wrong(name, value, "a number of seconds" + ("" if maximum is None else f" above 0 and up to {maximum:,}"))
    return float(value)


def timeout(value: Any) -> None:
    """For how long a result is waited for; None: as long as it takes."""
    if value is not None:
        seconds("timeout", value)


def moment(name: str, value: Any) -> datetime:
    """A time as the database keeps it: in UTC, without a zone. One that is given without a zone is local."""
    if not isinstance(value, datetime):
        wrong(name, value, "a datetime")
    try:
        return value.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        wrong(name, value, "a datetime between the years 2 and 9998")


def usd(name: str, value: Any) -> Decimal:
    """An amount of money above zero."""
    try:
        amount = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    except (ArithmeticError, TypeError, ValueError):
        amount = Decimal()
    if isinstance(value, bool) or not (amount.is_finite() and _LEAST_USD <= amount < _MOST_USD):
        raise UsageError(f"{name} {value!r} is not an amount above zero; give US dollars, for example '5.00'")
    return amount


def waits(name: str, value: Any) -> dict[int, Need]:
    """Which tasks are waited for, and how each must end."""
    if isinstance(value, Mapping):
        return {identity(name, each): one_of(f"{name}[{each}]", Need, need) for each, need in value.items()}
    return dict.fromkeys(identities(name, value), Need.SUCCESS)


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Values by name."""
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        wrong(name, value, "a mapping of values by name")
    return dict(value)
