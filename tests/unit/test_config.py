"""Settings: which place wins, what a wrong value says, and the database URL taken apart."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.config import load_settings, origins
from ai_worker.database_url import DatabaseUrl, parse_database_url
from ai_worker.errors import ConfigurationError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: no .env but the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path


def password() -> str | None:
    value = load_settings().db_password
    return None if value is None else value.get_secret_value()


def test_the_strongest_place_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated credential beats a forgotten .env; that order is the point of the whole arrangement."""
    assert password() is None

    Path("named-in-dotenv").write_text("from a file named in .env\n")
    Path(".env").write_text("AI_WORKER_DB_PASSWORD_FILE=named-in-dotenv\n")
    assert password() == "from a file named in .env"

    Path(".env").write_text("AI_WORKER_DB_PASSWORD=from .env\nAI_WORKER_DB_PASSWORD_FILE=named-in-dotenv\n")
    assert password() == "from .env"

    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "ai_worker_db_password").write_text("from systemd")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert password() == "from systemd"

    Path("named").write_text("from a file\n")
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD_FILE", "named")
    assert password() == "from a file"

    monkeypatch.setenv("AI_WORKER_DB_PASSWORD", "from the environment")
    assert password() == "from the environment"

    assert origins()["db_password"] == [
        "the environment",
        "a file named in the environment",
        "a systemd credential",
        ".env",
        "a file named in .env",
    ]


@pytest.mark.parametrize(
    ("content", "read"),
    [("hasło\n", "hasło"), ("hasło\r\n", "hasło"), ("hasło\n\n", "hasło\n"), (" spacja ", " spacja "), ("hasło", "hasło")],
)
def test_a_file_loses_one_line_end_and_nothing_else(content: str, read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secret").write_bytes(content.encode())
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD_FILE", "secret")
    assert password() == read


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_MASTER_KEY_FILE", "/nowhere/key")
    with pytest.raises(
        ConfigurationError, match=r"AI_WORKER_MASTER_KEY_FILE names '/nowhere/key', which cannot be read: No such file"
    ):
        load_settings()


def test_a_file_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("key").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv("AI_WORKER_MASTER_KEY_FILE", "key")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_settings()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD", "")
    monkeypatch.setenv("AI_WORKER_LEASE_SECONDS", "")
    assert password() is None
    assert load_settings().lease_seconds == 30


def test_another_env_file_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("AI_WORKER_CONCURRENCY=1\n")
    Path("other.env").write_text("\ufeffAI_WORKER_CONCURRENCY=7\n", encoding="utf-8")  # as Windows' Notepad saves it
    monkeypatch.setenv("AI_WORKER_ENV_FILE", "other.env")
    assert load_settings().concurrency == 7
    monkeypatch.setenv("AI_WORKER_ENV_FILE", "missing.env")
    with pytest.raises(ConfigurationError, match=r"AI_WORKER_ENV_FILE names 'missing\.env'"):
        load_settings()


def test_an_env_file_that_is_no_text_is_named() -> None:
    Path(".env").write_bytes(b"AI_WORKER_WORKER_NAME=\xb1\n")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('# Ustawienia\n\n\nAI_WORKER_DB_PASSWORD="tajne\nAI_WORKER_CONCURRENCY=7\n', "line 4"),
        ("AI_WORKER_DB_PASSWORD tajne\r\n\r\nA=b\r\n\r\n'tajne\r\n", "lines 1, 5"),
    ],
)
def test_a_broken_line_of_an_env_file_is_named_and_not_shown(
    text: str, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_bytes(text.encode())
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    assert str(error.value) == f'.env, {where}: cannot be read; write KEY="value", or # before a comment'
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LEASE_SECONDS", "4", "AI_WORKER_LEASE_SECONDS is '4' (from the environment), but must be the seconds"),
        ("CONCURRENCY", "many", "AI_WORKER_CONCURRENCY is 'many'"),
        ("CONCURRENCY", "2001", "1 to 2000"),
        ("LOG_LEVEL", "loud", "must be debug, info, warning or error"),
        ("REQUEST_TIMEOUT_SECONDS", "inf", "1 to 3600"),
        ("WORKER_NAME", "x" * 201, "at most 200 characters"),
    ],
)
def test_a_wrong_value_says_where_and_what(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"AI_WORKER_{name}", value)
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    assert says in str(error.value)
    assert error.value.__context__ is None  # pydantic's own error holds the raw input


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_LEASE_SECONDS", "4")
    Path(".env").write_text("AI_WORKER_CONCURRENCY=0\n")
    with pytest.raises(
        ConfigurationError, match=r"LEASE_SECONDS is '4' \(from the environment\).*CONCURRENCY is '0' \(from \.env\)"
    ):
        load_settings()


