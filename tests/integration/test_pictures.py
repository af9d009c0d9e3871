"""Pictures from a model into the database or a folder, and out again: byte for byte and once, or an error says what to do."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ai_worker import pictures
from ai_worker.db import Database
from ai_worker.db.session import Session
from ai_worker.errors import AiWorkerError
from ai_worker.models import NO_USAGE, File, Item, Outcome, Result
from ai_worker.store.files import Files
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.fake_provider.pictures import Wanted, picture
from tests.integration.batch_runs import shorten_waits
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application, assert_ledger, claim, register
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, task_of
from tests.servers import Programs, TestServer

pytest_plugins = ["tests.integration.lifecycle"]

MB = 1 << 20
TEXT = "Kot w butach"


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeProvider) -> FakeProvider:
    running.reset()
    return running


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


def content_of(database: Database, id_task_item: int, folder: Path | None = None) -> list[bytes]:
    files = Files(database, folder)
    return [b"".join(files.content(file)) for file in files.of_item(id_task_item)]


@pytest.mark.parametrize("api", ["chat", "gemini"])
def test_pictures_come_back_byte_for_byte(
    sql: Sql, database: Database, database_url: str, fake: FakeProvider, ai_worker: Commands, tmp_path: Path, api: str
) -> None:
    large = f"{TEXT}, a picture of {8 * MB} bytes"
    id_task = add_task(sql, add_model(sql, fake, api, api), [TEXT, large], task_type="image", description="Akwarela.")
    assert Run(database_url).summary.processed == 2
    made = [picture(f"Akwarela.\n\n{text}", Wanted()) for text in (TEXT, large)]
    items = items_of(sql, id_task)
    assert [content_of(database, item["id_task_item"]) for item in items] == [[content] for content in made]
    rows = sql("SELECT *, LENGTH(content) AS bytes FROM task_item_file ORDER BY id_task_item")
    assert [row["content"] for row in rows] == made  # as another application reads them
    assert [(row["mime_type"], row["size"], row["width"], row["height"]) for row in rows] == [
        ("image/png", len(content), 1024, 1024) for content in made
    ]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(content).digest() for content in made]
    with Image.open(io.BytesIO(rows[0]["thumbnail"])) as small:
        assert small.size == (256, 256)
    told = json.loads(items[1]["result"])["files"]
    assert told == [{"mime_type": "image/png", "size": 8 * MB, "sha256": rows[1]["sha256"].hex(), "width": 1024, "height": 1024}]
    assert task_of(sql, id_task)["tokens_output"] == items[0]["tokens_output"] * 2 > 2000
    ended = ai_worker("results", str(id_task), "--files", str(tmp_path / "out"))
    assert (ended.code, "2 files written" in ended.err) == (0, True)
    listed = [json.loads(row["files"])[0] for row in csv.DictReader(io.StringIO(ended.out))]
    assert [(tmp_path / "out" / each["file"]).read_bytes() for each in listed] == made
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(each["file"] for each in listed)


def test_the_page_shows_small_pictures(sql: Sql, database_url: str, fake: FakeProvider, ai_worker: Commands) -> None:
    id_task = add_task(
        sql, add_model(sql, fake, "chat", "chat"), [TEXT], task_type="image", description="", parameters='{"size": "1536x1024"}'
    )
    Run(database_url)
    page = ai_worker("results", str(id_task), "--format", "html").out
    (row,) = sql("SELECT thumbnail FROM task_item_file")
    assert f"base64,{base64.b64encode(row['thumbnail']).decode()}" in page
    assert "image/png 1536×1024, 1 kB" in page
    (told,) = json.loads(ai_worker("results", str(id_task), "--format", "jsonl").out)["files"]
    assert (told["mime_type"], told["width"], told["height"], told["path"]) == ("image/png", 1536, 1024, None)


@pytest.mark.parametrize(("fault", "kind"), [("picture_moderated", "content_refused"), ("picture_is_none", "bad_answer")])
def test_no_picture_is_no_result(sql: Sql, database_url: str, fake: FakeProvider, fault: str, kind: str) -> None:
    fake.script(Rule(fault))
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), [TEXT], task_type="image", max_attempts=1)
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"]) == ("ERROR", kind)
    assert sql("SELECT * FROM task_item_file") == []
    assert item["tokens_output"] == (1056 if kind == "bad_answer" else 0)  # such a picture is billed all the same


def test_a_packet_of_one_megabyte(
    sql: Sql, database: Database, database_url: str, fake: FakeProvider, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is stored, what does not says what to set. On the server that is ours alone it is really set."""
    connect = Session.__init__

    def with_small_packets(self: Session, *arguments: object) -> None:
        connect(self, *arguments)  # type: ignore[arg-type]  # passed through
        self.max_packet = MB

    monkeypatch.setattr(Session, "__init__", with_small_packets)
    texts = [f"{TEXT}, a picture of {size} bytes" for size in (900_000, 2 * MB)]
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), texts, task_type="image", description="")
    before = server.execute("SELECT @@GLOBAL.max_allowed_packet AS bytes")[0]["bytes"]
    if server.name == "mariadb":
        server.execute(f"SET GLOBAL max_allowed_packet = {MB}")
    try:
        Run(database_url)
    finally:
        if server.name == "mariadb":
            server.execute(f"SET GLOBAL max_allowed_packet = {before}")
    fits, too_large = items_of(sql, id_task)
    assert content_of(database, fits["id_task_item"]) == [picture(texts[0], Wanted())]
    assert (too_large["status"], too_large["error_kind"]) == ("ERROR", "unstorable")
    for word in ("2,097,152 bytes", "max_allowed_packet", "1,048,576", "16M", "AI_WORKER_FILES_FOLDER"):
        assert word in too_large["error_message"]
    assert (task_of(sql, id_task)["records_processed"], task_of(sql, id_task)["records_failed"]) == (1, 1)


