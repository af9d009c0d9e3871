"""What all task types made of a prompt file have in common: prompt, parse, validate."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import jsonschema_rs

from ai_worker.errors import BadAnswer, ContentRefused, InvalidRequest
from ai_worker.models import Completion, Item, Needs, Prompt, Result, Task
from ai_worker.task_types import TIME_LIMIT
from ai_worker.task_types.answer import decoded, fitted, laid_out
from ai_worker.task_types.checks import Check, CheckFailed, Refused
from ai_worker.task_types.parameters import Parameters
from ai_worker.task_types.prompt_file import PromptFile
from ai_worker.text import clean, estimate_tokens

_PLANS_KEPT = 256
_LONGEST_TIME = 86_400  # seconds of an attempt: a day
# Parameters that do not determine an answer: what is drawn into a prompt does, and that is in its fingerprint.
_DRAWING = ("history_results", "history_facts", "history_tokens", "history_types", "reviewed_examples")
_BESIDE_THE_ANSWER = frozenset({TIME_LIMIT, "fallback_on_failure", *_DRAWING})
_REASON_AT_MOST = 400

Settings = Mapping[str, Any]


class _Markers(Iterator[str]):
    """Lines that no text can foresee, each used once. Drawn many at a time: asking the kernel takes longer than all else here.

    No generator: prompts are made in more than one thread.
    """

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def __next__(self) -> str:
        try:
            return self._drawn.pop()
        except IndexError:
            digits = secrets.token_hex(4096)
            self._drawn.extend([f"<<<{digits[start : start + 16]}>>>" for start in range(16, len(digits), 16)])
            return f"<<<{digits[:16]}>>>"


_MARKERS: Iterator[str] = _Markers()


def marker_outside(text: str) -> str:
    """A line that is not in the text."""
    marker = next(_MARKERS)
    while marker in text:
        marker = next(_MARKERS)
    return marker


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same for all items of a task, worked out once. `digest` stands for all of it that determines an answer."""

    settings: Settings
    system: str
    schema: Mapping[str, Any]
    validator: jsonschema_rs.Validator
    checks: tuple[tuple[str, Check], ...]
    digest: bytes
    needs: Needs | None


