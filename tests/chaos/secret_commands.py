"""Every command once, as an operator gives it, with all secrets in reach; and every wrong setting that holds one."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote

import click

from ai_worker.cli import cli
from tests.chaos.secret_stage import TEXTS, Stage
from tests.chaos.telltale import KINDS

# Given by the test itself, in the background: they do not end.
ENDLESS: Final = {"daemon", "web"}


def all_commands() -> set[str]:
    """The click tree's leaves: `submit`, `model add`."""
    found = set()
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            found |= {f"{name} {each}" for each in command.commands}
        else:
            found.add(name)
    return found


def models(stage: Stage) -> None:
    """Keys go in by file and by standard input; no command shows one, and no answer of a provider brings it back."""
    say, fake = stage.say, stage.fake.url
    made = say("keygen").out.strip()
    assert len(made) == 44
    say("migrate")
    say("migrate", "--check", "--json")
    endpoint = ("--provider", "openai", "--model", "fake", "--base-url", f"{fake}/v1")
    prices = ("--price-input", "1", "--price-output", "2", "--max-in-flight", "4")
    say("model", "add", "gpt", *endpoint, *prices, "--api-key-file", stage.file("API key"))
    say("model", "add", "spare", *endpoint, "--api-key-stdin", stdin=stage["API key"] + "\n")
    say("model", "set", "spare", "--rpm", "100", "--api-key-stdin", stdin=stage["API key"])
    stage.add_telltales()
    for kind in KINDS:
        say("model", "set", f"openai-{kind}", "--api-key-stdin", stdin=stage["API key"])
        say("model", "set", f"gemini-{kind}", "--api-key-stdin", stdin=stage["gemini key"])
        for provider in ("openai", "gemini"):
            say("model", "test", f"{provider}-{kind}", "--json", codes=(1,))
    say("model", "test", f"openai-{KINDS[0]}", codes=(1,))
    say("model", "test", "gpt")
    say("model", "list")
    say("model", "list", "--json")
    say("model", "remove", "spare")
    say("rekey")
    say("rekey", "--old-key-file", stage.file("old master key"), "--json")


def work(stage: Stage) -> None:
    """From a file and from a table to results, reviews and back, all of it with secrets in reach."""
    say = stage.say
    say("prompt", "list")
    say("prompt", "push", "shout.md")
    say("prompt", "show", "correction", "--text", TEXTS[0])
    say("prompt", "retire", "shout")
    say("group", "add", "nightly", "--callback", "http://127.0.0.1:1/done", "--secret-file", stage.file("callback secret"))
    made = say("group", "add", "made", "--callback", "https://127.0.0.1:1/done", "--json").json["secret"]
    stage.canaries.plant("made secret", made)
    stage.arena.sql("UPDATE task_group SET callback_url = %s WHERE name = 'nightly'", [_receiver(stage)])
    common = ("--model", "gpt", "--description", "Popraw.")
    say("submit", "rows.csv", *common, "--group", "nightly", "--estimate")
    say("submit", "rows.csv", *common, "--group", "nightly", "--dry-run")
    say("submit", "rows.csv", *common, "--group", "nightly", "--json")
    (row,) = stage.arena.sql("SELECT MAX(id_task) AS id FROM task")
    stage.ids["csv"] = row["id"]
    say("import", "--table", "shop.articles", "--column", "body", *common, "--group", "nightly", "--json")
    say("group", "close", "nightly")
    (row,) = stage.arena.sql("SELECT MAX(id_task) AS id FROM task")
    stage.ids["import"] = row["id"]
    csv, imported = str(stage.ids["csv"]), str(stage.ids["import"])
    say("run", "--dry-run", "--task", csv, "--json")
    say("run", "--task", csv, "--json")
    say("run", "--task", imported)
    say("status")
    say("status", csv)
    say("status", csv, "--json")
    say("watch", csv, "--interval", "0.1")
    say("workers", "--all", "--json")
    say("top", "--once", "--json")
    for kind in ("csv", "jsonl", "html"):
        say("results", csv, "--format", kind)
        say("results", csv, "-o", f"results.{kind}")
    say("review", imported, "all", "accept", "--by", "Ala")
    say("export", imported, "--dry-run", "--json")
    say("export", imported)
    say("review", csv)
    say("group", "list", "--json")
    say("group", "show", "nightly")
    say("group", "retry", "nightly", codes=(0, 2))


