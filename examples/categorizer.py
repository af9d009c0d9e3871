"""Puts bank transactions into categories: one per line, `TEXT` in, `CATEGORY<tab>TEXT` out, within 30 seconds whatever happens.

    ai-worker daemon --queue transactions
    python categorizer.py --model gpt < transactions.txt

What a model refuses, gets wrong three times, or cannot say in time is `Uncategorized`; what comes too late is stored all
the same.
"""

from __future__ import annotations

import argparse
import sys

from ai_worker.client import Client
from ai_worker.errors import AiWorkerError

CATEGORIES = [
    {"name": "Groceries", "description": "food and household goods"},
    {"name": "Transport", "description": "fuel, tickets, taxis, parking"},
    {"name": "Housing", "description": "rent, energy, water, internet"},
    {"name": "Health", "description": "doctors, pharmacies, insurance"},
    {"name": "Income", "description": "wages, refunds, interest"},
]
FALLBACK = "Uncategorized"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt")
    parser.add_argument("--seconds", type=float, default=30, help="how long to wait")
    options = parser.parse_args()
    texts = [line.strip() for line in sys.stdin if line.strip()]
    with Client() as client:
        task = client.submit(
            texts,
            task_type="categorization",
            model=options.model,
            queue="transactions",
            description="Transactions of a private account in Poland; the texts are the bank's.",
            parameters={"categories": CATEGORIES, "fallback": FALLBACK, "time_limit": 20},
            pack=10,  # one call for ten short texts: the list of categories is paid once
        )
        results = client.wait_all(task, timeout=options.seconds, default=None)
    for text, result in zip(texts, results, strict=True):
        print(result.text if result is not None and result.ok else FALLBACK, text, sep="\t")


if __name__ == "__main__":
    try:
        main()
    except AiWorkerError as error:
        sys.exit(f"{error}")
