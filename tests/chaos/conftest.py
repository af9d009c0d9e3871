"""Fixtures of the fault tests.

What is marked `chaos` takes minutes and is left alone unless `-m chaos` asks for it (`make chaos`); the rest of this folder is
the short form, which CI runs.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.acceptance.fleet import Fake, fake_provider
from tests.chaos import figures
from tests.chaos.arena import Arena, arena_on, kinds
from tests.chaos.fleet import Fleet

SEED = "AI_WORKER_TEST_SEED"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "chaos" in config.option.markexpr:
        return
    asked = [item for item in items if item.get_closest_marker("chaos") is None]
    if len(asked) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("chaos")])
        items[:] = asked


@pytest.fixture(scope="session", autouse=True)
def _in_good_order() -> Iterator[None]:
    """A run that `timeout` or a CI server ends by SIGTERM takes its servers, workers and namespaces with it."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the way out must not be broken off
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What all chance in this test comes from: AI_WORKER_TEST_SEED, else a new one. Shown where the test fails."""
    seed = int(os.environ.get(SEED) or secrets.randbelow(2**32))
    print(f"{request.node.name}: {SEED}={seed}")  # noqa: T201 -- pytest shows it with a failure
    return seed


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 -- chance that can be repeated is the point


@pytest.fixture(params=kinds())
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """A private server that a test may kill, with a migrated database and its users: MariaDB, and MySQL where there is one."""
    with arena_on(request.param) as arena:
        yield arena


@pytest.fixture
def fleet(arena: Arena, tmp_path: Path) -> Iterator[Fleet]:
    """Workers as processes of their own, with the rights of sql/grants.sql; whatever still runs at the end is killed."""
    with Fleet(arena.worker_url, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def provider() -> Iterator[Fake]:
    """A fake provider that takes 50 ms for an answer."""
    with fake_provider(50) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of all runs once more, where they can be read together."""
    for block in figures.blocks:
        terminalreporter.write_line("")
        terminalreporter.write_line(block)
