"""The spans of a worker: one per attempt, one per model call within it, one per claim and per commit.

Names and attributes keep to OpenTelemetry's semantic conventions (generative AI, messaging, databases, version 1.41). They are
spelt out here, as the conventions advise while they are in development; a test holds them to the package that has them. What is
ours alone begins with `ai_worker.`. Texts of rows, prompts, answers and messages of errors are in no span, unless
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks for prompts and answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Final, ParamSpec
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from ai_worker import __version__
from ai_worker.errors import DatabaseError, ProviderError
from ai_worker.models import NO_USAGE, Completion, Item, Lane, Model, Outcome, OutcomeKind, Prompt, Usage
from ai_worker.store.committing import Committed
from ai_worker.worker.attempt import Attempt
from ai_worker.worker.endpoints import Endpoint
from ai_worker.worker.tracing import Call, Outcomes, Store, TracesUnavailableError, Tracing

P = ParamSpec("P")

CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURING: Final = {"true", "span_only", "span_and_event"}
COMPLAINT_SECONDS: Final = 60.0  # between two lines of an exporter that say the same
_EXPORTERS: Final = "opentelemetry_traces_exporter"  # the group in which packages register theirs

# The names that the conventions have for those who serve a model, by the host or its end; anybody else speaks OpenAI's protocol.
_SERVED_BY: Final = {
    "openai.azure.com": "azure.ai.openai",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}
_PROVIDERS: Final = {"gemini": "gcp.gemini"}
_HOSTS: Final = {"openai": "https://api.openai.com", "gemini": "https://generativelanguage.googleapis.com"}  # without a base URL
_PORTS: Final = {"https": 443, "http": 80}


def started(database: str) -> Spans:
    """Spans that go where OpenTelemetry's variables say. Raises TracesUnavailableError, with the reason."""
    present = trace.get_tracer_provider()
    if isinstance(present, TracerProvider):  # `opentelemetry-instrument` has set one up, which is not ours to end
        return Spans(present, database, present.force_flush)
    given = OTELResourceDetector().detect().attributes  # these come first, for which the SDK has no other way
    own: dict[str, str | int] = {
        "service.name": "ai-worker",
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    resource = Resource.create({name: value for name, value in own.items() if name not in given})
    # At the process's exit nobody waits: `close` has done so, and not for ever.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Spans(provider, database, provider.shutdown)


def _exporters() -> list[SpanExporter]:
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",") if name.strip()]
    return [_exporter(name) for name in names]


def _exporter(name: str) -> SpanExporter:
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = entry_points(group=_EXPORTERS)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise TracesUnavailableError(f"there is no exporter {name!r}; installed are: {known}")
    try:
        make = found[name].load()
        # The console's goes to standard output otherwise, which is for data.
        exporter: SpanExporter = make(out=sys.stderr) if name == "console" else make()
    except Exception as error:
        raise TracesUnavailableError(f"the exporter {name!r} cannot be used: {type(error).__name__}: {error}") from error
    for module in {each.__module__ for each in type(exporter).__mro__ if each.__module__.startswith("opentelemetry.exporter.")}:
        logging.getLogger(module).addFilter(_Seldom())
    return exporter


