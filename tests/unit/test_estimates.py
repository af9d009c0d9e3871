"""What an item will cost, told before it is sent."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal

import pytest

from ai_worker import prices
from ai_worker.models import Item, Lane, Model, Outcome, Result, Task, TaskStatus, Usage
from ai_worker.prices import MARGIN
from ai_worker.store.steps import Place
from ai_worker.task_types import task_type, task_type_of
from ai_worker.task_types.builtin import Summary
from ai_worker.task_types.foreseen import foreseen
from ai_worker.task_types.prompt_file import PromptFile
from ai_worker.text import estimate_tokens
from ai_worker.text_parts import parts_of
from ai_worker.worker import estimates as estimates_module
from ai_worker.worker.estimates import Estimates
from ai_worker.worker.steps import digests_of, work_of
from tests.unit.test_prompt_steps import STEPS

MODEL = Model(1, "m", "openai", "fake", "http://127.0.0.1:1/v1", price_input=Decimal(1), price_output=Decimal(2))
UNPRICED = Model(2, "n", "openai", "fake", "http://127.0.0.1:1/v1")
MODEL_PRICE = Decimal("1e-6")  # USD for a token in
TEXT = "Zażółć gęślą jaźń. " * 10


def item(text: str = TEXT, id_task: int = 1, model: int = 1, lane: Lane = Lane.ONLINE, is_single: bool = False) -> Item:
    task = Task(id_task, model, "correction", "", {}, 3, 0, TaskStatus.NEW, lane=lane, budget=Decimal(1), chain=(model,))
    return Item(7, task, text, {}, 1, 0, b"x" * 16, "", is_single=is_single)


def done(of: Item, cost: Decimal | None, lane: Lane = Lane.ONLINE) -> Outcome:
    return Outcome.processed(of, Result(None, None, {}), Usage(1, 1), cost, 1)._replace(lane=lane)


@pytest.fixture
def estimates() -> Estimates:
    estimates = Estimates(lambda: [MODEL, UNPRICED], lambda task: task_type(task.task_type))
    estimates.prepare([1, 2])
    return estimates


def known(estimate: Decimal | None) -> Decimal:
    assert estimate is not None
    return estimate


def test_longer_texts_cost_more(estimates: Estimates) -> None:
    assert 0 < known(estimates(item("Krótko."))) < known(estimates(item())) < known(estimates(item(TEXT * 5)))


def test_a_picture_is_estimated_at_the_price_of_pictures() -> None:
    listed = Model(1, "m", "gemini", "gemini-2.5-flash-image")  # 2.5 USD per million tokens of words, 30 of pictures
    estimates = Estimates(lambda: [listed], lambda task: task_type(task.task_type))
    estimates.prepare([1])
    task = Task(1, 1, "image", "", {}, 3, 0, TaskStatus.NEW, budget=Decimal(1), chain=(1,))
    assert known(estimates(item()._replace(task=task))) > 1290 * Decimal(30) / 10**6


def test_a_long_text_is_estimated_part_by_part(estimates: Estimates) -> None:
    """All of it, and the fixed part of the prompt as often as it is sent."""
    short, long = item(TEXT * 10), item(TEXT * 1000)
    kind = task_type("correction")
    parts = parts_of(long.text_original, 3000)
    fixed = MARGIN * estimate_tokens(kind.prompt(short).system) * MODEL_PRICE
    apart = known(estimates(short)) - fixed
    assert 95 * apart < known(estimates(long)) - len(parts) * fixed < 110 * apart


def test_all_steps_are_estimated_each_at_its_models_price() -> None:
    dear = Model(3, "dear", "openai", "fake", "http://127.0.0.1:1/v1", price_input=Decimal(100), price_output=Decimal(100))
    step = """[[steps]]\nname = "NAME"\nMODELanswer_field = "summary"\n[steps.schema]\ntype = "object"
