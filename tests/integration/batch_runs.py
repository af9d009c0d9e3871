"""Workers that hand in batches, with the long waits made short; and one that dies at a step of a batch's way.

`python -m tests.integration.batch_runs URL after:submitting` works on the database until that step, and then is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ai_worker.store.batches import Batches
from ai_worker.worker import batch_steps, batches, claiming, commits
from tests.conftest import Sql
from tests.integration.worker_runs import Run

# Before or after a verb of the store: `submitted` is what follows the provider's answer, `storing` what follows its end.
STEPS = (
    "after:begin",
    "after:claim",
    "before:submitting",
    "after:submitting",
    "before:submitted",
    "after:submitted",
    "before:storing",
    "after:storing",
    "after:commit",
    "before:finish",
)
GROUP = 3  # results in one transaction


def shorten_waits(patch: pytest.MonkeyPatch) -> None:
    """Only the length of waits, and of groups: what is waited for is the worker's own."""
    patch.setattr(batch_steps, "LINGER_SECONDS", 0.05)
    patch.setattr(batch_steps, "UNSURE_SECONDS", 0.3)
    patch.setattr(batch_steps, "POLL_FIRST", 0.05)
    patch.setattr(batch_steps, "attempt_delay", lambda *_: 0.05)
    patch.setattr(batches, "LOOK_SECONDS", 0.2)
    patch.setattr(claiming, "BATCH_LOOK_SECONDS", 0.1)
    for module in (batch_steps, commits):
        patch.setattr(module, "COMMIT_ROWS", GROUP)


def killed_at(url: str, step: str) -> None:
    """Has a worker process work on the database until it kills itself at this step."""
    command = [sys.executable, "-m", "tests.integration.batch_runs", url, step]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=60, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def let_holds_end(sql: Sql) -> None:
    """Time passes: nobody holds a batch any more, and all are due."""
    sql("UPDATE batch SET held_until = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE held_until IS NOT NULL")
    sql("UPDATE batch SET poll_at = UTC_TIMESTAMP(6) WHERE ended_at IS NULL")


def batches_of(sql: Sql, id_task: int) -> list[dict[str, Any]]:
    """The task's batches, in the order in which they were made."""
    return sql("SELECT * FROM batch WHERE id_task = %s ORDER BY id_batch", [id_task])


def _die(step: str) -> None:
    when, _, name = step.partition(":")
    verb = getattr(Batches, name)

    def dying(self: Batches, *arguments: Any, **named: Any) -> Any:
        if when == "after":
            verb(self, *arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Batches, name, dying)


if __name__ == "__main__":
    shorten_waits(pytest.MonkeyPatch())
    _die(sys.argv[2])
    Run(sys.argv[1])
