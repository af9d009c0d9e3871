"""The lane `flex`: the cheaper tier is asked for, recorded and priced as such; what it has no room for is done online."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.worker_runs import APIS, Run, add_model, add_task, attempts_of, items_of, task_of

TEXTS = ["Ala ma kota, wogóle.", "Żółw idzie spowrotem."]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def _add(sql: Sql, fake: FakeProvider, api: str) -> int:
    options = {"chat": '{"flex": "on"}', "responses": '{"api": "responses", "flex": "on"}', "gemini": "{}"}
    return add_task(sql, add_model(sql, fake, api, api, options=options[api]), TEXTS, lane="flex", cache_seconds=0)


@pytest.mark.parametrize("api", APIS)
def test_flex_is_asked_for_recorded_and_costs_less(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    flex, online = _add(sql, fake, api), add_task(sql, add_model(sql, fake, api, "online"), TEXTS, cache_seconds=0)
    assert Run(database_url).summary.processed == 4
    assert {row["lane"] for row in attempts_of(sql, flex)} == {"flex"}
    assert {row["lane"] for row in attempts_of(sql, online)} == {"online"}
    assert task_of(sql, flex)["cost"] * 2 == task_of(sql, online)["cost"] > 0


@pytest.mark.parametrize("api", APIS)
def test_what_flex_has_no_room_for_is_done_online_at_once(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    id_task = _add(sql, fake, api)
    fake.script(Rule("flex_shed", contains="kota"))
    assert Run(database_url).summary.processed == 2
    lanes = {row["id_task_item"]: row["lane"] for row in attempts_of(sql, id_task)}
    items = items_of(sql, id_task)
    assert [lanes[item["id_task_item"]] for item in items] == ["online", "flex"]
    assert [item["attempt"] for item in items] == [1, 1], "nothing was charged for the tier's being full"
    assert items[0]["cost"] > items[1]["cost"] > Decimal(0)


def test_an_item_sent_alone_is_sent_online(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    id_task = _add(sql, fake, "chat")
    sql("UPDATE task_item SET is_single = 1 WHERE id_task = %s", [id_task])
    Run(database_url)
    assert {row["lane"] for row in attempts_of(sql, id_task)} == {"online"}
