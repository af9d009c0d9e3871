"""How long a command takes to be of use: `ai-worker --help`, and `ai-worker run` to its first claim and to its first result.

Times on the clock in seconds, from the start of the process. Of `run`: to the first item's claim and to the end of its one-item
task, by the server's clock; the model answers at once, in process (`echo`) or on a loopback port (`bench.endpoint`).

Beside it, in the same run, what Python itself takes: `python -c pass`, and the import of the SDK that the provider builds on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from ai_worker import keys
from bench import endpoint
from bench.calls import Load, add_models
from bench.endpoint import TEXT, Endpoint
from bench.report import Report, WrongResultError, median
from bench.servers import Server

HELP = [sys.executable, "-m", "ai_worker", "--help"]
PASS = [sys.executable, "-c", "pass"]
SDKS = {"echo": "pass", "chat": "import openai", "gemini": "import google.genai"}


def seconds(command: list[str]) -> float:
    """The time on the clock that a command takes."""
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def first_claim(server: Server, model: str) -> tuple[float, float]:
    """Seconds until a `run` has claimed its first item, and until it has stored its result."""
    environment = {**os.environ, "AI_WORKER_DB_URL": server.url}
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO task (id_ai_model, description, cache_seconds) SELECT id_ai_model, '', 0 FROM ai_model WHERE name = %s",
            [model],
        )
        task = cursor.lastrowid
        cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [task, TEXT % 1])
        cursor.execute("SELECT NOW(6)")
        ((began,),) = cursor.fetchall()
        command = [sys.executable, "-m", "ai_worker", "run", "--task", str(task)]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        cursor.execute("SELECT started_at, finished_at, records_processed FROM task WHERE id_task = %s", [task])
        ((claimed, finished, processed),) = cursor.fetchall()
    if done.returncode or processed != 1:
        raise WrongResultError(f"run ended with {done.returncode}, {processed} items processed: {done.stderr}")
    return (claimed - began).total_seconds(), (finished - began).total_seconds()


def of_run(server: Server, served: Endpoint, rounds: int, smoke: bool) -> list[dict[str, object]]:
    """A row for each provider, the SDK's import measured in turns with it."""
    loads = [Load(api, 1, 0.0, 1) for api in ("chat", "gemini")]
    add_models(server, served, loads)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
        cursor.execute("UPDATE ai_model SET is_active = 1")
    rows: list[dict[str, object]] = []
    for name, model in {"echo": "echo", **{load.api: load.model for load in loads}}.items():
        if smoke and name != "echo":
            continue
        claims, results, imports = [], [], []
        for _ in range(rounds):
            claim, result = first_claim(server, model)
            claims.append(claim)
            results.append(result)
            imports.append(seconds([sys.executable, "-c", SDKS[name]]))
        rows.append({"what": name, "claim_s": median(claims), "result_s": median(results), "import_s": median(imports)})
    return rows


def main() -> None:
    report = Report("startup", __doc__)
    options = report.options()
    os.environ["AI_WORKER_MASTER_KEY"] = keys.generate_master_key()
    pairs = [(seconds(HELP), seconds(PASS)) for _ in range(options.rounds)]
    report.add(what="--help", help_s=median([one for one, _ in pairs]), pass_s=median([other for _, other in pairs]))
    for server in report.servers(options):
        with endpoint.running() as served:
            for row in of_run(server, served, options.rounds, options.smoke):
                report.add(server=server.name, **row)
    report.write(options)


if __name__ == "__main__":
    main()
