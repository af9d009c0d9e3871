"""The fleet's sending time: one line for each model, of which workers lease stretches, by the database's clock.

Whoever holds a stretch may send at the model's full rate while it lasts, and nobody else. Nothing is ever given back: the stretch
of a worker that has died passes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ai_worker.db import Database

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

    def hold(self, id_ai_model: int, seconds: float) -> None:
        """Nobody gets sending time that begins within the next `seconds`: the provider has asked for a pause."""
        parameters = {"id_ai_model": id_ai_model, "hold_us": _us(seconds)}
        if not self._db.execute("hold_pace", parameters):
            self._db.execute("add_pace", {"id_ai_model": id_ai_model})
            self._db.execute("hold_pace", parameters)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
