"""`ai-worker top`: the fleet, live in the terminal."""

from __future__ import annotations

import sys
import time

import click

from ai_worker.cli import context
from ai_worker.errors import ConfigurationError, DatabaseError

_RESIZED = 0.25  # seconds after which a new size of the terminal is seen
_PATIENCE = 1.0  # seconds for which the picture stands still while the database is away


@click.command()
@click.option("--interval", type=click.FloatRange(0.5, 60.0), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="One picture, then exit; so too where there is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="One picture as JSON.")
def top(interval: float, once: bool, as_json: bool) -> None:
    """The fleet, live: tasks, models, workers and queues.

    Keys: q quits, p pauses, t, m and w or Tab choose a pane, the arrows scroll in it. Each look is cheap, however many items
    there are; a number with ~ or > was not counted to its end. NO_COLOR is heeded.
    """
    from ai_worker.cli.top_look import Look, as_dict

    with context.database() as db:
        look = Look(db)
        if as_json:
            context.emit_json(as_dict(look()))
            return
        try:
            from rich.console import Console
            from rich.live import Live
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"top needs more than is installed ({error.name}): pip install 'ai-worker[top]'; or use --json, `ai-worker watch`"
            ) from None
        from ai_worker.cli.keyboard import keys
        from ai_worker.cli.top_screen import View, screen, sizes

        console, view = Console(), View()
        picture = look()
        if once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            console.print(screen(picture, view, console, height=None))
            return
        db.patience = _PATIENCE
        with keys() as read, Live(console=console, screen=True, auto_refresh=False) as live:
            due = time.monotonic() + interval
            while True:
                size = console.size  # of what is drawn now: a change while it is drawn is seen below
                live.update(screen(picture, view, console, height=size.height), refresh=True)
                key = None
                while key is None and console.size == size and (view.is_paused or time.monotonic() < due):
                    key = read(_RESIZED if view.is_paused else min(_RESIZED, due - time.monotonic()))
                if key is not None and view.press(key, sizes(picture)):
                    return
                if not view.is_paused and time.monotonic() >= due:
                    try:
                        picture = look()
                        view.trouble = None
                    except DatabaseError as error:
                        view.trouble = f"{error}"
                    due = time.monotonic() + interval