def housekeeping(stage: Stage) -> None:
    """What is left of the commands."""
    say, csv = stage.say, str(stage.ids["csv"])
    waiting = str(stage.task("gpt"))
    for command in ("pause", "resume", "cancel"):
        say(command, waiting, "--json")
    say("priority", csv, "5")
    say("retry", csv, codes=(0, 2))
    say("schedule", "add", "nightly", "--cron", "0 2 * * *", "--type", "correction", "--model", "gpt", "--text", "Ala")
    for command in ("show", "pause", "resume"):
        say("schedule", command, "nightly")
    say("schedule", "list", "--json")
    say("schedule", "remove", "nightly")
    say("queue", "set", "default", "--per-minute", "100")
    say("queue", "list", "--json")
    say("queue", "remove", "default")
    token = say("token", "add", "panel", "--scope", "admin").out.strip()
    stage.canaries.plant("bearer token", token)
    say("token", "list", "--json")
    say("token", "add", "gone", "--scope", "read")
    say("token", "revoke", "gone")
    say("prune", "--older-than", "1h", "--dry-run", "--json")
    say("prune", "--older-than", "1h")
    say("doctor", "--json", codes=(0, 1, 78))
    say("completion", "bash")
    password = stage.folder / "given" / "worker password"
    password.write_text(stage["worker password"], encoding="utf-8")
    say("service", "install", "--root", str(stage.folder / "host"), "--db-url", f"mysql://ai_worker@127.0.0.1:{stage.arena.port}/ai_worker",
        "--db-password-file", str(password), "--master-key-file", stage.file("master key"), "--web", "--prune",
        "--program", "/opt/ai-worker/bin/ai-worker", "--json")  # fmt: skip
    say("service", "status", codes=(0, 1, 2))  # 2: no systemd runs here
    say("service", "uninstall", "--root", str(stage.folder / "host"))


def slow(stage: Stage) -> None:
    """What takes its time: a server of its own, with all secrets in its environment; a server that is waited for in vain."""
    away = f"mysql://ai_worker:{quote(stage['worker password'], safe='')}@127.0.0.1:1/ai_worker?connect_timeout=1"
    stage.say("status", codes=(75,), AI_WORKER_DB_URL=away, AI_WORKER_DB_URL_FILE=None)
    stage.say("quickstart", "--rows", "2", "--folder", str(stage.folder / "quickstart"))


