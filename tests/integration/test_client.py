"""`ai_worker.client`: from Python, with workers that run elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import pytest

from ai_worker import migrate
from ai_worker.client import AsyncClient, Client, Finished, Item, ItemFailed, ItemMissing, WaitTimeout
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.errors import ConfigurationError, DatabaseAway, DatabaseError, UsageError
from ai_worker.models import Filters, ItemStatus, Need, ReviewStatus, Secret, TaskStatus
from ai_worker.store.models import Models
from ai_worker.store.prompts import NewPrompt, Origin, Prompts
from ai_worker.store.queue import Queue
from ai_worker.task_types.prompt_file import digest_of
from ai_worker.worker import Worker, WorkerOptions
from tests.conftest import Sql
from tests.integration.test_grants import Users, users  # noqa: F401 -- a fixture
from tests.servers import free_port, private_mariadb, tcp_options

SOON = 10.0  # seconds: never reached on a machine that is not stuck


@pytest.fixture
def model(sql: Sql) -> int:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    key: int = sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"]
    return key


@pytest.fixture
def client(database_url: str, model: int) -> Iterator[Client]:
    with Client(database_url) as client:
        yield client


@contextmanager
def daemon(url: str) -> Iterator[None]:
    """A daemon at work in a thread."""
    started, state = threading.Event(), dict[str, Any]()

    async def work() -> None:
        with closing(Database(parse_database_url(url))) as db:
            options = WorkerOptions(forever=True, concurrency=50, name="test")
            worker = Worker(Queue(db), Models(db), lambda *_: Secret(""), filters=Filters(), options=options, give_up=db.give_up)
            state.update(worker=worker, loop=asyncio.get_running_loop())
            started.set()
            await worker.run()

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    started.wait(SOON)
    try:
        yield
    finally:
        state["loop"].call_soon_threadsafe(state["worker"].drain)
        thread.join(30)
        assert not thread.is_alive()


def finish(sql: Sql, *items: int, text: str = "Gotowe.") -> None:
    """As a worker's commit would."""
    marks = ", ".join(["%s"] * len(items))
    sql(
        f"UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = %s, change_summary = 'x', "
        f'result = \'{{"corrected_text": "y"}}\', cost = 0.001 WHERE id_task_item IN ({marks})',
        [text, *items],
    )


def fail(sql: Sql, item: int) -> None:
    sql(
        "UPDATE task_item SET status_id = 3, attempt = 3, finished_at = NOW(6), error_kind = 'content_refused', "
        "error_message = 'nie wolno' WHERE id_task_item = %s",
        [item],
    )


