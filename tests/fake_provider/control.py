"""The requests around a batch (files, creating, looking, cancelling), with the faults that strike them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.fake_provider.answering import Reply, failed
from tests.fake_provider.batches import Batches
from tests.fake_provider.faults import FAILURES, Rule
from tests.fake_provider.wire import Failure, Wire


class Denied(Exception):
    """Answers a request with an HTTP error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def not_found(what: str, param: str) -> Denied:
    return Denied(
        Failure(
            404,
            f"No such {what}",
            param=param,
            google_status="NOT_FOUND",
            google_message=f"Requested entity was not found: {what}",
        )
    )


def invalid(message: str, param: str | None = None) -> Denied:
    return Denied(Failure(400, message, param=param))


class Desk:
    """Does what a request asks for, once the script has had its say.

    batches: all there are. strike: finds the rule that strikes, by `at` and text.
    """

    def __init__(self, batches: Batches, strike: Callable[[str, str], Rule | None]) -> None:
        self.batches = batches
        self.seen: Counter[str] = Counter()  # requests by `at`
        self._strike = strike

    def reset(self, batches: Batches) -> None:
        """Begins anew, with these batches."""
        self.batches.close()
        self.batches = batches
        self.seen = Counter()

    async def handle(
        self, request: web.Request, wire: Wire, at: str, text: str, act: Callable[[Rule | None], Any]
    ) -> web.StreamResponse:
        """The answer: what `act` returns, as JSON, or as it is where it is bytes. `act` is told the rule that strikes.

        at: which kind of request this is, one of `faults.AT`; text: what a rule's `contains` looks into.
        """
        self.seen[at] += 1
        rule = self._strike(at, text)
        fault = rule.fault if rule else None
        if fault == "hang":
            await asyncio.sleep(3600)
        reply = self._done(wire, rule, act)
        if rule and rule.delay_ms:
            await asyncio.sleep(rule.delay_ms / 1000)
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
        return reply

    def _done(self, wire: Wire, rule: Rule | None, act: Callable[[Rule | None], Any]) -> web.Response:
        if rule and rule.fault in FAILURES:
            return _response(failed(wire, FAILURES[rule.fault]))
        try:
            done = act(rule)
        except Denied as error:
            return _response(failed(wire, error.failure))
        if isinstance(done, bytes):
            return web.Response(body=done, content_type="application/octet-stream")
        return _response(Reply(200, json.dumps(done, ensure_ascii=False)))


def _response(reply: Reply) -> web.Response:
    return web.Response(text=reply.text, status=reply.status, content_type="application/json", headers=reply.headers)
