"""A fake provider in a process of its own is controlled and asked over HTTP: the paths are listed in `__main__`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fake_provider.faults import Rule
from tests.fake_provider.limits import Limits

if TYPE_CHECKING:  # it imports this module
    from tests.fake_provider.server import FakeProvider


def control_routes(fake: FakeProvider) -> list[web.RouteDef]:
    """The routes under `/_...`. A wrong request is answered with 400 and the reason."""

    async def script(request: web.Request) -> Any:
        fake.script(*(Rule(**entry) for entry in await request.json()))
        return {"rules": len(fake.rules)}

    async def reset(request: web.Request) -> Any:
        fake.reset()
        return {}

    async def counts(request: web.Request) -> Any:
        return fake.counts(float(request.query.get("window", 60)))

    async def texts(request: web.Request) -> Any:
        return fake.texts()

    async def timeline(request: web.Request) -> Any:
        return fake.tally.timeline(float(request.query.get("bucket", 1)))

    async def requests(request: web.Request) -> Any:
        return [asdict(one) for one in fake.requests]

    async def asked(request: web.Request) -> Any:
        return fake.asked()

    async def pictures(request: web.Request) -> Any:
        fake.set_pictures(**await request.json())
        return {"bytes": fake.answering.picture_bytes}

    async def limits(request: web.Request) -> Any:
        if request.method == "POST":
            fake.limit(Limits(**await request.json()))
        return asdict(fake.limiter.limits)

    async def batches(request: web.Request) -> Any:
        if request.method == "POST":
            fake.set_batches(**await request.json())
        return {"settings": asdict(fake.batches.settings), **fake.batches.counts(), "files": fake.files}

    async def release(request: web.Request) -> Any:
        return {"released": fake.batches.release()}

    return [
        web.post("/_script", _answered(script)),
        web.post("/_reset", _answered(reset)),
        web.get("/_counts", _answered(counts)),
        web.get("/_texts", _answered(texts)),
        web.get("/_timeline", _answered(timeline)),
        web.get("/_requests", _answered(requests)),
        web.get("/_asked", _answered(asked)),
        web.post("/_pictures", _answered(pictures)),
        web.get("/_limits", _answered(limits)),
        web.post("/_limits", _answered(limits)),
        web.get("/_batches", _answered(batches)),
        web.post("/_batches", _answered(batches)),
        web.post("/_batches/release", _answered(release)),
    ]


def _answered(act: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(await act(request))
        except (TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle
