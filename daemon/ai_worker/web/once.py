"""POST once: a request that carries an Idempotency-Key is done once, however often it is sent.

The answer is kept for a day, under the token and the key: the same request gets it again, from any instance. Only success
is kept: what was refused has changed nothing, and may be sent again. A request whose process has died is made anew after two
minutes; what it had done by then is not done twice where its verb can tell (`POST /task` by a submit key made of the token and
the key).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel

from ai_worker.store.web_requests import LONGEST_BODY, Answered
from ai_worker.web.problems import Refused
from ai_worker.web.services import Served

REPLAYED: Final = "Idempotency-Replayed"


class UnderWay(Refused):
    """The same request is being answered at this moment."""

    status = HTTPStatus.CONFLICT


class OtherRequest(Refused):
    """The key came with another request before."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers."""

    body: BaseModel
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


class Once:
    """A handler's parameter of the type `Exactly`; it does its work through it."""

    def __init__(
        self,
        request: Request,
        services: Served,
        key: Annotated[
            str | None,
            Header(
                alias="Idempotency-Key",
                min_length=1,
                max_length=190,
                pattern=r"^[!-~]+$",
                description="Makes it safe to send again: within a day, the same key with the same request gets the same answer.",
            ),
        ] = None,
    ) -> None:
        self._request = request
        self._services = services
        self._key = key

    async def __call__(self, work: Callable[[], Awaitable[Answer]]) -> Response:
        """Does the work, or gives the answer that it had. Raises UnderWay and OtherRequest."""
        if self._key is None:
            return _response(_answered(await work()))
        ask, requests = self._services.ask, self._services.requests
        who = self._request.state.principal
        before = await ask(requests.begin, who.id_api_token, self._key, await self._digest())
        if isinstance(before, Answered):
            return _response(before, {REPLAYED: "true"})
        if before is None:
            raise OtherRequest("this Idempotency-Key came with another request before")
        if not before:
            raise UnderWay("the same request is being answered just now", {"Retry-After": "1"})
        try:
            answered = _answered(await work())
        except Exception:  # not where the server ends in the middle: the thread goes on, and what it does may come to something
            await ask(requests.give_up, who.id_api_token, self._key)
            raise
        if len(answered.body) <= LONGEST_BODY:
            await ask(requests.end, who.id_api_token, self._key, answered)
        else:  # a preview: to be made anew
            await ask(requests.give_up, who.id_api_token, self._key)
        return _response(answered)

    def submit_key(self) -> str | None:
        """A key for a verb that can tell by itself whether it was done: of the caller and the key; None without one."""
        if self._key is None:
            return None
        who = self._request.state.principal
        return f"http:{who.id_api_token}:{hashlib.sha256(self._key.encode()).hexdigest()}"

    async def _digest(self) -> bytes:
        url = self._request.url
        head = f"{self._request.method} {url.path}?{url.query}\n".encode()
        return hashlib.sha256(head + await self._request.body()).digest()


Exactly = Annotated[Once, Depends()]


def _answered(answer: Answer) -> Answered:
    return Answered(answer.status.value, answer.headers, answer.body.model_dump_json())


def _response(answered: Answered, more: Mapping[str, str] | None = None) -> Response:
    headers = {**answered.headers, **(more or {})}
    return Response(answered.body, answered.status, headers, media_type="application/json")
