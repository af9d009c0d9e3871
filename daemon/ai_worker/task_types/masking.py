"""Task types for tasks that keep personal data in the house.

The one place between a row and what is sent for it, and between an answer and what is stored of it: around any task type, so that
whoever asks it for a prompt gets one without personal data, and whoever has it read an answer gets a result with the values in
it. Single calls, packs, batches, parts, steps, estimates and dry runs all ask a task type. The row's own text never changes, and
the placeholders are worked out from it anew each time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b, sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from ai_worker.config import encoding_of
from ai_worker.errors import AiWorkerError, BadAnswer, CannotMask, PersonalDataFound
from ai_worker.models import NO_BACKGROUND, Background, Completion, Example, Item, PersonalData, Prompt, Result, StepResult, Task
from ai_worker.personal_data import Detector, Kind, has_word, moved_out
from ai_worker.placeholders import Placeholders, kind_of
from ai_worker.task_types import SplittingTaskType, SteppedTaskType, TaskType, is_new_version, splitting, stepped
from ai_worker.task_types.answer import decoded
from ai_worker.task_types.checks import CheckFailed

INSTRUCTION: Final = """

# Placeholders

In what you are given, tokens in double square brackets such as [[EMAIL_1]], [[NAME_2]] or [[PHONE_1]] stand for data that you are not shown. Treat each as the value that its name says. Where your answer speaks of such a value, write its token, letter for letter, with its number and brackets; never change, translate or inflect a token, never make up another, and never ask for the value."""  # noqa: E501 -- a paragraph

_T = TypeVar("_T", Result, StepResult)


class Masking:
    """Makes task types keep to what `task.personal_data` says.

    names_file: names to be found beside what has a form of its own, one a line; read when it is first needed.
    """

    def __init__(self, names_file: Path | None = None) -> None:
        self._names_file = names_file
        self._detector: Detector | None = None
        self._made: dict[tuple[int, PersonalData], tuple[TaskType, TaskType]] = {}  # what is kept alive here keeps its id

    def of(self, kind: TaskType, mode: PersonalData) -> TaskType:
        """The task type for tasks of this mode. Raises CannotMask where this host lacks what it takes."""
        known = self._made.get((id(kind), mode))
        if known is None:
            if self._detector is None:
                self._detector = Detector(() if self._names_file is None else names_of(self._names_file))
            known = self._made[id(kind), mode] = kind, _around(kind, mode, self._detector)
        return known[1]


def names_of(path: Path) -> list[str]:
    """The names in a file, one a line; blank lines and those that begin with # are none.

    Raises CannotMask, also where the file has no name, or a line in which none could be found: whoever names a list counts on it.
    """
    setting = "AI_WORKER_PERSONAL_NAMES_FILE"
    try:
        lines = path.read_text(encoding=encoding_of(path)).splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not in UTF-8: save it as that"
        raise CannotMask(f"{setting}: {path} cannot be read: {reason}") from None
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if "\0" in name or not has_word(name):
            raise CannotMask(
                f"{setting}: {path}, line {number}, is no name: one in letters on each line, comments with # before them"
            )
        names.append(name)
    if not names:
        raise CannotMask(f"{setting}: {path} has no names: one on each line; without a list, leave the setting out")
    return names


def _around(kind: TaskType, mode: PersonalData, detector: Detector) -> TaskType:
    by_parts, by_steps = splitting(kind), stepped(kind)
    if by_parts is not None:
        return _MaskedParts(by_parts, mode, detector)
    return _Masked(kind, mode, detector) if by_steps is None else _MaskedSteps(by_steps, mode, detector)


class _Masked:
    """A task type around another one; what is not about texts is the other one's."""

    def __init__(self, kind: TaskType, mode: PersonalData, detector: Detector) -> None:
        self._kind = kind
        self._mode = mode
        self._detector = detector
        self.name = kind.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)

    def mark(self, item: Item) -> str:
        """Stands for the way in which the item's placeholders are numbered here: by what is found, and by what is looked through.
        Under a key of the claim: it tells nobody else a thing."""
        task = item.task
        seen = [item.text_original, item.context, task.description, task.parameters]
        of_item = json.dumps(seen, sort_keys=True, default=repr).encode()
        return blake2b(self._detector.digest + of_item, digest_size=4, key=item.claim_token).hexdigest()

    def validate(self, task: Task) -> None:
        """As the other one does."""
        self._kind.validate(task)

    def prompt(self, item: Item) -> Prompt:
        """What to send, without personal data. Raises PersonalDataFound where it has some and must not, or cannot, be masked."""
        return self._sent(item, lambda masked, _: self._kind.prompt(masked))

    def parse(self, item: Item, completion: Completion) -> Result:
        """The result, with the values in it. Raises BadAnswer where placeholders were lost or made up; no error tells a value."""
        if self._mode is PersonalData.BLOCK:
            return self._kind.parse(item, completion)
        return self._read(item, completion, self._kind.parse, is_text=is_new_version(self._kind))

    def _sent(self, item: Item, render: Callable[[Item, Placeholders], Prompt]) -> Prompt:
        """What `render` makes of the masked item, whose values it is given too."""
        values = Placeholders(self._detector)
        prompt = render(self._masked(item, values), values)
        used = values.used_in(prompt.system, prompt.user, prompt.text, *([] if prompt.image else [repr(prompt.schema)]))
        if self._mode is PersonalData.BLOCK:
            if (kinds := _kinds(used)) is not None:
                raise PersonalDataFound(f"it has personal data, and its task says that none is to be sent: {kinds}")
            return self._clean(render(item, Placeholders(self._detector)), values)
        if prompt.image is not None:
            if (kinds := _kinds(used)) is not None:
                raise PersonalDataFound(f"it asks for a picture, in which personal data cannot be put back: {kinds}")
            return prompt
        return prompt._replace(system=prompt.system + INSTRUCTION, fingerprint=_fingerprint(prompt.fingerprint, used))

    @staticmethod
    def _clean(prompt: Prompt, values: Placeholders) -> Prompt:
        """A prompt that is sent as it is. What a template has shortened or changed is no placeholder any more, and would be a
        value all the same: raises PersonalDataFound where one stands in it."""
        kinds = _kinds(values.standing_in(prompt.system, prompt.user, prompt.text))
        if kinds is not None:
            raise PersonalDataFound(f"it has personal data, and its task says that none is to be sent: {kinds}")
        return prompt

    def _masked(self, item: Item, values: Placeholders) -> Item:
        """The item as a prompt may see it. The task comes first: what it has is numbered alike for all of its items, whose
        prompts begin alike then."""
        return item._replace(
            task=self._masked_task(item.task, values),
            text_original=values.masked(item.text_original),
            context=values.masked_all(item.context) if item.context else item.context,
            background=item.background if item.background is NO_BACKGROUND else _masked_background(item.background, values),
        )

    def _masked_task(self, task: Task, values: Placeholders) -> Task:
        description = values.masked(task.description or "")
        # Numbers of parameters are settings: how many, how long.
        parameters = values.masked_all(task.parameters, numbers=False) if task.parameters else task.parameters
        return replace(task, description=description, parameters=parameters) if values else task

    def _read(self, item: Item, completion: Completion, parse: Callable[[Item, Completion], _T], *, is_text: bool) -> _T:
        """What `parse` makes of the answer with the values in it; of a type that gives the text back, held against the text."""
        values = Placeholders(self._detector)
        text = self._masked(item, values).text_original
        unknown: set[str] = set()
        try:
            restored, told = self._restored(completion.text, values, unknown)
        except RecursionError:
            raise _bad("it is nested too deeply", completion) from None
        if unknown:
            raise _bad(f"it has placeholders that stand for nothing: {_listed(unknown)}", completion)
        try:
            result = parse(item, completion._replace(text=restored))
        except AiWorkerError as error:
            raise _without_values(error, values) from None
        except MemoryError:  # of the worker, whichever item met it
            raise
        except Exception as error:  # noqa: BLE001 -- a plug-in's bug, whose words may be the row's
            raise RuntimeError(_quotable(f"{type(error).__name__}: {error}", values)) from None
        # Last: an answer that was cut short, or that is a refusal, has lost them too.
        if is_text and (lost := values.used_in(text).keys() - values.used_in(told).keys()):
            raise _bad(f"it has lost placeholders of the text: {_listed(lost)}", completion)
        return result

    def _restored(self, answer: str, values: Placeholders, unknown: set[str]) -> tuple[str, str]:
        """The answer's JSON, or whatever a plug-in asked for instead, with the values in it; and of the main text, or of all
        where nobody knows which that is, what the model wrote."""
        if "[[" not in answer and "\\u005" not in answer:
            return answer, answer
        field = getattr(getattr(self._kind, "file", None), "answer_field", "")
        try:
            found = decoded(answer, field)
        except CheckFailed:
            return str(values.restored(answer, unknown)), answer
        told = found.get(field)
        return json.dumps(values.restored(found, unknown)), told if isinstance(told, str) else json.dumps(
            found, ensure_ascii=False
        )


