"""What becomes of item, attempt, task and model for each fault of a provider: the table of faults, on each API that has them.

All items of the table go through the same worker at the same time; each row is then looked at by itself. A fault that `stays`
strikes each call, one that `goes away` only the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.models import Filters
from tests.acceptance.fleet import plain_sql
from tests.conftest import Sql
from tests.fake_provider import FAULTS, FakeProvider, Rule, Tokens, correct, tokens_for
from tests.fake_provider.faults import CONDITIONAL
from tests.integration.counted import assert_counted
from tests.integration.worker_runs import (
    APIS,
    STRETCHED,
    Run,
    add_model,
    add_task,
    attempts_of,
    items_of,
    make_due,
    make_probes_due,
    model_of,
    steady_waits,
    task_of,
)
from tests.servers import TestDatabase, TestServer

PROCESSED = "PROCESSED"  # the fault is none
RETRIED = "RETRIED"  # DEFERRED, the attempt charged; ERROR after the third
POSTPONED = "POSTPONED"  # DEFERRED, the attempt not charged, however often
DEAD = "DEAD"  # ERROR at once

NOTHING, INPUT, ANSWER = "nothing", "input", "answer"  # what a call costs: no tokens known, those of the prompt, or all


@dataclass(frozen=True)
class Row:
    """One row of the table.

    fault: a name of the fake provider's.
    fate: of the item after the first attempt.
    kind: `error_kind` of item and attempt.
    calls: how often the provider is asked within one attempt.
    paid: what each of these calls costs.
    delay: until the next attempt, in seconds.
    but: what is different on an API.
    """

    fault: str
    fate: str
    kind: str | None = None
    calls: int = 1
    paid: str = NOTHING
    delay: float = 1.0  # half of the first ceiling
    but: dict[str, str] = field(default_factory=dict)

    def tokens(self, api: str, text: str) -> Tokens:
        """What one attempt costs while the fault stays."""
        paid, full = self.but.get(api, self.paid), tokens_for(text)
        each = {NOTHING: Tokens(0, 0), INPUT: Tokens(full.input, 0), ANSWER: full}[paid]
        return Tokens(each.input * self.calls, each.output * self.calls)


LATER = 8.0  # half of the fourth ceiling: five calls were in vain

HANG = Row("hang", RETRIED, "network", calls=5)

TABLE = [
    # What is wrong with the item itself: a dead letter at once, nothing is tried again.
    Row("400", DEAD, "invalid_request"),
    Row("400_context_length", DEAD, "input_too_long"),
    Row("400_content_filter", DEAD, "content_refused"),
    Row("413", DEAD, "input_too_long"),
    Row("422", DEAD, "invalid_request"),
    Row("refused", DEAD, "content_refused", paid=ANSWER),
    Row("filtered", DEAD, "content_refused", paid=ANSWER),
    Row("blocked", DEAD, "content_refused", paid=ANSWER, but={"gemini": INPUT}),
    # Told to slow down: the same call again, up to five times; then the item waits, and its attempt is not charged.
    Row("429", POSTPONED, "rate_limited", calls=5, delay=LATER),
    Row("429_retry_after", POSTPONED, "rate_limited", calls=5, delay=LATER),  # more than the 7 s that it asks for
    Row("429_retry_after_ms", POSTPONED, "rate_limited", calls=5, delay=LATER),
    # The provider is in trouble: the same call again, up to five times; then the attempt is charged.
    Row("408", RETRIED, "overloaded", calls=5),
    Row("409", RETRIED, "overloaded", calls=5),
    Row("500", RETRIED, "overloaded", calls=5),
    Row("500_broken_json", RETRIED, "overloaded", calls=5),
    Row("502_html", RETRIED, "overloaded", calls=5),
    Row("503", RETRIED, "overloaded", calls=5, delay=3 * 1.125),  # it asks for 3 s, and we add up to a quarter
    Row("529", RETRIED, "overloaded", calls=5),
    Row("drop", RETRIED, "network", calls=5),
    HANG,
    Row("error_in_200", RETRIED, "overloaded", calls=5, paid=INPUT, but={"responses": ANSWER, "gemini": NOTHING}),
    # An answer that cannot be used: paid for where it says so; one call per attempt, and the attempt is charged.
    Row("html", RETRIED, "bad_answer"),
    Row("broken_json", RETRIED, "bad_answer"),
    Row("not_an_object", RETRIED, "bad_answer"),
    Row("no_answer_in_it", RETRIED, "bad_answer"),
    Row("empty", RETRIED, "bad_answer", paid=ANSWER),
    Row("empty_cut_short", RETRIED, "bad_answer", paid=ANSWER),
    Row("cut_short", RETRIED, "bad_answer", paid=ANSWER),
    Row("wrong_shape", RETRIED, "bad_answer", paid=ANSWER),
    # Only slow.
    Row("slow", PROCESSED, paid=ANSWER),
]


@dataclass(frozen=True)
class Stop:
    """A fault that stops the model for everybody: `kind` is why, `probe` after how many seconds one call may try it again."""

    fault: str
    kind: str
    probe: dict[str, float] = field(default_factory=dict)


STOPS = [
    Stop("400_bad_key", "access_denied"),
    Stop("400_model", "model_unknown"),
    Stop("400_option", "model_stopped"),
    Stop("401", "access_denied"),
    Stop("402", "quota_exhausted"),
    Stop("403", "access_denied"),
    Stop("404", "model_unknown"),
    Stop("429_quota", "quota_exhausted", {"gemini": 37024}),
    Stop("429_no_quota_ever", "quota_exhausted", {"gemini": 39}),
]


STAYS, GOES_AWAY = "stays", "goes away"


@dataclass(frozen=True)
class Seen:
    """One item and what belongs to it, as the database shows it, and how often the provider was asked for it so far."""

    text: str
    item: dict[str, Any]
    task: dict[str, Any]
    attempts: list[dict[str, Any]]
    model: dict[str, Any]
    calls: int


Look = dict[tuple[str, str, str], Seen]  # by fault, API, and STAYS or GOES_AWAY


class Experiment:
    """A part of the table, put through one worker: an item in a task of its own for each fault, API and duration."""

    def __init__(self, sql: Sql, url: str, fake: FakeProvider) -> None:
        self._sql, self._url, self._fake = sql, url, fake
        self._tasks: dict[tuple[str, str, str], tuple[int, int, str]] = {}
        self._models: list[str] = []

    def insert(self, faults: list[str], durations: tuple[str, ...], *, models_of_their_own: bool = False) -> int:
        """Inserts the items and scripts the provider; how many items."""
        rules, ids = [], {}
        for fault, api, duration in itertools.product(faults, APIS, durations):
            name = f"{api} {fault if models_of_their_own else faults[0]}"
            if name not in ids:
                # With a limit of its own, or the table's 429s would teach the worker one that the other rows have to wait for.
                ids[name] = add_model(self._sql, self._fake, api, name, max_requests_per_minute=1_000_000)
            text = f"Żółw, {fault}, {api}, {duration}: wogóle nie wie 🐢"
            self._tasks[fault, api, duration] = add_task(self._sql, ids[name], [text]), ids[name], text
            delay = 400 if fault == "slow" else 0
            rules.append(Rule(fault, times=1 if duration == GOES_AWAY else None, contains=text, delay_ms=delay))
        self._fake.script(*rules)
        self._models = list(ids)
        return len(rules)

    def run(self, **options: Any) -> Run:
        with steady_waits():
            return Run(self._url, filters=Filters(models=tuple(self._models)), **options)

    def look(self) -> Look:
        found = {}
        for key, (id_task, id_ai_model, text) in self._tasks.items():
            (item,) = items_of(self._sql, id_task)
            task, model = task_of(self._sql, id_task), model_of(self._sql, id_ai_model)
            found[key] = Seen(text, item, task, attempts_of(self._sql, id_task), model, self._fake.per_text[text])
        return found


@pytest.fixture(scope="module")
def laboratory(server: TestServer, _shared_database: TestDatabase) -> Iterator[tuple[Sql, str, FakeProvider]]:
    """Plain SQL, the database's URL and a fake provider, for experiments that many tests look at."""
    database = parse_database_url(_shared_database.url).database
    with FakeProvider() as fake, server.connect(database) as connection:
        yield plain_sql(connection), _shared_database.lend(), fake
    _shared_database.empty()


