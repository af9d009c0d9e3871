"""Runs for POST /task/run: each an `ai-worker run` in a process and session of its own, that outlives this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from ai_worker.config import ENV_FILE_VARIABLE, PREFIX
from ai_worker.errors import DatabaseError
from ai_worker.log import Event, Log
from ai_worker.store.run_requests import RunRequest, RunRequests
from ai_worker.web.problems import Refused

if TYPE_CHECKING:
    from ai_worker.store.tokens import Principal
    from ai_worker.web.options import WebOptions

log = Log()

_OURS_ALONE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class Busy(Refused):
    """As many runs as may be are going on."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class Runs:
    """Those that this process has started. What they were asked for, and how they end, stands in the database."""

    def __init__(self, requests: RunRequests, options: WebOptions) -> None:
        self._requests = requests
        self._options = options
        self._lock = threading.Lock()
        self._going = 0

    def start(self, who: Principal, task: int | None, task_item: int | None, max_item: int | None) -> RunRequest:
        """Starts a run, which goes on when this process ends. Raises Busy for one too many.

        Nothing fails once the process is there: an error would say that there is no run, and who sends again would have two.
        """
        with self._lock:
            if self._going >= self._options.runs:
                raise Busy(
                    f"{self._going} runs are going on here (AI_WORKER_WEB_RUNS); a daemon takes what waits, too",
                    {"Retry-After": "10"},
                )
            self._going += 1
        try:
            number = self._requests.add(who.id_api_token, socket.gethostname(), task, task_item, max_item)
            made = self._requests.get(number)
            process = self._process(number)
        except BaseException:
            self._gone()
            raise
        log(Event.RUN_STARTED, run=number, pid=process.pid)
        threading.Thread(target=self._wait, args=(number, process), name=f"run {number}", daemon=True).start()
        self._note(number, process.pid)
        return replace(made, pid=process.pid)

    def _note(self, number: int, pid: int) -> None:
        try:
            self._requests.note_process(number, pid)
        except DatabaseError as error:
            log(Event.DATABASE_AWAY, reason=str(error), commit_in_doubt=False)

    def _process(self, number: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(  # noqa: S603 -- ourselves, with a number
                [sys.executable, "-m", "ai_worker", "run", "--request", str(number), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # its log goes to where ours goes
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                env=environment(self._options, os.environ),
            )
        except OSError as error:
            self._requests.end(number, None, message=f"could not be started: {error.strerror}")
            raise Busy(f"the run could not be started: {error.strerror}", {"Retry-After": "10"}) from None

    def _wait(self, number: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._gone()
        log(Event.RUN_ENDED, run=number, pid=process.pid, exit_code=code)
        # It has said so itself, unless it was killed, or could not reach the database.
        message = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}, and could not say why: see the log"
        try:
            self._requests.end(number, code if code >= 0 else None, message=message)
        except DatabaseError as error:
            log(Event.DATABASE_AWAY, reason=str(error), commit_in_doubt=False)

    def _gone(self) -> None:
        with self._lock:
            self._going -= 1


def environment(options: WebOptions, own: Mapping[str, str]) -> dict[str, str]:
    """A run's environment: this process's own settings, or those of `run_env_file` alone."""
    kept = {name: value for name, value in own.items() if name not in _OURS_ALONE}
    if options.run_env_file is None:
        return kept
    kept = {name: value for name, value in kept.items() if not name.startswith(PREFIX) and name != "CREDENTIALS_DIRECTORY"}
    return {**kept, ENV_FILE_VARIABLE: str(options.run_env_file)}
