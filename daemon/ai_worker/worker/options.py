"""How one worker works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Reloaded(NamedTuple):
    """Settings as they were read anew. `changed` names those that are in force from now on, `at_restart` those that were changed
    too, and are in force with the next start. `concurrency` is at most what the worker began with."""

    drain_seconds: float
    concurrency: int
    changed: list[str]
    at_restart: list[str]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How one worker works. Times in seconds.

    `forever` is the daemon's mode; else the worker ends when nothing is left, or after `max_items` items. With a `metrics_port`
    it tells Prometheus of itself. `names_file`: names that are personal data, for tasks that mask or block it.
    """

    forever: bool
    concurrency: int = 50
    max_items: int | None = None
    lease_seconds: float = 30.0
    drain_seconds: float = 30.0
    request_timeout: float = 120.0
    name: str | None = None
    prompt_folder: Path | None = None
    names_file: Path | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    @property
    def mode(self) -> str:
        """As it stands in the worker's row and in the log."""
        return "daemon" if self.forever else "run"