@pytest.fixture(scope="module")
def table(laboratory: tuple[Sql, str, FakeProvider]) -> tuple[Look, Look]:
    """How the table's items stand after one attempt, and when two more have become due and were made."""
    sql = laboratory[0]
    first: Look = {}
    third: Look = {}
    others = [row.fault for row in TABLE if row is not HANG]
    for faults, timeout, later_timeout in ((others, 30.0, 30.0), ([HANG.fault], 1.2, 0.3)):
        experiment = Experiment(*laboratory)
        count = experiment.insert(faults, (STAYS, GOES_AWAY))
        experiment.run(max_items=count, request_timeout=timeout)
        first |= experiment.look()
        for _ in range(2):
            experiment.run(max_items=make_due(sql), request_timeout=later_timeout)
        third |= experiment.look()
        sql("UPDATE task_item SET status_id = 5, available_at = NULL WHERE status_id = 4")  # out of the next part's way
    return first, third


def test_the_table_is_counted_as_the_ledger_has_it(table: object, laboratory: tuple[Sql, str, FakeProvider]) -> None:
    assert_counted(laboratory[0])


ROWS = pytest.mark.parametrize("row", TABLE, ids=[row.fault for row in TABLE])
ON_EACH_API = pytest.mark.parametrize("api", APIS)


