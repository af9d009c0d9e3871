"""What is counted: every metric with its labels and its meaning, and what one worker has counted so far.

The vocabulary is the only place where a metric gets its name: what a worker counts, what the tables hold, what `/metrics` of the
web and of a worker give, and what the dashboards and alert rules in monitoring/ ask for, all come from here, and tests hold them
to it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from typing import Final, NamedTuple, ParamSpec, TypeVar

from ai_worker.models import NO_USAGE, Lane, Outcome, OutcomeKind, Usage

P = ParamSpec("P")
T = TypeVar("T")

PREFIX: Final = "ai_worker_"

LATENCY_BUCKETS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""Seconds that an attempt takes, each the upper bound of a bucket; one more takes what was longer."""
DATABASE_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""The same for what the database does."""

MOST_KINDS: Final = 200  # of errors, told apart by one worker; a plug-in names its own, and each is a time series for good
OTHER: Final = "other"  # kind of the errors beyond
SUM: Final = "sum"  # label of a histogram's sum, beside those of its buckets
INFINITY: Final = "+Inf"  # label of the last bucket, in Prometheus's spelling
LATE: Final = "late"  # kind of a lost attempt whose own worker has told of it, too late


class Kind(Enum):
    """How a metric behaves."""

    GAUGE = auto()
    COUNTER = auto()
    HISTOGRAM = auto()


class Source(Enum):
    """Who gives a metric: the fleet out of the database (the web's `/metrics`), one process (`--metrics-port`), or both."""

    FLEET = auto()
    PROCESS = auto()
    BOTH = auto()


class Metric(Enum):
    """Every metric: its name without the prefix, kind, labels, source, help."""

    # What is there.
    ITEMS = (
        "items",
        Kind.GAUGE,
        "queue status",
        Source.FLEET,
        "Open items of tasks that go on, by queue and status; large numbers are estimates",
    )
    PAUSED_ITEMS = (
        "paused_items",
        Kind.GAUGE,
        "queue",
        Source.FLEET,
        "Open items of tasks that are paused; large numbers are estimates",
    )
    OLDEST_AGE = (
        "oldest_pending_age_seconds",
        Kind.GAUGE,
        "queue",
        Source.FLEET,
        "For how long the oldest item that could be claimed has been claimable",
    )
    TASKS = ("tasks", Kind.GAUGE, "status", Source.FLEET, "Tasks that have not ended, by status")
    IN_FLIGHT = ("in_flight", Kind.GAUGE, "model", Source.BOTH, "Items that are being worked on, by model")
    WORKERS = ("workers", Kind.GAUGE, "state", Source.FLEET, "Worker processes that have not ended, by state")
    MODEL_STOPPED = (
        "model_stopped",
        Kind.GAUGE,
        "model kind",
        Source.FLEET,
        "1 for a model that is stopped for every worker, by what stopped it",
    )
    REQUEST_LIMIT = (
        "model_limit_requests_per_minute",
        Kind.GAUGE,
        "model",
        Source.FLEET,
        "Requests per minute that a model takes, told or learnt",
    )
    TOKEN_LIMIT = (
        "model_limit_tokens_per_minute",
        Kind.GAUGE,
        "model",
        Source.FLEET,
        "Tokens per minute that a model takes, told or learnt",
    )
    FLIGHT_LIMIT = ("model_limit_in_flight", Kind.GAUGE, "model", Source.FLEET, "Calls that a model may have in flight")
    SPENT_TODAY = ("model_spent_today_usd", Kind.GAUGE, "model", Source.FLEET, "USD that a model has cost on this UTC day")
    DAY_BUDGET = ("model_budget_per_day_usd", Kind.GAUGE, "model", Source.FLEET, "USD that a model may cost in a UTC day")
    BUDGET_USED = (
        "task_budget_used_ratio",
        Kind.GAUGE,
        "",
        Source.FLEET,
        "The largest share of its budget that any open task has spent",
    )
    SCHEDULE_OVERDUE = (
        "schedule_overdue_seconds",
        Kind.GAUGE,
        "",
        Source.FLEET,
        "For how long the schedule that is most overdue has been due; 0 where none is",
    )
    SCHEMA_VERSION = ("schema_version", Kind.GAUGE, "", Source.FLEET, "The latest migration of the database")
    BUILD_INFO = ("build_info", Kind.GAUGE, "version", Source.BOTH, "1; the label says which version of AI Worker answers")
    # What has happened.
    ATTEMPTS = (
        "attempts_total",
        Kind.COUNTER,
        "model outcome error_kind",
        Source.BOTH,
        "Attempts at items that ended, by how and why",
    )
    TOKENS = (
        "tokens_total",
        Kind.COUNTER,
        "model type",
        Source.BOTH,
        "Tokens that models have taken and given; cached ones are input too, reasoning ones output",
    )
    COST = ("cost_usd_total", Kind.COUNTER, "model", Source.BOTH, "USD of calls whose price is known")
    CLAIMS = ("claims_total", Kind.COUNTER, "", Source.BOTH, "Claims that brought items")
    CLAIMED_ITEMS = ("claimed_items_total", Kind.COUNTER, "", Source.BOTH, "Items that were claimed")
    RESCUED_ITEMS = ("rescued_items_total", Kind.COUNTER, "", Source.BOTH, "Items that were taken back from dead workers")
    CLAIMS_LOST = ("claims_lost_total", Kind.COUNTER, "", Source.BOTH, "Results that came after somebody else's claim")
    LEASES_LOST = ("leases_lost_total", Kind.COUNTER, "", Source.BOTH, "Times that a living worker lost its right to its claims")
    DEADLOCKS = (
        "deadlocks_total",
        Kind.COUNTER,
        "",
        Source.BOTH,
        "Transactions that were run again after a deadlock or a lock timeout",
    )
    DATABASE_LOST = ("database_lost_total", Kind.COUNTER, "", Source.BOTH, "Connections to the database that were lost")
    RATE_LIMITED = (
        "rate_limited_total",
        Kind.COUNTER,
        "model",
        Source.BOTH,
        "Calls that a provider refused because there were too many",
    )
    CACHE_HITS = ("cache_hits_total", Kind.COUNTER, "", Source.BOTH, "Items that were answered by the result of identical work")
    # How long it takes.
    CLAIM_DURATION = (
        "claim_duration_seconds",
        Kind.HISTOGRAM,
        "",
        Source.BOTH,
        "How long a claim takes in the database, also one that finds nothing",
    )
    COMMIT_DURATION = (
        "commit_duration_seconds",
        Kind.HISTOGRAM,
        "",
        Source.BOTH,
        "How long it takes to store a group of results",
    )
    ATTEMPT_DURATION = (
        "attempt_duration_seconds",
        Kind.HISTOGRAM,
        "model",
        Source.BOTH,
        "How long an attempt takes that asks a model, waits between its calls included",
    )
    # One process.
    LOOP_LAG = ("loop_lag_seconds", Kind.GAUGE, "", Source.PROCESS, "By how much the worker's loop was late at its latest tick")
    CONCURRENCY = ("concurrency", Kind.GAUGE, "", Source.PROCESS, "Model calls that this worker may have in flight")
    CONNECTIONS = ("database_connections", Kind.GAUGE, "", Source.PROCESS, "Connections to the database that this worker holds")

    def __init__(self, key: str, kind: Kind, labels: str, source: Source, text: str) -> None:
        self.key = key
        self.kind = kind
        self.labels = tuple(labels.split())
        self.source = source
        self.help = text

    @property
    def full_name(self) -> str:
        """As Prometheus knows it."""
        return PREFIX + self.key

    @property
    def buckets(self) -> tuple[float, ...]:
        """The upper bounds of a histogram's buckets in seconds, without the last, which has none."""
        return LATENCY_BUCKETS if self is Metric.ATTEMPT_DURATION else DATABASE_BUCKETS

    def is_of(self, source: Source) -> bool:
        """Whether this source gives it."""
        return self.source in {source, Source.BOTH}


class Key(NamedTuple):
    """One time series of a counter or histogram, as `worker_counter` names it: see `labels_of`."""

    name: str
    id_ai_model: int = 0
    label: str = ""


def labels_of(metric: Metric, key: Key, model: str) -> tuple[str, ...]:
    """The values of a counter's labels, in their order; `model` is the name of the key's model."""
    others = tuple(key.label.split("/", 1)) if metric is Metric.ATTEMPTS else (key.label,)
    return (model, *others)[: len(metric.labels)] if metric.labels[:1] == ("model",) else others[: len(metric.labels)]


def bounds_of(metric: Metric) -> tuple[str, ...]:
    """The labels of a histogram's buckets, as Prometheus spells them; with the last, which has no bound."""
    return (*map(str, metric.buckets), INFINITY)


@dataclass(slots=True)
class Work:
    """What attempts on one model have come to. `cost` is in USD, None where no price was known."""

    processed: int = 0
    failed: int = 0
    retried: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    cost: Decimal | None = None
    milliseconds: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))

    def book(self, usage: Usage, cost: Decimal | None) -> None:
        if usage is not NO_USAGE:
            self.tokens_input += usage.tokens_input
            self.tokens_output += usage.tokens_output
            self.tokens_cached += usage.tokens_cached
            self.tokens_reasoning += usage.tokens_reasoning
        if cost is not None:
            self.cost = cost if self.cost is None else self.cost + cost

    def __add__(self, other: Work) -> Work:
        return self._with(other, 1)

    def __sub__(self, other: Work) -> Work:
        return self._with(other, -1)

    def _with(self, other: Work, sign: int) -> Work:
        cost = other.cost if self.cost is None else self.cost if other.cost is None else self.cost + sign * other.cost
        return Work(
            self.processed + sign * other.processed,
            self.failed + sign * other.failed,
            self.retried + sign * other.retried,
            self.tokens_input + sign * other.tokens_input,
            self.tokens_output + sign * other.tokens_output,
            self.tokens_cached + sign * other.tokens_cached,
            self.tokens_reasoning + sign * other.tokens_reasoning,
            cost,
            self.milliseconds + sign * other.milliseconds,
            [mine + sign * theirs for mine, theirs in zip(self.latencies, other.latencies, strict=True)],
        )


