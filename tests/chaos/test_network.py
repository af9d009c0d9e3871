"""Workers on hosts of their own whose cable is cut, deaf, dumb or lossy, each fault alone.

The kernel of a cut host can tell nobody: its sessions stay in the server, with their locks.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ai_worker.db.session import SILENCE
from tests.acceptance.fleet import fake_provider
from tests.chaos import ledger
from tests.chaos.arena import Arena, arena_on, kinds
from tests.chaos.fleet import Fleet, Process
from tests.chaos.network import Host, why_not
from tests.chaos.relay import Relay
from tests.chaos.scene import RECOVERY_SECONDS, Scene, report
from tests.servers import environment

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

HELD = 40
READ_TIMEOUT = 4  # seconds without an answer, instead of sixty: the waits are the same, and shorter


@pytest.fixture(scope="module", params=kinds())
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with arena_on(request.param, "--bind-address=0.0.0.0") as arena:
        yield arena


@pytest.fixture
def fleet(arena: Arena, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(arena.worker_url, tmp_path, concurrency=HELD, env={"AI_WORKER_REQUEST_TIMEOUT_SECONDS": "5"}) as fleet:
        yield fleet


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


class Far(Scene):
    """A scene with one worker on a host of its own; the provider is reached through a relay at the host's gateway."""

    def start_on(self, host: Host) -> Process:
        url = f"{self.arena.url_of('ai_worker').replace('127.0.0.1', host.gateway)}&connect_timeout=2&read_timeout={READ_TIMEOUT}"
        return self.fleet.start(url=url, prefix=host.prefix)


@pytest.fixture
def far(arena: Arena, fleet: Fleet, host: Host, request: pytest.FixtureRequest) -> Iterator[Far]:
    delay = getattr(request, "param", 0.0)
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider(400))
        target = provider.url.removeprefix("http://").split(":")
        relay = stack.enter_context(Relay((target[0], int(target[1])), host=host.gateway, delay=delay))
        scene = Far(arena, fleet, provider, 200 if delay else 600)
        arena.sql(
            "UPDATE ai_model SET base_url = %s ORDER BY id_ai_model DESC LIMIT 1", [f"http://{host.gateway}:{relay.port}/v1"]
        )
        yield scene


@pytest.mark.parametrize("way", ["cut", "unplug"])
def test_cut_past_the_lease_and_mended(far: Far, host: Host, way: str) -> None:
    away, _ = far.start_on(host), far.fleet.start()
    far.wait_until_calling(away, 1)
    getattr(host, way)()
    seconds = far.wait_until_free(away, time.monotonic(), within=RECOVERY_SECONDS + 1)
    host.mend()
    host.plug()
    account = far.end()
    assert account.extra_calls <= 2 * HELD
    report(f"network {way}", account, recovery=seconds)


def test_answers_that_never_come(far: Far, host: Host) -> None:
    """Statements arrive, COMMITs among them, and their answers are lost: each is resolved, none is done twice."""
    deaf = far.start_on(host)
    far.wait_until_calling(deaf, 1)
    ledger.wait_until(lambda: far.outcomes("processed") > 100, 30, "it commits")
    for _ in range(3):
        host.deaf()
        time.sleep(READ_TIMEOUT + 1)
        host.mend()
        time.sleep(2)
    account = far.end()
    assert '"commit_in_doubt":true' in deaf.background.text()
    report("answers that never come", account, in_doubt=deaf.background.text().count('"commit_in_doubt":true'))


def test_lossy(far: Far, host: Host) -> None:
    away = far.start_on(host)
    far.wait_until_calling(away, 1)
    host.lossy(10)
    account = far.end(120)
    report("a tenth of all packets lost", account)


@pytest.mark.parametrize("far", [0.15], indirect=True)
def test_delayed(far: Far, host: Host) -> None:
    """300 ms to the database and back: slower, and right."""
    with Relay(("127.0.0.1", far.arena.port), host=host.gateway, delay=0.15) as relay:
        url = far.arena.url_of("ai_worker").replace(f"127.0.0.1:{far.arena.port}", f"{host.gateway}:{relay.port}")
        far.fleet.start(url=url, prefix=host.prefix)
        account = far.end(120)
    assert account.extra_calls == 0
    report("300 ms to the database and the provider", account)


HOLDS = """
import sys, time
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database

def hold(tx):
    tx.raw("SELECT * FROM task WHERE id_task = " + sys.argv[2] + " FOR UPDATE")
    print("holds", flush=True)
    time.sleep(600)

Database(parse_database_url(sys.argv[1])).transaction(hold)
"""


def test_a_host_without_power_in_mid_transaction(far: Far, host: Host) -> None:
    """It holds the locks of its transaction, of the task's row at the worst, until the server ends its silent session."""
    url = far.arena.url_of("ai_worker").replace("127.0.0.1", host.gateway)
    command = [*host.prefix, sys.executable, "-c", HOLDS, url, str(far.id_task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(None)) as lost:
        assert lost.stdout is not None
        assert lost.stdout.readline() == "holds\n"
        host.cut()
        lost.kill()
    began = time.monotonic()
    far.fleet.start()
    ledger.wait_until(lambda: far.outcomes("processed") > 0, SILENCE + 30, "others commit to the task", step=0.2)
    seconds = time.monotonic() - began
    assert seconds > SILENCE / 2, "nobody was held up: the fault did not strike"
    account = far.end(120)
    report("no power in mid-transaction", account, held_up=seconds)