class _Seldom(logging.Filter):
    """Lets the same complaint through once in a while: a receiver that is away must not fill the log, at each of many tries."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._told.get(str(record.msg), -COMPLAINT_SECONDS) < COMPLAINT_SECONDS:
            return False
        self._told[str(record.msg)] = now
        return True


class Spans(Tracing):
    """Traces that go to a provider of the SDK.

    Parameters
    ----------
    database: the name of the database.
    end: sends what is waiting, as long as that may take; called from a thread of its own.
    """

    def __init__(self, provider: TracerProvider, database: str, end: Callable[[], object]) -> None:
        self._tracer = provider.get_tracer("ai_worker", __version__)
        self._database = {"db.system.name": "mysql", "db.namespace": database, "db.collection.name": "task_item"}
        self._end = end
        self._captures = os.environ.get(CAPTURE, "").strip().lower() in _CAPTURING

    def attempts(self, outcome: Outcomes) -> Outcomes:
        """A span `process TYPE` for each, the parent of those of its calls."""

        async def traced(item: Item) -> Outcome:
            with self._tracer.start_as_current_span(
                f"process {item.task.task_type}",
                kind=SpanKind.CONSUMER,
                attributes=_of_item(item),
                record_exception=False,  # its message may quote a row
                set_status_on_exception=False,
            ) as span:
                try:
                    ended = await outcome(item)
                except asyncio.CancelledError:  # broken off by a drain, and given back
                    span.set_attribute("ai_worker.outcome", OutcomeKind.RELEASED.value)
                    raise
                except BaseException as error:
                    _fail(span, type(error).__qualname__)
                    raise
                _tell(span, ended)
                return ended

        return traced

    def calls(self, call: Call) -> Call:
        """A span `chat MODEL` for each."""

        async def traced(attempt: Attempt, endpoint: Endpoint, prompt: Prompt) -> Completion:
            model = endpoint.model
            operation = "chat" if prompt.image is None else "generate_content"
            asked = model.model or model.name
            attributes = _of_call(operation, asked, model, prompt)
            if attempt.companions:
                attributes["ai_worker.items"] = 1 + attempt.companions
            if self._captures:
                attributes["gen_ai.system_instructions"] = json.dumps([_part(prompt.system)])
                attributes["gen_ai.input.messages"] = json.dumps([{"role": "user", "parts": [_part(prompt.user)]}])
            with self._tracer.start_as_current_span(
                f"{operation} {asked}",
                kind=SpanKind.CLIENT,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    completion = await call(attempt, endpoint, prompt)
                except ProviderError as error:
                    _fail(span, error.kind)
                    span.set_attributes(_of_usage(error.usage))
                    raise
                except BaseException as error:
                    _fail(span, type(error).__qualname__)
                    raise
                span.set_attributes(_of_completion(completion, model))
                if self._captures:
                    said = {"role": "assistant", "parts": [_part(completion.text)], "finish_reason": completion.finish}
                    span.set_attribute("gen_ai.output.messages", json.dumps([said]))
                return completion

        return traced

    def claims(self, take: Callable[P, list[Item]]) -> Callable[P, list[Item]]:
        """A span for each that brings something or fails; those that find nothing would drown the others."""

        def traced(*arguments: P.args, **named: P.kwargs) -> list[Item]:
            began = time.time_ns()
            try:
                items = take(*arguments, **named)
            except DatabaseError as error:
                with self._of_database("claim", began) as span:
                    _fail_in_database(span, error)
                raise
            if items:
                with self._of_database("claim", began) as span:
                    span.set_attribute("db.response.returned_rows", len(items))
            return items

        return traced

    def commits(self, store: Store) -> Store:
        def traced(outcomes: Sequence[Outcome], open_tasks: Sequence[int]) -> Committed:
            with self._of_database("commit", time.time_ns()) as span:
                if len(outcomes) > 1:  # one alone is no batch
                    span.set_attribute("db.operation.batch.size", len(outcomes))
                try:
                    committed = store(outcomes, open_tasks)
                except DatabaseError as error:
                    _fail_in_database(span, error)
                    raise
                except BaseException as error:
                    _fail(span, type(error).__qualname__)
                    raise
                if committed.lost:
                    span.set_attribute("ai_worker.claims_lost", len(committed.lost))
                return committed

        return traced

    def _of_database(self, operation: str, began: int) -> Any:
        return self._tracer.start_as_current_span(
            f"{operation} task_item",
            kind=SpanKind.CLIENT,
            attributes={**self._database, "db.operation.name": operation},
            start_time=began,
            record_exception=False,
            set_status_on_exception=False,
        )

    def close(self, seconds: float) -> None:
        # In a thread, since no exporter can be trusted to heed a time limit; a daemon, so that none holds up the exit.
        ending = threading.Thread(target=self._end, name="traces", daemon=True)
        ending.start()
        ending.join(seconds)


def _of_item(item: Item) -> dict[str, AttributeValue]:
    task = item.task
    return {
        "messaging.system": "ai_worker",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": task.queue,
        "messaging.message.id": str(item.id_task_item),
        "ai_worker.task.id": task.id_task,
        "ai_worker.task.type": task.task_type,
        "ai_worker.item.id": item.id_task_item,
        "ai_worker.attempt": item.attempt,
        "ai_worker.operation_uuid": item.operation_uuid,
    }


def _tell(span: Span, ended: Outcome) -> None:
    span.set_attribute("ai_worker.outcome", ended.kind.value)
    if ended.lane is not Lane.ONLINE:
        span.set_attribute("ai_worker.lane", ended.lane.value)
    if ended.cost is not None:
        span.set_attribute("ai_worker.cost_usd", float(ended.cost))
    if ended.error_kind is not None:
        span.set_attribute("ai_worker.error_kind", ended.error_kind)
        if ended.kind not in {OutcomeKind.RELEASED, OutcomeKind.POSTPONED, OutcomeKind.PROCESSED}:
            _fail(span, ended.error_kind)


def _of_call(operation: str, asked: str, model: Model, prompt: Prompt) -> dict[str, AttributeValue]:
    """What is known before the call: samplers may choose by it."""
    options = model.options
    attributes = dict(_of_server(model.provider, model.base_url))
    attributes |= {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": asked,
        "gen_ai.output.type": "json" if prompt.image is None else "image",
        "ai_worker.model": model.name,
    }
    wanted = {
        "gen_ai.request.max_tokens": _either(options.get("max_output_tokens"), prompt.max_output_tokens),
        "gen_ai.request.temperature": _either(options.get("temperature"), prompt.temperature),
        "gen_ai.request.top_p": _either(options.get("top_p"), prompt.top_p),
    }
    attributes |= {name: value for name, value in wanted.items() if value is not None}
    return attributes


def _either(option: object, of_prompt: float | None) -> float | None:
    """A model's option goes before what a prompt asks for, as the providers have it."""
    return option if isinstance(option, int | float) else of_prompt