class _MaskedSteps(_Masked):
    """The same for a type whose items may take several calls. What a step brought is stored with its values, and masked again
    for those after it."""

    _kind: SteppedTaskType

    def step_prompt(self, item: Item, number: int, earlier: Mapping[str, StepResult]) -> Prompt:
        """As `prompt`, for one step."""

        def render(masked: Item, values: Placeholders) -> Prompt:
            seen = {
                name: StepResult(values.known_masked(result.text), values.known_masked(result.data))
                for name, result in earlier.items()
            }
            return self._kind.step_prompt(masked, number, seen)

        return self._sent(item, render)

    def parse_step(self, item: Item, number: int, completion: Completion) -> StepResult:
        """As `parse`, for one step."""
        if self._mode is PersonalData.BLOCK:
            return self._kind.parse_step(item, number, completion)

        def parse(item: Item, completion: Completion) -> StepResult:
            return self._kind.parse_step(item, number, completion)

        is_last = number == len(self._kind.steps(item.task))
        return self._read(item, completion, parse, is_text=is_last and is_new_version(self._kind))


class _MaskedParts(_MaskedSteps):
    """The same for a type that sends long texts in parts."""

    _kind: SplittingTaskType

    def split(self, item: Item, most: int | None = None) -> Sequence[str]:
        """The parts, none of which begins or ends within personal data. Raises PersonalDataFound before the first one is sent."""
        parts = self._kind.split(item, most)
        if len(parts) < 2:
            return parts
        if self._mode is PersonalData.BLOCK:
            self.prompt(item)
            return parts
        cuts, place = [], 0
        for part in parts[:-1]:
            place += len(part)
            cuts.append(place)
        text = item.text_original
        places = [0, *[cut for cut in moved_out(cuts, self._detector.find(text)) if cut < len(text)], len(text)]
        return [text[start:end] for start, end in pairwise(places)]


