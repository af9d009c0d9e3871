"""Prompts are files: a front matter in TOML between two lines `+++`, then a section `# System` and a section `# User`.

    +++
    version = 1
    temperature = 0.0                   # optional
    answer_field = "corrected_text"     # the schema's property that takes the main text
    [checks]                            # names of ai_worker.task_types.checks, in the order they run
    not_empty = true
    length_ratio = { minimum = 0.5, maximum = 2.0 }
    [schema]                            # the answer's JSON schema, as OpenAI's strict mode takes it
    ...
    +++
    # System
    Jinja2; knows `description` (the person's instruction) and `parameters` (the task's), and is the same for all items of a task.
    # User
    Jinja2; knows `text` (the row's) and `marker` (the line that must stand before and after it).

Templates run in Jinja's sandbox. `{% include "_data.md" %}` takes in a file from the package's `prompts` folder.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Any, NoReturn, Self

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jsonschema_rs

from ai_worker.errors import ConfigurationError
from ai_worker.task_types.checks import CHECKS, Check
from ai_worker.task_types.language import language_name

_FOLDER = resources.files("ai_worker.task_types") / "prompts"
_KEYS = {"version", "temperature", "answer_field", "checks", "schema"}
_SYSTEM_NAMES = {"description", "parameters"}
_USER_NAMES = {"text", "marker"}
_SYSTEM_LINE, _USER_LINE = "# System", "# User"


def _source(name: str) -> str | None:
    if re.fullmatch(r"\w+\.md", name) and (file := _FOLDER / name).is_file():
        return file.read_text(encoding="utf-8")
    return None


_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # plain text for a model, not HTML: escaping would change the row's text
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.FunctionLoader(_source),
)
_ENVIRONMENT.filters["language_name"] = language_name


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One prompt, parsed and compiled. `checks` are bound to their parameters, in the order they run; `digest` is a SHA-256 over
    the file and whatever it includes.
    """

    name: str
    version: int
    temperature: float | None
    answer_field: str
    schema: Mapping[str, Any]
    checks: Mapping[str, Check]
    render_system: Callable[..., str]
    render_user: Callable[..., str]
    digest: bytes

    @classmethod
    @cache
    def load(cls, name: str) -> Self:
        """The built-in prompt `name`. Raises ConfigurationError when there is none or its file is wrong."""
        source = _source(f"{name}.md")
        if source is None:
            raise ConfigurationError(f"there is no prompt file {name}.md")
        return cls.parse(name, source, origin=f"prompts/{name}.md")

    @classmethod
    def parse(cls, name: str, source: str, origin: str) -> Self:
        """The prompt in `source`. Raises ConfigurationError, which begins with `origin` and the line at fault."""
        lines = source.replace("\r\n", "\n").split("\n")
        front, system, user = _sections(lines, origin)
        try:
            return cls(
                name=name,
                version=_value(front, "version", int),
                temperature=_value(front, "temperature", float) if "temperature" in front else None,
                answer_field=(field := _value(front, "answer_field", str)),
                schema=_schema(_value(front, "schema", dict), field),
                checks=_checks(front.get("checks", {})),
                render_system=_template(*system, _SYSTEM_NAMES, origin),
                render_user=_template(*user, _USER_NAMES, origin),
                digest=_digest("\n".join(lines), system[0], user[0]),
            )
        except _WrongValue as wrong:
            _fail(origin, _line_of(lines, wrong.key), str(wrong))


