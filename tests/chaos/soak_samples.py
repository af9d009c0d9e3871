"""Is it flat? What is read of processes and of the server every few seconds, and the line that is laid through it.

The line is Theil and Sen's: the median of the slopes between all pairs of samples. A burst of work, a collection of garbage or a
pause of the machine moves it as little as it moves a median.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.chaos.arena import DATABASE, Arena

MOST_PAIRED = 300  # samples; more are thinned out before they are paired


@dataclass(frozen=True)
class Bound:
    """How much a measure may drift over the time that is looked at: so much, or this share of its median if that is more."""

    absolute: float
    share: float = 0.0

    def of(self, typical: float) -> float:
        return max(self.absolute, self.share * typical)


@dataclass
class Series:
    """One measure of one thing: seconds since the start, and what was read."""

    name: str
    unit: str
    bound: Bound | None = None  # None: told, not judged
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, time: float, value: float) -> None:
        self.times.append(time)
        self.values.append(value)

    def after(self, seconds: float) -> Series:
        """The part that begins so many seconds after the start."""
        kept = [(time, value) for time, value in zip(self.times, self.values, strict=True) if time >= seconds]
        return Series(self.name, self.unit, self.bound, [time for time, _ in kept], [value for _, value in kept])

    def drift(self) -> float:
        """By how much it went up (or down: negative) from the first sample to the last, along the line."""
        step = max(1, -(-len(self.times) // MOST_PAIRED))
        points = list(zip(self.times, self.values, strict=True))[::step]
        slopes = [
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for number, earlier in enumerate(points)
            for later in points[number + 1 :]
            if later[0] > earlier[0]
        ]
        return median(slopes) * (self.times[-1] - self.times[0]) if slopes else 0.0

    def verdict(self) -> Verdict:
        typical = median(self.values)
        allowed = None if self.bound is None else self.bound.of(typical)
        return Verdict(self.name, self.unit, min(self.values), typical, max(self.values), self.drift(), allowed)


@dataclass(frozen=True)
class Verdict:
    """What became of a measure. `allowed`: the most that it may drift upwards."""

    name: str
    unit: str
    least: float
    typical: float
    most: float
    drift: float
    allowed: float | None

    @property
    def is_flat(self) -> bool:
        return self.allowed is None or self.drift <= self.allowed

    def line(self) -> str:
        allowed = "" if self.allowed is None else f"  allowed {self.allowed:.1f}  {'flat' if self.is_flat else 'GROWS'}"
        figures = f"{self.least:9.1f} {self.typical:9.1f} {self.most:9.1f}  drift {self.drift:+8.2f}"
        return f"{self.name:34} {figures} {self.unit:8}{allowed}".rstrip()


# A worker does a million items and more in half an hour: what leaks some ten bytes with each is seen.
MEMORY = Bound(4.0, 0.04)
FILES = Bound(4.0, 0.05)  # of all connections to a provider, as many are open as it is used
THREADS = Bound(1.0)
SESSIONS = Bound(2.0)
ON_DISK = Bound(24.0, 0.10)  # InnoDB's files grow by 4 MB at a time


@dataclass
class Sampler:
    """Reads everything once per `take`. `processes`: names and process ids; may grow. `counts`: what the caller counts itself."""

    arena: Arena
    processes: Mapping[str, int]
    clock: Callable[[], float]
    counts: Mapping[str, Callable[[], float]] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    def take(self) -> None:
        now = self.clock()
        for name, pid in self.processes.items():
            size, files, threads = of_process(pid)
            self._add(now, f"{name}: memory", "MB", size, MEMORY)
            self._add(now, f"{name}: file descriptors", "", files, FILES)
            self._add(now, f"{name}: threads", "", threads, THREADS)
        for user, count in sessions(self.arena).items():
            self._add(now, f"connections of {user}", "", count, SESSIONS)
        sizes = file_sizes(self.arena)
        for table in ("task_item", "task_attempt"):
            self._add(now, f"file of {table}", "MB", sizes.pop(table, 0.0), ON_DISK)
        self._add(now, "files of all other tables", "MB", sum(sizes.values()), ON_DISK)
        self._add(now, "undo records not yet purged", "", history(self.arena), None)
        if (server := self.arena.server.pid) is not None:
            self._add(now, "database server: memory", "MB", of_process(server)[0], None)
        for name, read in self.counts.items():
            self._add(now, name, "", read(), None)

    def _add(self, now: float, name: str, unit: str, value: float, bound: Bound | None) -> None:
        self.series.setdefault(name, Series(name, unit, bound)).add(now, value)

    def save(self, path: Path) -> None:
        """All samples, as JSON: for whoever wants to draw them."""
        found = {series.name: {"seconds": series.times, "values": series.values} for series in self.series.values()}
        path.write_text(json.dumps(found), encoding="utf-8")

    def verdicts(self, warm_up: float) -> list[Verdict]:
        """Of all measures, by the samples after so many seconds."""
        return [series.after(warm_up).verdict() for series in self.series.values()]


def of_process(pid: int) -> tuple[float, int, int]:
    """Of a process: resident memory (MB), open file descriptors, threads."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]) * 1024 / 1e6, files, int(status["Threads"])


def sessions(arena: Arena) -> dict[str, int]:
    """Connections of workers and of the web; a user without one is there with 0."""
    rows = arena.sql("SELECT USER AS user, COUNT(*) AS n FROM information_schema.processlist GROUP BY USER")
    found = {str(row["user"]): int(row["n"]) for row in rows}
    return {user: found.get(user, 0) for user in ("ai_worker", "ai_worker_web")}


def file_sizes(arena: Arena) -> dict[str, float]:
    """MB on disk, by table."""
    view = "INNODB_SYS_TABLESPACES" if arena.kind == "mariadb" else "INNODB_TABLESPACES"
    rows = arena.sql(
        f"SELECT NAME AS name, FILE_SIZE AS size FROM information_schema.{view} WHERE NAME LIKE %s", [f"{DATABASE}/%"]
    )
    return {str(row["name"]).partition("/")[2]: int(row["size"]) / 1e6 for row in rows}


def history(arena: Arena) -> int:
    """Transactions whose undo records the server still keeps: it grows without bound where a snapshot is left open."""
    rows = arena.sql("SELECT COUNT AS n FROM information_schema.INNODB_METRICS WHERE NAME = 'trx_rseg_history_len'")
    return int(rows[0]["n"])


def rows_of(arena: Arena) -> dict[str, int]:
    """The rows of each table, counted."""
    tables = arena.sql("SELECT TABLE_NAME AS t FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", [DATABASE])
    return {row["t"]: int(arena.sql(f"SELECT COUNT(*) AS n FROM {row['t']}")[0]["n"]) for row in tables}