@lru_cache(maxsize=256)
def _of_server(provider: str, base_url: str | None) -> Mapping[str, AttributeValue]:
    url = urlsplit(base_url or _HOSTS.get(provider, ""))
    host = url.hostname or ""
    served_by = (name for end, name in _SERVED_BY.items() if provider == "openai" and (host == end or host.endswith(f".{end}")))
    attributes: dict[str, AttributeValue] = {"gen_ai.provider.name": next(served_by, _PROVIDERS.get(provider, provider))}
    if host:
        attributes["server.address"] = host
        if port := url.port or _PORTS.get(url.scheme):
            attributes["server.port"] = port
    return attributes


def _of_completion(completion: Completion, model: Model) -> dict[str, AttributeValue]:
    attributes = _of_usage(completion.usage)
    attributes["gen_ai.response.finish_reasons"] = [completion.finish]
    if completion.model:
        attributes["gen_ai.response.model"] = completion.model
    if completion.request_id:  # of Gemini it is the answer's own id; others name the request in a header
        attributes["gen_ai.response.id" if model.provider == "gemini" else "ai_worker.request_id"] = completion.request_id
    if completion.lane is not Lane.ONLINE:
        attributes["ai_worker.lane"] = completion.lane.value
    return attributes


def _of_usage(usage: Usage) -> dict[str, AttributeValue]:
    if usage == NO_USAGE:
        return {}
    attributes: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": usage.tokens_input,
        "gen_ai.usage.output_tokens": usage.tokens_output,
    }
    if usage.tokens_cached:
        attributes["gen_ai.usage.cache_read.input_tokens"] = usage.tokens_cached
    if usage.tokens_reasoning:
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.tokens_reasoning
    return attributes


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _fail_in_database(span: Span, error: DatabaseError) -> None:
    _fail(span, type(error).__name__)
    if error.code:
        span.set_attribute("db.response.status_code", str(error.code))
