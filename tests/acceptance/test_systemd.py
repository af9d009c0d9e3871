"""The units under a real systemd: installed by the ten commands of docs/service.md, fed with credentials, watched, drained.

One machine is booted for all of it; the tests are in the order in which its life goes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.machine import PYTHON, ROOT, Machine, booted

CHECKOUT = "/root/ai-worker"
PROVIDER = "http://127.0.0.1:11434/v1"  # the fake one, over the machine's loopback
SETTINGS = "/etc/ai-worker/ai-worker.env"
WORKER = "ai-worker@1.service"
ADMINISTRATOR = "mysql://root@/ai_worker?socket=/run/mysqld/mysqld.sock"
DATABASE = ("--no-defaults", "--user=root", "--datadir=/var/lib/database")

# As the units are, but that a test need not wait for a minute: what is asked for beyond these times must have been asked for.
QUICK = """[Service]
WatchdogSec=4
RestartSec=100ms
TimeoutStartSec=5
TimeoutStopSec=3
ExecStopPost=/bin/sh -c 'echo "ended: $$SERVICE_RESULT"'
"""

# A provider whose calls hold the event loop up, as a plug-in's mistake would.
STUCK = """
import time
class StuckProvider:
    makes_pictures = False
    def __init__(self, config): pass
    async def complete(self, prompt): time.sleep(600)
    async def aclose(self): pass
"""


def commands() -> list[str]:
    """Those of the page's first example, one a line."""
    return example("From a checkout").replace("\\\n", "").splitlines()


