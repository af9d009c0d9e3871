"""A provider and a task type that know nothing of AI Worker but its public modules."""

from __future__ import annotations

import json

from ai_worker.errors import BadAnswer, ConfigurationError, ItemRejected, UsageError
from ai_worker.models import Completion, Item, Prompt, Result, Task, Usage
from ai_worker.providers import ProviderConfig

_SCHEMA = {
    "type": "object",
    "properties": {"shouted": {"type": "string"}},
    "required": ["shouted"],
    "additionalProperties": False,
}


class ShoutProvider:
    """Answers with the text in capitals and the option `mark` (default "!") behind it."""

    def __init__(self, config: ProviderConfig) -> None:
        unknown = set(config.options) - {"mark"}
        if unknown:
            raise ConfigurationError(f"unknown option {unknown.pop()!r}; known ones: mark")
        self._mark = str(config.options.get("mark", "!"))

    async def complete(self, prompt: Prompt) -> Completion:
        answer = {prompt.answer_field: prompt.text.upper() + self._mark}
        return Completion(json.dumps(answer, ensure_ascii=False), Usage(len(prompt.text.split()), 1), model="shout-1")

    async def aclose(self) -> None:
        """Nothing to close."""


class Shouting:
    """Repeats a text `parameters["times"]` times, once by default, in whatever way the model shouts."""

    name = "shouting"

    def validate(self, task: Task) -> None:
        if not isinstance(task.parameters.get("times", 1), int):
            raise UsageError("parameter 'times' must be a whole number")

    def prompt(self, item: Item) -> Prompt:
        if not item.text_original.strip():
            raise ItemRejected("nothing to shout")
        text = " ".join([item.text_original] * item.task.parameters.get("times", 1))
        return Prompt("Shout.", f"<text>{text}</text>", _SCHEMA, "shouting", text, "shouted", self.name)

    def parse(self, item: Item, completion: Completion) -> Result:
        data = json.loads(completion.text)
        if not data["shouted"].isupper():
            raise BadAnswer(f"item {item.id_task_item} was not shouted", usage=completion.usage)
        return Result(data["shouted"], "now in capitals", data)
