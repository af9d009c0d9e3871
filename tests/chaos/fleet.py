"""Workers as processes of their own that are killed, frozen and started again; what they were working on when they died."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos.nursery import Nursery
from tests.servers import Background, environment

LEASE_SECONDS = 5.0  # the shortest there is; a lost worker's items are back after it and a rescue's turn
_MASTER_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


@dataclass
class Process:
    """One worker. `name` is what `worker.host` says of it, in as many rows as it has had leases."""

    name: str
    background: Background
    killed_at: float | None = None  # time.monotonic()

    @property
    def pid(self) -> int:
        return self.background.process.pid

    @property
    def is_running(self) -> bool:
        return self.background.process.poll() is None

    def signal(self, number: int) -> None:
        """To its whole process group: a wrapper (`ip netns exec`, `faketime`) goes with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and the end of it."""
        self.signal(signal.SIGKILL)
        self.killed_at = time.monotonic()
        self.background.process.wait()

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def drain(self, timeout: float = 60) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.background.wait(timeout)


@dataclass
class Fleet:
    """Starts workers on one database; a context manager that kills whatever still runs at its end.

    concurrency: of each worker, unless `start` is given another; env: further settings of all workers; nursery: where workers
    without a prefix come from, if they are to start at once.
    """

    url: str
    folder: Path
    concurrency: int = 100
    env: Mapping[str, str] = field(default_factory=dict)
    nursery: Nursery | None = None
    processes: list[Process] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def start(
        self,
        *options: str,
        command: str = "daemon",
        url: str | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        name: str | None = None,
    ) -> Process:
        """One worker more: `ai-worker daemon OPTIONS`, its output in a file of its own.

        prefix: what the command runs under, like ["ip", "netns", "exec", "host1"].
        """
        name = name or f"w{next(self._numbers)}"
        output = self.folder / f"{name}.log"
        settings = {
            "AI_WORKER_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
            "AI_WORKER_CONCURRENCY": str(self.concurrency),
            "AI_WORKER_WORKER_NAME": name,
            "AI_WORKER_MASTER_KEY": _MASTER_KEY,
            "AI_WORKER_LOG_FORMAT": "json",
            **self.env,
            **(env or {}),
        }
        values = environment(url or self.url, settings)
        if self.nursery is not None and not prefix:
            process: Any = self.nursery.start([command, *options], values, self.folder, output)
        else:
            with output.open("ab") as file:
                process = subprocess.Popen(
                    [*prefix, sys.executable, "-m", "ai_worker", command, *options],
                    env=values,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
        started = Process(name, Background(process, output))
        self.processes.append(started)
        return started

    @property
    def running(self) -> list[Process]:
        return [process for process in self.processes if process.is_running]

    def drain(self, timeout: float = 60) -> list[int]:
        """SIGTERM to all that run, also to frozen ones; their exit codes."""
        running = self.running
        for process in running:
            process.thaw()
            process.signal(signal.SIGTERM)
        return [process.background.wait(timeout) for process in running]

    def tracebacks(self) -> list[str]:
        """The workers whose output holds a traceback, with its last lines."""
        found = []
        for process in self.processes:
            text = process.background.text()
            if "Traceback (most recent call last)" in text:
                found.append(f"{process.name}: …{text[text.index('Traceback (most recent call last)') :][:3000]}")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for process in self.running:
            process.kill()
