"""Prometheus's own checker of metrics and alert rules, which `make prepare` fetches into the virtual environment.

Where it cannot be had, the tests that need it are skipped, and say so; AI_WORKER_TEST_REQUIRE_PROMTOOL lets them fail, as in CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIRE_PROMTOOL = "AI_WORKER_TEST_REQUIRE_PROMTOOL"


@dataclass(frozen=True)
class Promtool:
    """Each check raises AssertionError with all that promtool had to say, unless it found nothing at all."""

    program: str

    @classmethod
    def found(cls) -> Promtool:
        """The program on the PATH, or the one that `make prepare` has fetched. Skips or fails the test where there is none."""
        fetched = Path(sys.prefix, "tools", "promtool")
        program = shutil.which("promtool") or (str(fetched) if fetched.exists() else None)
        if program is None:
            missing = "no promtool: `make prepare` fetches it where there is apt"
            if os.environ.get(REQUIRE_PROMTOOL):
                pytest.fail(missing)
            pytest.skip(missing)
        return cls(program)

    def check_metrics(self, exposition: str) -> None:
        """What a `/metrics` answers: well formed, and named by the conventions."""
        self._run("check", "metrics", given=exposition)

    def check_rules(self, rules: Path) -> None:
        """A file of alert rules; the linter's advice counts as an error."""
        self._run("check", "rules", "--lint-fatal", str(rules))

    def test_rules(self, tests: Path) -> None:
        """A file of tests of alert rules."""
        self._run("test", "rules", str(tests))

    def check_config(self, config: Path) -> None:
        """Prometheus's configuration, without a look at the files that it names."""
        self._run("check", "config", "--syntax-only", str(config))

    def _run(self, *arguments: str, given: str = "") -> None:
        done = subprocess.run([self.program, *arguments], input=given, capture_output=True, text=True, check=False, timeout=60)
        said = (done.stdout + done.stderr).strip()
        # `check metrics` says what the conventions ask for on standard error, and ends with 3.
        assert done.returncode == 0, f"promtool {' '.join(arguments)} ended with {done.returncode}:\n{said}"
