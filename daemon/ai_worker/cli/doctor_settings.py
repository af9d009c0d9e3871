"""The doctor's look at the settings: where they come from, and whether everybody reads `.env` alike."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from dotenv import dotenv_values

from ai_worker.cli.findings import Finding, ok, problem, warning
from ai_worker.config import ENV_FILE_VARIABLE, PREFIX, Settings, encoding_of, env_file, origins, variable
from ai_worker.database_url import parse_database_url
from ai_worker.errors import ConfigurationError

TEST_PREFIX = f"{PREFIX}TEST_"  # for the project's own tests

_SECRETS = [variable(field) for field in ("db_password", "master_key", "master_key_old", "legacy_aes_key")]


def check_settings() -> Iterator[Finding]:
    """Findings about the environment and `.env`. Raises ConfigurationError when they cannot be read at all."""
    doubles = 0
    for field, places in origins().items():
        if len(places) > 1:
            doubles += 1
            message = f"{variable(field)} is set in {' and in '.join(places)}; {places[0]} wins"
            yield warning("settings", message, "Set it in one place only, so that a change cannot be without effect.")
    path = env_file()
    names = set(os.environ) | (set(dotenv_values(path, encoding=encoding_of(path))) if path else set())
    known = {variable(field) for field in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known} | {ENV_FILE_VARIABLE}
    unknown = sorted(name for name in names if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name not in known)
    for name in unknown:
        close = difflib.get_close_matches(name, known, 1)
        remedy = f"Did you mean {close[0]}?" if close else f"Known ones: {', '.join(sorted(known))}."
        yield warning("settings", f"{name} is no setting and has no effect", remedy)
    if not doubles and not unknown:
        yield ok("settings", f"read from {path} and the environment" if path else "read from the environment")
    if path:
        yield from _check_env_file(path)


def _check_env_file(path: Path) -> Iterator[Finding]:
    text = path.read_text(encoding=encoding_of(path))
    if os.name == "posix" and path.stat().st_mode & 0o077 and _holds_secrets(path):
        message = f"{path} holds secrets and can be read by others (mode {path.stat().st_mode & 0o777:04o})"
        yield problem(".env", message, f"chmod 600 {path}")
    drift = False
    for number, line in enumerate(text.splitlines(), 1):
        if reason := _drift(line):
            drift = True
            remedy = (
                "Write paths without quotation marks: KEY=C:\\folder\\file."
                if sys.platform == "win32"
                else 'Write KEY="value" without export, comments after the value, $ and backslashes.'
            )
            yield warning(".env", f"{path}, line {number}: {reason}", remedy)
    if not drift:
        others = "" if sys.platform == "win32" else " alike by AI Worker and by systemd's EnvironmentFile="
        yield ok(".env", f"{path} is read{others}")


def _holds_secrets(path: Path) -> bool:
    values = dotenv_values(path, encoding=encoding_of(path))
    if any(values.get(name) for name in _SECRETS):
        return True
    urls = [url for field in ("db_url", "source_url") if (url := values.get(variable(field)))]
    try:
        return any(parse_database_url(url).password.reveal() for url in urls)
    except ConfigurationError:  # it cannot be told, and a password is what one is to expect
        return True


# Lines that python-dotenv and systemd's EnvironmentFile= (systemd.exec(5)) read differently, or that neither of them reads.
_DRIFT = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (r";", "systemd takes ; for the beginning of a comment, AI Worker does not"),
        (r"export\s", "systemd drops lines with export"),
        (r"[^=]*$", "there is no = in it: it has no effect"),
        (
            r"""[^=]+=\s*(["'])(?!(?:(?!\1).)*\1$)""",
            "there is a quotation mark or a comment too many, or the value goes on in the next line",
        ),
        (r"""[^=]+=\s*[^"'\s].*\s#""", "systemd takes the comment after the value for a part of it"),
        (r"[^=]+=\s*(?!').*\$\{", "AI Worker replaces ${...}, systemd does not"),
        (r"[^=]+=\s*(?!').*\\", "systemd and AI Worker read a backslash differently"),
    )
)

# Windows has no systemd to read them otherwise; but its paths have backslashes.
_DRIFT_WINDOWS = (
    (re.compile(r"[^=]*$"), "there is no = in it: it has no effect"),
    (re.compile(r"""[^=]+=\s*["'].*\\"""), r"within quotation marks a backslash may begin an escape: \n becomes a line end"),
)


def _drift(line: str) -> str | None:
    """Why a line is not read alike by everybody, None when it is. Never shows the value."""
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    rules = _DRIFT_WINDOWS if sys.platform == "win32" else _DRIFT
    return next((why for pattern, why in rules if pattern.match(line)), None)
