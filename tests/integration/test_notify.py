"""What a daemon tells its service manager, told to a real socket: ready, alive, how it is getting on, reloading, stopping."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sql
from tests.integration.lifecycle import Application
from tests.servers import Background, Programs, TestServer, free_port
from tests.service_manager import Manager, listening

# One server: nothing here is about the database.
pytestmark = pytest.mark.parametrize("server", ["mariadb"], indirect=True, scope="session")
pytest_plugins = ["tests.integration.lifecycle"]

WATCHDOG = {"WATCHDOG_USEC": "600000", "WATCHDOG_PID": None}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening(tmp_path) as manager:
        yield manager


def events(daemon: Background, name: str) -> list[dict[str, Any]]:
    lines = [line for line in daemon.text().splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each["event"] == name]


def test_it_is_ready_after_its_first_look_and_not_before(
    server: TestServer, programs: Programs, manager: Manager, database_url: str
) -> None:
    with server.connect(database_url.rpartition("/")[2].partition("?")[0]) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLES task WRITE")  # no look for work can come to its end
        daemon = programs.start("daemon", env={**manager.env, **WATCHDOG})
        message = manager.wait_for(lambda each: "EXTEND_TIMEOUT_USEC" in each)
        assert "waits" in message["STATUS"]
        daemon.wait_for("START")
        manager.wait_for(lambda each: "EXTEND_TIMEOUT_USEC" in each)
        assert not any("READY" in each or "WATCHDOG" in each for each in manager.told)
        cursor.execute("UNLOCK TABLES")
        ready = manager.wait_for(lambda each: "READY" in each)
    assert ready["READY"] == ready["WATCHDOG"] == "1"
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert any("STOPPING" in each for each in manager.rest())


def test_from_ready_to_stopping(programs: Programs, manager: Manager, application: Application, sql: Sql, tmp_path: Path) -> None:
    settings = tmp_path / "settings.env"
    settings.write_text('AI_WORKER_DRAIN_SECONDS="60"\nAI_WORKER_CONCURRENCY="4"\n')
    model = application.model(options='{"delay_ms": 1500}')
    daemon = programs.start("daemon", env={**manager.env, **WATCHDOG, "AI_WORKER_ENV_FILE": str(settings)})
    manager.wait_for(lambda each: "READY" in each)
    for _ in range(3):
        manager.wait_for(lambda each: each.get("WATCHDOG") == "1" and each["STATUS"].startswith("0 in flight"))

    # Other settings: some at once, others with the next start; wrong ones not at all.
    settings.write_text('AI_WORKER_DRAIN_SECONDS="50"\nAI_WORKER_CONCURRENCY="2"\nAI_WORKER_LEASE_SECONDS="20"\n')
    daemon.process.send_signal(signal.SIGHUP)
    manager.wait_for(lambda each: each.get("RELOADING") == "1" and int(each["MONOTONIC_USEC"]) > 0)
    manager.wait_for(lambda each: each.get("READY") == "1")
    (reloaded,) = events(daemon, "RELOADED")
    assert reloaded["changed"] == ["AI_WORKER_CONCURRENCY", "AI_WORKER_DRAIN_SECONDS"]
    assert reloaded["at_restart"] == ["AI_WORKER_LEASE_SECONDS"]
    settings.write_text('AI_WORKER_DRAIN_SECONDS="for ever"\n')
    daemon.process.send_signal(signal.SIGHUP)
    manager.wait_for(lambda each: each.get("READY") == "1")
    (refused,) = events(daemon, "RELOAD_REFUSED")
    assert "AI_WORKER_DRAIN_SECONDS is 'for ever'" in refused["message"]

    # Two at a time now, and told of. A drain waits for them, asks for time, and says so in the worker's row.
    application.items(application.task(model), 3)
    manager.wait_for(lambda each: each.get("STATUS", "").startswith("2 in flight"))
    daemon.process.terminate()
    manager.wait_for(lambda each: each.get("STOPPING") == "1")
    asking = manager.wait_for(lambda each: "EXTEND_TIMEOUT_USEC" in each)
    assert asking["STATUS"].startswith("draining: 2 in flight, ")
    assert asking["WATCHDOG"] == "1"
    (worker,) = json.loads(programs.run("workers", "--json").stdout)
    assert worker["state"] == "draining"
    assert daemon.wait() == 0
    assert events(daemon, "DRAIN")[0]["drain_seconds"] == 50
    assert [row["status_id"] for row in sql("SELECT status_id FROM task_item ORDER BY id_task_item")] == [1, 1, 0]


def test_a_service_waits_for_its_database(programs: Programs, manager: Manager) -> None:
    nowhere = f"mysql://nobody@127.0.0.1:{free_port()}/nothing"
    daemon = programs.start("daemon", env={**manager.env, "AI_WORKER_DB_URL": nowhere})
    message = manager.wait_for(lambda each: "EXTEND_TIMEOUT_USEC" in each)
    assert message["STATUS"] == "starting: waits for the database"
    daemon.process.terminate()
    assert daemon.wait() == 0


def test_a_loop_that_stands_still_is_not_fed(programs: Programs, manager: Manager) -> None:
    daemon = programs.start("daemon", env={**manager.env, **WATCHDOG})
    manager.wait_for(lambda each: "READY" in each)
    daemon.process.send_signal(signal.SIGSTOP)
    manager.rest()
    threading.Event().wait(1.0)
    assert manager.rest() == []
    daemon.process.send_signal(signal.SIGCONT)
    manager.wait_for(lambda each: "WATCHDOG" in each)
    daemon.process.send_signal(signal.SIGABRT)  # as the watchdog does
    assert daemon.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.text()
    assert "runtime.py" in daemon.text()


def test_a_run_that_a_service_has_started_does_not_speak_for_it(programs: Programs, manager: Manager) -> None:
    assert programs.run("run", env={**manager.env, **WATCHDOG}).returncode == 0
    assert manager.rest() == []
