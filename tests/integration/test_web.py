"""What all requests have in common: who may come in, what is logged, how errors look, how the web starts and stops."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator

import httpx2
import pytest

from ai_worker import log
from ai_worker.errors import EXIT_CONFIGURATION, EXIT_FAILED
from ai_worker.store.tokens import Scope
from ai_worker.web.options import WebOptions
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.webs import Web, problem, serving
from tests.servers import Programs

WRONG = "aiw_" + "x" * 43


@pytest.fixture
def web(database_url: str) -> Iterator[Web]:
    with serving(database_url) as web:
        yield web


def test_a_token_is_shown_once_listed_and_revoked(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], web: Web
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    commands = Commands(monkeypatch, capsys)
    made = commands("token", "add", "panel", "--scope", "read", "--scope", "run", "--expires", "90d")
    assert made.code == 0
    token = made.out.strip()
    assert token.startswith("aiw_")
    assert token not in made.err
    assert commands("token", "add", "panel", "--scope", "read").code == 2
    client = web.client(token=token)
    assert client.get("/openapi.json").status_code == 200
    (listed,) = commands("token", "list", "--json").json
    assert (listed["name"], listed["state"], listed["scopes"]) == ("panel", "valid", ["read", "run"])
    assert listed["last_used_at"]
    assert token not in commands("token", "list").out
    assert commands("token", "revoke", "panel").code == 0
    assert commands("token", "list", "--json").json[0]["state"] == "revoked"
    assert commands("token", "revoke", "panel").code == 2
    problem(client.get("/openapi.json"), 401)


def test_wrong_tokens_are_counted_for_all_instances_and_right_ones_let_in(web: Web, database_url: str, sql: Sql) -> None:
    wrong, right = web.client(token=WRONG), web.client(Scope.READ)
    for _ in range(10):
        refused = wrong.get("/openapi.json")
        problem(refused, 401)
    assert refused.headers["www-authenticate"] == "Bearer"
    with serving(database_url) as other:
        late = other.client(token="no token at all").get("/openapi.json")
        problem(late, 429)
        assert 0 < int(late.headers["retry-after"]) <= 601
        again = wrong.get("/openapi.json")
        assert {again.status_code, wrong.get("/openapi.json").status_code} == {429}
        assert right.get("/openapi.json").status_code == 200
        assert other.client(token=right.headers["authorization"].removeprefix("Bearer ")).get("/openapi.json").status_code == 200
        # What is known to be too many is not written again.
        (row,) = sql("SELECT address, SUM(failures) AS failures FROM web_failure GROUP BY address")
        assert row == {"address": "127.0.0.1", "failures": 12}


def test_a_proxy_is_believed_when_it_is_named(database_url: str, sql: Sql) -> None:
    forwarded = {"X-Forwarded-For": "2001:db8:1:2:3:4:5:6", "Authorization": f"Bearer {WRONG}"}
    for proxies, expected in ((("127.0.0.0/8",), "2001:db8:1:2::"), ((), "127.0.0.1")):
        with serving(database_url, proxies=proxies) as web:
            problem(web.client(token="").get("/openapi.json", headers=forwarded), 401)
        assert expected in {row["address"] for row in sql("SELECT address FROM web_failure")}


def test_no_token_is_no_failure(web: Web, sql: Sql) -> None:
    problem(web.client(token="").get("/openapi.json"), 401)
    assert sql("SELECT address FROM web_failure") == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.:80x"])
def test_other_names_of_the_server_are_refused(web: Web, host: str) -> None:
    problem(web.client(token="").get("/health/live", headers={"Host": host}), 400)


def test_named_hosts_are_answered(database_url: str) -> None:
    with serving(database_url, WebOptions(allowed_hosts=("*.shop.example", "[::1]"))) as web:
        client = web.client(token="")
        for host in ("ai.shop.example:8443", "[::1]:8080", "AI.Shop.Example"):
            assert client.get("/health/live", headers={"Host": host}).status_code == 200
        problem(client.get("/health/live", headers={"Host": "shop.example.evil"}), 400)


def test_every_answer_has_an_id_and_headers_that_keep_browsers_from_guessing(web: Web) -> None:
    client = web.client(token="")
    given = client.get("/health/live", headers={"X-Request-ID": "shop-7:1"})
    assert given.headers["x-request-id"] == "shop-7:1"
    for odd in ("ü" * 3, "a b", "x" * 101, ""):
        made = client.get("/nowhere", headers={"X-Request-ID": odd.encode()})
        problem(made, 404)
        assert made.headers["x-request-id"] != odd
        assert len(made.headers["x-request-id"]) == 36
    assert made.headers["x-content-type-options"] == "nosniff"
    assert made.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in made.headers["content-security-policy"]
    assert "server" not in made.headers


def test_a_browser_that_is_lost_sees_a_page(web: Web) -> None:
    client = web.client(token="", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    lost = client.get("/nothere")
    assert (lost.status_code, lost.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<h1>Not found</h1>" in lost.text
    problem(client.post("/nothere"), 404)
    problem(client.get("/task/7"), 401)  # of the API


def test_other_origins_may_not_read_unless_they_are_named(web: Web, database_url: str) -> None:
    origin = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in web.client(token="").get("/health/live", headers=origin).headers
    with serving(database_url, WebOptions(cors_origins=("https://shop.example",))) as open_web:
        client = open_web.client(token="")
        answer = client.options("/health/live", headers=origin | {"Access-Control-Request-Headers": "Idempotency-Key"})
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-credentials" not in answer.headers
        assert client.options("/health/live", headers=origin | {"Origin": "https://evil.example"}).status_code == 400


def test_a_database_that_goes_away_is_503_and_back(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    client = web.client(Scope.READ)
    assert client.get("/health/ready").status_code == 200
    hosts = web.database._hosts
    try:
        web.database._hosts = (("127.0.0.1", 1),)
        for session in list(web.database._sessions):
            session.interrupt()
        for path in ("/health/ready", "/openapi.json"):
            away = client.get(path)
            body = problem(away, 503)
            assert away.headers["retry-after"]
            assert "127.0.0.1" not in body["detail"]
        assert client.get("/health/live").status_code == 200
    finally:
        web.database._hosts = hosts
    assert client.get("/health/ready").status_code == 200
    assert client.get("/openapi.json").status_code == 200


def test_requests_are_logged_with_their_id_and_no_secret(programs: Programs, database_url: str) -> None:
    token = programs.run("token", "add", "panel", "--scope", "read").stdout.strip()
    background = programs.start("web", "--port", "0", env={"AI_WORKER_LOG_FORMAT": "json"})
    background.wait_for("WEB_START")
    address = json.loads(background.text().splitlines()[0])["address"]
    with httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/openapi.json", headers={"X-Request-ID": "r-1"}).status_code == 200
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            busy = programs.run("web", "--port", str(taken.getsockname()[1]))
            assert (busy.returncode, busy.stderr.count("\n")) == (EXIT_FAILED, 1)
            assert "cannot listen on 127.0.0.1, port" in busy.stderr
        background.process.send_signal(signal.SIGTERM)
        assert background.wait() == 0
    lines = [json.loads(line) for line in background.text().splitlines()]
    assert [line["event"] for line in lines] == ["WEB_START", "REQUEST", "WEB_STOP"]  # health checks at DEBUG
    first = lines[1]
    assert (first["method"], first["path"], first["status"], first["request_id"]) == ("GET", "/openapi.json", 200, "r-1")
    assert first["by"] == "panel"
    assert token not in background.text()
    assert programs.run("web", "--host", "no.such.host.invalid").returncode == EXIT_CONFIGURATION


def test_lines_of_a_request_carry_its_id_whatever_thread_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    with log.bound(request_id="r-2"):
        log.Log().bind(host="h")(log.Event.DATABASE_BACK)
    log.Log()(log.Event.DATABASE_BACK, host="h")
    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert inside["request_id"] == "r-2"
    assert "request_id" not in outside
