"""OpenAI's Batch API: a file of requests is uploaded, worked through within a day at half price, and answered by two files.

https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Final, TypeVar

import openai

from ai_worker.errors import InvalidRequest, ModelUnknown, ProviderError, Transient
from ai_worker.models import Completion, Lane, Prompt
from ai_worker.providers import BATCH_UNKNOWN, BatchLimits, BatchState
from ai_worker.providers._failures import Secrets
from ai_worker.providers._openai_errors import sorted_problem
from ai_worker.providers._openai_wire import failure

T = TypeVar("T")
Row = tuple[str, Completion | ProviderError]

LIMITS: Final = BatchLimits(rows=50_000, bytes=200 * 1000 * 1000)
METADATA: Final = "ai_worker_batch"  # under this name the batch keeps our key
LOOK_BACK: Final = 2 * 86_400  # seconds: a batch lives for one day, and ours is looked for soon after it was made
UPLOAD_TIMEOUT: Final = 300.0  # seconds for the whole file
IN_MEMORY: Final = 8 * 1024 * 1024  # bytes of a file above which it is written to the disk
CHUNK: Final = 64 * 1024  # bytes of a result file that are read at a time

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_UNDONE = frozenset({"batch_expired", "batch_cancelled"})  # what stands for rows that nobody worked on, nor billed


@dataclass(frozen=True, slots=True)
class OpenAIBatches:
    """The batches of one model.

    Parameters
    ----------
    client: gives the client, once inside the event loop.
    headers: what goes with each request. secrets: are taken out of messages.
    path: of the API, as the client calls it: `/chat/completions`.
    body: the request for a prompt.
    read: a Completion from an answer's body; raises ProviderError.
    judge: what becomes of a row's error: another one, or None where the row should be sent again, singly.
    timeout: seconds for one exchange, but for the upload.
    """

    client: Callable[[], openai.AsyncOpenAI]
    headers: Mapping[str, str | openai.Omit]
    secrets: Secrets
    path: str
    body: Callable[[Prompt], Mapping[str, Any]]
    read: Callable[[Mapping[str, Any]], Completion]
    judge: Callable[[ProviderError], ProviderError | None]
    timeout: float

    async def submit(self, key: str, prompts: Sequence[tuple[str, Prompt]]) -> str:
        """See `BatchProvider.submit_batch`. Prompts that are not valid Unicode are left out: one would spoil the whole file."""
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as file:
            await asyncio.to_thread(self._write, file, prompts)
            file.seek(0)

            async def upload(client: openai.AsyncOpenAI) -> str:
                named = (f"ai-worker-{key}.jsonl", file, "application/jsonl")
                return (await client.files.create(file=named, purpose="batch", extra_headers=self.headers)).id

            uploaded = await self._asked(upload, max(UPLOAD_TIMEOUT, self.timeout))

        async def create(client: openai.AsyncOpenAI) -> str:
            made = await client.batches.create(
                input_file_id=uploaded,
                endpoint="/v1" + self.path,  # type: ignore[arg-type] # one of the SDK's literals
                completion_window="24h",
                metadata={METADATA: key},
                extra_headers={**self.headers, "Idempotency-Key": key},
            )
            return made.id

        try:
            return await self._asked(create)
        except Transient:
            raise  # it may have been made all the same, of this file
        except ProviderError:
            await self._delete(uploaded)
            raise

    def _write(self, file: IO[bytes], prompts: Sequence[tuple[str, Prompt]]) -> None:
        written = 0
        for custom_id, prompt in prompts:
            row = {"custom_id": custom_id, "method": "POST", "url": "/v1" + self.path, "body": self.body(prompt)}
            with suppress(UnicodeEncodeError):
                written += file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if not written:
            raise InvalidRequest("none of the texts is valid Unicode")
        if written > LIMITS.bytes or len(prompts) > LIMITS.rows:
            size = f"{len(prompts)} rows in {written} bytes"
            raise InvalidRequest(f"too much for one batch: {size}", code="batch_too_large")

    async def find(self, key: str) -> str | None:
        """See `BatchProvider.find_batch`."""

        async def look(client: openai.AsyncOpenAI) -> str | None:
            since = time.time() - LOOK_BACK
            async for batch in client.batches.list(limit=100, extra_headers=self.headers):  # newest first
                if batch.created_at < since:
                    return None
                if (batch.metadata or {}).get(METADATA) == key:
                    return batch.id
            return None

        return await self._asked(look)

    async def state(self, batch: str) -> BatchState:
        """See `BatchProvider.batch_state`."""

        async def look(client: openai.AsyncOpenAI) -> BatchState:
            found = await client.batches.retrieve(batch, extra_headers=self.headers)
            counts = found.request_counts
            problems = (found.errors.data if found.errors else None) or []
            said = "; ".join(f"{problem.code}: {problem.message}" for problem in problems[:3])
            done, failed, total = (counts.completed, counts.failed, counts.total) if counts else (0, 0, 0)
            return BatchState(found.status in _ENDED, found.status, done, failed, total, said or None)

        return await self._asked(look)

    async def results(self, batch: str) -> AsyncIterator[Row]:
        """See `BatchProvider.batch_results`. No more than a chunk of the files is held at a time."""

        async def files(client: openai.AsyncOpenAI) -> list[str]:
            found = await client.batches.retrieve(batch, extra_headers=self.headers)
            return [file for file in (found.output_file_id, found.error_file_id) if file]

        for file in await self._asked(files):
            async for line in self._lines(file):
                row = self._row(line)
                if row is not None:
                    yield row

    async def cancel(self, batch: str) -> None:
        """See `BatchProvider.cancel_batch`."""

        async def cancel(client: openai.AsyncOpenAI) -> None:
            await client.batches.cancel(batch, extra_headers=self.headers)

        try:
            await self._asked(cancel)
        except ProviderError:
            if not (await self.state(batch)).ended:
                raise

    async def forget(self, batch: str) -> None:
        """See `BatchProvider.forget_batch`."""

        async def files(client: openai.AsyncOpenAI) -> list[str]:
            found = await client.batches.retrieve(batch, extra_headers=self.headers)
            return [file for file in (found.input_file_id, found.output_file_id, found.error_file_id) if file]

        with suppress(ProviderError):
            for file in await self._asked(files):
                await self._delete(file)

    async def _delete(self, file: str) -> None:
        async def delete(client: openai.AsyncOpenAI) -> None:
            await client.files.delete(file, extra_headers=self.headers)

        with suppress(ProviderError):
            await self._asked(delete)

    async def _asked(self, call: Callable[[openai.AsyncOpenAI], Awaitable[T]], limit: float | None = None) -> T:
        """What the call gives. Raises ProviderError only; what the server does not know is no reason to stop the model."""
        limit = limit or self.timeout
        try:
            async with asyncio.timeout(limit):
                return await call(self.client())
        except Exception as error:  # noqa: BLE001 -- whatever an SDK lets out becomes a ProviderError
            problem = sorted_problem(error, limit, self.secrets)
        if isinstance(problem, ModelUnknown):
            problem = InvalidRequest(str(problem), code=BATCH_UNKNOWN)
        raise problem

    async def _lines(self, file: str) -> AsyncIterator[bytes]:
        """The lines of a file. Cut at line feeds alone: the SDK's reader also cuts at signs that stand within JSON strings."""
        rest, problem = b"", None
        try:
            content = self.client().files.with_streaming_response.content(file, extra_headers=self.headers)
            async with content as response:
                async for chunk in response.iter_bytes(CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line
                    await asyncio.sleep(0)  # others get their turn, also while everything is there already
        except Exception as error:  # noqa: BLE001 -- whatever an SDK lets out becomes a ProviderError
            problem = sorted_problem(error, self.timeout, self.secrets)
        if problem is not None:
            raise problem
        if rest:
            yield rest

    def _row(self, line: bytes) -> Row | None:
        """One line's answer or error; None for what has none: a row not done, one to be sent again, a line that says nothing."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
            return None
        custom_id, response, error = row["custom_id"], row.get("response"), row.get("error")
        if isinstance(error, dict) and error.get("code") in _UNDONE:
            return None
        try:
            return custom_id, self._answer(response, error)
        except ProviderError as problem:
            judged = self.judge(problem)
        return None if judged is None else (custom_id, judged)

    def _answer(self, response: object, error: object) -> Completion:
        if not isinstance(response, dict) or not response:
            raise failure(500, error, {}, self.secrets)
        status, body = response.get("status_code"), response.get("body")
        if status != 200 or not isinstance(body, dict):
            raise failure(status if isinstance(status, int) and status != 200 else 500, body, {}, self.secrets)
        request_id = response.get("request_id")
        return self.read(body)._replace(request_id=request_id if isinstance(request_id, str) else None, lane=Lane.BATCH)
