"""The API keeps to its own description, whatever it is sent: schemathesis over the OpenAPI document, on one server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ai_worker.store.tokens import Scope
from ai_worker.web.options import WebOptions
from tests.conftest import Sql
from tests.integration.webs import Web, serving
from tests.servers import TestServer

EXAMPLES = 12  # of each operation


@pytest.fixture
def web(server: TestServer, database_url: str, sql: Sql) -> Iterator[Web]:
    if server.name != "mariadb":
        pytest.skip("what is answered does not depend on the server")
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    with serving(database_url, WebOptions(runs=0)) as web:
        client = web.client(Scope.RUN)
        client.post("/task", json={"items": ["a", "b"]})
        yield web


def test_answers_are_as_described(web: Web) -> None:
    client = web.client(Scope.ADMIN)
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    token = client.headers["authorization"]
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @seed(7)
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def try_out(case: schemathesis.Case) -> None:
            if case.path == "/task-item/{id_task_item}" and "wait" in (case.query or {}):
                case.query["wait"] = 0
            answer = case.call(base_url=web.base, headers={"Authorization": token})
            if answer.status_code == 503 and case.path == "/task/run":
                return  # no runs here
            case.validate_response(answer, checks=checks)

        try_out()
        tried += 1
    assert tried >= 18


@pytest.mark.parametrize("token", ["", "aiw_" + "x" * 43], ids=["none", "wrong"])
def test_nothing_is_answered_without_a_right_token(web: Web, token: str) -> None:
    document = web.client(Scope.READ).get("/openapi.json").json()
    with httpx2.Client(base_url=web.base, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=20) as stranger:
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                answer = stranger.request(method, path.replace("{", "").replace("}", ""))
                assert (answer.status_code in {401, 429}) == bool(operation.get("security")), (method, path, answer.status_code)
