"""What Google's SDK and its transports raise, sorted."""

from __future__ import annotations

import json

import aiohttp
import httpx2
from google.genai import errors

from ai_worker.errors import InvalidRequest, Overloaded, ProviderError
from ai_worker.models import Lane
from ai_worker.providers._failures import Secrets, network_failure, unexpected
from ai_worker.providers._gemini_wire import failure


def sorted_problem(error: Exception, limit: float, secrets: Secrets, lane: Lane = Lane.ONLINE) -> ProviderError:
    """The error to raise instead, outside the `except`: the SDK's errors hold the response, its request, and that the key.

    `limit` is the time in seconds that the whole exchange was given; `lane` the one that was asked for.
    """
    match error:
        case errors.APIError():
            return failure(error.code, error.details, getattr(error.response, "headers", None) or {}, secrets, lane)
        case aiohttp.ClientError() | httpx2.HTTPError() | OSError():  # OSError: TimeoutError too
            return network_failure(error, limit, secrets)
        case json.JSONDecodeError():  # a 200 is not parsed by the SDK: this came with an error status, which it then forgets
            return Overloaded("an HTTP error whose body is broken JSON", code="not_json")
        case UnicodeEncodeError():
            return InvalidRequest(f"the text is not valid Unicode: {error.reason}")
        case _:
            return unexpected(error, secrets)
