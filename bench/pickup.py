"""How soon an idle worker picks up a new item, and what it costs that it waits.

`pickup`: single items are inserted by plain SQL at random 50 to 150 ms, each with a `task` of its own (`new task`) or into one
that has ended (`ended task`). The time runs from the moment when the application has the answer to its COMMIT to that when the
provider has the request: a server on this machine that speaks the chat format and looks at the same clock. Beside it, in the same
run, a bare loop that asks for new items every 5 ms and posts them with the bare SDK. --idle lets the worker wait before.

`waiting`: a fleet of daemons with nothing to do. CPU of the one that listens and of all the others together, queries per second
and CPU of the server; shares are of one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import random
import re
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from bench.drain import daemons, wait_for
from bench.report import Report, WrongResultError, median
from bench.servers import Server

TEXT = "Zażółć gęślą jaźń: this is a text without mistakes, and its number is {}. 🙂"
NUMBER = re.compile(rb"its number is (\d+)")
MOST = 20_000  # items in one run
GAP = (0.05, 0.15)  # seconds between two items
WARM_UP = 20
BARE_POLL = 0.005
TICK = os.sysconf("SC_CLK_TCK") if sys.platform == "linux" else 100


class Endpoint:
    """A provider of the chat format in a process of its own; `arrived[n]` is when the request for item n came, 0 before.

    It answers after `delay` seconds. The clock is CLOCK_MONOTONIC, which all processes of a machine share on Linux.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        context = multiprocessing.get_context("fork")
        self.arrived: Any = context.Array(ctypes.c_double, MOST, lock=False)
        self.times: Any = context.Array(ctypes.c_int, MOST, lock=False)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._process = context.Process(target=self._serve, daemon=True)

    def __enter__(self) -> Endpoint:
        self._process.start()
        self._socket.close()  # the child has it
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def _serve(self) -> None:
        async def serve() -> None:
            server = await asyncio.get_running_loop().create_server(lambda: _Chat(self), sock=self._socket)
            await server.serve_forever()

        asyncio.run(serve())


class _Chat(asyncio.Protocol):
    """Answers each request with its text. Only as much of HTTP as the SDK speaks: a length, then as many bytes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._buffer = b""
        found = NUMBER.search(body)
        number = int(found.group(1)) if found else 0
        self._endpoint.arrived[number] = now
        self._endpoint.times[number] += 1
        content = json.dumps({"corrected_text": TEXT.format(number), "change_summary": ""})
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "fake", "choices": [message], "usage": usage}
        text = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
        asyncio.get_running_loop().call_later(self._endpoint.delay, self._transport.write, head + text)


class Application:
    """Inserts single items as a chat application does, and knows when each of them was there to see."""

    def __init__(self, server: Server, endpoint: Endpoint) -> None:
        self._connection = server.connect()
        self.cursor = self._connection.cursor()
        self._endpoint = endpoint
        self._number = 0
        self.cursor.execute("DELETE FROM task_item")
        self.cursor.execute("DELETE FROM task")
        self.cursor.execute("DELETE FROM ai_model")
        self.cursor.execute(
            "INSERT INTO ai_model (name, provider, model, base_url) VALUES ('fake', 'openai', 'fake', %s)", [endpoint.url]
        )
        self._id_ai_model = self.cursor.lastrowid
        self._id_task = 0

    def close(self) -> None:
        self._connection.close()

    def insert(self, *, into_new: bool) -> float:
        """One item; the milliseconds until the provider was asked for it."""
        self._number += 1
        number = self._number
        self._connection.begin()
        if into_new or not self._id_task:
            self.cursor.execute("INSERT INTO task (id_ai_model, description) VALUES (%s, '')", [self._id_ai_model])
            self._id_task = self.cursor.lastrowid
        row = [self._id_task, TEXT.format(number)]
        self.cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", row)
        self._connection.commit()
        began = time.monotonic()
        deadline = began + random.uniform(*GAP)  # noqa: S311 -- no secret
        wait_for(lambda: self._endpoint.arrived[number] > 0, f"item {number}", pause=0.01)
        time.sleep(max(0.0, deadline - time.monotonic()))
        return float(self._endpoint.arrived[number] - began) * 1000

    def check(self, *, with_tasks: bool) -> None:
        """Every item was asked for once, and each is done, if there was somebody to write it down."""
        if any(self._endpoint.times[number] != 1 for number in range(1, self._number + 1)):
            raise WrongResultError("some items were asked for more than once")
        if with_tasks:
            wait_for(lambda: not self._has_open(), "the last result")
            self.cursor.execute("SELECT COUNT(*), SUM(status_id = 1 AND text_corrected = text_original) FROM task_item")
            ((items, right),) = self.cursor.fetchall()
            if items != self._number or right != items:
                raise WrongResultError(f"{right} right of {items}")

    def _has_open(self) -> bool:
        return bool(self.cursor.execute("SELECT 1 FROM task WHERE status_id NOT IN (2, 5) LIMIT 1"))


def pickup(server: Server, items: int, idle: float, fleet: int) -> dict[str, list[float]]:
    """Milliseconds per item, by kind."""
    with Endpoint() as endpoint, contextlib.closing(Application(server, endpoint)) as application, daemons(server, fleet):
        for _ in range(min(WARM_UP, items)):
            application.insert(into_new=True)
        time.sleep(idle)
        new = [application.insert(into_new=True) for _ in range(items)]
        ended = [application.insert(into_new=False) for _ in range(items)]
        application.check(with_tasks=True)
    return {"new task": new, "ended task": ended}


def bare(server: Server, items: int) -> list[float]:
    """The same of a loop with nothing but SQL and the SDK."""
    with Endpoint() as endpoint, contextlib.closing(Application(server, endpoint)) as application:
        context = multiprocessing.get_context("fork")
        stop = context.Event()
        loop = context.Process(target=_bare_loop, args=(server, endpoint.url, stop))
        loop.start()
        for _ in range(min(WARM_UP, items)):
            application.insert(into_new=True)
        times = [application.insert(into_new=True) for _ in range(items)]
        stop.set()
        loop.join(30)
        application.check(with_tasks=False)
    return times


def _bare_loop(server: Server, url: str, stop: Event) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    with server.connect() as connection, connection.cursor() as cursor:
        newest = 0
        while not stop.is_set():
            cursor.execute("SELECT id_task_item, text_original FROM task_item WHERE id_task_item > %s", [newest])
            for id_task_item, text in cursor.fetchall():
                newest = id_task_item
                client.chat.completions.create(model="fake", messages=[{"role": "user", "content": text}])
            time.sleep(BARE_POLL)


# ----- the cost of waiting


def waiting(server: Server, fleet: int, seconds: float) -> dict[str, float]:
    """Shares of a core in percent, and queries per second, of so many idle daemons."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM task_item")
        cursor.execute("DELETE FROM task")
        pid = _server_pid(cursor)
        with daemons(server, fleet) as workers:
            pids = [worker.pid for worker in workers]
            _until_quiet(pids)
            before, began = _sample(cursor, pids, pid), time.monotonic()
            time.sleep(seconds)
            after, took = _sample(cursor, pids, pid), time.monotonic() - began
    shares = [100 * (two - one) / TICK / took for one, two in zip(before, after, strict=True)]
    queries, of_server, of_workers = shares[0] * TICK / 100, shares[1], sorted(shares[2:])
    return {
        "listener_cpu": of_workers[-1],
        "others_cpu": sum(of_workers[:-1]),
        "queries_per_s": queries,
        "server_cpu": of_server if pid else math.nan,
    }


