"""`openai`: OpenAI, and every server that speaks its protocol (vLLM, Ollama, DeepSeek, Azure, Venice, OpenRouter, ...).

The SDK serves as transport: its retries are off, and the answer's JSON is read here. Its models would cost half as much time
again per call, and raise before the tokens that an unusable answer cost are known.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx2
import openai

from ai_worker.errors import BadAnswer, ConfigurationError, InvalidRequest, ModelStopped, ProviderError
from ai_worker.models import Completion, Lane, Prompt
from ai_worker.providers import BatchLimits, BatchState, ProviderConfig
from ai_worker.providers._failures import Secrets, check_base_url, clean, header_safe, secrets_of
from ai_worker.providers._images import PICTURE_TIMEOUT, openai_picture, openai_request
from ai_worker.providers._limits import LimitsReader
from ai_worker.providers._openai_batch import LIMITS, OpenAIBatches
from ai_worker.providers._openai_errors import sorted_problem
from ai_worker.providers._openai_wire import Said, images_usage, read_chat, read_responses
from ai_worker.providers._options import Options
from ai_worker.providers._structured import LADDER, OfSchema, json_object_in, schema_instruction
from ai_worker.providers._tls import tls_context

OFFICIAL_URL = "https://api.openai.com/v1"
FLEX_TIMEOUT = 900.0  # seconds; both vendors advise a quarter of an hour
IMAGES = "/images/generations"
CONNECT_TIMEOUT = 15.0  # seconds for DNS, TCP and TLS; a host that is up answers far sooner

OPTIONS = ("api", "structured", "max_output_tokens", "temperature", "top_p", "reasoning_effort", "flex", "headers", "extra_body")

# How servers say, with a 400 or 422, that they do not take a parameter; and what they call the one that asks for structure.
_REFUSED = (
    "unsupported",
    "not support",
    "unavailable",
    "not available",
    "invalid",
    "unknown",
    "unrecognized",
    "must be",
    "deserialize",
    "permitted",
)
_FLEX = ("service_tier", "flex is", "flex processing")
_FORMATS = ("response_format", "json_schema", "json_object", "text.format", "guided")
# Codes that find fault with the model's options, not with the item: the next item would fare no better.
_SAME_FOR_EVERY_ITEM = ("unsupported_parameter", "unsupported_value", "unknown_parameter")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What this server and model understand. Starts from the options and is narrowed when the server refuses something."""

    structured: str
    limit_fields: tuple[str, ...]  # chat's names for the output limit, the one to use first; OpenAI renamed it, others have not
    sampling: frozenset[str] = frozenset({"temperature", "top_p"})
    flex: bool = False  # whether the cheaper tier can be asked for

    def narrowed(self, complaint: str) -> Dialect | None:
        """The dialect without what the server refused; None when its complaint is about something else."""
        complaint = complaint.lower()
        if not any(word in complaint for word in _REFUSED):
            return None
        if len(self.limit_fields) > 1 and self.limit_fields[0] in complaint:
            return replace(self, limit_fields=self.limit_fields[1:])
        if self.flex and any(word in complaint for word in _FLEX):
            return replace(self, flex=False)
        kept = self.sampling - {name for name in self.sampling if f"'{name}'" in complaint}
        if kept != self.sampling:
            return replace(self, sampling=kept)
        if self.structured != LADDER[-1] and any(word in complaint for word in _FORMATS):
            return replace(self, structured=LADDER[LADDER.index(self.structured) + 1])
        return None


