"""Whether traces are made: what asks for them, what forbids them, and what becomes of a wish that cannot be granted."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

from ai_worker import log as log_module
from ai_worker.errors import ConfigurationError
from ai_worker.log import Event, Log
from ai_worker.providers import gemini, openai
from ai_worker.worker import spans, tracing

_PROVIDERS = gen_ai.GenAiProviderNameValues


@pytest.fixture(autouse=True)
def _nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_PROTOCOL", *tracing._ASKING):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def made() -> Iterator[list[tracing.Tracing]]:
    """Traces to be ended after the test."""
    traces: list[tracing.Tracing] = []
    yield traces
    for each in traces:
        each.close(1.0)


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("wanted", "variables", "is_on"),
    [
        pytest.param("auto", {}, False, id="nobody asks"),
        pytest.param("auto", ENDPOINT, True, id="an endpoint"),
        pytest.param("auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True, id="one for traces"),
        pytest.param("auto", {"OTEL_TRACES_EXPORTER": "console"}, True, id="an exporter"),
        pytest.param("auto", {"OTEL_TRACES_EXPORTER": ""}, False, id="empty is not set"),
        pytest.param("auto", ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False, id="metrics only"),
        pytest.param("auto", ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False, id="disabled"),
        pytest.param("auto", ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, True, id="not disabled"),
        pytest.param("on", {}, True, id="on, to the default endpoint"),
        pytest.param("on", {"OTEL_SDK_DISABLED": "true"}, False, id="on, but disabled"),
        pytest.param("off", ENDPOINT, False, id="off"),
    ],
)
def test_what_asks_for_traces(
    wanted: tracing.Wanted,
    variables: dict[str, str],
    is_on: bool,
    made: list[tracing.Tracing],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made.append(tracing.begin(wanted, "shop", Log()))
    assert (made[0] is not tracing.OFF) == is_on


def test_without_traces_verbs_stay_the_same() -> None:
    """So the hot path has nothing more to do than without them."""

    def verb(*_: object) -> None: ...

    for hand_over in (tracing.OFF.attempts, tracing.OFF.calls, tracing.OFF.claims, tracing.OFF.commits):
        assert hand_over(verb) is verb  # type: ignore[operator]
    tracing.OFF.close(0.0)


def _without_the_extra(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delitem(sys.modules, "ai_worker.worker.spans")
    monkeypatch.delattr("ai_worker.worker.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    return re.escape("pip install 'ai-worker[otel]'")


def _with_an_unknown_exporter(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    return "'carrier-pigeon'"


def _with_a_missing_exporter(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    return "'otlp_proto_grpc'; installed are: .*otlp_proto_http"


@pytest.mark.parametrize("missing", [_without_the_extra, _with_an_unknown_exporter, _with_a_missing_exporter])
def test_a_worker_goes_on_without_traces_that_it_cannot_make_unless_they_were_ordered(
    missing: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    words = missing(monkeypatch)  # type: ignore[operator]
    log_module.configure("info", "json")
    assert tracing.begin("auto", "shop", Log()) is tracing.OFF
    line = capsys.readouterr().err
    assert f'"event":"{Event.NO_TRACES.name}"' in line
    with pytest.raises(ConfigurationError, match=words):
        tracing.begin("on", "shop", Log())


def test_a_provider_that_is_there_already_is_used_and_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    theirs.add_span_processor(spans.BatchSpanProcessor(exporter, schedule_delay_millis=60_000))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs)
    traces = tracing.begin("on", "shop", Log())
    traces.claims(list)()
    theirs.get_tracer("theirs").start_span("theirs").end()
    traces.close(5.0)
    assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]  # a claim without items is no span
    theirs.get_tracer("theirs").start_span("later").end()
    theirs.force_flush()
    assert [span.name for span in exporter.get_finished_spans()] == ["theirs", "later"]
    theirs.shutdown()


def test_a_receiver_that_is_away_is_complained_of_once_in_a_while(
    made: list[tracing.Tracing], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made.append(tracing.begin("on", "shop", Log()))
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    added = logger.filters[-1]
    try:
        for number in range(3):
            logger.warning("Transient error %s", number)
            logger.error("Failed to export")
        assert [record.message for record in caplog.records] == ["Transient error 0", "Failed to export"]
        later = time.monotonic() + 61
        monkeypatch.setattr(time, "monotonic", lambda: later)
        logger.warning("Transient error %s", 4)
        assert caplog.records[-1].message == "Transient error 4"
    finally:
        logger.removeFilter(added)


@pytest.mark.parametrize(
    ("provider", "base_url", "name", "host", "port"),
    [
        ("openai", None, _PROVIDERS.OPENAI, "api.openai.com", 443),
        ("openai", "http://10.0.0.5:8000/v1", _PROVIDERS.OPENAI, "10.0.0.5", 8000),
        ("openai", "https://shop.openai.azure.com/openai/v1", _PROVIDERS.AZURE_AI_OPENAI, "shop.openai.azure.com", 443),
        ("openai", "https://api.deepseek.com", _PROVIDERS.DEEPSEEK, "api.deepseek.com", 443),
        ("openai", "https://api.groq.com/openai/v1", _PROVIDERS.GROQ, "api.groq.com", 443),
        ("openai", "https://api.mistral.ai/v1", _PROVIDERS.MISTRAL_AI, "api.mistral.ai", 443),
        ("openai", "https://api.perplexity.ai", _PROVIDERS.PERPLEXITY, "api.perplexity.ai", 443),
        ("openai", "https://api.x.ai/v1", _PROVIDERS.X_AI, "api.x.ai", 443),
        ("openai", "https://notapi.x.ai.example.com/v1", _PROVIDERS.OPENAI, "notapi.x.ai.example.com", 443),
        ("gemini", None, _PROVIDERS.GCP_GEMINI, "generativelanguage.googleapis.com", 443),
    ],
)
def test_providers_have_the_names_of_the_conventions(
    provider: str, base_url: str | None, name: _PROVIDERS, host: str, port: int
) -> None:
    found = spans._of_server(provider, base_url)
    assert found == {"gen_ai.provider.name": name.value, "server.address": host, "server.port": port}


def test_hosts_without_a_base_url_are_the_ones_that_are_called() -> None:
    for provider, url in (("openai", openai.OFFICIAL_URL), ("gemini", gemini.OFFICIAL_URL)):
        assert urlsplit(spans._HOSTS[provider]).hostname == urlsplit(url).hostname
    assert spans._of_server("echo", None) == {"gen_ai.provider.name": "echo"}
