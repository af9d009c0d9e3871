"""Every command and option that the documents, the help pages and the messages name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ai_worker.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").iterdir(), ROOT / ".env.example"])
SOURCES = sorted((ROOT / "daemon" / "ai_worker").rglob("*.py"))
# `ai-worker submit a.csv --type T`, up to what ends a command in a shell, a sentence or a code span.
CALL = re.compile(r"(?:^|[\s`(\"'$])ai-worker ((?:\\\n|[^`\n|;&#)$])*)")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def calls(text: str) -> Iterator[str]:
    """What stands behind each `ai-worker` that names a command."""
    for match in CALL.finditer(text):
        if match[1].split(" ")[0].strip("\\") in COMMANDS:
            yield match[1]


def group(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def unknown(call: str) -> set[str]:
    """The options of a call that its command does not have."""
    words = call.replace("\\\n", " ").split()
    command = group(words.pop(0))
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):  # `ai-worker model add|set …`: of any of them
        known |= {name for each in command.commands.values() for parameter in each.params for name in parameter.opts}
    options = set(OPTION.findall(re.sub(r"'[^']*'|\"[^\"]*\"", "", " ".join(words))))
    return options - known - {"--help", "-h", "--version"}


def test_the_check_finds_what_is_wrong() -> None:
    assert unknown("submit a.csv --column text --modle gpt") == {"--modle"}
    assert unknown("schedule add x --cron '0 2 * * *' --zone UTC") == {"--zone"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_name_options_that_are_there(page: Path) -> None:
    for call in calls(page.read_text(encoding="utf-8")):
        assert not unknown(call), call


def test_messages_name_options_that_are_there() -> None:
    count = 0
    for source in SOURCES:
        for call in calls(source.read_text(encoding="utf-8")):
            count += 1
            assert not unknown(call), f"{source.name}: {call}"
    assert count > 50


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_pages_name_options_that_are_there(name: str) -> None:
    command = group(name)
    commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    for each in commands:
        for call in calls(each.get_help(click.Context(each))):
            assert not unknown(call), call
