"""`prompt`: the library of prompts, as people see it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.review import named
from ai_worker.cli.task_options import parameters_of
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, ConfigurationError, UsageError
from ai_worker.library import SUFFIX, Brought, Library, checked, read_source
from ai_worker.models import Item, Task, TaskStatus
from ai_worker.store.prompts import NewPrompt, Origin, Prompts, SampleItem, SampleTask
from ai_worker.task_types import TaskType, task_type_names
from ai_worker.task_types.foreseen import foreseen
from ai_worker.text import harmless

SENTENCE = "Wczoraj poszłem do sklepu; I buyed two breads there."
"""What stands in for a row where a prompt has no example: something to do in two languages for whoever corrects."""


@click.group()
def prompt() -> None:
    """The prompt library: one file per task type, with versions.

    A prompt called like a task type takes its place; any other name makes a task type of its own. The current one of a name is
    the newest that was pushed, else that of AI_WORKER_PROMPT_FOLDER, else the shipped one. A task keeps the one it began with.
    """


@prompt.command("list")
@click.option("--all", "everything", is_flag=True, help="Earlier versions and retired ones too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(everything: bool, as_json: bool) -> int:
    """Name the prompts that new tasks are pinned to."""
    settings = context.settings()
    with context.database(settings) as db:
        library = context.library(settings, db, publish=False)
        rows = [row for row in Prompts(db).all() if everything or row.is_current]
    local = [checked(each) for each in library.unpublished]
    if as_json:
        stored = [{**row._asdict(), "digest": row.digest.hex()} for row in rows]
        new = [{**each._asdict(), "digest": each.digest.hex(), "id_prompt": None, "is_current": True} for each in local]
        context.emit_json([*stored, *({name: each[name] for name in each if name != "source"} for each in new)])
    else:
        lines: list[tuple[str, object, str, str, str | None, str | None]] = []
        for row in rows:
            state = "current" if row.is_current else "earlier" if row.is_active else "retired"
            lines.append((row.name, row.version, row.origin.value, state, row.created_by, formats.iso(row.created_at)))
        for each in local:
            lines.append((each.name, each.version, each.origin.value, "not known to others yet", None, None))
        lines.sort(key=lambda line: line[0])
        context.emit_table(["NAME", "VERSION", "ORIGIN", "STATE", "BY", "SINCE"], lines, right=[1])
    for reason in library.broken.values():
        click.echo(f"left out: {reason}", err=True)
    return EXIT_DONE


@prompt.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(1), metavar="N", help="That version.  [default: the current one]")
@click.option("--task", "id_task", type=click.IntRange(1), metavar="ID", help="As this task has it: its prompt and parameters.")
@click.option("--text", help="The row's text.  [default: the prompt's first example]")
@click.option("--item", "id_task_item", type=click.IntRange(1), metavar="ID", help="This item's text and context.")
@click.option("--param", "pairs", multiple=True, metavar="KEY=VALUE", help="A parameter of the task. Repeatable.")
@click.option("--description", help="The instruction.")
@click.option("--source", "only_source", is_flag=True, help="Print the file itself.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(
    name: str,
    version: int | None,
    id_task: int | None,
    text: str | None,
    id_task_item: int | None,
    pairs: tuple[str, ...],
    description: str | None,
    only_source: bool,
    as_json: bool,
) -> int:
    """Show what would be sent for a row, with the answer's schema, step by step; nothing is sent.

    NAME is a prompt of the library, or a file (NAME.md) that may become one.
    """
    if text is not None and id_task_item is not None:
        raise UsageError("--text and --item are two rows; give one of them")
    if id_task is not None and version is not None:
        raise UsageError("--task has a version of its own; leave --version out")
    settings = context.settings()
    with context.database(settings) as db:
        rows = Prompts(db)
        item = _found(rows.row(id_task_item), f"item {id_task_item}") if id_task_item else None
        number = id_task or (item.id_task if item else None)
        task = _found(rows.task(number), f"task {number}") if number else None
        kind = _kind(context.library(settings, db, publish=False), rows, name, version, task if id_task else None)
    if only_source:
        file = getattr(kind, "file", None)
        if file is None:
            raise UsageError(f"the task type {name!r} has no prompt file")
        click.echo(file.source, nl=not file.source.endswith("\n"))
        return EXIT_DONE
    sample = _sample(kind, task, item, text, parameters_of(pairs), description)
    kind.validate(sample.task)
    _show(kind, sample, as_json=as_json)
    return EXIT_DONE


def _found(value: Any, what: str) -> Any:
    if value is None:
        raise UsageError(f"there is no {what}")
    return value


def _kind(library: Library, rows: Prompts, name: str, version: int | None, task: SampleTask | None) -> TaskType:
    if name.endswith(SUFFIX):
        if version is not None or task is not None:
            raise UsageError(f"{name} is a file; --version and --task are about the library's prompts")
        _checked(Path(name))
        return library.file(_brought(Path(name)))
    if task is not None:
        if task.task_type != name:
            raise UsageError(f"the task's type is {task.task_type!r}, not {name!r}")
        if task.id_prompt is not None:
            return library.stored(_found(rows.by_id(task.id_prompt), f"prompt {task.id_prompt} in the library any more"))
    if version is None:
        return library.named(name)[0]
    stored = rows.version(name, version)
    if stored is None:
        raise UsageError(f"there is no prompt {name!r} of version {version}; `ai-worker prompt list --all` names those there are")
    return library.stored(stored)


def _sample(
    kind: TaskType,
    task: SampleTask | None,
    item: SampleItem | None,
    text: str | None,
    parameters: Mapping[str, Any],
    description: str | None,
) -> Item:
    """The row to show: the one asked for, else the prompt's first example, else a sentence."""
    examples = getattr(getattr(kind, "file", None), "examples", ())
    its = task if task is not None and task.task_type == kind.name else None
    whole = Task(
        0,
        0,
        kind.name,
        (its.description if its else "") if description is None else description,
        {**(its.parameters if its else {}), **parameters},
        3,
        0,
        TaskStatus.NEW,
    )
    given: Mapping[str, Any] = {}
    if item is not None:
        text, given = item.text, item.context
    elif text is None and examples:
        text, given = examples[0].text, examples[0].context
    return Item(
        0, whole, SENTENCE if text is None else text, given, 1, 0, b"", "", context_key=item.context_key if item else None
    )


