"""What `submit` understands of order and time: `--after`, `--group`, `--result-ttl`; and lengths of time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ai_worker.errors import UsageError
from ai_worker.models import Need

LONGEST_SECONDS: Final = 4_294_967_295  # of the columns that hold them
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_of(text: str, option: str, otherwise: str) -> int:
    """A length of time in seconds: `30d`, `12h`, `45m`, `90s`, `0`. A number alone might be meant as days: it is refused.

    Raises UsageError, which names the `option` and says what `otherwise` (`or 0 for …`) could be written.
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    is_number = number.isascii() and number.isdigit() and (number != text or not int(number))
    if not is_number or int(number) * _UNITS[unit] > LONGEST_SECONDS:
        raise UsageError(f"{option} {text!r} is not a length of time; write it as 30d, 12h, 45m{otherwise}")
    return int(number) * _UNITS[unit]


def result_seconds(text: str) -> int:
    """How long results are kept."""
    if not (seconds := seconds_of(text, "--result-ttl", "")):
        raise UsageError("--result-ttl 0: results that are gone at once are of no use; write it as 30d, 12h, 45m")
    return seconds


def after(texts: Iterable[str]) -> dict[int, Need]:
    """What `--after` names: `7` or `7:success`, `7:end`. The same task twice needs the more of both: success."""
    found: dict[int, Need] = {}
    for text in texts:
        number, _, need = text.partition(":")
        if not (number.isascii() and number.isdigit() and 0 < int(number) < 2**63) or need not in {"", "success", "end"}:
            raise UsageError(
                f"--after {text!r} is not the number of a task; write 7 (when it has succeeded) or 7:end (however it ended)"
            )
        wanted = Need.END if need == "end" else Need.SUCCESS
        found[int(number)] = Need.SUCCESS if Need.SUCCESS in {wanted, found.get(int(number))} else wanted
    return found
