"""What goes on beside the workers in a soak: an application, visitors of the web, housekeeping, and an occasional cut.

Time is compressed in one place: a task that has ended and been audited is made two days old, so that the next `prune` takes it.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pymysql

from tests.acceptance.fleet import Fake, plain_sql, sentences
from tests.chaos.arena import DATABASE, PASSWORD, Arena
from tests.servers import environment

POOL = 2000  # different texts of the tasks whose answers are kept and given out again
MOST_TASKS = 120  # in the database, of about a thousand items each: those that have ended wait for `prune`
CUT_SECONDS = 10.0  # between two connections that are killed
PRUNE_SECONDS = 1.0
RESET_SECONDS = 60.0  # the fake provider keeps count of every text; it is not what is tried here


@dataclass(frozen=True)
class Kind:
    """A kind of work, of which so many tasks of so many items are open at any time. `mark`: what the model adds to a text."""

    name: str
    provider: str
    items: int
    open_tasks: int
    mark: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    is_repeated: bool = False  # the same texts come again and again


KINDS = (
    Kind("echo", "echo", 2000, 4, columns={"cache_seconds": 0}),
    Kind("calls", "openai", 300, 2, " ✓", {"cache_seconds": 0, "max_attempts": 10}),
    Kind("packs", "openai", 300, 1, " ✓", {"cache_seconds": 0, "max_attempts": 10, "pack": 10}),
    Kind("known", "openai", 300, 1, " ✓", {"cache_seconds": 3600, "max_attempts": 10}, is_repeated=True),
)

TWO_DAYS_PASS = (
    "UPDATE task SET created_at = created_at - INTERVAL 2 DAY, started_at = started_at - INTERVAL 2 DAY,"
    " finished_at = finished_at - INTERVAL 2 DAY"
)

# Mistakes that providers make all the time: each is repeated, within the call or by another attempt.
FAULTS = (
    {"fault": "429", "share": 0.01},
    {"fault": "500", "share": 0.005},
    {"fault": "drop", "share": 0.005},
    {"fault": "wrong_shape", "share": 0.005},
)


class Beside:
    """Calls `turn` again and again in a thread of its own until the block ends. A turn that fails ends it; `check` says so."""

    def __init__(self, name: str, turn: Callable[[], object], pause: float) -> None:
        self._turn = turn
        self._pause = pause
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.turns = 0

    def _run(self) -> None:
        try:
            while not self._over.wait(self._pause):
                self._turn()
                self.turns += 1
        except BaseException as error:  # noqa: BLE001 -- raised again by `check`, in the thread that waits for the end
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"{self._thread.name} failed after {self.turns} turns") from self._error

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)


class Application:
    """Puts tasks in by plain SQL as `ai_worker_app`, audits each one that has ended, and hands it over to housekeeping."""

    def __init__(self, arena: Arena, provider: Fake) -> None:
        self._connection = arena.test_server.connect(DATABASE, "ai_worker_app", PASSWORD)
        self._sql = plain_sql(arena.connect())
        self._lines = sentences()
        self._numbers = itertools.count(1)
        self._open: dict[int, Kind] = {}
        self.inserted = self.audited = self.tasks = 0
        self.is_closing = False
        for kind in KINDS:
            url = None if kind.provider == "echo" else provider.url + "/v1"
            self._sql(
                "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output)"
                " VALUES (%s, %s, 'fake', %s, 1, 2)",
                [kind.name, kind.provider, url],
            )
        self._models = {row["name"]: row["id_ai_model"] for row in self._sql("SELECT name, id_ai_model FROM ai_model")}

    @property
    def open_tasks(self) -> int:
        return len(self._open)

    def turn(self) -> None:
        """Looks which tasks have ended, and puts in new ones for them."""
        if self._open:
            which = ", ".join(map(str, self._open))
            ended = self._sql(f"SELECT id_task FROM task WHERE id_task IN ({which}) AND finished_at IS NOT NULL")
            for row in ended:
                self._audit(row["id_task"], self._open.pop(row["id_task"]))
        # Full speed is that of the whole: who puts work in waits for those who clear up, as a disk of some size would have it.
        if not self.is_closing and self._sql("SELECT COUNT(*) AS n FROM task")[0]["n"] < MOST_TASKS:
            for kind in KINDS:
                for _ in range(kind.open_tasks - sum(each is kind for each in self._open.values())):
                    self._open[self._put(kind)] = kind

    def _put(self, kind: Kind) -> int:
        with self._connection.cursor() as cursor:
            names = ", ".join(kind.columns)
            places = ", ".join(["%s"] * len(kind.columns))
            cursor.execute(
                f"INSERT INTO task (id_ai_model, description, {names}) VALUES (%s, 'Correct the text.', {places})",
                [self._models[kind.name], *kind.columns.values()],
            )
            id_task = int(cursor.lastrowid)
            texts = [self._text(kind) for _ in range(kind.items)]
            cursor.executemany(
                "INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [(id_task, text) for text in texts]
            )
        self.inserted += kind.items
        self.tasks += 1
        return id_task

    def _text(self, kind: Kind) -> str:
        number = next(self._numbers)
        if kind.is_repeated:
            number %= POOL
        return f"{number}: {self._lines[number % len(self._lines)]}"

    def _audit(self, id_task: int, kind: Kind) -> None:
        """Every item done once, with its own text's result; every sum the same in task, items, attempts. Then two days pass."""
        sql = self._sql
        (task,) = sql("SELECT * FROM task WHERE id_task = %s", [id_task])
        (items,) = sql(
            "SELECT COUNT(*) AS n, SUM(status_id = 1) AS done,"
            " SUM(BINARY text_corrected = BINARY CONCAT(text_original, %s)) AS own,"
            " SUM(tokens_input) AS tokens, SUM(cost) AS cost FROM task_item WHERE id_task = %s",
            [kind.mark, id_task],
        )
        (attempts,) = sql(
            "SELECT SUM(outcome = 'processed') AS done, COUNT(DISTINCT IF(outcome = 'processed', i.id_task_item, NULL)) AS items,"
            " SUM(a.tokens_input) AS tokens, SUM(a.cost) AS cost"
            " FROM task_item i JOIN task_attempt a ON a.id_task_item = i.id_task_item WHERE i.id_task = %s",
            [id_task],
        )
        found = (task["status_id"], task["records_processed"], task["records_failed"], items["n"], items["done"], items["own"])
        assert found == (2, kind.items, 0, kind.items, kind.items, kind.items), f"task {id_task} ({kind.name}): {found}"
        assert (attempts["done"], attempts["items"]) == (kind.items, kind.items), f"task {id_task} ({kind.name}): {attempts}"
        sums = {(each["tokens"], each["cost"]) for each in (items, attempts)} | {(task["tokens_input"], task["cost"])}
        assert len(sums) == 1, f"task {id_task} ({kind.name}): {sums}"
        self.audited += kind.items
        sql(f"{TWO_DAYS_PASS} WHERE id_task = %s", [id_task])

    def close(self) -> None:
        self._connection.close()


