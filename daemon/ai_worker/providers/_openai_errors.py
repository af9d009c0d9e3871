"""What the SDK of OpenAI and its transports raise, sorted."""

from __future__ import annotations

import aiohttp
import httpx2
import openai

from ai_worker.errors import InvalidRequest, ProviderError
from ai_worker.providers._failures import Secrets, network_failure, unexpected
from ai_worker.providers._openai_wire import failure


def sorted_problem(error: Exception, limit: float, secrets: Secrets) -> ProviderError:
    """The error to raise instead, outside the `except`: the SDK's errors hold the request, and that the key.

    `limit` is the time in seconds that the whole exchange was given.
    """
    match error:
        case openai.APIStatusError():
            return failure(error.status_code, error.body or error.response.text, error.response.headers, secrets)
        case openai.APIConnectionError() | httpx2.HTTPError() | aiohttp.ClientError() | OSError():  # OSError: TimeoutError too
            return network_failure(error, limit, secrets)
        case UnicodeEncodeError():
            return InvalidRequest(f"the text is not valid Unicode: {error.reason}")
        case _:
            return unexpected(error, secrets)
