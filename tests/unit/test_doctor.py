"""What the doctor thinks of our own example, and of lines that two parsers read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dotenv import dotenv_values

from ai_worker.cli.doctor_settings import check_settings
from ai_worker.config import Settings, load_settings, variable
from ai_worker.database_url import parse_database_url

EXAMPLE = Path(__file__).parents[2] / ".env.example"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def test_the_example_names_each_setting() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert [variable(field) for field in Settings.model_fields if f"{variable(field)}=" not in text] == []


def test_the_example_with_everything_set_is_sound_and_holds_the_defaults() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line.removeprefix("#") if line.startswith("#AI_WORKER_") else line for line in lines)
    text = text.replace("/etc/ai-worker/master-key", "master-key")
    Path(".env").write_text(text, encoding="utf-8")
    Path(".env").chmod(0o600)
    Path("master-key").write_text("x")
    assert {finding.level for finding in check_settings()} == {"ok"}
    settings, defaults = load_settings(), Settings.model_construct()
    changed = {field for field in Settings.model_fields if getattr(settings, field) != getattr(defaults, field)}
    assert changed == {"db_url", "master_key"}
    assert str(settings.database_url()) == "mysql://ai_worker@127.0.0.1:3306/ai_worker"


def test_the_examples_urls_can_be_read() -> None:
    words = EXAMPLE.read_text(encoding="utf-8").replace("&ssl_ca=/etc/ssl/db-ca.pem", "").split()
    urls = [word for word in words if word.startswith(("mysql://", "embedded://"))]
    assert len(urls) == 3
    for url in urls:
        parse_database_url(url)


def test_lines_that_are_called_alike_are_read_as_they_stand() -> None:
    """Without warnings, a value is the text between its quotation marks: what systemd takes it for as well."""
    values = {"A": "zażółć #1", "B": "a=b", "C": "", "D": "it's", "E": "a$b"}
    Path(".env").write_text("".join(f'{name}="{value}"\n' for name, value in values.items()), encoding="utf-8")
    assert {finding.level for finding in check_settings()} == {"ok"}
    assert dict(dotenv_values(".env")) == values


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
@pytest.mark.parametrize(
    ("line", "is_secret"),
    [
        ("", False),
        ('AI_WORKER_DB_PASSWORD=""', False),
        ('AI_WORKER_MASTER_KEY_FILE="master-key"', False),
        ('AI_WORKER_DB_URL="embedded:///srv/dane"', False),
        ('AI_WORKER_DB_PASSWORD="tajne"', True),
        ('AI_WORKER_LEGACY_AES_KEY="tajne"', True),
        ('AI_WORKER_DB_URL="mysql://ja:tajne@127.0.0.1/d"', True),
        ('AI_WORKER_DB_URL="mysql://ja:ta/jne@127.0.0.1/d"', True),  # cannot be read
    ],
)
def test_the_example_holds_no_secret_until_one_is_set(line: str, is_secret: bool) -> None:
    Path(".env").write_text(f"{EXAMPLE.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    Path(".env").chmod(0o644)
    Path("master-key").write_text("x")
    assert any("holds secrets" in finding.message for finding in check_settings()) is is_secret
