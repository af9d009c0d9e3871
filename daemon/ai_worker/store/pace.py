"""The fleet's sending time: one line for each model, of which workers lease stretches, by the database's clock.

Whoever holds a stretch may send at the model's full rate while it lasts, and nobody else. Nothing is ever given back: the stretch
of a worker that has died passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ai_worker.db import Database
from ai_worker.models import Limits

AHEAD_SECONDS: Final = 30.0  # no stretch begins later than that: so much of the line is lost at most, when a whole fleet dies


class Stretch(NamedTuple):
    """The answer to a request for sending time. Seconds from the moment when the database was asked.

    `wait` is until the stretch begins where one `is_leased`; else until the line's end, which is too far ahead.
    """

    is_leased: bool
    wait: float


class Pace:
    """The verbs of `ai_model_pace`. Each is one statement and may be called from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def lease(self, id_ai_model: int, seconds: float) -> Stretch:
        """Takes the next free `seconds` of a model's sending time."""
        parameters = {"id_ai_model": id_ai_model, "stretch_us": _us(seconds), "ahead_us": _us(AHEAD_SECONDS)}
        matched, wait = self._db.execute_for_id("lease_pace", parameters)
        if not wait:  # nobody has paced this model yet
            self._db.execute("add_pace", {"id_ai_model": id_ai_model})
            matched, wait = self._db.execute_for_id("lease_pace", parameters)
        return Stretch(matched == 1, max(0, wait - 1) / 1e6)

    def told(self, id_ai_model: int, limits: Limits, pay: float) -> None:
        """The provider has named its limits, and this worker has used `pay` seconds of sending time that it had not leased."""
        self._row("tell_pace", id_ai_model, **limits._asdict(), pay_us=_us(pay))

    def count(self, id_ai_model: int, answers: int, growth: float, pause: float, growths: Sequence[float], forget: float) -> None:
        """Adds what a worker got answered in the minute before the provider refused: the sum over all is the first guess.

        `growths` are those that mark a first guess; what was learnt and not refused for `forget` seconds is replaced.
        """
        parameters = {"answers": answers, "growth": growth, "growths": tuple(growths), "forget_us": _us(forget)}
        self._row("count_pace", id_ai_model, **parameters, pause_us=_us(pause))

    def lower(self, id_ai_model: int, requests_per_minute: int, growth: float, pause: float, window: float) -> None:
        """The provider has refused: a new limit, which begins to grow after the pause. Once per window for all workers."""
        parameters = {
            "requests_per_minute": requests_per_minute,
            "growth": growth,
            "pause_us": _us(pause),
            "window_us": _us(window),
        }
        self._row("lower_pace", id_ai_model, **parameters)

    def _row(self, name: str, id_ai_model: int, **parameters: Any) -> None:
        if not self._db.execute(name, {"id_ai_model": id_ai_model, **parameters}):
            self._db.execute("add_pace", {"id_ai_model": id_ai_model})
            self._db.execute(name, {"id_ai_model": id_ai_model, **parameters})

    def hold(self, id_ai_model: int, seconds: float) -> None:
        """Nobody gets sending time that begins within the next `seconds`: the provider has asked for a pause."""
        self._row("hold_pace", id_ai_model, hold_us=_us(seconds))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
