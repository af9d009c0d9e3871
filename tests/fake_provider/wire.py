"""The three wire formats: what a request asks, and how an answer or an error looks on the wire.

Written after the vendors' API references (OpenAI chat completions and responses, Gemini generateContent), not after our own
providers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.fake_provider.packs import items_in
from tests.fake_provider.pictures import Wanted

# The prompt puts the row's text between two identical lines that hold nothing but a marker. What else it is given (a context,
# what was said before) stands between pairs of the same lines; the text comes last.
MARKED = re.compile(r"^(<<<[0-9a-f]{16}>>>)\n(.*)\n\1$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Ask:
    """What one request asks for, whatever its wire format."""

    api: str
    model: str
    system: str
    user: str
    text: str  # the row's text
    schema: dict[str, Any] | None
    structured: str  # json_schema | json_object | text
    body: dict[str, Any]
    key: str | None
    tier: str = "default"  # or "flex": what was asked for
    items: tuple[tuple[int, str], ...] = ()  # of a pack: ids and texts
    schema_name: str | None = None  # as far as the wire format names it, else the schema's title
    picture: Wanted | None = None  # where one is asked for

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of the row, or of each row of a pack."""
        return tuple(text for _, text in self.items) or (self.text,)

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The JSON schema that was asked for, wherever it stands."""
        return self.schema or schema_in(self.system)


@dataclass(frozen=True)
class Tokens:
    """Usage in our words: `input` includes `cached`, `output` includes `reasoning`."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0

    def plus(self, other: Tokens) -> Tokens:
        return Tokens(
            self.input + other.input,
            self.output + other.output,
            self.cached + other.cached,
            self.reasoning + other.reasoning,
        )


@dataclass(frozen=True)
class Answer:
    """`content` is text, of a picture base64. `finish` is one of stop, length, refused (by the model), filtered (by the
    provider's filter, after the model had begun)."""

    content: str | None
    tokens: Tokens
    finish: str = "stop"


@dataclass(frozen=True)
class Failure:
    """An HTTP error, with what each vendor says on that occasion. `google_details` are google.rpc messages."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    google_code: int | None = None  # where it differs from `status`
    google_status: str = "INVALID_ARGUMENT"
    google_message: str | None = None
    google_details: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


class Wire(Protocol):
    name: str

    def ask(self, model: str, body: dict[str, Any], key: str | None) -> Ask: ...

    def answer(self, ask: Ask, answer: Answer, number: int) -> dict[str, Any]: ...

    def blocked(self, ask: Ask, tokens: Tokens, number: int) -> dict[str, Any]:
        """A 200 that says the prompt was blocked."""

    def error(self, failure: Failure, message: str) -> dict[str, Any]: ...

    def error_in_200(self, ask: Ask, tokens: Tokens, message: str) -> dict[str, Any]: ...


def schema_in(system: str) -> dict[str, Any] | None:
    """The JSON schema that a system prompt spells out, on a line of its own, for want of a better place."""
    lines = [line for line in system.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def row_text(user: str) -> str:
    """The row's text inside a user message; the whole message where no markers are."""
    found = MARKED.search(user)
    return found[2].rpartition(f"\n{found[1]}\n")[2] if found else user


def _pack_text(user: str) -> str:
    """All that stands between the outermost markers."""
    found = MARKED.search(user)
    return found[2] if found else user


