"""The doctor's look at the fleet: workers of other versions or without a sign of life, tokens, and who can reach the web."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from ai_worker import __version__, formats
from ai_worker.cli.findings import Finding, ok, warning
from ai_worker.cli.status import visible
from ai_worker.config import Settings
from ai_worker.db import Database
from ai_worker.store.reports import Reports, WorkerReport
from ai_worker.store.tokens import TokenReport, Tokens

SOON: Final = timedelta(days=7)


def check_fleet(db: Database) -> Iterator[Finding]:
    """Findings about the workers that the database knows."""
    yield from of_workers(Reports(db).workers())


def of_workers(workers: Sequence[WorkerReport]) -> Iterator[Finding]:
    """The same, of these."""
    sound = True
    others = [each for each in workers if each.version != __version__ and each.state != "lost"]
    if others:
        sound = False
        names = ", ".join(f"{each.id_worker} on {visible(each.host)} ({visible(each.version)})" for each in others[:5])
        message = f"{_count(others)} of another version than {__version__}: {names}"
        yield warning("workers", message, "They work side by side; upgrade the hosts one by one, see docs/upgrades.md.")
    for each in workers:
        if each.state in {"late", "lost"}:
            sound = False
            where = f"worker {each.id_worker} on {visible(each.host)}, pid {each.pid},"
            message = f"{where} was last heard of {formats.duration(each.silent_seconds)} ago ({each.state})"
            yield warning(
                "workers", message, "Its items go to others once its lease is over. Does its host, or the way there, hang?"
            )
    if sound:
        yield ok("workers", f"{_count(workers)} at work, none silent")


def check_web(settings: Settings, db: Database, *, is_served: bool) -> Iterator[Finding]:
    """Findings about the web; `is_served`: this host has it as a service."""
    tokens = Tokens(db).all()
    if is_served or tokens:
        yield from of_tokens(tokens, datetime.now(UTC).replace(tzinfo=None))
    if is_open(settings.web_host) and not settings.web_proxies:
        message = f"bound to {settings.web_host}: tokens and texts travel to it in the clear"
        remedy = "Bind it to 127.0.0.1 behind a proxy with TLS, and name the proxy in AI_WORKER_WEB_PROXIES."
        yield warning("web", message, remedy)


def of_tokens(tokens: Sequence[TokenReport], now: datetime) -> Iterator[Finding]:
    """Findings about tokens at the moment `now`, in UTC without a zone."""
    valid = [each for each in tokens if each.is_valid]
    if not valid:
        yield warning("web", "there is no valid token: nobody can log in", "`ai-worker token add NAME --scope admin` makes one.")
        return
    ending = [each for each in valid if each.expire_at is not None and each.expire_at - now < SOON]
    for each in ending:
        message = f"the token {visible(each.name)} expires at {formats.iso(each.expire_at)}"
        yield warning("web", message, "Make another one with `ai-worker token add`, and put it where this one is used.")
    if not ending:
        yield ok("web", "1 valid token" if len(valid) == 1 else f"{len(valid)} valid tokens")


def is_open(host: str) -> bool:
    """Whether an address is reached from other machines."""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return True


def _count(workers: Sequence[object]) -> str:
    return "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
