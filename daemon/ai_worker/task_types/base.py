"""What all task types made of a prompt file have in common: steps, prompts, answers, validation."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Final

import jsonschema_rs

from ai_worker.errors import BadAnswer, ConfigurationError, ContentRefused, InvalidRequest, UsageError
from ai_worker.models import NO_BACKGROUND, Completion, Item, Needs, Prompt, Result, Step, StepResult, Task
from ai_worker.task_types import TIME_LIMIT
from ai_worker.task_types.answer import decoded, fitted, laid_out
from ai_worker.task_types.checks import Check, CheckFailed, Refused
from ai_worker.task_types.joining import joined_answer
from ai_worker.task_types.parameters import Parameters
from ai_worker.task_types.prompt_file import PromptFile, PromptStep, validator_of
from ai_worker.task_types.rendering import marker_outside, rendered
from ai_worker.task_types.templates import RenderError, fail
from ai_worker.text import clean, estimate_tokens
from ai_worker.text_parts import fits, parts_of

_PLANS_KEPT = 256
_LONGEST_TIME = 86_400  # seconds of an attempt: a day
# Parameters that do not determine an answer: what is drawn into a prompt does, and that is in its fingerprint.
_DRAWING = ("history_results", "history_facts", "history_tokens", "history_types", "reviewed_examples")
_BESIDE_THE_ANSWER = frozenset({TIME_LIMIT, "fallback_on_failure", "part_tokens", "models", *_DRAWING})
_PART_TOKENS, _FEWEST_PART_TOKENS, _MOST_PART_TOKENS = 3000, 100, 10_000_000
_REASON_AT_MOST = 400

Settings = Mapping[str, Any]
_NONE_EARLIER: Final[Mapping[str, StepResult]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _StepPlan:
    """What is the same for one step of all items of a task. `digest` stands for all of it that determines an answer."""

    file: PromptStep
    system: str
    schema: Mapping[str, Any]
    validator: jsonschema_rs.Validator
    checks: tuple[tuple[str, Check], ...]
    is_last: bool
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same for all items of a task, worked out once."""

    settings: Settings
    steps: tuple[_StepPlan, ...]
    calls: tuple[Step, ...]
    needs: Needs | None
    part_tokens: int | None  # a text of more is sent in parts; None: never


