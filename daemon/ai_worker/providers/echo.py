"""`echo`: gives the row's text back. For benchmarks of everything but the model, and for dry trials."""

from __future__ import annotations

import asyncio
import json

from ai_worker.models import Completion, Prompt, Usage
from ai_worker.providers import ProviderConfig
from ai_worker.providers._fill import fill
from ai_worker.providers._options import Options

CHARACTERS_PER_TOKEN = 4
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would build an encoder each time


class EchoProvider:
    """Answers with the prompt's own text, at once or after the option `delay_ms` (milliseconds, default 0).

    Usage is estimated at four characters a token. Needs neither key nor network.
    """

    def __init__(self, config: ProviderConfig) -> None:
        options = Options(config.name, config.options, ("delay_ms",))
        self._delay = (options.number("delay_ms", minimum=0) or 0.0) / 1000
        self._model = config.model or "echo"

    async def complete(self, prompt: Prompt) -> Completion:
        if self._delay:
            await asyncio.sleep(self._delay)
        text = _ENCODE(fill(prompt.schema, prompt.answer_field, prompt.text))
        asked = len(prompt.system) + len(prompt.user)
        return Completion(text, Usage(_tokens(asked), _tokens(len(text))), model=self._model)

    async def aclose(self) -> None:
        """Nothing to close."""


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
