"""`export`: accepted results go back once each; what was changed meanwhile is left alone and named."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ai_worker.db import Database, Transaction
from ai_worker.store import exports
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.source_tables import Shop, accepted, imported, shop
from tests.servers import Programs, TestServer


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, sql: Sql) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return Commands(monkeypatch, capsys)


@pytest.fixture
def other(server: TestServer) -> Iterator[Shop]:
    with shop(server) as found:
        yield found


def counted(other: Shop) -> None:
    """From here on the table counts the UPDATEs of each row."""
    other.sql("CREATE TABLE updates (id INT PRIMARY KEY, times INT NOT NULL)")
    other.sql(
        "CREATE TRIGGER count_updates AFTER UPDATE ON articles FOR EACH ROW "
        "INSERT INTO updates VALUES (NEW.id, 1) ON DUPLICATE KEY UPDATE times = times + 1"
    )


def updates(other: Shop) -> dict[int, int]:
    return {row["id"]: row["times"] for row in other.sql("SELECT id, times FROM updates ORDER BY id")}


def audit(sql: Sql) -> list[tuple[str, str]]:
    rows = sql(
        "SELECT i.external_key AS k, e.outcome FROM task_item_export e JOIN task_item i USING (id_task_item) "
        "ORDER BY e.id_task_item_export"
    )
    return [(row["k"], row["outcome"]) for row in rows]


def test_each_outcome(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    table = other.articles("Dziś", "zmienione", "usunięte", "takie samo", "za długie", "odrzucone", "edytowane", "ół")
    other.sql("ALTER TABLE articles MODIFY body VARCHAR(12) CHARACTER SET latin2, ADD changed_at TIMESTAMP NULL ON UPDATE NOW()")
    task = imported(ai_worker, table)
    accepted(ai_worker, sql, task)
    counted(other)
    items = {row["external_key"]: row["id_task_item"] for row in sql("SELECT external_key, id_task_item FROM task_item")}
    other.sql("UPDATE articles SET body = 'ktoś inny' WHERE id = 2")
    other.sql("DELETE FROM articles WHERE id = 3")
    sql("UPDATE task_item SET text_corrected = text_original WHERE external_key = '4'")
    sql("UPDATE task_item SET text_corrected = REPEAT('długo', 3) WHERE external_key = '5'")
    ai_worker("review", str(task), str(items["6"]), "reject", "--by", "a")
    ai_worker("review", str(task), str(items["7"]), "accept", "--text", "moje ł", "--by", "a")
    ai_worker("review", str(task), str(items["8"]), "accept", "--text", "w latin2 nie ma 🙂", "--by", "a")
    before = other.bodies()

    told = ai_worker("export", str(task), "--dry-run", "--json")
    assert (told.code, other.bodies(), audit(sql)) == (3, before, [])
    foretold = {name: told.json[name] for name in ("written", "unchanged", "conflict", "missing", "failed", "before")}
    assert foretold == {"written": 4, "unchanged": 1, "conflict": 1, "missing": 1, "failed": 0, "before": 0}

    ended = ai_worker("export", str(task), "--by", "Łukasz")
    assert ended.code == 3
    after = {1: "Dziś!", 2: "ktoś inny", 4: "takie samo", 5: "za długie", 6: "odrzucone", 7: "moje ł", 8: "ół"}
    assert other.bodies() == after
    assert f"conflict  item {items['2']}, key 2: the row was changed meanwhile, and left alone\n" in ended.out
    assert f"missing   item {items['3']}, key 3: the row is gone\n" in ended.out
    assert f"failed    item {items['5']}, key 5: the row was refused: Data too long for column 'body'" in ended.out
    assert f"failed    item {items['8']}, key 8: the row was refused: " in ended.out
    assert ended.out.endswith(f"task {task}: 2 written, 1 unchanged, 1 conflict, 1 missing, 2 failed\n")
    assert audit(sql) == [
        *(("1", "written"), ("2", "conflict"), ("3", "missing"), ("4", "unchanged"), ("5", "failed"), ("7", "written")),
        ("8", "failed"),
    ]
    assert [row["id"] for row in other.sql("SELECT id FROM articles WHERE changed_at IS NOT NULL ORDER BY id")] == [1, 2, 7]
    (first,) = sql("SELECT hash_before, hash_after, exported_by FROM task_item_export ORDER BY id_task_item_export LIMIT 1")
    assert list(first.values()) == [sha256("Dziś".encode()).digest(), sha256("Dziś!".encode()).digest(), "Łukasz"]

    again = ai_worker("export", str(task), "--json")
    assert (again.code, again.json["before"], again.json["written"], again.json["conflict"]) == (3, 3, 0, 1)
    assert [problem["external_key"] for problem in again.json["problems"]] == ["2", "3", "5", "8"]
    assert len(audit(sql)) == 7  # the same is not told twice
    assert updates(other) == {1: 1, 2: 1, 7: 1}
    assert other.bodies() == after


def test_results_whose_time_is_over(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    """They are named, not passed over, unless they were written before; and nobody accepts what is not there."""
    task = imported(ai_worker, other.articles("a", "b", "c", "d"))
    accepted(ai_worker, sql, task)
    items = [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item ORDER BY 1")]
    for item in items[1:]:
        ai_worker("review", str(task), str(item), "reset")
    assert ai_worker("export", str(task)).code == 0
    ai_worker("review", str(task), str(items[1]), "accept", "--by", "a")
    ai_worker("review", str(task), str(items[2]), "accept", "--text", "C", "--by", "a")
    sql("UPDATE task_item SET text_corrected = NULL, result = NULL")
    for which in ("all", str(items[3])):
        ended = ai_worker("review", str(task), which, "accept")
        assert ended.code == 2
        assert f"item {items[3]} has no result any more: its time to live is over" in ended.err
    ended = ai_worker("export", str(task))
    assert ended.code == 3
    assert f"expired   item {items[1]}, key 2: the result was not kept until now\n" in ended.out
    assert ended.out.endswith(f"task {task}: 1 written, 1 expired, 1 done before\n")
    assert other.bodies() == {1: "a!", 2: "b", 3: "C", 4: "d"}
    assert ai_worker("review", str(task), str(items[3]), "accept", "--text", "D").code == 0


def test_reviewed_anew_after_an_export(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    """What was written last takes the place of the original; a change by anyone else is a conflict still."""
    task = imported(ai_worker, other.articles("a", "b", "c"))
    accepted(ai_worker, sql, task)
    assert ai_worker("export", str(task)).code == 0
    items = [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item ORDER BY 1")]
    other.sql("UPDATE articles SET body = 'zmienione' WHERE id = 2")
    assert ai_worker("export", str(task)).code == 0  # that it was edited after we had written it is nobody's conflict
    for item, text in zip(items, ("A", "B", "c"), strict=True):
        ai_worker("review", str(task), str(item), "accept", "--text", text, "--by", "a")
    ended = ai_worker("export", str(task), "--json")
    assert (ended.code, ended.json["written"], ended.json["conflict"]) == (3, 2, 1)
    assert other.bodies() == {1: "A", 2: "zmienione", 3: "c"}
    ai_worker("review", str(task), str(items[0]), "accept", "--by", "a")
    assert ai_worker("export", str(task), "--json").json["written"] == 1
    assert other.bodies()[1] == "a!"


def test_a_trigger_of_the_source_may_refuse_rows(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    task = imported(ai_worker, other.articles("a", "b", "c"))
    accepted(ai_worker, sql, task)
    other.sql(
        "CREATE TRIGGER refuse BEFORE UPDATE ON articles FOR EACH ROW BEGIN IF NEW.id = 2 THEN "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'nie wolno', MYSQL_ERRNO = 31001; END IF; END"
    )
    ended = ai_worker("export", str(task))
    assert (ended.code, other.bodies()) == (3, {1: "a!", 2: "b", 3: "c!"})
    assert "key 2: the row was refused: nie wolno" in ended.out
    assert sql("SELECT message FROM task_item_export WHERE outcome = 'failed'") == [{"message": "nie wolno"}]
    other.sql("DROP TRIGGER refuse")
    assert ai_worker("export", str(task)).code == 0
    assert other.bodies()[2] == "b!"


class _KilledError(Exception):
    pass


def test_cut_short_between_the_source_and_the_audit(
    ai_worker: Commands, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are written, and nobody has said so: the next run finds it out and says it, without writing again."""
    task = imported(ai_worker, other.articles(*"abcd"))
    accepted(ai_worker, sql, task)
    counted(other)

    def killed(*_: Any) -> None:
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(exports, "_record", killed)
        with pytest.raises(_KilledError):
            ai_worker("export", str(task), "--batch", "2")
    assert (updates(other), audit(sql)) == ({1: 1, 2: 1}, [])
    other.sql("UPDATE articles SET body = 'inny' WHERE id = 3")
    ended = ai_worker("export", str(task), "--json")
    assert (ended.code, ended.json["written"], ended.json["conflict"]) == (3, 3, 1)
    assert updates(other) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert audit(sql) == [("1", "written"), ("2", "written"), ("3", "conflict"), ("4", "written")]