class Api(Protocol):
    """One of OpenAI's two ways to ask: where to, the request, and reading its answer."""

    @property
    def path(self) -> str: ...

    def body(self, prompt: Prompt, system: str, dialect: Dialect, settings: Settings) -> dict[str, Any]: ...

    def read(self, body: Mapping[str, Any], secrets: Secrets) -> Said: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that go into a request as they are."""

    model: str
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    reasoning_effort: str | None
    extra_body: dict[str, Any]


class OpenAIProvider:
    """Chat completions (default) or responses, with the answer held to the prompt's JSON schema as far as the server can; the
    images API for prompts that ask for a picture, with the model's `extra_body` and no other option.

    Options: `api` = chat | responses; `structured` = json_schema | json_object | text (where to start; a server that refuses
    one gets the next, and the instance remembers); `max_output_tokens` (reasoning included), `temperature` and `top_p` (each
    otherwise the prompt's), `reasoning_effort`; `flex` = auto | on | off: whether prompts of the lane flex ask for that tier
    (`service_tier`) and may take 15 minutes, auto: at OpenAI itself, others are asked online; `headers` and `extra_body`, JSON
    objects added to each request (no place for secrets).
    """

    def __init__(self, config: ProviderConfig) -> None:
        options = Options(config.name, config.options, OPTIONS)
        self._api: Api = _Chat() if options.choice("api", ("chat", "responses")) == "chat" else _Responses()
        if not config.model:
            raise ConfigurationError(f"model {config.name!r}: the provider needs a model name")
        self._settings = Settings(
            config.model,
            options.integer("max_output_tokens", minimum=1),
            options.number("temperature", minimum=0, maximum=2),
            options.number("top_p", minimum=0, maximum=1),
            options.text("reasoning_effort"),
            options.mapping("extra_body"),
        )
        self._key = header_safe(config.api_key, config.name)
        extra = options.headers("headers")
        self._headers = _headers(extra, self._key)
        check_base_url(config.base_url, config.name)
        self._secrets = secrets_of(self._key, config.base_url, extra)
        if self._key is None and config.base_url is None:
            raise ConfigurationError(f"model {config.name!r}: api.openai.com needs an API key")
        self._config = config
        official = config.base_url is None or config.base_url.rstrip("/") == OFFICIAL_URL
        limit_fields = ("max_completion_tokens",) if official else ("max_tokens", "max_completion_tokens")
        flex = options.choice("flex", ("auto", "on", "off"))
        self._dialect = Dialect(
            options.choice("structured", LADDER), limit_fields, flex=flex == "on" or (flex == "auto" and official)
        )
        self._limits = LimitsReader()
        self._widest = self._dialect
        self._batches = OpenAIBatches(
            self._connected,
            self._headers,
            self._secrets,
            self._api.path,
            self._batch_body,
            self._read,
            self._judged,
            config.request_timeout,
        )
        self._client: openai.AsyncOpenAI | None = None

    def __repr__(self) -> str:
        return f"<OpenAIProvider {self._config.name!r}>"

    async def complete(self, prompt: Prompt) -> Completion:
        if prompt.image is not None:
            return await self._picture(prompt)
        while True:
            dialect = self._dialect
            try:
                return await self._ask(prompt, dialect)
            except InvalidRequest as error:
                refusal = error
            narrower = dialect.narrowed(str(refusal))
            if narrower is None:
                raise _of_all_items(refusal) or refusal
            # Nothing was billed. Each turn narrows the dialect, or another call already has: the loop ends.
            if self._dialect is dialect:
                self._dialect = narrower

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

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

    def _batch_body(self, prompt: Prompt) -> dict[str, Any]:
        body = self._body(prompt, self._dialect)
        body.pop("service_tier", None)  # of `extra_body`; a batch has a tier of its own, and refuses others
        return body

    def _read(self, body: Mapping[str, Any]) -> Completion:
        said = self._api.read(body, self._secrets)
        return Completion(json_object_in(said.text), said.usage, said.finish, said.model, lane=said.lane)

    def _judged(self, error: ProviderError) -> ProviderError | None:
        """A batch's rows cannot be asked again in a narrower dialect: those that want it are left out, to be sent singly."""
        if not isinstance(error, InvalidRequest):
            return error
        return None if self._widest.narrowed(str(error)) else _of_all_items(error) or error

    async def _picture(self, prompt: Prompt) -> Completion:
        """One picture, asked for online whatever the lane: the images API has no other tier."""
        try:
            answer = await self._post(
                openai_request(self._settings.model, prompt, self._settings.extra_body),
                max(self._config.request_timeout, PICTURE_TIMEOUT),
                IMAGES,
            )
        except InvalidRequest as error:
            refusal = error
        else:
            return await asyncio.to_thread(self._read_picture, answer, prompt)  # megabytes of JSON and base64
        raise _of_all_items(refusal) or refusal

    def _read_picture(self, answer: httpx2.Response, prompt: Prompt) -> Completion:
        body = self._json(answer)
        usage = images_usage(body, self._secrets)
        file, words = openai_picture(body, self._secrets, usage, prompt.image and prompt.image.format)
        request_id = answer.headers.get("x-request-id")
        return Completion(
            words, usage, model=self._settings.model, request_id=request_id, limits=self._limits(answer.headers), files=(file,)
        )

    def _json(self, answer: httpx2.Response) -> Mapping[str, Any]:
        try:
            content = json.loads(answer.content)
        except (ValueError, RecursionError):  # nested deeper than anybody needs
            content = None
        if not isinstance(content, dict):
            start = clean(answer.content.decode(errors="replace"), self._secrets)
            raise BadAnswer(f"HTTP 200, but not with a JSON object: {start}", code="not_json")
        return content

    async def _ask(self, prompt: Prompt, dialect: Dialect) -> Completion:
        body = self._body(prompt, dialect)
        limit = self._config.request_timeout
        if prompt.lane is Lane.FLEX and dialect.flex:
            body.setdefault("service_tier", "flex")
            limit = max(limit, FLEX_TIMEOUT)
        answer = await self._post(body, limit, self._api.path)
        said = self._api.read(self._json(answer), self._secrets)
        limits, request_id = self._limits(answer.headers), answer.headers.get("x-request-id")
        return Completion(json_object_in(said.text), said.usage, said.finish, said.model, request_id, said.lane, limits)

    def _body(self, prompt: Prompt, dialect: Dialect) -> dict[str, Any]:
        system = prompt.system if dialect.structured == "json_schema" else prompt.system + schema_instruction(prompt.schema)
        return self._api.body(prompt, system, dialect, self._settings)

    async def _post(self, body: dict[str, Any], limit: float, path: str) -> httpx2.Response:
        """The answer to the request, within `limit` seconds.

        Raises ProviderError only, and outside the `except`: the SDK's errors hold the request, and that the key.
        """
        options: openai.RequestOptions = {"headers": self._headers}
        if limit != self._config.request_timeout:
            options["timeout"] = httpx2.Timeout(limit, connect=min(CONNECT_TIMEOUT, limit))
        try:
            async with asyncio.timeout(limit):
                return await self._connected().post(path, cast_to=httpx2.Response, body=body, options=options)
        except Exception as error:  # noqa: BLE001 -- whatever an SDK lets out becomes a ProviderError
            problem = sorted_problem(error, limit, self._secrets)
        raise problem

    def _connected(self) -> openai.AsyncOpenAI:
        """The client; made on first use, inside the event loop that its connections will belong to."""
        if self._client is None:
            limit = self._config.request_timeout
            timeout = httpx2.Timeout(limit, connect=min(CONNECT_TIMEOUT, limit))
            pool = httpx2.Limits(max_connections=self._config.max_connections, keepalive_expiry=30.0)
            self._client = openai.AsyncOpenAI(
                api_key=self._key or "none",  # without one the SDK looks into the environment
                base_url=self._config.base_url or OFFICIAL_URL,
                max_retries=0,
                timeout=timeout,
                http_client=openai.DefaultAioHttpClient(timeout=timeout, limits=pool, verify=tls_context()),
            )
        return self._client


def _of_all_items(error: InvalidRequest) -> ModelStopped | None:
    """What a refused request means when its fault lies in the model's options; None when it is the item's own."""
    return ModelStopped(str(error), code=error.code) if error.code in _SAME_FOR_EVERY_ITEM else None


def _headers(extra: dict[str, str], key: str | None) -> dict[str, str | openai.Omit]:
    """The headers beside the SDK's own. Only the model's row counts: what our environment says of keys, organizations and
    projects must not reach a foreign server."""
    headers: dict[str, str | openai.Omit] = {"openai-organization": openai.omit, "openai-project": openai.omit}
    if key is None:
        headers["authorization"] = openai.omit
    return headers | extra


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object closed, every property required (the API reference's rule)."""
    if isinstance(schema, list):
        return all(_is_strict(one) for one in schema)
    if not isinstance(schema, Mapping):
        return True
    if "properties" in schema:
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(schema["properties"]):
            return False
    return all(_is_strict(sub) for sub in schema.values())


_strict = OfSchema(_is_strict)


class _Chat:
    path = "/chat/completions"

    def body(self, prompt: Prompt, system: str, dialect: Dialect, settings: Settings) -> dict[str, Any]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt.user}]
        body: dict[str, Any] = {"model": settings.model, "messages": messages}
        if dialect.structured == "json_schema":
            described = {"name": prompt.schema_name, "schema": prompt.schema, "strict": _strict(prompt.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        elif dialect.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        if (limit := _limit(prompt, settings)) is not None:
            body[dialect.limit_fields[0]] = limit
        if settings.reasoning_effort is not None:
            body["reasoning_effort"] = settings.reasoning_effort
        return body | _sampling(prompt, dialect, settings) | settings.extra_body

    read = staticmethod(read_chat)


class _Responses:
    path = "/responses"

    def body(self, prompt: Prompt, system: str, dialect: Dialect, settings: Settings) -> dict[str, Any]:
        # The system prompt goes into `input`, not `instructions`: JSON mode looks for the word JSON there only.
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt.user}]
        body: dict[str, Any] = {"model": settings.model, "input": messages, "store": False}
        if dialect.structured == "json_schema":
            described = {"name": prompt.schema_name, "schema": prompt.schema, "strict": _strict(prompt.schema)}
            body["text"] = {"format": {"type": "json_schema", **described}}
        elif dialect.structured == "json_object":
            body["text"] = {"format": {"type": "json_object"}}
        if (limit := _limit(prompt, settings)) is not None:
            body["max_output_tokens"] = limit
        if settings.reasoning_effort is not None:
            body["reasoning"] = {"effort": settings.reasoning_effort}
        return body | _sampling(prompt, dialect, settings) | settings.extra_body

    read = staticmethod(read_responses)


def _limit(prompt: Prompt, settings: Settings) -> int | None:
    return prompt.max_output_tokens if settings.max_output_tokens is None else settings.max_output_tokens


def _sampling(prompt: Prompt, dialect: Dialect, settings: Settings) -> dict[str, float]:
    sampling: dict[str, float] = {}
    temperature = prompt.temperature if settings.temperature is None else settings.temperature
    if "temperature" in dialect.sampling and temperature is not None:
        sampling["temperature"] = temperature
    top_p = prompt.top_p if settings.top_p is None else settings.top_p
    if "top_p" in dialect.sampling and top_p is not None:
        sampling["top_p"] = top_p
    return sampling
