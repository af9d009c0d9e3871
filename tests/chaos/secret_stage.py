"""The stage on which all commands are given while canary secrets are planted: a database, providers, a shop, files, settings."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from tests.acceptance.fleet import Fake
from tests.chaos.arena import DATABASE, Arena
from tests.chaos.secret_canaries import Canaries
from tests.chaos.telltale import KINDS, TellTale
from tests.integration.test_prompt_library import SHOUT
from tests.servers import environment

TEXTS = ("Ala ma kta.", "Kot pije mlko.", "=cmd|' /C calc'!A0", "Zażółć gęślą jaźn")
GIVEN = ("given/", "host/etc/ai-worker/credentials/")  # what was written for the program to read, and by it where it is to be

WRITTEN_BY_SQL = {"options", "base_url", "callback_url"}  # columns into which the test itself has put one


class Ended(Protocol):
    """How a command ended."""

    @property
    def code(self) -> int: ...
    @property
    def out(self) -> str: ...
    @property
    def err(self) -> str: ...
    @property
    def json(self) -> Any: ...


class Run(Protocol):
    """Runs one `ai-worker` command with these settings, from the stage's folder."""

    def __call__(self, *args: str, env: Mapping[str, str | None], stdin: str) -> Ended: ...


@dataclass
class Stage:
    """`run` runs a command; all of what it prints is looked at."""

    arena: Arena
    folder: Path
    fake: Fake
    telltale: TellTale
    canaries: Canaries
    run: Run
    rng: random.Random
    ids: dict[str, int] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)  # the commands so far
    unexpected: list[str] = field(default_factory=list)  # what ended otherwise than it should, without which this shows nothing

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for name in ("given", "tmp", "host"):
            (self.folder / name).mkdir(exist_ok=True)
        for name in ("worker password", "administrator's password", "source password"):
            self.plant(name, "K%2F/@:{}+?#")  # has to be escaped in a URL
        for name in ("API key", "second key", "gemini key", "callback secret"):
            self.plant(name, "canary.{}")
        for name in ("master key", "old master key"):
            self.canaries.plant(name, base64.b64encode(self.rng.randbytes(32)).decode())
        self.plant("passphrase", "canary-{}-passphrase")
        self.plant("wrong token", "aiw_{}{}", digits=43)
        self._make_users()
        self._write_files()

    def plant(self, name: str, pattern: str, *, digits: int = 24) -> str:
        value = pattern.format(*(f"{self.rng.getrandbits(4 * digits):0{digits}x}" for _ in range(pattern.count("{}"))))
        return self.canaries.plant(name, value[: 4 + digits] if value.startswith("aiw_") else value)

    def __getitem__(self, name: str) -> str:
        return self.canaries.values[name]

    def _make_users(self) -> None:
        """The worker's user gets the planted password; an administrator of this database, and a user of the shop, are made."""
        say = self.arena.sql
        say("ALTER USER ai_worker@'%%' IDENTIFIED BY %s", [self["worker password"]])
        say("CREATE DATABASE shop DEFAULT CHARACTER SET utf8mb4")
        say("CREATE TABLE shop.articles (id INT NOT NULL PRIMARY KEY, body TEXT NULL)")
        for number, text in enumerate(TEXTS, 1):
            say("INSERT INTO shop.articles VALUES (%s, %s)", [number, text])
        for user, password, database in (("boss", "administrator's password", DATABASE), ("shop", "source password", "shop")):
            say(f"CREATE USER {user}@'%%' IDENTIFIED BY %s", [self[password]])
            say(f"GRANT ALL ON {database}.* TO {user}@'%'")

    def _write_files(self) -> None:
        for name in ("API key", "second key", "gemini key", "master key", "old master key", "callback secret"):
            self.file(name)
        for name, user, password, database in (
            ("admin url", "boss", "administrator's password", DATABASE),
            ("source url", "shop", "source password", "shop"),
        ):
            (self.folder / "given" / name).write_text(self.url(user, password, database), encoding="utf-8")
        (self.folder / "rows.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in TEXTS), encoding="utf-8")
        (self.folder / "shout.md").write_text(SHOUT, encoding="utf-8")

    def file(self, name: str) -> str:
        """A file with one of the secrets, as a command line names it."""
        path = self.folder / "given" / name
        path.write_text(self[name] + "\n", encoding="utf-8")
        return str(path)

    def url(self, user: str, password: str, database: str = DATABASE) -> str:
        where = f"{self.arena.host}:{self.arena.port}"
        return f"mysql://{user}:{quote(self[password], safe='')}@{where}/{database}?ssl=off"

    @property
    def worker_url(self) -> str:
        return self.url("ai_worker", "worker password")

    def settings(self, **more: str | None) -> dict[str, str | None]:
        """Secrets by environment and by file; a folder of its own for temporary files; a log that tells all."""
        return {
            "AI_WORKER_DB_URL": None,
            "AI_WORKER_DB_URL_FILE": str(self.folder / "given" / "admin url"),
            "AI_WORKER_MASTER_KEY": self["master key"],
            "AI_WORKER_MASTER_KEY_OLD_FILE": str(self.folder / "given" / "old master key"),
            "AI_WORKER_LEGACY_AES_KEY": self["passphrase"],
            "AI_WORKER_SOURCE_URL_FILE": str(self.folder / "given" / "source url"),
            "AI_WORKER_LOG_LEVEL": "debug",
            "AI_WORKER_LEASE_SECONDS": "5",
            "TMPDIR": str(self.folder / "tmp"),
            **more,
        }

    def environment(self, **more: str | None) -> dict[str, str]:
        """The same for a process in the background, which has the rights of a worker."""
        own = {"AI_WORKER_DB_URL": self.worker_url, "AI_WORKER_DB_URL_FILE": None}
        return environment(None, self.settings(**{**own, **more}))

    def say(
        self,
        *args: str,
        stdin: str = "",
        codes: tuple[int, ...] = (0,),
        **env: str | None,
    ) -> Ended:
        """One command; what it printed is looked at."""
        ended = self.run(*args, env=self.settings(**env), stdin=stdin)
        line = " ".join(args)
        if ended.code not in codes:
            self.unexpected.append(f"{line} ended with {ended.code}: {ended.out[-300:]}{ended.err[-1000:]}")
        self.given.add(" ".join(args[:2]))
        self.given.add(args[0])
        self.canaries.look(f"standard output of {line}", ended.out)
        self.canaries.look(f"standard error of {line}", ended.err)
        return ended

    def add_telltales(self) -> None:
        """A model for each way of answering, by plain SQL, with a second key in a header of its own, as proxies of providers
        want it; and a model of Gemini's. Their keys are set by the command line."""
        headers = json.dumps({"headers": {"X-Gateway-Key": self["second key"]}})
        for kind in KINDS:
            for provider, base in (("openai", f"{self.telltale.base(kind)}/v1"), ("gemini", self.telltale.base(kind))):
                self.arena.sql(
                    "INSERT INTO ai_model (name, provider, model, base_url, options) VALUES (%s, %s, 'm', %s, %s)",
                    [
                        f"{provider}-{kind}",
                        provider,
                        base,
                        headers if provider == "openai" else "{}",
                    ],
                )

    def task(self, model: str, *texts: str, **columns: Any) -> int:
        """A task by plain SQL."""
        names = ("id_ai_model", "description", *columns)
        self.arena.sql(
            f"INSERT INTO task ({', '.join(names)}) SELECT id_ai_model, 'Popraw.'{', %s' * len(columns)} FROM ai_model"
            " WHERE name = %s",
            [*columns.values(), model],
        )
        (row,) = self.arena.sql("SELECT MAX(id_task) AS id FROM task")
        for text in texts or TEXTS:
            self.arena.sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [row["id"], text])
        id_task: int = row["id"]
        return id_task

    def look_into_database(self) -> None:
        """Every cell of every table, and of the statements that the server has written down."""
        tables = "SELECT table_schema AS s, table_name AS t FROM information_schema.tables WHERE table_schema IN (%s, 'shop')"
        for row in self.arena.sql(tables, [DATABASE]):
            for cells in self.arena.sql(f"SELECT * FROM {row['s']}.{row['t']}"):
                for column, cell in cells.items():
                    data = cell if isinstance(cell, bytes) else str(cell)
                    belongs = ("second key",) if column in WRITTEN_BY_SQL else ()
                    self.canaries.look(f"the column {row['t']}.{column}", data, but=belongs)
