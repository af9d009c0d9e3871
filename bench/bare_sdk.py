"""The baseline of `calls`: the same calls through the same SDK and transport in a plain asyncio loop, and nothing else.

What a competent user would write: one client over aiohttp, without retries; so many workers that take the next text from one
list; `chat.completions.create`, `responses.create` or `models.generate_content`, each with the answer's JSON schema; the answer
read through the SDK's own models and decoded. asyncio's own event loop, the garbage collector as it comes. No database, no
checks, nothing stored. A process of its own, as the worker is one: the job comes as JSON on standard input, the figures go to
standard output.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

WARM_UP = 20  # calls: the client is built and its code loaded


@dataclass(frozen=True, slots=True)
class Job:
    """So many calls, so many at a time. `user` holds the text's number as `%d`."""

    api: str
    base_url: str
    items: int
    in_flight: int
    system: str
    user: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """Seconds on the clock, and of CPU, without the warm-up."""

    seconds: float
    cpu: float


def run(job: Job) -> Done:
    """Does the job in a process of its own."""
    command = [sys.executable, "-m", "bench.bare_sdk"]
    done = subprocess.run(command, input=json.dumps(asdict(job)), stdout=subprocess.PIPE, text=True, check=True)
    return Done(**json.loads(done.stdout))


Ask = Callable[[str], Awaitable[str]]
Close = Callable[[], Awaitable[None]]


def _openai(job: Job) -> tuple[Ask, Close]:
    import openai

    client = openai.AsyncOpenAI(
        api_key="none", base_url=job.base_url, max_retries=0, timeout=60.0, http_client=openai.DefaultAioHttpClient()
    )
    described: Any = {"name": "correction", "schema": job.schema, "strict": True}

    async def chat(user: str) -> str:
        completion = await client.chat.completions.create(
            model="bench",
            messages=[{"role": "system", "content": job.system}, {"role": "user", "content": user}],
            response_format={"type": "json_schema", "json_schema": described},
            temperature=0.0,
        )
        return completion.choices[0].message.content or ""

    async def responses(user: str) -> str:
        response = await client.responses.create(
            model="bench",
            input=[{"role": "system", "content": job.system}, {"role": "user", "content": user}],
            text={"format": {"type": "json_schema", **described}},
            temperature=0.0,
            store=False,
        )
        return response.output_text

    return chat if job.api == "chat" else responses, client.close


def _gemini(job: Job) -> tuple[Ask, Close]:
    from google import genai
    from google.genai import types

    client = genai.Client(
        vertexai=False,
        api_key="none",
        http_options=types.HttpOptions(
            base_url=job.base_url, api_version="v1beta", timeout=60_000, retry_options=types.HttpRetryOptions(attempts=1)
        ),
    )
    config = types.GenerateContentConfig(
        system_instruction=job.system,
        response_mime_type="application/json",
        response_json_schema=job.schema,
        temperature=0.0,
        automatic_continuation=False,
    )

    async def generate(user: str) -> str:
        response = await client.aio.models.generate_content(model="bench", contents=user, config=config)
        return response.text or ""

    return generate, client.aio.aclose


async def _work(job: Job) -> Done:
    ask, close = _gemini(job) if job.api == "gemini" else _openai(job)

    async def worker(numbers: Any) -> None:
        for number in numbers:
            json.loads(await ask(job.user.replace("%d", str(number))))

    warm_up = iter(range(job.items, job.items + WARM_UP))
    await asyncio.gather(*(worker(warm_up) for _ in range(WARM_UP)))
    numbers = iter(range(job.items))
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(worker(numbers) for _ in range(job.in_flight)))
    done = Done(time.monotonic() - began, time.process_time() - cpu)
    await close()
    return done


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_work(Job(**json.load(sys.stdin)))))))
