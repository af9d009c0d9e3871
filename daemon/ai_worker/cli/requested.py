"""`run --request`: a run that was asked for over HTTP. Its row says what to do, and is told what became of it."""

from __future__ import annotations

from ai_worker.cli import context, work
from ai_worker.db import Database
from ai_worker.errors import EXIT_DONE, EXIT_FAILED, AiWorkerError
from ai_worker.store.batches import Batches
from ai_worker.store.queue import Queue
from ai_worker.store.run_requests import RunRequests


class _Noted(Queue):
    """Has the row know its worker."""

    def __init__(self, db: Database, requests: RunRequests, number: int) -> None:
        super().__init__(db)
        self._requests = requests
        self._number = number

    def register(self, *, host: str, pid: int, version: str, mode: str, concurrency: int, lease_seconds: float) -> int:
        id_worker = super().register(
            host=host, pid=pid, version=version, mode=mode, concurrency=concurrency, lease_seconds=lease_seconds
        )
        self._requests.begin(self._number, id_worker)
        return id_worker


def run_request(number: int, *, as_json: bool) -> int:
    """Does what the row says; the exit code of `run`."""
    settings = context.settings()
    with context.database(settings, patience=60) as db:
        requests = RunRequests(db)
        wanted = requests.get(number)
        try:
            filters = work.checked_filters(settings, db, wanted.task, wanted.task_item)
            if wanted.task_item is not None and not work.is_claimable(db, wanted.task_item):
                requests.end(number, EXIT_DONE, message="nothing to do: the item does not wait for work")
                return EXIT_DONE
            queue = _Noted(db, requests, number)
            summary = work.process(settings, db, filters=filters, max_items=wanted.max_item, queue=queue)
            left = Batches(queue).open(filters).batches
        except AiWorkerError as error:
            requests.end(number, error.exit_code, message=str(error))
            raise
        except BaseException as error:
            requests.end(number, EXIT_FAILED, message=f"{type(error).__name__}; see the log")
            raise
        requests.end(number, work.exit_code_of(summary), work.counts_of(summary))
    return work.report(summary, left, as_json)
