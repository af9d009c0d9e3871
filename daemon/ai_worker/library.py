"""The prompt library as one process sees it: task types made of the prompts that tasks are pinned to, each parsed once.

Prompts come from three places: the package, a folder of the team's, and the database, to which a host adds what it brings with
it when it starts. From then on the rows of `prompt` alone decide, so that all hosts use the same. A task type of a plug-in that
has no prompt file goes on beside them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ai_worker.config import encoding_of
from ai_worker.errors import ConfigurationError, UsageError
from ai_worker.models import PersonalData, Task
from ai_worker.store.prompts import SOURCE_AT_MOST, Known, NewPrompt, Origin, Stored
from ai_worker.task_types import TaskType, task_type, task_type_names, task_type_of

if TYPE_CHECKING:  # only tasks that ask for it need what it is made of
    from ai_worker.task_types.masking import Masking

SUFFIX: Final = ".md"
FAILED_SECONDS: Final = 30.0  # how long a prompt that could not be read is left alone: each item would parse it anew

KindOf = Callable[[Task], TaskType]
"""Gives a task's type, as `Library.kind` does."""


class Rows(Protocol):
    """What is asked of the database: see `store.prompts.Prompts`."""

    def all(self) -> list[Known]: ...

    def by_id(self, id_prompt: int) -> Stored | None: ...

    def publish(self, prompts: Sequence[NewPrompt]) -> int: ...


@dataclass(frozen=True, slots=True)
class Brought:
    """A prompt that this host brings with it: its text, and where that stands."""

    name: str
    origin: Origin
    digest: bytes
    source: str
    place: str

    @property
    def parts(self) -> tuple[str, bytes, str, str]:
        """Name, digest, text and place."""
        return self.name, self.digest, self.source, self.place


