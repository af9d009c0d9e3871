"""The server: records each request, plays the script, answers everything else correctly and deterministically."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from aiohttp import web

from ai_worker.providers._fill import fill
from tests.fake_provider.faults import CONDITIONAL, FAILURES, Rule
from tests.fake_provider.wire import CHAT, GEMINI, RESPONSES, Answer, Ask, Tokens, Wire

HTML = "<html><head><title>Bad Gateway</title></head><body><h1>502 Bad Gateway</h1><hr>nginx</body></html>"

TEXT_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

# How the outer settings of an answer follow from a fault's name.
_FINISH = {"refused": "refused", "filtered": "filtered", "cut_short": "length", "empty_cut_short": "length"}


def correct(text: str) -> str:
    """What the fake does to a row's text: deterministic, visible, and different from it."""
    return f"{text} ✓"


def tokens_for(text: str) -> Tokens:
    """What a correct answer to a row's text is billed: ten more than the text's words in, the answer's words out."""
    return Tokens(len(text.split()) + 10, len(correct(text).split()))


def schema_in(system: str) -> dict[str, Any] | None:
    """The JSON schema that a system prompt spells out, on a line of its own, for want of a better place."""
    lines = [line for line in system.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def answer_json(ask: Ask) -> str:
    """JSON for the schema that was asked for; the worked text stands in its first free string."""
    schema = ask.schema or schema_in(ask.system) or TEXT_SCHEMA
    free = (name for name, sub in schema["properties"].items() if "string" in sub.get("type", ()) and "enum" not in sub)
    return json.dumps(fill(schema, next(free, ""), correct(ask.text)), ensure_ascii=False)


@dataclass
class Request:
    """One request as it came in. `finished_at` is None while it runs, and for ever when the client went away first."""

    api: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    text: str
    received_at: float
    finished_at: float | None = None
    fault: str | None = None


class FakeProvider:
    """OpenAI chat completions and responses and Gemini generateContent on one loopback port, in a thread with its own loop.

        with FakeProvider() as fake:
            fake.script(Rule("429", times=2))
            ... base_url=fake.openai_url ...
            assert fake.counts()["requests"] == 3

    latency_ms: how long each answer takes.
    port: 0 for any free one.
    answer: turns a request into the content of a correct answer.
    keep: how many of the last requests `requests` holds; the counts know them all.
    """

    def __init__(
        self, *, latency_ms: float = 0.0, port: int = 0, answer: Callable[[Ask], str] = answer_json, keep: int = 10_000
    ) -> None:
        self.latency_ms = latency_ms
        self.port = port
        self.answer = answer
        self.rules: list[Rule] = []
        self.requests: deque[Request] = deque(maxlen=keep)
        self._arrived = threading.Condition()
        self.reset()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- use ---------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def gemini_url(self) -> str:
        return self.url

    def script(self, *rules: Rule) -> None:
        """Replaces the script. Of several rules, the first that strikes a request decides."""
        self.rules = list(rules)

    def reset(self) -> None:
        """Forgets script, requests and counts."""
        self.rules = []
        self.requests.clear()
        self.per_text: Counter[str] = Counter()
        self.per_fault: Counter[str] = Counter()
        self.received = self.answered = self.in_flight = self.peak_in_flight = 0

    def counts(self) -> dict[str, Any]:
        """How many requests came in, were answered in full, are in flight, were so at most; and how often each text was seen."""
        return {
            "requests": self.received,
            "answered": self.answered,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "distinct_texts": len(self.per_text),
            "per_text": dict(self.per_text),
            "per_fault": dict(self.per_fault),
        }

    def wait_for_requests(self, number: int, timeout: float = 10.0) -> None:
        """Blocks until so many requests have come in since the last reset. Raises TimeoutError after `timeout` seconds."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self.received >= number, timeout):
                raise TimeoutError(f"{self.received} of {number} requests within {timeout:g} s")

    def __enter__(self) -> Self:
        started = threading.Event()
        failure: list[Exception] = []

        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            try:
                runner = await self.start()
            except Exception as error:  # noqa: BLE001 -- raised again in the thread that waits
                failure.append(error)
                return
            finally:
                started.set()
            await self._stop.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fake-provider", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            raise failure[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._loop is not None
        assert self._thread is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def start(self) -> web.AppRunner:
        """Starts serving in the running loop; fixes `port`. The runner's `cleanup()` ends it."""
        _allow_many_sockets()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.add_routes(
            [
                web.post("/_script", self._post_script),
                web.post("/_reset", self._post_reset),
                web.get("/_counts", self._get_counts),
                web.get("/_requests", self._get_requests),
                web.post("/{version}/models/{model}:generateContent", self._handler(GEMINI)),
                web.post("/{prefix:.*}chat/completions", self._handler(CHAT)),
                web.post("/{prefix:.*}responses", self._handler(RESPONSES)),
            ]
        )
        # A handler is cancelled when its client goes away, so that `answered` counts only what was really handed over.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    # -- control over HTTP -------------------------------------------------------------------------------------------

    async def _post_script(self, request: web.Request) -> web.Response:
        try:
            self.script(*(Rule(**entry) for entry in await request.json()))
        except (TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"rules": len(self.rules)})

    async def _post_reset(self, request: web.Request) -> web.Response:
        self.reset()
        return web.json_response({})

    async def _get_counts(self, request: web.Request) -> web.Response:
        return web.json_response(self.counts())

    async def _get_requests(self, request: web.Request) -> web.Response:
        return web.json_response([asdict(one) for one in self.requests])

    # -- the API -----------------------------------------------------------------------------------------------------

    def _handler(self, wire: Wire) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                ask = wire.ask(request.match_info.get("model", ""), json.loads(await request.read()), _key(request))
            except (ValueError, KeyError, TypeError) as error:
                return web.json_response(wire.error(FAILURES["400"], f"malformed request: {error!r}"), status=400)
            rule = next((rule for rule in self.rules if rule.strikes(ask)), None)
            record = self._record(request, ask, rule)
            try:
                if delay := self.latency_ms + (rule.delay_ms if rule else 0.0):
                    await asyncio.sleep(delay / 1000)
                response = await self._respond(request, wire, ask, rule or Rule("answer"))
                record.finished_at = time.monotonic()
                self.answered += 1
                return response
            finally:
                self.in_flight -= 1

        return handle

    def _record(self, request: web.Request, ask: Ask, rule: Rule | None) -> Request:
        headers = {name.lower(): value for name, value in request.headers.items()}
        record = Request(ask.api, request.path, headers, ask.body, ask.text, time.monotonic(), fault=rule.fault if rule else None)
        self.requests.append(record)
        self.per_text[ask.text] += 1
        if rule:
            self.per_fault[rule.fault] += 1
        with self._arrived:
            self.received += 1
            self._arrived.notify_all()
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return record

    async def _respond(self, request: web.Request, wire: Wire, ask: Ask, rule: Rule) -> web.StreamResponse:
        fault, number = rule.fault, self.received
        failure = FAILURES.get(fault) or CONDITIONAL.get(fault)
        if failure:
            message = (failure.google_message if wire is GEMINI else None) or failure.message
            body = wire.error(failure, _with_key(message, ask, rule))
            return web.json_response(body, status=failure.status, headers=failure.headers)
        if fault == "hang":
            await asyncio.sleep(3600)
        tokens = Tokens(*rule.tokens) if rule.tokens else tokens_for(ask.text)
        if fault in ("html", "502_html"):
            page = _with_key(HTML, ask, rule)
            return web.Response(text=page, content_type="text/html", status=502 if fault == "502_html" else 200)
        if fault == "blocked":
            return web.json_response(wire.blocked(ask, tokens, number))
        if fault == "error_in_200":
            return web.json_response(wire.error_in_200(ask, tokens, _with_key("The upstream server is overloaded.", ask, rule)))
        if fault == "no_answer_in_it":
            return web.json_response({"object": "something else", "note": _with_key("nothing here", ask, rule)})
        if fault == "not_an_object":
            return web.json_response(["an", "array"])
        content = None if fault == "empty_cut_short" else "" if fault == "empty" else rule.content or self._content(ask, fault)
        payload = json.dumps(wire.answer(ask, Answer(content, tokens, _FINISH.get(fault, "stop")), number), ensure_ascii=False)
        if fault == "drop":
            return await _drop(request, payload.encode())
        if fault in ("broken_json", "500_broken_json"):
            half = payload[: len(payload) // 2]
            return web.Response(text=half, content_type="application/json", status=500 if fault == "500_broken_json" else 200)
        return web.Response(text=payload, content_type="application/json")

    def _content(self, ask: Ask, fault: str) -> str:
        if fault == "wrong_shape":
            return json.dumps({"answer": 42})
        content = self.answer(ask)
        return content[: len(content) // 2] if fault == "cut_short" else content


def _key(request: web.Request) -> str | None:
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bearer or request.headers.get("x-goog-api-key")


def _with_key(message: str, ask: Ask, rule: Rule) -> str:
    return f"{message} (Authorization: Bearer {ask.key}, url /v1/x?key={ask.key})" if rule.echo_key else message


async def _drop(request: web.Request, payload: bytes) -> web.StreamResponse:
    """Half of the body, then the connection is reset."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(payload))})
    await response.prepare(request)
    await response.write(payload[: len(payload) // 2])
    assert request.transport is not None
    request.transport.abort()
    return response


def _allow_many_sockets() -> None:
    """A thousand requests in flight are two thousand sockets when client and server share a process."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