def test_in_a_folder(
    sql: Sql, database: Database, database_url: str, fake: FakeProvider, ai_worker: Commands, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    id_task = add_task(
        sql, add_model(sql, fake, "chat", "chat"), [TEXT], task_type="image", description="", parameters='{"format": "webp"}'
    )
    assert Run(database_url, files_folder=folder).summary.processed == 1
    (row,) = sql("SELECT * FROM task_item_file")
    made = picture(TEXT, Wanted(format="webp"))
    assert row["path"] == f"{id_task}/{row['id_task_item']}-1-{hashlib.sha256(made).hexdigest()[:16]}.webp"
    assert (row["content"], (folder / row["path"]).read_bytes()) == (None, made)
    assert [path.name for path in (folder / str(id_task)).iterdir()] == [Path(row["path"]).name]  # and nothing half done
    assert stat.S_IMODE((folder / row["path"]).stat().st_mode) & 0o007 == 0
    assert content_of(database, row["id_task_item"], folder) == [made]
    ended = ai_worker("results", str(id_task), "--files", str(tmp_path / "out"))
    assert (ended.code, "AI_WORKER_FILES_FOLDER" in ended.err) == (1, True)
    (folder / row["path"]).write_bytes(made + b"!")
    with pytest.raises(AiWorkerError, match="damaged"):
        content_of(database, row["id_task_item"], folder)


def test_a_lost_picture_holds_up_no_other(
    sql: Sql,
    database_url: str,
    fake: FakeProvider,
    ai_worker: Commands,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), ["a", "b", "c"], task_type="image", description="")
    assert Run(database_url, files_folder=folder).summary.processed == 3
    paths = [folder / row["path"] for row in sql("SELECT path FROM task_item_file ORDER BY id_task_item")]
    paths[0].unlink()
    paths[1].write_bytes(b"!")
    monkeypatch.setenv("AI_WORKER_FILES_FOLDER", str(folder))
    ended = ai_worker("results", str(id_task), "--files", str(out), "-o", str(tmp_path / "results.csv"))
    assert ended.code == 3
    assert "note: 1 file written to " in ended.err
    assert ended.err.count("not written: ") == 2
    assert [path.read_bytes() for path in out.iterdir()] == [paths[2].read_bytes()]
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").count("PROCESSED") == 3


