"""`doctor`: runs every check, prints what each found and what to do about it."""

from __future__ import annotations

from collections.abc import Sized

import click

from ai_worker.cli import context
from ai_worker.errors import EXIT_CONFIGURATION, EXIT_DONE, EXIT_FAILED, EXIT_TEMPORARY

_MARKS = {"ok": ("ok", "green"), "warning": ("!!", "yellow"), "problem": ("XX", "red")}


@click.command()
@click.option("--offline", is_flag=True, help="Do not look whether the models' endpoints can be reached.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(offline: bool, as_json: bool) -> int:
    """Find what is wrong, and say what to do.

    Looks at the settings and where they come from, the services of this host, the server, this user's privileges, the schema,
    the clock, the workers, the web's tokens, the keys and the models' endpoints. Changes nothing and spends no tokens. Exit
    codes: 0 nothing wrong (there may be warnings), 1 something is, 75 the database is away, 78 settings, keys, privileges,
    server or schema must be put right first.
    """
    from ai_worker.cli.doctor_checks import examine

    findings = list(examine(offline=offline))
    problems = [each for each in findings if each.level == "problem"]
    warnings = [each for each in findings if each.level == "warning"]
    if as_json:
        context.emit_json(
            {
                "ok": not problems,
                "findings": [
                    {"check": each.check, "level": each.level, "message": each.message, "remedy": each.remedy}
                    for each in findings
                ],
            }
        )
    else:
        for each in findings:
            mark, colour = _MARKS[each.level]
            click.echo(f"{click.style(mark, fg=colour)}  {each.check}: {each.message}")
            if each.remedy:
                click.echo(f"      -> {each.remedy}")
        click.echo(f"\n{len(findings)} checks, {_count(problems, 'problem')}, {_count(warnings, 'warning')}.")
    codes = {each.exit_code for each in problems}
    return next((code for code in (EXIT_CONFIGURATION, EXIT_TEMPORARY, EXIT_FAILED) if code in codes), EXIT_DONE)


def _count(what: Sized, word: str) -> str:
    return f"{len(what)} {word}" if len(what) == 1 else f"{len(what)} {word}s"
