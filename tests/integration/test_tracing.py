"""What OpenTelemetry is told of a worker's doings, and that a worker does not depend on who listens.

Spans are the same whatever the database, so one server does.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from types import ModuleType

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes as more_of_db
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv.attributes import db_attributes as db
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode

from ai_worker.log import Log
from ai_worker.worker import tracing
from ai_worker.worker.spans import CAPTURE, Spans
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.worker_runs import Run, add_model, add_task, items_of, steady_waits, task_of
from tests.otlp import Receiver, attributes
from tests.servers import Programs

pytestmark = pytest.mark.parametrize("server", ["mariadb"], indirect=True)

SECRET_TEXT = "Ala ma kota i numer 4711."


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as provider, steady_waits():
        yield provider


class Collected:
    """Spans that are kept in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Spans(provider, "shop", provider.shutdown)

    def __call__(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())


def of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def is_within(child: ReadableSpan, parent: ReadableSpan) -> bool:
    return child.parent is not None and parent.context is not None and child.parent.span_id == parent.context.span_id


def test_an_attempt_its_call_its_claim_and_its_commit_are_spans(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    options = json.dumps({"temperature": 0.2, "max_output_tokens": 500})
    model = add_model(sql, fake, "chat", "gpt", options=options)
    id_task = add_task(sql, model, ["Ala ma kota."])
    collected = Collected()
    Run(database_url, tracing=collected.tracing)
    (item,) = items_of(sql, id_task)

    (attempt,) = collected("process correction")
    assert (attempt.kind, attempt.parent, attempt.status.status_code) == (SpanKind.CONSUMER, None, StatusCode.UNSET)
    known = of(attempt)
    assert re.fullmatch(r"[0-9a-f-]{36}", str(known.pop("ai_worker.operation_uuid")))
    assert float(str(known.pop("ai_worker.cost_usd"))) == pytest.approx(float(item["cost"]))
    assert known == {
        messaging.MESSAGING_SYSTEM: "ai_worker",
        messaging.MESSAGING_OPERATION_NAME: "process",
        messaging.MESSAGING_OPERATION_TYPE: messaging.MessagingOperationTypeValues.PROCESS.value,
        messaging.MESSAGING_DESTINATION_NAME: "default",
        messaging.MESSAGING_MESSAGE_ID: str(item["id_task_item"]),
        "ai_worker.task.id": id_task,
        "ai_worker.task.type": "correction",
        "ai_worker.item.id": item["id_task_item"],
        "ai_worker.attempt": 1,
        "ai_worker.outcome": "processed",
    }

    (call,) = collected("chat fake")
    assert (call.kind, call.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    assert is_within(call, attempt)
    known = of(call)
    assert known == {
        gen_ai.GEN_AI_OPERATION_NAME: gen_ai.GenAiOperationNameValues.CHAT.value,
        gen_ai.GEN_AI_PROVIDER_NAME: gen_ai.GenAiProviderNameValues.OPENAI.value,
        gen_ai.GEN_AI_REQUEST_MODEL: "fake",
        gen_ai.GEN_AI_REQUEST_TEMPERATURE: 0.2,
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: 500,
        gen_ai.GEN_AI_OUTPUT_TYPE: gen_ai.GenAiOutputTypeValues.JSON.value,
        gen_ai.GEN_AI_RESPONSE_MODEL: "fake",
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: ("stop",),
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: item["tokens_input"],
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: item["tokens_output"],
        server_attributes.SERVER_ADDRESS: "127.0.0.1",
        server_attributes.SERVER_PORT: fake.port,
        "ai_worker.model": "gpt",
    }

    (claim,) = collected("claim task_item")
    (commit,) = collected("commit task_item")
    for span, operation in (claim, "claim"), (commit, "commit"):
        assert (span.kind, span.parent, span.status.status_code) == (SpanKind.CLIENT, None, StatusCode.UNSET)
        expected = {
            db.DB_SYSTEM_NAME: db.DbSystemNameValues.MYSQL.value,
            db.DB_NAMESPACE: "shop",
            db.DB_COLLECTION_NAME: "task_item",
            db.DB_OPERATION_NAME: operation,
        }
        assert expected.items() <= of(span).items()
    assert (claim.end_time or 0) <= (attempt.start_time or 0) <= (call.start_time or 0)
    assert (call.end_time or 0) <= (attempt.end_time or 0) <= (commit.start_time or 0)


def test_failures_are_told_by_their_kind_alone(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    fake.script(
        Rule("503", times=1, contains="again"),
        Rule("400_content_filter", contains="refused"),
    )
    model = add_model(sql, fake, "chat", "gpt")
    add_task(sql, model, ["Once again."])
    add_task(sql, model, ["To be refused."])
    collected = Collected()
    Run(database_url, tracing=collected.tracing)

    attempts = {str(of(span)["ai_worker.outcome"]): span for span in collected("process correction")}
    calls = collected("chat fake")
    first, second = sorted(
        (call for call in calls if is_within(call, attempts["processed"])), key=lambda span: span.start_time or 0
    )
    assert (of(first)[error_attributes.ERROR_TYPE], first.status.status_code) == ("overloaded", StatusCode.ERROR)
    assert error_attributes.ERROR_TYPE not in of(second)
    assert attempts["processed"].status.status_code is StatusCode.UNSET

    failed = attempts["failed"]
    (call,) = (call for call in calls if is_within(call, failed))
    for span in failed, call:
        assert (of(span)[error_attributes.ERROR_TYPE], span.status.status_code) == ("content_refused", StatusCode.ERROR)
        assert (span.status.description, list(span.events)) == (None, [])  # an error's message may quote a row
    assert of(failed)["ai_worker.error_kind"] == "content_refused"


@pytest.mark.parametrize("captures", [False, True])
def test_texts_are_in_no_span_unless_they_are_asked_for(
    database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    if captures:
        monkeypatch.setenv(CAPTURE, "true")
    fake.script(Rule("400_content_filter", contains="refused"))
    model = add_model(sql, fake, "chat", "gpt")
    add_task(sql, model, [SECRET_TEXT, f"{SECRET_TEXT} refused"], description="Treat 0815 well.")
    collected = Collected()
    Run(database_url, tracing=collected.tracing)

    everything = "".join(span.to_json() for span in collected.all())
    assert ("4711" in everything, "0815" in everything) == (captures, captures)
    if captures:
        (call,) = (span for span in collected("chat fake") if gen_ai.GEN_AI_OUTPUT_MESSAGES in of(span))
        (asked,) = json.loads(str(of(call)[gen_ai.GEN_AI_INPUT_MESSAGES]))
        (said,) = json.loads(str(of(call)[gen_ai.GEN_AI_OUTPUT_MESSAGES]))
        (system,) = json.loads(str(of(call)[gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS]))
        assert asked["role"] == "user"
        assert SECRET_TEXT in asked["parts"][0]["content"]
        assert (said["role"], said["finish_reason"]) == ("assistant", "stop")
        assert "4711" in said["parts"][0]["content"]
        assert "0815" in system["content"] or "0815" in asked["parts"][0]["content"]


def test_every_attribute_is_one_of_the_conventions_or_begins_with_our_name(
    database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(module: ModuleType) -> set[str]:
        return {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}

    monkeypatch.setenv(CAPTURE, "true")
    fake.script(
        Rule("answer", contains="thought", tokens=[100, 50, 60, 20]),
        Rule("429_quota", contains="stopped"),
        Rule("empty", times=1, contains="once more"),
    )
    model = add_model(sql, fake, "chat", "gpt")
    gemini = add_model(sql, fake, "gemini", "gemini", options=json.dumps({"top_p": 0.9}))
    add_task(sql, model, ["It thought.", "once more", "Another one."], max_attempts=1)
    add_task(sql, gemini, ["And this one."])
    collected = Collected()
    Run(database_url, tracing=collected.tracing)

    conventions = names(gen_ai) | names(messaging) | names(db) | names(more_of_db)
    conventions |= names(error_attributes) | names(server_attributes)
    seen = {name for span in collected.all() for name in of(span)}
    assert {name for name in seen - conventions if not name.startswith("ai_worker.")} == set()
    assert {
        gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
        gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
        gen_ai.GEN_AI_REQUEST_TOP_P,
        gen_ai.GEN_AI_RESPONSE_ID,
        db.DB_OPERATION_BATCH_SIZE,
        more_of_db.DB_RESPONSE_RETURNED_ROWS,
    } <= seen


def test_a_run_sends_its_spans_before_it_ends(programs: Programs, sql: Sql) -> None:
    model = add_model(sql, None, "echo", "echo")
    id_task = add_task(sql, model, ["one", "two", "three"])
    with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_SERVICE_NAME": "words"}
        done = programs.run("run", env=env)
        assert done.returncode == 0, done.stderr
    attempts = [span for span in receiver.spans if span.name == "process correction"]
    assert {attributes(span)["ai_worker.task.id"] for span in attempts} == {id_task}
    calls = [span for span in receiver.spans if span.name == "chat fake"]
    assert {span.parent_span_id for span in calls} == {span.span_id for span in attempts}
    assert len(calls) == 3
    assert receiver.resources[0].items() >= {"service.name": "words", "telemetry.sdk.language": "python"}.items()
    assert "service.version" in receiver.resources[0]


def test_a_receiver_that_never_answers_harms_nothing(database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_model(sql, None, "echo", "echo")
    id_task = add_task(sql, model, [f"text {number}" for number in range(300)])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # it is being sent to while the work is done
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "50")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "20")
        traces = tracing.begin("auto", "shop", Log())
        assert traces is not tracing.OFF
        Run(database_url, tracing=traces)
        began = time.monotonic()
        traces.close(0.2)
        assert time.monotonic() - began < 1.5
    assert task_of(sql, id_task)["records_processed"] == 300
