"""Limits that nobody has configured: a fleet of learners against a provider that refuses, by a clock that the test turns."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ai_worker.errors import RateLimited
from ai_worker.models import Learnt, Limits, Task, TaskStatus
from ai_worker.worker.learning import FASTER, FORGET, MANY, MOST, RAMP, SLOWEST, Learner, grown
from ai_worker.worker.line import MARGIN
from tests.fake_provider import limits as provider
from tests.fake_provider.wire import Tokens

TASK = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)


@dataclass
class World:
    """A clock, what happens later, and the row that the workers share, as the statements change it."""

    now: float = 1000.0
    requests: int | None = None
    tokens: int | None = None
    growth: float = 0.0
    slowed_at: float | None = None
    held_until: float = 0.0
    in_flight: int = 0
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    timers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)

    def learner(self, hold: Callable[[int, float], None] = lambda *_: None) -> Learner:
        return Learner(self.store, hold, lambda _: self.in_flight, later=self.later, clock=lambda: self.now)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.now + seconds, len(self.timers), action))

    def turn(self, seconds: float) -> None:
        self.now += seconds
        while self.timers and self.timers[0][0] <= self.now:
            heapq.heappop(self.timers)[2]()

    def store(self, verb: str, _: int, **values: Any) -> None:
        self.said.append((verb, values))
        if verb == "told":
            self.requests, self.tokens = values["limits"]
        elif verb == "hold":
            self.held_until = max(self.held_until, self.now + values["seconds"])
            if self.slowed_at is not None and values["seconds"] > 2.0:
                self.slowed_at = max(self.slowed_at, self.now + values["seconds"])
        elif verb == "count":
            is_new = self.requests is None or (self.slowed_at or 0) < self.now - values["forget"]
            if is_new:
                self.requests, self.growth = values["answers"], values["growth"]
            elif self.growth in values["growths"]:
                self.requests += values["answers"]  # type: ignore[operator] -- not None
            self.slowed_at = max(self.slowed_at or 0.0, self.now + values["pause"])
        elif self.slowed_at is None or self.slowed_at <= self.now - values["window"]:
            self.requests, self.growth = values["requests_per_minute"], values["growth"]
            self.slowed_at = self.now + values["pause"]

    def task(self) -> Task:
        if self.requests is None:
            return TASK
        return replace(TASK, learnt=Learnt(self.requests, self.tokens, self.growth, self.slowed_at or self.now))


@dataclass
class Sent:
    """What the provider let in and refused, each with its time since the start."""

    let_in: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


def run(limits: provider.Limits, seconds: float, workers: int = 4, latency: float = 0.5) -> Sent:
    """A fleet with more to send than the provider takes; each worker looks at the row once a second."""
    world, sent = World(), Sent()
    limiter = provider.Limiter(limits, lambda: world.now)
    began = world.now
    held = [0.0] * workers
    learners = [world.learner(lambda _, wait, n=n: held.__setitem__(n, max(held[n], world.now + wait))) for n in range(workers)]
    answers: list[tuple[float, int, bool, float, float | None]] = []
    tasks, in_flight, credit = [TASK] * workers, [0] * workers, [0.0] * workers
    step = 0.01
    while world.now < began + seconds:
        while answers and answers[0][0] <= world.now:
            _, worker, is_let_in, at, wait = heapq.heappop(answers)
            in_flight[worker] -= 1
            if is_let_in:
                learners[worker].answered(1, None)
                limiter.release("")
            else:
                error = RateLimited("slower", retry_after=wait if limits.retry_after else None)
                learners[worker].refused(tasks[worker], error, at, latency)
        for worker in range(workers):
            if int(world.now * 100) % 100 == worker * 25:
                tasks[worker] = world.task()
            rate = learners[worker].limits(tasks[worker]).requests_per_minute
            credit[worker] = min(credit[worker] + (100.0 if rate is None else rate * MARGIN / 60 / workers) * step, 2.0)
            while (
                credit[worker] >= 1
                and in_flight[worker] < 50
                and world.now >= max(held[worker], (rate and world.held_until) or 0.0)
            ):
                credit[worker] -= 1
                in_flight[worker] += 1
                refusal = limiter.admit("", Tokens(10, 10))
                (sent.refused if refusal else sent.let_in).append(world.now - began)
                after = 0.02 if refusal else latency
                wait = refusal.wait if refusal else None
                heapq.heappush(answers, (world.now + after, worker, refusal is None, world.now, wait))
        world.turn(step)
    return sent


@pytest.mark.parametrize("retry_after", [False, True], ids=["silent", "retry-after"])
@pytest.mark.parametrize(
    "limits",
    [
        provider.Limits(requests_per_minute=600),
        provider.Limits(requests_per_minute=600, count="bucket"),
        provider.Limits(requests_per_minute=600, count="bucket", burst=0.1),
    ],
    ids=["sliding", "bucket", "small bucket"],
)
def test_after_the_first_minute_little_is_refused_and_nearly_all_is_used(limits: provider.Limits, retry_after: bool) -> None:
    sent = run(replace(limits, retry_after=retry_after), 180.0)
    let_in, refused = (sum(at >= 60.0 for at in times) for times in (sent.let_in, sent.refused))
    assert refused < 0.02 * (let_in + refused)
    assert let_in >= 0.9 * 600 * 2


def test_a_provider_that_takes_more_than_is_sent_is_never_learnt_about() -> None:
    sent = run(provider.Limits(requests_per_minute=100_000), 20.0)
    assert not sent.refused
    assert len(sent.let_in) > 1900


def test_a_stray_refusal_is_its_own_calls_matter() -> None:
    world = World()
    learner = world.learner()
    for _ in range(MANY - 1):
        learner.refused(TASK, RateLimited("slower"), world.now, 0.1)
    world.turn(10.0)
    assert world.said == []


def test_a_limit_that_is_named_is_believed_and_stored_once() -> None:
    world = World()
    learner = world.learner()
    for _ in range(20):
        learner.answered(1, Limits(600, 60_000))
    assert [verb for verb, _ in world.said] == ["told"]
    assert learner.limits(TASK) == (600, 60_000)
    assert learner.limits(replace(TASK, limits=Limits(60, None))) == (60, 60_000)  # what is configured counts
    learner.answered(1, Limits(1200, 60_000))
    assert [verb for verb, _ in world.said] == ["told", "told"]
    assert learner.limits(TASK) == (1200, 60_000)


def test_what_was_sent_before_it_was_named_is_paid_for() -> None:
    world = World(in_flight=50)
    learner = world.learner()
    for _ in range(100):
        learner.answered(1, None)
    learner.answered(1, Limits(600, None))
    assert world.said[0][1]["pay"] == pytest.approx(15.1)
    other = world.learner()  # one that has heard of it before
    other.limits(world.task())
    other.answered(1, Limits(600, None))
    assert len(world.said) == 1


def test_a_pause_that_is_asked_for_holds_this_worker_and_the_fleet_once() -> None:
    holds: list[float] = []
    world = World()
    learner = world.learner(lambda _, seconds: holds.append(seconds))
    for _ in range(50):
        learner.refused(replace(TASK, limits=Limits(600, None)), RateLimited("slower", retry_after=3.0), world.now, 0.1)
    assert set(holds) == {3.0}
    assert [verb for verb, _ in world.said] == ["hold"]


def test_a_refusal_does_not_lower_what_is_configured() -> None:
    world = World()
    learner = world.learner()
    configured = replace(TASK, limits=Limits(600, None))
    for _ in range(100):
        learner.refused(configured, RateLimited("slower"), world.now, 0.1)
        world.turn(0.1)
    assert world.said == []
    assert learner.limits(configured) == (600, None)


def test_all_refusals_of_a_moment_lower_the_limit_once() -> None:
    world = World(requests=600, growth=SLOWEST, slowed_at=990.0)
    learner = world.learner()
    task = world.task()
    learner.limits(task)
    learner.answered(1, None)
    for _ in range(100):
        learner.refused(task, RateLimited("slower"), world.now, 0.1)
    assert [verb for verb, _ in world.said] == ["lower"]
    assert world.requests is not None
    assert 500 < world.requests < 600


def test_growth_is_slow_near_the_wall_faster_later_and_forgotten_in_the_end() -> None:
    learnt = Learnt(600, None, SLOWEST, 1000.0)
    assert grown(learnt, 900.0) == 600
    assert grown(learnt, 1030.0) < 615
    assert grown(learnt, 1300.0) > 2000
    assert grown(learnt, 1e6) == pytest.approx(600 * MOST)
    assert grown(Learnt(30, None, RAMP, 1000.0), 1010.0) == pytest.approx(30 * math.exp(RAMP * 10 * (1 + (10 / FASTER) ** 2)))
    world = World(requests=600, growth=SLOWEST, slowed_at=1000.0)
    learner, task = world.learner(), world.task()
    assert learner.limits(task).requests_per_minute == round(600 / MARGIN)
    world.turn(FORGET + 1)
    assert learner.limits(task) == (None, None)