def _sample(cursor: Any, pids: Sequence[int], server_pid: int | None) -> list[int]:
    """Queries so far without ours, ticks of CPU of the server and of each worker."""
    global _asked  # noqa: PLW0603 -- how many of the server's queries were this function's own
    _asked += 1
    cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
    ((_, questions),) = cursor.fetchall()
    return [int(questions) - _asked, _ticks(server_pid) if server_pid else 0, *map(_ticks, pids)]


_asked = 0


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _until_quiet(pids: Sequence[int]) -> None:
    """Waits until a second costs all workers together less than a tenth of it; not for ever."""
    for _ in range(60):
        before = sum(map(_ticks, pids))
        time.sleep(1)
        if sum(map(_ticks, pids)) - before < TICK / 10:
            return


def _server_pid(cursor: Any) -> int | None:
    """The server's process, when it is on this machine."""
    cursor.execute("SELECT @@pid_file, @@datadir")
    ((name, folder),) = cursor.fetchall()
    file = Path(folder) / name
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text())
        if Path(f"/proc/{pid}/stat").exists():
            return pid
    return None


def quantile(times: Sequence[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def main() -> None:
    report = Report("pickup", __doc__)
    add = report.parser.add_argument
    add("--part", choices=("pickup", "waiting"), action="append", help="(default: both)")
    add("--items", type=int, default=200, help="of each kind (default: 200)")
    add("--idle", type=float, default=0.0, metavar="SECONDS", help="to wait between the warm-up and the first item")
    add("--workers", type=int, default=1, metavar="N", help="idle daemons that listen for the items (default: 1)")
    add("--fleet", type=int, action="append", metavar="N", help="may be repeated (default: 1, 10, 100)")
    add("--seconds", type=float, default=10.0, help="to watch each idle fleet for (default: 10)")
    options = report.options()
    given = options.given
    parts = given.part or ("pickup", "waiting")
    items, seconds, workers, fleets = given.items, given.seconds, given.workers, given.fleet or [1, 10, 100]
    if options.smoke:
        items, seconds, workers, fleets = 4, 0.5, 2, []
    for server in report.servers(options):
        if "pickup" in parts:
            figures: dict[str, list[list[float]]] = {}
            for _ in range(options.rounds):
                for kind, times in {"bare loop": bare(server, items), **pickup(server, items, given.idle, workers)}.items():
                    figures.setdefault(kind, []).append(times)
            for kind, rounds in figures.items():
                quantiles = {f"p{share}_ms": median([quantile(times, share / 100) for times in rounds]) for share in (50, 99)}
                report.add(
                    server=server.name, kind=kind, workers=workers, **quantiles, max_ms=max(max(times) for times in rounds)
                )
        for fleet in fleets if "waiting" in parts else ():
            shares = [waiting(server, fleet, seconds) for _ in range(options.rounds)]
            report.add(
                server=server.name,
                fleet=fleet,
                **{name: median([each[name] for each in shares]) for name in shares[0]},
            )
    report.write(options)


if __name__ == "__main__":
    main()
