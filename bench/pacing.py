"""A provider that takes so much a minute, and a fleet that has more to send: what comes through, and at what cost.

Four `ai-worker daemon`s send to the tests' fake provider, which counts as the vendors do and refuses what is above its limits
with a 429. Cases: `configured`: the limits stand in `ai_model`; `headers`: nobody has configured them, and the answers name them;
`sliding`, `bucket`: nobody names them, there are only the 429s (`-retry-after`: which say how long to wait).

`peak` is the most that the provider let in within any 60 seconds, by its limit; `use` what it let in per minute, by its limit,
over the whole run; `use_late` and `refused_late`, the share of calls that got a 429, count from the 60th second on. `statements`
are those for pacing, by call, counted by the database server's general log.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.drain import daemons, wait_for
from bench.report import Report, WrongResultError, median
from bench.servers import Server

REQUESTS, TOKENS = 600, 60_000  # per minute; the texts are such that both are used up
FLEET = 4
SECONDS, SMOKE_SECONDS = 150.0, 5.0
WARM_UP = 60.0
PACING = "(argument LIKE 'UPDATE ai_model_pace%' OR argument LIKE 'INSERT%ai_model_pace%' OR argument LIKE '%ai_model_share%')"


@dataclass(frozen=True, slots=True)
class Case:
    """What the provider enforces and tells, and whether the limits are configured."""

    count: str
    is_configured: bool = False
    headers: bool = False
    retry_after: bool = False


CASES = {
    "configured": Case("sliding", is_configured=True),
    "headers": Case("sliding", headers=True),
    "sliding": Case("sliding"),
    "sliding-retry-after": Case("sliding", retry_after=True),
    "bucket": Case("bucket"),
    "bucket-retry-after": Case("bucket", retry_after=True),
}


@contextlib.contextmanager
def provider(case: Case) -> Iterator[str]:
    """A fake provider in a process of its own; its URL."""
    command = [sys.executable, "-m", "tests.fake_provider", "--latency-ms", "500", "--limit-count", case.count]
    command += ["--requests-per-minute", str(REQUESTS), "--tokens-per-minute", str(TOKENS)]
    command += [] if case.headers else ["--no-limit-headers"]
    command += [] if case.retry_after else ["--no-retry-after"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 -- for mypy
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def asked(url: str) -> Any:
    """What the provider says."""
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 -- loopback
        return json.load(answer)


def texts(count: int) -> list[str]:
    """Different texts that are billed a hundred tokens, on average."""
    rng = random.Random(1)  # noqa: S311 -- the same in each run
    words = ("zażółć", "gęślą", "jaźń", "definately", "recieve", "sentense")
    return [f"{number} " + " ".join(rng.choices(words, k=rng.randint(24, 64))) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Done:
    """Shares are of the limits that are used most."""

    peak: float
    use: float
    use_late: float
    refused: int
    refused_late: float
    statements: float


def measure(server: Server, case: Case, seconds: float) -> Done:
    """A fleet's run of so many seconds."""
    with provider(case) as url, server.connect() as connection, connection.cursor() as cursor:
        for table in ("task_attempt", "task_item", "task", "ai_model_pace", "ai_model_share", "ai_model"):
            cursor.execute(f"DELETE FROM {table}")
        limits = (REQUESTS, TOKENS) if case.is_configured else (None, None)
        cursor.execute(
            "INSERT INTO ai_model (name, provider, model, base_url, max_requests_per_minute, max_tokens_per_minute)"
            " VALUES ('paced', 'openai', 'fake', %s, %s, %s)",
            [f"{url}/v1", *limits],
        )
        id_ai_model = cursor.lastrowid
        cursor.execute("SET GLOBAL log_output = 'TABLE'")
        cursor.execute("SET GLOBAL general_log = 0")
        cursor.execute("TRUNCATE mysql.general_log")
        try:
            with daemons(server, FLEET, "--concurrency", "50"):
                connection.begin()
                cursor.execute("INSERT INTO task (id_ai_model, description) VALUES (%s, '')", [id_ai_model])
                id_task = cursor.lastrowid
                rows = [(id_task, text) for text in texts(round(REQUESTS * (seconds / 60 + 2)))]
                cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", rows)
                cursor.execute("SET GLOBAL general_log = 1")
                connection.commit()
                wait_for(lambda: asked(f"{url}/_counts")["answered"], "the first answer")
                time.sleep(seconds)
                counts, timeline = asked(f"{url}/_counts"), asked(f"{url}/_timeline")["rows"]
                cursor.execute("SET GLOBAL general_log = 0")
            cursor.execute(f"SELECT COUNT(*) FROM mysql.general_log WHERE {PACING}")
            ((statements,),) = cursor.fetchall()
        finally:
            cursor.execute("SET GLOBAL general_log = 0")
        cursor.execute("SELECT COUNT(*) FROM task_item WHERE status_id = 1 AND text_corrected = CONCAT(text_original, ' ✓')")
        ((right,),) = cursor.fetchall()
    if not 0 < counts["per_status"]["200"] <= right:
        raise WrongResultError(f"{case}: {counts['per_status']} answers, {right} right results")
    if dump := os.environ.get("AI_WORKER_BENCH_TIMELINE"):
        Path(dump).write_text(json.dumps(timeline), encoding="utf-8")
    late = [row for row in timeline if WARM_UP <= row["at"] < int(seconds)] or timeline
    accepted, refused = (sum(row[kind] for row in late) for kind in ("accepted", "refused"))
    peak = counts["peak_window"]
    return Done(
        peak=max(peak["requests"] / REQUESTS, peak["tokens"] / TOKENS),
        use=_use(timeline),
        use_late=_use(late),
        refused=sum(counts["refused"].values()),
        refused_late=refused / max(1, accepted + refused),
        statements=statements / max(1, sum(row["accepted"] for row in timeline)),
    )


def _use(rows: list[dict[str, Any]]) -> float:
    requests, tokens = (sum(row[kind] for row in rows) * 60 / len(rows) for kind in ("accepted", "tokens"))
    return max(requests / REQUESTS, tokens / TOKENS)


def main() -> None:
    report = Report("pacing", __doc__)
    report.parser.add_argument("--case", choices=list(CASES), action="append", help="may be repeated (default: all)")
    report.parser.add_argument("--seconds", type=float, default=SECONDS, help="of a run (default: %(default)s)")
    options = report.options()
    cases = options.given.case or (["configured", "sliding"] if options.smoke else list(CASES))
    seconds = SMOKE_SECONDS if options.smoke else options.given.seconds
    for server in report.servers(options):
        for name in cases:
            done = [measure(server, CASES[name], seconds) for _ in range(options.rounds)]
            report.add(
                server=server.name,
                case=name,
                peak=max(each.peak for each in done),
                use=median([each.use for each in done]),
                use_late=median([each.use_late for each in done]),
                refused=max(each.refused for each in done),
                refused_late=median([each.refused_late for each in done]),
                statements=median([each.statements for each in done]),
            )
    report.write(options)


if __name__ == "__main__":
    main()
