"""What is installed with the program: with a lower bound, and under a licence that lets anybody use it.

Known holes in it are another matter: that needs an advisory database, so `make audit` looks, and no test.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [
    Requirement(line)
    for lines in (
        PROJECT["dependencies"],
        *(lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != "dev"),
    )
    for line in lines
]

# Words of SPDX expressions and of PyPI's classifiers. MPL 2.0 asks for changes to its own files alone.
PERMISSIVE = ("MIT", "BSD", "APACHE", "PSF", "PYTHON SOFTWARE FOUNDATION", "MPL", "MOZILLA", "ISC")
COPYLEFT = ("GPL", "GENERAL PUBLIC")
USED_AS_IT_IS = {"python-stdnum": "LESSER GENERAL PUBLIC"}  # asks for changes to itself alone; in an extra, and replaceable


def licence_of(distribution: metadata.Distribution) -> str:
    """As its metadata say: the SPDX expression, else the classifiers, else the free text."""
    about = distribution.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    return about["License-Expression"] or "; ".join(classifiers) or (about["License"] or "")


def installed() -> dict[str, metadata.Distribution]:
    """All that comes with the program and its extras here, by name: what they require in turn, too."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(each, frozenset(each.extras)) for each in DIRECT if each.marker is None or each.marker.evaluate({"extra": ""})]
    seen = set()
    while waiting:
        wanted, extras = waiting.pop()
        key = (wanted.name.lower(), extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        found[wanted.name.lower()] = distribution
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((needed, frozenset(needed.extras)))
    return found


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda each: each.name)
def test_every_dependency_has_a_lower_bound(requirement: Requirement) -> None:
    assert any(bound.operator in (">=", "==", "~=") for bound in requirement.specifier), str(requirement)


def test_all_that_is_installed_with_it_may_be_used_by_anybody() -> None:
    found = installed()
    assert {"pymysql", "cryptography", "openai", "google-genai"} <= found.keys()
    assert len(found) > 40
    for name, distribution in sorted(found.items()):
        licence = licence_of(distribution).upper()
        if name in USED_AS_IT_IS:
            assert USED_AS_IT_IS[name] in licence
            continue
        assert any(word in licence for word in PERMISSIVE), f"{name}: {licence or 'no licence in its metadata'}"
        assert not any(word in licence for word in COPYLEFT), f"{name}: {licence}"


def test_what_is_let_off_by_the_linter_says_why() -> None:
    """`noqa` names its rules and its reason; ruff's rules on security hold for the whole program, without a folder left out."""
    for folder in ("daemon", "tests", "bench", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if "# noqa" in line and path.name != Path(__file__).name:
                    assert re.search(r"# noqa: [A-Z]+\d+(?:, [A-Z]+\d+)* -- \S", line), f"{path}:{number}: {line.strip()}"
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not any(rule.startswith("S") and rule[1:].isdigit() for rule in lint["ignore"])
    for folder, rules in lint["per-file-ignores"].items():
        if folder.startswith("daemon"):
            assert not any(rule.startswith("S") and rule[1:].isdigit() for rule in rules)
