"""Settings that a daemon takes on while it works: what SIGHUP (`systemctl reload`) does."""

from __future__ import annotations

from typing import Final

from ai_worker import log
from ai_worker.config import Settings, load_settings, variable
from ai_worker.worker import Reloaded

# In force at once. All others are built into connections, threads and shares when the worker starts.
LIVE: Final = frozenset({"log_level", "log_format", "log_sample", "drain_seconds", "concurrency"})


class Reload:
    """Reads the settings anew, each time that it is called.

    Parameters
    ----------
    settings: those that the worker began with.
    concurrency: what the worker began with, where the command line said so: it outranks the settings then, too.
    """

    def __init__(self, settings: Settings, concurrency: int | None) -> None:
        self._first = self._now = settings
        self._concurrency = concurrency

    def __call__(self) -> Reloaded:
        """Raises ConfigurationError for wrong settings, with everything left as it was."""
        new = load_settings()
        new.database_url()
        log.configure(new.log_level, new.log_format, new.log_sample)  # last: nothing of settings that are wrong is in force
        waiting = {name for name in Settings.model_fields.keys() - LIVE if getattr(new, name) != getattr(self._first, name)}
        changed = {name for name in LIVE if getattr(new, name) != getattr(self._now, name)} - {"concurrency"}
        concurrency = self._concurrency or min(new.concurrency, self._first.concurrency)
        if self._concurrency is None:
            if new.concurrency > concurrency:
                waiting.add("concurrency")  # also where a part of it is in force at once: a setting is in one list only
            elif concurrency != min(self._now.concurrency, self._first.concurrency):
                changed.add("concurrency")
        self._now = new
        return Reloaded(new.drain_seconds, concurrency, _variables(changed), _variables(waiting))


def _variables(names: set[str]) -> list[str]:
    return [variable(name) for name in sorted(names)]
