"""Gemini's wire format, read defensively: answers, errors, and the part of JSON Schema that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ai_worker.errors import (
    AccessDenied,
    BadAnswer,
    ContentRefused,
    InputTooLong,
    InvalidRequest,
    ModelStopped,
    ModelUnknown,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    Shed,
)
from ai_worker.models import File, Lane, Limits, Usage
from ai_worker.providers._failures import Secrets, class_for_status, clean, duration, retry_after, shown
from ai_worker.providers._images import NO_PICTURE, decoded
from ai_worker.providers._limits import whole

# https://ai.google.dev/api/generate-content#FinishReason: these mean that a policy, not the model, ended the answer.
_REFUSALS = frozenset(
    {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"}
    | {"IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"}
)

# What `responseJsonSchema` understands: https://ai.google.dev/gemini-api/docs/structured-output
_KEYWORDS = frozenset(
    {"$id", "$defs", "$ref", "$anchor", "type", "format", "title", "description", "enum", "items", "prefixItems", "minItems"}
    | {"maxItems", "minimum", "maximum", "anyOf", "oneOf", "properties", "additionalProperties", "required", "propertyOrdering"}
)


@dataclass(frozen=True, slots=True)
class Said:
    """A usable answer: the model's words (not empty), and what they cost."""

    text: str
    usage: Usage
    finish: Literal["stop", "length"]
    model: str | None
    request_id: str | None
    lane: Lane


