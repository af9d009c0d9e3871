"""What all API families share when a call fails: sorting by HTTP status, waiting times, and messages without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote, urlsplit

from ai_worker.errors import (
    AccessDenied,
    BadAnswer,
    ConfigurationError,
    InputTooLong,
    InvalidRequest,
    ModelUnknown,
    NetworkFailed,
    Overloaded,
    ProviderError,
    QuotaExhausted,
    RateLimited,
)
from ai_worker.models import Secret

MESSAGE_LIMIT = 500  # characters of a provider's own words that are kept
SHORTEST_SECRET = 8  # characters of a header of the model's own: shorter ones are words such as a team's name

Secrets = tuple[str, ...]
"""What a provider was sent and must not bring back by its own words."""

_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_SECRET_SHAPES = re.compile(
    r"(?P<label>\bBearer\s+|\bkey=|\bapi[-_ ]?key(?: provided)?['\"]?\s*[:=]\s*['\"]?)[^\s'\"&,)]*[^\s'\"&,).]"
    r"|(?<=://)[^\s/@\"'\\]+(?=@)"  # user and password of a URL
    r"|\bsk-[\w*.-]{4,}"  # OpenAI, Anthropic, DeepSeek, OpenRouter; also partly starred out
    r"|\bAIza[\w-]{10,}",  # Google
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\s*\d{1,9}(\.\d+)?\s*", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS_IN = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def header_safe(key: Secret | None, model: str) -> str | None:
    """The key as it goes into a header, None if there is none. Raises ConfigurationError when no header can carry it."""
    value = key.reveal().strip() if key else ""
    if not (value.isascii() and value.isprintable()):
        raise ConfigurationError(f"model {model!r}: the API key holds characters that no HTTP header can carry")
    return value or None


def check_base_url(url: str | None, model: str) -> None:
    """Raises ConfigurationError when it is no HTTP address."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme.lower() in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    if not is_usable or re.match(r"https?://[^/\s]+", url) is None:
        # Of what is not understood, any part may be a password.
        raise ConfigurationError(f"model {model!r}: the base URL must begin with http:// or https://, and name a host")


def secrets_of(key: str | None, base_url: str | None, headers: Mapping[str, str] = MappingProxyType({})) -> Secrets:
    """The key, the password and the query of the base URL, and what headers of the model's own may hold: whole, and the part
    behind a word such as Bearer."""
    url = urlsplit(base_url or "")
    values = [*headers.values(), *(value for _, value in parse_qsl(url.query)), *filter(None, (url.password, url.username))]
    parts = {part for value in values for part in (value, unquote(value), *value.split()) if len(part) >= SHORTEST_SECRET}
    return tuple(sorted(filter(None, {key, *parts}), key=len, reverse=True))  # a longer one may hold a shorter one


def clean(text: str, secrets: Secrets = ()) -> str:
    """A provider's words, fit for a log: without secrets and markup, on one line, of bounded length."""
    text = text[: 100 * MESSAGE_LIMIT]
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _SECRET_SHAPES.sub(lambda found: (found["label"] or "") + "***", text)
    text = " ".join(_TAG.sub(" ", text).split())
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def shown(value: object, secrets: Secrets = ()) -> str:
    """Any part of an answer in the same way."""
    try:
        return clean(str(value), secrets)
    except RecursionError:
        return "something nested too deeply to be shown"


def unexpected(error: Exception, secrets: Secrets) -> BadAnswer:
    """What else an SDK lets out, which must not bring the worker down.

    Raises MemoryError where it says that the process has no memory or no threads left: no item can be blamed for that.
    """
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        raise MemoryError(str(error) or "out of memory") from None
    return BadAnswer(f"unexpected {type(error).__name__}: {clean(str(error), secrets)}")


_BY_STATUS: dict[int, type[ProviderError]] = {
    401: AccessDenied,
    402: QuotaExhausted,  # DeepSeek, OpenRouter, Venice: the balance is spent
    403: AccessDenied,
    404: ModelUnknown,
    405: ModelUnknown,
    408: Overloaded,
    409: Overloaded,
    410: ModelUnknown,
    413: InputTooLong,
    429: RateLimited,
    499: Overloaded,  # Google's "cancelled"
}


def class_for_status(status: int) -> type[ProviderError]:
    """The sort of an HTTP status that nothing more is known of; `ai_worker.errors` states the rules."""
    if status >= 500:
        return Overloaded
    # A redirect that was not followed means that the address is wrong, not the item.
    return _BY_STATUS.get(status, ModelUnknown if status < 400 else InvalidRequest)


def network_failure(error: BaseException, limit: float, secrets: Secrets) -> NetworkFailed:
    """For an exchange that broke off. Looks at the causes: the SDKs' transports take a lost connection for a time-out.

    `limit` is the time in seconds that the whole exchange was given.
    """
    if isinstance(error, TimeoutError):
        return NetworkFailed(f"no complete answer within {limit:g} s", code="timeout")
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    root = causes[-1]
    what, code = ("timed out", "timeout") if isinstance(root, TimeoutError) else ("connection failed", None)
    return NetworkFailed(f"{what}: {clean(str(root), secrets) or type(root).__name__}", code=code)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asked to wait: `retry-after-ms` (OpenAI), else `Retry-After` in seconds or as a date (RFC 9110)."""
    try:
        milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
        if _NUMBER.fullmatch(milliseconds) and float(milliseconds) > 0:  # Azure says 0 beside a second
            return float(milliseconds) / 1000
        if _NUMBER.fullmatch(value):
            return float(value)
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": RFC 5322's UTC of unknown origin
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def duration(text: str) -> float | None:
    """Seconds of `39s`, `1.5s`, `6m0s`, `10h17m4s` or `120ms`; None for anything else."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _SECONDS_IN[unit] for number, unit in parts)
