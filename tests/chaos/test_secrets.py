"""Canary secrets in one run over every command and many faults: none is seen where it does not belong.

Planted: API keys, passwords of the database and of a source, master keys, a passphrase, tokens, a session, secrets of callbacks,
of a proxy and of a collector. Looked at: all output, logs, process lists, temporary files, HTTP answers, exports, every cell of
the database, every statement that the server was sent, and what providers were asked with. Core dumps are tried in
tests/unit/test_secrecy.py.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIRoute

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.web.access import COOKIE
from ai_worker.web.app import create_app
from tests.acceptance.fleet import Fake
from tests.chaos import ledger, secret_commands
from tests.chaos.arena import PASSWORD, Arena
from tests.chaos.secret_canaries import Canaries, Watch, forms
from tests.chaos.secret_stage import GIVEN, Stage
from tests.chaos.telltale import KINDS, telltale
from tests.integration.commands import Commands
from tests.servers import Background, environment

IN_ALL = 50  # commands at least: fewer, and the tree was not walked


@dataclass(frozen=True)
class Process:
    """How a command ended that was a process of its own."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def as_processes(folder: Path) -> Callable[..., Process]:
    def run(*args: str, env: Mapping[str, str | None], stdin: str) -> Process:
        command = [sys.executable, "-m", "ai_worker", *args]
        ended = subprocess.run(
            command, env=environment(None, env), cwd=folder, input=stdin.encode(), capture_output=True, timeout=120, check=False
        )
        return Process(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    return run


def in_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    commands = Commands(monkeypatch, capsys)

    def run(*args: str, env: Mapping[str, str | None], stdin: str) -> Any:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in env.items():
                patch.setenv(name, value) if value is not None else patch.delenv(name, raising=False)
            return commands(*args, stdin=stdin)

    return run


def test_each_form_of_a_secret_is_seen() -> None:
    """The search itself: a secret is found however it is written, and nothing else is."""
    canaries = Canaries()
    value = canaries.plant("password", "K%2F/@c0ffee+?#żółw")
    for form in forms(value):
        assert canaries.seen_in(b"some log: " + form + b" and more") == ["password"]
    for other in ("K%2F/@c0ffe3+?#żółw", "", "password", value[:-1]):
        assert canaries.seen_in(other) == []
    canaries.look("a log", f"token {value}")
    assert canaries.places


@pytest.mark.chaos
def test_no_canary_is_seen_over_all_commands_and_faults(arena: Arena, provider: Fake, rng: random.Random, tmp_path: Path) -> None:
    with telltale() as told:
        _perform(
            Stage(arena, tmp_path / "stage", provider, told, Canaries(), as_processes(tmp_path / "stage"), rng), is_short=False
        )


@pytest.mark.chaos  # half a minute where nothing else runs, a whole one where much does
def test_no_canary_is_seen_in_short(
    arena: Arena,
    provider: Fake,
    rng: random.Random,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same with all commands in this process; workers and the web are still processes of their own."""
    with telltale() as told:
        run = in_this_process(tmp_path / "stage", monkeypatch, capsys)
        _perform(Stage(arena, tmp_path / "stage", provider, told, Canaries(), run, rng), is_short=True)


def _perform(stage: Stage, *, is_short: bool) -> None:
    began = time.monotonic()
    canaries, sql = stage.canaries, stage.arena.sql
    collector = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization={stage.plant('collector key', 'canary.{}')}"}
    proxy = {"HTTPS_PROXY": f"http://us:{stage.plant('proxy password', 'canary.{}')}@127.0.0.1:1"}
    _write_down_statements(stage.arena)
    with Watch(canaries, stage.folder / "tmp") as watch:
        secret_commands.models(stage)
        secret_commands.work(stage)
        secret_commands.housekeeping(stage)
        if not is_short:
            secret_commands.slow(stage)
        secret_commands.wrong_settings(stage)
        secret_commands.wrong_models(stage)
        answers = _web(stage)
        _workers(stage, {**collector, **proxy, "AI_WORKER_TRACES": "on", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    sql("SET GLOBAL general_log = 0")
    wanted = secret_commands.all_commands()
    missed = wanted - stage.given - secret_commands.ENDLESS
    assert len(wanted) >= IN_ALL
    assert missed <= ({"quickstart"} if is_short else set())

    stage.look_into_database()
    (row,) = sql("SELECT CONCAT(@@datadir, @@general_log_file) AS path")
    said = Path(row["path"]).read_bytes()
    assert b"SELECT" in said
    canaries.look("the statements that the server was sent", said)
    canaries.look_into(stage.folder, but=GIVEN)
    for request in stage.telltale.asked:
        whose = ["gemini key"] if "v1beta" in request else ["API key"]
        if "/302/elsewhere" in request:  # the address that the provider itself has made of either key
            whose = ["gemini key", "API key"]
        canaries.look("a request to a provider", request, but=(*whose, "second key"))
    # The secrets were really in play.
    asked = "\n".join(stage.telltale.asked)
    assert all(stage[name] in asked for name in ("API key", "second key", "gemini key"))
    assert watch.looks > 20
    assert stage.unexpected == []
    assert canaries.places == []
    print(  # noqa: T201 -- the figures of the run
        f"\ncanaries: {len(canaries.values)} secrets, {len(wanted - missed)} of {len(wanted)} commands, {len(KINDS)} ways "
        f"to answer, {answers} HTTP answers, {canaries.looked_at / 1e6:.1f} MB looked at, "
        f"{watch.looks} looks at process lists: 0 seen "
        f"({stage.arena.kind}, {time.monotonic() - began:.0f} s)"
    )


def _write_down_statements(arena: Arena) -> None:
    """The server keeps all that it is sent, but by this test, which sets passwords."""
    arena.sql("SET SESSION sql_log_off = 1")
    arena.sql("SET GLOBAL general_log_file = 'said.log'")
    arena.sql("SET GLOBAL general_log = 1")


def _started(stage: Stage, name: str, *args: str, **env: str | None) -> Background:
    output = stage.folder / f"{name}.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ai_worker", *args],
            env=stage.environment(**env),
            cwd=stage.folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return Background(process, output)


def _workers(stage: Stage, more: Mapping[str, str]) -> None:
    """Workers on providers that repeat keys, while the database dies, the password changes and the master key is another one."""
    sql = stage.arena.sql
    sql("INSERT INTO ai_model (name, provider, model, base_url) VALUES ('through-proxy', 'openai', 'm', 'https://192.0.2.1/v1')")
    sql("UPDATE ai_model SET stopped_kind = NULL, stopped_reason = NULL, stopped_at = NULL, probe_at = NULL")
    names = [row["name"] for row in sql("SELECT name FROM ai_model WHERE provider IN ('openai', 'gemini')")]
    for name in names:
        stage.task(name)
    before = len(stage.telltale.asked)
    running = [
        _started(stage, "daemon-json", "daemon", AI_WORKER_LOG_FORMAT="json", **more),
        _started(stage, "daemon-console", "daemon", AI_WORKER_LOG_FORMAT="console", AI_WORKER_METRICS_PORT="0"),
    ]
    try:
        everybody = {(kind, is_gemini) for kind in KINDS for is_gemini in (False, True)}
        ledger.wait_until(lambda: everybody <= _asked_since(stage, before), 60, "every provider asked")
        time.sleep(1)  # for what they answered to be told
        stage.arena.kill()
        time.sleep(1)
        stage.arena.start()
        sql("SELECT 1")
        _write_down_statements(stage.arena)
        for each in running:
            each.wait_for("DATABASE_BACK", 60)  # a refusal is told once for each time that the database was away
        sql("ALTER USER ai_worker@'%%' IDENTIFIED BY %s", [PASSWORD])
        for row in sql("SELECT id FROM information_schema.processlist WHERE user = 'ai_worker'"):
            sql(f"KILL {row['id']}")
        running[0].wait_for("Access denied", 60)
        sql("ALTER USER ai_worker@'%%' IDENTIFIED BY %s", [stage["worker password"]])
        running[1].process.send_signal(signal.SIGABRT)  # what a watchdog sends: the stacks of the threads are written
        running[0].process.terminate()
        assert [each.wait(60) for each in running[:2]] == [0, -signal.SIGABRT]
        assert "Fatal Python error: Aborted" in running[1].text()
        only = str(stage.task("gpt"))
        running.append(_started(stage, "other-key", "run", "--task", only, AI_WORKER_MASTER_KEY=stage["old master key"]))
        running[2].wait(120)
        assert "encrypted with another master key" in running[2].text()
    finally:
        for each in running:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()


def _asked_since(stage: Stage, before: int) -> set[tuple[str, bool]]:
    """Which of the tell-tales were asked, as whose model: kind, and whether by Gemini's API."""
    paths = [request.split(" ")[1] for request in stage.telltale.asked[before:]]
    return {(path.split("/")[1], path.split("/")[2] == "v1beta") for path in paths}


def _web(stage: Stage) -> int:
    """Every route, asked by nobody, with a wrong token, a right one, and a session; how many answers there were."""
    app = create_app(Database(parse_database_url(stage.arena.admin_url)))
    routes = [(method, each.path) for each in _flat(app.routes) for method in sorted(each.methods)]
    assert len(routes) > 40
    web = _started(stage, "web", "web", "--port", "0", AI_WORKER_DB_URL=stage.url("boss", "administrator's password"))
    count = 0
    try:
        web.wait_for("http://127.0.0.1:")
        found = re.search(r"http://127\.0\.0\.1:\d+", web.text())
        assert found is not None
        with httpx2.Client(base_url=found[0], timeout=20) as client:
            answer = client.post("/ui/login", data={"token": stage["bearer token"]})
            assert answer.status_code == 303
            session = stage.canaries.plant("session", answer.cookies[COOKIE])
            client.cookies.clear()
            for headers in (
                {},
                {"Authorization": f"Bearer {stage['wrong token']}"},
                {"Authorization": f"Bearer {stage['bearer token']}"},
                {"Cookie": f"{COOKIE}={session}", "Sec-Fetch-Site": "same-origin", "Accept": "text/html"},
            ):
                for method, path in routes:
                    if path == "/ui/logout":
                        continue  # last of all
                    _ask(stage, client, method, _filled(stage, path), headers)
                    count += 1
            _ask(stage, client, "POST", "/ui/logout", headers)
        web.process.terminate()
        assert web.wait() == 0
    finally:
        if web.process.poll() is None:
            web.process.kill()
            web.process.wait()
    return count


def _flat(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """All routes, also those of routers: newer FastAPIs keep these together."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (inner := getattr(route, "original_router", None)) is not None:
            yield from _flat(inner.routes)


def _filled(stage: Stage, path: str) -> str:
    """A route's path with ids of what is there."""
    (item,) = stage.arena.sql("SELECT MIN(id_task_item) AS id FROM task_item WHERE id_task = %s", [stage.ids["csv"]])
    values = {"id_task": stage.ids["csv"], "id_task_item": item["id"], "format_name": "html", "topic": "overview"}
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: str(values.get(found[1], 1)), path)


def _ask(stage: Stage, client: httpx2.Client, method: str, path: str, headers: Mapping[str, str]) -> None:
    body: dict[str, Any] = {}
    if method == "POST":
        body = (
            {"data": {"text": "x"}} if path.startswith("/ui/") else {"json": {"type": "correction", "items": [{"text": "Ala"}]}}
        )
    with client.stream(method, path, headers=dict(headers), **body) as answer:
        data = next(answer.iter_bytes(), b"") if "event-stream" in answer.headers.get("content-type", "") else answer.read()
    shown = f"{answer.status_code} {answer.headers!r}".encode() + data
    stage.canaries.look(f"the answer to {method} {path}", shown)
    if answer.status_code >= 500:
        stage.unexpected.append(f"{method} {path}: {answer.status_code} {data[:300]!r}")
