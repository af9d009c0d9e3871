"""The benchmarks do what they measure: each one's smoke form, which fails on wrong results and ignores times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench
import pytest

from tests import servers

ROOT = Path(__file__).parents[2]


SLOW = {"calls", "footprint", "pacing", "pickup", "queues"}  # calls that take their time


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in bench.NAMES])
def test_smoke(name: str, tmp_path: Path) -> None:
    environment = servers.environment(None)
    if url := os.environ.get(servers.MYSQL_URL):
        environment["AI_WORKER_BENCH_MYSQL_URL"] = url.rstrip("/") + "/mysql"
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", f"bench.{name}", "--smoke", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["smoke"]
    assert document["rows"]
    assert {row["server"] for row in document["rows"] if "server" in row} in (set(servers.names()), set())
