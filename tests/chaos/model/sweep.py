"""Pairs of verbs that touch the same rows, the second one inside the first, at each of its statements; and verbs whose connection
is lost at each of theirs.

All places, not drawn ones: the state machine finds what nobody has thought of; this finds in seconds what somebody has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from tests.chaos.model.acts import Acts
from tests.chaos.model.protocol import Disagreement
from tests.chaos.model.world import Act, Fault, Held, Worker, World

ALL: Final = 99  # statements; none has so many to say


class Stage:
    """A task with two items, and two workers; what the pairs begin from."""

    def __init__(self, world: World, *, claimed: int) -> None:
        world.begin()
        self.world, self.acts = world, Acts(world)
        self.one, self.other = (Worker(world.register(), world.new_queue()) for _ in range(2))
        self.task = world.new_task(0)
        world.insert(self.task, 2)
        for worker in (self.one, self.other)[:claimed]:
            self.do(self.acts.look(worker))
            self.do(self.acts.claim(worker, 0, 1, 0))
        for worker in (self.one, self.other)[claimed:]:
            self.do(self.acts.look(worker))

    def do(self, act: Act | None) -> None:
        if act is None:
            raise Disagreement("a worker finds nothing to claim")
        self.world.do(act)

    def claim(self, worker: Worker, size: int) -> Act:
        act = self.acts.claim(worker, 0, size, 0)
        if act is None:
            raise Disagreement("a worker finds nothing to claim")
        return act

    def commit(self, worker: Worker, kind: str) -> Act:
        """Of what it has held for the longest."""
        held: Held = worker.hand[0]
        self.acts.decide(held, kind)
        return self.acts.commit(worker, [held], with_held=False)

    def silent(self, *workers: Worker) -> None:
        for worker in workers:
            self.world.lease_is_over(worker)

    def take_over(self) -> None:
        """The first worker falls silent, and the other one gets its item."""
        self.silent(self.one)
        self.do(self.acts.rescue(self.other))
        self.claim_again()

    def claim_again(self) -> None:
        self.do(self.acts.look(self.other))
        self.do(self.claim(self.other, 1))


Scenario = Callable[[World], tuple[Act, Act]]


def last_two(one: str, other: str) -> Scenario:
    def pair(world: World) -> tuple[Act, Act]:
        stage = Stage(world, claimed=2)
        return stage.commit(stage.one, one), stage.commit(stage.other, other)

    return pair


def commit_and_rescue(kind: str) -> Scenario:
    def pair(world: World) -> tuple[Act, Act]:
        stage = Stage(world, claimed=1)
        stage.silent(stage.one)
        return stage.commit(stage.one, kind), stage.acts.rescue(stage.other)

    return pair


def late_commit_and_new_owners(kind: str) -> Scenario:
    def pair(world: World) -> tuple[Act, Act]:
        stage = Stage(world, claimed=1)
        stage.take_over()
        return stage.commit(stage.one, kind), stage.commit(stage.other, "processed")

    return pair


def late_commit_and_claim(world: World) -> tuple[Act, Act]:
    """Of what two have lost: the late one looks at it under a lock, and the claim passes it over."""
    stage = Stage(world, claimed=1)
    stage.take_over()
    stage.silent(stage.other)
    stage.do(stage.acts.rescue(stage.one))
    stage.do(stage.acts.look(stage.other))
    return stage.commit(stage.one, "retry"), stage.claim(stage.other, 2)


def late_commit_of_the_same_attempt(world: World) -> tuple[Act, Act]:
    """After a retry by hand attempts are counted from one again: only the token tells the claims apart."""
    stage = Stage(world, claimed=1)
    stage.take_over()
    stage.do(stage.commit(stage.other, "failed"))
    stage.do(stage.acts.retry_all(stage.task))
    stage.claim_again()
    return stage.commit(stage.one, "processed"), stage.commit(stage.other, "processed")


def claim_in_doubt_and_new_owner(world: World) -> tuple[Act, Act]:
    """Somebody gives back a claim that he did not hear of, and that others have taken from him since."""
    for place in count():
        stage = Stage(world, claimed=0)
        world.do(stage.claim(stage.one, 1), Fault(place, "after", for_long=True))
        if stage.one.doubts:  # it was the COMMIT
            break
    stage.take_over()
    return stage.acts.look(stage.one), stage.commit(stage.other, "processed")


def commit_and_cancel(kind: str) -> Scenario:
    def pair(world: World) -> tuple[Act, Act]:
        stage = Stage(world, claimed=2)
        return stage.commit(stage.one, kind), stage.acts.cancel(stage.task)

    return pair


def two_claims(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=0)
    return stage.claim(stage.one, 1), stage.claim(stage.other, 2)


def claim_and_pause(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=0)
    return stage.claim(stage.one, 2), stage.acts.pause(stage.task)


def claim_and_cancel(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=0)
    return stage.claim(stage.one, 2), stage.acts.cancel(stage.task)


def rescue_and_resume(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=1)
    stage.do(stage.acts.cancel(stage.task))
    stage.silent(stage.one)
    return stage.acts.rescue(stage.other), stage.acts.resume(stage.task)


def two_rescues(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=2)
    stage.silent(stage.one, stage.other)
    return stage.acts.rescue(stage.one), stage.acts.rescue(stage.other)


def retry_and_cancel(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=2)
    stage.do(stage.commit(stage.one, "failed"))
    return stage.acts.retry_all(stage.task), stage.acts.cancel(stage.task)


def retry_and_last_commit(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=2)
    stage.do(stage.commit(stage.one, "failed"))
    return stage.acts.retry_all(stage.task), stage.commit(stage.other, "processed")


def promote_and_cancel(world: World) -> tuple[Act, Act]:
    stage = Stage(world, claimed=1)
    stage.do(stage.commit(stage.one, "retry at once"))
    return stage.acts.promote(stage.one), stage.acts.cancel(stage.task)


SCENARIOS: Final[dict[str, Scenario]] = {
    "the last two results": last_two("processed", "processed"),
    "the last result and a failure": last_two("processed", "failed"),
    "the last result and a retry": last_two("processed", "retry"),
    "a result and a rescue": commit_and_rescue("processed"),
    "a failure and a rescue": commit_and_rescue("failed"),
    "a release and a rescue": commit_and_rescue("released"),
    "a late result and the new owner's": late_commit_and_new_owners("processed"),
    "a late failure and the new owner's result": late_commit_and_new_owners("failed"),
    "a late result and that of the same attempt": late_commit_of_the_same_attempt,
    "a late retry and a claim": late_commit_and_claim,
    "a claim in doubt and its new owner": claim_in_doubt_and_new_owner,
    "a retry and a cancel": commit_and_cancel("retry"),
    "two claims": two_claims,
    "a claim and a pause": claim_and_pause,
    "a claim and a cancel": claim_and_cancel,
    "a rescue and a resume": rescue_and_resume,
    "two rescues": two_rescues,
    "a retry by hand and a cancel": retry_and_cancel,
    "a retry by hand and the last result": retry_and_last_commit,
    "what is due and a cancel": promote_and_cancel,
}


def broken_claim(stage: Stage) -> Act:
    """Of the second item. What is in doubt is given back before the next look."""
    return stage.claim(stage.other, 1)


def broken_commit(kind: str) -> Callable[[Stage], Act]:
    return lambda stage: stage.commit(stage.one, kind)


def broken_rescue(stage: Stage) -> Act:
    stage.silent(stage.one)
    return stage.acts.rescue(stage.other)


BROKEN: Final[dict[str, Callable[[Stage], Act]]] = {
    "a claim whose connection is lost": broken_claim,
    "a result whose connection is lost": broken_commit("processed"),
    "a failure whose connection is lost": broken_commit("failed"),
    "a release whose connection is lost": broken_commit("released"),
    "a rescue whose connection is lost": broken_rescue,
}
LOSSES: Final = tuple((when, for_long) for when in ("before", "after") for for_long in (False, True))


def sweep(world: World, first: int = 0, step: int = 1) -> Iterator[str]:
    """Runs every pair at every place, and yields its name after each; raises Disagreement with the place. Then what is broken.

    `first` and `step` leave places out: only after so many statements, and then each so many.
    """
    yield from _pairs(world, first, step)
    yield from _broken(world, first, step)


def _broken(world: World, first: int, step: int) -> Iterator[str]:
    for name, scenario in BROKEN.items():
        for place in count(first, step):
            for when, for_long in LOSSES:
                stage = Stage(world, claimed=1)
                has_struck = world.do(scenario(stage), Fault(place, when, for_long))
                stage.do(stage.acts.look(stage.other))
                yield name
            if not has_struck:  # the verb has not so many statements
                break


def _pairs(world: World, first: int, step: int) -> Iterator[str]:
    for name, scenario in SCENARIOS.items():
        for place in count(first, step):
            one, other = scenario(world)
            try:
                world.at_once(one, other, place, ALL)
            except Disagreement as error:
                raise Disagreement(f"{name}, after {place} statements: {error}") from None
            yield name
            if world.pair.is_over_first:  # one after the other: there is no later place
                break
