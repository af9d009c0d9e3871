"""The vendors' own clients, pointed at a fake server, with their retries off."""

from __future__ import annotations

import httpx2
import openai
from google import genai
from google.genai import types

from tests.fake_provider.samples import KEY
from tests.fake_provider.server import FakeProvider


def openai_client(fake: FakeProvider) -> openai.OpenAI:
    timeout = httpx2.Timeout(10.0)
    return openai.OpenAI(api_key=KEY, base_url=fake.openai_url, max_retries=0, timeout=timeout)


def gemini_client(fake: FakeProvider) -> genai.Client:
    options = types.HttpOptions(
        base_url=fake.gemini_url, api_version="v1beta", timeout=10_000, retry_options=types.HttpRetryOptions(attempts=1)
    )
    return genai.Client(vertexai=False, api_key=KEY, http_options=options)