class PromptedTaskType:
    """A task type whose prompt, answer schema and checks stand in a prompt file: `prompts/<name>.md`, or another that is given.

    A subclass says which parameters there are, what of the schema and the checks depends on them, and what is stored. In a prompt
    of several steps this is about the last one, whose answer is the result; the earlier ones go by the file alone.
    """

    name: str
    takes_prompt_files: ClassVar[bool] = True
    keeps_layout: ClassVar[bool] = False
    """The answer is the text itself in a new shape: it gets the original's line ends, and the blanks around it."""
    unchanged_is_right: ClassVar[bool] = False
    """The original itself is a right answer, and no check need be asked."""
    is_repeatable: ClassVar[bool] = True
    """The answer may serve for identical work: False where each item wants its own, or where more is stored than a result."""
    answer_type: ClassVar[str | None] = "string"
    """Of which type the schema's answer field must be, "array" standing for a list of texts; None: of any."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Texts that are read from an answer beside it, where the schema has them."""
    default_needs: ClassVar[Needs] = Needs()
    """What is drawn into the prompts, where the task does not say otherwise."""

    def __init__(self, file: PromptFile | None = None) -> None:
        self.kind: Final = type(self).name
        self.file: Final = PromptFile.load(self.kind) if file is None else file
        self.name = self.file.name
        self._refuse_other_answers()
        self._steps: Final = tuple([Step(step.name, step.model) for step in self.file.steps])
        self._validators: Final = tuple([validator_of(step.schema) for step in self.file.steps])
        self._plans: OrderedDict[tuple[str, str], _Plan] = OrderedDict()
        self._latest: tuple[Task, _Plan] | tuple[None, None] = None, None

    def _refuse_other_answers(self) -> None:
        """A file whose answers this kind cannot read would have each item asked for, paid for, and lost."""
        properties = self.file.schema["properties"]
        wanted = dict.fromkeys([name for name in self.reads if name in properties], "string")
        if self.answer_type is not None:
            wanted[self.file.answer_field] = self.answer_type
        for name, kind in wanted.items():
            found = properties[name]
            if found.get("type") != kind or (kind == "array" and found.get("items", {}).get("type") != "string"):
                lines = self.file.source.split("\n")
                pattern = rf"\s*\[[\w.]*properties\.{re.escape(name)}\]|\s*{re.escape(name)}\s*[=.]"
                line = next((number for number, line in enumerate(lines, 1) if re.match(pattern, line)), 1)
                texts = "a text (type = 'string')" if kind == "string" else "a list of texts (items.type = 'string')"
                fail(self.file.origin, line, f"{name!r} must be {texts} in a prompt of the kind {self.kind!r}")

    # -- what a subclass may say ---------------------------------------------------------------------------------------

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

    def result(self, original: str, answer: Mapping[str, Any], settings: Settings) -> Result:  # noqa: ARG002 -- as above
        """What is stored of an answer that passed. A file of another's may have other properties than the shipped one."""
        return Result(answer[self.file.answer_field], None, answer)

    def original(self, item: Item) -> str:
        """What an answer is held against."""
        return clean(item.text_original)

    def tokens_expected(self, text: str, settings: Settings) -> int:
        """About how many tokens the answer will have."""
        raise NotImplementedError

    # -- one call ------------------------------------------------------------------------------------------------------

    def validate(self, task: Task) -> None:
        """Raises UsageError, naming the parameter, its value and the remedy."""
        self._made(task)

    def needs(self, task: Task) -> Needs | None:
        """What is to be drawn into the prompts of the task's items; None: nothing. Raises UsageError as `validate` does."""
        return self._plan(task).needs

    def prompt(self, item: Item) -> Prompt:
        """The prompt of one item, of its first step where there are several.

        Raises InvalidRequest when the text is empty, or the template asks for what the item does not have; UsageError as
        `validate` does, as plain SQL may have put the task there.
        """
        plan = self._plan(item.task)
        return self._prompt(plan.steps[0], plan.settings, item, _NONE_EARLIER)

    def parse(self, item: Item, completion: Completion) -> Result:
        """The result of an answer. Raises BadAnswer, naming the check, or ContentRefused; both with the answer's usage."""
        plan = self._plan(item.task)
        if len(plan.steps) > 1:
            raise ConfigurationError(f"the prompt {self.name!r} has {len(plan.steps)} steps: one answer is not its result")
        original = self.original(item)
        try:
            return self.result(original, self._checked(plan.steps[0], plan.settings, original, completion), plan.settings)
        except CheckFailed as failed:
            raise _rejection(failed, completion) from None

    # -- several calls -------------------------------------------------------------------------------------------------

    def steps(self, task: Task) -> Sequence[Step]:
        """The calls that an item of the task takes, in order, each with the model that the task or the file names for it."""
        return self._plan(task).calls if len(self._steps) > 1 else self._steps

    def step_identity(self, task: Task, number: int) -> bytes:
        """What stands for all that step `number` is made of, beside its item."""
        return self._plan(task).steps[number - 1].digest

    def step_prompt(self, item: Item, number: int, earlier: Mapping[str, StepResult]) -> Prompt:
        """The prompt of step `number`, from 1, with the results of those before by name. Raises as `prompt` does."""
        plan = self._plan(item.task)
        return self._prompt(plan.steps[number - 1], plan.settings, item, earlier)

    def parse_step(self, item: Item, number: int, completion: Completion) -> StepResult:
        """The result of step `number`, from 1. Raises as `parse` does."""
        plan = self._plan(item.task)
        step = plan.steps[number - 1]
        try:
            answer = self._checked(step, plan.settings, self.original(item), completion)
        except CheckFailed as failed:
            raise _rejection(failed, completion) from None
        text = answer[step.file.answer_field]
        return StepResult(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False), answer)

    def combined(self, item: Item, results: Mapping[str, StepResult]) -> Result:
        """What is stored when all steps are done: of the last one as of a single call's answer, with the answers of all."""
        plan = self._plan(item.task)
        last = results[plan.steps[-1].file.name]
        result = self.result(self.original(item), last.data, plan.settings)
        return result._replace(data={name: step.data for name, step in results.items()})

    # -- long texts ----------------------------------------------------------------------------------------------------

    def split(self, item: Item, most: int | None = None) -> Sequence[str]:
        """The parts that the item's text is sent in, each of at most as many tokens as the task says, and `most`.

        Empty: it is sent as it is. Joined, the parts are the text.
        """
        plan = self._plan(item.task)
        if plan.part_tokens is None:
            return ()
        tokens = max(_FEWEST_PART_TOKENS, plan.part_tokens if most is None else min(plan.part_tokens, most))
        return () if fits(item.text_original, tokens) else parts_of(item.text_original, tokens)

    def joined(self, item: Item, results: Sequence[StepResult]) -> Result:
        """What is stored of a text whose parts are done, in their order. One of blanks alone is its own result, without data."""
        plan = self._plan(item.task)
        step = plan.steps[0]
        text = "".join([result.text for result in results])
        answers = [result.data for result in results if result.data]
        answer = joined_answer(answers, step.schema, step.file.answer_field, text)
        return self.result(clean(item.text_original), answer, plan.settings)

    # -- how -----------------------------------------------------------------------------------------------------------

    def _prompt(self, step: _StepPlan, settings: Settings, item: Item, earlier: Mapping[str, StepResult]) -> Prompt:
        text, file = item.text_original, step.file
        if not text or text.isspace():
            raise InvalidRequest("nothing to send: the text is empty")
        content = text.encode("utf-8", "surrogatepass")
        if file.drawn or item.background is not NO_BACKGROUND:
            user, more = rendered(file, item, earlier)
        else:
            user, more = file.render_user(text=text, marker=marker_outside(text)), b""
        return Prompt(
            system=step.system,
            user=user,
            schema=step.schema,
            schema_name=self.name if len(self.file.steps) == 1 else f"{self.name}_{file.name}"[:64],  # what OpenAI takes
            text=text,
            answer_field=file.answer_field,
            task_type=self.kind,
            parameters=settings,
            temperature=file.temperature,
            tokens_output_expected=self._expected(step, settings, text),
            fingerprint=None
            if more is None or not self.is_repeatable
            else hashlib.sha256(b"".join((step.digest, more, content))).digest(),
            top_p=file.top_p,
            max_output_tokens=file.max_output_tokens,
        )

    def _expected(self, step: _StepPlan, settings: Settings, text: str) -> int:
        expected, limit = self.tokens_expected(text, settings), step.file.max_output_tokens
        return expected if limit is None else min(expected, limit)

    def _checked(self, step: _StepPlan, settings: Settings, original: str, completion: Completion) -> dict[str, Any]:
        if completion.finish == "length":
            raise CheckFailed("the answer was cut short at the model's output limit", check="length")
        field = step.file.answer_field
        answer = fitted(decoded(completion.text, field), step.schema, field)
        if step.is_last:
            answer = self.tidied(answer, settings)
        _validate(answer, step.validator)
        if not isinstance(answer[field], str):  # a list, say: the checks are about texts
            return answer
        if step.is_last and self.keeps_layout:
            answer[field] = laid_out(answer[field], original)
        if not (step.is_last and self.unchanged_is_right and answer[field] == original):
            _check(step.checks, original, answer[field])
        return answer

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
        needs = parameters.needs(self.default_needs)
        part_tokens = None
        if (self.keeps_layout or self.file.splits) and len(self._steps) == 1:
            bounds = {"minimum": _FEWEST_PART_TOKENS, "maximum": _MOST_PART_TOKENS}
            part_tokens = parameters.integer("part_tokens", default=_PART_TOKENS, **bounds)
            if (most := self.file.steps[0].max_output_tokens) is not None:
                # The answer may be longer than the text, and is counted otherwise by its model.
                part_tokens = min(part_tokens, most // 2)
        calls = self._calls(parameters)
        parameters.finish()
        description = clean(task.description or "").strip()
        try:
            systems = [
                step.render_system(description=description, parameters=settings, examples=self.file.examples)
                for step in self.file.steps
            ]
        except RenderError as error:  # a parameter that the template reads, and the task does not have
            raise UsageError(f"task type {self.name}: {error}") from None
        steps = tuple([self._made_step(number, system, settings) for number, system in enumerate(systems)])
        return _Plan(settings, steps, calls, needs, part_tokens)

    def parameter_names(self, task: Task) -> frozenset[str] | None:
        """The names that parameters of the task may have: what the type asks for, and what the templates read. None: any."""
        read = [step.parameters for step in self.file.steps]
        parameters = Parameters(task)
        self.settings(parameters)
        parameters.needs(self.default_needs)
        everywhere = {TIME_LIMIT, "part_tokens", "models"}
        return None if None in read else parameters.known.union(everywhere, *(each for each in read if each is not None))

    def _calls(self, parameters: Parameters) -> tuple[Step, ...]:
        """The steps, each with its model: the one that the parameter `models` names for it goes before the file's."""
        models = parameters.mapping("models", most=len(self._steps)) if len(self._steps) > 1 else {}
        if unknown := models.keys() - {step.name for step in self._steps}:
            known = ", ".join(step.name for step in self._steps)
            raise UsageError(f"task type {self.name}: parameter 'models': there is no step {min(unknown)!r}; known ones: {known}")
        return tuple([step._replace(model=models.get(step.name, step.model)) for step in self._steps])

    def _made_step(self, number: int, system: str, settings: dict[str, Any]) -> _StepPlan:
        file, is_last = self.file.steps[number], number == len(self.file.steps) - 1
        schema = self.schema(settings) if is_last else file.schema
        from_settings = self.check_parameters(settings) if is_last else {}
        # The file's digest stands for templates, temperature and checks. Properties keep their order: that of the answer.
        given = sorted((name, value) for name, value in settings.items() if name not in _BESIDE_THE_ANSWER)
        determining = [self.kind, self.name, number, self.file.digest.hex(), system, schema, given, from_settings]
        return _StepPlan(
            file=file,
            system=system,
            schema=schema,
            validator=self._validators[number] if schema is file.schema else validator_of(schema),
            checks=tuple(
                (name, partial(check, **extra) if extra else check)
                for name, check in file.checks.items()
                if (extra := from_settings.get(name, {})) is not None
            ),
            is_last=is_last,
            digest=hashlib.sha256(json.dumps(determining, default=repr).encode()).digest(),
        )


def _check(checks: Iterable[tuple[str, Check]], original: str, answer: str) -> None:
    for name, check in checks:
        try:
            check(original, answer)
        except CheckFailed as failed:
            failed.check = name
            raise


def _rejection(failed: CheckFailed, completion: Completion) -> BadAnswer | ContentRefused:
    error = ContentRefused if isinstance(failed, Refused) else BadAnswer
    return error(f"check {failed.check}: {_bounded(failed)}", usage=completion.usage)


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