def _masked_background(background: Background, values: Placeholders) -> Background:
    masked = values.masked
    return Background(
        tuple([(masked(text), masked(result)) for text, result in background.results]),
        tuple(map(masked, background.facts)),
        tuple([_masked_example(each, masked) for each in background.examples]),
    )


def _masked_example(example: Example, masked: Callable[[str], str]) -> Example:
    note = None if example.note is None else masked(example.note)
    return example._replace(text=masked(example.text), answer=masked(example.answer), note=note)


def _fingerprint(fingerprint: bytes | None, used: Mapping[str, str]) -> bytes | None:
    """Of two items whose masked texts are the same and whose values differ, neither is the answer to the other."""
    if fingerprint is None or not used:
        return fingerprint
    return sha256(fingerprint + json.dumps(list(used.items())).encode()).digest()


def _kinds(used: Iterable[str]) -> str | None:
    """How many values of which kinds: `EMAIL (2), PESEL (1)`; None where all is what only looks like a placeholder."""
    counts = Counter(kind for kind in map(kind_of, used) if kind is not Kind.TEXT)
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items())) or None


def _listed(placeholders: Iterable[str]) -> str:
    names = sorted(placeholders)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _bad(message: str, completion: Completion) -> BadAnswer:
    return BadAnswer(f"check personal_data: {message}", usage=completion.usage)


def _without_values(error: AiWorkerError, values: Placeholders) -> AiWorkerError:
    """The error in words without the row's values: what an answer is refused for may be quoted from it."""
    error.args = (_quotable(str(error), values), *error.args[1:])
    return error


def _quotable(message: str, values: Placeholders) -> str:
    """Also without what only an answer had; and without pieces of words that have a value in them."""
    return str(values.known_masked(values.masked(message)))
