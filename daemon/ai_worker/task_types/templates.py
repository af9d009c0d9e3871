"""The templates in prompt files: Jinja2 in its sandbox, with every mistake at a line of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from ai_worker.errors import ConfigurationError
from ai_worker.task_types.language import language_name

FOLDER = resources.files("ai_worker.task_types") / "prompts"


class RenderError(ConfigurationError):
    """A template and the values it was given do not go together; the message begins with the file and the line.

    `is_lack`: a value is not there that another row may have.
    """

    is_lack = False


class Template(NamedTuple):
    """A compiled template, and the names that it and what it includes make use of.

    `parameters` are the names that they read of `parameters`; None where that cannot be told: they may go through all of them.
    """

    render: Callable[..., str]
    names: frozenset[str]
    parameters: frozenset[str] | None


def shipped_source(name: str) -> str | None:
    """What stands in the file `name` of the package's folder of prompts; None where there is none."""
    if re.fullmatch(r"\w+\.md", name) and (file := FOLDER / name).is_file():
        return file.read_text(encoding="utf-8")
    return None


def snippet(name: str) -> str | None:
    """The text of one of the program's own snippets, `_NAME.md`, which any prompt may take in; None where there is none."""
    return shipped_source(name) if name.startswith("_") else None


def _json(value: object, indent: int | None = None) -> str:
    """Jinja's own filter writes for HTML and in ASCII, which costs tokens and is harder to read for a model."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # plain text for a model, not HTML: escaping would change the row's text
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.FunctionLoader(snippet),
)
ENVIRONMENT.filters["language_name"] = language_name
ENVIRONMENT.filters["tojson"] = _json


def fail(origin: str, line: int, message: str) -> NoReturn:
    """Raises ConfigurationError, which begins with the place."""
    raise ConfigurationError(f"{origin}, line {line}: {message}")


def compiled(source: str, line: int, known: set[str], origin: str, steps: tuple[str, ...] = ()) -> Template:
    """The template after `line` of the file. Syntax and names are checked now, so that no item is the first to find out.

    `known` are the names that it may use, and `steps` the steps whose results there will be.
    """
    code = source.strip("\n")
    first = line + len(source) - len(source.lstrip("\n"))
    try:
        tree = ENVIRONMENT.parse(code)
        names = jinja2.meta.find_undeclared_variables(tree)
        template = jinja2.Template.from_code(
            ENVIRONMENT, ENVIRONMENT.compile(code, filename=origin), ENVIRONMENT.make_globals(None)
        )
    except jinja2.TemplateSyntaxError as error:
        fail(origin, first + error.lineno, f"{error.message}")
    except (RecursionError, ValueError) as error:  # nested a thousand deep, a number of thousands of digits
        fail(origin, first + 1, f"the template cannot be read: {error}")
    for name in tree.find_all(jinja2.nodes.Name):
        if name.name in names - known:
            fail(origin, first + name.lineno, f"unknown name {name.name!r}; known ones: {', '.join(sorted(known))}")
    for kind, there_are in ((jinja2.nodes.Filter, ENVIRONMENT.filters), (jinja2.nodes.Test, ENVIRONMENT.tests)):
        for used in tree.find_all(kind):  # within a condition Jinja would wait for the first row that meets it
            if used.name not in there_are:
                fail(origin, first + used.lineno, f"there is no {kind.__name__.lower()} {used.name!r}")
    for read in tree.find_all(jinja2.nodes.Getattr):
        if isinstance(read.node, jinja2.nodes.Name) and read.node.name == "steps" and read.attr not in steps:
            earlier = f"those before this one: {', '.join(steps)}" if steps else "there is none before this one"
            fail(origin, first + read.lineno, f"unknown step {read.attr!r}; {earlier}")
    parameters = [_parameters_read(tree)]
    for included, place in _included(tree):
        if included is None or snippet(included) is None:
            fail(origin, first + place, f"there is no {included!r} to include: only the program's own snippets are")
        names = names | _names_within(included)
        parameters += [_parameters_read(inner) for inner in _trees(included)]
        if names - known:
            fail(origin, first + place, f"{included} needs {min(names - known)!r}, which is not known here")
    certain = [each for each in parameters if each is not None]
    read_of_all = frozenset[str]().union(*certain) if len(certain) == len(parameters) else None
    return Template(_concatenation(tree) or _rendering(template, first, origin), frozenset(names), read_of_all)


def _trees(name: str) -> Iterator[jinja2.nodes.Template]:
    """A snippet, and those that it takes in."""
    unread = [name]
    for each in unread:  # grows while it is read
        tree = ENVIRONMENT.parse(snippet(each) or "")
        yield tree
        unread += [inner for inner, _ in _included(tree) if inner is not None and inner not in unread]


def _names_within(name: str) -> set[str]:
    """The names that a snippet uses, and those that it takes in."""
    return set().union(*map(jinja2.meta.find_undeclared_variables, _trees(name)))


def _parameters_read(tree: jinja2.nodes.Template) -> set[str] | None:
    """Which of the task's parameters a template reads by name; None where it does anything else with them."""
    found: list[str] = []
    reads: list[jinja2.nodes.Getattr | jinja2.nodes.Getitem] = [*tree.find_all(jinja2.nodes.Getattr)]
    reads += tree.find_all(jinja2.nodes.Getitem)
    for read in reads:
        if not isinstance(read.node, jinja2.nodes.Name) or read.node.name != "parameters":
            continue
        name = read.attr if isinstance(read, jinja2.nodes.Getattr) else getattr(read.arg, "value", None)
        if not isinstance(name, str) or (isinstance(read, jinja2.nodes.Getattr) and hasattr(dict, name)):
            return None
        found.append(name)
    named = sum(each.name == "parameters" for each in tree.find_all(jinja2.nodes.Name))
    return set(found) if len(found) == named else None


