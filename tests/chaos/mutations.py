"""Does the suite see it when the protocol is broken? `python -m tests.chaos.mutations` breaks it, in one way after the other.

Each mutation changes a statement of sql/queries.sql (or, where the invariant is kept in Python, a function), in this process
alone: no file is touched. Then the sweep of tests/chaos/model, and its state machine, run until something disagrees. A mutation
that they do not notice, and one that does not apply any more, fails the run.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

from ai_worker.db.statements import around_values, statements
from ai_worker.errors import DatabaseError
from ai_worker.store import committing, ledger
from tests.chaos.arena import arena_on, kinds
from tests.chaos.model.__main__ import IN_MEMORY
from tests.chaos.model.runs import run, world_on
from tests.chaos.model.sweep import sweep
from tests.servers import TestServer

EXAMPLES: Final = 1000
STEPS: Final = 40
CONSTRAINTS: Final = frozenset({1062, 1690, 3819, 4025})  # a key there already, a number out of range, a CHECK


class StaleError(Exception):
    """A mutation names what is not in the statement any more."""


@dataclass(frozen=True)
class Mutation:
    """`edits`: in the statement of this name, the first text is replaced by the second. `patch`: what replaces a function."""

    name: str
    breaks: str
    edits: tuple[tuple[str, str, str], ...] = ()
    patch: tuple[Any, str, Callable[..., Any]] | None = None

    def mutated(self) -> dict[str, str]:
        """The changed statements. Raises StaleError."""
        found: dict[str, str] = {}
        for statement, old, new in self.edits:
            text = found.get(statement, statements().get(statement, ""))
            if not old or old not in text:
                raise StaleError(f"{self.name}: the statement {statement} does not say {old!r}")
            found[statement] = text.replace(old, new)
        return found

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(statements(), self.mutated()))  # type: ignore[arg-type]  -- a dict, called a Mapping
            stack.callback(around_values.cache_clear)
            around_values.cache_clear()
            if self.patch is not None:
                stack.enter_context(mock.patch.object(*self.patch))
            yield


def edit(name: str, breaks: str, *edits: tuple[str, str, str]) -> Mutation:
    return Mutation(name, breaks, edits)


def _moved(settle: Callable[..., Any]) -> Callable[..., Any]:
    def settle_later(tx: Any, *arguments: Any) -> Any:
        tx._connection.commit()
        tx._connection.begin()
        return settle(tx, *arguments)

    return settle_later


FENCE: Final = "AND i.attempt = r.attempt AND i.claim_token = r.claim_token"
LOCK: Final = "\n   FOR UPDATE SKIP LOCKED"

MUTATIONS: Final = (
    edit("no fence", "a result is stored by its owner alone", ("store_results", f"\n          {FENCE}", "")),
    edit("no token in the fence", "a result belongs to one claim", ("store_results", " AND i.claim_token = r.claim_token", "")),
    edit("no status in the fence", "an item is committed once", ("store_results", " AND i.status_id = 2", "")),
    Mutation(
        "a late result is always taken",
        "a new claim is the end of the old one",
        patch=(committing, "_fence_holds", lambda *_: True),
    ),
    edit("no lock at a commit", "nobody else decides meanwhile", ("lock_committed", "\n   FOR UPDATE", "")),
    edit("no lock of tasks", "a task ends exactly once", ("lock_tasks", "\n   FOR UPDATE", "")),
    edit(
        "no lock at a claim",
        "an item has one owner",
        ("lock_pending_of_task", LOCK, ""),
        ("lock_pending_of_tasks", LOCK, ""),
        ("mark_claimed", " AND status_id = 0", ""),
    ),
    edit("claims of what is claimed", "an item has one owner", ("claim_new_item", "i.status_id = 0 AND ", "")),
    edit(
        "claims from a paused task",
        "pause stops claims",
        ("task_states", "SELECT id_task, status_id", "SELECT id_task, 1 AS status_id"),
    ),
    edit(
        "a stopped task has not begun",
        "a rescue finds what is in flight",
        ("start_tasks", "AND (status_id IN (0, 2, 3) OR started_at IS NULL)", "AND status_id IN (0, 2, 3)"),
    ),
    edit("a claim in doubt is forgotten", "nothing is lost", ("claimed_items", "AND status_id = 2", "AND status_id = 9")),
    edit("unclaims what is another's", "an item has one owner", ("unclaim", "AND claim_token = %(claim_token)s ", "")),
    edit(
        "a commit in doubt is forgotten",
        "a lost COMMIT is resolved",
        ("landed_operations", "NOT (outcome", "outcome = '' AND NOT (outcome"),
    ),
    edit(
        "one result too many",
        "counters equal counts",
        ("settle_tasks", "t.records_processed + r.processed", "t.records_processed + 1"),
    ),
    edit(
        "failures are not taken off",
        "counters equal counts",
        ("uncount_failed", "records_failed - LEAST(records_failed, %(items)s)", "records_failed"),
    ),
    Mutation(
        "counters in a transaction of their own",
        "counters change with what they count",
        patch=(ledger, "settle", _moved(ledger.settle)),
    ),
    edit(
        "the day's sums begin anew",
        "sums are sums",
        ("add_to_day", "attempts = attempts + VALUES(attempts)", "attempts = VALUES(attempts)"),
    ),
    edit(
        "late tokens are not the item's",
        "what was paid is on the books",
        ("charge_items", "i.tokens_input + r.tokens_input", "i.tokens_input"),
    ),
    edit(
        "a rescue does not mind the lease",
        "the living keep their items",
        ("lock_stale_worker", "lease_until < NOW(6)", "lease_until < NOW(6) + INTERVAL 1 DAY"),
    ),
    edit(
        "losses are not counted",
        "losses are counted apart",
        ("give_back_lost", "lost_count = lost_count + 1", "lost_count = lost_count"),
    ),
    edit(
        "a rescued item is lost",
        "nothing is lost",
        ("give_back_lost", "SET status_id = 0, id_worker = NULL", "SET status_id = 5, id_worker = NULL"),
    ),
    edit(
        "two stories of one attempt",
        "each attempt is told once",
        ("forget_lost_attempts", "a.outcome = 'lost' AND a.error_kind <=> 'lost'", "a.outcome = ''"),
    ),
    edit(
        "a release is charged", "what is given back is not charged", ("store_outcomes", "i.attempt - 1 + r.charged", "i.attempt")
    ),
    edit("a retry goes on counting", "a retry begins anew", ("retry_items", " attempt = 0,", "")),
    edit("a retry keeps the claim", "a retry begins anew", ("retry_items", " claim_token = NULL,", "")),
    edit("put off for no time", "what was put off waits", ("lock_due", "available_at <= NOW(6)", "available_at IS NOT NULL")),
    edit(
        "ends without a look at what is in flight",
        "a task ends with its last item",
        ("tasks_without_open_items", "i.status_id = 2", "i.status_id = 9"),
    ),
    edit(
        "ends without a look at what is put off",
        "a task ends with its last item",
        ("tasks_without_open_items", "i.status_id = 4", "i.status_id = 9"),
    ),
    edit(
        "cancels what is in flight",
        "what is in flight is still stored",
        ("cancel_items", "status_id IN (0, 4)", "status_id IN (0, 2, 4)"),
    ),
    edit("a lost worker goes on", "who was given up registers anew", ("beat", " AND lost_at IS NULL AND ended_at IS NULL", "")),
)


@dataclass(frozen=True)
class Caught:
    """After how many pairs of the sweep and examples of the state machine, and by what; None: it was not."""

    pairs: int
    examples: int
    seconds: float
    by: str | None


def hunt(mutation: Mutation, server: TestServer, url: str, *, seed: int, examples: int = EXAMPLES) -> Caught:
    """Sweeps, then runs the state machine on the mutated protocol, until something disagrees.

    Raises what is no disagreement, such as an error in the SQL.
    """
    began = time.monotonic()
    pairs, is_swept = 0, False
    with mutation.applied(), world_on(server, url) as world:
        try:
            for _ in sweep(world):
                pairs += 1
            is_swept, world.begun = True, 0
            run(world, examples, STEPS, seed, shrink=False)
        except Exception:  # whatever hypothesis makes of it
            if world.problem is None:
                raise
            return Caught(pairs, world.begun if is_swept else 0, time.monotonic() - began, _told(world.problem))
        return Caught(pairs, world.begun, time.monotonic() - began, None)


def _told(error: BaseException) -> str:
    """In one line what has been noticed."""
    if isinstance(error, DatabaseError) and error.code in CONSTRAINTS:
        return f"the database: {re.sub(r'Duplicate entry .* for', 'Duplicate entry for', str(error).splitlines()[0])[:100]}"
    if not isinstance(error, AssertionError):
        raise error
    return str(error).strip().splitlines()[0].strip()[:100]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name them, and do nothing")
    parser.add_argument("--only", action="append", help="the one of this name")
    parser.add_argument("--server", choices=kinds(), default="mariadb")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="after which a mutation has survived (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chosen = [each for each in MUTATIONS if not arguments.only or each.name in arguments.only]
    if arguments.list:
        for each in chosen:
            _say(
                f"{each.name}: breaks “{each.breaks}”, in {', '.join(dict.fromkeys(edit[0] for edit in each.edits)) or 'Python'}"
            )
        return 0
    survivors = []
    with arena_on(arguments.server, *IN_MEMORY[arguments.server]) as arena:
        _say(f"| Mutation | Breaks | Pairs | Examples | s | Seen (seed {arguments.seed}, {arguments.server}) |")
        _say("| --- | --- | --- | --- | --- | --- |")
        for each in chosen:
            caught = hunt(each, arena.test_server, arena.admin_url, seed=arguments.seed, examples=arguments.examples)
            found = caught.by or f"**survived {caught.examples}**"
            _say(f"| {each.name} | {each.breaks} | {caught.pairs} | {caught.examples} | {caught.seconds:.1f} | {found} |")
            if caught.by is None:
                survivors.append(each.name)
    _say(
        f"{len(chosen) - len(survivors)} of {len(chosen)} mutations noticed"
        + (f"; not: {', '.join(survivors)}" if survivors else "")
    )
    return 1 if survivors else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- this prints a table


if __name__ == "__main__":
    sys.exit(main())