class Library:
    """The task types of one process.

    Parameters
    ----------
    rows: the database's part.
    folder: of the team's own prompts, files `NAME.md`; None for none.
    in_thread: runs a function that asks the database; needed for `get` alone.
    names_file: names that are personal data, for tasks that mask or block it; see `task_types.masking.Masking`.
    """

    def __init__(
        self,
        rows: Rows,
        folder: Path | None = None,
        in_thread: Callable[[Callable[[], TaskType]], Awaitable[TaskType]] | None = None,
        names_file: Path | None = None,
    ) -> None:
        self._names_file = names_file
        self._masking: Masking | None = None
        self._rows = rows
        self._folder = folder
        self._in_thread = in_thread
        self._lock = threading.Lock()
        self._by_id: dict[int, TaskType] = {}
        self._failed: dict[int, tuple[float, str]] = {}
        self._by_digest: dict[tuple[str, bytes], TaskType] = {}
        self._current: dict[str, int] = {}
        self._unpublished: dict[str, Brought] = {}
        self.broken: dict[str, str] = {}
        """By name, what is wrong with a file of the folder; the library goes on without it."""

    # ----- what a host brings with it

    def open(self, *, publish: bool = True) -> None:
        """Reads what is in the library, and adds what this host brings and nobody has brought before.

        One query when there is nothing new. With `publish` False nothing is written, and what is new counts all the same.
        Raises ConfigurationError when the folder cannot be read.
        """
        known = self._rows.all()
        new = [each for each in self._brought() if not _has(known, each)]
        fit = [(each, prompt) for each in new if (prompt := self._fitting(each, known)) is not None]
        if fit and publish:
            self._rows.publish([prompt for _, prompt in fit])
            known = self._rows.all()
        elif fit:
            for each, _ in sorted(fit, key=lambda pair: pair[1].origin is Origin.FOLDER):
                current = next((row for row in known if row.is_current and row.name == each.name), None)
                if current is None or current.origin is not Origin.PUSHED:
                    self._unpublished[each.name] = each
        self._current = {row.name: row.id_prompt for row in known if row.is_current}

    def _brought(self) -> Iterator[Brought]:
        from ai_worker.task_types.prompt_file import digest_of

        for name, source in _shipped():
            yield Brought(name, Origin.SHIPPED, digest_of(source), source, f"prompts/{name}{SUFFIX}")
        for path in _files(self._folder):
            try:
                source = read_source(path)
            except ConfigurationError as error:
                self.broken[path.stem] = str(error)
            else:
                yield Brought(path.stem, Origin.FOLDER, digest_of(source), source, str(path))

    def _fitting(self, brought: Brought, known: Sequence[Known]) -> NewPrompt | None:
        """What is to be made known; None for what an older program brings, or a file with a mistake, which is noted."""
        try:
            prompt = checked(brought)
        except ConfigurationError as error:
            if brought.origin is Origin.SHIPPED:
                raise
            self.broken[brought.name] = str(error)
            return None
        same = [row for row in known if (row.name, row.origin) == (brought.name, brought.origin)]
        newest = max([row.version for row in same], default=0)
        if prompt.version < newest:
            return None
        others = [row.id_prompt for row in same if row.version == prompt.version]
        if brought.origin is Origin.FOLDER and others and not self._has_source(others, brought.source):
            self.broken[brought.name] = (
                f"{brought.place}: version {prompt.version} is in the library already, with other content: write"
                f" `version = {newest + 1}` into the file"
            )
            return None
        return prompt

    def _has_source(self, ids: Sequence[int], source: str) -> bool:
        return any((row := self._rows.by_id(each)) is not None and row.source == source for each in ids)

    # ----- task types

    def fresh(self, task: Task) -> TaskType | None:
        """The type of a task when it is at hand: nearly always."""
        kind = None if task.id_prompt is None else self._by_id.get(task.id_prompt)
        return kind if kind is None or task.personal_data is PersonalData.OFF else self._around(kind, task.personal_data)

    async def get(self, task: Task) -> TaskType:
        """The same, asked for in the database when it is not; raises as `kind` does."""
        if task.id_prompt is None or self._in_thread is None:
            return self.kind(task)
        return await self._in_thread(partial(self.kind, task))

    def kind(self, task: Task) -> TaskType:
        """The type of a task: of the prompt that it is pinned to, else the current one, else a plug-in's.

        Where the task says so, it is one that masks or blocks personal data. Asks the database for a prompt that it meets for the
        first time. Raises UsageError when there is no such type, and ConfigurationError when this host cannot make it.
        """
        kind = self.named(task.task_type)[0] if task.id_prompt is None else self._of_id(task.id_prompt)
        return kind if task.personal_data is PersonalData.OFF else self._around(kind, task.personal_data)

    def _around(self, kind: TaskType, mode: PersonalData) -> TaskType:
        if self._masking is None:
            from ai_worker.task_types.masking import Masking

            self._masking = Masking(self._names_file)
        return self._masking.of(kind, mode)

    def named(self, name: str) -> tuple[TaskType, int | None]:
        """The type that a new task of this name would have now, and the prompt that it would be pinned to."""
        if (brought := self._unpublished.get(name)) is not None:
            return self.file(brought), None
        if (number := self._current.get(name)) is not None:
            return self._of_id(number), number
        if name in self.broken:
            raise ConfigurationError(self.broken[name])
        if name not in task_type_names():
            raise UsageError(f"unknown task type {name!r}; known ones: {', '.join(self.names())}")
        return task_type(name), None

    @property
    def unpublished(self) -> list[Brought]:
        """What this host brings and nobody else knows yet, by name; only after `open(publish=False)`."""
        return [self._unpublished[name] for name in sorted(self._unpublished)]

    def stored(self, prompt: Stored) -> TaskType:
        """The type that a row of the library makes. Raises ConfigurationError when this host cannot make it."""
        return self._parsed(prompt.name, prompt.digest, prompt.source, _place(prompt))

    def file(self, brought: Brought) -> TaskType:
        """The type that a file would make if it were pushed. Raises ConfigurationError, with file and line."""
        return self._parsed(*brought.parts)

    def names(self) -> list[str]:
        """All task types that a task may have, sorted."""
        return sorted({*task_type_names(), *self._current, *self._unpublished})

    def _of_id(self, id_prompt: int) -> TaskType:
        if (kind := self._by_id.get(id_prompt)) is not None:
            return kind
        failed_at, reason = self._failed.get(id_prompt, (float("-inf"), ""))
        if time.monotonic() - failed_at < FAILED_SECONDS:
            raise ConfigurationError(reason)
        try:
            kind = self._by_id[id_prompt] = self._read(id_prompt)
        except ConfigurationError as error:
            self._failed[id_prompt] = time.monotonic(), str(error)
            raise
        return kind

    def _read(self, id_prompt: int) -> TaskType:
        stored = self._rows.by_id(id_prompt)
        if stored is None:
            raise ConfigurationError(f"prompt {id_prompt} is not in the library any more")
        return self.stored(stored)

    def _parsed(self, name: str, digest: bytes, source: str, place: str) -> TaskType:
        from ai_worker.task_types.prompt_file import PromptFile

        with self._lock:
            if (kind := self._by_digest.get((name, digest))) is None:
                if (shipped := _shipped_type(name)) is not None and shipped[0] == digest:
                    kind = shipped[1]
                else:
                    kind = task_type_of(PromptFile.parse(name, source, place))
                self._by_digest[name, digest] = kind
            return kind


