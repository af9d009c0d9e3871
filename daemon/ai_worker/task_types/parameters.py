"""Reads a task's parameters: JSON that a person wrote, so each mistake is answered with the name, the value and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ai_worker.errors import UsageError
from ai_worker.models import Needs, Task
from ai_worker.task_types.language import language_code, language_tag


class Parameters:
    """The parameters of one task. Every reader raises UsageError when the value cannot work; null counts as not given."""

    def __init__(self, task: Task) -> None:
        self._task_type = task.task_type
        self._given = {name: value for name, value in task.parameters.items() if value is not None}
        self._known: list[str] = []

    def language(self, name: str, *, required: bool = False) -> str | None:
        """A language by code (`pl`, `pt-BR`) or name (`Polish`); None when not given."""
        remedy = 'a language by code or name, such as "pl", "pt-BR" or "Polish"'
        value = self.string(name, limit=60, remedy=remedy)
        if value is None:
            if required:
                raise UsageError(f"task type {self._task_type} needs the parameter {name!r}: {remedy}")
            return None
        letters = value.replace("-", "").replace("_", "")
        unknown_code = len(letters) == 2 and language_code(value) is None
        if unknown_code or not any(sign.isalpha() for sign in letters) or not value.isprintable():
            self._refuse(name, value, remedy)
        return language_tag(value)

    def string(self, name: str, *, limit: int, remedy: str = "a text") -> str | None:
        """A text of 1 to `limit` characters, without blanks around it; None when not given or blank."""
        value = self._value(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > limit:
            self._refuse(name, value, f"{remedy} of at most {limit} characters")
        return value.strip() or None

    def matching(self, name: str, pattern: str, remedy: str) -> str | None:
        """A text that the pattern fits as a whole; None when not given."""
        value = self._value(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            self._refuse(name, value, remedy)
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """true or false."""
        value = self._value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def integer(self, name: str, *, default: int, minimum: int, maximum: int) -> int:
        """A whole number from `minimum` to `maximum`."""
        value = self._value(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self._refuse(name, value, f"a whole number from {minimum} to {maximum}")
        return value

    def seconds(self, name: str, *, maximum: int) -> float | None:
        """A length of time of up to `maximum` seconds; None when not given."""
        value = self._value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= maximum:
            self._refuse(name, value, f"a number of seconds, more than 0 and at most {maximum}")
        return float(value)

    def needs(self, default: Needs) -> Needs | None:
        """What is to be drawn into the prompts of the task's items, the `default` where the task does not say; None: nothing."""
        needs = Needs(
            results=self.integer("history_results", default=default.results, minimum=0, maximum=100),
            facts=self.integer("history_facts", default=default.facts, minimum=0, maximum=1000),
            examples=self.integer("reviewed_examples", default=default.examples, minimum=0, maximum=50),
            tokens=self.integer("history_tokens", default=default.tokens, minimum=1, maximum=1_000_000),
            types=tuple(self.strings("history_types", most=50, limit=50)) or default.types,
        )
        return needs if needs.results or needs.facts or needs.examples else None

    def strings(self, name: str, *, most: int, limit: int) -> list[str]:
        """A list of at most `most` texts of 1 to `limit` characters each; empty when not given."""
        value = self._value(name)
        remedy = f"a list of at most {most} texts of 1 to {limit} characters each"
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            self._refuse(name, value, remedy)
        for element in value:
            if not isinstance(element, str) or not 0 < len(element.strip()) <= limit:
                self._refuse(name, element, remedy)
        return [element.strip() for element in value]

    def mapping(self, name: str, *, most: int) -> dict[str, str]:
        """An object of at most `most` texts by name; empty when not given."""
        value = self._value(name)
        remedy = f'an object of at most {most} texts, such as {{"term": "translation"}}'
        if value is None:
            return {}
        if not isinstance(value, Mapping) or len(value) > most:
            self._refuse(name, value, remedy)
        for key, element in value.items():
            if not key.strip() or not isinstance(element, str) or not element.strip():
                self._refuse(name, {key: element}, remedy)
        return {key.strip(): element.strip() for key, element in value.items()}

    def categories(self, name: str, *, most: int, limit: int) -> list[dict[str, str]]:
        """A list of names, or of {"name", "description"}; each name once. Required."""
        remedy = f'a list of 1 to {most} names of at most {limit} characters, or of {{"name": …, "description": …}}'
        value = self._value(name)
        if value is None:
            raise UsageError(
                f'task type {self._task_type} needs the parameter {name!r}: {remedy}, such as ["complaint", "praise"]'
            )
        if not isinstance(value, list) or not 0 < len(value) <= most:
            self._refuse(name, value, remedy)
        read: dict[str, dict[str, str]] = {}
        for element in value:
            entry = {"name": element} if isinstance(element, str) else element
            if not isinstance(entry, Mapping) or not entry.keys() <= {"name", "description"}:
                self._refuse(name, element, remedy)
            label, description = entry.get("name"), entry.get("description") or ""
            if not isinstance(label, str) or not isinstance(description, str) or not _is_label(label, limit):
                self._refuse(name, element, remedy)
            label = label.strip()
            if label.casefold() in read:
                self._refuse(name, label, "a list that names each category once")
            read[label.casefold()] = {"name": label, "description": " ".join(description.split())}
        return list(read.values())

    @property
    def known(self) -> frozenset[str]:
        """The names that were asked for."""
        return frozenset(self._known)

    def finish(self) -> None:
        """Raises UsageError for a misspelt name. Other names are left alone: they belong to other parts of the program."""
        for name in self._given.keys() - set(self._known):
            close = get_close_matches(name, self._known, n=1, cutoff=0.8)
            if close and close[0] not in self._given:
                raise UsageError(f"task type {self._task_type}: unknown parameter {name!r}; did you mean {close[0]!r}?")

    def _value(self, name: str) -> Any:
        self._known.append(name)
        return self._given.get(name)

    def _refuse(self, name: str, value: object, remedy: str) -> NoReturn:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
        raise UsageError(f"task type {self._task_type}: parameter {name!r} is {shown}, but must be {remedy}")


def _is_label(label: str, limit: int) -> bool:
    return 0 < len(label.strip()) <= limit and label.strip().isprintable()


def names(categories: Sequence[Mapping[str, str]]) -> list[str]:
    """The names of `Parameters.categories`, in order."""
    return [category["name"] for category in categories]
