"""What the handlers ask: the verbs of `store`, each in one of a few threads with a connection of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Final, ParamSpec, TypeVar

from fastapi import Depends, Request

from ai_worker.client.waiting import Waiting
from ai_worker.library import Library
from ai_worker.store.answers import Answers, Finished
from ai_worker.store.backlog import Backlog
from ai_worker.store.browsing import Browsing
from ai_worker.store.counters import Counters
from ai_worker.store.files import Files
from ai_worker.store.glance import Glance
from ai_worker.store.groups import Groups
from ai_worker.store.models import Models
from ai_worker.store.prompts import Prompts
from ai_worker.store.queue import Queue
from ai_worker.store.reports import Reports
from ai_worker.store.results import Results
from ai_worker.store.reviews import Reviews
from ai_worker.store.run_requests import RunRequests
from ai_worker.store.schedules import Schedules
from ai_worker.store.tasks import Tasks
from ai_worker.store.tokens import Tokens
from ai_worker.store.web_failures import WebFailures
from ai_worker.store.web_requests import WebRequests
from ai_worker.web.counting import ItemCounts
from ai_worker.web.door import Door
from ai_worker.web.history import History
from ai_worker.web.options import WebOptions
from ai_worker.web.runs import Runs

if TYPE_CHECKING:
    from ai_worker.db import Database

LONG: Final = 2  # threads for what takes long
LAST_SECONDS: Final = 2.0  # at the end, for statements that are under way
LIBRARY_SECONDS: Final = 10.0  # a prompt that somebody has pushed is known after so long

P = ParamSpec("P")
T = TypeVar("T")


class Services:
    """One per process, made before the first request and closed after the last one."""

    def __init__(self, db: Database, options: WebOptions) -> None:
        self.options = options
        self.db = db
        self.answers = Answers(db)
        self.browsing = Browsing(db)
        self.groups = Groups(db)
        self.item_counts = ItemCounts(lambda id_task: self.ask(self.browsing.counts, id_task))
        self.models = Models(db, keys=False)
        self.backlog = Backlog(db)
        self.glance = Glance(db)
        self.history = History(Counters(db))
        self.reports = Reports(db)
        self.results = Results(db)
        self.reviews = Reviews(db)
        self.schedules = Schedules(db)
        self.tasks = Tasks(db)
        self.tokens = Tokens(db)
        self.door = Door(self.tokens, WebFailures(db), self.ask)
        self.stopping = asyncio.Event()
        """Set when the server is told to stop: what waits or streams ends then, by itself."""
        self._library: tuple[float, Library] | None = None
        self._library_turn = Lock()
        self.queue = Queue(db)
        self.files = Files(db, options.files_folder)
        self.requests = WebRequests(db)
        self.run_requests = RunRequests(db)
        self.runs = Runs(self.run_requests, options)
        self.waiting = Waiting(self._look)
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="ai-worker-web-waiting")
        self._pool = ThreadPoolExecutor(options.connections, thread_name_prefix="ai-worker-web")
        self._long = ThreadPoolExecutor(LONG, thread_name_prefix="ai-worker-web-long")

    async def ask(self, verb: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What the verb returns. A request that is broken off leaves its statement to end in the thread."""
        return await _in(self._pool, lambda: verb(*arguments, **named))

    async def ask_long(self, verb: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """The same for a verb on all items of a task, in threads of its own: however many of these are asked for, the others
        are answered."""
        return await _in(self._long, lambda: verb(*arguments, **named))

    def library(self) -> Library:
        """The task types there are, as they stood some seconds ago. Asks the database: to be called in a thread."""
        with self._library_turn:  # whoever comes meanwhile waits for what is being read anyway
            now = time.monotonic()
            if self._library is None or now - self._library[0] > LIBRARY_SECONDS:
                library = Library(Prompts(self.db), self.options.prompt_folder, names_file=self.options.names_file)
                library.open(publish=False)
                self._library = now, library
            return self._library[1]

    async def _look(self, items: Collection[int]) -> Mapping[int, Finished | None]:
        return await asyncio.get_running_loop().run_in_executor(self._looker, self.answers.ended, items)

    async def aclose(self) -> None:
        """Ends the waits for results, and all else. Statements under way have LAST_SECONDS to end, then their connections are
        broken and what they began is rolled back. The database is closed by whoever opened it."""
        await self.waiting.close(RuntimeError("the server was closed"))
        pools = (self._looker, self._pool, self._long)
        ended = asyncio.gather(*(asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True) for pool in pools))
        await asyncio.wait({ended}, timeout=LAST_SECONDS)
        if not ended.done():
            self.db.give_up()
        await ended


async def _in(pool: ThreadPoolExecutor, verb: Callable[[], T]) -> T:
    within = copy_context().run  # so that what is logged there carries the request's id
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: within(verb))


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Served = Annotated[Services, Depends(_services)]
"""A handler's parameter of this type is given the process's services."""
