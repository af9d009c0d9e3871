"""The state machine for as long as one likes, on private servers: `python -m tests.chaos.model --help`."""

from __future__ import annotations

import argparse
import os
import secrets
from typing import Final

from tests.chaos.arena import arena_on, kinds
from tests.chaos.model.runs import run, world_on

SEED: Final = "AI_WORKER_TEST_SEED"
ROUND: Final = 250  # examples with one seed; the next round has the next one, and the figures tell of all so far
# The protocol is the same, and each example takes a third of the time.
IN_MEMORY: Final = {
    "mariadb": ["--innodb-flush-log-at-trx-commit=0"],
    "mysql": ["--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.model", description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=50, help="of one example, at most (%(default)s)")
    parser.add_argument("--server", choices=kinds(), action="append", help="all that are at hand, unless named")
    parser.add_argument("--seed", type=int, default=int(os.environ.get(SEED) or secrets.randbelow(2**32)))
    arguments = parser.parse_args()
    print(f"{SEED}={arguments.seed}", flush=True)  # noqa: T201 -- this prints figures
    for kind in arguments.server or kinds():
        with arena_on(kind, *IN_MEMORY[kind]) as arena, world_on(arena.test_server, arena.admin_url) as world:
            for number, start in enumerate(range(0, arguments.examples, ROUND)):
                examples = min(ROUND, arguments.examples - start)
                figures = run(world, examples, arguments.steps, arguments.seed + number)
                print(figures.text(), flush=True)  # noqa: T201 -- this prints figures


if __name__ == "__main__":
    main()
