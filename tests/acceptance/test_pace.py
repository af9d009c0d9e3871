"""Several real workers and a model with a limit per minute: the fleet keeps to it, and a worker's death costs next to nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.acceptance.fleet import Fake, fake_provider, insert_task
from tests.conftest import Sql
from tests.servers import Programs

PER_SECOND = 20
LEASE = 6.0


def accepted(fake: Fake, since: float, until: float) -> int:
    """How many calls came in between these moments, in seconds since the first one."""
    rows: list[dict[str, Any]] = fake.get("_timeline?bucket=1")["rows"]
    return sum(row["accepted"] for row in rows if since <= row["at"] < until)


@pytest.mark.slow  # it measures a rate over seconds, which another test beside it would spoil
def test_what_a_killed_worker_had_leased_is_back_within_its_lease(sql: Sql, programs: Programs) -> None:
    with fake_provider(200, "--requests-per-minute", str(60 * PER_SECOND)) as fake:
        texts = [f"Kot numer {number} poszedł spowrotem" for number in range(2000)]
        insert_task(sql, fake, texts)
        sql("UPDATE ai_model SET max_requests_per_minute = %s, max_in_flight = 40", [60 * PER_SECOND])
        workers = [
            programs.start("daemon", "--concurrency", "40", env={"AI_WORKER_LEASE_SECONDS": str(int(LEASE))}) for _ in range(3)
        ]
        fake.wait_for_requests(4 * PER_SECOND, timeout=60)
        for victim in workers[:2]:
            victim.process.kill()
            victim.process.wait()
        (now,) = sql("SELECT COUNT(*) AS shares FROM ai_model_share")
        assert now["shares"] == 3, "the dead ones' shares are there still"
        killed_at = time.monotonic() - fake.get("_timeline?bucket=1")["origin"]
        back_at = killed_at + LEASE + 1
        while time.monotonic() - fake.get("_timeline?bucket=1")["origin"] < back_at + 5:
            time.sleep(0.2)
        whole = int(back_at) + 1
        assert accepted(fake, whole, whole + 4) >= 0.9 * 4 * PER_SECOND, "one worker alone uses all of it"
        (share,) = sql("SELECT COUNT(*) AS n, MAX(granted) AS most FROM ai_model_share")
        assert (share["n"], share["most"]) == (1, 40), "and has all of the calls in flight"
        counts = fake.counts(window=10)
        assert counts["peak_window"]["requests"] <= 1.02 * 10 * PER_SECOND + 1
        assert counts["refused"].get("requests", 0) == 0
