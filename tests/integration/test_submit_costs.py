"""`submit` and money: fallbacks, budgets, lanes, packs, answers from before; and what it would cost, before anything is made."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, sql: Sql) -> Commands:
    """Commands on a database with two models that have prices, one that has none, and one that takes no batches."""
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    for name, price in (("first", 10), ("second", 20), ("unpriced", None)):
        sql(
            "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output)"
            " VALUES (%s, 'openai', 'm', %s, %s, %s)",
            [name, URL, price, price],
        )
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return Commands(monkeypatch, capsys)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "zdania.txt"
    lines = [f"To jest zdanie numer {number}, wogóle krótkie." for number in range(30)]
    path.write_text("\n".join([*lines, *lines[:10]]), encoding="utf-8")
    return str(path)


def test_every_option_about_money_arrives(ai_worker: Commands, texts: str, sql: Sql) -> None:
    options = ("--fallback", "second", "--budget", "1.25", "--lane", "flex", "--pack", "10", "--cache-age", "12h")
    ended = ai_worker("submit", texts, "--model", "first", *options)
    assert ended.code == 0, ended.err
    (task,) = sql("SELECT * FROM task")
    assert (task["lane"], task["pack"], task["cache_seconds"], task["budget"]) == ("flex", 10, 43_200, Decimal("1.25"))
    chain = sql("SELECT f.position, m.name FROM task_fallback f JOIN ai_model m USING (id_ai_model)")
    assert [(row["position"], row["name"]) for row in chain] == [(1, "second")]


def test_without_them_a_task_is_online_alone_and_takes_answers_of_a_month(ai_worker: Commands, texts: str, sql: Sql) -> None:
    ai_worker("submit", texts, "--model", "first")
    (task,) = sql("SELECT * FROM task")
    assert (task["lane"], task["pack"], task["cache_seconds"], task["budget"]) == ("online", 1, 30 * 86_400, None)
    assert sql("SELECT * FROM task_fallback") == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--fallback", "first"], "--fallback 'first': that model stands before it already"),
        (["--fallback", "nosuch"], "unknown model 'nosuch'"),
        (["--fallback", "unpriced", "--budget", "1"], "the price of model 'unpriced' is not known"),
        (["--budget", "0"], "'0' is not an amount above zero"),
        (["--budget", "NaN"], "'NaN' is not an amount above zero"),
        (["--budget", "sNaN"], "'sNaN' is not an amount above zero"),
        (["--budget", "0.0000000001"], "'0.0000000001' is less than the smallest amount that is kept, 0.000000001"),
        (["--fallback", "echo", "--lane", "batch"], "the provider 'echo' of model 'echo' takes no batches"),
        (["--pack", "101"], "101 is not in the range 1<=x<=100"),
        (["--cache-age", "30 days"], "--cache-age '30 days' is not a length of time"),
        (["--cache-age", "99999d"], "--cache-age '99999d' is not a length of time"),
        (["--cache-age", "30"], "--cache-age '30' is not a length of time"),
        (["--cache-age", "-1d"], "--cache-age '-1d' is not a length of time"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_makes_no_task(
    ai_worker: Commands, texts: str, sql: Sql, options: list[str], complaint: str
) -> None:
    ended = ai_worker("submit", texts, "--model", "first", *options)
    assert ended.code == 2
    assert complaint in ended.err
    assert sql("SELECT * FROM task") == []


def estimate(ai_worker: Commands, texts: str, *options: str) -> dict[str, object]:
    ended = ai_worker("submit", texts, "--model", "first", "--estimate", "--json", *options)
    assert ended.code == 0, ended.err
    (line,) = ended.out.splitlines()
    found: dict[str, object] = json.loads(line)
    return found


def test_an_estimate_tells_tokens_and_cost_and_makes_nothing(ai_worker: Commands, texts: str, sql: Sql) -> None:
    told = estimate(ai_worker, texts)
    assert (told["items"], told["twins"], told["calls"]) == (40, 10, 30)
    tokens = int(str(told["tokens_input"])) + int(str(told["tokens_output"]))
    assert Decimal(str(told["cost"])) == Decimal(tokens) * 10 / 1_000_000 > 0
    assert sql("SELECT * FROM task") == sql("SELECT * FROM task_item") == []


def test_an_estimate_knows_what_saves_money(ai_worker: Commands, texts: str) -> None:
    plain = estimate(ai_worker, texts)
    anew = estimate(ai_worker, texts, "--cache-age", "0")
    packed = estimate(ai_worker, texts, "--pack", "10")
    assert (anew["calls"], anew["twins"], packed["calls"]) == (40, 0, 3)
    assert int(str(anew["tokens_input"])) > int(str(plain["tokens_input"])) > 2 * int(str(packed["tokens_input"]))


def test_an_estimate_of_a_batch_counts_every_item_at_half_price(ai_worker: Commands, texts: str) -> None:
    """A batch neither packs nor asks the cache: an estimate that did would promise a fraction of the bill."""
    anew = estimate(ai_worker, texts, "--cache-age", "0")
    batch = estimate(ai_worker, texts, "--lane", "batch", "--pack", "10")
    assert (batch["calls"], batch["twins"], batch["tokens_input"]) == (40, 0, anew["tokens_input"])
    assert Decimal(str(batch["cost"])) == Decimal(str(anew["cost"])) / 2
    assert "batches do not pack" in ai_worker("submit", texts, "--model", "first", "--lane", "batch", "--pack", "10").err


def test_a_dry_run_shows_prompts_and_a_budget_too_small(ai_worker: Commands, texts: str, sql: Sql) -> None:
    ended = ai_worker("submit", texts, "--model", "first", "--dry-run", "--pack", "10", "--budget", "0.0001")
    assert ended.code == 0, ended.err
    assert "--- row 1, model first" in ended.out
    assert "To jest zdanie numer 0, wogóle krótkie." in ended.out
    assert "10 of the items are the same work as others" in ended.out
    assert "dry run: 40 items in 3 calls, about " in ended.out
    assert "more than the budget of $0.0001000" in ended.err
    assert sql("SELECT * FROM task") == []


def test_a_file_that_cannot_be_used_is_refused_by_an_estimate_too(ai_worker: Commands, tmp_path: Path) -> None:
    path = tmp_path / "zły.txt"
    path.write_bytes(b"dobry\nz\xc5\n")
    ended = ai_worker("submit", str(path), "--model", "first", "--estimate")
    assert ended.code == 2
    assert "Traceback" not in ended.everything
