"""How times, durations, numbers and money are written for people."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal


def iso(moment: datetime | None) -> str | None:
    """A time of the database (UTC, without a zone) in ISO 8601."""
    if moment is None:
        return None
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(seconds: float | None) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def number(value: int | None) -> str:
    """An integer in groups, as in `1,234,567`; a dash for None."""
    return "-" if value is None else f"{value:,}"


def money(value: Decimal | None) -> str:
    """US dollars with as many decimals as the amount needs; "unknown" for None, which is not nothing."""
    if value is None:
        return "unknown"
    if value == 0:
        return "$0"
    return f"${value:,.2f}" if abs(value) >= 1 else f"${value:.4f}" if abs(value) >= Decimal("0.001") else f"${value:.7f}"


def plain(value: Decimal | None) -> str | None:
    """An amount for programs, without the zeros that the column's scale adds: "0.0123"; None for None."""
    if value is None:
        return None
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