def _show(kind: TaskType, item: Item, *, as_json: bool) -> None:
    made = foreseen(kind, item)
    file = getattr(kind, "file", None)
    if as_json:
        context.emit_json(
            {
                "name": kind.name,
                "version": file.version if file else None,
                "kind": getattr(kind, "kind", kind.name),
                "steps": [
                    {
                        "name": step.name,
                        "model": step.model,
                        "system": each.system,
                        "user": each.user,
                        "schema": each.schema,
                        "temperature": each.temperature,
                        "top_p": each.top_p,
                        "max_output_tokens": each.max_output_tokens,
                    }
                    for step, each in made
                ],
            }
        )
        return
    for number, (step, each) in enumerate(made, 1):
        if len(made) > 1:
            _say(f"--- step {number} of {len(made)}: {step.name}" + (f", model {step.model}" if step.model else ""))
        schema = json.dumps(each.schema, ensure_ascii=False, indent=2, default=dict)
        _say(f"[system]\n{each.system}\n[user]\n{each.user}\n[schema]\n{schema}\n")


def _say(text: str) -> None:
    """Texts of rows and files: as they are to a pipe, unable to steer a terminal."""
    click.echo(harmless(text) if sys.stdout.isatty() else text, color=True)


@prompt.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--dry-run", is_flag=True, help="Only check the files.")
@click.option("--by", metavar="NAME", help="Who pushes.  [default: the user of this machine]")
def push(files: tuple[str, ...], dry_run: bool, by: str | None) -> int:
    """Put the team's own prompts into the database, so that all hosts see them.

    A file NAME.md becomes the prompt NAME; new tasks of that type use it at once, those that have begun go on with theirs. All
    files are checked before any is pushed. A file that has changed needs a higher `version`.
    """
    pushed_by = named(by)
    new = [_checked(Path(file)) for file in files]
    settings = context.settings()
    with context.database(settings) as db:
        rows = Prompts(db)
        is_new = [rows.refuse(each) for each in new]
        for each, known in zip(new, is_new, strict=True):
            what = f"{each.name}, version {each.version}"
            if not known:
                click.echo(f"{what}: is in the library already" + _newer(rows, each.name, each.version))
            elif dry_run:
                click.echo(f"{what}: is right, and would be pushed")
            else:
                stored, _ = rows.push(each, pushed_by)
                click.echo(f"{what}: pushed; new tasks of the type {each.name} use it" + _behind(db, stored.id_prompt))
    return EXIT_DONE


def _newer(rows: Prompts, name: str, version: int) -> str:
    """What who pushes an old file again must know: that it is not what new tasks use."""
    current = next((row.version for row in rows.all() if row.name == name and row.is_current), version)
    return "" if current == version else f", but new tasks use version {current}"


def _behind(db: Database, id_prompt: int) -> str:
    """What a person must know of a prompt that was brought back while a newer one is there."""
    is_current = any(row.is_current for row in Prompts(db).all() if row.id_prompt == id_prompt)
    return "" if is_current else ", but a newer one goes before it: see `ai-worker prompt list --all`"


def _brought(path: Path) -> Brought:
    from ai_worker.task_types.prompt_file import digest_of

    source = read_source(path)
    return Brought(path.name.removesuffix(SUFFIX), Origin.PUSHED, digest_of(source), source, str(path))


def _checked(path: Path) -> NewPrompt:
    try:
        if path.suffix != SUFFIX:
            raise UsageError(f"{path} is not called NAME{SUFFIX}")
        return checked(_brought(path))
    except ConfigurationError as error:  # the file is what was typed, not this host's configuration
        raise UsageError(str(error)) from None


@prompt.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(1), metavar="N", help="A pushed one of this version.  [default: the current one]")
def retire(name: str, version: int | None) -> int:
    """Take a prompt out of use for new tasks: they get the one before it. Pushing the file again brings it back.

    With the last prompt of a task type of your own the type goes; tasks that are pinned to it go on.
    """
    with context.database() as db:
        retired, then = Prompts(db).retire(name, version)
    left = (
        f"new tasks use version {then.version} ({then.origin})"
        if then
        else "new tasks use the shipped one"
        if name in task_type_names()
        else f"there can be no new tasks of the type {retired.name}"
    )
    click.echo(f"{retired.name}, version {retired.version} ({retired.origin}): retired; {left}")
    return EXIT_DONE
