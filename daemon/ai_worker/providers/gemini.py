"""`gemini`: Google's Gemini API, through generateContent.

The SDK builds and sends the request; the answer's JSON is read here (`should_return_http_response`), so that an answer of any
shape is judged by us and the tokens it cost are known first.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from typing import Any

from google import genai
from google.genai import types

from ai_worker.errors import BadAnswer, ConfigurationError, InvalidRequest, ModelStopped, ProviderError
from ai_worker.models import Completion, ImageRequest, Lane, Prompt
from ai_worker.providers import BatchLimits, BatchState, ProviderConfig
from ai_worker.providers._failures import check_base_url, clean, header_safe, secrets_of
from ai_worker.providers._gemini_batch import LIMITS, GeminiBatches
from ai_worker.providers._gemini_errors import sorted_problem
from ai_worker.providers._gemini_wire import read, read_picture, served_in_flex, supported_schema
from ai_worker.providers._images import PICTURE_TIMEOUT, gemini_request, whole_prompt
from ai_worker.providers._options import Options
from ai_worker.providers._structured import LADDER, json_object_in, schema_instruction
from ai_worker.providers._tls import tls_context

OFFICIAL_URL = "https://generativelanguage.googleapis.com/"
FLEX_TIMEOUT = 900.0  # seconds; Google's target is 1 to 15 minutes
CONFIGS_KEPT = 100  # more than there are tasks in work at a time, as a rule
OPTIONS = (
    "api_version",
    "structured",
    "max_output_tokens",
    "temperature",
    "top_p",
    "thinking_budget",
    "thinking_level",
    "safety",
    "extra_body",
)
_SAFETY_CATEGORIES = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")


class GeminiProvider:
    """Gemini models by API key.

    Options: `api_version` (default v1beta); `structured` = json_schema | json_object | text; `max_output_tokens` (thoughts
    included), `temperature` and `top_p` (each otherwise the prompt's); `thinking_budget` in tokens (0 none, -1 the model decides)
    or `thinking_level` (low, high, ...); `safety` = default | off (Google's adjustable filters; what it blocks regardless stays
    blocked); `extra_body`, a JSON object added to each request, but not to those of a batch.
    """

    def __init__(self, config: ProviderConfig) -> None:
        options = Options(config.name, config.options, OPTIONS)
        if not config.model:
            raise ConfigurationError(f"model {config.name!r}: the provider needs a model name")
        key = header_safe(config.api_key, config.name)
        if key is None:
            raise ConfigurationError(f"model {config.name!r}: Gemini needs an API key")
        check_base_url(config.base_url, config.name)
        self._key = key
        self._secrets = secrets_of(key, config.base_url)
        self._model = config.model
        self._config = config
        self._api_version = options.text("api_version", "v1beta")
        self._structured = options.choice("structured", LADDER)
        self._max_output_tokens = options.integer("max_output_tokens", minimum=1)
        self._temperature = options.number("temperature", minimum=0, maximum=2)
        self._top_p = options.number("top_p", minimum=0, maximum=1)
        self._thinking_budget = options.integer("thinking_budget", minimum=-1)
        self._thinking_level = options.text("thinking_level")
        self._safety_off = options.choice("safety", ("default", "off")) == "off"
        self._extra_body = options.mapping("extra_body")
        self._has_flex = True  # until the server refuses it
        self._configs: dict[Hashable, tuple[Mapping[str, Any], types.GenerateContentConfig]] = {}
        self._client: genai.Client | None = None
        self._batches = GeminiBatches(self._connected, self._secrets, config.model, self._batch_config, config.request_timeout)

    def __repr__(self) -> str:
        return f"<GeminiProvider {self._config.name!r}>"

    async def complete(self, prompt: Prompt) -> Completion:
        if prompt.image is not None:
            return await self._picture(prompt, prompt.image)
        flex = prompt.lane is Lane.FLEX and self._has_flex
        try:
            return await self._ask(prompt, flex=flex)
        except (InvalidRequest, ModelStopped) as error:
            if not flex or not re.search(r"service_?tier|\bflex\b", str(error), re.IGNORECASE):
                raise
            self._has_flex = False
        return await self._ask(prompt, flex=False)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aio.aclose()
            self._client.close()  # which the batches use

    # -- batches: see BatchProvider ------------------------------------------------------------------------------------

    @property
    def batch_limits(self) -> BatchLimits:
        return LIMITS

    async def submit_batch(self, key: str, prompts: Sequence[tuple[str, Prompt]]) -> str:
        return await self._batches.submit(key, prompts)

    async def find_batch(self, key: str) -> str | None:
        return await self._batches.find(key)

    async def batch_state(self, batch: str) -> BatchState:
        return await self._batches.state(batch)

    def batch_results(self, batch: str) -> AsyncIterator[tuple[str, Completion | ProviderError]]:
        return self._batches.results(batch)

    async def cancel_batch(self, batch: str) -> None:
        await self._batches.cancel(batch)

    async def forget_batch(self, batch: str) -> None:
        await self._batches.forget(batch)

    def _batch_config(self, prompt: Prompt) -> types.GenerateContentConfig:
        return self._request_config(prompt, flex=False)

    # -- single calls --------------------------------------------------------------------------------------------------

    async def _picture(self, prompt: Prompt, image: ImageRequest) -> Completion:
        """One picture, asked for online whatever the lane."""
        limit = max(self._config.request_timeout, PICTURE_TIMEOUT)
        config = self._image_config(prompt, image, limit)
        answer = await self._sent(whole_prompt(prompt), config, limit, Lane.ONLINE)
        said, file = await asyncio.to_thread(
            lambda: read_picture(self._json(answer), self._secrets)
        )  # megabytes of JSON and base64
        return Completion(said.text, said.usage, said.finish, said.model, said.request_id, files=(file,))

    def _image_config(self, prompt: Prompt, image: ImageRequest, limit: float) -> types.GenerateContentConfig:
        ratio, resolution = gemini_request(image)
        settings: dict[str, Any] = {}
        if ratio or resolution:
            settings["image_config"] = types.ImageConfig(aspect_ratio=ratio, image_size=resolution)
        return types.GenerateContentConfig(
            response_modalities=["IMAGE"],
            temperature=prompt.temperature if self._temperature is None else self._temperature,
            http_options=types.HttpOptions(timeout=round(limit * 1000)),
            automatic_continuation=False,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            should_return_http_response=True,
            **self._safety(),
            **settings,
        )

    def _json(self, answer: types.HttpResponse) -> Mapping[str, Any]:
        content = answer.body or ""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):  # nested deeper than anybody needs
            body = None
        if not isinstance(body, dict):
            raise BadAnswer(f"HTTP 200, but not with a JSON object: {clean(content, self._secrets)}", code="not_json")
        return body

    async def _ask(self, prompt: Prompt, *, flex: bool) -> Completion:
        answer = await self._generate(prompt, flex=flex)
        said = read(self._json(answer), self._secrets)
        lane = Lane.FLEX if flex and served_in_flex(answer.headers or {}) else said.lane
        return Completion(json_object_in(said.text), said.usage, said.finish, said.model, said.request_id, lane)

    async def _generate(self, prompt: Prompt, *, flex: bool) -> types.HttpResponse:
        limit = max(self._config.request_timeout, FLEX_TIMEOUT) if flex else self._config.request_timeout
        config = self._request_config(prompt, flex=flex)
        return await self._sent(prompt.user, config, limit, Lane.FLEX if flex else Lane.ONLINE)

    async def _sent(self, contents: str, config: types.GenerateContentConfig, limit: float, lane: Lane) -> types.HttpResponse:
        """The answer's headers and text.

        Raises ProviderError only, and outside the `except`: the SDK's errors hold the response, its request, and that the key.
        """
        try:
            async with asyncio.timeout(limit):
                response = await self._connected().aio.models.generate_content(
                    model=self._model, contents=contents, config=config
                )
                return response.sdk_http_response or types.HttpResponse()
        except Exception as error:  # noqa: BLE001 -- whatever an SDK lets out becomes a ProviderError
            problem = sorted_problem(error, limit, self._secrets, lane)
        raise problem

    def _request_config(self, prompt: Prompt, *, flex: bool) -> types.GenerateContentConfig:
        """What stands around the row's text: the same for all items of a task, and dear to build. The SDK works on copies."""
        key = (prompt.system, id(prompt.schema), prompt.temperature, prompt.top_p, prompt.max_output_tokens, flex)
        known = self._configs.get(key)
        if known is None:
            if len(self._configs) >= CONFIGS_KEPT:
                self._configs.clear()
            known = (prompt.schema, self._built_config(prompt, flex=flex))
            self._configs[key] = known  # with the schema, so that its id stays its own
        return known[1]

    def _built_config(self, prompt: Prompt, *, flex: bool) -> types.GenerateContentConfig:
        settings: dict[str, Any] = {}
        if flex:
            settings["service_tier"] = types.ServiceTier.FLEX
            limit = max(self._config.request_timeout, FLEX_TIMEOUT)
            settings["http_options"] = types.HttpOptions(timeout=round(limit * 1000))
        system = prompt.system
        if self._structured == "json_schema":
            settings["response_json_schema"] = supported_schema(prompt.schema)
        else:
            system += schema_instruction(prompt.schema)
        if self._structured != "text":
            settings["response_mime_type"] = "application/json"
        if self._thinking_budget is not None or self._thinking_level is not None:
            level = types.ThinkingLevel(self._thinking_level.upper()) if self._thinking_level else None
            settings["thinking_config"] = types.ThinkingConfig(thinking_budget=self._thinking_budget, thinking_level=level)
        settings |= self._safety()
        return types.GenerateContentConfig(
            system_instruction=system,
            temperature=prompt.temperature if self._temperature is None else self._temperature,
            top_p=prompt.top_p if self._top_p is None else self._top_p,
            max_output_tokens=prompt.max_output_tokens if self._max_output_tokens is None else self._max_output_tokens,
            automatic_continuation=False,  # on by default: one call would become several billed ones
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            should_return_http_response=True,
            **settings,
        )

    def _safety(self) -> dict[str, Any]:
        if not self._safety_off:
            return {}
        off = types.HarmBlockThreshold.OFF
        categories = [types.HarmCategory(f"HARM_CATEGORY_{category}") for category in _SAFETY_CATEGORIES]
        return {"safety_settings": [types.SafetySetting(category=category, threshold=off) for category in categories]}

    def _connected(self) -> genai.Client:
        """The client; made on first use, inside the event loop that its connections will belong to."""
        if self._client is None:
            self._client = genai.Client(
                vertexai=False,  # whatever the environment says: only the model's row counts
                api_key=self._key,
                http_options=types.HttpOptions(
                    base_url=self._config.base_url or OFFICIAL_URL,
                    api_version=self._api_version,
                    timeout=max(1, round(self._config.request_timeout * 1000)),  # milliseconds; the SDK has no default
                    # Without options, the SDK's aiohttp transport sleeps up to 10 s and sends again on a lost connection.
                    retry_options=types.HttpRetryOptions(attempts=1),
                    extra_body=self._extra_body or None,
                    client_args={"verify": tls_context()},
                    async_client_args={"verify": tls_context(), "ssl": tls_context()},  # httpx's name, and aiohttp's
                ),
            )
        return self._client