class Reading(NamedTuple):
    """All counts at one moment: the counters, and the work by model."""

    values: Mapping[Key, float]
    work: Mapping[int, Work]


class Counts:
    """What one worker counts. Callable from any thread; it costs an item well under a microsecond, and a call nothing.

    Parameters
    ----------
    others: counters that somebody else keeps, asked for whenever the counts are read.
    """

    def __init__(self, others: Callable[[], Mapping[Metric, float]] = dict) -> None:
        self._others = others
        self._lock = threading.Lock()
        self._values: Counter[Key] = Counter()
        self._seconds: dict[Key, float] = {}  # sums of histograms
        # By model, outcome, error kind; results without one, which are nearly all, are in the work alone.
        self._ends: Counter[tuple[int, OutcomeKind, str]] = Counter()
        self._kinds: set[str] = set()
        self._work: dict[int, Work] = {}

    # ----- what happens

    def add(self, metric: Metric, amount: int = 1, id_ai_model: int = 0) -> None:
        """So many more of a counter."""
        with self._lock:
            self._values[Key(metric.key, id_ai_model)] += amount

    def claimed(self, items: int) -> None:
        """A claim has brought so many items."""
        with self._lock:
            self._values[Key(Metric.CLAIMS.key)] += 1
            self._values[Key(Metric.CLAIMED_ITEMS.key)] += items

    def rescued(self, items: int, models: Mapping[int, int]) -> None:
        """So many items were taken back from the dead, and their attempts booked as lost, by model."""
        with self._lock:
            self._values[Key(Metric.RESCUED_ITEMS.key)] += items
            for id_ai_model, count in models.items():
                self._ends[id_ai_model, OutcomeKind.LOST, "lost"] += count

    def timed(self, metric: Metric, verb: Callable[P, T]) -> Callable[P, T]:
        """The verb; how long it takes is observed, also where it raises."""
        bounds, labels = metric.buckets, bounds_of(metric)
        keys = [Key(metric.key, 0, label) for label in labels]
        total = Key(metric.key, 0, SUM)

        def done(*arguments: P.args, **named: P.kwargs) -> T:
            began = time.monotonic()
            try:
                return verb(*arguments, **named)
            finally:
                seconds = time.monotonic() - began
                with self._lock:
                    self._values[keys[bisect_left(bounds, seconds)]] += 1
                    self._seconds[total] = self._seconds.get(total, 0.0) + seconds

        return done

    def booked(self, id_ai_model: int, usage: Usage, cost: Decimal | None) -> None:
        """A step of an attempt is stored, with what it cost."""
        with self._lock:
            self._of(id_ai_model).book(usage, cost)

    def attempted(self, stored: Iterable[Outcome], lost: Sequence[Outcome] = ()) -> None:
        """These outcomes were committed; `lost` ones came too late, and count as what the ledger says of them."""
        hits = 0
        with self._lock:
            work, known = _NO_WORK, -1
            for outcome in stored:
                id_ai_model, kind = outcome.item.task.id_ai_model, outcome.kind
                if id_ai_model != known:
                    work, known = self._of(id_ai_model), id_ai_model
                if kind is OutcomeKind.PROCESSED:
                    work.processed += 1
                    hits += outcome.lane is Lane.CACHE
                    if outcome.error_kind is not None:
                        self._end(id_ai_model, kind, outcome.error_kind)
                else:
                    work.failed += kind is OutcomeKind.FAILED
                    work.retried += kind is OutcomeKind.RETRY
                    self._end(id_ai_model, kind, outcome.error_kind or "")
                _book(work, outcome)
            for outcome in lost:
                if outcome.usage != NO_USAGE or outcome.kind is OutcomeKind.PROCESSED:
                    id_ai_model = outcome.item.task.id_ai_model
                    self._end(id_ai_model, OutcomeKind.LOST, outcome.error_kind or LATE)
                    _book(self._of(id_ai_model), outcome)
            if hits:
                self._values[Key(Metric.CACHE_HITS.key)] += hits
            if lost:
                self._values[Key(Metric.CLAIMS_LOST.key)] += len(lost)

    def _end(self, id_ai_model: int, kind: OutcomeKind, error: str) -> None:
        self._ends[id_ai_model, kind, error if error in self._kinds else self._known(error)] += 1

    def _known(self, error: str) -> str:
        if not error:
            return error
        if len(self._kinds) >= MOST_KINDS:
            return OTHER
        self._kinds.add(error)
        return error

    def _of(self, id_ai_model: int) -> Work:
        return self._work.setdefault(id_ai_model, Work())

    # ----- what has happened

    def read(self) -> Reading:
        """All counts so far."""
        with self._lock:
            values: dict[Key, float] = {**self._values, **self._seconds}
            ends = dict(self._ends)
            work = {id_ai_model: each + Work() for id_ai_model, each in self._work.items()}
        plain = {id_ai_model: each.processed for id_ai_model, each in work.items()}
        for (id_ai_model, kind, _), count in ends.items():
            if kind is OutcomeKind.PROCESSED:
                plain[id_ai_model] -= count
        ends |= {(id_ai_model, OutcomeKind.PROCESSED, ""): count for id_ai_model, count in plain.items()}
        for (id_ai_model, kind, error), count in ends.items():
            # What was passed on stands as postponed in the ledger, and so it does here.
            outcome = OutcomeKind.POSTPONED if kind is OutcomeKind.PASSED_ON else kind
            key = Key(Metric.ATTEMPTS.key, id_ai_model, f"{outcome.value}/{error}")
            values[key] = values.get(key, 0) + count
        for id_ai_model, each in work.items():
            values.update(_series(id_ai_model, each))
        values.update({Key(metric.key): value for metric, value in self._others().items()})
        return Reading({key: value for key, value in values.items() if value}, work)