class Visitors:
    """Programs and people on the web: pages, lists, metrics, a task over HTTP whose result is waited for, a live page."""

    def __init__(self, base: str, token: str, cookie: tuple[str, str], model: str) -> None:
        self._client = httpx2.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        self._browser = httpx2.Client(base_url=base, cookies=dict([cookie]), timeout=60)
        self._model = model
        self._numbers = itertools.count(1)
        self.requests = self.away = 0

    def turn(self) -> None:
        for path in ("/health/ready", "/metrics", "/task", "/worker", "/model"):
            self._get(self._client, path)
        number = next(self._numbers)
        body = {"model": self._model, "items": [f"over HTTP {number}"]}
        id_task = self._asked(
            lambda: self._client.post("/task", json=body, headers={"Idempotency-Key": f"soak-{number}"})
        ).json()["id_task"]
        (item,) = self._get(self._client, f"/task/{id_task}/items").json()["items"]
        self._get(self._client, f"/task-item/{item['id_task_item']}?wait=30")
        for path in ("/", "/ui/tasks", f"/ui/tasks/{id_task}", "/ui/workers", "/ui/models"):
            self._get(self._browser, path)
        with self._browser.stream("GET", "/ui/events/overview") as stream:
            next(stream.iter_lines())
        self.requests += 1

    def _get(self, client: httpx2.Client, path: str) -> httpx2.Response:
        return self._asked(lambda: client.get(path))

    def _asked(self, ask: Callable[[], httpx2.Response]) -> httpx2.Response:
        """The answer; asked again while it is 503, which the web says when its connection was cut too often in a row."""
        while (answer := ask()).status_code == 503:
            self.away += 1
            time.sleep(0.2)
        assert answer.status_code < 400, f"{answer.request.url}: {answer.status_code} {answer.text[:500]}"
        self.requests += 1
        return answer

    def close(self) -> None:
        self._client.close()
        self._browser.close()


class Housekeeping:
    """`ai-worker prune` with the rights of `ai_worker_prune`, again and again; tasks that came over HTTP age too."""

    def __init__(self, arena: Arena) -> None:
        self._url = arena.url_of("ai_worker_prune")
        self._sql = plain_sql(arena.connect())
        self.pruned = 0  # items

    def turn(self) -> None:
        self._sql(
            f"{TWO_DAYS_PASS} WHERE description IS NULL AND status_id = 2 AND created_at > UTC_TIMESTAMP() - INTERVAL 1 DAY"
            " AND finished_at < UTC_TIMESTAMP() - INTERVAL 5 SECOND"
        )
        done = subprocess.run(
            [sys.executable, "-m", "ai_worker", "prune", "--older-than", "1d", "--json"],
            env=environment(self._url),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        self.pruned += json.loads(done.stdout)["deleted"].get("task_item", 0)


class Cutter:
    """Kills a connection of a worker or of the web: they must make a new one and leave nothing of the old."""

    def __init__(self, arena: Arena, rng: random.Random) -> None:
        self._connection = arena.connect()
        self._rng = rng
        self.cut = 0

    def turn(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT ID AS id FROM information_schema.processlist WHERE USER IN ('ai_worker', 'ai_worker_web')")
            ids = sorted(row["id"] for row in cursor.fetchall())
            try:
                cursor.execute(f"KILL {self._rng.choice(ids)}")
            except pymysql.err.OperationalError as error:
                if error.args[0] != 1094:  # gone by itself in the meantime
                    raise
        self.cut += 1
