"""`offline`: corrects spelling, English and Polish, without a network, a key or a model."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from ai_worker.errors import InvalidRequest, ModelUnknown
from ai_worker.models import Completion, Prompt
from ai_worker.providers import ProviderConfig
from ai_worker.providers._fill import fill
from ai_worker.providers._images import no_pictures
from ai_worker.providers._options import Options
from ai_worker.providers._proofread import LanguageChoice, proofread

_TASK_TYPE = "correction"


class OfflineProvider:
    """Corrects misspelt, wrongly joined or split, and doubled words, and leaves everything else as it is.

    Knows the task type `correction` only. Option `language`: `auto` (told for each text; the default), `en` or `pl`. With `auto`,
    texts in other languages come back unchanged. Nothing is billed: the usage is zero.

    Dictionaries are loaded with the first text that needs them, once per process.
    """

    makes_pictures = False

    def __init__(self, config: ProviderConfig) -> None:
        options = Options(config.name, config.options, ("language",))
        self._language = cast("LanguageChoice", options.choice("language", ("auto", "en", "pl")))
        self._model = config.model or "offline"
        # A thread of its own: hundreds of texts waiting for it must not fill the loop's pool, which the database verbs need.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offline")

    async def complete(self, prompt: Prompt) -> Completion:
        if prompt.image is not None:
            raise no_pictures("offline")
        if prompt.task_type != _TASK_TYPE:
            raise InvalidRequest(
                f"the offline provider does {_TASK_TYPE!r} only, not {prompt.task_type!r};"
                " use a model of the provider 'openai' or 'gemini' (or one of another installed provider)"
            )
        loop = asyncio.get_running_loop()
        try:
            corrected = await loop.run_in_executor(self._executor, proofread, prompt.text, self._language)
        except (ImportError, OSError) as error:  # Hunspell or a dictionary: no item can succeed until it is back
            raise ModelUnknown(f"the offline provider's dictionaries cannot be loaded: {error}; reinstall the package") from error
        answer = fill(prompt.schema, prompt.answer_field, corrected)
        return Completion(json.dumps(answer, ensure_ascii=False), model=self._model)

    async def aclose(self) -> None:
        """Texts that still wait are dropped; the one at work ends within milliseconds."""
        self._executor.shutdown(wait=False, cancel_futures=True)
