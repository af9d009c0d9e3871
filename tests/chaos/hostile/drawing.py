"""Hundreds of examples drawn at once, to be sent through a database together; and what terminals may be shown."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def drawn(strategy: SearchStrategy[T], count: int, number: int) -> list[T]:
    """So many examples of a strategy; the same number draws the same ones. A failure names its example, and is not shrunk: one
    at a time, ten thousand would take the database an hour."""
    found: list[T] = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def gather(value: T) -> None:
        found.append(value)

    gather()
    return found


def steering(text: str) -> list[str]:
    """The characters in a program's output that could steer the terminal: controls but tab and newline."""
    return sorted(set(_STEERING.findall(text)))


def named(value: Any) -> str:
    """An example, as a failure shows it."""
    shown = repr(value)
    return shown if len(shown) < 400 else f"{shown[:400]}… ({len(shown):,} characters)"
