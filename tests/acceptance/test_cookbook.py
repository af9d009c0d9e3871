"""The pages of the cookbook are run as they stand: every block of sh, sql, php and python, from the top to the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.keys import generate_master_key
from ai_worker.migrate import split
from tests.acceptance.fleet import Fake, fake_provider
from tests.conftest import Sql
from tests.servers import Programs, TestServer, environment

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs" / "cookbook").glob("*.md") if page.stem != "README")
FRAMEWORKS = Path(__file__).parent / "php" / "frameworks.php"
HAS_PHP = shutil.which("php") is not None and b"pdo_mysql" in subprocess.check_output(["php", "-m"])


class Reader:
    """Somebody who copies a page, block by block, into a shell, a database client and files."""

    def __init__(self, server: TestServer, database_url: str, folder: Path) -> None:
        url = parse_database_url(database_url)
        ((host, port),) = url.hosts
        self._folder = folder
        self._names = {"ai_worker.": f"{url.database}.", "shop.": f"{url.database}_shop."}
        self._connection = server.connect(url.database)
        self.master_key = generate_master_key()
        self._env = environment(
            database_url,
            {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "AI_WORKER_MASTER_KEY": self.master_key,
                "AI_WORKER_DSN": f"mysql:host={host};port={port};dbname={url.database};charset=utf8mb4",
                "AI_WORKER_USER": url.user,
                "AI_WORKER_PASSWORD": url.password.reveal(),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
        )

    def close(self) -> None:
        self._connection.close()

    def read(self, page: Path) -> str:
        """Runs its blocks; all that they have printed."""
        printed = []
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            if language == "sql":
                self._sql(block)
            elif language == "sh":
                printed.append(self._run(["bash", "-euo", "pipefail", "-c", self._local(block)], block))
            elif language == "python":
                printed.append(self._run([sys.executable, "-c", block], block))
            elif language == "php" and HAS_PHP:
                (self._folder / "block.php").write_text(self._local(block), encoding="utf-8")
                printed.append(self._run(["php", "-d", f"auto_prepend_file={FRAMEWORKS}", "block.php"], block))
        return "".join(printed)

    def _local(self, block: str) -> str:
        block = block.replace("/srv/ai-worker", str(self._folder)).replace(".venv/bin/ai-worker", "ai-worker")
        return block.replace("--table shop.", f"--table {self._names['shop.']}")

    def _run(self, command: list[str], block: str) -> str:
        ended = subprocess.run(
            command,
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, f"{block}\n--- {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert "Fatal error" not in ended.stdout, ended.stdout
        assert "Warning" not in ended.stdout, ended.stdout
        return ended.stdout

    def column(self, statement: str) -> list[object]:
        """The first column of a query's rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(self._named(statement))
            return [next(iter(row.values())) for row in cursor.fetchall()]

    def _named(self, statement: str) -> str:
        for name, real in self._names.items():
            statement = re.sub(rf"(?<![\w.]){re.escape(name)}", real, statement)
        return statement.replace("DATABASE IF NOT EXISTS shop ", f"DATABASE IF NOT EXISTS {self._names['shop.'][:-1]} ")

    def _sql(self, block: str) -> None:
        block = self._named(block)
        with self._connection.cursor() as cursor:
            for statement in split(block):
                try:
                    cursor.execute(statement)
                except pymysql.MySQLError as error:
                    raise AssertionError(f"{statement}\n--- {error}") from None


@pytest.fixture(scope="module")
def provider() -> Iterator[Fake]:
    with fake_provider(20) as running:
        yield running


@pytest.fixture
def reader(server: TestServer, database_url: str, sql: Sql, provider: Fake, tmp_path: Path) -> Iterator[Reader]:
    """With two models, one for texts and one for pictures, and a database of the application's own."""
    sql("ALTER TABLE task AUTO_INCREMENT = 1")  # the pages' reader has a new database
    for name in ("gpt", "painter"):
        sql(
            "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output)"
            " VALUES (%s, 'openai', %s, %s, 1, 2)",
            [name, "gpt-image-2" if name == "painter" else "fake", f"{provider.url}/v1"],
        )
    shop = f"{parse_database_url(database_url).database}_shop"
    server.execute(f"CREATE DATABASE {shop} CHARACTER SET utf8mb4")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    reader = Reader(server, database_url, tmp_path)
    try:
        yield reader
    finally:
        reader.close()
        server.execute(f"DROP DATABASE {shop}")


# What a page's reader sees in the end, or in the tables: enough to know that its commands did what they are there for.
PRINTED = {
    "correction-panel": ['"items": 2', "2 written"],
    "chat-bot": ["Macie dzwonki? ✓", "picture-"],
    "categorizer": ["Groceries\tORLEN STACJA NR 7"],
    "research": ["# ", "COMPLETED"],
    "memory": ["klient:7", "memory-statistics", "weekly-review"],
    "python": ["Wogóle nie wiem. ✓", "Opis numer 19.", "{'post:17': 'Wogóle nie. ✓'}"],
    "php": ["Wogóle nie wiem. ✓", "0 done"],
    "cron-and-web": ['"items": 2', "Żeczywiście tak jest. ✓"],
}
STORED = {
    "correction-panel": (
        "SELECT body FROM shop.articles ORDER BY id",
        ["Wogóle nie wiem. ✓", "Żeczywiście tak jest. ✓", "Gotowe."],
    ),
    "existing-schema": ("SELECT text_corrected FROM shop.task_item ORDER BY 1", ["Wogóle nowy. ✓", "Żeczywiście tani. ✓"]),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(reader: Reader, programs: Programs, page: Path) -> None:
    if page.stem == "php" and not HAS_PHP:
        pytest.skip("no php with pdo_mysql on this machine")
    if re.search(r"where a\s+daemon runs", page.read_text(encoding="utf-8"), re.I):
        programs.start("daemon", env={"AI_WORKER_MASTER_KEY": reader.master_key})
    printed = reader.read(page)
    for each in PRINTED.get(page.stem, []):
        assert each in printed
    if page.stem in STORED:
        statement, expected = STORED[page.stem]
        assert reader.column(statement) == expected


def test_the_first_real_task_of_the_readme(reader: Reader, provider: Fake, sql: Sql, tmp_path: Path) -> None:
    sql("DELETE FROM ai_model")
    part = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## First real task\n")[2]
    (block, *_) = re.findall(r"^```sh\n(.*?)^```", part, re.M | re.S)
    block = re.sub(r"^export AI_WORKER_DB_URL=.*$", "unset AI_WORKER_MASTER_KEY", block, flags=re.M)
    block = block.replace('"$OPENAI_API_KEY"', "sk-test").replace(
        "--model gpt-5-mini", f"--model fake --base-url {provider.url}/v1"
    )
    (tmp_path / "texts.csv").write_text("id,text\n1,Wogóle nie wiem.\n2,Żeczywiście.\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(f"```sh\n{block}```\n", encoding="utf-8")
    printed = reader.read(tmp_path / "README.md")
    assert "task 1: 2 items" in printed
    assert "COMPLETED" in printed
    assert "Wogóle nie wiem." in (tmp_path / "changes.html").read_text(encoding="utf-8")


def test_every_page_is_looked_at() -> None:
    assert {page.stem for page in PAGES} == PRINTED.keys() | STORED.keys()
