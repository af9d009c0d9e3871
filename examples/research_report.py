"""A research report in four steps: plan, findings, critique, report; a better model may be named for the last two.

    ai-worker daemon
    python research_report.py --model gpt --editor gpt-large 'Czy opłaca się magazyn energii w domu?' > report.md

Each finished step is stored: whatever dies meanwhile, this program or a worker, the next one goes on from there. Called
again with the same question, this program waits for the same report.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time

from ai_worker.client import Client
from ai_worker.errors import AiWorkerError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--model", default="gpt")
    parser.add_argument("--editor", help="the model of the steps critique and report")
    parser.add_argument("--minutes", type=float, default=60, help="how long to wait")
    options = parser.parse_args()
    parameters: dict[str, object] = {"questions": 5, "max_words": 900, "audience": "homeowners"}
    if options.editor:
        parameters["models"] = {"critique": options.editor, "report": options.editor}
    with Client() as client:
        task = client.submit(
            options.question,
            task_type="research",
            model=options.model,
            parameters=parameters,
            budget="2.00",
            key=f"research {hashlib.sha256(options.question.encode()).hexdigest()}",
        )
        until = time.monotonic() + options.minutes * 60
        while (report := client.wait(task.items[0], timeout=10, default=None)) is None:
            standing = client.status(task.id_task)
            if time.monotonic() > until or standing.status.name == "PAUSED":  # its budget is spent, or a price is not known
                sys.exit(f"task {task.id_task} is {standing.status.name}: {standing.status_reason or 'not done in time'}")
    print(report.text)
    print(f"{report.summary}\n{report.tokens_input + report.tokens_output} tokens, {report.cost} USD", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except AiWorkerError as error:
        sys.exit(f"{error}")
