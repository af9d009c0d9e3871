"""The protocol's model, protocol.pml, held to every interleaving by spin; and each way of breaking it, refuted.

spin is a small program that `make prepare` fetches; it writes a checker in C, so a C compiler is wanted too. Where either is
missing the tests are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("protocol.pml")
REQUIRE_SPIN = "AI_WORKER_TEST_REQUIRE_SPIN"

MEGABYTES = 4000  # at most; two faults take 200

# Each mutation, and the promise that it breaks, as spin words the assertion.
MUTATIONS = {
    "NO_TOKEN": "claimed_as",  # the fence compares the attempt alone
    "NO_FENCE": "claimed_as",
    "LOOK_BEFORE_LOCK": "ended",  # two workers each see the other's last item open
    "GUESS_NOT_LANDED": "is_booked",  # after a lost COMMIT it is simply done again
    "GUESS_LANDED": "ended",  # after a lost COMMIT it is taken for done
    "LOOK_WITHOUT_WAITING": "is_booked",  # the ledger is asked while the old session still holds the row
    "COUNT_APART": "processed",  # counters in a transaction of their own
    "RESCUE_THE_LIVING": "calls",  # items are taken from workers whose lease is good
    "CLAIM_WITHOUT_LOOK": "status",  # neither a lock nor a second look at the status
    "RESCUE_UNLOCKED": "processed",  # the rescuer looks first and locks then
}


@dataclass(frozen=True)
class Checked:
    """What spin found: a counterexample's complaint, or None; how many states it saw; statements that nothing ever reached."""

    complaint: str | None
    states: int
    unreached: list[str]


def checked(folder: Path, faults: int, *mutations: str, timeout: float = 240) -> Checked:
    """Goes through all executions of the model with so many faults."""
    spin, compiler = _programs()
    names = [f"-DFAULTS={faults}", *(f"-D{mutation}" for mutation in mutations)]
    _run(folder, spin, *names, "-a", str(MODEL))
    effort = "-O0" if mutations else "-O1"  # a counterexample is found at once: compiling is what takes time
    _run(folder, compiler, "-w", effort, "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c")
    said = _run(folder, "./pan", "-m200000", timeout=timeout)
    assert "max search depth too small" not in said, said
    complaint = re.search(r"^pan:1: (.*) \(at depth \d+\)$", said, re.M)
    states = re.search(r"^\s*(\d+) states, stored", said, re.M)
    assert states, said
    unreached = re.findall(r"^\s*\S+:(\d+, state \d+, \"(?!-end-).*\")$", said.partition("unreached in")[2], re.M)
    return Checked(complaint[1] if complaint else None, int(states[1]), unreached)


def _programs() -> tuple[str, str]:
    fetched = Path(sys.prefix, "tools", "spin")
    spin = shutil.which("spin") or (str(fetched) if fetched.exists() else None)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if spin is None or compiler is None:
        missing = "no spin: `make prepare` fetches it where there is apt" if spin is None else "no C compiler"
        if os.environ.get(REQUIRE_SPIN):
            pytest.fail(missing)
        pytest.skip(missing)
    return spin, compiler


def _run(folder: Path, *command: str, timeout: float = 60) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_order_of_any_two_faults_keeps_the_promises(tmp_path: Path) -> None:
    found = checked(tmp_path, 2)
    print(f"{found.states:,} states")  # noqa: T201 -- pytest shows it on demand
    assert found.complaint is None
    assert found.unreached == []  # nothing in the model is there for show
    assert found.states > 100_000


@pytest.mark.chaos
def test_every_order_of_any_three_faults_keeps_the_promises(tmp_path: Path) -> None:
    found = checked(tmp_path, 3, timeout=1500)
    print(f"{found.states:,} states")  # noqa: T201 -- the figure of `make chaos`
    assert found.complaint is None


@pytest.mark.parametrize(("mutation", "promise"), MUTATIONS.items())
def test_a_broken_protocol_is_refuted(mutation: str, promise: str, tmp_path: Path) -> None:
    found = checked(tmp_path, 2, mutation)
    assert found.complaint is not None, f"{mutation} breaks nothing in {found.states:,} states"
    assert found.complaint.startswith("assertion violated")
    assert promise in found.complaint


def test_every_mutation_of_the_model_is_tried() -> None:
    text = MODEL.read_text(encoding="utf-8")
    switches = set(re.findall(r"(?:ifn?def |defined\()([A-Z_]+)", text)) - {"FAULTS"}
    assert switches == MUTATIONS.keys()
    assert all(name in text.partition("*/")[0] for name in MUTATIONS)
