"""Prompts are files: a front matter in TOML between two lines `+++`, then the templates. docs/prompts.md shows whole ones.

    +++
    version = 1                         # raised whenever anything in the file changes
    kind = "summary"                    # the task type that it behaves like; by default its own name's, else "custom"
    answer_field = "corrected_text"     # the schema's property that takes the main text
    splits = true                       # a long text is sent in parts, and the answers are joined again
    [model]                             # all optional; a `temperature` outside of [model] counts, too
    temperature = 0.0
    top_p = 1.0
    max_output_tokens = 2000
    [checks]                            # names of ai_worker.task_types.checks, in the order they run
    not_empty = true
    length_ratio = { minimum = 0.5, maximum = 2.0 }
    [schema]                            # the answer's JSON schema, as OpenAI's strict mode takes it
    ...
    [[examples]]                        # optional; the first is the sample row of `prompt show`
    text = "…"
    context = { … }                     # optional
    answer = { corrected_text = "…" }   # fits the schema
    +++
    # System
    Jinja2; knows `description` (the person's instruction), `parameters` (the task's) and `examples` (the file's), and is the same
    for all items of a task.
    # User
    Jinja2; knows `text` (the row's), `marker` (the line that must stand before and after all that comes from rows), `context`
    (the item's JSON), `facts`, `results` (each with text and result) and `reviewed` (see `models.Background`).

A prompt of several steps has tables `[[steps]]`, each with its `name`, an optional `model` (the name of one; else the task's),
and its own answer_field, schema, checks, temperature, top_p and max_output_tokens; and for each a section `# Step NAME` with
`## System` and `## User`, whose user's part also knows `steps.NAME.text` and `steps.NAME.data` of those before.

Templates run in Jinja's sandbox. `{% include "_data.md" %}` takes in a file from the package's `prompts` folder.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, Final, NamedTuple, NoReturn, Self

import jsonschema_rs

from ai_worker.errors import ConfigurationError
from ai_worker.task_types.checks import CHECKS, Check, CheckFailed
from ai_worker.task_types.front_matter import FrontMatter, WrongValue, value_of
from ai_worker.task_types.templates import Template, compiled, fail, shipped_source, snippet

NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,49}")
"""What a prompt may be called: as `task.task_type` and `prompt.name` take it."""

_SNIPPET = re.compile(r"\b_\w+\.md\b")  # wherever one is named: `include` takes no other names
_STEP_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_STEP_HEADING = re.compile(r"# Step (\S+)\s*")
_MODEL_KEYS = {"temperature", "top_p", "max_output_tokens"}
_ANSWER_KEYS = {"answer_field", "checks", "schema"}
_KEYS = {"version", "kind", "temperature", "model", "examples", "steps", "splits"} | _ANSWER_KEYS
_STEP_KEYS = {"name", "model"} | _MODEL_KEYS | _ANSWER_KEYS
_EXAMPLE_KEYS = {"text", "context", "answer"}
_SYSTEM_NAMES = {"description", "parameters", "examples"}
_USER_NAMES = {"text", "marker", "context", "facts", "results", "reviewed"}
_TRIED = "Wczoraj poszłem do sklepu po 2 chleby.", "Wczoraj poszedłem do sklepu po 2 chleby."
_ALWAYS_DRAWN = {"text", "marker"}


class SampleRow(NamedTuple):
    """One of a prompt's examples: a row, and the answer it should get."""

    text: str
    context: Mapping[str, Any]
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptStep:
    """One call's part of a prompt. `checks` are bound to their parameters, in the order they run; `model` is an ai_model's name,
    None for the task's own. `drawn` are the names in the user's part beside `text` and `marker`.
    """

    name: str
    model: str | None
    temperature: float | None
    top_p: float | None
    max_output_tokens: int | None
    answer_field: str
    schema: Mapping[str, Any]
    checks: Mapping[str, Check]
    parameters: frozenset[str] | None  # that its templates read, None where that cannot be told
    render_system: Callable[..., str]
    render_user: Callable[..., str]
    drawn: frozenset[str]


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One prompt, parsed and compiled.

    `kind` is what the file says of it, None where it says nothing. `steps` are at least one; where the file names none, the only
    one is called as the prompt is. `digest` is a SHA-256 over the file and whatever it includes.
    """

    name: str
    version: int
    kind: str | None
    steps: tuple[PromptStep, ...]
    examples: tuple[SampleRow, ...]
    source: str
    origin: str
    digest: bytes
    splits: bool = False

    @property
    def last(self) -> PromptStep:
        """The step whose answer is the result."""
        return self.steps[-1]

    @property
    def answer_field(self) -> str:
        """The property of the last step's schema that takes the main text."""
        return self.steps[-1].answer_field

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema of the last step's answer."""
        return self.steps[-1].schema

    @classmethod
    @cache
    def load(cls, name: str) -> Self:
        """The built-in prompt `name`. Raises ConfigurationError when there is none or its file is wrong."""
        source = shipped_source(f"{name}.md")
        if source is None or name.startswith("_"):
            raise ConfigurationError(f"there is no prompt file {name}.md")
        return cls.parse(name, source, origin=f"prompts/{name}.md")

    @classmethod
    def parse(cls, name: str, source: str, origin: str) -> Self:
        """The prompt in `source`. Raises ConfigurationError, which begins with `origin` and the line at fault."""
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"{origin}: a prompt cannot be called {name!r}: small letters, digits, - and _, 50 at most")
        lines = source.replace("\r\n", "\n").split("\n")
        front, body = _front_matter(lines, origin)
        try:
            tables = _step_tables(name, front)
            sections = _sections(lines, body, [table["name"] for table, _ in tables], origin, named="steps" in front.values)
            steps: list[PromptStep] = []
            for (table, place), section in zip(tables, sections, strict=True):
                steps.append(_step(table, place, section, tuple(step.name for step in steps), origin))
            return cls(
                name=name,
                version=_version(front.values),
                kind=value_of(front.values, "kind", str) if "kind" in front.values else None,
                steps=tuple(steps),
                examples=_examples(front.values, steps[-1].schema),
                source="\n".join(lines),
                origin=origin,
                digest=digest_of(source),
                splits=_splits(front.values),
            )
        except WrongValue as wrong:
            fail(origin, front.line(wrong), str(wrong))


