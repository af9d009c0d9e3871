"""One run of the state machine on one server, with its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from ai_worker import log
from ai_worker.store import ledger
from tests.chaos.model.machine import machine_on
from tests.chaos.model.world import MAX_LOSSES, World
from tests.servers import TestServer


@dataclass(frozen=True)
class Figures:
    """What the runs on a world have come to so far."""

    server: str
    examples: int
    steps: int
    seconds: float
    seed: int
    acts: dict[str, int]

    def text(self) -> str:
        acts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.acts.items(), key=lambda each: -each[1]))
        verbs = sum(self.acts.values())
        return (
            f"{self.server}: {self.examples:,} examples, {verbs:,} verbs, {self.steps:,} comparisons of all tables "
            f"in {self.seconds:.0f} s, seed {self.seed}\n"
            f"  no counterexample; verbs: {acts}"
        )


@contextmanager
def world_on(server: TestServer, url: str) -> Iterator[World]:
    """The world of a migrated database; an item is set aside sooner than in earnest, and what the verbs log is left out."""
    log.configure("critical")
    with mock.patch.object(ledger, "MAX_LOSSES", MAX_LOSSES):
        world = World(server, url)
        try:
            yield world
        finally:
            world.close()


def run(world: World, examples: int, steps: int, seed: int, *, shrink: bool = True) -> Figures:
    """Runs the machine; raises with the shortest counterexample it can find, where there is one.

    `steps` are the most that an example takes. The same seed draws the same examples.
    """
    machine = seeded(seed)(machine_on(world))
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=phases,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(machine, settings=options)
    except Flaky as error:
        if world.problem is None:
            raise
        raise world.problem from error
    return Figures(world.name, world.begun, world.steps, time.monotonic() - world.made_at, seed, world.acts)