additionalProperties = false\nrequired = ["summary"]\nproperties = { summary = { type = "string" } }\n"""
    part = "# Step NAME\n## System\nDo it.\n## User\n{{ marker }}\n{{ text }}\n{{ marker }}\n"

    def estimate(*models: str) -> Decimal:
        names = [f"s{number}" for number in range(len(models))]
        tables = [step.replace("NAME", name).replace("MODEL", model) for name, model in zip(names, models, strict=True)]
        parts = [part.replace("NAME", name) for name in names]
        file = PromptFile.parse("x", "".join(["+++\nversion = 1\n", *tables, "+++\n", *parts]), "x.md")
        estimates = Estimates(lambda: [MODEL, dear], lambda _: Summary(file))
        estimates.prepare([1])
        return known(estimates(item()))

    one = estimate("")
    assert 3 * one < estimate("", "", "") < 5 * one
    assert estimate("", 'model = "dear"\n') > 30 * one


def test_an_unknown_price_is_unknown_and_not_nothing(estimates: Estimates) -> None:
    assert estimates(item(model=2)) is None
    assert estimates(item(model=3)) is None


def test_what_items_really_cost_corrects_the_next_ones_of_their_task(estimates: Estimates) -> None:
    first = known(estimates(item()))
    raw = first / MARGIN
    estimates.learn(done(item(), raw * 3))
    assert known(estimates(item())) == pytest.approx(raw * 3 * MARGIN)
    estimates.learn(done(item(), raw / 2))
    assert known(estimates(item())) == pytest.approx(raw * 3 * MARGIN)  # never below what has been seen lately
    assert estimates(item(id_task=2)) == first
    for _ in range(estimates_module.LATEST):
        estimates.learn(done(item(), raw / 2))
    assert known(estimates(item())) == pytest.approx(raw / 2 * MARGIN)
    assert known(estimates(item("Krótko."))) == pytest.approx(raw / 2 * MARGIN)  # nor below what the dearest one has cost


def test_few_items_that_cost_less_prove_nothing(estimates: Estimates) -> None:
    first = known(estimates(item()))
    for _ in range(estimates_module.FEW - 1):
        estimates.learn(done(item(), first / 10))
    assert estimates(item()) == first
    estimates.learn(done(item(), first / 10))
    assert known(estimates(item())) < first / 5


def test_what_is_left_of_a_long_text_is_no_measure_of_it(estimates: Estimates) -> None:
    """Its parts are paid for when they are stored; a failed attempt brings the cost of the one that failed."""
    long = item(TEXT * 1000)
    before = known(estimates(long))
    for _ in range(estimates_module.LATEST):
        estimates.learn(Outcome.failed(long, "bad_answer", "", Usage(1, 1), before / 100, 1))
    assert estimates(long) == before


@pytest.mark.parametrize("outcome", [done(item(), None), done(item(), Decimal(0)), done(item(), Decimal(5), Lane.CACHE)])
def test_what_was_not_sent_or_has_no_price_teaches_nothing(estimates: Estimates, outcome: Outcome) -> None:
    before = estimates(item())
    estimates.learn(outcome)
    assert estimates(item()) == before


def test_lanes(estimates: Estimates) -> None:
    online = known(estimates(item()))
    assert known(estimates(item(lane=Lane.BATCH))) < online
    assert estimates(item(lane=Lane.BATCH, is_single=True)) == online
    assert estimates(item(lane=Lane.FLEX)) == online  # it may be shed


def test_prices_are_read_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [UNPRICED]
    estimates = Estimates(lambda: models, lambda task: task_type(task.task_type))
    estimates.prepare([2])
    assert estimates(item(model=2)) is None
    models[:] = [Model(2, "n", "openai", "fake", "http://127.0.0.1:1/v1", price_input=Decimal(1), price_output=Decimal(2))]
    estimates.prepare([2])
    assert estimates(item(model=2)) is None
    monkeypatch.setattr(estimates_module, "FRESH_SECONDS", 0.0)
    estimates.prepare([2])
    assert estimates(item(model=2)) is not None


def test_all_steps_count_each_with_what_those_before_have_said() -> None:
    kind = task_type_of(PromptFile.parse("minutes", STEPS, "minutes.md"))
    estimates = Estimates(lambda: [MODEL], lambda _: kind)
    estimates.prepare([1])
    whole = estimates(item())
    first, second = (prompt for _, prompt in foreseen(kind, item()))
    asked = [estimate_tokens(each.system) + estimate_tokens(each.user) for each in (first, second)]
    said = first.tokens_output_expected
    usage = Usage(sum(asked) + said, said + second.tokens_output_expected)
    assert whole == (MARGIN * (prices.cost(MODEL, usage, Lane.ONLINE) or 0)).quantize(Decimal("1e-9"), ROUND_UP)


def test_what_is_stored_of_an_item_costs_nothing_more() -> None:
    kind = task_type_of(PromptFile.parse("minutes", STEPS, "minutes.md"))
    estimates = Estimates(lambda: [MODEL], lambda _: kind)
    estimates.prepare([1])
    work = work_of(kind, item(), MODEL)
    assert work is not None
    digests = digests_of(work, item())
    of_another_prompt = {Place(1): b"x" * 32}
    whole, rest = known(estimates(item())), known(estimates(item(), lambda _: {Place(1): digests[Place(1)]}))
    assert known(estimates(item(), lambda _: of_another_prompt)) == whole
    first, second = (prompt for _, prompt in foreseen(kind, item()))
    alone = prices.expected(MODEL, second, more_input=first.tokens_output_expected)
    assert rest == prices.with_margin(known(alone)) < whole
    assert estimates(item(), lambda _: digests) == 0


def test_stored_parts_of_a_long_text_cost_nothing_more(estimates: Estimates) -> None:
    long = item(TEXT * 1000)
    work = work_of(task_type("correction"), long, MODEL)
    assert work is not None
    digests = digests_of(work, long)
    missing = dict(list(digests.items())[1:])
    assert known(estimates(long, lambda _: missing)) * len(digests) == pytest.approx(known(estimates(long)))


def test_an_item_of_one_call_is_not_asked_about(estimates: Estimates) -> None:
    def stored(_: Item) -> dict[tuple[int, int], bytes]:
        raise AssertionError("a statement for nothing")

    assert known(estimates(item(), stored)) > 0