def wrong_settings(stage: Stage) -> None:
    """Settings that hold a secret and cannot be used: the complaint names the setting, never the value."""
    say, password = stage.say, stage["worker password"]
    there = f"127.0.0.1:{stage.arena.port}"
    escaped = quote(password, safe="")
    for url in (
        f"mysql://ai_worker:{password}@{there}/ai_worker",  # not escaped
        f"mysql://ai_worker:{escaped}@{there}",
        f"mysql://ai_worker:{escaped}@{there}:x/ai_worker",
        f"mysql://ai_worker:{escaped}@{there}/ai_worker?ssl={escaped}x",
        f"mysql://ai_worker:{escaped}@{there}/ai_worker?sll=off",
        f"postgres://ai_worker:{escaped}@{there}/ai_worker",
        f"ai_worker:{escaped}@{there}/ai_worker",
        f"mysql://:{escaped}@{there}/ai_worker",
        f"mysql://ai_worker:{escaped}@/ai_worker",
        f"embedded://{escaped}",
    ):
        for command in ("status", "doctor"):
            say(command, codes=(1, 78), AI_WORKER_DB_URL=url, AI_WORKER_DB_URL_FILE=None)
    for user in ("ai_worker", "nobody_here"):
        url = f"mysql://{user}:{escaped}x@{there}/ai_worker?ssl=off"
        say("status", codes=(78,), AI_WORKER_DB_URL=url, AI_WORKER_DB_URL_FILE=None)
    away = f"mysql://ai_worker:{escaped}@127.0.0.1:1/ai_worker?connect_timeout=1"
    say("doctor", "--offline", codes=(1, 75, 78), AI_WORKER_DB_URL=away, AI_WORKER_DB_URL_FILE=None)
    say("import", "--table", "articles", "--column", "body", codes=(75, 78, 1, 2), AI_WORKER_SOURCE_URL_FILE=None,
        AI_WORKER_SOURCE_URL=stage.url("shop", "source password", "shop").replace("@", "x@"))  # fmt: skip
    for name in ("master key", "API key"):
        for command in (("model", "test", "gpt"), ("rekey",), ("doctor", "--offline")):
            say(*command, codes=(0, 1, 78), AI_WORKER_MASTER_KEY=stage[name][:-3] + "!!!")
    say("rekey", codes=(0, 78), AI_WORKER_MASTER_KEY=stage["old master key"], AI_WORKER_MASTER_KEY_OLD_FILE=None)
    env_file = stage.folder / "given" / "broken.env"
    env_file.write_text(f'AI_WORKER_DB_URL="{stage.worker_url}\nAI_WORKER_MASTER_KEY {stage["master key"]}\n', encoding="utf-8")
    for command in ("status", "doctor"):
        say(command, codes=(1, 78), AI_WORKER_ENV_FILE=str(env_file))
    latin = stage.folder / "given" / "latin"
    latin.write_bytes(stage.worker_url.encode() + b"\xb3")
    say("status", codes=(78,), AI_WORKER_DB_URL_FILE=str(latin))


def wrong_models(stage: Stage) -> None:
    """Endpoints that hold a secret themselves, or cannot be used as they are, by the command line and by plain SQL."""
    say, key = stage.say, stage["second key"]
    for number, base in enumerate(
        (
            f"http://user:{key}@{stage.telltale.base('401').removeprefix('http://')}/v1",
            f"https://user:{key}@127.0.0.1:1/v1",
            f"http://127.0.0.1:1/v1?key={key}",
            f"http://127.0.0.1:1/v1?access_token={key}",
            f"ftp://user:{key}@127.0.0.1/v1",
        )
    ):
        stage.arena.sql(
            "INSERT INTO ai_model (name, provider, model, base_url) VALUES (%s, 'openai', 'm', %s)", [f"wrong-{number}", base]
        )
        say("model", "test", f"wrong-{number}", codes=(1, 2, 78))
    for number, options in enumerate(
        (
            {"headers": {"X-Gateway-Key": key, "X-Other": 7}},
            {"headers": f"X-Gateway-Key: {key}"},
            {"headers": {"X-Gateway-Key": f"{key}ż"}},
            {"extra_body": f"api_key: {key}"},
        )
    ):
        stage.arena.sql(
            "INSERT INTO ai_model (name, provider, model, base_url, options) VALUES (%s, 'openai', 'm', %s, %s)",
            [f"odd-{number}", stage.telltale.base("401"), json.dumps(options)],
        )
        say("model", "test", f"odd-{number}", codes=(1, 2, 78))
    say("model", "list")
    say("model", "list", "--json")
    say("doctor", "--offline", codes=(0, 1, 78))


def _receiver(stage: Stage) -> str:
    """Of callbacks: with a password and a token in the URL, as receivers want them, and nobody who listens."""
    return f"http://hook:{stage['second key']}@127.0.0.1:1/done?token={stage['second key']}"
