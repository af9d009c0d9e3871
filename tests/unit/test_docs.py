"""The documentation keeps up with the code: every column, command, setting, event and kind of error is in it, and no other."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ai_worker import errors
from ai_worker.cli import COMMANDS
from ai_worker.config import ENV_FILE_VARIABLE, Settings, variable
from ai_worker.log import Event
from ai_worker.models import ItemStatus, OutcomeKind, TaskStatus
from ai_worker.providers import provider_names
from ai_worker.task_types import task_type_names

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATABASE = (ROOT / "DB_Description.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROVIDERS = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
TASK_TYPES = (ROOT / "docs" / "task-types.md").read_text(encoding="utf-8")

_CONSTRAINT = ("PRIMARY", "UNIQUE", "KEY", "CONSTRAINT", "CHECK")


def schema() -> dict[str, dict[str, str]]:
    """Table -> column -> type, as sql/schema.sql has them."""
    text = re.sub(r"^\s*--.*$", "", (ROOT / "sql" / "schema.sql").read_text(encoding="utf-8"), flags=re.M)
    tables: dict[str, dict[str, str]] = {}
    for name, body in re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*?)\n\) ENGINE", text, re.S):
        found = re.findall(r"^  (\w+)\s+([A-Z]+(?:\([\d,]+\))?(?: UNSIGNED)?)", body, re.M)
        tables[name] = {column: kind for column, kind in found if column not in _CONSTRAINT}
    return tables


def described() -> dict[str, dict[str, str]]:
    """Table -> column -> type, as DB_Description.md has them."""
    part = DATABASE.partition("\n## Tables\n")[2].partition("\n## ")[0]
    tables: dict[str, dict[str, str]] = {}
    for section in part.split("\n### ")[1:]:
        tables[section.split("\n", 1)[0]] = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.M))
    return tables


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_cells(text: str) -> set[str]:
    """What stands first in the rows of all tables of a text, without its arguments."""
    return {match.split()[0] for match in re.findall(r"^\| `?([^`|]+?)`? \|", text, re.M)}


def test_every_column_is_described_with_its_type() -> None:
    assert {"task", "task_item", "ai_model", "task_attempt", "worker"} <= schema().keys()
    assert described() == schema()


def test_every_status_is_named_with_its_number() -> None:
    statuses = DATABASE.partition("\n## Statuses\n")[2].partition("\n### ")[0]
    for status in (*TaskStatus, *ItemStatus):
        assert f"| {status.value} {status.name} |" in statuses
    for kind in set(OutcomeKind) - {OutcomeKind.RELEASED}:  # leaves no row
        assert f"`{kind.value}`" in DATABASE


@pytest.mark.parametrize("status", [TaskStatus, ItemStatus], ids=lambda status: status.__name__)
def test_diagrams_name_statuses_alone(status: type[TaskStatus] | type[ItemStatus]) -> None:
    items, tasks = re.findall(r"```mermaid\n(.*?)```", DATABASE, re.S)
    diagram = tasks if status is TaskStatus else items
    assert set(re.findall(r"^\s+(?:\[\*\]|(\w+)) -->", diagram, re.M)) | set(re.findall(r"--> (\w+):", diagram)) == {
        "",
        *status.__members__,
    }


def test_every_command_is_in_the_readme() -> None:
    commands = README.partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert first_cells(commands) - {"command", "---"} == COMMANDS.keys()


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    part = README.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(AI_WORKER_\w+)` \| ([^|]*?) ?\|", part, re.M))
    assert rows.keys() == {variable(name) for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            assert rows[variable(name)] == str(field.default)
    assert ENV_FILE_VARIABLE in part


def test_every_exit_code_is_in_the_readme() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    part = README.partition("| exit code |")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", part, re.M)} == codes


def test_every_event_is_listed_with_level_fields_and_meaning() -> None:
    for event in Event:
        fields = ", ".join("*item fields*" if field == "ITEM" else f"`{field}`" for field in event.fields)
        assert f"| {event.name} | {logging.getLevelName(event.level).lower()} | {fields} | {event.says} |" in OPERATIONS
    listed = re.findall(r"^\| ([A-Z_]+) \| \w+ \|", OPERATIONS, re.M)
    assert listed == [event.name for event in Event]


def test_every_provider_task_type_and_kind_of_error_is_documented() -> None:
    assert {"openai", "gemini", "offline", "echo"} <= set(provider_names())
    for name in ("openai", "gemini", "offline", "echo"):
        assert f"| `{name}` |" in PROVIDERS
    for name in task_type_names():
        assert f"| `{name}` |" in TASK_TYPES
    leaves = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ProviderError)]
    bases = {base for each in leaves for base in each.__bases__} - {errors.ModelStopped}  # that one is raised as it is, too
    for each in set(leaves) - bases:
        assert f"| `{each.kind}` |" in PROVIDERS


def test_provider_options_are_those_that_the_providers_take() -> None:
    from ai_worker.providers import gemini, openai

    for module, heading in ((openai, "openai"), (gemini, "gemini")):
        part = PROVIDERS.partition(f"\n## Options of `{heading}`\n")[2].partition("\n## ")[0]
        assert first_cells(part) - {"option", "---"} == set(module.OPTIONS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


def test_examples_are_the_plug_in_that_a_test_installs() -> None:
    code = (ROOT / "tests" / "plugin_example" / "ai_worker_shout.py").read_text(encoding="utf-8")
    for page in (PROVIDERS, TASK_TYPES):
        (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
        assert example in code


def test_the_readme_has_the_commands_of_the_service_that_are_tried() -> None:
    service = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    commands = re.search(r"```sh\n(python3 -m venv .*?)```", service, re.DOTALL)
    assert commands is not None
    assert len(commands[1].splitlines()) <= 10
    assert commands[1] in README


@pytest.mark.skipif(sys.platform == "win32", reason="the command is one for systemd's hosts")
@pytest.mark.parametrize("password", ["geheim", None])
def test_no_user_of_the_database_is_made_without_a_password(tmp_path: Path, password: str | None) -> None:
    (command,) = [line for line in README.splitlines() if "CREATE USER ai_worker@localhost" in line]
    if password is not None:
        (tmp_path / "db-password").write_text(f"{password}\n")
    command = command.replace("/etc/ai-worker/credentials/", "").replace("| mariadb", "| cat")
    said = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (
        said.stdout.startswith("CREATE USER ai_worker@localhost IDENTIFIED BY 'geheim'; GRANT") if password else not said.stdout
    )
