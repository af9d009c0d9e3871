"""The faults by name. Most are an HTTP error in the vendor's own words; the others are played by the server itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fake_provider.images import PICTURE
from tests.fake_provider.limits import Refusal
from tests.fake_provider.packs import WRONG_IDS
from tests.fake_provider.wire import Ask, Failure

_GOOGLE = "type.googleapis.com/google.rpc."


def _retry_info(delay: str) -> dict[str, Any]:
    return {"@type": f"{_GOOGLE}RetryInfo", "retryDelay": delay}


def _quota_failure(quota_id: str, limit: float | None = None) -> dict[str, Any]:
    metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
    violation: dict[str, Any] = {
        "quotaMetric": metric,
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": "gemini"},
    }
    if limit is not None:
        violation["quotaValue"] = f"{limit:.0f}"
    return {"@type": f"{_GOOGLE}QuotaFailure", "violations": [violation]}


def _error_info(reason: str) -> dict[str, Any]:
    return {"@type": f"{_GOOGLE}ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": {}}


_PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
_QUOTA_IDS = {
    "requests": _PER_MINUTE,
    "tokens": "GenerateContentInputTokensPerModelPerMinute-FreeTier",
    "in_flight": "ConcurrentRequestsPerProjectPerModel-FreeTier",
}
_PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
_GEMINI_QUOTA = "You exceeded your current quota, please check your plan and billing details."

_RATE = Failure(
    429,
    "Rate limit reached for gpt-x on requests per min (RPM): Limit 3, Used 3, Requested 1.",
    type="requests",
    code="rate_limit_exceeded",
    google_status="RESOURCE_EXHAUSTED",
    google_message=_GEMINI_QUOTA,
    google_details=[_quota_failure(_PER_MINUTE)],
)

FAILURES: dict[str, Failure] = {
    "400": Failure(400, "Invalid value for 'messages[0].role'.", param="messages[0].role", code="invalid_value"),
    "400_context_length": Failure(
        400,
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        code="context_length_exceeded",
        param="messages",
        google_message="The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "400_content_filter": Failure(
        400,
        "The response was filtered due to the prompt triggering the content management policy.",
        type="",
        code="content_filter",
        param="prompt",
        google_message="The prompt was blocked: it violates the content safety policy.",
    ),
    "400_bad_key": Failure(  # Gemini's way to say 401
        400,
        "Incorrect API key provided.",
        code="invalid_api_key",
        google_message="API key not valid. Please pass a valid API key.",
        google_details=[_error_info("API_KEY_INVALID")],
    ),
    "400_model": Failure(400, "Model Not Exist", code="invalid_request_error", google_message="Model Not Exist"),
    "400_option": Failure(
        400,
        "Unsupported parameter: 'reasoning_effort' is not supported with this model.",
        code="unsupported_parameter",
        param="reasoning_effort",
        google_message="Thinking budget is not supported for this model.",
    ),
    "401": Failure(401, "Incorrect API key provided.", code="invalid_api_key", google_status="UNAUTHENTICATED"),
    "402": Failure(402, "Insufficient Balance", type="unknown_error", code="invalid_request_error"),
    "403": Failure(
        403,
        "Country, region, or territory not supported",
        type="request_forbidden",
        code="unsupported_country_region_territory",
        google_status="PERMISSION_DENIED",
    ),
    "404": Failure(
        404,
        "The model `gpt-x` does not exist or you do not have access to it.",
        code="model_not_found",
        google_status="NOT_FOUND",
    ),
    "408": Failure(408, "Request timeout.", type="timeout", code="request_timeout", google_status="DEADLINE_EXCEEDED"),
    "409": Failure(409, "The resource is locked by another request.", type="conflict", google_status="ABORTED"),
    "413": Failure(413, "Request entity too large.", type="request_too_large"),
    "422": Failure(422, "Unprocessable entity.", code="unprocessable_entity"),
    "429": _RATE,
    "429_retry_after": replace(
        _RATE, headers={"retry-after": "7"}, google_details=[_quota_failure(_PER_MINUTE), _retry_info("7s")]
    ),
    "429_retry_after_ms": replace(
        _RATE,
        headers={"retry-after": "2", "retry-after-ms": "1500"},
        google_details=[_quota_failure(_PER_MINUTE), _retry_info("1.500s")],
    ),
    "429_quota": Failure(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        type="insufficient_quota",
        code="credit_balance_exhausted",
        google_status="RESOURCE_EXHAUSTED",
        google_message=_GEMINI_QUOTA + " Please retry in 10h17m4s.",
        google_details=[_quota_failure(_PER_DAY), _retry_info("37024s")],
    ),
    "429_no_quota_ever": Failure(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        type="insufficient_quota",
        code="insufficient_quota",
        google_status="RESOURCE_EXHAUSTED",
        google_message=_GEMINI_QUOTA
        + "\n* Quota exceeded for metric: generate_content_free_tier_requests, limit: 0, model: gemini",
        google_details=[_quota_failure(_PER_MINUTE), _retry_info("39s")],
    ),
    "500": Failure(500, "The server had an error processing your request.", type="server_error", google_status="INTERNAL"),
    "503": Failure(
        503,
        "The engine is currently overloaded, please try again later",
        type="server_error",
        code="server_is_overloaded",
        google_status="UNAVAILABLE",
        headers={"retry-after": "3"},
    ),
    "529": Failure(529, "Overloaded", type="overloaded_error", google_status="UNAVAILABLE"),
}

# Refused only where the request asks for what they refuse; other requests are answered.
CONDITIONAL: dict[str, Failure] = {
    "no_json_schema": Failure(400, "This response_format type is unavailable now", code="invalid_request_error"),
    "no_json_object": Failure(400, "'response_format.type' must be 'text'", param="response_format.type"),
    "no_temperature": Failure(
        400,
        "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
        param="temperature",
        code="unsupported_value",
    ),
    "no_max_completion_tokens": Failure(
        422, "Extra inputs are not permitted: 'max_completion_tokens'", code="invalid_request_error"
    ),
    "no_max_tokens": Failure(
        400,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        param="max_tokens",
        code="unsupported_parameter",
    ),
}

# Strike only requests for the cheaper tier.
FLEX: dict[str, Failure] = {
    "flex_refused": Failure(  # the model has no such tier
        400,
        "Flex is not available for this model.",
        google_message='Invalid JSON payload received. Unknown name "serviceTier": Cannot find field.',
    ),
    "flex_shed": Failure(  # the cheaper tier has no capacity; nothing is billed
        429,
        "Resource unavailable: there is not enough capacity for this flex request at the moment.",
        type="resource_unavailable",
        code="resource_unavailable",
        google_code=503,
        google_status="UNAVAILABLE",
        google_message="This model is currently experiencing high demand. Please try again later.",
    ),
}


def condition_holds(name: str, ask: Ask) -> bool:
    """Whether the request asks for what the conditional fault refuses."""
    if name == "no_json_schema":
        return ask.structured == "json_schema"
    if name == "no_json_object":
        return ask.structured != "text"
    return name.removeprefix("no_") in ask.body


PLAYED = frozenset(
    {
        "answer",  # no fault: an answer with given content or tokens
        "502_html",
        "500_broken_json",
        "slow",
        "hang",
        "drop",
        "html",
        "broken_json",
        "not_an_object",
        "empty",
        "empty_cut_short",
        "refused",
        "cut_short",
        "blocked",
        "filtered",
        "wrong_shape",
        "no_answer_in_it",
        "error_in_200",
    }
)

# Answers to a pack with one element broken: the one whose text contains `contains`, else the last. Single calls are answered.
PACK = frozenset({"pack_missing", "pack_malformed", "pack_wrong_ids"})

FAULTS = frozenset(FAILURES) | frozenset(CONDITIONAL) | PLAYED  # what can strike any single call
KNOWN = FAULTS | frozenset(FLEX) | PACK | frozenset(PICTURE)

# What a rule strikes: `call` = single calls and a batch's rows; `row` = rows alone; the others are the requests around a batch.
AROUND = ("upload", "create", "poll", "list", "results", "cancel", "delete")
AT = ("call", "row", *AROUND)
# There, `lost` does what was asked and resets the connection instead of answering; `slow` answers late, having done it;
# `batch_invalid` creates a batch that fails in validation. An HTTP error does nothing.
FAULTS_AROUND = frozenset(FAILURES) | {"lost", "slow", "hang"}


def refusal(why: Refusal, model: str, *, say_when: bool) -> Failure:
    """The 429 of a rate limit; `say_when`: with the time to wait, where there is one."""
    wait = why.wait if say_when else None
    name = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)", "in_flight": "concurrent requests"}[why.kind]
    sums = f"Limit {why.limit:.0f}, Used {why.used:.0f}, Requested {why.requested:.0f}."
    if why.wait is None:
        message = f"Request too large for {model} on {name}: {sums} The input or output tokens must be reduced."
    else:
        message = f"Rate limit reached for {model} on {name}: {sums}" + (f" Please try again in {wait:.3f}s." if wait else "")
    headers, details = {}, [_quota_failure(_QUOTA_IDS[why.kind], why.limit)]
    if wait is not None:
        headers = {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
        details.append(_retry_info(f"{wait:.3f}s"))
    kind = "tokens" if why.kind == "tokens" else "requests"
    return replace(_RATE, message=message, type=kind, headers=headers, google_details=details)


@dataclass
class Rule:
    """One entry of the script: which fault strikes, and whom.

    fault: a name from `KNOWN`; with an `at` of `AROUND`, one from `FAULTS_AROUND`, and for `create` also batch_invalid.
    at: which requests it strikes, one of `AT`.
    times: how many requests it strikes, None for no limit.
    share: which part of the requests it strikes, 0..1, spread evenly.
    contains: only requests whose row text contains this; around a batch: the metadata (JSON) or display name of one that is
        created, the name of a file that is uploaded, else the id.
    delay_ms: waits so long before answering (`slow`, or any other fault).
    content, tokens: what `answer` says; tokens is `[input, output, cached, reasoning]`. With `contains`, the content is that of
        the one text of a pack that contains it. For `pack_wrong_ids`, content is unknown (default), duplicate or swapped.
    echo_key: puts the request's API key into the error message, as careless servers do.
    """

    fault: str
    times: int | None = None
    share: float = 1.0
    contains: str | None = None
    delay_ms: float = 0.0
    content: str | None = None
    tokens: list[int] | None = None
    echo_key: bool = False
    at: str = "call"
    _debt: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if self.at not in AT:
            raise ValueError(f"unknown at {self.at!r}; known ones: {', '.join(AT)}")
        known = KNOWN if self.at not in AROUND else FAULTS_AROUND | {"batch_invalid"} if self.at == "create" else FAULTS_AROUND
        if self.fault not in known:
            raise ValueError(f"unknown fault {self.fault!r}; known ones: {', '.join(sorted(known))}")
        if self.fault == "pack_wrong_ids" and (self.content or WRONG_IDS[0]) not in WRONG_IDS:
            raise ValueError(f"content must be one of {', '.join(WRONG_IDS)}, not {self.content!r}")

    def strikes(self, ask: Ask, *, row: bool = False) -> bool:
        """Whether this call is struck, or this row of a batch; counts it if so."""
        if self.at != "call" and not (row and self.at == "row"):
            return False
        if self.fault in CONDITIONAL and not condition_holds(self.fault, ask):
            return False
        if self.fault in PICTURE and ask.picture is None:
            return False
        if (self.fault in PACK and not ask.items) or (self.fault in FLEX and ask.tier != "flex"):
            return False
        return self._strikes(ask.text)

    def strikes_at(self, at: str, text: str) -> bool:
        """Whether this request around a batch is struck; counts it if so."""
        return self.at == at and self._strikes(text)

    def _strikes(self, text: str) -> bool:
        if self.times == 0 or (self.contains is not None and self.contains not in text):
            return False
        self._debt += self.share
        if self._debt < 1.0 - 1e-9:
            return False
        self._debt -= 1.0
        if self.times is not None:
            self.times -= 1
        return True

    def take_back(self) -> None:
        """Uncounts a strike: the request was refused before the fault could strike it."""
        self._debt += 1.0
        if self.times is not None:
            self.times += 1
