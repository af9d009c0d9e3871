"""`group`: tasks with a common progress, a common end, and one callback that tells of it."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.keys import read_secret
from ai_worker.cli.status import visible
from ai_worker.errors import UsageError
from ai_worker.log import redacted_text
from ai_worker.models import ItemStatus, Secret, TaskStatus
from ai_worker.store.groups import Delivery, Group, Groups

LONGEST_URL = 1000  # characters of task_group.callback_url
SECRET_BYTES = 32  # of one that is made here

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def group() -> None:
    """Tasks with a common progress, a common end, and one callback that tells of it.

    \b
    ai-worker group add nightly --callback https://example.com/done
    ai-worker submit a.csv --group nightly
    ai-worker submit b.csv --group nightly
    ai-worker group close nightly
    """


@group.command()
@click.argument("name")
@click.option("--callback", "url", metavar="URL", help="Where its end is told, by POST.")
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the secret that callbacks are signed with. It is stored encrypted.",
)
@click.option("--secret-stdin", is_flag=True, help="Read the secret from standard input.")
@_JSON
def add(name: str, url: str | None, secret_file: Path | None, secret_stdin: bool, as_json: bool) -> None:
    """Make an open group NAME; `submit --group NAME` puts tasks into it.

    A callback is signed by the Standard Webhooks specification. Where no secret is given one is made, and printed this once.
    """
    given = _given_secret(secret_file, secret_stdin)
    if url is None and given is not None:
        raise UsageError("a secret is for callbacks: give --callback URL, too")
    if url is not None:
        _check_url(url)
    settings = context.settings()
    made = None if url is None or given is not None else Secret("whsec_" + base64.b64encode(os.urandom(SECRET_BYTES)).decode())
    secret = given or made
    ring = context.keyring(settings) if secret is not None else None
    if ring is not None and secret is not None:
        ring.encrypt_group(0, secret)  # fails before anything is stored
    with context.database(settings) as db:
        seal = None if ring is None or secret is None else lambda id_task_group: ring.encrypt_group(id_task_group, secret)
        Groups(db).add(name, url, seal)
    if as_json:
        context.emit_json({"group": name, "secret": made.reveal() if made else None})
        return
    click.echo(f"group {visible(name)} is open")
    if made is not None:
        click.echo("its callbacks are signed with this secret; give it to the receiver, it is not shown again:")
        click.echo(made.reveal())


@group.command()
@click.argument("name")
def close(name: str) -> None:
    """No further tasks come: when all of its tasks have ended, so has the group."""
    with context.database() as db:
        is_closed = Groups(db).close(name)
    click.echo(f"group {visible(name)} {'closed' if is_closed else 'was closed already'}")


@group.command("list")
@_JSON
def list_(as_json: bool) -> None:
    """All groups, the newest first, with their progress and their callbacks."""
    with context.database() as db:
        groups = Groups(db).all()
    if as_json:
        context.emit_json([_as_dict(each) for each in groups])
    elif not groups:
        click.echo("no group yet; `ai-worker group add NAME` makes one")
    else:
        headings = ("GROUP", "STATE", "TASKS", "ENDED", "DONE", "ERROR", "COST", "CALLBACK")
        context.emit_table(headings, [_row(each) for each in groups], right=(2, 3, 4, 5, 6))


@group.command()
@click.argument("name")
@_JSON
def show(name: str, as_json: bool) -> None:
    """One group: its tasks and items by status, cost, and how its callback stands."""
    with context.database() as db:
        found = Groups(db).get(name)
    if as_json:
        context.emit_json(_as_dict(found) | {"items": _counts(found.items), "eta_seconds": found.eta_seconds})
        return
    click.echo(click.style(f"group {visible(found.name)}", bold=True) + f"  {found.state}")
    lines = {
        "tasks": _listed(found.tasks),
        "items": _listed(found.items),
        "cost": formats.money(found.cost),
        "to go": None if found.eta_seconds is None else f"about {formats.duration(found.eta_seconds)}",
        "created": formats.iso(found.created_at),
        "closed": formats.iso(found.closed_at),
        "ended": formats.iso(found.ended_at),
        "callback": None if found.callback_url is None else visible(redacted_text(found.callback_url)),
        "delivery": None if found.delivery is None else _told(found.delivery),
    }
    for label, text in lines.items():
        if text is not None:
            click.echo(f"  {label:<12} {text}")
    if found.delivery is not None and found.delivery.state == "failed":
        click.echo(f"  → `ai-worker group retry {visible(name)}` sends it again")


@group.command()
@click.argument("name")
def retry(name: str) -> None:
    """Send a callback now that was given up or waits for its next try, with its tries counted anew."""
    with context.database() as db:
        Groups(db).retry(name)
    click.echo(f"the callback of group {visible(name)} is due: a running worker sends it")


def _given_secret(file: Path | None, stdin: bool) -> Secret | None:
    if file is not None and stdin:
        raise UsageError("give the secret by --secret-file or by --secret-stdin, not by both")
    if stdin:
        text = sys.stdin.read().strip()
        if not text:
            raise UsageError("standard input held no secret")
        return Secret(text)
    return None if file is None else Secret(read_secret(file))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    if not is_usable or len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        raise UsageError("--callback is not a URL that can be called; write it as https://example.com/done")


def _as_dict(each: Group) -> dict[str, Any]:
    delivery = each.delivery
    return {
        "group": each.name,
        "state": each.state,
        "tasks": _counts(each.tasks),
        "records_processed": each.records_processed,
        "records_failed": each.records_failed,
        "cost": formats.plain(each.cost),
        "created_at": each.created_at,
        "closed_at": each.closed_at,
        "ended_at": each.ended_at,
        "callback": None if delivery is None else delivery._asdict(),
    }


def _counts(counts: dict[TaskStatus, int] | dict[ItemStatus, int]) -> dict[str, int]:
    return {status.name.lower(): count for status, count in counts.items()}


def _listed(counts: dict[TaskStatus, int] | dict[ItemStatus, int]) -> str:
    parts = [f"{formats.number(count)} {status.name}" for status, count in sorted(counts.items())]
    return f"{formats.number(sum(counts.values()))}: {', '.join(parts)}" if parts else "none yet"


def _row(each: Group) -> tuple[object, ...]:
    over = (TaskStatus.COMPLETED, TaskStatus.ERROR, TaskStatus.CANCELLED)
    return (
        visible(each.name),
        each.state,
        formats.number(sum(each.tasks.values())),
        formats.number(sum(each.tasks.get(status, 0) for status in over)),
        formats.number(each.records_processed),
        formats.number(each.records_failed),
        formats.money(each.cost),
        "-" if each.callback_url is None else "not due yet" if each.delivery is None else _told(each.delivery),
    )


def _told(delivery: Delivery) -> str:
    """How a callback stands, on one line."""
    if delivery.state == "delivered":
        return f"delivered ({delivery.status})"
    tries = "1 try" if delivery.attempts == 1 else f"{delivery.attempts} tries"
    reason = f": {visible(delivery.reason)}" if delivery.reason else ""
    if delivery.state == "failed":
        return f"given up after {tries}{reason}"
    return f"waits until {formats.iso(delivery.due_at)}, {tries} so far{reason}"