class PromptedTaskType:
    """A task type whose prompt, answer schema and checks stand in `prompts/<name>.md`.

    A subclass says which parameters there are, what of the schema and the checks depends on them, and what is stored.
    """

    name: ClassVar[str]
    keeps_layout: ClassVar[bool] = False
    """The answer is the text itself in a new shape: it gets the original's line ends, and the blanks around it."""
    unchanged_is_right: ClassVar[bool] = False
    """The original itself is a right answer, and no check need be asked."""
    history_types: ClassVar[tuple[str, ...]] = ()
    """The task types whose earlier results are drawn into a prompt, where the task does not say which; none: all."""

    def __init__(self) -> None:
        self.file: Final = PromptFile.load(self.name)
        self._validator: Final = jsonschema_rs.validator_for(dict(self.file.schema))
        self._plans: OrderedDict[tuple[str, str], _Plan] = OrderedDict()
        self._latest: tuple[Task, _Plan] | tuple[None, None] = None, None

    def settings(self, parameters: Parameters) -> dict[str, Any]:
        """The task's parameters, read and completed. Raises UsageError."""
        raise NotImplementedError

    def schema(self, settings: Settings) -> Mapping[str, Any]:  # noqa: ARG002 -- for those whose schema depends on them
        """The answer's schema for these settings."""
        return self.file.schema

    def check_parameters(self, settings: Settings) -> Mapping[str, Mapping[str, Any] | None]:  # noqa: ARG002 -- as above
        """Per check: parameters that come from the settings, or None to leave the check out."""
        return {}

    def tidied(self, answer: dict[str, Any], settings: Settings) -> dict[str, Any]:  # noqa: ARG002 -- as above
        """The answer with harmless slips put right, before it is held against the schema."""
        return answer

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:
        """What is stored of an answer that passed."""
        raise NotImplementedError

    def tokens_expected(self, text: str, settings: Settings) -> int:
        """About how many tokens the answer will have."""
        raise NotImplementedError

    def validate(self, task: Task) -> None:
        """Raises UsageError, naming the parameter, its value and the remedy."""
        self._made(task)

    def needs(self, task: Task) -> Needs | None:
        """What is to be drawn into the prompts of the task's items; None: nothing. Raises UsageError as `validate` does."""
        return self._plan(task).needs

    def prompt(self, item: Item) -> Prompt:
        """The prompt of one item. Raises InvalidRequest when the text is empty; UsageError as `validate` does, as plain SQL
        may have put the task there.
        """
        plan, text = self._plan(item.task), item.text_original
        if not text or text.isspace():
            raise InvalidRequest("nothing to send: the text is empty")
        return Prompt(
            system=plan.system,
            user=self.file.render_user(text=text, marker=marker_outside(text)),
            schema=plan.schema,
            schema_name=self.name,
            text=text,
            answer_field=self.file.answer_field,
            task_type=self.name,
            parameters=plan.settings,
            temperature=self.file.temperature,
            tokens_output_expected=self.tokens_expected(text, plan.settings),
            fingerprint=hashlib.sha256(plan.digest + text.encode("utf-8", "surrogatepass")).digest(),
        )

    def parse(self, item: Item, completion: Completion) -> Result:
        """The result of an answer. Raises BadAnswer, naming the check, or ContentRefused; both with the answer's usage."""
        try:
            return self._result(self._plan(item.task), clean(item.text_original), completion)
        except CheckFailed as failed:
            error = ContentRefused if isinstance(failed, Refused) else BadAnswer
            raise error(f"check {failed.check}: {_bounded(failed)}", usage=completion.usage) from None

    def _result(self, plan: _Plan, original: str, completion: Completion) -> Result:
        if completion.finish == "length":
            raise CheckFailed("the answer was cut short at the model's output limit", check="length")
        field = self.file.answer_field
        answer = self.tidied(fitted(decoded(completion.text, field), plan.schema, field), plan.settings)
        _validate(answer, plan.validator)
        if self.keeps_layout:
            answer[field] = laid_out(answer[field], original)
        if not (self.unchanged_is_right and answer[field] == original):
            _check(plan.checks, original, answer[field])
        return self.result(original, answer, plan.settings)

    def _plan(self, task: Task) -> _Plan:
        latest, plan = self._latest
        if latest is task and plan is not None:
            return plan
        # By what it is made of, not by task: an application that makes a task of each message makes thousands of the same kind.
        key = (task.description, repr(task.parameters) if task.parameters else "")
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._made(task)
            if len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        self._latest = task, plan
        return plan

    def _made(self, task: Task) -> _Plan:
        parameters = Parameters(task)
        settings = {**task.parameters, **self.settings(parameters)}
        parameters.seconds(TIME_LIMIT, maximum=_LONGEST_TIME)
        needs = parameters.needs(self.history_types)
        parameters.finish()
        schema = self.schema(settings)
        from_settings = self.check_parameters(settings)
        system = self.file.render_system(description=clean(task.description or "").strip(), parameters=settings)
        # The file's digest stands for templates, temperature and checks. Properties keep their order: that of the answer.
        given = sorted((name, value) for name, value in settings.items() if name not in _BESIDE_THE_ANSWER)
        determining = [self.name, self.file.digest.hex(), system, schema, given, from_settings]
        return _Plan(
            settings=settings,
            system=system,
            schema=schema,
            validator=self._validator if schema is self.file.schema else jsonschema_rs.validator_for(dict(schema)),
            checks=tuple(
                (name, partial(check, **extra) if extra else check)
                for name, check in self.file.checks.items()
                if (extra := from_settings.get(name, {})) is not None
            ),
            digest=hashlib.sha256(json.dumps(determining, default=repr).encode()).digest(),
            needs=needs,
        )


def _check(checks: Iterable[tuple[str, Check]], original: str, answer: str) -> None:
    for name, check in checks:
        try:
            check(original, answer)
        except CheckFailed as failed:
            failed.check = name
            raise


def _validate(answer: Mapping[str, Any], validator: jsonschema_rs.Validator) -> None:
    try:
        validator.validate(answer)
    except jsonschema_rs.ValidationError as error:
        place = "/".join(map(str, error.instance_path))
        raise CheckFailed(f"{place}: {error.message}" if place else error.message, check="schema") from None


def _bounded(reason: CheckFailed) -> str:
    text = clean(str(reason))
    return text if len(text) <= _REASON_AT_MOST else f"{text[: _REASON_AT_MOST - 1]}…"


def expected_tokens(text: str, factor: float, extra: int) -> int:
    """Tokens of an answer that is `factor` times as long as `text`, plus `extra` for the rest of the JSON."""
    return round(estimate_tokens(text) * factor) + extra