class _WrongValue(Exception):
    """What is wrong with the value of `key` in the front matter."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _fail(origin: str, line: int, message: str) -> NoReturn:
    raise ConfigurationError(f"{origin}, line {line}: {message}")


def _sections(lines: list[str], origin: str) -> tuple[dict[str, Any], tuple[str, int], tuple[str, int]]:
    """The front matter, and the two templates with the number of the line before each."""
    marks: list[int] = []
    for mark in ("+++", "+++", _SYSTEM_LINE, _USER_LINE):
        start = marks[-1] + 1 if marks else 0
        found = next((number for number in range(start, len(lines)) if lines[number].rstrip() == mark), None)
        if found is None:
            _fail(origin, start + 1, f"no line {mark!r} from here on")
        marks.append(found)
    first, last, system, user = marks
    if any(line.strip() for line in [*lines[:first], *lines[last + 1 : system]]):
        _fail(origin, 1 if first else last + 2, f"there is text outside of the front matter, {_SYSTEM_LINE!r} and {_USER_LINE!r}")
    try:  # blank lines in front keep tomllib's line numbers those of the file
        front = tomllib.loads("\n" * (first + 1) + "\n".join(lines[first + 1 : last]))
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at line ")
        _fail(origin, int(place.split(",")[0]) if place[:1].isdigit() else last + 1, f"the front matter is not TOML: {message}")
    if unknown := front.keys() - _KEYS:
        _fail(origin, _line_of(lines, min(unknown)), f"unknown key {min(unknown)!r}; known ones: {', '.join(sorted(_KEYS))}")
    return front, ("\n".join(lines[system + 1 : user]), system + 1), ("\n".join(lines[user + 1 :]), user + 1)


def _digest(source: str, *templates: str) -> bytes:
    """Of a prompt file with these templates in it, and of the files that they take in, however deep."""
    included: dict[str, str] = {}
    unread = list(templates)
    for text in unread:  # grows while it is read
        for name in jinja2.meta.find_referenced_templates(_ENVIRONMENT.parse(text)):
            if name is not None and name not in included:
                included[name] = _source(name) or ""
                unread.append(included[name])
    return hashlib.sha256(repr((source, sorted(included.items()))).encode()).digest()


def _line_of(lines: list[str], key: str) -> int:
    return next((number for number, line in enumerate(lines, 1) if re.match(rf"\[?\s*{re.escape(key)}\b", line)), 1)


def _value(front: Mapping[str, Any], key: str, kind: type) -> Any:
    value = front.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise _WrongValue(
            key, f"the front matter needs {key!r}, of type {kind.__name__}" + ("" if value is None else f", not {value!r}")
        )
    return value


def _schema(schema: dict[str, Any], answer_field: str) -> dict[str, Any]:
    properties = schema.get("properties", {})
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise _WrongValue("schema", "[schema] needs type = 'object' and additionalProperties = false")
    if answer_field not in properties:
        raise _WrongValue(
            "answer_field", f"answer_field {answer_field!r} is none of the schema's properties: {', '.join(properties)}"
        )
    if sorted(schema.get("required", [])) != sorted(properties):
        raise _WrongValue(
            "required", "[schema] must list all its properties in 'required': OpenAI's strict mode takes no optional ones"
        )
    try:
        jsonschema_rs.validator_for(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        raise _WrongValue("schema", f"[schema] is no JSON schema: {str(error).splitlines()[0]}") from None
    return schema


def _checks(table: Mapping[str, Any]) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for name, given in table.items():
        if name not in CHECKS:
            raise _WrongValue(name, f"unknown check {name!r}; known ones: {', '.join(sorted(CHECKS))}")
        if given is not True and not isinstance(given, dict):
            raise _WrongValue(name, f"check {name!r} must be true or a table of its parameters, not {given!r}")
        checks[name] = CHECKS[name] if given is True else partial(CHECKS[name], **given)
        try:
            inspect.signature(CHECKS[name]).bind("original", "answer", **({} if given is True else given))
        except TypeError as error:
            raise _WrongValue(name, f"check {name!r}: {error}") from None
    return checks


def _template(source: str, line: int, known: set[str], origin: str) -> Callable[..., str]:
    """A compiled template; syntax and names are checked now, so that no item is the first to find out."""
    try:
        tree = _ENVIRONMENT.parse(source)
        unknown = jinja2.meta.find_undeclared_variables(tree) - known
        compiled = _ENVIRONMENT.from_string(source.strip("\n"))
    except jinja2.TemplateSyntaxError as error:
        _fail(origin, line + error.lineno, f"{error.message}")
    for name in tree.find_all(jinja2.nodes.Name):
        if name.name in unknown:
            _fail(origin, line + name.lineno, f"unknown name {name.name!r}; known ones: {', '.join(sorted(known))}")
    return _concatenation(source.strip("\n")) or compiled.render


def _concatenation(source: str) -> Callable[..., str] | None:
    """What renders a template of nothing but text and bare names, a tenth of Jinja's own cost; None for any other template.

    The user's part is rendered for each item, and usually is such a one.
    """
    pieces: list[tuple[str, str | None]] = []
    for statement in _ENVIRONMENT.parse(source).body:
        for node in statement.nodes if isinstance(statement, jinja2.nodes.Output) else [statement]:
            if isinstance(node, jinja2.nodes.TemplateData):
                pieces.append((node.data, None))
            elif isinstance(node, jinja2.nodes.Name):
                pieces.append(("", node.name))
            else:
                return None
    return lambda **values: "".join([text if name is None else values[name] for text, name in pieces])