def _book(work: Work, outcome: Outcome) -> None:
    if outcome.usage is not NO_USAGE or outcome.cost is not None:
        work.book(outcome.usage, outcome.cost)
    latency = outcome.latency_ms
    if latency is not None and outcome.lane is not Lane.CACHE:
        work.milliseconds += latency
        work.latencies[bisect_left(_BOUNDS_MS, latency)] += 1


_NO_WORK: Final = Work()
_BOUNDS_MS: Final = tuple(round(1000 * bound) for bound in LATENCY_BUCKETS)


def _series(id_ai_model: int, work: Work) -> dict[Key, float]:
    tokens = {
        "input": work.tokens_input,
        "output": work.tokens_output,
        "cached": work.tokens_cached,
        "reasoning": work.tokens_reasoning,
    }
    series: dict[Key, float] = {Key(Metric.TOKENS.key, id_ai_model, name): count for name, count in tokens.items()}
    series[Key(Metric.COST.key, id_ai_model)] = float(work.cost or 0)
    name = Metric.ATTEMPT_DURATION.key
    series |= {
        Key(name, id_ai_model, label): n for label, n in zip(bounds_of(Metric.ATTEMPT_DURATION), work.latencies, strict=True)
    }
    series[Key(name, id_ai_model, SUM)] = work.milliseconds / 1000
    return series
