"""What the dashboard looks through: searches, filters, counts, and where reviewing goes on; each bounded."""

from __future__ import annotations

import pytest

from ai_worker.db import Database
from ai_worker.errors import NotFound, UsageError
from ai_worker.models import ItemStatus, ReviewStatus, TaskStatus
from ai_worker.store import browsing
from ai_worker.store.browsed import ItemSearch, TaskSearch
from ai_worker.store.browsing import Browsing
from ai_worker.store.new_tasks import NewItem, NewTask
from ai_worker.store.reviews import Review, Reviews, Span
from ai_worker.store.tasks import Tasks
from tests.conftest import Sql
from tests.integration.worker_runs import add_model, add_task


@pytest.fixture
def id_ai_model(sql: Sql) -> int:
    return add_model(sql, None, "echo", "korektor")


@pytest.fixture
def task(sql: Sql, id_ai_model: int) -> int:
    """Twelve items: six processed, three of them with ever more changes; four failed, of two kinds; one deferred, one pending."""
    id_task = add_task(sql, id_ai_model, [f"Dzis {number}" for number in range(12)])
    items = [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item ORDER BY 1")]
    done = "UPDATE task_item SET attempt = 1, finished_at = NOW(6), status_id"
    sql(f"{done} = 1, text_corrected = 'Dziś' WHERE id_task_item < %s", [items[6]])
    sql("UPDATE task_item SET result = JSON_OBJECT('changes', JSON_OBJECT('ratio', 0.1 * (id_task_item - %s)))"
        " WHERE id_task_item < %s", [items[0], items[3]])  # fmt: skip
    sql(f"{done} = 3, error_kind = 'network', error_message = 'weg' WHERE id_task_item BETWEEN %s AND %s", [items[6], items[8]])
    sql(f"{done} = 3, error_kind = 'bad_answer' WHERE id_task_item = %s", [items[9]])
    sql("UPDATE task_item SET status_id = 4, available_at = NOW(6), error_kind = 'network' WHERE id_task_item = %s", [items[10]])
    sql("UPDATE task SET status_id = 1, started_at = NOW(6), records_processed = 6, records_failed = 4")
    return id_task


def keys(sql: Sql) -> list[int]:
    return [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item ORDER BY 1")]


def test_tasks_are_found(database: Database, sql: Sql, id_ai_model: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ("Żółw i ŻUREK", "Kot", "żurek domowy", "Pies")
    tasks = [add_task(sql, id_ai_model, [], description=text, queue="nocna" if text == "Kot" else "default") for text in texts]
    look = Browsing(database)

    def found(**search: object) -> list[int]:
        return [each.task.id_task for each in look.tasks(TaskSearch(**search)).tasks]  # type: ignore[arg-type]  # its fields

    assert found() == tasks[::-1]
    assert found(text="żurek") == [tasks[2], tasks[0]]
    assert found(text=str(tasks[1])) == [tasks[1]]
    assert found(queue="nocna") == [tasks[1]]
    assert found(model="korektor", status=TaskStatus.NEW, task_type="correction") == tasks[::-1]
    assert not found(model="inny")
    assert not found(status=TaskStatus.ERROR)
    assert look.choices() == (["correction"], ["default", "nocna"])
    page = look.tasks(TaskSearch(), size=3)
    assert (page.before, page.is_cut) == (tasks[1], False)
    assert [each.task.id_task for each in look.tasks(TaskSearch(), size=3, before=tasks[1]).tasks] == [tasks[0]]
    monkeypatch.setattr(browsing, "TASKS_SEARCHED", 2)
    page = look.tasks(TaskSearch(text="żurek"))
    assert ([each.task.id_task for each in page.tasks], page.before, page.is_cut) == ([tasks[2]], tasks[2], True)
    assert [each.task.id_task for each in look.tasks(TaskSearch(text="żurek"), before=tasks[2]).tasks] == [tasks[0]]
    assert found(text=str(tasks[0])) == [tasks[0]], "a number names its task however old that is"


def test_counts_end_somewhere_and_are_completed(database: Database, task: int, monkeypatch: pytest.MonkeyPatch, sql: Sql) -> None:
    look = Browsing(database)
    exact = look.task(task)
    assert exact.is_exact
    assert exact.task.items == look.counts(task) == {**dict.fromkeys(ItemStatus, 0), 1: 6, 3: 4, 4: 1, 0: 1}
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'a'), (%s, 'b')", [task, task])
    counts = look.counts(task)
    monkeypatch.setattr(browsing, "COUNTED_OF_ONE", 2)
    bounded = look.task(task)
    assert bounded.at_least == {ItemStatus.PENDING}
    assert bounded.task.items[ItemStatus.PENDING] == 2
    sql("UPDATE task SET records_processed = 7")  # one has been finished since they were counted
    completed = look.task(task).completed(counts)
    assert completed.is_exact
    assert completed.task.items == {**counts, ItemStatus.PROCESSED: 7, ItemStatus.PENDING: 2}
    with pytest.raises(NotFound):
        look.task(task + 1000)


def test_errors_are_grouped_and_retried_by_kind(database: Database, task: int, sql: Sql) -> None:
    look, tasks = Browsing(database), Tasks(database)
    items = keys(sql)
    errors = [(each.status.name, each.kind, each.items, each.id_task_item, each.message) for each in look.task(task).task.errors]
    assert errors == [
        ("ERROR", "network", 3, items[6], "weg"),
        ("ERROR", "bad_answer", 1, items[9], ""),
        ("DEFERRED", "network", 1, items[10], ""),
    ]
    assert tasks.retry(task, kind="nothing of the kind") == 0
    assert tasks.retry(task, kind="network") == 3
    left = [(each.status.name, each.kind) for each in look.task(task).task.errors]
    assert left == [("ERROR", "bad_answer"), ("DEFERRED", "network")]
    assert look.task(task).task.records_failed == 1


def test_items_are_filtered(database: Database, task: int, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Browsing(database)
    items = keys(sql)

    def found(size: int = 50, after: int = 0, **search: object) -> tuple[list[int], int | None, bool]:
        page = look.items(task, ItemSearch(**search), size, after)  # type: ignore[arg-type]  # its fields
        return [each.id_task_item for each in page.items], page.after, page.is_cut

    assert found() == (items, None, False)
    assert found(size=5) == (items[:5], items[4], False)
    assert found(size=5, after=items[6]) == (items[7:], None, False)
    assert found(status=ItemStatus.PROCESSED, size=4) == (items[:4], items[3], False)
    assert found(status=ItemStatus.PROCESSED, size=4, after=items[3]) == (items[4:6], None, False)
    assert found(kind="network") == (items[6:9], None, False)
    assert found(kind="network", status=ItemStatus.DEFERRED) == ([items[10]], None, False)
    Reviews(database).review([Span(items[1], items[2])], Review(ReviewStatus.REJECTED, "ala"), id_task=task)
    assert found(review=ReviewStatus.REJECTED) == (items[1:3], None, False)
    assert found(review=ReviewStatus.UNREVIEWED, size=2) == ([items[0], items[3]], items[3], False)
    line = look.items(task, ItemSearch(review=ReviewStatus.REJECTED)).items[1]
    assert (line.ratio, line.reviewed_by, line.text_original, line.text_corrected) == (0.2, "ala", "Dzis 2", "Dziś")
    monkeypatch.setattr(browsing, "ITEMS_SEARCHED", 2)
    assert found(kind="bad_answer") == ([], items[7], True)
    assert found(kind="bad_answer", after=items[7]) == ([items[9]], items[9], True)
    assert found(kind="bad_answer", after=items[9]) == ([], None, False)


def test_the_most_edited_come_first(database: Database, task: int, sql: Sql) -> None:
    items = keys(sql)
    page = Browsing(database).riskiest(task, size=3)
    assert [(each.id_task_item, each.ratio) for each in page.items] == [(items[2], 0.2), (items[1], 0.1), (items[0], 0.0)]
    assert page.after is None


def test_reviewing_goes_on_where_it_was_left_off(
    database: Database, task: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, reviews = Browsing(database), Reviews(database)
    items = keys(sql)
    assert look.left_off(task) == 0
    assert look.next_to_review(task, 0) == (items[0], None)
    reviews.review([Span(items[0], items[0])], Review(ReviewStatus.ACCEPTED, "ala"), id_task=task)
    reviews.review([Span(items[2], items[3])], Review(ReviewStatus.REJECTED, "ala"), id_task=task)
    assert look.left_off(task) == items[3]
    assert look.next_to_review(task, items[0]) == (items[1], None)
    assert look.next_to_review(task, items[1]) == (items[4], None)
    assert look.previous_to_review(task, items[4]) == items[1]
    assert look.previous_to_review(task, items[1]) is None
    monkeypatch.setattr(browsing, "ITEMS_SEARCHED", 1)
    assert look.next_to_review(task, items[1]) == (None, items[2])
    assert look.next_to_review(task, items[5]) == (None, None)


def test_an_item_has_its_history(database: Database, task: int, sql: Sql, id_ai_model: int) -> None:
    items = keys(sql)
    columns = "operation_uuid, id_task, id_task_item, attempt, id_ai_model, outcome, error_kind, latency_ms, cost"
    for number, outcome, kind in ((1, "retry", "network"), (2, "processed", None)):
        values = [bytes([number] * 16), task, items[0], number, id_ai_model, outcome, kind, 10, "0.1"]
        sql(f"INSERT INTO task_attempt ({columns}) VALUES ({', '.join(['%s'] * 9)})", values)
    long = "ą" * (browsing.SHOWN_CHARACTERS + 1)
    said = Review(ReviewStatus.ACCEPTED, "ala", long, "ton")
    Reviews(database).review([Span(items[0], items[0])], said, id_task=task)
    item = Browsing(database).item(items[0])
    assert [(each.attempt, each.outcome, each.model) for each in item.attempts] == [
        (1, "retry", "korektor"),
        (2, "processed", "korektor"),
    ]
    assert [(each.review.name, each.by, each.note) for each in item.reviews] == [("ACCEPTED", "ala", "ton")]
    assert (item.status, item.task_type, item.is_whole) == (ItemStatus.PROCESSED, "correction", False)
    assert (len(item.text_reviewed or ""), item.reviewed_length) == (browsing.SHOWN_CHARACTERS, len(long))
    assert Browsing(database).item(items[1]).is_whole
    with pytest.raises(NotFound):
        Browsing(database).item(items[-1] + 1000)


def test_a_held_task_waits_for_a_person(database: Database, id_ai_model: int) -> None:
    tasks, look = Tasks(database), Browsing(database)
    new = NewTask(id_ai_model, "correction", parameters={"language": "pl"}, held="czeka na słowo")
    id_task = tasks.submit(new, lambda: (NewItem(f"Dzis {number}") for number in range(40))).id_task
    held = look.task(id_task).task
    assert (held.status, held.status_reason) == (TaskStatus.PAUSED, "czeka na słowo")
    sample = look.sample(id_task, size=20)
    assert len(sample) == 20
    assert [each[0] for each in sample] == sorted({each[0] for each in sample})
    assert {sample[0][1], sample[-1][1]} <= {f"Dzis {number}" for number in range(40)}
    assert len(look.sample(id_task, size=1000)) == 40
    assert look.words(id_task).parameters == {"language": "pl"}
    assert tasks.resume(id_task).after is TaskStatus.NEW
    with pytest.raises(UsageError, match="no task"):
        look.words(id_task + 1000)