def _plain(content: Any) -> str:
    """Text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def _asked(
    api: str,
    model: str,
    *,
    system: str,
    user: str,
    schema: dict[str, Any] | None,
    structured: str,
    body: dict[str, Any],
    key: str | None,
    tier: str | None,
    schema_name: str | None = None,
    picture: Wanted | None = None,
) -> Ask:
    items = items_in(user, schema or schema_in(system)) if "Item " in user else ()
    tier = "flex" if (tier or "").lower() == "flex" else "default"
    name = schema_name or (schema or {}).get("title")
    text = _pack_text(user) if items else row_text(user)
    return Ask(api, model, system, user, text, schema, structured, body, key, tier, items, name, picture)


def openai_error(failure: Failure, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": failure.type, "param": failure.param, "code": failure.code}}


class Chat:
    name = "chat"

    def ask(self, model: str, body: dict[str, Any], key: str | None) -> Ask:
        said = {
            role: "\n".join(_plain(m["content"]) for m in body["messages"] if m["role"] == role) for role in ("system", "user")
        }
        response_format = body.get("response_format") or {"type": "text"}
        described = response_format.get("json_schema", {})
        return _asked(
            self.name,
            body["model"],
            system=said["system"],
            user=said["user"],
            schema=described.get("schema"),
            schema_name=described.get("name"),
            structured=response_format["type"],
            body=body,
            key=key,
            tier=body.get("service_tier"),
        )

    def _completion(self, ask: Ask, message: dict[str, Any], finish: str, tokens: Tokens, number: int) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1700000000,
            "model": ask.model,
            "choices": [{"index": 0, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": finish}],
            "service_tier": ask.tier,
            "usage": {
                "prompt_tokens": tokens.input,
                "completion_tokens": tokens.output,
                "total_tokens": tokens.input + tokens.output,
                "prompt_tokens_details": {"cached_tokens": tokens.cached},
                "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
            },
        }

    def answer(self, ask: Ask, answer: Answer, number: int) -> dict[str, Any]:
        finish = {"stop": "stop", "length": "length", "refused": "stop", "filtered": "content_filter"}[answer.finish]
        refusal = "I'm sorry, I can't help with that." if answer.finish == "refused" else None
        message = {"content": None if refusal else answer.content, "refusal": refusal}
        return self._completion(ask, message, finish, answer.tokens, number)

    def blocked(self, ask: Ask, tokens: Tokens, number: int) -> dict[str, Any]:
        return self._completion(ask, {"content": None, "refusal": None}, "content_filter", tokens, number)

    def error(self, failure: Failure, message: str) -> dict[str, Any]:
        return openai_error(failure, message)

    def error_in_200(self, ask: Ask, tokens: Tokens, message: str) -> dict[str, Any]:
        """As gateways in front of several vendors do it, once they have sent their headers."""
        return {"error": {"message": message, "code": 502}, "usage": {"prompt_tokens": tokens.input, "completion_tokens": 0}}


class Responses:
    name = "responses"

    def ask(self, model: str, body: dict[str, Any], key: str | None) -> Ask:
        asked = body["input"]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        said = {role: "\n".join(_plain(m["content"]) for m in messages if m["role"] == role) for role in ("system", "user")}
        text_format = (body.get("text") or {}).get("format") or {"type": "text"}
        return _asked(
            self.name,
            body["model"],
            system=body.get("instructions") or said["system"],
            user=said["user"],
            schema=text_format.get("schema"),
            schema_name=text_format.get("name"),
            structured=text_format["type"],
            body=body,
            key=key,
            tier=body.get("service_tier"),
        )

    def _response(self, ask: Ask, tokens: Tokens, number: int, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 1700000000,
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "model": ask.model,
            "service_tier": ask.tier,
            "output": [],
            "usage": {
                "input_tokens": tokens.input,
                "input_tokens_details": {"cached_tokens": tokens.cached},
                "output_tokens": tokens.output,
                "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
                "total_tokens": tokens.input + tokens.output,
            },
            **fields,
        }

    def answer(self, ask: Ask, answer: Answer, number: int) -> dict[str, Any]:
        if answer.finish == "refused":
            part: dict[str, Any] = {"type": "refusal", "refusal": "I'm sorry, I can't help with that."}
        else:
            part = {"type": "output_text", "text": answer.content, "annotations": []}
        reason = {"length": "max_output_tokens", "filtered": "content_filter"}.get(answer.finish)
        status = "incomplete" if reason else "completed"
        message = {"type": "message", "id": f"msg_{number}", "status": status, "role": "assistant", "content": [part]}
        reasoning: dict[str, Any] = {"type": "reasoning", "id": f"rs_{number}", "summary": []}
        output = [reasoning] if answer.content is None and answer.finish != "refused" else [reasoning, message]
        return self._response(
            ask, answer.tokens, number, status=status, incomplete_details={"reason": reason} if reason else None, output=output
        )

    def blocked(self, ask: Ask, tokens: Tokens, number: int) -> dict[str, Any]:
        return self._response(ask, tokens, number, status="incomplete", incomplete_details={"reason": "content_filter"})

    def error(self, failure: Failure, message: str) -> dict[str, Any]:
        return openai_error(failure, message)

    def error_in_200(self, ask: Ask, tokens: Tokens, message: str) -> dict[str, Any]:
        return self._response(ask, tokens, 0, status="failed", error={"code": "server_error", "message": message})


def gemini_tier(tier: str) -> str:
    """Gemini's word for the tier: in the answer's usage, and in the header `x-gemini-service-tier`."""
    return "standard" if tier == "default" else tier


class Gemini:
    name = "gemini"

    def ask(self, model: str, body: dict[str, Any], key: str | None) -> Ask:
        system = _plain((body.get("systemInstruction") or {}).get("parts"))
        user = "\n".join(_plain(content.get("parts")) for content in body["contents"])
        config = body.get("generationConfig") or {}
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        is_json = config.get("responseMimeType") == "application/json"
        structured = "json_schema" if schema else "json_object" if is_json else "text"
        image = config.get("imageConfig") or {}
        is_picture = "IMAGE" in (config.get("responseModalities") or ())
        wanted = Wanted(image.get("aspectRatio"), None, None, image.get("imageSize")) if is_picture else None
        # The guide writes service_tier, the SDKs send serviceTier: JSON of protocol buffers may be spelt either way.
        tier = body.get("serviceTier") or body.get("service_tier")
        return _asked(
            self.name,
            model,
            system=system,
            user=user,
            schema=schema,
            structured=structured,
            body=body,
            key=key,
            tier=tier,
            picture=wanted,
        )

    def _usage(self, ask: Ask, tokens: Tokens) -> dict[str, Any]:
        usage: dict[str, Any] = {"promptTokenCount": tokens.input, "totalTokenCount": tokens.input + tokens.output}
        usage["serviceTier"] = gemini_tier(ask.tier)
        optional = {
            "candidatesTokenCount": tokens.output - tokens.reasoning,
            "thoughtsTokenCount": tokens.reasoning,
            "cachedContentTokenCount": tokens.cached,
        }
        return usage | {name: value for name, value in optional.items() if value}  # zeros are left out, as protobuf does

    def answer(self, ask: Ask, answer: Answer, number: int) -> dict[str, Any]:
        finish = {"stop": "STOP", "length": "MAX_TOKENS", "refused": "SAFETY", "filtered": "RECITATION"}[answer.finish]
        candidate: dict[str, Any] = {"finishReason": finish, "index": 0}
        if answer.finish in ("stop", "length"):
            parts = [] if answer.content is None else [{"text": answer.content}]
            candidate["content"] = {"parts": parts, "role": "model"} if parts else {"role": "model"}
        usage = self._usage(ask, answer.tokens)
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": ask.model, "responseId": f"gemini-{number}"}

    def blocked(self, ask: Ask, tokens: Tokens, number: int) -> dict[str, Any]:
        feedback = {"blockReason": "PROHIBITED_CONTENT"}
        return {"promptFeedback": feedback, "usageMetadata": self._usage(ask, Tokens(tokens.input, 0)), "modelVersion": ask.model}

    def error(self, failure: Failure, message: str) -> dict[str, Any]:
        error: dict[str, Any] = {
            "code": failure.google_code or failure.status,
            "message": message,
            "status": failure.google_status,
        }
        if failure.google_details:
            error["details"] = failure.google_details
        return {"error": error}

    def error_in_200(self, ask: Ask, tokens: Tokens, message: str) -> dict[str, Any]:
        return {"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}}


CHAT, RESPONSES, GEMINI = Chat(), Responses(), Gemini()
