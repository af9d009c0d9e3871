"""A CSV file into the table: `ai-worker submit FILE.csv`, a process as people start it, from its start to its exit.

The file has two columns, a key and a short text in Polish. Measured are rows per second, the client's CPU time per row, and the
most memory that the process had (its maximum resident set size).

Beside it, in the same run and on the same server, the *floor*: a bare PyMySQL loop that reads the file with `csv.reader` and
sends it with `executemany`, 1,000 rows per statement, in one transaction. It checks nothing, makes no task, and has its modules
loaded.
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.report import Report, WrongResultError, median
from bench.servers import Server

ROWS = 1_000_000
SMOKE = 3000
GROUP = 1000  # of the floor

WORDS = (
    "zażółć gęślą jaźń proszę o sprawdzenie tego zdania które napisałem wczoraj wieczorem i w którym są błendy ortograficzne "
    "bo się śpieszyłem a rzeka wzięła żółte łódki z przystani gdzie stało pudełko z książkami na półce obok okna"
)


@dataclass(frozen=True, slots=True)
class Rows:
    """A file, how many rows it has, and what the table must hold after it: sums of CRC-32 of keys and of texts."""

    path: Path
    count: int
    keys: int
    texts: int


@dataclass(frozen=True, slots=True)
class Submission:
    """What one `submit` took: rows per second, CPU seconds, megabytes."""

    rate: float
    cpu: float
    memory: float


def write(path: Path, count: int) -> Rows:
    """Writes a file of so many rows. Every fifth text has a quote, a comma or a line end in it."""
    choose = random.Random(3)  # noqa: S311 -- test data, the same each time
    words = WORDS.split()
    keys = texts = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number in range(count):
            key = f"zd-{number}"
            text = " ".join(choose.choices(words, k=choose.randint(5, 15))).capitalize() + "."
            if number % 5 == 0:
                text += choose.choice([' Powiedziała: "Nie!"', " Tak, i już.", "\nI nowa linia.", " It's \\o/ 🙂"])
            writer.writerow([key, text])
            keys += zlib.crc32(key.encode())
            texts += zlib.crc32(text.encode())
    return Rows(path, count, keys, texts)


def submit(server: Server, rows: Rows) -> Submission:
    """Runs the command; fails unless all rows arrived."""
    with server.connect() as connection, connection.cursor() as cursor:
        _empty(cursor)
        environment = {**os.environ, "AI_WORKER_DB_URL": server.url}
        command = [sys.executable, "-m", "ai_worker", "submit", str(rows.path), "--key-column", "id", "--json"]
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        # The usage of this child alone. This process is smaller than it, so that the maximum is the child's own.
        _, status, usage = os.wait4(process.pid, 0)
        took = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise WrongResultError(f"submit ended with {process.returncode}")
        _check(cursor, rows)
        cursor.execute("SELECT COUNT(*), COUNT(DISTINCT i.id_task) FROM task t JOIN task_item i USING (id_task)")
        if cursor.fetchall() != ((rows.count, 1),):
            raise WrongResultError("not all items belong to the task")
    return Submission(
        rows.count / took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    )


def floor(server: Server, rows: Rows) -> float:
    """Rows per second of the bare loop."""
    with server.connect() as connection, connection.cursor() as cursor:
        _empty(cursor)
        began = time.monotonic()
        connection.begin()
        with rows.path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            next(reader)
            while group := list(islice(reader, GROUP)):
                cursor.executemany(
                    "INSERT INTO task_item (external_key, text_original, id_task) VALUES (%s, %s, %s)",
                    [(*row, 1) for row in group],
                )
        connection.commit()
        took = time.monotonic() - began
        _check(cursor, rows)
    return rows.count / took


def _empty(cursor: Any) -> None:
    cursor.execute("SET foreign_key_checks = 0")  # steps and files refer to items: that forbids a TRUNCATE, even of empty tables
    cursor.execute("TRUNCATE task_item")
    cursor.execute("SET foreign_key_checks = 1")
    cursor.execute("DELETE FROM task")
    cursor.execute("INSERT IGNORE INTO ai_model (name, provider) VALUES ('echo', 'echo')")


def _check(cursor: Any, rows: Rows) -> None:
    cursor.execute("SELECT COUNT(*), SUM(CRC32(external_key)), SUM(CRC32(text_original)) FROM task_item WHERE status_id = 0")
    found = cursor.fetchall()
    if found != ((rows.count, rows.keys, rows.texts),):
        raise WrongResultError(f"the table does not hold the file's {rows.count} rows: {found}")


def main() -> None:
    report = Report("submit", __doc__)
    report.parser.add_argument("--rows", type=int, default=ROWS, help="of the file (default: %(default)s)")
    options = report.options()
    with tempfile.TemporaryDirectory() as folder:
        rows = write(Path(folder) / "rows.csv", SMOKE if options.smoke else options.given.rows)
        for server in report.servers(options):
            bare, taken = [], []
            for _ in range(options.rounds):
                bare.append(floor(server, rows))
                taken.append(submit(server, rows))
            report.add(
                server=server.name,
                rows=rows.count,
                rows_per_s=median([each.rate for each in taken]),
                floor_per_s=median(bare),
                ratio=median([each.rate / other for each, other in zip(taken, bare, strict=True)]),
                cpu_us_per_row=median([each.cpu / rows.count * 1e6 for each in taken]),
                peak_mb=max(each.memory for each in taken),
            )
    report.write(options)


if __name__ == "__main__":
    main()
