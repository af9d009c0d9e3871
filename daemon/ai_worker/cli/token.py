"""`token`: who may use the web, and for what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from ai_worker import formats
from ai_worker.cli import context, order
from ai_worker.errors import EXIT_DONE
from ai_worker.store.tokens import Scope, TokenReport, Tokens

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def token() -> None:
    """Tokens for the HTTP API and the dashboard: who may use them, and for what."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([each.value for each in Scope]),
    help="What it is good for; may be repeated. `run` and `review` include `read`, `admin` includes all.",
)
@click.option("--expires", metavar="AGE", help="It ends by itself after so long: 90d, 12h.  [default: never]")
@_JSON
def add(name: str, scopes: tuple[str, ...], expires: str | None, as_json: bool) -> int:
    """Make a token called NAME, and print it: once, since only its hash is kept.

    \b
    read     look at tasks, items, models, workers, schedules
    run      submit, run, retry, pause, resume, cancel
    review   accept, reject and edit results
    admin    all of it, and the list of tokens
    """
    seconds = None if expires is None else order.seconds_of(expires, "--expires", "")
    with context.database() as db:
        made = Tokens(db).add(name, [Scope(each) for each in scopes], seconds)
    if as_json:
        context.emit_json({"name": name, "token": made, "scopes": sorted(set(scopes)), "expires_in_seconds": seconds})
    else:
        click.echo(made)
        click.echo(f"note: this is the token {name!r}; it is not stored, and cannot be shown again", err=True)
    return EXIT_DONE


@token.command("list")
@_JSON
def list_(as_json: bool) -> None:
    """All tokens, revoked ones too, with when each was last used."""
    with context.database() as db:
        found = Tokens(db).all()
    if as_json:
        context.emit_json([as_dict(each) for each in found])
    elif found:
        rows = [
            (
                each.name,
                _state(each),
                ", ".join(each.scopes),
                *map(formats.iso, (each.created_at, each.expire_at, each.last_used_at)),
            )
            for each in found
        ]
        context.emit_table(("NAME", "STATE", "SCOPES", "CREATED", "EXPIRES", "LAST USED"), rows)
    else:
        click.echo("no token yet; `ai-worker token add NAME --scope read` makes one")


@token.command()
@click.argument("name")
@_JSON
def revoke(name: str, as_json: bool) -> None:
    """End the token NAME at once, on every instance of the web, with the sessions of those who logged in with it."""
    with context.database() as db:
        Tokens(db).revoke(name)
    if as_json:
        context.emit_json({"name": name, "state": "revoked"})
    else:
        click.echo(f"token {name}: revoked")


def as_dict(report: TokenReport) -> dict[str, Any]:
    """A token as `token list --json` prints it."""
    return {
        "name": report.name,
        "state": _state(report),
        "scopes": [each.value for each in report.scopes],
        "created_at": report.created_at,
        "expire_at": report.expire_at,
        "last_used_at": report.last_used_at,
        "revoked_at": report.revoked_at,
    }


def _moments(report: TokenReport) -> tuple[datetime | None, ...]:
    return report.created_at, report.expire_at, report.last_used_at


def _state(report: TokenReport) -> str:
    return "revoked" if report.revoked_at is not None else "expired" if report.is_expired else "valid"
