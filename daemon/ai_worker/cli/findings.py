"""What a check of `doctor` has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ai_worker.errors import EXIT_CONFIGURATION, EXIT_FAILED


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. `remedy` says what to do; `exit_code` is what a problem makes of the command's."""

    level: Literal["ok", "warning", "problem"]
    check: str
    message: str
    remedy: str | None = None
    exit_code: int = EXIT_FAILED


def ok(check: str, message: str) -> Finding:
    return Finding("ok", check, message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """Works, but not as well or as safely as it should."""
    return Finding("warning", check, message, remedy)


def problem(check: str, message: str, remedy: str, exit_code: int = EXIT_FAILED) -> Finding:
    """Some or all of the work cannot be done."""
    return Finding("problem", check, message, remedy, exit_code)


def misconfigured(check: str, message: str, remedy: str) -> Finding:
    """A problem that a restart does not solve."""
    return Finding("problem", check, message, remedy, EXIT_CONFIGURATION)
