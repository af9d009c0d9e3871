"""Settings read anew: what of them is in force, and that wrong ones change nothing."""

from __future__ import annotations

import pytest

from ai_worker import log
from ai_worker.cli.reload import Reload
from ai_worker.config import load_settings
from ai_worker.errors import ConfigurationError

URL = "mysql://me@127.0.0.1/db"


@pytest.fixture(autouse=True)
def levels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log was set up with."""
    found: list[str] = []
    monkeypatch.setattr(log, "configure", lambda level, *_: found.append(level))
    monkeypatch.setenv("AI_WORKER_DB_URL", URL)
    return found


def test_of_wrong_settings_nothing_is_in_force(monkeypatch: pytest.MonkeyPatch, levels: list[str]) -> None:
    reload = Reload(load_settings(), None)
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "debug")
    monkeypatch.setenv("AI_WORKER_DB_URL", "nonsense")
    with pytest.raises(ConfigurationError):
        reload()
    assert levels == []
    monkeypatch.setenv("AI_WORKER_DB_URL", URL)
    assert reload().changed == ["AI_WORKER_LOG_LEVEL"]
    assert levels == ["debug"]


def test_the_command_line_outranks_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    reload = Reload(load_settings(), 7)
    monkeypatch.setenv("AI_WORKER_CONCURRENCY", "3")
    assert (reload().concurrency, reload().changed, reload().at_restart) == (7, [], [])
    reload = Reload(load_settings(), None)  # three slots
    monkeypatch.setenv("AI_WORKER_CONCURRENCY", "9")
    more = reload()  # named once: it waits for the restart
    assert (more.concurrency, more.changed, more.at_restart) == (3, [], ["AI_WORKER_CONCURRENCY"])
    monkeypatch.setenv("AI_WORKER_CONCURRENCY", "2")
    fewer = reload()
    assert (fewer.concurrency, fewer.changed, fewer.at_restart) == (2, ["AI_WORKER_CONCURRENCY"], [])
