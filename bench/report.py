"""What all benchmarks have in common: their options, their table, their JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import servers
from bench.servers import Server

Row = Mapping[str, Any]


class WrongResultError(Exception):
    """What was measured did not do its work, so its speed means nothing."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options that every benchmark takes."""

    rounds: int
    smoke: bool
    given: argparse.Namespace


class Report:
    """Parses the options, runs a benchmark on each server, prints the rows as they come and writes them as JSON at the end.

    Parameters
    ----------
    name: of the benchmark, as in `python -m bench.NAME`.
    text: its module's docstring, shown by --help.
    """

    def __init__(self, name: str, text: str | None) -> None:
        self.name = name
        self.parser = argparse.ArgumentParser(
            prog=f"python -m bench.{name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = self.parser.add_argument
        add("--server", choices=[*servers.NAMES, "all"], default="all", help="what to run on (default: all there is)")
        add("--rounds", type=int, default=3, help="figures are medians of so many (default: 3)")
        add("--smoke", action="store_true", help="a few items, one round: are the results right? The times mean nothing")
        add("--json", type=Path, metavar="FILE", default=Path("build/bench") / f"{name}.json", help="(default: %(default)s)")
        self.rows: list[Row] = []
        self._versions: dict[str, str] = {}
        self._columns: tuple[str, ...] = ()

    def options(self, arguments: Sequence[str] | None = None) -> Options:
        """The options of the command line; others than the common ones are in `given`.

        From here on a SIGTERM ends the benchmark in good order: a private server would outlive it.
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        given = self.parser.parse_args(arguments)
        return Options(1 if given.smoke else given.rounds, given.smoke, given)

    def servers(self, options: Options) -> Iterator[Server]:
        """Each server asked for, running, one after the other."""
        available = servers.available()
        names = [name for name in available if options.given.server in {name, "all"}]
        if not names:
            wanted = "mariadbd or MySQL's mysqld" if options.given.server == "all" else options.given.server
            sys.exit(
                f"no server to run on: install {wanted}, or name one in AI_WORKER_BENCH_MARIADB_URL or AI_WORKER_BENCH_MYSQL_URL"
            )
        for name in names:
            with servers.running(name, available[name]) as server:
                self._versions[name] = server.version
                print(f"{self.name} on {name} {server.version}", flush=True)
                yield server

    def add(self, **row: Any) -> None:
        """One line of the table. Numbers come as they are; floats are shown with three significant digits."""
        columns = tuple(row)
        if columns != self._columns:
            self._columns = columns
            print("  ".join(_cell(column, column) for column in columns), flush=True)
        print("  ".join(_cell(column, row[column]) for column in columns), flush=True)
        self.rows.append(row)

    def write(self, options: Options) -> None:
        """The figures as JSON, with the machine they belong to."""
        path: Path = options.given.json
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"benchmark": self.name, "smoke": options.smoke, "rounds": options.rounds, "machine": machine()}
        text = json.dumps({**document, "servers": self._versions, "rows": self.rows}, indent=1, default=str)
        path.write_text(text + "\n", encoding="utf-8")


def median(values: Sequence[float]) -> float:
    """The middle one: a round that something else on the machine disturbed does not count."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine()
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(memory / 1e6),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _cell(column: str, value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return f"{value!s:>{max(len(column), 9)}}"