def test_a_folder_that_is_not_there_is_told_before_a_call_is_made(
    ai_worker: Commands, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, says in ((str(tmp_path / "none"), "no folder that this user may write to"), ("here", "an absolute folder")):
        monkeypatch.setenv("AI_WORKER_FILES_FOLDER", folder)
        ended = ai_worker("run")
        assert (ended.code, says in ended.err) == (78, True)
    assert fake.counts()["requests"] == 0


@pytest.mark.parametrize("path", ["../secret", "7/../../secret", "/etc/passwd", "7/.hidden", "x/secret", "7\\..\\secret"])
def test_nothing_outside_of_the_folder_is_read(
    database: Database, claimed_item: Item, sql: Sql, tmp_path: Path, path: str
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "pictures"
    (folder / "7").mkdir(parents=True)
    sql(
        "INSERT INTO task_item_file (id_task_item, position, mime_type, size, sha256, path)"
        " VALUES (%s, 1, 'image/png', 6, %s, %s)",
        [claimed_item.id_task_item, hashlib.sha256(b"secret").digest(), path],
    )
    with pytest.raises(AiWorkerError, match="cannot be read"):
        content_of(database, claimed_item.id_task_item, folder)


def test_links_are_not_followed(database: Database, claimed_item: Item, queue: Queue, worker: int, tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "pictures"
    elsewhere.mkdir()
    folder.mkdir()
    (folder / str(claimed_item.task.id_task)).symlink_to(elsewhere)
    queue.keep_files_in(folder)
    with pytest.raises(AiWorkerError, match="symbolic link"):
        queue.commit(worker, [drawn(claimed_item, b"one")])
    assert list(elsewhere.iterdir()) == []


def drawn(item: Item, noise: bytes) -> Outcome:
    file = File(picture(noise.decode(), Wanted(size="8x8")), "image/png")
    result = Result("kot", None, {}, files=pictures.completed([file]))
    return Outcome.processed(item, result, NO_USAGE, None, 5)


def test_a_commit_that_is_repeated_stores_a_picture_once(
    database: Database, claimed_item: Item, queue: Queue, worker: int, sql: Sql
) -> None:
    outcome = drawn(claimed_item, b"one")
    for _ in range(2):  # the answer of the first was lost
        assert queue.commit(worker, [outcome]).stored == [outcome]
    assert sql("SELECT COUNT(*) AS n FROM task_item_file") == [{"n": 1}]
    assert len(attempts_of(sql, claimed_item.task.id_task)) == 1


def test_a_worker_that_died_before_its_commit_leaves_no_picture_and_spoils_none(
    database: Database, application: Application, claimed_item: Item, queue: Queue, worker: int, sql: Sql
) -> None:
    """Killed between call and commit: the next claim's picture is the one that stays, also when the dead one's comes late."""
    application.kill_worker(worker)
    queue.rescue()
    assert sql("SELECT * FROM task_item_file") == []
    other = register(queue)
    (again,) = claim(queue, other)
    assert queue.commit(other, [drawn(again, b"two")]).stored
    assert queue.commit(worker, [drawn(claimed_item, b"one")]).lost
    (file,) = content_of(database, again.id_task_item)
    assert file == picture("two", Wanted(size="8x8"))


def test_killed_in_the_middle_of_its_commit(
    sql: Sql, database: Database, database_url: str, fake: FakeProvider, programs: Programs
) -> None:
    """With the picture's row written and its task's counters not yet: all of it is undone, and done once by the next worker."""
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), [TEXT], task_type="image", description="")
    fake.script(Rule("slow", delay_ms=300, times=1))
    victim = programs.start("run")
    fake.wait_for_requests(1, 30)
    sql("BEGIN")
    sql("SELECT * FROM task WHERE id_task = %s FOR UPDATE", [id_task])
    deadline = time.monotonic() + 30
    ours = "trx_mysql_thread_id IN (SELECT ID FROM information_schema.processlist WHERE DB = DATABASE())"
    while not sql(f"SELECT trx_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND {ours}"):
        assert time.monotonic() < deadline, victim.text()
        time.sleep(0.15)  # asked more often than each 0.1 s, the servers tell what they told before
    victim.process.kill()
    victim.wait()
    sql("ROLLBACK")
    (item,) = items_of(sql, id_task)
    assert (item["status"], sql("SELECT * FROM task_item_file"), attempts_of(sql, id_task)) == ("IN_PROGRESS", [], [])
    Application(sql).kill_worker(item["id_worker"])
    Queue(database).rescue()
    assert Run(database_url).summary.processed == 1
    (item,) = items_of(sql, id_task)
    assert content_of(database, item["id_task_item"]) == [picture(TEXT, Wanted())]
    assert [attempt["outcome"] for attempt in attempts_of(sql, id_task)] == ["lost", "processed"]
    task = task_of(sql, id_task)
    assert (task["status"], task["records_processed"], task["tokens_output"]) == ("COMPLETED", 1, 1056)
    assert_ledger(sql)


def test_in_the_lane_batch_a_picture_is_asked_for_alone(
    sql: Sql, database: Database, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch)
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), [TEXT], task_type="image", description="", lane="batch")
    assert Run(database_url).summary.processed == 1
    (item,) = items_of(sql, id_task)
    assert content_of(database, item["id_task_item"]) == [picture(TEXT, Wanted())]
    assert [attempt["lane"] for attempt in attempts_of(sql, id_task) if attempt["outcome"] == "processed"] == ["online"]
    assert fake.counts()["batch_requests"] == {}


def test_providers_without_a_model_are_refused_at_submit(sql: Sql, ai_worker: Commands, tmp_path: Path) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('korektor', 'offline')")
    (tmp_path / "a.txt").write_text(TEXT)
    ended = ai_worker("submit", str(tmp_path / "a.txt"), "--type", "image", "--model", "korektor")
    assert (ended.code, "makes no pictures" in ended.err) == (2, True)