def test_a_lost_answer_to_the_audits_commit_tells_nothing_twice(
    database: Database, ai_worker: Commands, sql: Sql, other: Shop
) -> None:
    task = imported(ai_worker, other.articles("a"))
    accepted(ai_worker, sql, task)
    assert ai_worker("export", str(task)).code == 0
    row = sql("SELECT id_task_item, hash_before, hash_after FROM task_item_export")[0]
    change = exports.Change("1", "a!", row["hash_before"], row["hash_after"])
    entry = exports._Entry(row["id_task_item"], "1", change, exports.ExportOutcome.WRITTEN)

    def repeated(tx: Transaction) -> None:
        exports._record(task, "x", [entry], tx)

    database.transaction(repeated)
    assert audit(sql) == [("1", "written")]


@pytest.mark.parametrize(("rows", "changed"), [(600, 20), pytest.param(10_000, 100, marks=pytest.mark.slow)], ids=["few", "many"])
def test_killed_twice_each_row_is_written_once(
    ai_worker: Commands, programs: Programs, sql: Sql, other: Shop, rows: int, changed: int
) -> None:
    table = other.articles()
    other.sql(
        "INSERT INTO articles WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 1000) "
        "SELECT (a.id - 1) * 1000 + b.id, CONCAT('Zażółć gęślą jaźń ', b.id) FROM n AS a JOIN n AS b "
        "WHERE (a.id - 1) * 1000 + b.id <= %s AND a.id <= 10",
        [rows],
    )
    task = imported(ai_worker, table)
    accepted(ai_worker, sql, task)
    other.sql("UPDATE articles SET body = CONCAT(body, ' (zmienione)') WHERE id %% %s = 0", [rows // changed])
    counted(other)
    arguments = ("export", str(task), "--batch", "20", "--json")
    for share in (3, 2):
        running = programs.start(*arguments)
        while other.sql("SELECT COUNT(*) AS n FROM updates")[0]["n"] < rows // share:
            assert running.process.poll() is None, running.text()
        os.kill(running.process.pid, signal.SIGKILL)
        running.wait()
    ended = programs.run(*arguments)
    assert ended.returncode == 3, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["conflict"], told["written"] + told["before"], told["missing"], told["failed"]) == (
        changed,
        rows - changed,
        0,
        0,
    )
    assert {problem["external_key"] for problem in told["problems"]} == {
        str(number) for number in range(rows // changed, rows + 1, rows // changed)
    }
    assert updates(other) == {number: 1 for number in range(1, rows + 1) if number % (rows // changed)}
    assert sql(
        "SELECT outcome, COUNT(*) AS n, COUNT(DISTINCT id_task_item) AS items FROM task_item_export GROUP BY 1 ORDER BY 1"
    ) == [
        {"outcome": "conflict", "n": changed, "items": changed},
        {"outcome": "written", "n": rows - changed, "items": rows - changed},
    ]
    ended = programs.run(*arguments)
    assert json.loads(ended.stdout)["written"] == 0


def test_rights(ai_worker: Commands, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """SELECT and the UPDATE of one column are enough; without it, the right is named and nothing is recorded."""
    other.articles("a", "b")
    with other.user(f"writer_{other.name[-9:]}", "SELECT, UPDATE (body)") as url:
        task = imported(ai_worker, "articles", "--url", url)
        accepted(ai_worker, sql, task)
        with other.user(f"reader_{other.name[-9:]}", "SELECT") as reader:
            assert ai_worker("export", str(task), "--url", reader, "--dry-run").code == 0
            ended = ai_worker("export", str(task), "--url", reader)
        assert (ended.code, audit(sql), other.bodies()) == (78, [], {1: "a", 2: "b"})
        assert f"GRANT UPDATE (body) ON {other.name}.articles TO reader_" in ended.err
        ended = ai_worker("export", str(task))  # the URL is kept without its password
        assert (ended.code, "check task_source.url" in ended.err) == (78, True)
        monkeypatch.setenv("AI_WORKER_SOURCE_URL", url.replace("127.0.0.1", "127.0.0.2"))
        ended = ai_worker("export", str(task))
        assert (ended.code, "give --url to write there all the same" in ended.err) == (2, True)
        monkeypatch.setenv("AI_WORKER_SOURCE_URL", url)
        assert ai_worker("export", str(task)).code == 0
        assert other.bodies() == {1: "a!", 2: "b!"}


def test_what_cannot_be_exported(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    assert "no task 999999" in ai_worker("export", "999999").err
    sql("INSERT INTO task (id_ai_model) SELECT id_ai_model FROM ai_model")
    ended = ai_worker("export", str(sql("SELECT id_task FROM task")[0]["id_task"]))
    assert (ended.code, "was not imported" in ended.err) == (2, True)
    task = imported(ai_worker, other.articles("a"))
    assert "nothing is accepted" in ai_worker("export", str(task)).out
    ended = ai_worker("export", str(task), "--by", "x" * 191)  # told before anything is written, and not when the audit is
    assert (ended.code, "--by is longer than 190 characters" in ended.err) == (2, True)
    sql("UPDATE task_source SET finished_at = NULL")
    assert "still being imported" in ai_worker("export", str(task)).err
    sql("UPDATE task_source SET finished_at = NOW(6)")
    other.sql("DROP TABLE articles")
    ended = ai_worker("export", str(task))
    assert (ended.code, "there is no such table" in ended.err) == (2, True)


def test_items_that_are_of_no_row(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    """Somebody has put them into the task: they have no key, or one that the table cannot have."""
    task = imported(ai_worker, other.articles("a"))
    sql("INSERT INTO task_item (id_task, external_key, text_original) VALUES (%s, NULL, 'x'), (%s, '1 OR 1', 'a')", [task, task])
    accepted(ai_worker, sql, task)
    ended = ai_worker("export", str(task), "--json")
    assert (ended.code, ended.json["missing"], ended.json["written"], other.bodies()) == (3, 2, 1, {1: "a!"})


def test_what_is_no_new_version_of_a_text_is_not_written_over_it(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    task = imported(ai_worker, other.articles("opis"))
    accepted(ai_worker, sql, task)
    before = other.bodies()
    for task_type in ("categorization", "summary", "a_plug_in_elsewhere"):
        sql("UPDATE task SET task_type = %s, id_prompt = NULL", [task_type])
        for more in ((), ("--dry-run",)):
            ended = ai_worker("export", str(task), *more)
            assert (ended.code, "--column body` does that all the same" in ended.err, task_type in ended.err) == (2, True, True)
    ended = ai_worker("export", str(task), "--column", "title")
    assert (ended.code, "came from the column 'body', and export writes to no other" in ended.err) == (2, True)
    assert (other.bodies(), audit(sql)) == (before, [])
    assert ai_worker("export", str(task), "--column", "body").code == 0
    assert other.bodies() != before


def test_a_prompt_of_the_kind_correction_is_exported_by_the_prompt_that_the_task_is_pinned_to(
    ai_worker: Commands, sql: Sql, other: Shop, tmp_path: Path
) -> None:
    task = imported(ai_worker, other.articles("opis"))
    accepted(ai_worker, sql, task)
    for kind, code in (("correction", 0), ("summary", 2)):
        source = resources.files("ai_worker.task_types").joinpath(f"prompts/{kind}.md").read_text(encoding="utf-8")
        file = tmp_path / f"house_{kind}.md"
        file.write_text(source.replace("+++\n", f'+++\nkind = "{kind}"\n', 1), encoding="utf-8")
        pushed = ai_worker("prompt", "push", str(file))
        assert pushed.code == 0, pushed.err
        (row,) = sql("SELECT id_prompt FROM prompt WHERE name = %s", [file.stem])
        sql("UPDATE task SET task_type = %s, id_prompt = %s", [file.stem, row["id_prompt"]])
        assert ai_worker("export", str(task)).code == code
