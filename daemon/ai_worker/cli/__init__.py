"""The command line, and the composition root: settings, database and worker are put together here and nowhere else.

Every command lives in a module of its own that is imported only when the command is called, so that `--help` stays instant.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import json
import keyword
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from ai_worker.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, AiWorkerError

# command -> (module, what the group's help says); the order is the order of the help page.
COMMANDS = {
    "quickstart": ("quickstart", "Try it: a private database, sample rows, no API key."),
    "migrate": ("migrate", "Create the tables, or bring them up to date."),
    "model": ("model", "Endpoints, limits, prices and encrypted keys."),
    "prompt": ("prompt", "The prompt library: list, show, push, retire."),
    "submit": ("submit", "Make a task from a CSV, JSONL or text file."),
    "import": ("sources", "Make a task from the rows of a table."),
    "run": ("work", "Process what is there, then exit."),
    "daemon": ("work", "Process what comes, for ever."),
    "status": ("status", "What is going on: all tasks, or one."),
    "watch": ("status", "What is going on, live."),
    "workers": ("status", "Which workers are alive, and what they hold."),
    "top": ("top", "The fleet, live: tasks, models, workers, queues."),
    "results": ("results", "Results as CSV, JSONL or an HTML page."),
    "review": ("review", "Accept, reject or edit results."),
    "export": ("sources", "Write accepted results back to that table."),
    "web": ("web", "The HTTP API and the dashboard."),
    "token": ("token", "Who may use the web, and for what."),
    "retry": ("control", "Bring back items that ended in ERROR."),
    "pause": ("control", "Stop claiming items of a task."),
    "resume": ("control", "Go on with a paused or cancelled task."),
    "cancel": ("control", "End a task; what is in flight is still stored."),
    "priority": ("control", "Change a task's priority."),
    "group": ("group", "Tasks with a common end, and the callback that tells of it."),
    "schedule": ("schedule", "Tasks that come again and again."),
    "queue": ("queue", "Limits of queues and task types, and what waits in them."),
    "prune": ("prune", "Delete what ended long ago, in small batches."),
    "service": ("service", "AI Worker under systemd: install, status, uninstall."),
    "keygen": ("keys", "Print a new master key."),
    "rekey": ("keys", "Encrypt all API keys anew."),
    "doctor": ("doctor", "Find what is wrong, and say what to do."),
    "completion": ("completion", "Print the shell completion script."),
}

_AS_ESCAPES = "ai_worker.escapes"


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's signature
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ai_worker.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `ai-worker status | head`; click itself would end with 1
            _discard_output()
            return EXIT_DONE

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ai-worker")
def cli() -> None:
    """AI Worker: a language model at work on the rows of a MySQL or MariaDB table.

    Settings come from AI_WORKER_... environment variables and from .env; the first one to set is AI_WORKER_DB_URL.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some items ended in ERROR, 75 database away, 78 configuration wrong.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An expected error is one line on stderr, never a traceback.

    So is an output that cannot be written, as on a full disk. A reader who leaves early, as `head` does, is no error at all.
    """
    _write_what_the_encoding_lacks_as_escapes()
    try:
        code = _run(argv)
        _flush()
    except OSError as error:
        _discard_output()
        place = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{place}")
        return EXIT_FAILED
    finally:
        _discard_log()
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=argv, standalone_mode=False)
    except AiWorkerError as error:
        _complain(str(error))
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_DONE


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # there is nobody left to tell
        click.echo(f"ai-worker: {message}", err=True)


def _write_what_the_encoding_lacks_as_escapes() -> None:
    """A stream in Latin-1 or a Windows code page gets `\\u0142` for ł: readable, and within JSON still the same text."""
    codecs.register_error(_AS_ESCAPES, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_AS_ESCAPES)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _flush() -> None:
    """Now, while an error can still be told: at the interpreter's exit it would be a traceback."""
    if sys.stdout is not None and not sys.stdout.closed:  # None: the program was started with its output closed
        sys.stdout.flush()


def _discard_output() -> None:
    """Sends what standard output still holds, and cannot write, nowhere: it would be tried again at exit."""
    try:
        _flush()
    except OSError:
        _send_nowhere(sys.stdout)


def _discard_log() -> None:
    """The same for what the log still holds, on a full disk: the interpreter would end with 120, whatever we say."""
    try:
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
    except OSError:
        _send_nowhere(sys.stderr)


def _send_nowhere(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
