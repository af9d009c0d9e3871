"""The server: records each request, holds it to the limits, plays the script, answers everything else correctly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from aiohttp import web

from tests.fake_provider.admin import control_routes
from tests.fake_provider.answering import Answering, Reply, answer_json, failed
from tests.fake_provider.batches import Batches, BatchSettings
from tests.fake_provider.control import Desk
from tests.fake_provider.faults import FAILURES, Rule, refusal
from tests.fake_provider.gemini_batches import GeminiBatches
from tests.fake_provider.images import IMAGES
from tests.fake_provider.limits import Limiter, Limits, Refusal
from tests.fake_provider.openai_batches import OpenAIBatches
from tests.fake_provider.tally import Tally
from tests.fake_provider.tokens import COUNTS
from tests.fake_provider.wire import CHAT, GEMINI, RESPONSES, Ask, Wire


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
    refused_by: str | None = None  # the limit that it was over: requests, tokens, in_flight
    status: int = 0  # as it was decided when the request came in
    texts: tuple[str, ...] = ()  # of a pack the texts of its rows, else the one text
    model: str = ""
    schema_name: str | None = None  # of the answer that was asked for; Gemini's API has no place for it
    is_picture: bool = False  # a picture was asked for


class FakeProvider:
    """OpenAI chat completions, responses and images, Gemini generateContent (of pictures too), and both vendors' batches on one
    loopback port, in a thread with its own loop.

        with FakeProvider() as fake:
            fake.script(Rule("429", times=2))
            ... base_url=fake.openai_url ...
            assert fake.counts()["requests"] == 3

    latency_ms: how long each answer takes.
    gather: no answer is given before so many requests were under way at once, however slow the machine; fewer wait for ever.
    port: 0 for any free one.
    answer: turns a request into the content of a correct answer.
    keep: how many of the last requests `requests` holds; the counts know them all.
    limits: what is enforced; nothing by default. `limit()` changes it, `reset()` brings this back.
    count: how tokens are counted: `texts` = by the row's text alone, `prompt` = the whole of schema, system and user message.
    batches: how batches run.
    """

    def __init__(
        self,
        *,
        latency_ms: float = 0.0,
        gather: int = 0,
        port: int = 0,
        answer: Callable[[Ask], str] = answer_json,
        keep: int = 10_000,
        limits: Limits = Limits(),  # noqa: B008 -- frozen
        count: str = "texts",
        batches: BatchSettings = BatchSettings(),  # noqa: B008 -- frozen
    ) -> None:
        self.latency_ms = latency_ms
        self.gather = gather
        self._gathered = asyncio.Event()
        self.port = port
        self._answer = answer
        self._count = count
        self._limits = limits
        self._batch_settings = batches
        self.rules: list[Rule] = []
        self.requests: deque[Request] = deque(maxlen=keep)
        self._news = threading.Condition()
        self.answering = Answering(answer, COUNTS[count]())
        self._desk = Desk(self._new_batches(), self._strike_around)
        self._openai_batches = OpenAIBatches(self._desk)
        self._gemini_batches = GeminiBatches(self._desk)
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
        """Forgets script, requests, counts, files and batches; limits and settings are again what they were at first."""
        self.rules = []
        self.limit(self._limits)
        self.tally = Tally()
        self.answering = Answering(self._answer, COUNTS[self._count]())
        self._desk.reset(self._new_batches())
        self._openai_batches.reset()
        self.requests.clear()
        self.per_text: Counter[str] = Counter()
        self.paid_per_text: Counter[str] = Counter()
        self.per_fault: Counter[str] = Counter()
        self.received = self.answered = self.in_flight = self.peak_in_flight = 0

    def limit(self, limits: Limits) -> None:
        """Enforces these limits from now on, with nothing used."""
        self.limiter = Limiter(limits)

    @property
    def batches(self) -> Batches:
        """All batches since the last reset, both vendors'."""
        return self._desk.batches

    @property
    def files(self) -> list[dict[str, Any]]:
        """OpenAI's files that there are, oldest first."""
        return self._openai_batches.files

    def set_batches(self, **changes: Any) -> None:
        """Changes how batches run from now on: names and values of `BatchSettings`."""
        self.batches.settings = replace(self.batches.settings, **changes)

    def texts(self) -> dict[str, dict[str, int]]:
        """For each text in how many calls it was asked for (`requests`), how often it was done as a row of a batch (`rows`), and
        how often all that was billed (`paid`). Packs are taken apart."""
        rows = self.batches.rows_per_text
        return {
            text: {"requests": self.per_text[text], "rows": rows[text], "paid": self.paid_per_text[text] + rows[text]}
            for text in [*self.per_text, *(text for text in rows if text not in self.per_text)]
        }

    def asked(self) -> list[dict[str, Any]]:
        """What the last requests asked for, oldest first: text, schema_name, model, is_picture, status. With steps, whose each
        has a schema of its own, this tells which step was asked for."""
        return [
            {"text": text, "schema_name": one.schema_name, "model": one.model, "is_picture": one.is_picture, "status": one.status}
            for one in self.requests
            for text in one.texts
        ]

    def set_pictures(self, bytes: int | None = None) -> None:
        """How large pictures are from now on, in bytes; None: as they come out."""
        self.answering.picture_bytes = bytes

    def counts(self, window: float = 60.0) -> dict[str, Any]:
        """How many requests came in, were answered in full, are in flight, were so at most; and how often each text was seen.

        window: seconds; `peak_window` is the most requests and tokens that were let in within any such stretch.
        `batch_requests`: requests around batches, by kind. The rest is described in `Tally.counts` and `Batches.counts`.
        """
        return {
            "requests": self.received,
            "answered": self.answered,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "distinct_texts": len(self.per_text),
            "per_text": dict(self.per_text),
            "per_fault": dict(self.per_fault),
            **self.tally.counts(window),
            **self.batches.counts(),
            "batch_requests": dict(self._desk.seen),
        }

    def wait_for_requests(self, number: int, timeout: float = 10.0) -> None:
        """Blocks until so many requests have come in since the last reset. Raises TimeoutError after `timeout` seconds."""
        if not self.wait_until(lambda: self.received >= number, timeout):
            raise TimeoutError(f"{self.received} of {number} requests within {timeout:g} s")

    def wait_until(self, predicate: Callable[[], bool], timeout: float = 10.0) -> bool:
        """Blocks until the predicate holds, which is asked again whenever a request comes in and a batch changes its status.

        False when it does not within `timeout` seconds.
        """
        with self._news:
            return self._news.wait_for(predicate, timeout)

    def _notify(self) -> None:
        with self._news:
            self._news.notify_all()

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
        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.add_routes(
            [
                *control_routes(self),
                *self._openai_batches.routes(),
                *self._gemini_batches.routes(),
                web.post("/{version}/models/{model}:generateContent", self._handler(GEMINI)),
                web.post("/{prefix:.*}chat/completions", self._handler(CHAT)),
                web.post("/{prefix:.*}responses", self._handler(RESPONSES)),
                web.post("/{prefix:.*}images/generations", self._handler(IMAGES)),
            ]
        )
        # A handler is cancelled when its client goes away, so that `answered` counts only what was really handed over.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    # -- the API -----------------------------------------------------------------------------------------------------

    def _new_batches(self) -> Batches:
        return Batches(self._batch_settings, self.answering, self._strike_row, self._notify)

    def _strike_row(self, ask: Ask) -> Rule | None:
        return self._struck(rule for rule in self.rules if rule.strikes(ask, row=True))

    def _strike_around(self, at: str, text: str) -> Rule | None:
        self._notify()
        return self._struck(rule for rule in self.rules if rule.strikes_at(at, text))

    def _struck(self, rules: Iterator[Rule]) -> Rule | None:
        rule = next(rules, None)
        if rule:
            self.per_fault[rule.fault] += 1
        return rule

    def _handler(self, wire: Wire) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                ask = wire.ask(request.match_info.get("model", ""), json.loads(await request.read()), _key(request))
            except (ValueError, KeyError, TypeError) as error:
                return web.json_response(wire.error(FAILURES["400"], f"malformed request: {error!r}"), status=400)
            limiter, rule = self.limiter, next((rule for rule in self.rules if rule.strikes(ask)), None)
            reply = self.answering.reply(wire, ask, rule, self.received + 1)
            refused = limiter.admit(ask.model, reply.tokens)
            if refused:
                if rule:
                    rule.take_back()
                reply, rule = failed(wire, refusal(refused, ask.model, say_when=limiter.limits.retry_after)), None
            record = self._record(request, ask, rule, reply, refused)
            try:
                if self.peak_in_flight < self.gather:
                    await self._gathered.wait()
                if not refused and (delay := self.latency_ms + (rule.delay_ms if rule else 0.0)):
                    await asyncio.sleep(delay / 1000)
                extra = {} if wire is GEMINI else limiter.headers(ask.model)
                response = await _send(request, reply, extra)
                record.finished_at = time.monotonic()
                self.answered += 1
                return response
            finally:
                self.in_flight -= 1
                if not refused:
                    limiter.release(ask.model)

        return handle

    def _record(self, request: web.Request, ask: Ask, rule: Rule | None, reply: Reply, refused: Refusal | None) -> Request:
        headers = {name.lower(): value for name, value in request.headers.items()}
        now, refused_by = time.monotonic(), refused.kind if refused else None
        record = Request(
            ask.api,
            request.path,
            headers,
            ask.body,
            ask.text,
            now,
            fault=rule.fault if rule else None,
            refused_by=refused_by,
            status=reply.status,
            texts=ask.texts,
            model=ask.model,
            schema_name=ask.schema_name,
            is_picture=ask.picture is not None,
        )
        self.requests.append(record)
        self.tally.add(now, reply.tokens, reply.status, tier=ask.tier, refused_by=refused_by)
        for text in ask.texts:
            self.per_text[text] += 1
            if reply.tokens:
                self.paid_per_text[text] += 1
        if rule:
            self.per_fault[rule.fault] += 1
        with self._news:
            self.received += 1
            self._news.notify_all()
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if self.peak_in_flight >= self.gather:
            self._gathered.set()
        return record


async def _send(request: web.Request, reply: Reply, headers: dict[str, str]) -> web.StreamResponse:
    if reply.ends == "hangs":
        await asyncio.sleep(3600)
    if reply.ends == "dropped":
        return await _drop(request, reply.text.encode())
    headers = {**reply.headers, **headers}
    return web.Response(text=reply.text, content_type=reply.content_type, status=reply.status, headers=headers)


def _key(request: web.Request) -> str | None:
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bearer or request.headers.get("x-goog-api-key")


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
