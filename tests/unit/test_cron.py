"""Cron expressions in their zones, above all at the changes to and from summer time. Expectations are written out by hand."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice

import pytest

from ai_worker.cron import Cron
from ai_worker.errors import UsageError

WARSAW = "Europe/Warsaw"


def times(expression: str, after: str, count: int, zone: str = WARSAW) -> list[str]:
    return [f"{each:%d %H:%M}" for each in islice(Cron(expression, zone).times(datetime.fromisoformat(after)), count)]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        # 2026-03-29, 02:00 -> 03:00 (01:00 UTC): what is skipped comes right after, once
        ("30 2 * * *", "2026-03-27 12:00", ["28 01:30", "29 01:00", "30 00:30"]),
        ("15,45 2 * * *", "2026-03-28 12:00", ["29 01:00", "30 00:15", "30 00:45"]),
        ("0 2,3 * * *", "2026-03-28 12:00", ["29 01:00", "30 00:00", "30 01:00"]),
        # ... but by the clock on the wall it does not come at all
        ("30 * * * *", "2026-03-28 23:00", ["28 23:30", "29 00:30", "29 01:30", "29 02:30"]),
        ("*/30 2 * * *", "2026-03-28 12:00", ["30 00:00", "30 00:30"]),
        # 2026-10-25, 03:00 -> 02:00 (01:00 UTC): what comes twice fires the first time
        ("30 2 * * *", "2026-10-23 12:00", ["24 00:30", "25 00:30", "26 01:30"]),
        ("30 2 * * *", "2026-10-25 00:45", ["26 01:30"]),
        ("30 2 * * *", "2026-10-25 01:10", ["26 01:30"]),  # in the second pass, before 02:30 by the clock
        # ... and by the clock on the wall twice
        ("30 * * * *", "2026-10-24 23:00", ["24 23:30", "25 00:30", "25 01:30", "25 02:30"]),
    ],
)
def test_changes_of_time(expression: str, after: str, expected: list[str]) -> None:
    assert times(expression, after, len(expected)) == expected


def test_each_time_follows_from_the_one_before() -> None:
    """A schedule goes on from its last time alone: that must lead through the same times as going on without a stop."""
    for expression in ("30 2 * * *", "30 * * * *", "15,45 2 * * *", "0 2,3 * * *", "0 */5 * * *"):
        for start in (datetime(2026, 3, 27), datetime(2026, 10, 23)):  # noqa: DTZ001 -- UTC without a zone, as in the database
            cron = Cron(expression, WARSAW)
            at_once = list(islice(cron.times(start), 60))
            moment, one_by_one = start, []
            for _ in at_once:
                moment = cron.after(moment) or moment
                one_by_one.append(moment)
            assert one_by_one == at_once
            assert len(set(at_once)) == len(at_once)


@pytest.mark.parametrize("expression", ["* * * * *", "30 2 * * *", "0 9 * * MON", "0 0 1 1 *", "0 0 29 2 *"])
def test_the_latest_time_is_found_from_near_and_far(expression: str) -> None:
    cron = Cron(expression, WARSAW)
    since = cron.after(datetime(2015, 1, 1))  # noqa: DTZ001 -- the same
    assert since is not None
    for until in (since, since + timedelta(days=1, minutes=7), datetime(2026, 3, 29, 12, 34)):  # noqa: DTZ001 -- the same
        latest = cron.latest(since, until)
        following = cron.after(latest)
        assert since <= latest <= until
        assert following is not None
        assert following > until


@pytest.mark.parametrize(
    ("expression", "zone", "message"),
    [
        ("* * * *", "UTC", "five fields"),
        ("0 * * * * *", "UTC", "five fields"),
        ("@daily", "UTC", "five fields"),
        ("61 * * * *", "UTC", "bad minute"),
        ("0 0 * * FOO", "UTC", "bad day-of-week"),
        ("0 0 30 2 *", "UTC", "bad day-of-month"),
        ("0 0 * * *", "Mars/Base", "time zone 'Mars/Base'"),
        ("0 0 * * *", "../../etc/passwd", "time zone"),
        ("0 0 * * *", "", "time zone"),
    ],
)
def test_what_cannot_be_used_is_refused(expression: str, zone: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cron(expression, zone)


def test_the_calendar_has_an_end() -> None:
    assert Cron("0 2 * * *", "UTC").after(datetime(9999, 12, 31, 23)) is None  # noqa: DTZ001 -- as the database has it