def example(section: str) -> str:
    """The first commands of a section of the page."""
    page = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    block = re.search(rf"^## {section}.*?```sh\n(.*?)```", page, re.S | re.M)
    assert block
    return block[1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a database server and a provider, as an administrator finds it; nothing of ours is installed."""
    folder = tmp_path_factory.mktemp("systemd")
    packages = folder / "files/opt/ai-worker/lib" / PYTHON / "site-packages"
    (packages / "stuck-1.dist-info").mkdir(parents=True)
    (packages / "stuck.py").write_text(STUCK)
    (packages / "stuck-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1\n")
    (packages / "stuck-1.dist-info/entry_points.txt").write_text("[ai_worker.providers]\nstuck = stuck:StuckProvider\n")
    with booted(folder) as machine:
        machine.must("mkdir", "-p", "/run/mysqld", "/var/lib/database")
        as_root = ("--auth-root-authentication-method=socket", "--skip-test-db", "--skip-name-resolve")
        machine.must("mariadb-install-db", *DATABASE, *as_root)
        start_database(machine)
        yield machine


def start_database(machine: Machine) -> None:
    lean = ("--skip-networking", "--socket=/run/mysqld/mysqld.sock", "--innodb-flush-log-at-trx-commit=2")
    machine.must("systemd-run", "--unit=database", "--property=Type=notify", "mariadbd", *DATABASE, *lean)


@pytest.fixture(scope="module")
def installed(machine: Machine) -> list[str]:
    """What each of the ten commands printed, run as they stand there; but that the provider is not on the Internet."""
    machine.must("sh", "-c", "echo sk-of-the-administrator > openai.key", cwd=CHECKOUT)
    said = []
    for command in commands():
        if "model add" in command:
            start = ("systemd-run", "--unit=provider", f"--working-directory={CHECKOUT}", f"--setenv=PYTHONPATH={CHECKOUT}")
            machine.must(
                *start, "/opt/ai-worker/bin/python", "-m", "tests.fake_provider", "--port", "11434", "--latency-ms", "20"
            )
            command = command.replace("https://api.openai.com/v1", PROVIDER)  # noqa: PLW2901 -- the one change
            machine.wait_until(lambda: "http" in machine.journal("provider"))
        said.append(machine.must("bash", "-c", command, cwd=CHECKOUT, timeout=120))
    return said


@pytest.fixture(scope="module")
def service(machine: Machine, installed: list[str]) -> Machine:
    """The machine with its services running, whose times are short from here on."""
    for unit in ("ai-worker@.service", "ai-worker-web.service"):
        write(machine, f"/etc/systemd/system/{unit}.d/test.conf", QUICK)
    machine.must("systemctl", "daemon-reload")
    machine.must("systemctl", "restart", "ai-worker@1", "ai-worker@2", "ai-worker-web")
    return machine


def write(machine: Machine, path: str, text: str) -> None:
    machine.must("sh", "-c", f"mkdir -p '{Path(path).parent}' && cat > '{path}'", input=text)


@contextmanager
def settings(machine: Machine, *lines: str) -> Iterator[None]:
    """The services' settings with these lines more, until the end of the block."""
    before = machine.must("cat", SETTINGS)
    write(machine, SETTINGS, before + "".join(f"{line}\n" for line in lines))
    try:
        yield
    finally:
        write(machine, SETTINGS, before)


def sql(machine: Machine, statement: str) -> list[str]:
    """What a statement of the database's administrator gives, a row a line."""
    return machine.must("mariadb", "--skip-column-names", "ai_worker", input=statement).splitlines()


def submit(machine: Machine, model: str, *texts: str, by: str = "AI_WORKER_DB_URL=") -> int:
    """A task with these items; its id."""
    rows = "\n".join(("text", *texts)) + "\n"
    command = ("env", by, "ai-worker", "submit", "-", "--format", "csv", "--column", "text", "--model", model, "--json")
    task: int = json.loads(machine.must(*command, input=rows))["id_task"]
    return task


def task(machine: Machine, id_task: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.must("ai-worker", "status", str(id_task), "--json"))
    return found


def events(machine: Machine, unit: str, name: str) -> list[dict[str, Any]]:
    lines = [line for line in machine.journal(unit).splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each["event"] == name]


def test_ten_commands_lead_to_running_services(machine: Machine, installed: list[str]) -> None:
    assert len(commands()) <= 10
    assert "gpt answered" in installed[-3]
    for unit in (WORKER, "ai-worker@2.service", "ai-worker-web.service"):
        assert machine.show(unit, "ActiveState") == "active"
        assert machine.show(unit, "UnitFileState") == "enabled"
        assert unit.removesuffix(".service") in installed[-1]
    assert installed[-1].count(": alive, ") == 2
    found = submit(machine, "gpt", "I go to shcool.", "He recieves it.")
    machine.wait_until(lambda: task(machine, found)["status"] == "COMPLETED")
    assert task(machine, found)["items"]["processed"] == 2


def test_secrets_come_as_credentials_and_are_nowhere_else(machine: Machine, installed: list[str]) -> None:
    password = machine.must("cat", "/etc/ai-worker/credentials/db-password").strip()
    key = machine.must("cat", "/etc/ai-worker/credentials/master-key").strip()
    pid = machine.show(WORKER, "MainPID")
    seen = machine.must("cat", f"/proc/{pid}/environ") + machine.must("cat", f"/proc/{pid}/cmdline")
    seen += machine.must("systemctl", "show", WORKER) + machine.journal()
    assert password not in seen
    assert key not in seen
    user = machine.must("stat", "--format=%u", f"/proc/{pid}").strip()
    assert 61184 <= int(user) <= 65519  # made for the service: systemd's range of dynamic users
    credentials = "/run/credentials/ai-worker@1.service"
    assert machine.must("cat", f"{credentials}/ai_worker_db_password").strip() == password
    assert machine.must("stat", "--format=%a %u", f"{credentials}/ai_worker_db_password").split() == ["400", user]
    assert machine.must("stat", "--format=%a", SETTINGS).strip() == "600"


def test_the_web_answers(service: Machine) -> None:
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/health/live').status)"
    assert service.must("/opt/ai-worker/bin/python", "-c", ask).strip() == "200"
    assert service.show("ai-worker-web", "ActiveState") == "active"


def test_settings_are_read_anew(service: Machine) -> None:
    pid = service.show(WORKER, "MainPID")
    with settings(service, 'AI_WORKER_LOG_LEVEL="debug"', 'AI_WORKER_DRAIN_SECONDS="20"'):
        service.must("systemctl", "reload", WORKER)
        service.wait_until(lambda: len(events(service, WORKER, "RELOADED")) == 1)
        service.wait_until(lambda: service.show(WORKER, "ActiveState") == "active")
    assert events(service, WORKER, "RELOADED")[0]["changed"] == ["AI_WORKER_DRAIN_SECONDS", "AI_WORKER_LOG_LEVEL"]
    with settings(service, 'AI_WORKER_DRAIN_SECONDS="soon"'):
        service.must("systemctl", "reload", WORKER)
        service.wait_until(lambda: len(events(service, WORKER, "RELOAD_REFUSED")) == 1)
    assert "AI_WORKER_DRAIN_SECONDS is 'soon'" in events(service, WORKER, "RELOAD_REFUSED")[0]["message"]
    assert service.show(WORKER, "MainPID") == pid


def test_a_stop_drains_for_as_long_as_it_takes(service: Machine) -> None:
    service.must(
        "ai-worker", "model", "add", "slow", "--provider", "echo", "--option", "delay_ms=5000"
    )  # longer than TimeoutStopSec
    found = submit(service, "slow", "one", "two")
    service.wait_until(lambda: task(service, found)["items"]["in_progress"] == 2)
    stopping = threading.Thread(target=service.must, args=("systemctl", "stop", "ai-worker@1", "ai-worker@2"))
    stopping.start()
    texts: set[str] = set()
    service.wait_until(lambda: texts.add(service.show(WORKER, "StatusText")) or any("draining" in text for text in texts))  # type: ignore[func-returns-value]
    stopping.join(30)
    assert not stopping.is_alive()
    assert task(service, found)["status"] == "COMPLETED"
    assert events(service, WORKER, "STOP")
    assert service.show(WORKER, "Result") == "success"
    service.must("systemctl", "start", "ai-worker@1", "ai-worker@2")


def test_a_loop_that_is_held_up_is_ended_by_the_watchdog(service: Machine) -> None:
    service.must("systemctl", "stop", "ai-worker@2")
    service.must("ai-worker", "model", "add", "jam", "--provider", "stuck")
    found = submit(service, "jam", "whatever")
    service.wait_until(lambda: service.show(WORKER, "NRestarts") == "1")
    service.must("ai-worker", "cancel", str(found))
    log = service.journal(WORKER)
    assert "Fatal Python error: Aborted" in log
    assert "stuck.py" in log  # what hung
    assert "ended: watchdog" in log
    service.wait_until(lambda: service.show(WORKER, "ActiveState") == "active")
    service.must("systemctl", "start", "ai-worker@2")


def test_a_killed_worker_is_started_again(service: Machine) -> None:
    before = int(service.show(WORKER, "NRestarts"))
    service.must("systemctl", "kill", "--signal=SIGKILL", WORKER)
    service.wait_until(lambda: int(service.show(WORKER, "NRestarts")) == before + 1)
    service.wait_until(lambda: service.show(WORKER, "ActiveState") == "active")


def test_wrong_settings_are_not_tried_again(service: Machine) -> None:
    with settings(service, 'AI_WORKER_CONCURRENCY="many"'):
        assert service.run("systemctl", "restart", WORKER).returncode != 0
        assert service.show(WORKER, "ActiveState") == "failed"
        assert service.show(WORKER, "ExecMainStatus") == "78"
        status = service.run("ai-worker", "service", "status")
        assert status.returncode == 1
        assert "AI_WORKER_CONCURRENCY is 'many'" in status.stdout
    assert service.show(WORKER, "NRestarts") == "0"
    service.must("systemctl", "start", WORKER)


def test_a_start_waits_for_the_database(service: Machine) -> None:
    service.must("systemctl", "stop", WORKER)
    service.must("systemctl", "stop", "database")
    service.must("systemctl", "start", "--no-block", WORKER)
    service.wait_until(lambda: "waits for the database" in service.show(WORKER, "StatusText"), timeout=30)
    since = int(service.show(WORKER, "ExecMainStartTimestampMonotonic"))

    def seconds() -> float:
        return float(service.must("cat", "/proc/uptime").split()[0]) - since / 1e6

    service.wait_until(lambda: seconds() > 6)  # longer than TimeoutStartSec
    assert service.show(WORKER, "ActiveState") == "activating"
    assert service.show(WORKER, "ExecMainStartTimestampMonotonic") == str(since)
    start_database(service)
    service.wait_until(lambda: service.show(WORKER, "ActiveState") == "active", timeout=30)


def test_each_part_works_as_a_user_of_its_own(service: Machine) -> None:
    service.must("bash", "-ec", example("A user of the database"), cwd=CHECKOUT)
    service.wait_until(lambda: service.show(WORKER, "ActiveState") == "active")
    assert service.show("ai-worker-prune", "ExecMainStartTimestampMonotonic") == "0"  # a restart of all is none of it
    service.must("systemctl", "start", "ai-worker-web")  # returns when it listens

    for part in ("web", "prune"):
        password = service.must("cat", f"/etc/ai-worker/credentials/db-password-{part}").strip()
        assert password not in service.must("systemctl", "show", f"ai-worker-{part}") + service.journal()
    held = "/run/credentials/ai-worker-web.service/ai_worker_db_password"
    assert service.must("cat", held) == service.must("cat", "/etc/ai-worker/credentials/db-password-web")
    assert service.run("ai-worker", "prune", "--older-than", "30d").returncode != 0  # as the workers' user

    (old,) = sql(service, "SELECT MIN(id_task) FROM task WHERE status_id = 2")
    sql(service, f"UPDATE task SET finished_at = finished_at - INTERVAL 40 DAY WHERE id_task = {old}")
    count = f"SELECT COUNT(*) FROM task WHERE id_task = {old} UNION ALL SELECT COUNT(*) FROM task_item WHERE id_task = {old}"
    assert sql(service, count) == ["1", "2"]
    service.must("systemctl", "start", "ai-worker-prune.service")
    assert sql(service, count) == ["0", "0"]

    new = submit(service, "gpt", "She sayed it.", by=f"AI_WORKER_DB_URL={ADMINISTRATOR}")
    service.wait_until(lambda: sql(service, f"SELECT status_id FROM task WHERE id_task = {new}") == ["2"])
    users = sql(service, "SELECT DISTINCT user FROM information_schema.processlist WHERE db = DATABASE() ORDER BY 1")
    assert users == ["ai_worker", "ai_worker_web", "root"]


def test_it_is_taken_away_again(service: Machine) -> None:
    service.must("ai-worker", "service", "install", "--instances", "1")
    assert service.show("ai-worker@2", "ActiveState") == "inactive"
    assert service.show(WORKER, "ActiveState") == "active"
    service.must("ai-worker", "service", "uninstall")
    assert service.run("systemctl", "list-units", "--no-legend", "--state=active", "ai-worker*").stdout.strip() == ""
    assert service.run("test", "-e", "/etc/systemd/system/ai-worker@.service").returncode == 1
    assert service.must("cat", SETTINGS)