def _splits(front: Mapping[str, Any]) -> bool:
    splits = front.get("splits", False)
    if not isinstance(splits, bool):
        raise WrongValue("splits", f"'splits' is true or false, not {splits!r}")
    if splits and "steps" in front:
        raise WrongValue("splits", "a prompt of several steps cannot split long texts")
    return splits


Section = tuple[tuple[str, int], tuple[str, int]]
"""A system and a user template, each with the number of the line before it."""


def _front_matter(lines: list[str], origin: str) -> tuple[FrontMatter, int]:
    """The front matter, and the index of the line after it."""
    first = _find(lines, "+++", 0, origin)
    if any(line.strip() for line in lines[:first]):
        fail(origin, 1, "there is text outside of the front matter and the templates")
    last = _find(lines, "+++", first + 1, origin)
    try:  # blank lines in front keep tomllib's line numbers those of the file
        values = tomllib.loads("\n" * (first + 1) + "\n".join(lines[first + 1 : last]))
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at line ")
        fail(origin, int(place.split(",")[0]) if place[:1].isdigit() else last + 1, f"the front matter is not TOML: {message}")
    except (RecursionError, ValueError) as error:  # nested a thousand deep, a number of thousands of digits
        fail(origin, first + 1, f"the front matter cannot be read: {error}")
    front = FrontMatter(values, lines[:last])
    try:
        _known(values, _KEYS, None)
    except WrongValue as wrong:
        fail(origin, front.line(wrong), str(wrong))
    return front, last + 1


def _find(lines: list[str], mark: str, start: int, origin: str, end: int | None = None) -> int:
    found = next((number for number in range(start, len(lines) if end is None else end) if lines[number].rstrip() == mark), None)
    if found is None:
        fail(origin, min(start, len(lines) - 1) + 1, f"no line {mark!r} from here on")
    return found


