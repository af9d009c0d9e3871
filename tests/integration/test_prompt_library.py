"""The prompt library on real servers: what hosts bring, what is pushed, and that a task keeps the prompt it began with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.library import Brought, Library, checked
from ai_worker.models import Filters, Task
from ai_worker.store import prompts as prompts_module
from ai_worker.store.prompts import NewPrompt, Origin, Prompts
from ai_worker.store.queue import Queue
from ai_worker.task_types.prompt_file import digest_of
from tests.conftest import Sql
from tests.fake_provider import FakeProvider
from tests.integration.lifecycle import EVERYTHING, Application, claim, register
from tests.integration.worker_runs import Run, add_model, add_task, items_of, steady_waits, task_of

pytest_plugins = ["tests.integration.lifecycle"]

SHOUT = """\
+++
version = 1
kind = "summary"
answer_field = "summary"
[schema]
type = "object"
additionalProperties = false
required = ["summary"]
[schema.properties.summary]
type = "string"
+++
# System
Shout. {{ description }}
# User
{{ marker }}
{{ text }}
{{ marker }}
"""


def new_prompt(source: str = SHOUT, name: str = "shout", origin: Origin = Origin.PUSHED) -> NewPrompt:
    return checked(Brought(name, origin, digest_of(source), source, f"{name}.md"))


def version(number: int) -> str:
    return SHOUT.replace("version = 1", f"version = {number}").replace("Shout.", f"Shout {number} times.")


@pytest.fixture
def prompts(database: Database) -> Prompts:
    return Prompts(database)


@pytest.fixture
def library(prompts: Prompts) -> Library:
    library = Library(prompts)
    library.open()
    return library


def current(prompts: Prompts, name: str) -> tuple[int, Origin] | None:
    return next(((row.version, row.origin) for row in prompts.all() if row.name == name and row.is_current), None)


# ----- what is in it


def test_a_host_makes_known_what_ships_with_the_program_once(prompts: Prompts, sql: Sql) -> None:
    Library(prompts).open()
    known = prompts.all()
    assert {"correction", "translation", "summary"} <= {row.name for row in known if row.is_current}
    assert {row.origin for row in known} == {Origin.SHIPPED}
    Library(prompts).open()  # another start, or another host
    assert prompts.all() == known


class Asked:
    """The library's rows, with what was asked for."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self.verbs: list[str] = []

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        self.verbs.append(verb)
        asked: Callable[..., Any] = getattr(self._prompts, verb)
        return asked


def test_a_start_with_nothing_new_asks_once(library: Library, prompts: Prompts) -> None:
    asked = Asked(prompts)
    Library(asked).open()
    assert asked.verbs == ["all"]


