"""Workers that start at once: forked from a process that has imported all that a worker imports, and then has done nothing.

Half of a second's processor time goes into a worker's imports. Where hundreds are killed and replaced within minutes, a machine
would do little else, and most of the killed would not yet have begun to work. What is forked here sets itself up from the
command line and the environment as any worker does.

`python -m tests.chaos.nursery` reads one JSON object a line, {"arguments", "environment", "folder", "output"}, answers each with
the {"pid"} of a child, and tells of each child's end as {"pid", "status"}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

IMPORTED = ("ai_worker.cli.work", "ai_worker.worker.assembly", "ai_worker.providers.openai", "ai_worker.providers.echo")


@dataclass
class Child:
    """What is used of `subprocess.Popen`, for a child of the nursery's."""

    pid: int
    args: Sequence[str]
    returncode: int | None = None
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def end(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


class Nursery:
    """Starts `ai-worker` without its imports; a context manager. Callable from any thread."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children: dict[int, Child] = {}
        self._born = threading.Semaphore(0)
        self._newest = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="nursery", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._thread.join()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, output: Path) -> Child:
        """`ai-worker ARGUMENTS` in a session of its own, what it says at the end of the file `output`."""
        assert self._process.stdin is not None
        wanted = {"arguments": [*arguments], "environment": {**environment}, "folder": str(folder), "output": str(output)}
        with self._lock:
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
            assert self._born.acquire(timeout=60), "no worker was born within a minute"
            return self._children[self._newest]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "status" in told:
                self._children[told["pid"]].end(told["status"])
            else:
                self._newest = told["pid"]
                self._children[self._newest] = Child(self._newest, ("ai-worker",))
                self._born.release()


def serve() -> None:
    """The nursery's own process, until its input ends."""
    for module in IMPORTED:
        importlib.import_module(module)
    import openai

    client = openai.AsyncOpenAI(api_key="none")
    _ = (client.chat.completions, client.responses)  # they import themselves when they are first asked for
    gc.freeze()  # what is collected never is not copied either
    alive: set[int] = set()
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02 if alive else None)
        if readable:
            data = os.read(0, 65536)
            if not data:
                for pid in alive:  # whoever asked for them is gone: nobody else would end them
                    os.killpg(pid, signal.SIGKILL)
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                alive.add(pid := _fork(json.loads(line)))
                _tell({"pid": pid})
        for pid in [*alive]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.remove(pid)
                _tell({"pid": pid, "status": status})


def _tell(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _fork(wanted: dict[str, Any]) -> int:
    """The child's number; the child itself never comes back from here."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        os.chdir(wanted["folder"])
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(wanted["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["ai-worker", *wanted["arguments"]]
        from ai_worker.__main__ import main

        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 -- as the interpreter itself would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
