"""The client as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal
from functools import partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ai_worker.client import given
from ai_worker.client.values import (
    LONGEST_KEY,
    LONGEST_SECONDS,
    RAISE,
    Raise,
    SubmittedTask,
    Texts,
    refuse,
    to_items,
    to_rows,
)
from ai_worker.client.waiting import Waiting
from ai_worker.errors import ConfigurationError, ItemFailed, ItemMissing, UsageError, WaitTimeout
from ai_worker.models import DEFAULT_QUEUE, ItemStatus, Lane, Need, PersonalData, ReviewStatus
from ai_worker.store.answers import Answers, Finished
from ai_worker.store.files import Files, StoredFile
from ai_worker.store.new_tasks import CACHE_SECONDS, NewTask
from ai_worker.store.tasks import Change, Tasks

if TYPE_CHECKING:
    from ai_worker.config import Settings
    from ai_worker.db import Database
    from ai_worker.library import Library
    from ai_worker.store.groups import Group
    from ai_worker.store.reports import TaskReport

T = TypeVar("T")
D = TypeVar("D")

_PAGE = 250  # results in memory at a time


class AsyncClient:
    """AI Worker from asyncio code. Make one for the life of the application, in its event loop, and close it at the end.

    Parameters
    ----------
    url: the database, as in AI_WORKER_DB_URL, which it defaults to (or `.env`, as for the commands).
    settings: settings read before, to take the URL from.
    patience: seconds to go on trying when the database is away, before DatabaseAway is raised.
    connections: how many connections are used at once at most, beside the one that waits for results.

    Every method raises DatabaseAway, DatabaseRefused or SchemaMismatch when the database cannot be used, and UsageError for what
    cannot be right: no such task, no such model. A coroutine that is cancelled leaves its statement to end in a thread.
    """

    def __init__(
        self,
        url: str | None = None,
        settings: Settings | None = None,
        *,
        patience: float = 10.0,
        connections: int = 4,
    ) -> None:
        self._url = url
        self._settings = settings
        self._patience = patience
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="ai-worker-client")
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="ai-worker-client-waiting")
        self._opening = Lock()
        self._stack = ExitStack()
        self._opened: Database | None = None
        self._is_closed = False
        self._library: Library | None = None
        self._waiting = Waiting(self._look)

    async def __aenter__(self) -> Self:
        try:
            await self._call(lambda db: db.connect())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all waits with a RuntimeError, lets statements under way end, and closes the connections. Twice does no harm."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._waiting.close(RuntimeError("the client was closed"))
        await asyncio.to_thread(self._close)

    # ----- in

    async def submit(
        self,
        texts: Texts,
        *,
        task_type: str = "correction",
        model: str | None = None,
        fallbacks: Iterable[str] = (),
        description: str = "",
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
        queue: str = DEFAULT_QUEUE,
        context_key: str | None = None,
        scheduled_at: datetime | None = None,
        after: int | Iterable[int] | Mapping[int, Need] = (),
        group: int | str | None = None,
        budget: Decimal | str | None = None,
        result_ttl: float | None = None,
        max_attempts: int = 3,
        lane: Lane | str = Lane.ONLINE,
        pack: int = 1,
        cache_seconds: int = CACHE_SECONDS,
        personal_data: PersonalData | str = PersonalData.OFF,
    ) -> SubmittedTask:
        """Makes a task with an item for each text, all in one transaction, and returns at once.

        Parameters
        ----------
        texts: a text, or many; an `Item` where a text has a key, a context or a subject of its own.
        task_type, description, parameters: what is done, and the instruction in your words. The task keeps the prompt that is
            current now. Parameters are checked by it here where its kind, or the plug-in, is installed here, else by the workers.
        model, fallbacks: models by name; without one, the only one there is.
        key: makes the submission safe to repeat: the same key never makes a second task.
        priority, queue: higher ones first; which workers take it.
        context_key: the subject (a user, a conversation) of all items that name none.
        scheduled_at: not before this time; one without a zone is local.
        after: tasks that must have ended before: successfully, or as the mapping says.
        group: the task group that it belongs to: the name of an open one, or an id.
        budget: USD; when it is spent, the task is paused.
        result_ttl: seconds for which the results are kept after the task's end; None: for good.
        max_attempts, lane, pack, cache_seconds, personal_data: as the options of `ai-worker submit`.
        """
        items = to_items(texts)
        if not items:
            raise UsageError("no text was given")
        refuse(queue, key)
        names = (*([given.text("model", model)] if model is not None else []), *given.texts("fallbacks", fallbacks))
        if group is not None and not isinstance(group, str):
            given.identity("group", group)
        if context_key is not None:
            given.text("context_key", context_key, LONGEST_KEY, 1)
        ttl = None if result_ttl is None else given.seconds("result_ttl", result_ttl, LONGEST_SECONDS)
        task_of = partial(
            NewTask,
            task_type=given.text("task_type", task_type, 50, 1),
            description=given.description("description", description),
            parameters={} if parameters is None else given.mapping("parameters", parameters),
            priority=given.whole("priority", priority, -32_767, 32_767),
            scheduled_at=None if scheduled_at is None else given.moment("scheduled_at", scheduled_at),
            max_attempts=given.whole("max_attempts", max_attempts, 1, 255),
            submit_key=key,
            lane=given.one_of("lane", Lane, lane, but=[Lane.CACHE]),
            pack=given.whole("pack", pack, 1, 100),
            cache_seconds=given.whole("cache_seconds", cache_seconds, 0, LONGEST_SECONDS),
            budget=None if budget is None else given.usd("budget", budget),
            queue=queue,
            result_seconds=None if ttl is None else max(1, round(ttl)),
            after=given.waits("after", after),
            personal_data=given.one_of("personal_data", PersonalData, personal_data),
        )

        def work(db: Database) -> SubmittedTask:
            from ai_worker.library import Library
            from ai_worker.store.groups import Groups
            from ai_worker.store.prompts import Prompts

            answers, tasks = Answers(db), Tasks(db)
            first, *others = answers.chain(names)
            joined = Groups(db).id_of(group) if isinstance(group, str) else group
            prompts = Prompts(db)
            task = task_of(first, fallbacks=tuple(others), id_task_group=joined, id_prompt=prompts.current(task_type))
            self._library = self._library or Library(prompts)
            _check(task, self._library)
            packet = tasks.packet()
            submitted = tasks.submit(task, lambda: to_rows(items, context_key, packet))
            return SubmittedTask(submitted.id_task, answers.ids(submitted.id_task), submitted.is_new)

        return await self._call(work)

    # ----- out

    async def wait(
        self,
        id_task_item: int,
        timeout: float | None = 30.0,  # noqa: ASYNC109 -- of the result, not of this call
        default: D | Raise = RAISE,
        *,
        default_on_error: bool = False,
    ) -> Finished | D:
        """The result of an item as soon as it is stored, usually within a tenth of a second.

        Parameters
        ----------
        timeout: seconds; None: for as long as it takes.
        default: returned when the time is over.
        default_on_error: returned, too, when the item ended without a result.

        Raises WaitTimeout when the time is over and there is no default, ItemFailed when the item ended in ERROR or was
        cancelled, ItemMissing when it is not there. A database that goes away is waited for until the time is over.
        """
        given.flag("default_on_error", default_on_error)
        (found,) = await self._wait_for([given.identity("id_task_item", id_task_item)], timeout)
        if isinstance(found, Finished) and found.ok:
            return found
        if not isinstance(default, Raise) and (found is None or default_on_error):
            return default
        if isinstance(found, Finished):
            cancelled = found.status is ItemStatus.CANCELLED
            message = "a person cancelled it" if cancelled else found.error_message or "no reason was stored"
            raise ItemFailed(id_task_item, "cancelled" if cancelled else found.error_kind or "unknown", message)
        raise WaitTimeout(f"item {id_task_item} has no result after {timeout} s; it is worked on all the same")

    async def wait_all(
        self,
        items: int | SubmittedTask | Iterable[int],
        timeout: float | None = 30.0,  # noqa: ASYNC109 -- as above
        default: D | Raise = RAISE,
    ) -> list[Finished | D]:
        """The results of many items, or of all items of a task (by its id), in the order in which they were named.

        What ended without a result is there with its reason; `ok` tells. Raises WaitTimeout when not all have ended in time,
        unless a `default` takes the places of the others.
        """
        given.timeout(timeout)
        if isinstance(items, SubmittedTask):
            wanted = items.items
        else:
            named = given.identities("items", items)
            wanted = await self.ids(named[0]) if isinstance(items, int) else named
        found = await self._wait_for(wanted, timeout)
        missing = sum(each is None for each in found)
        if missing and isinstance(default, Raise):
            raise WaitTimeout(
                f"{missing} of {len(wanted)} items have no result after {timeout} s; they are worked on all the same"
            )
        return [default if each is None else each for each in found]  # type: ignore[misc]  # a Raise was dealt with above

    async def result(self, id_task_item: int) -> Finished:
        """An item as it stands, without waiting. Raises ItemMissing."""
        found = await self._call(partial(_items, [given.identity("id_task_item", id_task_item)]))
        if not found:
            raise ItemMissing(f"no item {id_task_item}")
        return found[0]

    async def results(self, id_task: int, only: ItemStatus | str | None = None) -> AsyncIterator[Finished]:
        """A task's items, all or those in one status (`"PROCESSED"`), in order; 250 in memory at a time, and their ids."""
        ids = await self.ids(id_task, only)
        for start in range(0, len(ids), _PAGE):
            for each in await self._call(partial(_items, ids[start : start + _PAGE])):
                yield each

    async def ids(self, id_task: int, only: ItemStatus | str | None = None) -> list[int]:
        """The ids of a task's items, in the order in which they were submitted."""
        given.identity("id_task", id_task)
        status = None if only is None else given.one_of("only", ItemStatus, only)
        return await self._call(lambda db: Answers(db).ids(id_task, status))

    async def status(self, id_task: int) -> TaskReport:
        """A task with its items counted, its cost and its errors by kind."""
        from ai_worker.store.reports import Reports

        given.identity("id_task", id_task)
        return await self._call(lambda db: Reports(db).task(id_task))

    async def file(self, file: StoredFile) -> bytes:
        """The bytes of one of a result's `files`, as the model made them. Those in a folder are read where AI_WORKER_FILES_FOLDER
        names it on this host, too. Raises AiWorkerError when they are not there, or damaged."""

        if not isinstance(file, StoredFile):
            given.wrong("file", file, "one of a result's `files`")

        def work(db: Database) -> bytes:
            from ai_worker.config import load_settings

            folder = None if file.path is None else (self._settings or load_settings()).files_folder
            return b"".join(Files(db, folder).content(file))

        return await self._call(work)

    async def add_group(self, name: str, callback_url: str | None = None) -> int:
        """Makes a task group, to be named in `submit`; its id. Its callback is not signed: `ai-worker group add` can."""
        from ai_worker.store.groups import Groups

        given.text("name", name)
        if callback_url is not None:
            given.text("callback_url", callback_url)
        return await self._call(lambda db: Groups(db).add(name, callback_url))

    async def close_group(self, name: str) -> bool:
        """No further tasks come into a group: it ends, and its callback is sent, when those in it have. False: it was closed."""
        from ai_worker.store.groups import Groups

        given.text("name", name)
        return await self._call(lambda db: Groups(db).close(name))

    # ----- what a person may do with a task: these need the rights of `ai_worker_web` in sql/grants.sql

    async def cancel(self, id_task: int) -> Change:
        """Ends a task: what waits is cancelled; results of calls in flight are still stored."""
        given.identity("id_task", id_task)
        return await self._call(lambda db: Tasks(db).cancel(id_task))

    async def pause(self, id_task: int) -> Change:
        """Stops claims; what is in flight is finished and stored."""
        given.identity("id_task", id_task)
        return await self._call(lambda db: Tasks(db).pause(id_task))

    async def resume(self, id_task: int, budget: Decimal | str | None = None) -> Change:
        """Goes on with a paused or cancelled task; `budget` is what it may cost from now on, in USD, with what it has cost."""
        given.identity("id_task", id_task)
        amount = None if budget is None else given.usd("budget", budget)
        return await self._call(lambda db: Tasks(db).resume(id_task, amount))

    async def retry(self, id_task: int, id_task_item: int | None = None) -> int:
        """Brings items back from ERROR, all or one; how many."""
        given.identity("id_task", id_task)
        if id_task_item is not None:
            given.identity("id_task_item", id_task_item)
        return await self._call(lambda db: Tasks(db).retry(id_task, id_task_item))

    async def review(
        self,
        items: int | Iterable[int],
        verdict: ReviewStatus | str,
        *,
        by: str,
        text: str | None = None,
        note: str | None = None,
    ) -> int:
        """Says of processed items that they are `"ACCEPTED"` or `"REJECTED"` (`"UNREVIEWED"` takes it back); of how many.

        Parameters
        ----------
        by: who says so.
        text: takes the place of the model's result; for one item that is accepted.
        note: why.

        Raises UsageError, having changed nothing, when one of them is not there or has no result.
        """
        from ai_worker.store.reviews import Review, Reviews, Span

        for name, value in (("by", by), ("text", text), ("note", note)):
            if value is not None or name == "by":
                given.text(name, value)
        said = Review(given.one_of("verdict", ReviewStatus, verdict), by, text, note)
        spans = [Span(each, each) for each in given.identities("items", items)]
        return await self._call(lambda db: Reviews(db).review(spans, said))

    async def group(self, name: str) -> Group:
        """How a task group stands: its tasks and items counted, its cost, its callback."""
        from ai_worker.store.groups import Groups

        given.text("name", name)
        return await self._call(lambda db: Groups(db).get(name))

    # ----- how

    async def _wait_for(self, items: Collection[int], seconds: float | None) -> list[Finished | None]:
        """The items as they ended, None for those that have not in time. Raises ItemMissing, and what the database raises."""
        self._refuse_closed()
        given.timeout(seconds)
        if not items:
            return []
        futures = self._waiting.begin(items)
        try:
            done, _ = await asyncio.wait(futures, timeout=None if seconds is None else max(0.0, seconds))
            if not done and seconds is not None and seconds <= 0:  # one look, then
                known = await self._look(list(items))
                return [known.get(each) for each in items]
            return [future.result() if future in done else None for future in futures]
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # seen: asyncio would complain of those that nobody asked

    async def _look(self, items: Collection[int]) -> Mapping[int, Finished | None]:
        return await asyncio.get_running_loop().run_in_executor(self._looker, lambda: Answers(self._database()).ended(items))

    async def _call(self, verb: Callable[[Database], T]) -> T:
        self._refuse_closed()
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: verb(self._database()))

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("the client is closed")

    def _database(self) -> Database:
        """Opened at its first use, which takes time: in a thread."""
        with self._opening:
            if self._opened is None:
                with ExitStack() as stack:
                    self._opened = self._open(stack)
                    self._stack = stack.pop_all()
            return self._opened

    def _open(self, stack: ExitStack) -> Database:
        from ai_worker import migrate
        from ai_worker.config import load_settings
        from ai_worker.database_url import parse_database_url
        from ai_worker.db import Database

        url = parse_database_url(self._url) if self._url else (self._settings or load_settings()).database_url()
        if url.scheme == "embedded" and url.path is not None:
            from ai_worker.embedded import running

            url = parse_database_url(stack.enter_context(running(url.path)))
        db = Database(url, patience=self._patience)
        stack.callback(db.close)
        migrate.check(db)
        return db

    def _close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._opened is not None:
            self._opened.give_up()
        self._looker.shutdown(wait=True, cancel_futures=True)
        self._stack.close()


def _items(items: Collection[int], db: Database) -> list[Finished]:
    return list(Answers(db).items(items))


def _check(task: NewTask, library: Library) -> None:
    """Asks the task type whether its parameters can work, where this host can make it: the workers may know more types."""
    from ai_worker.models import Task, TaskStatus
    from ai_worker.task_types import refuse_unknown_parameters, task_type_names

    if task.id_prompt is None and task.task_type not in task_type_names():
        return
    stored = Task(
        0,
        task.id_ai_model,
        task.task_type,
        task.description,
        task.parameters,
        task.max_attempts,
        task.priority,
        TaskStatus.NEW,
        id_prompt=task.id_prompt,
    )
    try:
        kind = library.kind(stored)
    except ConfigurationError:
        return
    kind.validate(stored)
    refuse_unknown_parameters(kind, stored)
