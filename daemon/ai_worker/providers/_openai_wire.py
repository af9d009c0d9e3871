"""OpenAI's wire formats, read defensively: answers of both APIs, and errors, as OpenAI and its many imitators send them.

Nothing in here trusts a shape: a missing or wrong field is an answer that cannot be used, never a crash. Usage is read first, so
that every verdict on the content carries the tokens it cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ai_worker.errors import (
    AccessDenied,
    BadAnswer,
    ContentRefused,
    InputTooLong,
    ModelUnknown,
    Overloaded,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    Shed,
)
from ai_worker.models import NO_USAGE, Lane, Usage
from ai_worker.providers._failures import Secrets, class_for_status, clean, retry_after, shown
from ai_worker.providers._limits import limits_in

# https://platform.openai.com/docs/guides/error-codes, and what compatible servers were seen to send.
_BY_CODE: dict[str, type[ProviderError]] = {
    "insufficient_quota": QuotaExhausted,
    "billing_hard_limit_reached": QuotaExhausted,
    "billing_not_active": QuotaExhausted,
    "invalid_api_key": AccessDenied,
    "account_deactivated": AccessDenied,
    "model_not_found": ModelUnknown,
    "context_length_exceeded": InputTooLong,
    "string_above_max_length": InputTooLong,
    "content_filter": ContentRefused,
    "content_policy_violation": ContentRefused,
    "moderation_blocked": ContentRefused,
    "invalid_prompt": ContentRefused,  # "your prompt was flagged as potentially violating our usage policy"
    "rate_limit_exceeded": RateLimited,
    "slow_down": RateLimited,
    "server_error": Overloaded,
    "server_is_overloaded": Overloaded,
    "resource_unavailable": Shed,  # only flex is refused so, with a 429
}

# Types that decide whatever the code: OpenAI's are many and grow (credit_balance_exhausted, project_spend_limit_exceeded, ...).
_BY_TYPE: dict[str, type[ProviderError]] = {
    "insufficient_quota": QuotaExhausted,
    "exceeded_current_quota_error": QuotaExhausted,  # Moonshot
    "resource_unavailable": Shed,
}


def _by_code(code: str) -> type[ProviderError] | None:
    if code.endswith(("_policy", "_policy_violation")):  # bio_policy, image_content_policy_violation, ...
        return ContentRefused
    return _BY_CODE.get(code)


# For servers whose codes say nothing; looked for in the message of a 4xx, in this order.
_BY_WORDS: tuple[tuple[str, type[ProviderError]], ...] = (
    ("maximum context length", InputTooLong),  # vLLM, OpenRouter
    ("context window", InputTooLong),
    ("context size", InputTooLong),  # llama.cpp
    ("prompt is too long", InputTooLong),
    ("model not exist", ModelUnknown),  # DeepSeek says it with a 400
    ("incorrect api key", AccessDenied),  # xAI, likewise
    ("content management policy", ContentRefused),  # Azure
    ("was flagged", ContentRefused),  # OpenRouter's moderation, with a 403 that must not stop the model
)

_GAVE_UP = ("insufficient_system_resource", "abort", "error")  # finish reasons of DeepSeek, vLLM, OpenRouter


@dataclass(frozen=True, slots=True)
class Said:
    """A usable answer: the model's words (not empty), and what they cost."""

    text: str
    usage: Usage
    finish: Literal["stop", "length"]
    model: str | None
    lane: Lane


def failure(status: int, body: object, headers: Mapping[str, str], secrets: Secrets, usage: Usage = NO_USAGE) -> ProviderError:
    """The sorted error for an HTTP status with its body (the content of its `error` field, or whatever came instead).

    A status of 200 stands for an error found inside a good answer; its own numeric code then counts as the status.
    """
    body = _first(body) if isinstance(body, list) else body  # Gemini's OpenAI-compatible endpoint wraps errors in a list
    error = body if isinstance(body, dict) else {"message": _text(body)}
    error = _dict(error.get("error")) or error
    code, type_ = _word(error.get("code")), _word(error.get("type"))
    if status == 200 and code and code.isdecimal() and len(code) == 3:
        status = int(code)
    message = _text(error.get("message")) or _text(error.get("detail")) or _text(error.get("error"))
    label = clean((code if code and not code.isdecimal() else type_) or "", secrets) or None
    words = clean(message, secrets) or label or "no explanation"
    sort = _sort(status, code, type_, words)
    return sort(f"HTTP {status}: {words}", usage=usage, code=label, retry_after=retry_after(headers), limits=limits_in(headers))


def _sort(status: int, code: str | None, type_: str | None, words: str) -> type[ProviderError]:
    if sort := _BY_TYPE.get(type_ or ""):
        return sort
    if status == 429 and words.startswith("Request too large for"):
        return InputTooLong  # one call needs more than a whole minute's tokens: waiting, which the code advises, does not help
    if sort := _by_code(code or ""):
        return sort
    if 400 <= status < 500 and status != 429:
        lowered = words.lower()
        for sign, sort in _BY_WORDS:
            if sign in lowered:
                return sort
    if status == 200:
        return _BY_CODE.get(type_ or "", BadAnswer)
    return class_for_status(status)


