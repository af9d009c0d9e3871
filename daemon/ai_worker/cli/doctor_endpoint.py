"""The doctor's look at a model's endpoint: whether it can be reached and takes the key, without spending a token."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final

from ai_worker.models import Model, Secret

TIMEOUT: Final = 10.0  # seconds
WITHOUT_NETWORK: Final = frozenset({"offline", "echo"})  # providers that have no endpoint

# provider -> its own endpoint, where it lists models, and how it takes the key
_LISTS: Final = {
    "openai": ("https://api.openai.com/v1", "/models", "Authorization", "Bearer {}"),
    "gemini": ("https://generativelanguage.googleapis.com", "/v1beta/models", "x-goog-api-key", "{}"),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of it. `status` is HTTP's, None when no answer came; `reason` says why not. `is_refused`: the key was."""

    url: str
    status: int | None = None
    reason: str = ""
    is_refused: bool = False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer. Following it would hand the key to whoever it names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def probe(model: Model, api_key: Secret | None) -> Probe | None:
    """Asks the endpoint for its list of models, which is free; None when the model has no endpoint, or none that is known.

    Any HTTP answer but 401 and 403 says: reachable. Proxies are used as the environment names them.
    """
    base, path, header, form = _LISTS.get(model.provider, ("", "", "", ""))
    url = (model.base_url or base).rstrip("/")
    if not url.startswith(("http://", "https://")):
        return None
    request = urllib.request.Request(url + path, headers={"User-Agent": "ai-worker-doctor"})  # noqa: S310 -- checked above
    if header and api_key is not None:
        request.add_unredirected_header(header, form.format(api_key.reveal()))
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as answer:
            return Probe(url, answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        # Google says 400 to a key that it does not know.
        return Probe(url, error.code, is_refused=error.code in (401, 403) or (error.code == 400 and model.provider == "gemini"))
    except (OSError, ValueError, HTTPException) as error:  # ValueError: a URL or a key that HTTP cannot carry
        return Probe(url, reason=_in_words(error.reason if isinstance(error, urllib.error.URLError) else error))


def _in_words(reason: object) -> str:
    if isinstance(reason, ssl.SSLError):
        return f"its certificate is not trusted here: {reason.reason or reason}"
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    if isinstance(reason, HTTPException):
        return "what answers there does not speak HTTP"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return reason if isinstance(reason, str) else type(reason).__name__
