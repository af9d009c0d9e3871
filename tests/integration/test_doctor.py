"""The doctor: each finding is provoked for real, on both servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ai_worker.cli.doctor_checks import check_session, check_version
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.db import session as session_module
from ai_worker.keys import Keyring, generate_master_key
from ai_worker.models import Model, Secret
from ai_worker.providers import provider_class
from ai_worker.store.health import Server
from ai_worker.store.models import Models
from tests.integration.commands import Commands, Ended
from tests.servers import TestServer, free_port

Sql = Callable[..., list[dict[str, Any]]]

MASTER = generate_master_key()
KEY = "sk-tajny-klucz-0123456789"


@pytest.fixture
def commands(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", MASTER)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def models(database: Database) -> Models:
    return Models(database)


@pytest.fixture
def user(server: TestServer, database_url: str) -> Iterator[Callable[..., str]]:
    """`user("SELECT ON {db}.*", ...)`: the URL of a new user with these rights and the password `x`."""
    made: list[str] = []

    def make(*grants: str) -> str:
        database = parse_database_url(database_url).database
        name = f"doc_{database[-12:]}_{len(made)}"
        made.append(name)
        server.execute(f"CREATE USER {name}@'%' IDENTIFIED BY 'x'")
        for grant in grants:
            server.execute(f"GRANT {grant.format(db=database)} TO {name}@'%'")
        return server.url(database, name, "x")

    yield make
    for name in made:
        server.execute(f"DROP USER {name}@'%'")


@contextmanager
def endpoint(status: int, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An HTTP server on the loopback that answers everything with `status`; yields its URL and the headers it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({**{name.lower(): value for name, value in self.headers.items()}, "path": self.path})
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def found(ended: Ended, check: str, level: str) -> str:
    """The only finding of this check and level: its message and its remedy."""
    findings = json.loads(ended.out)["findings"]
    (one,) = [each for each in findings if each["check"] == check and each["level"] == level]
    assert level == "ok" or one["remedy"], "a finding without a remedy"
    assert KEY not in ended.everything
    assert MASTER not in ended.everything
    return f"{one['message']} -> {one['remedy']}"


def with_session(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    """Sessions that are not what we asked for, as behind a proxy."""
    monkeypatch.setattr(session_module, "SESSION", (*session_module.SESSION, *statements))


def test_all_is_well(commands: Commands, models: Models) -> None:
    models.add(Model(0, "try", "echo"))
    ended = commands("doctor")
    assert ended.code == 0, ended.everything
    assert "0 problems, 0 warnings" in ended.out
    report = commands("doctor", "--json").json
    assert report["ok"] is True
    checks = [each["check"] for each in report["findings"]]
    assert checks == [
        *("version", "settings", "personal data", "server", "session", "encryption", "clock"),
        *("schema", "privileges", "items", "order", "workers", "keys", "models"),
    ]


def test_no_database_is_set(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AI_WORKER_DB_URL")
    monkeypatch.setenv("AI_WORKER_DB_ULR", "mysql://u@h/d")
    ended = commands("doctor", "--json")
    assert ended.code == 78
    assert "Set AI_WORKER_DB_URL" in found(ended, "settings", "problem")
    assert "Did you mean AI_WORKER_DB_URL?" in found(ended, "settings", "warning")


def test_a_setting_is_wrong(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_CONCURRENCY", "0")
    ended = commands("doctor", "--json")
    assert (ended.code, "AI_WORKER_CONCURRENCY is '0'" in found(ended, "settings", "problem")) == (78, True)


def test_the_master_key_is_none(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", "zażółć")
    ended = commands("doctor", "--json")
    assert (ended.code, "not base64 of 32 bytes" in found(ended, "settings", "problem")) == (78, True)


def test_no_server(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", f"mysql://u@127.0.0.1:{free_port()}/d")
    ended = commands("doctor", "--json")
    assert (ended.code, "Is the server running?" in found(ended, "database", "problem")) == (75, True)


def test_wrong_password(commands: Commands, monkeypatch: pytest.MonkeyPatch, user: Callable[..., str]) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", user("SELECT ON {db}.*"))
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD", "złe-hasło")
    ended = commands("doctor", "--json")
    assert (ended.code, "Check user and password" in found(ended, "database", "problem")) == (78, True)
    assert "złe-hasło" not in ended.everything


def test_a_password_in_polish_is_the_same_for_us_and_for_the_server(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, user: Callable[..., str], server: TestServer
) -> None:
    url = user("ALL ON {db}.*")
    server.execute(f"ALTER USER {parse_database_url(url).user}@'%' IDENTIFIED BY 'zażółć-gęślą'")
    monkeypatch.setenv("AI_WORKER_DB_URL", url)
    monkeypatch.setenv("AI_WORKER_DB_PASSWORD", "zażółć-gęślą")
    assert commands("doctor").code == 0


def test_no_right_to_the_database(commands: Commands, monkeypatch: pytest.MonkeyPatch, user: Callable[..., str]) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", user())
    ended = commands("doctor", "--json")
    assert (ended.code, "grants.sql" in found(ended, "database", "problem")) == (78, True)


def test_no_such_database(commands: Commands, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url.replace("?", "_nie_ma?"))
    ended = commands("doctor", "--json")
    assert (ended.code, "ai-worker migrate" in found(ended, "database", "problem")) == (78, True)


def test_missing_privileges_are_named(commands: Commands, monkeypatch: pytest.MonkeyPatch, user: Callable[..., str]) -> None:
    url = user(
        "SELECT ON {db}.*",
        "UPDATE (status_id, started_at) ON {db}.task",
        "UPDATE ON {db}.ai_model",
        "INSERT ON {db}.task_attempt",
        "INSERT, UPDATE ON {db}.worker",
    )
    monkeypatch.setenv("AI_WORKER_DB_URL", url)
    ended = commands("doctor", "--json")
    assert ended.code == 78
    assert "may not UPDATE task_item -> Let a DBA run: GRANT UPDATE ON" in found(ended, "privileges", "problem")


def test_a_user_who_may_do_what_a_worker_does_is_enough(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, user: Callable[..., str], models: Models
) -> None:
    models.add(Model(0, "try", "echo"))
    url = user(
        "SELECT ON {db}.*",
        "UPDATE ON {db}.task",
        "UPDATE ON {db}.task_item",
        "UPDATE ON {db}.ai_model",
        "INSERT ON {db}.task_attempt",
        "INSERT, UPDATE ON {db}.worker",
    )
    monkeypatch.setenv("AI_WORKER_DB_URL", url)
    assert commands("doctor").code == 0


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "the isolation is REPEATABLE-READ"),
        ("SET SESSION sql_mode = 'NO_ENGINE_SUBSTITUTION'", "the SQL mode is not strict"),
        ("SET SESSION time_zone = '+02:00'", "the time zone is +02:00"),
    ],
)
def test_a_session_that_is_not_what_we_asked_for(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, statement: str, says: str
) -> None:
    with_session(monkeypatch, statement)
    ended = commands("doctor", "--json")
    assert (ended.code, says in found(ended, "session", "problem")) == (78, True)


def test_small_packets(commands: Commands, server: TestServer) -> None:
    if server.name != "mariadb":
        pytest.skip("the setting is the whole server's, and only the MariaDB of these tests is ours alone")
    before = server.execute("SELECT @@GLOBAL.max_allowed_packet AS bytes")[0]["bytes"]
    server.execute("SET GLOBAL max_allowed_packet = 1048576")
    try:
        ended = commands("doctor", "--json")
    finally:
        server.execute(f"SET GLOBAL max_allowed_packet = {before}")
    assert (ended.code, "max_allowed_packet = 64M" in found(ended, "session", "problem")) == (1, True)


def test_clock_skew(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    with_session(monkeypatch, "SET SESSION timestamp = UNIX_TIMESTAMP() - 90")
    ended = commands("doctor", "--json")
    assert ended.code == 0
    warned = found(ended, "clock", "warning")
    assert "behind this host's" in warned
    assert 89 < float(warned.split(" s behind")[0].split()[-1]) < 95


def test_no_schema(commands: Commands, monkeypatch: pytest.MonkeyPatch, empty_database_url: str) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", empty_database_url)
    ended = commands("doctor", "--json")
    assert (ended.code, "ai-worker migrate" in found(ended, "schema", "problem")) == (78, True)


def test_a_newer_schema(commands: Commands, monkeypatch: pytest.MonkeyPatch, empty_database_url: str) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", empty_database_url)
    assert commands("migrate").code == 0
    db = Database(parse_database_url(empty_database_url))
    add = "INSERT INTO schema_migration (version, name, compatible_from) VALUES"
    db.transaction(lambda transaction: transaction.raw(f"{add} (998, 'more', 1)"))
    assert "at version 998, newer than this version's" in found(commands("doctor", "--json"), "schema", "ok")
    db.transaction(lambda transaction: transaction.raw(f"{add} (999, 'less', 998)"))
    db.close()
    ended = commands("doctor", "--json")
    assert (ended.code, "the database has 999" in found(ended, "schema", "problem")) == (78, True)


def test_items_without_a_task(commands: Commands, sql: Sql) -> None:
    sql("INSERT INTO task_item (id_task, text_original) VALUES (4000000001, 'Zażółć'), (4000000001, 'gęślą'), (4000000002, 'x')")
    ended = commands("doctor", "--json")
    assert (ended.code, "(id_task 4000000001, 4000000002)" in found(ended, "items", "problem")) == (1, True)


def test_no_master_key(commands: Commands, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.add(Model(0, "try", "echo"))
    monkeypatch.delenv("AI_WORKER_MASTER_KEY")
    ended = commands("doctor", "--json")
    assert (ended.code, "ai-worker keygen" in found(ended, "keys", "warning")) == (0, True)  # nothing is encrypted yet
    number = models.get("try").id_ai_model
    models.set_key(number, Keyring(Secret(MASTER)).encrypt(number, Secret(KEY)))
    ended = commands("doctor", "--json")
    assert (ended.code, "no master key is set" in found(ended, "keys", "problem")) == (78, True)


@pytest.mark.parametrize("damage", ["another key", "flipped bit", "another row"])
def test_a_key_that_cannot_be_read(commands: Commands, models: Models, damage: str) -> None:
    number = models.add(Model(0, "try", "echo"))
    ring = Keyring(Secret(generate_master_key() if damage == "another key" else MASTER))
    value = bytearray(ring.encrypt(number + (damage == "another row"), Secret(KEY)))
    value[-1] ^= damage == "flipped bit"
    models.set_key(number, bytes(value))
    ended = commands("doctor", "--json")
    assert (ended.code, "ai-worker model set try --api-key-file" in found(ended, "keys", "problem")) == (78, True)


def test_keys_of_a_panel_or_an_old_master_key(commands: Commands, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    old = generate_master_key()
    models.add(Model(0, "try", "echo"), lambda number: Keyring(Secret(old)).encrypt(number, Secret(KEY)))
    monkeypatch.setenv("AI_WORKER_MASTER_KEY_OLD", old)
    ended = commands("doctor", "--json")
    assert (ended.code, "ai-worker rekey" in found(ended, "keys", "warning")) == (0, True)


def sealed(models: Models, name: str, provider: str, base_url: str | None) -> None:
    models.add(Model(0, name, provider, "m", base_url), lambda number: Keyring(Secret(MASTER)).encrypt(number, Secret(KEY)))


def test_an_endpoint_that_cannot_be_reached(commands: Commands, models: Models) -> None:
    sealed(models, "gpt", "openai", f"http://127.0.0.1:{free_port()}/v1")
    ended = commands("doctor", "--json")
    assert (ended.code, "cannot be reached: Connection refused" in found(ended, "models", "problem")) == (1, True)
    ended = commands("doctor", "--json", "--offline")
    assert ended.code == 0


def test_an_endpoint_that_is_no_http(commands: Commands, models: Models, server: TestServer) -> None:
    ((host, port),) = server.admin.hosts
    sealed(models, "gpt", "openai", f"http://{host}:{port}/v1")
    ended = commands("doctor", "--json")
    assert (ended.code, "cannot be reached" in found(ended, "models", "problem")) == (1, True)


@pytest.mark.parametrize(("provider", "status"), [("openai", 401), ("openai", 403), ("gemini", 400)])
def test_an_endpoint_that_refuses_the_key(commands: Commands, models: Models, provider: str, status: int) -> None:
    with endpoint(status) as (url, _):
        sealed(models, "m", provider, url)
        ended = commands("doctor", "--json")
    assert (ended.code, f"does not accept the API key (HTTP {status})" in found(ended, "models", "problem")) == (1, True)


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_an_endpoint_that_answers_is_reachable(commands: Commands, models: Models, status: int) -> None:
    with endpoint(status) as (url, seen):
        sealed(models, "m", "openai", f"{url}/v1")
        ended = commands("doctor", "--json")
    assert (ended.code, "answers" in found(ended, "models", "ok")) == (0, True)
    (request,) = seen
    assert (request["path"], request["authorization"]) == ("/v1/models", f"Bearer {KEY}")


def test_a_redirect_does_not_carry_the_key_away(commands: Commands, models: Models) -> None:
    with endpoint(200) as (thief, stolen), endpoint(302, {"Location": f"{thief}/models"}) as (url, seen):
        sealed(models, "m", "openai", url)
        assert commands("doctor", "--json").code == 0
    assert len(seen) == 1
    assert stolen == []


def test_an_inactive_model_is_left_alone(commands: Commands, models: Models) -> None:
    with endpoint(200) as (url, seen):
        sealed(models, "m", "openai", url)
        models.set("m", is_active=False)
        ended = commands("doctor", "--json")
    assert (seen, "no active model" in found(ended, "models", "warning")) == ([], True)


def test_a_stopped_model(commands: Commands, models: Models) -> None:
    models.stop(models.add(Model(0, "m", "echo")), "quota_exhausted", "saldo wyczerpane", 60)
    ended = commands("doctor", "--json")
    assert (ended.code, "saldo wyczerpane -> Put it right" in found(ended, "models", "warning")) == (0, True)


def test_a_setting_in_two_places(commands: Commands, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    Path(".env").write_text('AI_WORKER_DB_URL="mysql://u@nowhere/d"\nAI_WORKER_LEASE_SECONDS="30"\n')
    Path(".env").chmod(0o600)
    ended = commands("doctor", "--json")
    warned = found(ended, "settings", "warning")
    assert "AI_WORKER_DB_URL is set in the environment and in .env; the environment wins" in warned
    assert ended.code == 0


def test_an_env_file_that_others_can_read(commands: Commands) -> None:
    Path(".env").write_text("AI_WORKER_LEASE_SECONDS=30\n")
    Path(".env").chmod(0o644)
    assert commands("doctor").code == 0  # there is no secret in it
    Path(".env").write_text("AI_WORKER_LEGACY_AES_KEY=x\n")
    ended = commands("doctor", "--json")
    assert (ended.code, "(mode 0644) -> chmod 600 .env" in found(ended, ".env", "problem")) == (1, True)


def test_a_plug_ins_endpoint_is_not_said_to_be_none(
    commands: Commands, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "far-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.0\n")
    entries = "[ai_worker.providers]\nfar = ai_worker.providers.echo:EchoProvider\nbroken = json:NoSuchProvider\n"
    (metadata / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    models.add(Model(0, "daleki", "far"))
    ended = commands("doctor", "--json")
    said = "daleki: the endpoint of its provider 'far' is not known and was not tried"
    assert (ended.code, said in found(ended, "models", "ok"), "no network" in ended.out) == (0, True, False)
    models.add(Model(0, "zepsuty", "broken"))
    ended = commands("doctor", "--json")
    said = "zepsuty cannot be used from here: provider 'broken' cannot be loaded: AttributeError: "
    assert (ended.code, said in found(ended, "models", "problem")) == (1, True)
    provider_class.cache_clear()


@pytest.mark.parametrize(
    "line",
    [
        "AI_WORKER_LEGACY_AES_KEY=tajne # komentarz",
        "export AI_WORKER_LEGACY_AES_KEY=tajne",
        "AI_WORKER_LEGACY_AES_KEY=${HOME}tajne",
        "AI_WORKER_LEGACY_AES_KEY=taj\\ne",
        'AI_WORKER_LEGACY_AES_KEY="tajne" # komentarz',
        'AI_WORKER_LEGACY_AES_KEY="tajne\ndalej"',
    ],
)
def test_an_env_file_that_systemd_reads_differently(commands: Commands, line: str) -> None:
    Path(".env").write_text(f"# Ustawienia\n{line}\n")
    Path(".env").chmod(0o600)
    ended = commands("doctor", "--json")
    warnings = [each["message"] for each in json.loads(ended.out)["findings"] if each["check"] == ".env"]
    assert ".env, line 2: " in warnings[0]
    assert "taj" not in "".join(warnings)


def test_an_env_file_that_everybody_reads_alike(commands: Commands, models: Models) -> None:
    models.add(Model(0, "try", "echo"))
    Path(".env").write_text("# Ustawienia\n\nAI_WORKER_LEGACY_AES_KEY=\"hasło #1\"\nAI_WORKER_LEASE_SECONDS=30\nINNE='$x \\ y'\n")
    Path(".env").chmod(0o600)
    ended = commands("doctor", "--json")
    assert "read alike" in found(ended, ".env", "ok")
    assert ended.code == 0


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("8.0.19", "ok"),
        ("8.4.6-google", "ok"),
        ("9.7.4-2", "ok"),
        ("10.6.0-MariaDB", "ok"),
        ("11.8.3-MariaDB-ubu2404-log", "ok"),
        ("5.5.5-10.11.2-MariaDB", "ok"),
        ("8.0.18", "problem"),
        ("5.7.44-log", "problem"),
        ("10.5.29-MariaDB-1:10.5.29", "problem"),
        ("5.5.5-10.3.39-MariaDB", "problem"),
        ("unknown", "warning"),
    ],
)
def test_old_versions(version: str, level: str) -> None:
    (finding,) = check_version(version)
    assert finding.level == level
    assert finding.exit_code == (78 if level == "problem" else 1)


def test_encryption(commands: Commands, database_url: str, monkeypatch: pytest.MonkeyPatch, server: TestServer) -> None:
    """The loopback is taken for a remote host here, since no other one is at hand."""
    monkeypatch.setattr("ai_worker.database_url._is_loopback", lambda _: False)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    ended = commands("doctor", "--json")
    assert "in the clear" in found(ended, "encryption", "warning")
    if server.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0]["Value"]:
        monkeypatch.setenv("AI_WORKER_DB_URL", database_url.replace("ssl=off", "ssl=required"))
        ended = commands("doctor", "--json")
        assert "nobody checks that this is the right server" in found(ended, "encryption", "warning")


def test_a_sound_session_is_one_finding() -> None:
    server = Server("x", "READ-COMMITTED", frozenset({"STRICT_ALL_TABLES"}), 64 << 20, "+00:00", "")
    (finding,) = check_session(server)
    assert finding.level == "ok"
    assert "64 MB" in finding.message