def read_chat(body: Mapping[str, Any], secrets: Secrets) -> Said:
    """A chat completion. Raises ContentRefused, BadAnswer, or what an error inside the answer stands for; each with its usage."""
    usage = _chat_usage(_dict(body.get("usage")))
    choice = _dict(_first(body.get("choices")))
    if error := body.get("error") or choice.get("error"):
        raise failure(200, error, {}, secrets, usage)
    if not choice:
        raise BadAnswer(f"the answer has no choices: {shown(dict(body), secrets)}", usage=usage, code="wrong_shape")
    message, finish = _dict(choice.get("message")), choice.get("finish_reason")
    if refusal := _text(message.get("refusal")):
        raise ContentRefused(f"the model refused: {clean(refusal, secrets)}", usage=usage, code="refusal")
    if finish == "content_filter":
        raise ContentRefused("the provider's content filter stopped the answer", usage=usage, code="content_filter")
    if finish in _GAVE_UP:
        raise Overloaded(f"the server broke off: {finish}", usage=usage, code=str(finish))
    return _said(_text(message.get("content")), usage, cut=finish == "length", body=body)


def read_responses(body: Mapping[str, Any], secrets: Secrets) -> Said:
    """A response. Raises as `read_chat` does; a `failed` one arrives with HTTP 200."""
    usage = _responses_usage(_dict(body.get("usage")))
    if error := body.get("error"):
        raise failure(200, error, {}, secrets, usage)
    status, reason = body.get("status"), _dict(body.get("incomplete_details")).get("reason")
    if reason == "content_filter":
        raise ContentRefused("the provider's content filter stopped the answer", usage=usage, code="content_filter")
    cut = status == "incomplete" and reason == "max_output_tokens"
    if not isinstance(body.get("output"), list) or not (cut or status == "completed"):
        what = f"status {shown(status, secrets)}" if "output" in body else shown(dict(body), secrets)
        raise BadAnswer(f"the response is not complete: {what}", usage=usage, code="wrong_shape")
    parts = [
        _dict(part) for item in map(_dict, body["output"]) if item.get("type") == "message" for part in _list(item.get("content"))
    ]
    if refusal := "".join(_text(part.get("refusal")) for part in parts if part.get("type") == "refusal"):
        raise ContentRefused(f"the model refused: {clean(refusal, secrets)}", usage=usage, code="refusal")
    text = "".join(_text(part.get("text")) for part in parts if part.get("type") == "output_text")
    return _said(text, usage, cut=cut, body=body)


def images_usage(body: Mapping[str, Any], secrets: Secrets) -> Usage:
    """The tokens of an answer of the images API, all of whose output counts as picture where it does not say. Raises what an
    error inside the answer stands for."""
    counted = _dict(body.get("usage"))
    usage = _responses_usage(counted)
    details = _dict(counted.get("output_tokens_details"))
    image = _int(details.get("image_tokens")) if "image_tokens" in details else usage.tokens_output
    usage = replace(usage, tokens_image=image)
    if error := body.get("error"):
        raise failure(200, error, {}, secrets, usage)
    return usage


def _said(text: str, usage: Usage, *, cut: bool, body: Mapping[str, Any]) -> Said:
    if text.strip():
        # Both APIs name the tier that really served, which may not be the one asked for.
        lane = Lane.FLEX if body.get("service_tier") == "flex" else Lane.ONLINE
        return Said(text, usage, "length" if cut else "stop", _text(body.get("model")) or None, lane)
    if cut:
        raise BadAnswer("cut short before the first word: reasoning used up the output limit", usage=usage, code="length")
    raise BadAnswer("the answer is empty", usage=usage, code="empty")


def _chat_usage(usage: Mapping[str, Any]) -> Usage:
    cached = _dict(usage.get("prompt_tokens_details")).get("cached_tokens")
    return Usage(
        _int(usage.get("prompt_tokens")),
        _int(usage.get("completion_tokens")),
        _int(usage.get("prompt_cache_hit_tokens") if cached is None else cached),  # DeepSeek's own name
        _int(_dict(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    )


def _responses_usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        _int(usage.get("input_tokens")),
        _int(usage.get("output_tokens")),
        _int(_dict(usage.get("input_tokens_details")).get("cached_tokens")),
        _int(_dict(usage.get("output_tokens_details")).get("reasoning_tokens")),
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _int(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _word(value: object) -> str | None:
    """A code or type, which some servers send as a number."""
    return str(value) if isinstance(value, str | int) and value != "" else None


def _text(value: object) -> str:
    """A string, or the strings of a list of parts, as some servers send content and messages; empty for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(_dict(part).get("text")) for part in value)
    return ""