def assert_calls(seen: Seen, row: Row, calls: int) -> None:
    """How many calls the provider saw; of those that time out, one or two may have done so before it saw them."""
    assert calls - (2 if row is HANG else 0) <= seen.calls <= calls


@ON_EACH_API
@ROWS
def test_a_fault_that_stays_after_the_first_attempt(table: tuple[Look, Look], row: Row, api: str) -> None:
    seen = table[0][row.fault, api, STAYS]
    cost = row.tokens(api, seen.text)
    charged = 0 if row.fate == POSTPONED else 1
    assert_calls(seen, row, row.calls)
    assert seen.item["error_kind"] == row.kind
    assert bool(seen.item["error_message"]) == bool(row.kind)
    assert (seen.item["attempt"], seen.item["lost_count"]) == (charged, 0)
    assert seen.item["text_corrected"] == (correct(seen.text) if row.fate == PROCESSED else None)
    assert seen.item["status"] == {RETRIED: "DEFERRED", POSTPONED: "DEFERRED", DEAD: "ERROR"}.get(row.fate, PROCESSED)
    assert (seen.item["finished_at"] is not None) == (row.fate in {DEAD, PROCESSED})
    delay = None if seen.item["delay"] is None else float(seen.item["delay"]) / STRETCHED
    assert delay == (pytest.approx(row.delay, abs=0.01) if row.fate in {RETRIED, POSTPONED} else None)
    assert_paid(seen, cost)

    outcome = {RETRIED: "retry", POSTPONED: "postponed", DEAD: "failed"}.get(row.fate, "processed")
    (attempt,) = seen.attempts
    assert (attempt["outcome"], attempt["error_kind"], attempt["attempt"]) == (outcome, row.kind, 1)
    assert attempt["error_message"] == seen.item["error_message"]

    ended = {DEAD: "ERROR", PROCESSED: "COMPLETED"}.get(row.fate, "IN_PROGRESS")
    assert seen.task["status"] == ended
    assert (seen.task["finished_at"] is not None) == (ended != "IN_PROGRESS")
    assert (seen.task["records_processed"], seen.task["records_failed"]) == (row.fate == PROCESSED, row.fate == DEAD)
    assert seen.model["stopped_at"] is None


@ON_EACH_API
@ROWS
def test_a_fault_that_stays_for_good(table: tuple[Look, Look], row: Row, api: str) -> None:
    """Charged attempts end after three, with a dead letter; being told to slow down never does; a dead letter is left alone."""
    seen = table[1][row.fault, api, STAYS]
    attempts = 1 if row.fate in {DEAD, PROCESSED} else 3
    cost = row.tokens(api, seen.text)
    assert_calls(seen, row, row.calls * attempts)
    assert_paid(seen, Tokens(cost.input * attempts, cost.output * attempts))
    outcomes = [attempt["outcome"] for attempt in seen.attempts]
    numbers = [attempt["attempt"] for attempt in seen.attempts]
    ends = (seen.item["attempt"], seen.task["status"], seen.task["records_processed"], seen.task["records_failed"])
    if row.fate == RETRIED:
        assert (outcomes, numbers) == (["retry", "retry", "failed"], [1, 2, 3])
        assert ends == (3, "ERROR", 0, 1)
        assert (seen.item["status"], seen.item["error_kind"], seen.item["available_at"]) == ("ERROR", row.kind, None)
    elif row.fate == POSTPONED:
        assert (outcomes, numbers) == (["postponed"] * 3, [1, 1, 1])
        assert ends == (0, "IN_PROGRESS", 0, 0)
        assert (seen.item["status"], seen.item["error_kind"]) == ("DEFERRED", row.kind)
    else:
        assert outcomes == ["failed" if row.fate == DEAD else "processed"]
        assert ends == (1, "ERROR" if row.fate == DEAD else "COMPLETED", row.fate == PROCESSED, row.fate == DEAD)