def supported_schema(schema: Any) -> Any:
    """The schema without the keywords that Gemini does not take; the answer is checked against the whole one anyway."""
    if isinstance(schema, list):
        return [supported_schema(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs"):  # here the keys are names, not keywords
            kept[keyword] = {name: supported_schema(sub) for name, sub in value.items()}
        elif keyword == "const":
            kept["enum"] = [value]
        elif keyword in ("enum", "required", "propertyOrdering"):
            kept[keyword] = value
        elif keyword in _KEYWORDS:
            kept[keyword] = supported_schema(value)
    return kept


def read(body: Mapping[str, Any], secrets: Secrets) -> Said:
    """A generateContent answer. Raises ContentRefused, BadAnswer, or what an error inside it stands for; each with its usage."""
    usage = _usage(_dict(body.get("usageMetadata")))
    parts, finish = _parts(body, usage, secrets)
    text = _words(parts)
    if not text.strip():
        if finish == "MAX_TOKENS":
            raise BadAnswer("cut short before the first word: thoughts used up the output limit", usage=usage, code="MAX_TOKENS")
        raise BadAnswer("the answer is empty", usage=usage, code="empty")
    return _said(body, text, usage, finish)


def read_picture(body: Mapping[str, Any], secrets: Secrets) -> tuple[Said, File]:
    """The same for an answer with a picture, and what the model said beside it, if anything. All of the output counts as picture
    where the usage does not tell; but not thoughts."""
    counted = _dict(body.get("usageMetadata"))
    usage = _usage(counted)
    details = [_dict(one) for one in _list(counted.get("candidatesTokensDetails"))]
    image = sum(_int(one.get("tokenCount")) for one in details if one.get("modality") == "IMAGE")
    usage = replace(usage, tokens_image=image if details else usage.tokens_output - usage.tokens_reasoning)
    parts, finish = _parts(body, usage, secrets)
    words = _words(parts)
    for part in parts:
        found = _dict(part.get("inlineData"))
        if found and not part.get("thought"):  # thinking models draw drafts
            return _said(body, words, usage, finish), decoded(found.get("data"), _text(found.get("mimeType")), usage)
    if finish == "MAX_TOKENS":
        raise BadAnswer("cut short before the picture", usage=usage, code="MAX_TOKENS")
    if any(_dict(part.get("fileData")) for part in parts):
        raise ModelStopped(
            "Gemini sent an address instead of the picture, and addresses are not fetched", usage=usage, code="url"
        )
    said = f"no picture but words: {clean(words, secrets)}" if words.strip() else "there is no picture in the answer"
    raise BadAnswer(said, usage=usage, code=NO_PICTURE)


def _parts(body: Mapping[str, Any], usage: Usage, secrets: Secrets) -> tuple[list[dict[str, Any]], str]:
    """The parts of an answer's first candidate, and how it ended: STOP or MAX_TOKENS. Raises for all other ends."""
    if error := _dict(body.get("error")):
        problem = failure(_int(error.get("code")) or 500, {"error": error}, {}, secrets)
        problem.usage = usage
        raise problem
    if blocked := _dict(body.get("promptFeedback")).get("blockReason"):
        raise ContentRefused(
            f"Gemini blocked the prompt: {shown(blocked, secrets)}", usage=usage, code=clean(_text(blocked), secrets) or None
        )
    candidate = _dict(_first(body.get("candidates")))
    if not candidate:
        raise BadAnswer(f"the answer has no candidates: {shown(dict(body), secrets)}", usage=usage, code="wrong_shape")
    finish = _text(candidate.get("finishReason"))
    if finish in _REFUSALS:
        said = clean(_text(candidate.get("finishMessage")), secrets)
        raise ContentRefused(f"Gemini stopped the answer: {finish} {said}".rstrip(), usage=usage, code=finish)
    if finish not in ("STOP", "MAX_TOKENS"):
        raise BadAnswer(
            f"Gemini ended the answer with {shown(finish, secrets)}",
            usage=usage,
            code=clean(_text(finish), secrets) or "wrong_shape",
        )
    return [_dict(part) for part in _list(_dict(candidate.get("content")).get("parts"))], finish


def _words(parts: list[dict[str, Any]]) -> str:
    return "".join(_text(part.get("text")) for part in parts if not part.get("thought"))


def _said(body: Mapping[str, Any], text: str, usage: Usage, finish: str) -> Said:
    model, request_id = _text(body.get("modelVersion")) or None, _text(body.get("responseId")) or None
    tier = _text(_dict(body.get("usageMetadata")).get("serviceTier")).lower()
    lane = Lane.FLEX if tier == "flex" else Lane.ONLINE
    return Said(text, usage, "length" if finish == "MAX_TOKENS" else "stop", model, request_id, lane)


def served_in_flex(headers: Mapping[str, str]) -> bool:
    """Whether the answer's headers say so; its usage says it too, but not everywhere."""
    return any(name.lower() == "x-gemini-service-tier" and value.lower() == "flex" for name, value in headers.items())


def failure(status: int, body: object, headers: Mapping[str, str], secrets: Secrets, lane: Lane = Lane.ONLINE) -> ProviderError:
    """The sorted error for an HTTP status with its body: `{"error": {code, message, status, details}}`, or what came instead.

    `lane` is the one that was asked for: Google has no word of its own for a flex request that finds no room, but answers "503 or
    429" (https://ai.google.dev/gemini-api/docs/flex-inference); a 429 that names a quota is a rate limit there too.
    """
    body = _first(body) if isinstance(body, list) else body
    error = _dict(_dict(body).get("error")) or _dict(body)
    message = _text(error.get("message"))
    details = [_dict(detail) for detail in _list(error.get("details"))]
    words = clean(message or _text(error.get("status")), secrets) or "no explanation"
    label = next(_quota_ids(details), None) or next(_reasons(details), None) or clean(_text(error.get("status")), secrets) or None
    wait = next(_delays(details), None)
    if wait is None:
        wait = retry_after(headers)
    if wait is None and (said := re.search(r"retry in ([\dhms.]+?)\.?(?:\s|$)", message)):
        wait = duration(said[1])
    sort = _sort(status, message, details)
    if lane is Lane.FLEX and (status == 503 or (sort is RateLimited and next(_violations(details), None) is None)):
        sort = Shed
    return sort(f"HTTP {status}: {words}", code=label, retry_after=wait, limits=_limits(details))


# What Google says with a 400, in this order.
_BY_WORDS: tuple[tuple[str, type[ProviderError]], ...] = (
    ("api key", AccessDenied),
    ("location is not supported", AccessDenied),
    ("enable billing", AccessDenied),
    ("exceeds the maximum number of tokens", InputTooLong),
    ("model not exist", ModelUnknown),
    ("unexpected model name", ModelUnknown),
    ("safety policy", ContentRefused),
    # Of the model's options, not of the item: the next one would fare no better.
    ("unknown name", ModelStopped),  # a misspelt `extra_body`
    ("is not supported for this model", ModelStopped),
    ("only works in thinking mode", ModelStopped),
    ("is not enabled for", ModelStopped),  # JSON mode or a system prompt, of Gemma
)


def _sort(status: int, message: str, details: list[dict[str, Any]]) -> type[ProviderError]:
    lowered = message.lower()
    if status == 429:
        # A project without any quota for the model says `limit: 0`, with a retryDelay that means nothing.
        spent = any("PerDay" in quota_id for quota_id in _quota_ids(details)) or re.search(r"\blimit: 0\b", message)
        return QuotaExhausted if spent or "credits are depleted" in lowered or "spending cap" in lowered else RateLimited
    sort = class_for_status(status)
    if sort is not InvalidRequest:
        return sort
    if any(reason.startswith("API_KEY_") for reason in _reasons(details)):
        return AccessDenied
    return next((known for sign, known in _BY_WORDS if sign in lowered), InvalidRequest)


def _of_type(details: list[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    return (detail for detail in details if str(detail.get("@type", "")).endswith(f"google.rpc.{name}"))


def _quota_ids(details: list[dict[str, Any]]) -> Iterator[str]:
    """The quotas that were hit; a daily one first, as it decides."""
    found = (_text(violation.get("quotaId")) for violation in _violations(details))
    return iter(sorted(filter(None, found), key=lambda quota_id: "PerDay" not in quota_id))


def _violations(details: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for quota in _of_type(details, "QuotaFailure"):
        yield from map(_dict, _list(quota.get("violations")))


def _limits(details: list[dict[str, Any]]) -> Limits | None:
    """The limits per minute that were hit, by their quotas' names: Google names its limits nowhere else.

    `GenerateRequestsPerMinutePerProjectPerModel-FreeTier`, `GenerateContentInputTokensPerModelPerMinute-PaidTier2`
    """
    requests = tokens = None
    for violation in _violations(details):
        quota_id, value = _text(violation.get("quotaId")), whole(violation.get("quotaValue"))
        if "PerMinute" not in quota_id or value is None:
            continue
        if "Requests" in quota_id:
            requests = value
        elif "InputToken" in quota_id:
            tokens = value
    return None if requests is None and tokens is None else Limits(requests, tokens)


def _reasons(details: list[dict[str, Any]]) -> Iterator[str]:
    return (_text(info.get("reason")) for info in _of_type(details, "ErrorInfo") if _text(info.get("reason")))


def _delays(details: list[dict[str, Any]]) -> Iterator[float]:
    found = (duration(_text(info.get("retryDelay"))) for info in _of_type(details, "RetryInfo"))
    return (seconds for seconds in found if seconds is not None)


def _usage(usage: Mapping[str, Any]) -> Usage:
    thoughts = _int(usage.get("thoughtsTokenCount"))
    return Usage(
        _int(usage.get("promptTokenCount")),
        _int(usage.get("candidatesTokenCount")) + thoughts,  # unlike OpenAI, Google counts thoughts apart
        _int(usage.get("cachedContentTokenCount")),
        thoughts,
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _int(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
