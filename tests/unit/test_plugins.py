"""A package of a third party brings a provider and a task type, through the entry points that the built-in ones use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ai_worker.errors import ConfigurationError, UsageError
from ai_worker.providers import provider_class, provider_names
from ai_worker.task_types import task_type, task_type_names

_PLUGIN = Path(__file__).parents[1] / "plugin_example"

# Runs where the plug-in is installed; prints what came of one item.
_SCRIPT = """
import asyncio, json, uuid
from ai_worker.models import Item, Task, TaskStatus
from ai_worker.providers import ProviderConfig, provider_class, provider_names
from ai_worker.task_types import task_type, task_type_names

task = Task(1, 1, "shouting", "próba", {"times": 2}, 3, 0, TaskStatus.NEW)
item = Item(7, task, "zażółć gęślą jaźń", {}, 1, 0, b"token", uuid.uuid4())

async def process():
    kind = task_type(task.task_type)
    kind.validate(task)
    provider = provider_class("shout")(ProviderConfig("loud", options={"mark": "‼"}))
    completion = await provider.complete(kind.prompt(item))
    await provider.aclose()
    return kind.parse(item, completion), completion

result, completion = asyncio.run(process())
print(json.dumps({
    "providers": provider_names(), "task_types": task_type_names(), "text": result.text_corrected,
    "summary": result.change_summary, "tokens": completion.usage.tokens_input, "model": completion.model,
}))
"""


@pytest.fixture(scope="module")
def installed_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the example was installed, as a user would install it, but beside the environment."""
    target = tmp_path_factory.mktemp("plugin")
    # No index and no build isolation: the test needs no network, and builds with the hatchling that is here.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--disable-pip-version-check", "--target", target, _PLUGIN], check=True, timeout=120)
    return target


def _run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)


def test_an_installed_plugin_is_listed_and_processes_an_item(installed_plugin: Path) -> None:
    done = _run(installed_plugin, _SCRIPT)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert set(seen["providers"]) == {*provider_names(), "shout"}
    assert set(seen["task_types"]) == {*task_type_names(), "shouting"}
    assert seen["text"] == "ZAŻÓŁĆ GĘŚLĄ JAŹŃ ZAŻÓŁĆ GĘŚLĄ JAŹŃ‼"
    assert (seen["summary"], seen["tokens"], seen["model"]) == ("now in capitals", 6, "shout-1")


def test_errors_about_unknown_names_list_the_plugins_too(installed_plugin: Path) -> None:
    done = _run(installed_plugin, "from ai_worker.providers import provider_class; provider_class('whisper')")
    assert done.returncode != 0
    assert "unknown provider 'whisper'; known ones: echo, gemini, offline, openai, shout" in done.stderr


def test_without_the_plugin_its_names_are_unknown() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown provider 'shout'; known ones: echo, gemini, offline, openai$"):
        provider_class("shout")
    known = (
        "analysis, categorization, correction, custom, image, image_prompt, investment, memory, reply, research, summary, swot, "
        "technical_review, translation"
    )
    with pytest.raises(UsageError, match=rf"unknown task type 'shouting'; known ones: {known}$"):
        task_type("shouting")


def test_a_plugin_that_cannot_be_loaded_says_why_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[ai_worker.providers]\nbroken = json:NoSuchProvider\n[ai_worker.task_types]\nbroken = there_is_no_such_module:Kind\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r"^provider 'broken' cannot be loaded: Attr.*NoSuchProvider.*: reinstall its pack"
    ):
        provider_class("broken")
    with pytest.raises(
        ConfigurationError, match=r"^task type 'broken' cannot be loaded: Mod.*no_such_module.*: reinstall its pack"
    ):
        task_type("broken")


@pytest.mark.parametrize("name", provider_names())
def test_every_built_in_provider_is_found_by_its_entry_point(name: str) -> None:
    assert callable(provider_class(name).complete)


@pytest.mark.parametrize("name", task_type_names())
def test_every_built_in_task_type_carries_the_name_of_its_entry_point(name: str) -> None:
    assert task_type(name).name == name