def test_a_pushed_prompt_goes_before_a_folders_and_that_before_the_shipped_one(prompts: Prompts, tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text(version(7), encoding="utf-8")
    Library(prompts, tmp_path).open()
    assert current(prompts, "summary") == (7, Origin.FOLDER)
    prompts.push(new_prompt(version(2), "summary"), "Ala")
    assert current(prompts, "summary") == (2, Origin.PUSHED)
    retired, then = prompts.retire("summary", None)
    assert (retired.version, retired.origin, then.version, then.origin) == (2, Origin.PUSHED, 7, Origin.FOLDER)
    prompts.retire("summary", None)
    assert current(prompts, "summary") == (1, Origin.SHIPPED)
    with pytest.raises(UsageError, match="no other prompt 'summary' would be left"):
        prompts.retire("summary", None)


def test_the_same_file_changes_nothing_and_a_changed_one_needs_a_new_version(prompts: Prompts) -> None:
    first, is_new = prompts.push(new_prompt(), "Ala")
    assert is_new
    assert prompts.push(new_prompt(), "Ola") == (first, False)
    with pytest.raises(UsageError, match=r"shout: version 1 is pushed already, with other content: write `version = 2`"):
        prompts.push(new_prompt(SHOUT.replace("Shout", "Whisper")), "Ola")
    prompts.push(new_prompt(version(5)), "Ola")
    with pytest.raises(UsageError, match=r"shout: version 5 is newer: write `version = 6`"):
        prompts.push(new_prompt(version(3)), "Ola")
    assert [(row.version, row.created_by) for row in prompts.all() if row.name == "shout"] == [(5, "Ola"), (1, "Ala")]


def test_a_retired_prompt_comes_back_when_it_is_pushed_again(prompts: Prompts) -> None:
    prompts.push(new_prompt(version(1)), None)
    prompts.push(new_prompt(version(2)), None)
    assert prompts.retire("shout", 2)[1].version == 1
    assert current(prompts, "shout") == (1, Origin.PUSHED)
    assert prompts.push(new_prompt(version(2)), None)[1]
    assert current(prompts, "shout") == (2, Origin.PUSHED)
    with pytest.raises(UsageError, match="no prompt 'shout' of version 9"):
        prompts.retire("shout", 9)


def test_what_an_older_host_brings_does_not_become_current(prompts: Prompts, tmp_path: Path) -> None:
    for name, number in (("new", 2), ("old", 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "shout.md").write_text(version(number), encoding="utf-8")
        library = Library(prompts, folder)
        library.open()
        assert not library.broken
    assert current(prompts, "shout") == (2, Origin.FOLDER)


def test_a_broken_file_is_left_out_and_told_of(prompts: Prompts, tmp_path: Path) -> None:
    (tmp_path / "shout.md").write_text(SHOUT, encoding="utf-8")
    (tmp_path / "whisper.md").write_text(SHOUT.replace("{{ text }}", "{{ txt }}"), encoding="utf-8")
    (tmp_path / "_notes.md").write_text("no prompt", encoding="utf-8")
    library = Library(prompts, tmp_path)
    library.open()
    assert list(library.broken) == ["whisper"]
    assert f"{tmp_path / 'whisper.md'}, line 16: unknown name 'txt'" in library.broken["whisper"]
    assert library.named("shout")[0].name == "shout"
    (tmp_path / "shout.md").write_text(SHOUT.replace("Shout", "Cry"), encoding="utf-8")
    library = Library(prompts, tmp_path)
    library.open()
    assert "version 1 is in the library already, with other content: write `version = 2`" in library.broken["shout"]


def test_without_publishing_a_folders_prompt_counts_and_nothing_is_written(prompts: Prompts, tmp_path: Path) -> None:
    (tmp_path / "shout.md").write_text(SHOUT, encoding="utf-8")
    library = Library(prompts, tmp_path)
    library.open(publish=False)
    assert prompts.all() == []
    kind, number = library.named("shout")
    assert (kind.name, number) == ("shout", None)
    assert "shout" in library.names()


# ----- pinning


def test_a_task_keeps_the_prompt_that_it_began_with(
    prompts: Prompts, application: Application, queue: Queue, library: Library
) -> None:
    first, _ = prompts.push(new_prompt(version(1)), None)
    tasks = [application.task(application.model(), task_type="shout") for _ in range(2)]
    for task in tasks:
        application.items(task, 2)
    worker = register(queue)
    (item,) = claim(queue, worker, filters=Filters(id_task=tasks[0]))
    assert item.task.id_prompt == first.id_prompt == application.task_row(tasks[0])["id_prompt"]
    second, _ = prompts.push(new_prompt(version(2)), None)
    by_task = {item.task.id_task: item for item in claim(queue, worker, 3)}
    assert by_task[tasks[0]].task.id_prompt == first.id_prompt
    assert by_task[tasks[1]].task.id_prompt == second.id_prompt == application.task_row(tasks[1])["id_prompt"]
    systems = [library.kind(by_task[task].task).prompt(by_task[task]).system for task in tasks]
    assert [system.split(".")[0] for system in systems] == ["Shout 1 times", "Shout 2 times"]


def test_a_worker_that_looked_before_a_push_goes_by_what_the_task_was_pinned_to(
    prompts: Prompts, application: Application, queue: Queue
) -> None:
    first, _ = prompts.push(new_prompt(version(1)), None)
    task = application.task(application.model(), task_type="shout")
    application.items(task, 3)
    workers = [register(queue) for _ in range(2)]
    (looked,) = queue.runnable(EVERYTHING)
    second, _ = prompts.push(new_prompt(version(2)), None)
    (newer,) = queue.runnable(EVERYTHING)
    assert (looked.id_prompt, newer.id_prompt) == (first.id_prompt, second.id_prompt)
    assert queue.claim(workers[0], [newer], 1)[0].task.id_prompt == second.id_prompt
    assert queue.claim(workers[1], [looked], 1)[0].task.id_prompt == second.id_prompt


def test_an_item_just_heard_of_is_pinned_too(prompts: Prompts, application: Application, queue: Queue) -> None:
    first, _ = prompts.push(new_prompt(version(1)), None)
    task = application.task(application.model(), task_type="shout")
    (key,) = application.items(task)
    (item,) = queue.claim_new(register(queue), key, EVERYTHING, [])
    assert item.task.id_prompt == first.id_prompt == application.task_row(task)["id_prompt"]


def test_a_plug_ins_type_has_no_prompt(application: Application, queue: Queue, library: Library) -> None:
    task = application.task(application.model(), task_type="plugin")
    application.items(task)
    (item,) = claim(queue, register(queue))
    assert item.task.id_prompt is None
    with pytest.raises(UsageError, match=r"unknown task type 'plugin'; known ones: .*correction"):
        library.kind(item.task)


def test_a_prompt_that_this_host_cannot_read_is_asked_for_once_in_a_while(prompts: Prompts, sql: Sql) -> None:
    number = prompts.push(new_prompt(), None)[0].id_prompt
    sql("UPDATE prompt SET source = REPEAT('x', 10)")
    asked = Asked(prompts)
    library = Library(asked)
    task = Task(1, 1, "shout", "", {}, 3, 0, 0, id_prompt=number)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(Exception, match=r"prompt shout, version 1, pushed, line 1: no line '\+\+\+'"):
            library.kind(task)
    assert asked.verbs == ["by_id"]


# ----- all the way


def test_a_type_of_the_folder_is_processed_by_hosts_without_the_folder(sql: Sql, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "shout.md").write_text(SHOUT, encoding="utf-8")
    with FakeProvider() as fake:
        model = add_model(sql, fake, "chat", "m")
        Run(database_url, prompt_folder=tmp_path)
        task = add_task(sql, model, ["Ala ma kota."], task_type="shout", description="Głośno!")
        assert Run(database_url).summary.processed == 1
        (request,) = fake.requests
    assert request.body["messages"][0]["content"] == "Shout. Głośno!"
    assert task_of(sql, task)["status"] == "COMPLETED"


def test_a_prompt_that_cannot_be_read_costs_its_items_an_attempt_and_no_others(sql: Sql, database_url: str) -> None:
    with closing(Database(parse_database_url(database_url))) as db:
        Prompts(db).push(new_prompt(), None)
    sql("UPDATE prompt SET source = 'from a newer version of the program'")
    with FakeProvider() as fake, steady_waits():
        model = add_model(sql, fake, "chat", "m")
        broken, good = (add_task(sql, model, ["Ala ma kota."], task_type=name) for name in ("shout", "summary"))
        assert Run(database_url).summary.processed == 1
    (item,) = items_of(sql, broken)
    assert (item["status"], item["error_kind"]) == ("DEFERRED", "internal")
    assert "prompt shout, version 1, pushed, line 1" in item["error_message"]
    assert task_of(sql, good)["status"] == "COMPLETED"


def test_a_running_task_keeps_its_prompt_while_a_new_one_is_pushed(sql: Sql, database_url: str) -> None:
    with FakeProvider() as fake, closing(Database(parse_database_url(database_url))) as db:
        Prompts(db).push(new_prompt(version(1)), None)
        model = add_model(sql, fake, "chat", "m")
        add_task(sql, model, ["raz", "dwa", "trzy"], task_type="shout")
        Run(database_url, max_items=1)
        Prompts(db).push(new_prompt(version(2)), None)
        add_task(sql, model, ["cztery"], task_type="shout")
        Run(database_url)
        asked = {request.text: request.body["messages"][0]["content"] for request in fake.requests}
    assert asked == dict.fromkeys(["raz", "dwa", "trzy"], "Shout 1 times. Popraw tekst.") | {
        "cztery": "Shout 2 times. Popraw tekst."
    }


@pytest.mark.parametrize(
    ("columns", "calls"),
    [({"pack": 3}, 1), ({"lane": "batch"}, 0), ({"budget": 1}, 3), ({"cache_seconds": 100}, 3)],
    ids=["packed", "in a batch", "with a budget", "from the cache"],
)
def test_a_type_of_the_team_goes_every_way_that_a_shipped_one_goes(
    sql: Sql, database_url: str, columns: dict[str, Any], calls: int
) -> None:
    with FakeProvider() as fake, closing(Database(parse_database_url(database_url))) as db:
        Prompts(db).push(new_prompt(), None)
        model = add_model(sql, fake, "chat", "m")
        task = add_task(sql, model, ["raz", "dwa", "trzy"], task_type="shout", **columns)
        assert Run(database_url, filters=Filters(task_types=("shout",))).summary.processed == 3
        assert len(fake.requests) == calls
        assert sum(len(batch.rows) for batch in fake.batches.created) == (3 if "lane" in columns else 0)
    assert {item["status"] for item in items_of(sql, task)} == {"PROCESSED"}


def test_hosts_that_start_at_the_same_time_bring_each_prompt_once(database_url: str, tmp_path: Path, sql: Sql) -> None:
    (tmp_path / "shout.md").write_text(SHOUT, encoding="utf-8")
    barrier = threading.Barrier(6)

    def start() -> None:
        with closing(Database(parse_database_url(database_url))) as db:
            library = Library(Prompts(db), tmp_path)
            barrier.wait(10)
            library.open()
            assert library.named("shout")[1] is not None

    with ThreadPoolExecutor(6) as hosts:
        for host in [hosts.submit(start) for _ in range(6)]:
            host.result(20)
    assert sql("SELECT name, COUNT(*) AS n FROM prompt GROUP BY name HAVING n > 1") == []


@pytest.mark.parametrize("is_same", [True, False])
def test_two_who_push_a_new_prompt_in_the_same_instant_cannot_both_have_its_version(
    is_same: bool, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before either writes."""
    both = threading.Barrier(2)
    looked: set[int] = set()
    columns = prompts_module._columns

    def wait(prompt: NewPrompt, created_by: str | None) -> dict[str, object]:
        if (me := threading.get_ident()) not in looked:
            looked.add(me)
            both.wait(20)
        return columns(prompt, created_by)

    monkeypatch.setattr(prompts_module, "_columns", wait)

    def push(text: str) -> int | str:
        with closing(Database(parse_database_url(database_url))) as db:
            try:
                return Prompts(db).push(NewPrompt("nowy", 1, Origin.PUSHED, digest_of(text), text), "Ania")[0].id_prompt
            except UsageError as error:
                return str(error)

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(push, ["a", "a" if is_same else "b"]))
    (row,) = sql("SELECT id_prompt FROM prompt WHERE name = 'nowy'")
    refused = "nowy: version 1 is pushed already, with other content: write `version = 2` into the file, and push it again"
    assert sorted(told, key=str) == sorted([row["id_prompt"], row["id_prompt"] if is_same else refused], key=str)
