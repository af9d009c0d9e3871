"""Workers that are killed, frozen, starved, blocked, or lied to about the time: each alone, and all of them at once.

All of it takes minutes. What CI holds of it is in tests/unit/test_threads.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.fleet import Fake, fake_provider
from tests.chaos import ledger
from tests.chaos.arena import Arena, arena_on, kinds
from tests.chaos.fleet import LEASE_SECONDS, Fleet
from tests.chaos.scene import RECOVERY_SECONDS, Scene, faked_time, inside, report

HELD = 50


@pytest.fixture(scope="module", params=kinds())
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """One server for all: nothing here strikes the server."""
    with arena_on(request.param) as arena:
        yield arena


@pytest.fixture
def fleet(arena: Arena, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(arena.worker_url, tmp_path, concurrency=HELD) as fleet:
        yield fleet


@pytest.fixture
def provider() -> Iterator[Fake]:
    """It takes its time, so that whoever is struck has calls under way."""
    with fake_provider(600) as running:
        yield running


@pytest.fixture
def scene(arena: Arena, fleet: Fleet, provider: Fake) -> Scene:
    return Scene(arena, fleet, provider, 600)


@pytest.mark.chaos
def test_killed(scene: Scene) -> None:
    victim, _ = scene.fleet.start(), scene.fleet.start()
    scene.wait_until_calling(victim, HELD // 2)
    victim.kill()
    assert victim.killed_at is not None
    held = scene.held_by(victim)
    seconds = scene.wait_until_free(victim, victim.killed_at)
    account = scene.end()
    assert account.lost_attempts == held
    assert account.extra_calls <= HELD
    report("SIGKILL", account, held=held, recovery=seconds)


@pytest.mark.chaos
def test_told_to_stop(scene: Scene) -> None:
    leaving, _ = scene.fleet.start(), scene.fleet.start()
    scene.wait_until_calling(leaving, HELD // 2)
    began = time.monotonic()
    assert leaving.drain() == 0
    seconds = time.monotonic() - began
    assert scene.held_by(leaving) == 0
    account = scene.end()
    assert (account.lost_attempts, account.extra_calls) == (0, 0)
    assert seconds < 5, "calls of 0.6 s were under way"
    report("SIGTERM", account, stopped_in=seconds)


@pytest.mark.chaos
def test_frozen_past_its_lease_while_others_go_on(scene: Scene) -> None:
    """Its answers come too late: they are recorded with what they cost, and change nothing."""
    frozen, _ = scene.fleet.start(), scene.fleet.start()
    scene.wait_until_calling(frozen, HELD // 2)
    frozen.freeze()
    held = scene.held_by(frozen)
    seconds = scene.wait_until_free(frozen, time.monotonic())
    ledger.wait_until(lambda: ledger.open_items(scene.arena.sql, scene.id_task) == 0, 60, "the other has done all")
    frozen.thaw()
    frozen.background.wait_for("CLAIM_LOST")
    account = scene.end()
    assert account.lost_attempts == account.extra_calls == held
    assert account.unaccounted_calls == 0
    report("SIGSTOP past the lease, then too late", account, held=held, recovery=seconds)


@pytest.mark.chaos
def test_frozen_past_its_lease_and_back_before_others_took_over(scene: Scene) -> None:
    """Nobody has claimed its items since: what was paid for is taken, and no call is made twice."""
    frozen = scene.fleet.start()
    scene.wait_until_calling(frozen, HELD // 2)
    frozen.freeze()
    rescuer = scene.fleet.start("--type", "translation")  # wants none of the items, but tidies up for all
    seconds = scene.wait_until_free(frozen, time.monotonic(), within=2 * RECOVERY_SECONDS)  # a rescuer waits a lease at first
    frozen.thaw()
    account = scene.end()
    assert rescuer.background.text().count("RESCUE")
    assert (account.extra_calls, account.unaccounted_calls) == (0, 0)
    assert "LEASE_LOST" in frozen.background.text()
    report("SIGSTOP past the lease, back in time", account, recovery=seconds)


@pytest.mark.chaos
def test_out_of_memory(scene: Scene) -> None:
    """It ends, as one that cannot go on, instead of failing one item after the other; and its items are done by others."""
    starved, _ = scene.fleet.start(env=inside(scene.fleet.folder)), scene.fleet.start()
    scene.wait_until_calling(starved, HELD // 2)
    scene.strike(starved, "exhaust 4")
    ledger.wait_until(lambda: not starved.is_running, 60, "the starved worker has ended")
    seconds = scene.wait_until_free(starved, time.monotonic())
    account = scene.end()
    report("out of memory", account, recovery=seconds, attempts=account.attempts)


@pytest.mark.chaos
def test_no_room_for_logs(scene: Scene) -> None:
    """All output goes to a full disk: the work is done, and the end is as it should be."""
    worker = scene.fleet.start(prefix=["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"], env={"PYTHONUNBUFFERED": None})
    account = scene.end()
    assert worker.background.process.returncode == 0
    assert (account.attempts, account.extra_calls) == (600, 0)
    report("no room for logs", account)


CLOCKS = {"five hours ahead": "+5h", "a day behind": "-1d", "a tenth faster": "+0 x1.1"}


@pytest.mark.chaos
@pytest.mark.skipif(faked_time() is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("clock", CLOCKS)
def test_clock_set_wrong(scene: Scene, clock: str) -> None:
    """Nobody takes another one's items early, or late: the only clock is the database's."""
    liar, honest = scene.fleet.start(env=faked_time(CLOCKS[clock])), scene.fleet.start()
    scene.wait_until_calling(liar, HELD // 2)
    honest.kill()
    assert honest.killed_at is not None
    # Freed by the one whose clock is wrong, and no sooner. Everything that asks libfaketime for the time is slower.
    seconds = scene.wait_until_free(honest, honest.killed_at, within=RECOVERY_SECONDS + 1)
    assert seconds > LEASE_SECONDS * 0.8
    account = scene.end()
    assert account.extra_calls <= HELD
    assert "LEASE_LOST" not in liar.background.text()
    report(f"clock {clock}", account, recovery=seconds)


@pytest.mark.chaos
def test_event_loop_blocked(scene: Scene) -> None:
    """A loop that does not turn loses its lease, though its threads live; and goes on when it turns again."""
    blocked, _ = scene.fleet.start(env=inside(scene.fleet.folder)), scene.fleet.start()
    scene.wait_until_calling(blocked, HELD // 2)
    began = time.monotonic()
    scene.strike(blocked, "block 12")
    seconds = scene.wait_until_free(blocked, began, within=RECOVERY_SECONDS + LEASE_SECONDS / 3)  # until it counts as stuck
    account = scene.end()
    text = blocked.background.text()
    assert "the loop is stuck" in text
    assert "LEASE_LOST" in text
    assert account.extra_calls <= HELD
    report("event loop blocked", account, recovery=seconds)


@pytest.mark.chaos
@pytest.mark.parametrize("thread", ["claim", "commit", "heartbeat", "upkeep", "listen"])
def test_a_thread_dies(scene: Scene, thread: str) -> None:
    """The worker ends, for its service manager to start it anew: one that stayed would keep its items, and do nothing."""
    struck = scene.fleet.start(env=inside(scene.fleet.folder))
    if thread == "listen":
        ledger.wait_until(lambda: ledger.open_items(scene.arena.sql, scene.id_task) == 0, 30, "nothing is left to do")
    else:
        scene.wait_until_calling(struck, HELD // 2)
    scene.strike(struck, f"end {thread}")
    began = time.monotonic()
    ledger.wait_until(lambda: not struck.is_running, 20, f"the worker without its thread {thread} has ended")
    ended = time.monotonic() - began
    assert struck.background.process.returncode == 1
    assert '"event":"BROKEN"' in struck.background.text()
    assert thread in struck.background.text().splitlines()[-1]
    if thread != "listen":
        scene.fleet.start()
    seconds = scene.wait_until_free(struck, began + ended)
    account = scene.end()
    assert account.extra_calls <= 2 * HELD  # calls under way, and results in hand that nothing could store
    report(f"thread {thread} died", account, ended=ended, recovery=seconds)


@pytest.mark.chaos
def test_all_at_once(arena: Arena, fleet: Fleet, provider: Fake) -> None:
    """A worker each is killed, frozen, blocked, out of memory, lacks a thread, has a wrong clock, and no log."""
    scene = Scene(arena, fleet, provider, 1200)
    within = inside(fleet.folder)
    killed, frozen = fleet.start(), fleet.start()
    blocked, starved, broken = (fleet.start(env=within) for _ in range(3))
    fleet.start(prefix=["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"], env={"PYTHONUNBUFFERED": None})
    fleet.start(env=faked_time("+5h"))
    struck = (killed, frozen, blocked, starved, broken)
    for each in struck:
        ledger.wait_until(lambda each=each: scene.held_by(each) > 0, 30, f"{each.name} works")  # type: ignore[misc]
    killed.kill()
    frozen.freeze()
    for process, order in ((blocked, "block 9"), (starved, "exhaust 1"), (broken, "end commit")):
        scene.strike(process, order)
    ledger.wait_until(lambda: not starved.is_running and not broken.is_running, 30, "those that cannot go on have ended")
    seconds = scene.wait_until_free(killed, killed.killed_at or 0.0, within=2 * RECOVERY_SECONDS)  # seven processes start at once
    for each in (starved, broken):
        scene.wait_until_free(each, time.monotonic())
    frozen.thaw()
    account = scene.end()
    assert account.extra_calls <= 7 * HELD
    report("all at once", account, recovery=seconds, rescued=account.lost_attempts)