@contextmanager
def counted_statements() -> Iterator[Counter[str]]:
    """How often each named statement was sent by this process."""
    counts: Counter[str] = Counter()
    run = Transaction._run

    def counting(self: Transaction, name: str, *args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return run(self, name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "_run", counting)
        yield counts


def test_a_text_goes_in_and_its_result_comes_out(client: Client, database_url: str) -> None:
    with daemon(database_url):
        task = client.submit([Item("Zażółć.", key="17", context={"autor": "Żaneta"}, context_key="ania"), "gęślą"], model="echo")
        first, second = (client.wait(each, timeout=SOON) for each in task.items)
    assert (first.text, first.key, first.context, first.context_key) == ("Zażółć.", "17", {"autor": "Żaneta"}, "ania")
    assert (first.ok, first.status, first.review, first.files) == (True, ItemStatus.PROCESSED, ReviewStatus.UNREVIEWED, ())
    assert first.data["corrected_text"] == "Zażółć."
    assert (second.text, second.id_task) == ("gęślą", task.id_task)
    assert client.status(task.id_task).status is TaskStatus.COMPLETED
    assert [each.text for each in client.results(task.id_task)] == ["Zażółć.", "gęślą"]
    assert list(client.results(task.id_task, only="error")) == []


def test_the_same_from_asyncio(database_url: str, model: int) -> None:
    async def talk() -> list[str | None]:
        async with AsyncClient(database_url) as client:
            task = await client.submit("jaźń")
            (answer,) = await client.wait_all(task, timeout=SOON)
            return [
                answer.text,
                (await client.result(task.items[0])).text,
                *[each.text async for each in client.results(task.id_task)],
            ]

    with daemon(database_url):
        assert asyncio.run(talk()) == ["jaźń"] * 3


def test_everything_that_a_task_can_say(client: Client, sql: Sql, model: int) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('zapas', 'echo')")
    before = client.submit("wcześniej", model="echo")
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    task = client.submit(
        ["raz", "dwa"],
        task_type="translation",
        model="echo",
        fallbacks=["zapas"],
        description="grzecznie",
        parameters={"target_language": "pl"},
        key="umowa-7",
        priority=5,
        queue="czat",
        context_key="ania",
        scheduled_at=at,
        after={before.id_task: Need.END},
        budget="1.50",
        result_ttl=3600,
        max_attempts=2,
        lane="flex",
        pack=4,
        cache_seconds=0,
    )
    row = sql("SELECT * FROM task WHERE id_task = %s", [task.id_task])[0]
    assert (row["task_type"], row["description"], row["priority"], row["queue"]) == ("translation", "grzecznie", 5, "czat")
    assert (row["scheduled_at"], float(row["budget"]), row["result_seconds"]) == (at.replace(tzinfo=None), 1.5, 3600)
    assert (row["max_attempts"], row["lane"], row["pack"], row["cache_seconds"]) == (2, "flex", 4, 0)
    assert sql("SELECT after_id_task, needs FROM task_dependency") == [{"after_id_task": before.id_task, "needs": "end"}]
    assert len(sql("SELECT * FROM task_fallback")) == 1
    assert {row["context_key"] for row in sql("SELECT context_key FROM task_item WHERE id_task = %s", [task.id_task])} == {"ania"}
    again = client.submit(
        ["raz", "dwa"], task_type="translation", model="echo", parameters={"target_language": "pl"}, key="umowa-7"
    )
    assert (again.id_task, again.items, again.is_new, task.is_new) == (task.id_task, task.items, False, True)


@pytest.mark.parametrize(
    ("texts", "more", "complaint"),
    [
        ([], {}, "no text was given"),
        (["dobrze", " "], {}, "item 1 has no text"),
        ([Item("x", key="k" * 191)], {}, "the key of item 0"),
        ([Item("x", context={"a": float("nan")})], {}, "the context of item 0 has no JSON form"),
        ({"text": "x"}, {}, "several of them are wanted, not dict"),
        (b"x", {}, "several of them are wanted, not bytes"),
        (["x", None], {}, "item 1 is no text and no Item with one, but NoneType"),
        ([Item("x", key=7)], {}, "the key of item 0 must be a text"),  # type: ignore[arg-type]  # the point
        (["x"], {"queue": "my queue"}, "queue 'my queue' is no name of a queue"),
        (["x"], {"key": ""}, "the key must have 1 to 190 characters"),
        (["x"], {"result_ttl": -1}, "result_ttl -1 must be a number of seconds above 0"),
        (["x"], {"model": "gpt"}, "no model 'gpt'; known ones: echo"),
        (["x"], {"fallbacks": ["echo"], "model": "echo"}, "named twice"),
        (["x"], {"task_type": "translation"}, "target_language"),
        (["x"], {"parameters": {"kolor": "zielony"}}, "task type correction: unknown parameter 'kolor'; known ones: explain, "),
        (["x"], {"budget": "five"}, "budget 'five' is not an amount above zero; give US dollars"),
        (["x"], {"budget": "-1"}, "budget '-1' is not an amount above zero"),
    ],
)
def test_what_cannot_be_submitted(client: Client, sql: Sql, texts: Any, more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        client.submit(texts, **more)
    assert sql("SELECT 1 FROM task UNION ALL SELECT 1 FROM task_item") == []


def test_a_task_keeps_the_prompt_that_was_current_when_it_was_submitted(client: Client, database: Database, sql: Sql) -> None:
    """And its parameters are checked by it."""
    source = resources.files("ai_worker.task_types").joinpath("prompts/summary.md").read_text(encoding="utf-8")
    source = source.replace("+++\n", '+++\nkind = "summary"\n', 1)
    pushed = []
    for version, name in ((1, "kolor"), (2, "ton")):
        text = re.sub(r"(?m)^version = .*", f"version = {version}", source).replace(
            "# System\n", f"# System\n{{{{ parameters.{name} | default('') }}}}\n"
        )
        prompt = NewPrompt("nasz", version, Origin.PUSHED, digest_of(text), text)
        pushed.append(Prompts(database).push(prompt, None)[0].id_prompt)
        task = client.submit("x", task_type="nasz", parameters={name: "y"})
        assert sql("SELECT id_prompt FROM task WHERE id_task = %s", [task.id_task])[0]["id_prompt"] == pushed[-1]
    with pytest.raises(UsageError, match="task type nasz: unknown parameter 'kolor'"):
        client.submit("x", task_type="nasz", parameters={"kolor": "y"})
    elsewhere = client.submit("x", task_type="of_another_host", parameters={"kolor": "y"})
    assert sql("SELECT id_prompt FROM task WHERE id_task = %s", [elsewhere.id_task])[0]["id_prompt"] is None


def test_a_client_may_be_closed_twice(database_url: str) -> None:
    with Client(database_url) as client, pytest.raises(ItemMissing):
        client.wait(1, timeout=0.1)
    client.close()


def test_a_wait_ends_with_the_result_the_default_or_an_error(client: Client, sql: Sql) -> None:
    done, failed, cancelled, open_ = client.submit(["a", "b", "c", "d"]).items
    finish(sql, done)
    fail(sql, failed)
    sql("UPDATE task_item SET status_id = 5 WHERE id_task_item = %s", [cancelled])
    assert client.wait(done, timeout=0).text == "Gotowe."
    with pytest.raises(ItemFailed, match="content_refused: nie wolno") as caught:
        client.wait(failed, default="Bez zmian")
    assert (caught.value.kind, caught.value.message, caught.value.id_task_item) == ("content_refused", "nie wolno", failed)
    assert client.wait(failed, default="Bez zmian", default_on_error=True) == "Bez zmian"
    with pytest.raises(ItemFailed, match="cancelled"):
        client.wait(cancelled)
    started = time.monotonic()
    assert client.wait(open_, timeout=0.05, default=None) is None
    with pytest.raises(WaitTimeout, match=f"item {open_} has no result after 0 s"):
        client.wait(open_, timeout=0)
    assert time.monotonic() - started < SOON
    with pytest.raises(ItemMissing):
        client.wait(open_ + 1000)
    with pytest.raises(ItemMissing):
        client.result(open_ + 1000)
    assert client.result(open_).status is ItemStatus.PENDING


def test_many_are_waited_for_at_once(client: Client, sql: Sql) -> None:
    task = client.submit(["a", "b", "c"])
    finish(sql, task.items[0])
    fail(sql, task.items[2])
    assert client.wait_all([], timeout=0) == []
    first, second, third = client.wait_all(task, timeout=0.05, default=None)
    assert isinstance(first, Finished)
    assert isinstance(third, Finished)
    assert (first.ok, second, third.ok, third.error_kind) == (True, None, False, "content_refused")
    with pytest.raises(WaitTimeout, match="1 of 3 items"):
        client.wait_all(task.id_task, timeout=0.05)
    finish(sql, task.items[1])
    assert [each.ok for each in client.wait_all(task.id_task, timeout=SOON)] == [True, True, False]


def test_two_hundred_that_wait_cost_as_little_as_one(database_url: str, model: int, sql: Sql) -> None:
    """Half of the results come after a while: each is there soon after its commit, and the database is asked seldom."""

    async def talk() -> tuple[list[float], float, Counter[str]]:
        async with AsyncClient(database_url) as client:
            items = (await client.submit([f"tekst {number}" for number in range(200)])).items
            with counted_statements() as counts:
                begun = time.monotonic()
                waits = [asyncio.create_task(client.wait(each, timeout=SOON, default=None)) for each in items]
                delays = []
                for some in (items[:100], items[100:]):
                    await asyncio.sleep(0.5)
                    await asyncio.to_thread(finish, sql, *some)
                    committed = time.monotonic()
                    for wait in waits[len(delays) : len(delays) + 100]:
                        assert (await wait) is not None
                        delays.append(time.monotonic() - committed)
                return delays, time.monotonic() - begun, counts

    delays, seconds, counts = asyncio.run(talk())
    assert sorted(delays)[len(delays) * 9 // 10] < 1.0  # 30 to 150 ms on a quiet machine
    assert counts["item_states"] <= 35 * seconds + 5
    assert counts["item_results"] <= 5  # a statement for each look that found some, not for each waiter
    assert counts.total() <= 40 * seconds + 10


def test_one_client_serves_many_threads(client: Client, database_url: str) -> None:
    answers: dict[int, str | None] = {}

    def talk(number: int) -> None:
        (item,) = client.submit(f"tekst {number}").items
        answers[number] = client.wait(item, timeout=SOON).text

    before = threading.active_count()
    with daemon(database_url):
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert answers == {number: f"tekst {number}" for number in range(12)}
    assert threading.active_count() <= before + 5  # its connections, however many called


def test_a_wait_that_is_given_up_leaves_nothing_behind(database_url: str, model: int) -> None:
    before = threading.active_count()

    async def talk() -> None:
        async with AsyncClient(database_url) as client:
            (item,) = (await client.submit("x")).items
            wait = asyncio.create_task(client.wait(item, timeout=None))
            await asyncio.sleep(0.1)
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait
            other = asyncio.create_task(client.wait(item, timeout=None))
            await asyncio.sleep(0.1)
            assert not client._waiting._waiters.keys() - {item}
            await client.close()
            with pytest.raises(RuntimeError, match="closed"):
                await other
            with pytest.raises(RuntimeError, match="closed"):
                await client.wait(item)
            assert not client._waiting._waiters
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(talk())
    assert threading.active_count() <= before


def test_a_closed_client_says_so(database_url: str, model: int) -> None:
    before = threading.active_count()
    with Client(database_url) as client:
        (item,) = client.submit("x").items
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            client.wait(item)
        client.close()
    Client(database_url).close()  # one that was never used
    assert threading.active_count() <= before


def test_a_person_s_verbs(client: Client, sql: Sql) -> None:
    task = client.submit(["a", "b"])
    assert client.pause(task.id_task).after is TaskStatus.PAUSED
    assert client.resume(task.id_task).after is TaskStatus.NEW
    assert client.cancel(task.id_task).items == 2
    assert client.resume(task.id_task).items == 2
    fail(sql, task.items[0])
    sql("UPDATE task SET records_failed = 1, status_id = 1, started_at = NOW(6) WHERE id_task = %s", [task.id_task])
    assert client.retry(task.id_task) == 1
    with pytest.raises(UsageError, match="no task"):
        client.status(task.id_task + 1000)


def test_results_are_reviewed(client: Client, sql: Sql) -> None:
    first, second = client.submit(["a", "b"]).items
    finish(sql, first, second)
    assert client.review(first, "accepted", by="ania", text="A!") == 1
    assert client.review([second], ReviewStatus.REJECTED, by="ania", note="nie") == 1
    found = client.result(first)
    assert (found.review, found.text, found.text_reviewed, found.reviewed_by) == (ReviewStatus.ACCEPTED, "Gotowe.", "A!", "ania")
    assert client.result(second).review is ReviewStatus.REJECTED


def test_tasks_go_into_groups(client: Client, sql: Sql) -> None:
    number = client.add_group("noc", "https://example.com/done")
    task = client.submit("x", group="noc")
    assert client.close_group("noc")
    assert not client.close_group("noc")
    assert sql("SELECT id_task_group FROM task WHERE id_task = %s", [task.id_task])[0]["id_task_group"] == number
    assert sum(client.group("noc").tasks.values()) == 1
    with pytest.raises(UsageError, match="closed"):
        client.submit("y", group="noc")


def test_the_database_comes_from_the_settings(database_url: str, model: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no database is set"), Client() as client:
        client.status(1)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    with Client() as client:
        assert client.submit("x").is_new


def test_a_database_that_is_away_is_an_error_at_once_and_not_a_hang() -> None:
    before = threading.active_count()
    started = time.monotonic()
    with pytest.raises(DatabaseAway), Client(f"mysql://root@127.0.0.1:{free_port()}/x", patience=0.2):
        pass
    assert time.monotonic() - started < SOON
    assert threading.active_count() <= before


def test_a_wait_outlives_a_restart_of_the_database() -> None:
    """The server is stopped while somebody waits, and the result is committed after its return."""
    port = free_port()
    with private_mariadb(port) as (admin, server):
        admin.execute("CREATE DATABASE ai_worker CHARACTER SET utf8mb4")
        url = admin.url("ai_worker")
        with closing(Database(parse_database_url(url))) as db:
            migrate.migrate(db)
        with admin.connect("ai_worker") as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")

        async def talk() -> tuple[str | None, object]:
            async with AsyncClient(url, patience=0.5) as client:
                first, second = (await client.submit(["a", "b"])).items
                wait = asyncio.create_task(client.wait(first, timeout=60))
                impatient = asyncio.create_task(client.wait(second, timeout=0.3, default="nic"))
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.stop)
                missed = await impatient  # on time, though nobody can be asked
                assert not wait.done()
                await asyncio.to_thread(server.start, tcp_options(port))
                with admin.connect("ai_worker") as connection, connection.cursor() as cursor:
                    cursor.execute(
                        "UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'A' "
                        "WHERE id_task_item = %s",
                        [first],
                    )
                return (await wait).text, missed

        assert asyncio.run(talk()) == ("A", "nic")


def test_an_application_s_rights_are_enough(users: Users, sql: Sql, model: int) -> None:  # noqa: F811 -- the fixture
    """To submit, to wait, to read; not to do what a person does."""
    from tests.integration.test_grants import PASSWORD

    with Client(users.server.url(users.database, users.prefix + "app", PASSWORD)) as client:
        first = client.submit("a", model="echo", key="k")
        task = client.submit(
            ["b", "c"], model="echo", after=first.id_task, result_ttl=60, scheduled_at=datetime.now(UTC) + timedelta(1)
        )
        finish(sql, task.items[0])
        sql(
            "INSERT INTO task_item_file (id_task_item, position, mime_type, size, sha256, content) "
            "VALUES (%s, 0, 'image/png', 3, %s, 'abc')",
            [task.items[0], hashlib.sha256(b"abc").digest()],
        )
        finished = client.wait(task.items[0], timeout=SOON)
        (file,) = finished.files
        assert (file.mime_type, file.size, client.file(file)) == ("image/png", 3, b"abc")
        assert client.wait(task.items[1], timeout=0, default=None) is None
        assert client.submit("a", model="echo", key="k").id_task == first.id_task
        assert client.status(task.id_task).total == 2
        assert len(list(client.results(task.id_task))) == 2
        client.add_group("noc")
        assert client.submit("d", model="echo", group="noc").is_new
        assert client.close_group("noc")
        with pytest.raises(DatabaseError, match="denied"):
            client.cancel(task.id_task)


def test_importing_it_loads_no_sdk() -> None:
    heavy = "openai google jinja2 jsonschema_rs click aiohttp httpx2 ai_worker.providers ai_worker.task_types PIL".split()  # noqa: SIM905 -- a list of words
    code = f"import ai_worker.client, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