def _place(stored: Stored) -> str:
    return f"prompt {stored.name}, version {stored.version}, {stored.origin}"


@lru_cache(maxsize=500)
def checked(brought: Brought) -> NewPrompt:
    """A file that is right in every respect, as it goes into the library. Raises ConfigurationError, with file and line.

    What was right once is not tried again: a process that writes nothing finds the same new files each time it looks.
    """
    from ai_worker.task_types.foreseen import try_out
    from ai_worker.task_types.prompt_file import PromptFile

    file = PromptFile.parse(brought.name, brought.source, brought.place)
    task_type_of(file)
    try_out(file)
    return NewPrompt(file.name, file.version, brought.origin, file.digest, file.source)


def read_source(path: Path) -> str:
    """The text of a prompt file. Raises ConfigurationError when it cannot be one."""
    try:
        source = path.read_text(encoding=encoding_of(path))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}, line {line}: it is not in UTF-8") from None
    if len(source) > SOURCE_AT_MOST:
        raise ConfigurationError(f"{path}: a prompt has {SOURCE_AT_MOST:,} characters at most, not {len(source):,}")
    return source


def _files(folder: Path | None) -> list[Path]:
    """The folder's prompts; what begins with a point or an underscore is none."""
    if folder is None:
        return []
    try:
        return sorted(each for each in folder.iterdir() if each.suffix == SUFFIX and each.name[0] not in "._")
    except OSError as error:
        raise ConfigurationError(f"AI_WORKER_PROMPT_FOLDER: {folder} cannot be read: {error.strerror}") from None


def _shipped() -> Iterator[tuple[str, str]]:
    for file in resources.files("ai_worker.task_types").joinpath("prompts").iterdir():
        if file.name.endswith(SUFFIX) and not file.name.startswith("_"):
            yield file.name.removesuffix(SUFFIX), file.read_text(encoding="utf-8")


def _shipped_type(name: str) -> tuple[bytes, TaskType] | None:
    """The built-in type of this name with its prompt's digest: one object in the process, however it is asked for."""
    if name not in task_type_names():
        return None
    kind = task_type(name)
    file = getattr(kind, "file", None)
    return None if file is None else (file.digest, kind)


def _has(known: Sequence[Known], brought: Brought) -> bool:
    return any((row.name, row.origin, row.digest) == (brought.name, brought.origin, brought.digest) for row in known)