@ON_EACH_API
@pytest.mark.parametrize("row", [row for row in TABLE if row.fate != DEAD], ids=lambda row: row.fault)
def test_a_fault_that_goes_away(table: tuple[Look, Look], row: Row, api: str) -> None:
    """PROCESSED in the first attempt where the call was made again, else in the second; what the fault cost is counted too."""
    is_call_retried = row.calls > 1
    first, last = table[0][row.fault, api, GOES_AWAY], table[1][row.fault, api, GOES_AWAY]
    attempts = 1 if is_call_retried or row.fate == PROCESSED else 2
    assert first.item["status"] == (PROCESSED if attempts == 1 else "DEFERRED")
    assert last.item["status"] == PROCESSED
    assert last.item["text_corrected"] == correct(last.text)
    assert (last.item["attempt"], last.item["error_kind"], last.item["error_message"]) == (attempts, None, None)
    assert [attempt["outcome"] for attempt in last.attempts] == ["retry", "processed"][-attempts:]
    assert last.calls == (1 if row.fate == PROCESSED else 2)
    failed, answer = row.tokens(api, last.text), tokens_for(last.text)
    wasted = Tokens(0, 0) if row.fate == PROCESSED else Tokens(failed.input // row.calls, failed.output // row.calls)
    assert_paid(last, Tokens(wasted.input + answer.input, wasted.output + answer.output))
    assert (last.task["status"], last.task["records_processed"], last.task["records_failed"]) == ("COMPLETED", 1, 0)


def assert_paid(seen: Seen, tokens: Tokens) -> None:
    """Item, attempts and task agree on what was used, and on its price: 1 USD for a million tokens in, 2 for a million out."""
    cost = Decimal(tokens.input + 2 * tokens.output) / 1_000_000
    for row in (seen.item, seen.task):
        assert (row["tokens_input"], row["tokens_output"]) == (tokens.input, tokens.output)
        assert (row["cost"] or 0) == cost
    assert sum(attempt["tokens_input"] for attempt in seen.attempts) == tokens.input
    assert sum(attempt["tokens_output"] for attempt in seen.attempts) == tokens.output
    assert sum(attempt["cost"] or 0 for attempt in seen.attempts) == cost


@pytest.fixture(scope="module")
def stops(laboratory: tuple[Sql, str, FakeProvider]) -> tuple[Look, Look]:
    """How items and models stand once the faults that stop a model have struck, and when the provider has recovered."""
    sql, _, fake = laboratory
    experiment = Experiment(*laboratory)
    experiment.insert([stop.fault for stop in STOPS], (STAYS,), models_of_their_own=True)
    run = experiment.run()
    assert len(run.summary.stopped_models) == len(STOPS) * len(APIS)
    stopped = experiment.look()
    fake.script()
    make_probes_due(sql)
    assert experiment.run().summary.stopped_models == {}
    return stopped, experiment.look()


@ON_EACH_API
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.fault)
def test_a_fault_that_stops_the_model(stops: tuple[Look, Look], stop: Stop, api: str) -> None:
    """The item waits as if it had never been claimed; the model says why it stopped and when it will be tried again."""
    seen = stops[0][stop.fault, api, STAYS]
    assert (seen.item["status"], seen.item["attempt"], seen.item["error_kind"]) == ("PENDING", 0, None)
    assert (seen.calls, seen.attempts) == (1, [])
    assert_paid(seen, Tokens(0, 0))
    assert (seen.task["status"], seen.task["records_processed"], seen.task["records_failed"]) == ("IN_PROGRESS", 0, 0)
    assert seen.model["stopped_kind"] == stop.kind
    assert seen.model["stopped_reason"].startswith("HTTP 4")
    assert float(seen.model["probe_seconds"]) == pytest.approx(stop.probe.get(api, 300), abs=0.1)

    after = stops[1][stop.fault, api, STAYS]
    assert (after.item["status"], after.item["attempt"], after.calls) == (PROCESSED, 1, 2)
    assert (after.model["stopped_at"], after.model["stopped_kind"], after.model["probe_at"]) == (None, None, None)
    assert_paid(after, tokens_for(after.text))


def test_every_fault_of_the_provider_is_in_the_tables() -> None:
    """But those that ask for another dialect, which the tests of the providers cover, and the answer that is none."""
    dialects = set(CONDITIONAL)
    assert {row.fault for row in TABLE} | {stop.fault for stop in STOPS} == FAULTS - dialects - {"answer"}
