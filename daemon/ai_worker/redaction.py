"""What must not be seen: keys, passwords and tokens, and more of a text than an excerpt."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any

LONGEST_VALUE = 2000  # characters of one field: the log is no second copy of the rows

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:api_?key|key_encrypted|password|passwd|secret|authorization|credentials?|token|(?:master|aes)_key\w*)$", re.I
)
_SECRET_VALUE = re.compile(
    r"sk-[\w-]{8,}"  # OpenAI and its kin
    r"|AIza[\w-]{20,}"  # Google
    r"|aiw_[\w-]{8,}"  # a token of the web
    r"|(?<=earer )[\w.~+/=-]{8,}"  # an Authorization header
    r"|(?<=://)[^\s/@\"\\]+(?=@)"  # user and password of a URL
    r"|(?i:(?<=password=)|(?<=passwd=)|(?<=api_key=)|(?<=apikey=)|(?<=[?&]key=)|(?<=token=)|(?<=secret=)|(?<=[?&]sig=))"
    r"[^\s\"'&,;\\]+"
)

# One of them stands in each of these. To look for these few is fast, and spares most lines the slower pattern.
_SIGNS = ("sk-", "AIza", "aiw_", "earer ", "://", "key=", "assw", "token=", "secret=", "sig=")


@lru_cache(maxsize=1000)
def _secret_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of these names give a secret away. Lines of one event all have the same."""
    return tuple(name for name in names if _SECRET_KEY.search(name))


def redacted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which nothing that a name gives away as a secret is shown, however deep; long texts are cut."""
    return dict(redact(dict(fields)))


def redacted_text(text: str) -> str:
    """The text with `***` for what looks like a key, a token or the credentials of a URL."""
    for sign in _SIGNS:
        if sign in text:
            return _SECRET_VALUE.sub("***", text)
    return text


def redact(fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The same in place."""
    for name in _secret_keys(tuple(fields)):
        fields[name] = "***"
    for name, value in fields.items():
        kind = type(value)
        if kind is str:
            if len(value) > LONGEST_VALUE and name != "exception":
                fields[name] = excerpt(value, LONGEST_VALUE)
        elif kind is dict:
            fields[name] = redact(value.copy())
    return fields


def excerpt(text: str, limit: int = 200) -> str:
    """The beginning of a row's text, for DEBUG lines, with the number of characters left out."""
    return text if len(text) <= limit else f"{text[:limit]}… (+{len(text) - limit} characters)"
