"""What becomes of an Idempotency-Key whose request comes to no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request

from ai_worker.errors import UsageError
from ai_worker.store.tokens import Principal, Scope
from ai_worker.web.once import Answer, Once
from ai_worker.web.services import Services


@pytest.mark.parametrize(
    ("error", "given_up"),
    [(UsageError("refused"), True), (asyncio.CancelledError(), False)],
    ids=["refused", "the server ends"],
)
def test_a_key_is_given_up_only_where_nothing_can_come_of_its_request(error: BaseException, given_up: bool) -> None:
    """A thread goes on when its request is broken off: whoever came again at once would have the same a second time."""
    done: list[str] = []

    async def ask(verb: Callable[..., Any], *arguments: object) -> Any:
        return verb(*arguments)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def work() -> Answer:
        raise error

    requests = SimpleNamespace(begin=lambda *_: True, give_up=lambda *_: done.append("given up"))
    state = {"principal": Principal(1, "shop", frozenset({Scope.RUN}))}
    scope = {"type": "http", "method": "POST", "path": "/task/run", "query_string": b"", "headers": [], "state": state}
    once = Once(Request(scope, receive), cast(Services, SimpleNamespace(ask=ask, requests=requests)), "run-7")
    with pytest.raises(type(error)):
        asyncio.run(once(work))
    assert (done == ["given up"]) == given_up
