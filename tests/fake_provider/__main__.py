"""`python -m tests.fake_provider --port 0 --latency-ms 50`: prints its URL on the first line, then serves until it is ended.

GET  /_counts             how many requests, in flight, answered, distinct texts, requests per text, per status, refused by
                          a limit, tokens, and the most of requests and tokens within any 60 s (?window=10: within any 10 s)
GET  /_timeline?bucket=1  what was accepted, refused and failed in each second, and its tokens
GET  /_texts              for each text how often it was asked for, done as a row of a batch, and billed
GET  /_batches            how batches run, all there were, and the files
POST /_batches            {"seconds": 2, "hold": true, "expire_after": 10, ...}: see `BatchSettings`; what is not named stays
POST /_batches/release    lets the batches that are held go on
GET  /_asked              text, schema_name, model, is_picture and status of each of the last requests, oldest first
POST /_pictures           {"bytes": 8388608}: how large pictures are from now on; {} for as they come out
GET  /_requests           the last requests
GET  /_limits             what is enforced
POST /_limits             {"requests_per_minute": 600, "tokens_per_minute": 60000, ...}: see `Limits`; {} for none
POST /_script             [{"fault": "429", "times": 3}, ...]: see `Rule`
POST /_reset              forgets script, requests, counts, files and batches; limits and settings are again those of the command
                          line
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from tests.fake_provider import BatchSettings, FakeProvider, Limits
from tests.fake_provider.tokens import COUNTS


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
    parser.add_argument("--count", choices=list(COUNTS), default="texts", help="how tokens are counted")
    limits = parser.add_argument_group("limits", "What is enforced; nothing by default.")
    limits.add_argument("--requests-per-minute", type=float)
    limits.add_argument("--tokens-per-minute", type=float)
    limits.add_argument("--max-in-flight", type=int)
    limits.add_argument("--limit-count", choices=["sliding", "bucket"], default="sliding", help="how a minute is counted")
    limits.add_argument("--limit-seconds", type=float, default=60.0, help="the length of the sliding window")
    limits.add_argument("--limit-burst", type=float, default=1.0, help="the bucket's size, as a share of the minute's worth")
    limits.add_argument("--limit-per", choices=["server", "model"], default="server")
    limits.add_argument("--limit-charge", choices=["total", "input"], default="total", help="which tokens count")
    limits.add_argument("--no-limit-headers", action="store_true", help="without x-ratelimit-... headers")
    limits.add_argument("--no-retry-after", action="store_true", help="a 429 does not say how long to wait")
    batches = parser.add_argument_group("batches")
    batches.add_argument("--batch-seconds", type=float, default=0.5, help="how long a batch takes")
    batches.add_argument(
        "--batch-hold", action="store_true", help="batches wait for POST /_batches/release before their first row"
    )
    options = parser.parse_args()
    enforced = Limits(
        options.requests_per_minute,
        options.tokens_per_minute,
        options.max_in_flight,
        count=options.limit_count,
        seconds=options.limit_seconds,
        burst=options.limit_burst,
        per=options.limit_per,
        charge=options.limit_charge,
        headers=not options.no_limit_headers,
        retry_after=not options.no_retry_after,
    )
    asyncio.run(
        serve(
            FakeProvider(
                port=options.port,
                latency_ms=options.latency_ms,
                keep=options.keep,
                limits=enforced,
                count=options.count,
                batches=BatchSettings(options.batch_seconds, options.batch_hold),
            )
        )
    )
