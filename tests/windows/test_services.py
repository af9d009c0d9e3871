"""A worker as a Windows service: NSSM, told what install.ps1 tells it, starts, stops and restarts it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.powershell import nssm_settings
from tests.servers import TestDatabase, free_port
from tests.windows.machine import Machine, windows_path

pytestmark = pytest.mark.windows

NAME = "ai-worker-1"
DRAIN_SECONDS = 6
LOG_BYTES = 20_000


@dataclass
class Service:
    """The service, its settings and its log."""

    machine: Machine
    folder: Path

    def control(self, verb: str) -> str:
        return self.machine.run(self.machine.nssm, verb, NAME).stdout.strip()

    def told(self, *setting: str) -> None:
        """Tells NSSM one thing more of the service."""
        done = self.machine.run(self.machine.nssm, "set", NAME, *setting)
        assert done.returncode == 0, (setting, done.stdout)

    @property
    def state(self) -> str:
        return self.control("status").removeprefix("SERVICE_")

    def set_up(self, *lines: str) -> None:
        """Writes the settings, and begins with an empty folder."""
        for each in self.logs():
            each.unlink()
        text = "".join(f"{line}\r\n" for line in ("AI_WORKER_LEASE_SECONDS=5", *lines))
        (self.folder / "ai-worker.env").write_text(text, encoding="utf-8", newline="")

    def logs(self) -> list[Path]:
        """The files put aside, the oldest first, and then the current one."""
        current = self.folder / NAME / "service.log"
        return [*sorted(current.parent.glob("service-*.log")), *([current] if current.exists() else [])]

    def lines(self) -> list[str]:
        """All lines. Read as one text: NSSM may put a file aside in the middle of a line, which goes on in the next."""
        return b"".join(path.read_bytes() for path in self.logs()).decode().splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log with this event. What is no JSON fails the test: it was cut, or is a traceback."""
        return [event for event in map(json.loads, self.lines()) if event["event"] == name]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def installed(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as install.ps1 has NSSM install it, in folders with spaces."""
    folder = tmp_path_factory.mktemp("AI Worker")
    (folder / NAME).mkdir()
    settings = nssm_settings(
        {
            "Python": windows_path(machine.python),
            "Parameters": "-m ai_worker daemon",
            "Title": "AI Worker 1",
            "Service": NAME,
            "folder": windows_path(folder / NAME),
            "EnvFile": windows_path(folder / "ai-worker.env"),
            "COMPUTERNAME": "OKNO",
            "DrainSeconds": str(DRAIN_SECONDS),
            "logBytes": str(LOG_BYTES),
            "stopMilliseconds": str((DRAIN_SECONDS + 15) * 1000),
        }
    )
    done = machine.run(machine.nssm, "install", NAME, windows_path(machine.python))
    assert done.returncode == 0, done.stdout
    service = Service(machine, folder)
    for setting in settings:
        service.told(*setting)
    yield service
    machine.run(machine.nssm, "remove", NAME, "confirm")


@pytest.fixture
def service(installed: Service) -> Iterator[Service]:
    yield installed
    installed.control("stop")
    wait_for(lambda: installed.state == "STOPPED", "the service stops", 60)


@dataclass
class Work:
    """Rows, put in and looked at as another application does."""

    database: TestDatabase

    def sql(self, statement: str, parameters: Any = None) -> list[dict[str, Any]]:
        with self.database.server.connect(self.database.name) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def add(self, items: int, delay_ms: int) -> None:
        """A task whose every item takes a model of its own time."""
        options = json.dumps({"delay_ms": delay_ms})
        self.sql("INSERT INTO ai_model (name, provider, options) VALUES ('echo', 'echo', %s)", [options])
        self.sql("INSERT INTO task (id_ai_model, description) SELECT id_ai_model, 'Popraw' FROM ai_model")
        id_task = self.sql("SELECT id_task FROM task")[0]["id_task"]
        values = ", ".join(f"({id_task}, 'Zażółć gęślą jaźń {number}')" for number in range(items))
        self.sql(f"INSERT INTO task_item (id_task, text_original) VALUES {values}")

    def count(self, status: str) -> int:
        joined = "SELECT COUNT(*) AS n FROM task_item JOIN task_item_status USING (status_id) WHERE name = %s"
        return int(self.sql(joined, [status])[0]["n"])

    def workers(self) -> list[dict[str, Any]]:
        return self.sql("SELECT * FROM worker ORDER BY id_worker")


@pytest.fixture
def work(database: TestDatabase) -> Work:
    return Work(database)


def test_control_c_drains(service: Service, work: Work) -> None:
    """Stopping the service is Ctrl-C, SIGINT, a drain: what is in flight is finished and stored, the rest left to others."""
    work.add(items=60, delay_ms=2500)
    service.set_up(f"AI_WORKER_DB_URL={work.database.url}", "AI_WORKER_CONCURRENCY=20")
    service.control("start")
    wait_for(lambda: work.count("IN_PROGRESS") >= 20, "items are in flight")
    begin = time.monotonic()
    service.control("stop")
    wait_for(lambda: service.state == "STOPPED", "the service stops")
    assert time.monotonic() - begin < DRAIN_SECONDS + 5

    (drain,), (stop,) = service.events("DRAIN"), service.events("STOP")
    assert drain["in_flight"] == 20
    assert drain["drain_seconds"] == DRAIN_SECONDS
    assert (stop["processed"], stop["released"]) == (work.count("PROCESSED"), 0)
    assert work.count("IN_PROGRESS") == 0
    assert work.count("PROCESSED") >= 20
    assert work.sql("SELECT COUNT(*) AS n FROM task_item WHERE attempt > 1 OR lost_count > 0") == [{"n": 0}]
    (worker,) = work.workers()
    assert worker["ended_at"] is not None
    assert worker["host"] == f"OKNO {NAME}"


def test_what_outlasts_the_drain_is_given_back(service: Service, work: Work) -> None:
    work.add(items=5, delay_ms=600_000)
    service.set_up(f"AI_WORKER_DB_URL={work.database.url}")
    service.control("start")
    wait_for(lambda: work.count("IN_PROGRESS") == 5, "items are in flight")
    service.control("stop")
    wait_for(lambda: service.state == "STOPPED", "the service stops")
    assert service.events("STOP")[0]["released"] == 5
    assert work.count("PENDING") == 5
    assert work.sql("SELECT SUM(attempt) AS n FROM task_item") == [{"n": 0}]  # uncharged
    assert work.workers()[0]["ended_at"] is not None


def test_a_killed_worker_is_started_again_and_nothing_is_lost(service: Service, work: Work) -> None:
    work.add(items=30, delay_ms=1500)
    service.set_up(f"AI_WORKER_DB_URL={work.database.url}", "AI_WORKER_CONCURRENCY=10")
    service.control("start")
    wait_for(lambda: work.count("IN_PROGRESS") >= 10, "items are in flight")
    # On Windows that is TerminateProcess with 9 for an exit code. Wine's taskkill gives 0, unlike Windows': the end of a stop.
    killed = service.machine.run(service.machine.python, "-c", f"import os; os.kill({work.workers()[0]['pid']}, 9)")
    assert killed.returncode == 0, killed.stderr
    wait_for(lambda: len(work.workers()) == 2, "it is started again")
    wait_for(lambda: work.count("PROCESSED") == 30, "all items are processed", 60)
    assert work.sql("SELECT SUM(lost_count) AS n FROM task_item")[0]["n"] == 10
    assert service.state == "RUNNING"


def test_a_worker_with_wrong_settings_is_not_started_again(service: Service, work: Work) -> None:
    """Exit code 78. The reason stands in the log, once."""
    service.set_up("AI_WORKER_DB_URL=postgres://db/x")
    service.control("start")
    wait_for(lambda: service.state == "STOPPED", "NSSM gives up")
    time.sleep(10)  # NSSM would start it again after 2 s, or after 5 s where it takes the end for too early
    assert service.state == "STOPPED"
    (line,) = service.lines()
    assert "begins with none of mysql://" in line
    assert work.workers() == []


def test_a_worker_without_its_database_is_started_again(service: Service, work: Work) -> None:
    """Exit code 75: that will pass."""
    service.set_up("AI_WORKER_DB_URL=mysql://nobody@127.0.0.1:9/x?connect_timeout=1")
    service.control("start")
    wait_for(lambda: len([line for line in service.lines() if line.startswith("ai-worker:")]) >= 2, "it is tried again", 60)


def test_logs_are_put_aside_and_no_line_is_lost(service: Service, work: Work) -> None:
    work.add(items=400, delay_ms=0)
    service.set_up(f"AI_WORKER_DB_URL={work.database.url}")
    service.control("start")
    wait_for(lambda: work.count("PROCESSED") == 400, "all items are processed")
    service.control("stop")
    wait_for(lambda: service.state == "STOPPED", "the service stops")
    *aside, current = service.logs()
    assert aside
    assert current.name == "service.log"
    assert all(path.stat().st_size < 2 * LOG_BYTES for path in [*aside, current])
    assert len({event["item"] for event in service.events("DONE")}) == 400


def test_the_web_service_answers_and_ends(service: Service, work: Work) -> None:
    port = free_port()
    service.set_up(f"AI_WORKER_DB_URL={work.database.url}")
    service.told("AppParameters", f"-m ai_worker web --port {port}")
    try:
        service.control("start")
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health/ready"), "the web service is ready")
        begin = time.monotonic()
        service.control("stop")
        wait_for(lambda: service.state == "STOPPED", "the service stops")
        assert time.monotonic() - begin < DRAIN_SECONDS + 5
    finally:
        service.told("AppParameters", "-m ai_worker daemon")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 -- loopback
            return bool(answer.status == 200)
    except OSError:
        return False
