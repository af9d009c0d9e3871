"""The built-in task types. What each one asks, and which checks its answers must pass, stands in `prompts/<name>.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ai_worker.changes import measure
from ai_worker.models import Item, Result
from ai_worker.task_types.base import PromptedTaskType, Settings, expected_tokens
from ai_worker.task_types.language import language_code, language_name
from ai_worker.task_types.parameters import Parameters, names
from ai_worker.text import diff, summary_of

_SUMMARY_AT_MOST = 1000  # characters of `change_summary` that a model may fill
# OpenAI's strict mode takes 1,000 enum values in a schema, of at most 15,000 characters together from 250 values on.
_CATEGORIES_AT_MOST, _CATEGORY_LENGTH = 250, 100


class Correction(PromptedTaskType):
    """Corrects errors and nothing else.

    Parameters: `language` of the texts (told from each text when absent), `style` in words, `explain` (true): the model says
    what it corrected; false saves the tokens. Stored: the corrected text; the model's summary of the changes, or the changes
    word by word; beside the answer, as `changes`, how many there are of each kind and how much of the text they touch.
    """

    name = "correction"
    reads = ("change_summary",)
    keeps_layout = True
    unchanged_is_right = True

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "language": parameters.language("language"),
            "style": parameters.string("style", limit=500),
            "explain": parameters.flag("explain", default=True),
        }

    def tokens_expected(self, text: str, settings: Settings) -> int:
        return expected_tokens(text, 1.05, 45 if settings["explain"] else 20)

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        corrected = answer[self.file.answer_field]
        spans = [] if corrected == original else diff(original, corrected)
        # A model may tell of changes it did not make.
        told = one_line(answer.get("change_summary", "")) if spans else ""
        changes = measure(original, corrected, spans).as_json()
        return Result(corrected, told or summary_of(spans), {"changes": changes, **answer})


class Translation(PromptedTaskType):
    """Translates into `target_language` (required).

    Parameters: `source_language`, `glossary` {term: translation}. Stored: the translation; `Polish → English`.
    """

    name = "translation"
    reads = ("source_language",)
    keeps_layout = True

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "target_language": parameters.language("target_language", required=True),
            "source_language": parameters.language("source_language"),
            "glossary": parameters.mapping("glossary", most=500),
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        code = language_code(settings["target_language"])
        return {"language": {"expected": code} if code else None}

    def tokens_expected(self, text: str, settings: Settings) -> int:  # noqa: ARG002 -- the base's signature
        return expected_tokens(text, 1.3, 25)

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        source = settings["source_language"] or answer.get("source_language", "").strip()[:60]
        target = language_name(settings["target_language"])
        told = f"{language_name(source)} → {target}" if source else f"→ {target}"
        return Result(answer[self.file.answer_field], told, answer)


class Analysis(PromptedTaskType):
    """Analyses a text as the task's description asks.

    Parameters: `aspects` (a list; one paragraph each), `language` to write in. Stored: the analysis; its conclusion in one line.
    """

    name = "analysis"
    reads = ("conclusion",)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "aspects": parameters.strings("aspects", most=30, limit=200),
            "language": parameters.language("language"),
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        return {"language": expected_language(settings)}

    def tokens_expected(self, text: str, settings: Settings) -> int:
        return expected_tokens(text, 0.2, 250 + 80 * len(settings["aspects"]))

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        return Result(answer[self.file.answer_field].strip(), one_line(answer.get("conclusion", "")) or None, answer)


class Categorization(PromptedTaskType):
    """Puts a text into one of `categories` (required: names, or {name, description}), or into `fallback` ("Uncategorized").

    Parameters: also `language` of the reason, `fallback_on_failure` (true): what cannot be sorted, whatever the reason, ends
    in the fallback too; false has it end in ERROR. Stored: the category, spelled as given; the reason.
    """

    name = "categorization"
    reads = ("reason",)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        categories = parameters.categories("categories", most=_CATEGORIES_AT_MOST, limit=_CATEGORY_LENGTH)
        fallback = parameters.string("fallback", limit=_CATEGORY_LENGTH) or "Uncategorized"
        spelled = {name.casefold(): name for name in names(categories)}
        return {
            "categories": categories,
            "fallback": spelled.get(fallback.casefold(), fallback),
            "fallback_listed": fallback.casefold() in spelled,
            "language": parameters.language("language"),
            "fallback_on_failure": parameters.flag("fallback_on_failure", default=True),
        }

    def schema(self, settings: Settings) -> Mapping[str, Any]:
        properties, field = self.file.schema["properties"], self.file.answer_field
        category = {**properties[field], "enum": list(dict.fromkeys([*names(settings["categories"]), settings["fallback"]]))}
        return {**self.file.schema, "properties": {**properties, field: category}}

    def tidied(self, answer: dict[str, Any], settings: Settings) -> dict[str, Any]:
        given = answer.get(self.file.answer_field)
        if isinstance(given, str):
            plain = given.strip(" \t\r\n\"'„”“.").casefold()
            for name in (*names(settings["categories"]), settings["fallback"]):
                if name.casefold() == given.casefold() or name.casefold() == plain:
                    answer[self.file.answer_field] = name
        return answer

    def tokens_expected(self, text: str, settings: Settings) -> int:  # noqa: ARG002 -- the base's signature
        return 50

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        return Result(answer[self.file.answer_field], one_line(answer.get("reason", "")) or None, answer)

    def fallback(self, item: Item, kind: str, message: str) -> Result | None:
        """The fallback category, with what went wrong for a reason."""
        settings = self._plan(item.task).settings
        if not settings["fallback_on_failure"]:
            return None
        reason = one_line(f"{kind}: {message}")
        answer = {"reason": reason, self.file.answer_field: settings["fallback"], "is_fallback": True}
        return Result(settings["fallback"], reason, answer)


class Summary(PromptedTaskType):
    """Summarises a text.

    Parameters: `max_words` (60), `language` to write in. Stored: the summary; how many words became how many.
    """

    name = "summary"

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "max_words": parameters.integer("max_words", default=60, minimum=1, maximum=5000),
            "language": parameters.language("language"),
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        return {"language": expected_language(settings), "word_limit": {"maximum": settings["max_words"]}}

    def tokens_expected(self, text: str, settings: Settings) -> int:
        max_words: int = settings["max_words"]
        return min(expected_tokens(text, 1.0, 15), 2 * max_words + 15)

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        summary = answer[self.file.answer_field].strip()
        return Result(summary, f"{len(original.split())} words → {len(summary.split())} words", answer)


def expected_language(settings: Settings) -> Mapping[str, Any] | None:
    """The language asked for; without one the description may have asked for any, and nothing is checked."""
    code = language_code(settings["language"]) if settings["language"] else None
    return {"expected": code} if code else None


def one_line(text: str) -> str:
    """The text in one line, no longer than a summary may be."""
    line = " ".join(text.split())
    return line if len(line) <= _SUMMARY_AT_MOST else f"{line[: _SUMMARY_AT_MOST - 1]}…"
