"""`echo`: gives the row's text back. For benchmarks of everything but the model, and for dry trials."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from ai_worker.models import Completion, Prompt, Usage
from ai_worker.providers import ProviderConfig
from ai_worker.providers._fill import filler
from ai_worker.providers._images import no_pictures
from ai_worker.providers._options import Options

CHARACTERS_PER_TOKEN = 4


class EchoProvider:
    """Answers with the prompt's own text, at once or after the option `delay_ms` (milliseconds, default 0).

    Usage is estimated at four characters a token. Needs neither key nor network.
    """

    makes_pictures = False

    def __init__(self, config: ProviderConfig) -> None:
        options = Options(config.name, config.options, ("delay_ms",))
        self._delay = (options.number("delay_ms", minimum=0) or 0.0) / 1000
        self._model = config.model or "echo"
        self._schema: Mapping[str, Any] | None = None

    async def complete(self, prompt: Prompt) -> Completion:
        if prompt.image is not None:
            raise no_pictures("echo")
        if self._delay:
            await asyncio.sleep(self._delay)
        if prompt.schema is not self._schema:  # it is one object for all items of a task
            self._schema, self._fill = prompt.schema, filler(prompt.schema, prompt.answer_field)
        text = orjson.dumps(self._fill(prompt.text)).decode()
        asked = len(prompt.system) + len(prompt.user)
        return Completion(text, Usage(_tokens(asked), _tokens(len(text))), model=self._model)

    async def aclose(self) -> None:
        """Nothing to close."""


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
