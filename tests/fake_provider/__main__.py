"""`python -m tests.fake_provider --port 0 --latency-ms 50`: prints its URL on the first line, then serves until it is ended.

GET  /_counts    how many requests, in flight, answered, distinct texts, requests per text
GET  /_requests  the last requests
POST /_script    [{"fault": "429", "times": 3}, ...]: see `Rule`
POST /_reset     forgets script, requests and counts
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from tests.fake_provider import FakeProvider


async def serve(fake: FakeProvider) -> None:
    runner = await fake.start()
    print(fake.url, flush=True)  # noqa: T201 -- the caller reads it
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: ended by force
            loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how long each answer takes")
    parser.add_argument("--keep", type=int, default=1000, help="how many of the last requests /_requests holds")
    options = parser.parse_args()
    asyncio.run(serve(FakeProvider(port=options.port, latency_ms=options.latency_ms, keep=options.keep)))