def _sections(lines: list[str], start: int, names: Sequence[str], origin: str, *, named: bool) -> list[Section]:
    """The templates of each step, in order; `named` ones stand under headings of their own."""
    if not named:
        return [_section(lines, start, start, len(lines), "# System", "# User", origin)]
    headings = [
        (number, found[1]) for number in range(start, len(lines)) if (found := re.fullmatch(r"# Step (\S+)\s*", lines[number]))
    ]
    for number, name in headings:
        if name not in names:
            fail(origin, number + 1, f"there is no step {name!r} in the front matter; there are: {', '.join(names)}")
    if [name for _, name in headings] != list(names):
        fail(origin, start + 1, f"each step needs one section '# Step NAME', in the same order: {', '.join(names)}")
    bounds = [number for number, _ in headings] + [len(lines)]
    return [
        _section(lines, start if place == 0 else begin, begin + 1, end, "## System", "## User", origin)
        for place, (begin, end) in enumerate(pairwise(bounds))
    ]


def _section(lines: list[str], outside: int, start: int, end: int, system: str, user: str, origin: str) -> Section:
    system_at = _find(lines, system, start, origin, end)
    user_at = _find(lines, user, system_at + 1, origin, end)
    stray = next((n for n in range(outside, system_at) if lines[n].strip() and not lines[n].startswith("# Step ")), None)
    if stray is not None:
        fail(origin, stray + 1, f"there is text outside of the front matter, {system!r} and {user!r}")
    return ("\n".join(lines[system_at + 1 : user_at]), system_at + 1), ("\n".join(lines[user_at + 1 : end]), user_at + 1)


def digest_of(source: str) -> bytes:
    """A SHA-256 over a prompt file and whatever it takes in, however deep; without reading the file, which takes far longer."""
    source = source.replace("\r\n", "\n")
    included: dict[str, str] = {}
    unread = [source]
    for text in unread:  # grows while it is read
        for name in _SNIPPET.findall(text):
            if name not in included:
                included[name] = snippet(name) or ""
                unread.append(included[name])
    return hashlib.sha256(repr((source, sorted(included.items()))).encode()).digest()


def _version(front: Mapping[str, Any]) -> int:
    version: int = value_of(front, "version", int)
    if not 0 < version < 2**32:
        raise WrongValue("version", f"version must be a whole number from 1 on, not {version}")
    return version


def _known(table: Mapping[str, Any], known: set[str], place: tuple[str, int] | None) -> None:
    if unknown := table.keys() - known:
        raise WrongValue(min(unknown), f"unknown key {min(unknown)!r}; known ones: {', '.join(sorted(known))}", place)


def _step_tables(name: str, front: FrontMatter) -> list[tuple[dict[str, Any], tuple[str, int] | None]]:
    """The steps' tables with what they take over from the whole, and where each stands; one for a prompt without steps."""
    values = front.values
    shared: dict[str, Any] = {"temperature": values["temperature"]} if "temperature" in values else {}
    if "model" in values:
        model = value_of(values, "model", dict)
        _known(model, _MODEL_KEYS, None)
        shared |= model
    _model_parameters(shared)
    if "steps" not in values:
        return [({"name": name, **shared, **{key: values[key] for key in _ANSWER_KEYS & values.keys()}}, None)]
    for key in sorted(_ANSWER_KEYS & values.keys()):
        raise WrongValue(key, f"{key!r} belongs into each of the steps")
    tables: list[tuple[dict[str, Any], tuple[str, int] | None]] = []
    for number, table in enumerate(_tables(values, "steps")):
        place = ("steps", number)
        _known(table, _STEP_KEYS, place)
        called = value_of(table, "name", str, place)
        if not _STEP_NAME.fullmatch(called) or hasattr(dict, called):  # in a template, `steps.items` means something else
            raise WrongValue("name", f"a step cannot be called {called!r}: small letters, digits and _", place)
        if called in [earlier["name"] for earlier, _ in tables]:
            raise WrongValue("name", f"there are two steps {called!r}", place)
        tables.append(({**shared, **table}, place))
    return tables


