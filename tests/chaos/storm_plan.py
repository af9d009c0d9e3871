"""What befalls a storm, and when: drawn from a seed before it begins.

The faults come in lanes, each of which a thread of its own goes through in order; so faults of one kind never overlap, and those
of different kinds do all the time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

# What the provider does wrong for a while. Only plain items are struck, so that each strike is one item's call.
MISDEEDS: Sequence[dict[str, Any]] = (
    {"fault": "429", "share": 0.7},
    {"fault": "429_retry_after_ms", "share": 0.5},
    {"fault": "500", "share": 0.6},
    {"fault": "503", "share": 0.4},
    {"fault": "502_html", "share": 0.5},
    {"fault": "slow", "share": 0.5, "delay_ms": 1500},
    {"fault": "drop", "share": 0.3},
    {"fault": "hang", "share": 0.1},
    {"fault": "broken_json", "share": 0.3},
    {"fault": "wrong_shape", "share": 0.3},
    {"fault": "empty", "share": 0.3},
)
BILLED = ("drop", "hang", "broken_json", "wrong_shape", "empty")
"""The misdeeds that are billed and bring no result, so that the item must be asked for once more."""


@dataclass(frozen=True)
class Scale:
    """How much of everything. `seconds`: over how long a time the faults are spread.

    kills, drains, freezes: of workers, by SIGKILL, SIGTERM, and SIGSTOP past the lease with a SIGCONT.
    recovery_seconds: how long after its lease's end a lost worker's items may at most not be free. The short form bears a machine
    that has other tests to run as well.
    database_kills: by SIGKILL, with a restart. cuts: connections break and no new ones come through. silences: connections stay,
    nothing comes through. switch_overs: planned ones. fail_overs: the primary is killed, and the replica takes its place.
    """

    items: int
    seconds: float
    kills: int
    drains: int
    freezes: int
    database_kills: int
    database_cuts: int
    database_silences: int
    switch_overs: int
    fail_overs: int
    provider_cuts: int
    provider_silences: int
    misdeeds: int
    workers: int = 5
    concurrency: int = 20
    recovery_seconds: float = 2.0

    def part(self, share: float) -> Scale:
        """The same weather for a part of the time, 0 to 1."""
        counts = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in STAYS}
        return replace(self, **{name: max(1, round(count * share)) for name, count in counts.items()})


STAYS = ("workers", "concurrency", "recovery_seconds")
WHOLE = Scale(50_000, 460, 205, 12, 12, 20, 8, 4, 8, 4, 10, 4, 22)
SHORT = Scale(800, 6, 3, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1, workers=3, recovery_seconds=6)


@dataclass(frozen=True)
class Fault:
    """`at`: seconds after the beginning; `seconds`: how long it lasts, where it does not end at once."""

    at: float
    kind: str
    seconds: float = 0.0
    rule: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """The faults by lane, each in the order of their times."""

    workers: list[Fault]
    database: list[Fault]
    provider: list[Fault]


def plan(scale: Scale, rng: random.Random, lease_seconds: float) -> Plan:
    """Draws a plan. The same scale and the same state of `rng` give the same one."""
    workers = _lane(scale.seconds, rng, {"kill": scale.kills, "drain": scale.drains, "freeze": scale.freezes})
    database = _lane(
        scale.seconds,
        rng,
        {
            "killed": scale.database_kills,
            "cut off": scale.database_cuts,
            "silent": scale.database_silences,
            "switch-over": scale.switch_overs,
            "fail-over": scale.fail_overs,
        },
    )
    provider = _lane(
        scale.seconds,
        rng,
        {"cut off": scale.provider_cuts, "silent": scale.provider_silences, "fails": scale.misdeeds},
    )
    misdeeds = [MISDEEDS[number % len(MISDEEDS)] for number in range(scale.misdeeds)]
    rng.shuffle(misdeeds)
    return Plan(
        [Fault(at, kind, lease_seconds + rng.uniform(1.5, 3) if kind == "freeze" else 0) for at, kind in workers],
        [Fault(at, kind, _outage(rng, lease_seconds) if kind in ("cut off", "silent") else 0) for at, kind in database],
        [Fault(at, kind, rng.uniform(0.5, 3), misdeeds.pop() if kind == "fails" else None) for at, kind in provider],
    )


def _outage(rng: random.Random, lease_seconds: float) -> float:
    """Mostly short; one in four longer than the lease, after which every worker could be taken for dead."""
    return rng.uniform(0.2, 2) if rng.random() < 0.75 else lease_seconds + rng.uniform(0.5, 2)


def _lane(seconds: float, rng: random.Random, counts: dict[str, int]) -> list[tuple[float, str]]:
    """So many of each kind, in any order, one in each of so many equal stretches of the time."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    stretch = seconds / max(1, len(kinds))
    return [((number + rng.uniform(0, 0.8)) * stretch, kind) for number, kind in enumerate(kinds)]