def test_words_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "DEBUG")
    assert load_settings().log_level == "debug"


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", "mysql://u:tajne@h/d")
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", "tajne")
    settings = load_settings()
    assert "tajne" not in repr(settings)
    assert "tajne" not in str(settings.database_url())
    assert "tajne" not in repr(settings.database_url())


def test_without_a_database_the_message_says_how_to_set_one() -> None:
    with pytest.raises(ConfigurationError, match=r"Set AI_WORKER_DB_URL .* mysql://user:password@127\.0\.0\.1:3306/ai_worker"):
        load_settings().database_url()


def test_the_password_of_its_own_setting_takes_the_urls_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", "mysql://u:old@h/d")
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD", "new/@:%41")
    assert load_settings().database_url().password.reveal() == "new/@:%41"


def test_a_plain_url() -> None:
    url = parse_database_url("mysql://user:password@db.example.com/ai_worker")
    assert (url.scheme, url.user, url.password.reveal(), url.database) == ("mysql", "user", "password", "ai_worker")
    assert url.hosts == (("db.example.com", 3306),)
    assert (url.ssl, url.connect_timeout, url.read_timeout, url.write_timeout) == ("prefer", 5.0, 60.0, 60.0)


def test_a_full_url(folder: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (folder / name).touch()
    url = parse_database_url(
        f"mariadb://u%40x:p%3A%2F%40@a:3307,[::1]:3308,[fe80::1],10.0.0.1/bazą%20danych?ssl=verify&ssl_ca={folder}/ca.pem"
        f"&ssl_cert={folder}/cert.pem&ssl_key={folder}/key.pem&connect_timeout=2&read_timeout=1.5&write_timeout=3600"
    )
    assert (url.scheme, url.user, url.password.reveal(), url.database) == ("mariadb", "u@x", "p:/@", "bazą danych")
    assert url.hosts == (("a", 3307), ("::1", 3308), ("fe80::1", 3306), ("10.0.0.1", 3306))
    assert (url.ssl, url.ssl_ca, url.connect_timeout, url.read_timeout) == ("verify", f"{folder}/ca.pem", 2.0, 1.5)
    assert str(url) == "mariadb://u@x@a:3307,[::1]:3308,[fe80::1]:3306,10.0.0.1:3306/bazą danych"


def test_a_socket_takes_the_hosts_place() -> None:
    url = parse_database_url("mysql://root@/ai_worker?socket=/run/mysqld/mysqld.sock")
    assert (url.hosts, url.unix_socket, url.is_remote) == ((), "/run/mysqld/mysqld.sock", False)


def test_an_authority_alone_means_verify_and_a_certificate_means_required(folder: Path) -> None:
    for name in ("ca", "cert", "key"):
        (folder / name).touch()
    assert parse_database_url(f"mysql://u@h/d?ssl_ca={folder}/ca").ssl == "verify"
    assert parse_database_url(f"mysql://u@h/d?ssl_cert={folder}/cert&ssl_key={folder}/key").ssl == "required"


def test_an_embedded_server_is_a_folder() -> None:
    assert parse_database_url("embedded:///var/lib/ai%20worker") == DatabaseUrl("embedded", path=Path("/var/lib/ai worker"))
    assert parse_database_url("embedded://~/data").path == Path.home() / "data"


@pytest.mark.parametrize(
    ("url", "remote"),
    [("mysql://u@127.0.0.1/d", False), ("mysql://u@localhost,[::1]/d", False), ("mysql://u@localhost,db/d", True)],
)
def test_loopback_is_not_remote(url: str, remote: bool) -> None:
    assert parse_database_url(url).is_remote is remote


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "begins with none of"),
        ("postgres://u@h/d", "begins with none of"),
        ("mysql:/u@h/d", "begins with none of"),
        ("mysql://h/d", "names no user"),
        ("mysql://:p@h/d", "names no user"),
        ("mysql://u@h", "names no database"),
        ("mysql://u@h/", "names no database"),
        ("mysql://u@h/a/b", "names no database, or more than one"),
        ("mysql://u@/d", "must name either hosts or"),
        ("mysql://u@h/d?socket=/s", "must name either hosts or"),
        ("mysql://u@h:0/d", "the port '0' for host 'h'"),
        ("mysql://u@h:65536/d", "the port '65536'"),
        ("mysql://u@h:٣/d", "the port"),
        ("mysql://u@h:/d?x", "unknown option 'x'"),
        ("mysql://u@a,,b/d", "a host ''"),
        ("mysql://u@::1/d", "IPv6 addresses in brackets"),
        ("mysql://u@[::1/d", "a host '[::1'"),
        ("mysql://u@h/d?sslmode=on", "unknown option 'sslmode'; known ones: ssl, ssl_ca"),
        ("mysql://u@h/d?ssl=true", "ssl='true'; it must be one of off, prefer, required, verify"),
        ("mysql://u@h/d?ssl=some-long-password", "ssl=***; it must be one of"),
        ("mysql://u:p@x/d?ssl=y@h/d", "a special character in the user or the password"),
        ("mysql://u:p@x:y/z@h/d", "a special character in the user or the password"),
        ("mysql://u@h/d?ssl=off&ssl=off", "'ssl' twice"),
        ("mysql://u@h/d?ssl_ca=/nowhere.pem", "'/nowhere.pem', which is not a file"),
        (f"mysql://u@h/d?ssl_ca=/{'x' * 300}", "which is not a file"),
        ("mysql://u@h/d?ssl_cert=/etc/passwd", "ssl_cert and ssl_key together"),
        ("mysql://u@h/d?ssl=off&ssl_ca=/etc/passwd", "ssl=off together with ssl_ca"),
        ("mysql://u@h/d?connect_timeout=0", "connect_timeout='0'"),
        ("mysql://u@h/d?read_timeout=nan", "read_timeout='nan'"),
        ("mysql://u@h/d?write_timeout=x", "write_timeout='x'"),
        ("embedded://", "must name a folder"),
        ("embedded:///x?ssl=off", "must name a folder"),
        ("embedded://rel/path", "embedded:///absolute/folder"),
        ("embedded://./data", "embedded:///absolute/folder"),
        ("embedded://~nobody-of-that-name/data", "embedded:///absolute/folder"),
        ("embedded:///nul%00", "embedded:///absolute/folder"),
    ],
)
def test_each_wrong_part_of_a_url_is_named(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_database_url(url)
    assert says in str(error.value)
    assert "AI_WORKER_DB_URL" in str(error.value)


@pytest.mark.parametrize("tajne", ["geh/eim", "geh?eim", "1/geheim", "1234?geheim@x", "/geheim"])
def test_a_password_that_is_not_encoded_is_explained_and_not_shown(tajne: str) -> None:
    with pytest.raises(ConfigurationError, match="special character") as error:
        parse_database_url(f"mysql://u:{tajne}@h:3306/d")
    assert "eim" not in str(error.value)


@given(st.text(max_size=50), st.text(min_size=1, max_size=50))
def test_what_is_encoded_comes_back(password: str, database: str) -> None:
    from urllib.parse import quote

    try:
        encoded = quote(password, safe=""), quote(database, safe="")
    except UnicodeEncodeError:  # lone surrogates
        return
    url = parse_database_url(f"mysql://u:{encoded[0]}@h/{encoded[1]}")
    assert (url.password.reveal(), url.database) == (password, database)


@given(st.text(max_size=80))
def test_no_text_makes_anything_but_a_url_or_a_message(text: str) -> None:
    for candidate in (text, f"mysql://{text}", f"mysql://u:p@{text}", f"mysql://u:p@h/d?{text}"):
        with contextlib.suppress(ConfigurationError):
            parse_database_url(candidate)
