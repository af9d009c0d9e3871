"""PowerShell scripts as a parser sees them, and what systemd/windows/install.ps1 tells NSSM.

There is no PowerShell that tests could run: they look at the scripts' grammar, and run what the scripts would have NSSM do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

FOLDER = Path(__file__).parents[1] / "systemd" / "windows"

_PARSER = Parser(Language(tree_sitter_powershell.language()))


def syntax_errors(source: bytes) -> list[str]:
    """Where a script cannot be read, and the text there. The grammar knows less than PowerShell: it also refuses `1MB`."""
    return [
        f"line {node.start_point[0] + 1}: {(node.text or b'').decode(errors='replace')[:60] or f'{node.type} is missing'}"
        for node in _nodes(_PARSER.parse(source).root_node)
        if node.type == "ERROR" or node.is_missing
    ]


def program_calls(source: bytes) -> list[tuple[str, str]]:
    """Each call of a program or block by `&`, or of a program by its name: the function that it stands in, and its text."""
    calls = []
    for node in _nodes(_PARSER.parse(source).root_node):
        text = (node.text or b"").decode()
        if node.type == "command" and (text.startswith("&") or re.match(r"[\w-]+\.exe\b", text)):
            calls.append((_function_of(node), text))
    return calls


def functions(source: bytes) -> dict[str, str]:
    """The text of each function."""
    found = {}
    for node in _nodes(_PARSER.parse(source).root_node):
        if node.type == "function_statement":
            found[_name_of(node)] = (node.text or b"").decode()
    return found


def parameters(source: bytes) -> list[str]:
    """The script's own parameters."""
    head = source.decode().partition("\nparam(\n")[2].partition("\n)\n")[0]
    return re.findall(r"\$(\w+)(?= =|,?$)", head, re.MULTILINE)


def nssm_settings(variables: Mapping[str, str]) -> list[list[str]]:
    """The arguments after `nssm set SERVICE` of each call that install.ps1 makes, with PowerShell's variables replaced.

    Raises KeyError for a variable that is not given.
    """
    source = (FOLDER / "install.ps1").read_text(encoding="ascii")
    lines = source.partition('@"\n')[2].partition('\n"@')[0].splitlines()
    settings = []
    for line in lines:
        if line and not line.startswith("#"):
            name, value = _expanded(line, variables).split(" ", 1)
            settings.append([name, *(value.split(" ") if name == "AppExit" else [value])])
    block = source.partition("$environment = @(\n")[2].partition("\n    )")[0]
    values = [_expanded(line.strip().strip("\"'"), variables) for line in block.splitlines()]
    return [*settings, ["AppEnvironmentExtra", *values]]


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$(?:env:)?(\w+)", lambda match: variables[match[1]], text)


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _nodes(child)


def _function_of(node: Node) -> str:
    above = node.parent
    while above is not None:
        if above.type == "function_statement":
            return _name_of(above)
        above = above.parent
    return ""


def _name_of(function: Node) -> str:
    return next((child.text or b"").decode() for child in function.children if child.type == "function_name")
