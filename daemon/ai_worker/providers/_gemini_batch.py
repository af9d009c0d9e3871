"""Gemini's Batch API with inlined requests: handed in at once, worked through within a day at half price.

https://ai.google.dev/gemini-api/docs/batch-api

The SDK turns requests and answers into its own objects and back: a millisecond a row, during which the event loop would stand
still. So all of it is done in a thread, by the SDK's synchronous client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from google import genai
from google.genai import types

from ai_worker.errors import InvalidRequest, ModelUnknown, ProviderError
from ai_worker.models import Completion, Lane, Prompt
from ai_worker.providers import BATCH_UNKNOWN, BatchLimits, BatchState
from ai_worker.providers._failures import Secrets
from ai_worker.providers._gemini_errors import sorted_problem
from ai_worker.providers._gemini_wire import failure, read
from ai_worker.providers._structured import json_object_in

T = TypeVar("T")
Row = tuple[str, Completion | ProviderError]

LIMITS: Final = BatchLimits(rows=5_000, bytes=19 * 1000 * 1000)  # Google's: 20 MB of requests; the rows are for our memory's sake
TRANSFER_TIMEOUT: Final = 300.0  # seconds for exchanges that carry all rows
LOOK_BACK: Final = 2 * 86_400  # seconds; Google ends batches after 48 hours
MOST_LOOKED_AT: Final = 2_000  # batches, when ours is looked for

_ID = "id"  # under this name each request's metadata keep our id
_ENDED = frozenset({"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"})  # BatchJob.done leaves one out
_CUT_SHORT = frozenset({"CANCELLED", "EXPIRED"})

# google.rpc.Code -> HTTP, by https://cloud.google.com/apis/design/errors#handling_errors
_HTTP = {1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 16: 401}
_UNDONE = frozenset({1, 4})  # what stands for rows that nobody worked on, in a batch that was cut short


@dataclass(frozen=True, slots=True)
class GeminiBatches:
    """The batches of one model.

    Parameters
    ----------
    client: gives the client. secrets: are taken out of messages. model: the model's name.
    config: what stands around a prompt's text.
    timeout: seconds for one exchange; those that carry all rows have longer.
    """

    client: Callable[[], genai.Client]
    secrets: Secrets
    model: str
    config: Callable[[Prompt], types.GenerateContentConfig]
    timeout: float

    async def submit(self, key: str, prompts: Sequence[tuple[str, Prompt]]) -> str:
        """See `BatchProvider.submit_batch`. Prompts that are not valid Unicode are left out: one would spoil all."""

        def create(client: genai.Client, options: types.HttpOptions) -> str:
            requests = [
                types.InlinedRequest(contents=prompt.user, config=self.config(prompt), metadata={_ID: row})
                for row, prompt in prompts
                if _is_unicode(prompt)
            ]
            config = types.CreateBatchJobConfig(display_name=key, http_options=options)
            return _name(client.batches.create(model=self.model, src=requests, config=config))

        size = sum(
            len(prompt.user.encode(errors="replace")) + len(prompt.system.encode(errors="replace")) for _, prompt in prompts
        )
        if size > LIMITS.bytes or len(prompts) > LIMITS.rows:
            raise InvalidRequest(f"too much for one batch: {len(prompts)} rows of {size} bytes", code="batch_too_large")
        return await self._asked(create, max(TRANSFER_TIMEOUT, self.timeout), names_model=True)

    async def find(self, key: str) -> str | None:
        """See `BatchProvider.find_batch`."""

        def look(client: genai.Client, options: types.HttpOptions) -> str | None:
            since = time.time() - LOOK_BACK
            jobs = client.batches.list(config=types.ListBatchJobsConfig(page_size=100, http_options=options))
            for number, job in enumerate(jobs):
                if number >= MOST_LOOKED_AT or (job.create_time is not None and job.create_time.timestamp() < since):
                    return None
                if job.display_name == key and job.name:
                    return job.name
            return None

        return await self._asked(look)

    async def state(self, batch: str) -> BatchState:
        """See `BatchProvider.batch_state`. Rows are counted when it has ended: until then the SDK leaves the counts out."""

        def look(client: genai.Client, options: types.HttpOptions) -> BatchState:
            job = self._get(client, options, batch)
            status, rows = _status(job), _rows(job)
            failed = sum(row.error is not None for row in rows)
            message = job.error.message if job.error else None
            return BatchState(status in _ENDED, status, len(rows) - failed, failed, len(rows), message)

        return await self._asked(look, max(TRANSFER_TIMEOUT, self.timeout))

    async def results(self, batch: str) -> AsyncIterator[Row]:
        """See `BatchProvider.batch_results`. Rows that come without our id are left out: none is taken by its place alone."""

        def fetch(client: genai.Client, options: types.HttpOptions) -> list[Row]:
            job = self._get(client, options, batch)
            found = (self._row(row, cut_short=_status(job) in _CUT_SHORT) for row in _rows(job))
            return [row for row in found if row is not None]

        for row in await self._asked(fetch, max(TRANSFER_TIMEOUT, self.timeout)):
            yield row

    def _row(self, row: types.InlinedResponse, *, cut_short: bool) -> Row | None:
        row_id = (row.metadata or {}).get(_ID)
        if row_id is None:
            return None
        try:
            if row.error is not None:
                code = row.error.code or 2
                if cut_short and code in _UNDONE:
                    return None
                raise failure(_HTTP.get(code, 500), {"error": {"message": row.error.message}}, {}, self.secrets)
            body = row.response.model_dump(mode="json", by_alias=True, exclude_none=True) if row.response else {}
            said = read(body, self.secrets)
        except ProviderError as problem:
            return row_id, problem
        text = json_object_in(said.text)
        return row_id, Completion(text, said.usage, said.finish, said.model, said.request_id, Lane.BATCH)

    async def cancel(self, batch: str) -> None:
        """See `BatchProvider.cancel_batch`."""

        def cancel(client: genai.Client, options: types.HttpOptions) -> None:
            client.batches.cancel(name=batch, config=types.CancelBatchJobConfig(http_options=options))

        try:
            await self._asked(cancel)
        except ProviderError:
            if not (await self.state(batch)).ended:
                raise

    async def forget(self, batch: str) -> None:
        """See `BatchProvider.forget_batch`."""

        def delete(client: genai.Client, options: types.HttpOptions) -> None:
            client.batches.delete(name=batch, config=types.DeleteBatchJobConfig(http_options=options))

        with suppress(ProviderError):
            await self._asked(delete)

    @staticmethod
    def _get(client: genai.Client, options: types.HttpOptions, batch: str) -> types.BatchJob:
        return client.batches.get(name=batch, config=types.GetBatchJobConfig(http_options=options))

    async def _asked(
        self, call: Callable[[genai.Client, types.HttpOptions], T], limit: float | None = None, *, names_model: bool = False
    ) -> T:
        """What the call gives, made in a thread. Raises ProviderError only; `names_model`: a 404 may mean the model."""
        limit = limit or self.timeout
        client = self.client()
        # The option `extra_body` belongs to generateContent; here it would spoil the request around the requests.
        options = types.HttpOptions(timeout=max(1, round(limit * 1000)), extra_body={})
        try:
            async with asyncio.timeout(limit):
                return await asyncio.to_thread(call, client, options)
        except Exception as error:  # noqa: BLE001 -- whatever an SDK lets out becomes a ProviderError
            problem = sorted_problem(error, limit, self.secrets)
        if isinstance(problem, ModelUnknown) and not names_model:
            problem = InvalidRequest(str(problem), code=BATCH_UNKNOWN)
        raise problem


def _is_unicode(prompt: Prompt) -> bool:
    try:
        (prompt.system + prompt.user).encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(job: types.BatchJob) -> str:
    if not job.name:
        raise ValueError("the batch has no name")
    return job.name


def _status(job: types.BatchJob) -> str:
    return job.state.value.removeprefix("JOB_STATE_") if job.state else "UNSPECIFIED"


def _rows(job: types.BatchJob) -> list[types.InlinedResponse]:
    return (job.dest.inlined_responses if job.dest else None) or []
