"""How many tokens a call is billed. Two ways: by the row's text alone, which tests can sum up in their heads, or by the whole
prompt, as the vendors do it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from tests.fake_provider.wire import Ask, Tokens

CHARACTERS = 4  # a token, about, in English
CACHED_FROM, CACHED_STEP = 1024, 128  # tokens: the shortest prefix that OpenAI caches, and by how much it grows

Count = Callable[[Ask, str], Tokens]


def correct(text: str) -> str:
    """What the fake does to a row's text: deterministic, visible, and different from it."""
    return f"{text} ✓"


def tokens_for(*texts: str) -> Tokens:
    """What a correct answer to one row's text is billed, or to several in one call: ten more than the texts' words in, the
    answers' words out."""
    return Tokens(sum(len(text.split()) for text in texts) + 10, sum(len(correct(text).split()) for text in texts))


def by_texts(ask: Ask, content: str) -> Tokens:
    return tokens_for(*ask.texts)


def size(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARACTERS)


class ByPrompt:
    """The whole of schema, system and user message, about four characters a token, and the answer's text.

    A model's prompts that begin alike for 1,024 tokens or more cost that beginning as cached tokens, from the second time on.
    OpenAI puts the schema in front of the system message, so that it belongs to the beginning.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, ask: Ask, content: str) -> Tokens:
        schema = "" if ask.schema is None else json.dumps(ask.schema, ensure_ascii=False)
        prompt = f"{schema}{ask.system}{ask.user}"
        return Tokens(size(prompt), size(content), self._cached(ask.model, prompt))

    def _cached(self, model: str, prompt: str) -> int:
        """How many tokens of the prompt's beginning were seen before; remembers all of its beginnings."""
        cached, start = 0, 0
        begun = hashlib.blake2b(model.encode(), digest_size=16)
        for end in range(CACHED_FROM, len(prompt) // CHARACTERS + 1, CACHED_STEP):
            begun.update(prompt[start * CHARACTERS : end * CHARACTERS].encode("utf-8", "surrogatepass"))
            start, digest = end, begun.digest()
            if digest in self._seen:
                cached = end
            self._seen.add(digest)
        return cached


COUNTS: dict[str, Callable[[], Count]] = {"texts": lambda: by_texts, "prompt": ByPrompt}
