"""Cron expressions in a time zone: when a schedule fires next. Pure computation, no clock.

Five fields (minute, hour, day of month, month, day of week), as `cronsim` reads them, which follows Debian's cron: lists, ranges,
steps, names (`MON`, `JAN`), `L` for the last day of a month, `FRI#2`, `5L`. Where both days are restricted, either one is enough.

At changes to and from summer time, as Debian's cron does it (cron(8)): where minute and hour are both given, a time that the
change skips fires right after it, once, and one that comes twice fires the first time alone. Where one of them begins with `*`,
the expression goes by the clock on the wall: what is skipped does not fire, what comes twice fires twice.
Source: https://manpages.debian.org/bookworm/cron/cron.8.en.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ai_worker.errors import UsageError

LONGEST: Final = 100  # characters of schedule.cron
# To find the latest time before a moment, first within the last hour, then within longer and longer.
_LOOKS_BACK: Final = tuple(timedelta(hours=hours) for hours in (1, 24, 24 * 32, 24 * 367))


class Cron:
    """One expression in one zone. Moments are in UTC, without a zone, as the database keeps them.

    Raises UsageError when the expression or the zone cannot be used, saying which.
    """

    def __init__(self, expression: str, zone: str) -> None:
        if len(expression.split()) != 5 or len(expression) > LONGEST:
            raise UsageError(f"cron {expression!r} must have five fields: minute, hour, day of month, month, day of week")
        try:
            self.zone: Final = ZoneInfo(zone)
        except (KeyError, OSError, ValueError):  # unknown, or no name of a zone at all
            raise UsageError(f"there is no time zone {zone!r} on this host; write it as Europe/Warsaw or UTC") from None
        try:
            CronSim(expression, datetime(2000, 1, 1))  # noqa: DTZ001 -- only whether it can be read
        except CronSimError as error:
            text = str(error).lower()
            raise UsageError(
                f'cron {expression!r} cannot be read: {text}; an example: "0 2 * * *" is every night at two'
            ) from None
        self._expression = expression

    def times(self, moment: datetime) -> Iterator[datetime]:
        """All times after a moment, in order; ends where nothing comes within fifty years, or the calendar does."""
        with suppress(OverflowError):
            for local in CronSim(self._expression, moment.replace(tzinfo=UTC).astimezone(self.zone)):
                # Between a doubled hour's two passes the next time by the wall may lie before the moment: it has been.
                if (time := local.astimezone(UTC).replace(tzinfo=None)) > moment:
                    yield time

    def after(self, moment: datetime) -> datetime | None:
        """The first time after a moment; None: never again."""
        return next(self.times(moment), None)

    def latest(self, since: datetime, until: datetime) -> datetime:
        """The last time up to `until`, which is no earlier than `since`, a time itself."""
        for back in _LOOKS_BACK:
            start = max(since, until - back)
            found = since
            for time in self.times(start):
                if time > until:
                    break
                found = time
            if found > since or start == since:
                return found
        found = since
        for time in self.times(since):
            if time > until:
                break
            found = time
        return found

    def local(self, moment: datetime) -> datetime:
        """The moment in the schedule's zone."""
        return moment.replace(tzinfo=UTC).astimezone(self.zone)