def _included(tree: jinja2.nodes.Template) -> Iterator[tuple[str | None, int]]:
    """The names in all kinds of inclusion; None for one that is worked out."""
    nodes: list[jinja2.nodes.Include | jinja2.nodes.Extends | jinja2.nodes.Import | jinja2.nodes.FromImport] = []
    for kind in (jinja2.nodes.Include, jinja2.nodes.Extends, jinja2.nodes.Import, jinja2.nodes.FromImport):
        nodes.extend(tree.find_all(kind))
    for node in nodes:
        name = node.template.value if isinstance(node.template, jinja2.nodes.Const) else None
        yield (name if isinstance(name, str) else None), node.lineno


def _concatenation(tree: jinja2.nodes.Template) -> Callable[..., str] | None:
    """What renders a template of nothing but text and bare names, a tenth of Jinja's own cost; None for any other template.

    The user's part is rendered for each item, and usually is such a one.
    """
    pieces: list[tuple[str, str | None]] = []
    for statement in tree.body:
        for node in statement.nodes if isinstance(statement, jinja2.nodes.Output) else [statement]:
            if isinstance(node, jinja2.nodes.TemplateData):
                pieces.append((node.data, None))
            elif isinstance(node, jinja2.nodes.Name) and node.name in ("text", "marker", "description"):  # the strings
                pieces.append(("", node.name))
            else:
                return None
    return lambda **values: "".join([text if name is None else values[name] for text, name in pieces])


def _rendering(template: jinja2.Template, first: int, origin: str) -> Callable[..., str]:
    def render(**values: Any) -> str:
        try:
            return template.render(values)
        except Exception as error:  # noqa: BLE001 -- whatever a template and the values make: it is told with its line
            line = _line_of(error.__traceback__, origin)
            place = origin if line is None else f"{origin}, line {first + line}"
            failed = RenderError(f"{place}: {_said(error)}")
            failed.is_lack = isinstance(error, jinja2.UndefinedError)
        raise failed  # without the error: its traceback holds the row

    return render


def _said(error: Exception) -> str:
    """Jinja names the Python class of what lacks an attribute, which nobody who wrote a prompt has heard of."""
    said = str(error)
    if isinstance(error, jinja2.UndefinedError) and (
        lacks := re.fullmatch(r"'\w+ object' has no attribute ('.*')", said, re.DOTALL)
    ):
        return f'nothing is there under the name {lacks[1]}; `| default("")` behind it makes it optional'
    return f"{type(error).__name__}: {said}"


def _line_of(trace: TracebackType | None, origin: str) -> int | None:
    """Jinja puts the template's own lines into the traceback, under its file's name."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == origin:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
