"""The task types for conversations, pictures, reports, and instructions of one's own.

What each one asks, and which checks its answers must pass, stands in `prompts/<name>.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from ai_worker.errors import BadAnswer, UsageError
from ai_worker.models import Completion, ImageRequest, Item, Needs, Prompt, Result, StepResult, Task
from ai_worker.task_types.base import PromptedTaskType, Settings, expected_tokens
from ai_worker.task_types.builtin import expected_language, one_line
from ai_worker.task_types.parameters import Parameters
from ai_worker.text import clean

FACT_LENGTH = 2000  # characters of context_fact.fact
_TOKENS_PER_WORD = 2  # of Polish, and rather too many
_CONVERSATIONS = ("reply",)


class Reply(PromptedTaskType):
    """Answers the latest message of a conversation.

    The text is the latest message; the conversation stands in the item's context, as `messages` [{role, text}], or is drawn from
    the earlier items of the same `context_key`.

    Parameters: `persona` (who answers, what it knows and may do), `tone`, `max_words` (150), `language` (that of the message when
    absent). Stored: the reply; what a person has to find out, where something stayed open.
    """

    name = "reply"
    reads = ("open_question",)
    is_repeatable = False
    default_needs: ClassVar[Needs] = Needs(results=10, facts=20, types=_CONVERSATIONS)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "persona": parameters.string("persona", limit=8000),
            "tone": parameters.string("tone", limit=300),
            "max_words": parameters.integer("max_words", default=150, minimum=1, maximum=5000),
            "language": parameters.language("language"),
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        return {"language": expected_language(settings), "word_limit": {"maximum": settings["max_words"]}}

    def tokens_expected(self, text: str, settings: Settings) -> int:  # noqa: ARG002 -- the base's signature
        max_words: int = settings["max_words"]
        return _TOKENS_PER_WORD * max_words + 30

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        return Result(answer[self.file.answer_field].strip(), one_line(answer.get("open_question", "")) or None, answer)


class Memory(PromptedTaskType):
    """Finds in a conversation what will be worth knowing later, and keeps it for the item's `context_key`.

    What is known already is shown to the model, so that it brings what is new. The text is the conversation, or its latest
    message with the conversation in the context as for `reply`.

    Parameters: `max_facts` (10), `language` to write in. Stored: the new facts, one per line; how many. They are kept in
    `context_fact`, each once per key, where the item has one.
    """

    name = "memory"
    answer_type = "array"
    is_repeatable = False
    default_needs: ClassVar[Needs] = Needs(facts=100, tokens=3000, types=_CONVERSATIONS)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "max_facts": parameters.integer("max_facts", default=10, minimum=1, maximum=100),
            "language": parameters.language("language"),
        }

    def tokens_expected(self, text: str, settings: Settings) -> int:
        max_facts: int = settings["max_facts"]
        return min(expected_tokens(text, 0.5, 20), 40 * max_facts + 20)

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        told = [" ".join(fact.split())[:FACT_LENGTH].strip() for fact in answer[self.file.answer_field]]
        facts = tuple(dict.fromkeys(fact for fact in told if fact))[: settings["max_facts"]]
        counted = "1 fact" if len(facts) == 1 else f"{len(facts)} facts"
        return Result("\n".join(facts), counted, {**answer, self.file.answer_field: list(facts)}, facts=facts)


class ImagePrompt(PromptedTaskType):
    """Turns a dialogue, or its latest message, into a prompt for an image model.

    Parameters: `style` of the picture in words, `max_words` (120), `language` of the prompt (English). Stored: the prompt; what
    the picture will show.
    """

    name = "image_prompt"
    reads = ("caption",)
    default_needs: ClassVar[Needs] = Needs(types=_CONVERSATIONS)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "style": parameters.string("style", limit=500),
            "max_words": parameters.integer("max_words", default=120, minimum=10, maximum=1000),
            "language": parameters.language("language") or "en",
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        return {"language": expected_language(settings), "word_limit": {"maximum": settings["max_words"]}}

    def tokens_expected(self, text: str, settings: Settings) -> int:  # noqa: ARG002 -- the base's signature
        max_words: int = settings["max_words"]
        return _TOKENS_PER_WORD * max_words + 60

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        return Result(answer[self.file.answer_field].strip(), one_line(answer.get("caption", "")) or None, answer)


class Image(PromptedTaskType):
    """Has an image model make a picture of the text, which is the prompt; the description stands before each, as its style.

    Parameters: `size` (`1024x1024`, or a ratio such as `16:9`), `quality` and `format` (png, jpeg, webp); the provider decides
    where they are absent. Stored: the pictures in `task_item_file`; what the model says of them, else the prompt; how many.
    """

    name = "image"
    is_repeatable = False

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "size": parameters.matching(
                "size", r"[1-9]\d{1,4}x[1-9]\d{1,4}|[1-9]\d?:[1-9]\d?", 'pixels such as "1024x1024", or a ratio such as "16:9"'
            ),
            "quality": parameters.matching("quality", r"[a-z0-9]{1,20}", 'a word that the provider knows, such as "high"'),
            "format": parameters.matching("format", "png|jpeg|webp", '"png", "jpeg" or "webp"'),
        }

    def tokens_expected(self, text: str, settings: Settings) -> int:  # noqa: ARG002 -- the base's signature
        return 1500  # about what a picture of 1024 x 1024 takes

    def prompt(self, item: Item) -> Prompt:
        """As for any type; an image model has no system part, and draws what stands in its prompt: no marker does."""
        prompt = super().prompt(item)
        settings = prompt.parameters
        image = ImageRequest(settings["size"], settings["quality"], settings["format"])
        return prompt._replace(system="", user="\n\n".join(filter(None, (prompt.system.strip(), prompt.user))), image=image)

    def parse(self, item: Item, completion: Completion) -> Result:
        """The pictures. Raises BadAnswer when there is none."""
        if not completion.files:
            said = f": {one_line(clean(completion.text))[:200]}" if completion.text.strip() else ""
            raise BadAnswer(f"check files: the answer has no picture{said}", usage=completion.usage)
        files = [
            {"mime_type": file.mime_type, "size": len(file.content), "sha256": hashlib.sha256(file.content).hexdigest()}
            for file in completion.files
        ]
        counted = "1 picture" if len(files) == 1 else f"{len(files)} pictures"
        text = clean(completion.text).strip() or clean(item.text_original)
        return Result(text, counted, {"files": files}, files=completion.files)


class _Report(PromptedTaskType):
    """What reports of several steps have in common: a report in Markdown, a summary in one line, and what they may refer to."""

    words: ClassVar[int] = 800

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "language": parameters.language("language"),
            "max_words": parameters.integer("max_words", default=self.words, minimum=50, maximum=10_000),
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        return {"language": expected_language(settings), "word_limit": {"maximum": settings["max_words"]}}

    def tokens_expected(self, text: str, settings: Settings) -> int:  # noqa: ARG002 -- the base's signature
        max_words: int = settings["max_words"]
        return _TOKENS_PER_WORD * max_words + 200

    def original(self, item: Item) -> str:
        """The material that came with the row may be referred to as the row itself."""
        sources = item.context.get("sources")
        return f"{super().original(item)}\n{json.dumps(sources, ensure_ascii=False)}" if sources else super().original(item)

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        report = answer[self.file.answer_field].strip()
        title = " ".join(str(answer.get("title", "")).split())
        return Result(f"# {title}\n\n{report}" if title else report, one_line(answer.get("summary", "")) or None, answer)


class Research(_Report):
    """Looks into a topic or a question, in four steps: plan, findings, critique, report.

    From the row, the material in its context (`sources`) and what the model has learnt; nothing is looked up.

    Parameters: `questions` (6 at most), `audience` in words, `max_words` of the report (800), `language`. Stored: the report in
    Markdown; the answer in two sentences.
    """

    name = "research"
    reads = ("title", "summary")

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            **super().settings(parameters),
            "questions": parameters.integer("questions", default=6, minimum=1, maximum=20),
            "audience": parameters.string("audience", limit=300),
        }


class Swot(_Report):
    """Strengths, weaknesses, opportunities and threats, in two steps: factors, report.

    Parameters: `perspective` in words (whose, for what aim), `points` in each of the four (5), `max_words` of the report (600),
    `language`. Stored: the report in Markdown; what it comes to in one sentence.
    """

    name = "swot"
    reads = ("title", "summary")
    words = 600

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            **super().settings(parameters),
            "perspective": parameters.string("perspective", limit=300),
            "points": parameters.integer("points", default=5, minimum=1, maximum=20),
        }


class Investment(_Report):
    """Lays out what speaks for and against an investment, without advice, in three steps: facts, analysis, report.

    Parameters: `horizon` in words, `max_words` of the report (800), `language`. Stored: the report in Markdown; what it comes to
    in one sentence.
    """

    name = "investment"
    reads = ("title", "summary")

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {**super().settings(parameters), "horizon": parameters.string("horizon", limit=100)}


class TechnicalReview(_Report):
    """Reviews code, a design or a specification, in three steps: understanding, findings, report.

    Parameters: `focus` (up to 20 texts), `points` at most (12), `max_words` of the report (1000), `language`. Stored: the review
    in Markdown; how many findings of which severity, and the verdict.
    """

    name = "technical_review"
    reads = ("title", "summary", "verdict")
    words = 1000

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            **super().settings(parameters),
            "focus": parameters.strings("focus", most=20, limit=200),
            "points": parameters.integer("points", default=12, minimum=1, maximum=50),
        }

    def combined(self, item: Item, results: Mapping[str, StepResult]) -> Result:
        """As for any report; the findings are counted from the step that made them."""
        result = super().combined(item, results)
        found = results.get("findings", StepResult("", {})).data.get("findings", ())
        found = found if isinstance(found, list) else ()  # a file of another's may bring anything there
        counts = Counter(finding.get("severity") for finding in found if isinstance(finding, Mapping))
        counted = ", ".join(f"{counts[name]} {name}" for name in ("critical", "major", "minor", "note") if counts[name])
        verdict = list(results.values())[-1].data.get("verdict", "")
        told = ": ".join(filter(None, (verdict, counted or "no findings", result.change_summary)))
        return result._replace(change_summary=one_line(told))


class Custom(PromptedTaskType):
    """Carries out the instruction in the task's description, which is required, on each text.

    Parameters: `language` and `max_words` of the answer (as the instruction says when absent); a prompt of one's own of this kind
    takes any others, too. Stored: the answer; a note where there is one.
    """

    name = "custom"
    answer_type = None

    def validate(self, task: Task) -> None:
        self._instructed(task)
        super().validate(task)

    def prompt(self, item: Item) -> Prompt:
        self._instructed(item.task)
        return super().prompt(item)

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        return {
            "language": parameters.language("language"),
            "max_words": parameters.integer("max_words", default=0, minimum=0, maximum=10_000),
        }

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:
        return {
            "language": expected_language(settings),
            "word_limit": {"maximum": settings["max_words"]} if settings["max_words"] else None,
        }

    def tokens_expected(self, text: str, settings: Settings) -> int:
        max_words: int = settings["max_words"]
        return _TOKENS_PER_WORD * max_words + 30 if max_words else expected_tokens(text, 0.5, 200)

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- the base's signature
        said, note = answer[self.file.answer_field], answer.get("note")
        text = said.strip() if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        return Result(text, (one_line(note) or None) if isinstance(note, str) else None, answer)

    def _instructed(self, task: Task) -> None:
        if self.name == self.kind and not (task.description or "").strip():
            raise UsageError(
                'task type custom needs a description: the instruction, such as --description "Give the material of each item"'
            )