def _tables(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    tables = values.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or (key in values and not tables):
        raise WrongValue(key, f"{key!r} must be tables [[{key}]]")
    return tables


def _step(
    table: Mapping[str, Any], place: tuple[str, int] | None, section: Section, earlier: tuple[str, ...], origin: str
) -> PromptStep:
    try:
        field = value_of(table, "answer_field", str)
        schema = _schema(value_of(table, "schema", dict), field)
        checks = _checks(value_of(table, "checks", dict) if "checks" in table else {})
        parameters = _model_parameters(table)
        model = value_of(table, "model", str) if "model" in table else None
    except WrongValue as wrong:
        raise WrongValue(wrong.key, str(wrong), place) from None
    system = compiled(*section[0], _SYSTEM_NAMES, origin)
    user: Template = compiled(*section[1], _USER_NAMES | ({"steps"} if place else set()), origin, earlier)
    if not user.names - {"marker"}:
        fail(origin, section[1][1], "the user's part has nothing of the row: put {{ text }} into it, between two {{ marker }}")
    return PromptStep(
        name=table["name"],
        model=model,
        **parameters,
        answer_field=field,
        schema=schema,
        checks=checks,
        parameters=None if system.parameters is None or user.parameters is None else system.parameters | user.parameters,
        render_system=system.render,
        render_user=user.render,
        drawn=user.names - _ALWAYS_DRAWN,
    )


def _model_parameters(table: Mapping[str, Any]) -> dict[str, Any]:
    limit = value_of(table, "max_output_tokens", int) if "max_output_tokens" in table else None
    if limit is not None and limit < 1:
        raise WrongValue("max_output_tokens", f"max_output_tokens must be at least 1, not {limit}")
    found: dict[str, Any] = {"max_output_tokens": limit}
    for key, most in (("temperature", 2), ("top_p", 1)):
        found[key] = value_of(table, key, float) if key in table else None
        if not 0 <= (found[key] or 0) <= most:
            raise WrongValue(key, f"{key} must be from 0 to {most}, not {found[key]}")
    return found


def _examples(front: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[SampleRow, ...]:
    validator = validator_of(schema)
    examples: list[SampleRow] = []
    for number, table in enumerate(_tables(front, "examples")):
        place = ("examples", number)
        _known(table, _EXAMPLE_KEYS, place)
        answer = value_of(table, "answer", dict, place)
        context = value_of(table, "context", dict, place) if "context" in table else {}
        try:
            validator.validate(answer)
        except jsonschema_rs.ValidationError as error:
            raise WrongValue("answer", f"the example's answer does not fit the schema: {error.message}", place) from None
        except ValueError as error:  # a TOML date, say
            raise WrongValue("answer", f"the example's answer has no form in JSON: {error}", place) from None
        examples.append(SampleRow(value_of(table, "text", str, place), context, answer))
    return tuple(examples)


def validator_of(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    """What holds answers against a schema, which must be whole: nothing that it refers to is fetched, from a host or a file."""
    return jsonschema_rs.validator_for(dict(schema), retriever=_fetch_nothing)


def _fetch_nothing(address: str) -> NoReturn:
    raise ValueError(f"a schema must be whole, and this one refers to {address}")


def _schema(schema: dict[str, Any], answer_field: str) -> dict[str, Any]:
    properties = schema.get("properties", {})
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise WrongValue("schema", "[schema] needs type = 'object' and additionalProperties = false")
    if not isinstance(properties, dict) or answer_field not in properties:
        raise WrongValue(
            "answer_field", f"answer_field {answer_field!r} is none of the schema's properties: {', '.join(properties)}"
        )
    required = schema.get("required", [])
    if not isinstance(required, list) or sorted(map(str, required)) != sorted(properties):
        raise WrongValue(
            "required", "[schema] must list all its properties in 'required': OpenAI's strict mode takes no optional ones"
        )
    try:
        validator_of(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        raise WrongValue("schema", f"[schema] is no JSON schema: {str(error).splitlines()[0]}") from None
    return schema


def _checks(table: Mapping[str, Any]) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for name, given in table.items():
        if name not in CHECKS:
            raise WrongValue(name, f"unknown check {name!r}; known ones: {', '.join(sorted(CHECKS))}")
        if given is not True and not isinstance(given, dict):
            raise WrongValue(name, f"check {name!r} must be true or a table of its parameters, not {given!r}")
        checks[name] = CHECKS[name] if given is True else partial(CHECKS[name], **given)
        try:
            inspect.signature(CHECKS[name]).bind("original", "answer", **({} if given is True else given))
            checks[name](*_TRIED)
        except CheckFailed:
            pass  # it works
        except Exception as error:  # noqa: BLE001 -- whatever it makes of its parameters, no item shall be the first to find out
            raise WrongValue(name, f"check {name!r}: {error}") from None
    return checks
