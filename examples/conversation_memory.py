"""Memory of conversations: what is worth knowing later is kept as facts, and drawn into the next answer.

    ai-worker daemon
    python conversation_memory.py --model gpt conversations.jsonl     # lines {"customer": …, "text": …, "is_open": true}

Open conversations go first. Every night at two, Warsaw time, one task more sums up what was learnt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ai_worker.client import Client, Item
from ai_worker.errors import AiWorkerError

STATISTICS = "Name the three most frequent concerns of customers in these facts, with how many have each, as a table."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="gpt")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    with Client() as client:
        tasks = []
        for is_open, priority in ((True, 10), (False, 0)):
            items = [Item(line["text"], context_key=line["customer"]) for line in lines if line["is_open"] == is_open]
            if items:
                tasks.append(client.submit(items, task_type="memory", model=options.model, priority=priority))
        for task in tasks:
            for done in client.wait_all(task, timeout=600):
                print(f"{done.context_key}: {done.text if done.ok else done.error_message}")
        customer = lines[0]["customer"]
        question = client.submit(
            Item("Co już o mnie wiecie?", context_key=customer),
            task_type="reply",
            model=options.model,
            queue="reply",
            priority=20,
        )
        print(f"{customer}? {client.wait(question.items[0], timeout=60).text}")
    schedule = ["ai-worker", "schedule", "add", "memory-statistics", "--cron", "0 2 * * *", "--tz", "Europe/Warsaw"]
    schedule += ["--type", "custom", "--model", options.model, "--description", STATISTICS, "--text", "Statistics of {date}"]
    subprocess.run(schedule, check=False)  # exit code 2: it is there already


if __name__ == "__main__":
    try:
        main()
    except AiWorkerError as error:
        sys.exit(f"{error}")
