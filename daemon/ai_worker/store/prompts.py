"""The prompt library: the rows of `prompt`, which all hosts see. What stands in them is for `task_types` to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseError, NotFound, UsageError
from ai_worker.store.claims import json_object

_DUPLICATE: Final = 1062
SOURCE_AT_MOST: Final = 1_000_000  # characters: below every max_allowed_packet in use


class Origin(StrEnum):
    """`prompt.origin`: where a prompt came from. A later one goes before the earlier ones."""

    SHIPPED = "shipped"
    FOLDER = "folder"
    PUSHED = "pushed"


class NewPrompt(NamedTuple):
    """A prompt to be made known. `digest` is a SHA-256 over all that its file stands for."""

    name: str
    version: int
    origin: Origin
    digest: bytes
    source: str


class SampleItem(NamedTuple):
    """What a prompt sees of an item."""

    id_task: int
    text: str
    context: Mapping[str, Any]
    context_key: str | None


class SampleTask(NamedTuple):
    """What a prompt sees of a task, and the prompt that it is pinned to."""

    task_type: str
    description: str
    parameters: Mapping[str, Any]
    id_prompt: int | None


class Known(NamedTuple):
    """What is in the library, without the text. `is_current`: new tasks of the type `name` are pinned to it."""

    id_prompt: int
    name: str
    version: int
    origin: Origin
    digest: bytes
    is_active: bool
    is_current: bool
    created_by: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Stored:
    """A prompt of the library."""

    id_prompt: int
    name: str
    version: int
    origin: Origin
    digest: bytes
    source: str


class Prompts:
    """All verbs on prompts."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def all(self) -> list[Known]:
        """Everything that is in the library: by name, and of a name what goes first first."""
        current: set[str] = set()
        known: list[Known] = []
        for row in self._db.query("prompts"):
            is_current = bool(row["is_active"]) and row["name"] not in current
            if is_current:
                current.add(row["name"])
            known.append(_known(row, is_current))
        return known

    def current(self, name: str) -> int | None:
        """The prompt that a new task of this type is pinned to; None where the type has none."""
        rows = self._db.query("current_prompt", {"name": name})
        return rows[0]["id_prompt"] if rows else None

    def by_id(self, id_prompt: int) -> Stored | None:
        """One prompt; None where there is none, or no more."""
        rows = self._db.query("prompt_of_id", {"id_prompt": id_prompt})
        return _stored(rows[0]) if rows else None

    def publish(self, prompts: Sequence[NewPrompt]) -> int:
        """Makes prompts known that a host brings with it; how many were not known. Any number of hosts may do so at once."""
        return self._db.transaction(partial(_published, prompts)) if prompts else 0

    def refuse(self, prompt: NewPrompt) -> bool:
        """Raises UsageError as `push` would, and writes nothing; whether it would be new."""
        same = _same(self._db.query("prompts_of_name", {"name": prompt.name}), prompt)
        return same is None or not same["is_active"]

    def version(self, name: str, version: int) -> Stored | None:
        """The prompt of a version; where several places have it, the one that goes first."""
        rows = [row for row in self._db.query("prompts_of_name", {"name": name}) if row["version"] == version]
        return _stored(rows[0]) if rows else None

    def row(self, id_task_item: int) -> SampleItem | None:
        """An item as a prompt sees it; None where there is none."""
        rows = self._db.query("sample_item", {"id_task_item": id_task_item})
        if not rows:
            return None
        row = rows[0]
        return SampleItem(row["id_task"], row["text_original"], json_object(row["context"]), row["context_key"])

    def task(self, id_task: int) -> SampleTask | None:
        """A task as a prompt sees it; None where there is none."""
        rows = self._db.query("sample_task", {"id_task": id_task})
        if not rows:
            return None
        row = rows[0]
        return SampleTask(row["task_type"], row["description"] or "", json_object(row["parameters"]), row["id_prompt"])

    def push(self, prompt: NewPrompt, pushed_by: str | None) -> tuple[Stored, bool]:
        """Adds a team's own prompt; with whether it is new. The same file once more changes nothing, or brings it back.

        Raises UsageError when the file has changed and its version has not been raised.
        """
        try:
            return self._db.transaction(partial(_pushed, prompt, pushed_by))
        except DatabaseError as error:
            if error.code != _DUPLICATE:
                raise
        return self._db.transaction(partial(_pushed, prompt, pushed_by))  # somebody has pushed the same file in the same instant

    def retire(self, name: str, version: int | None) -> tuple[Known, Known | None]:
        """Takes a prompt out of use for new tasks: the pushed one of a `version`, or the current one; and what is current then,
        None where the last one of a team's own task type was meant.

        Raises UsageError when there is no such prompt, or when it is the shipped one and no other is left.
        """
        return self._db.transaction(partial(_retired, name, version))


def _published(prompts: Sequence[NewPrompt], tx: Transaction) -> int:
    # By key, as any other host that starts now: two that insert in different orders would meet in a deadlock.
    ordered = sorted(prompts, key=lambda prompt: (prompt.name, prompt.origin, prompt.digest))
    return tx.execute_many("publish_prompts", [_columns(prompt, None) for prompt in ordered])


def _pushed(prompt: NewPrompt, pushed_by: str | None, tx: Transaction) -> tuple[Stored, bool]:
    same = _same(tx.query("lock_prompts", {"name": prompt.name}), prompt)
    if same is not None:
        if not same["is_active"]:
            tx.execute("activate_prompt", {"id_prompt": same["id_prompt"], "is_active": 1})
        return _stored(same), not same["is_active"]
    number = tx.insert("push_prompt", _columns(prompt, pushed_by))
    # Of a new name there was nothing to lock. Now there is: of two that have both come so far, one waits for the other here.
    others = [row for row in tx.query("lock_prompts", {"name": prompt.name}) if row["id_prompt"] != number]
    _same(others, prompt)
    return Stored(number, *prompt), True


def _same(library: Sequence[Row], prompt: NewPrompt) -> Row | None:
    """The row that this file has become before, None where it is new. Raises UsageError when its version must be raised."""
    rows = [row for row in library if row["origin"] == Origin.PUSHED]
    same = next((row for row in rows if row["digest"] == prompt.digest), None)
    if same is None:
        same = next((row for row in rows if (row["version"], row["source"]) == (prompt.version, prompt.source)), None)
    if same is not None:
        return same
    newest = max([row["version"] for row in rows], default=0)
    if prompt.version <= newest:
        is_taken = any(row["version"] == prompt.version for row in rows)
        problem = f"version {prompt.version} is pushed already, with other content" if is_taken else f"version {newest} is newer"
        raise UsageError(f"{prompt.name}: {problem}: write `version = {newest + 1}` into the file, and push it again")
    return None


def _retired(name: str, version: int | None, tx: Transaction) -> tuple[Known, Known | None]:
    rows = tx.query("lock_prompts", {"name": name})
    active = [row for row in rows if row["is_active"]]
    if version is None:
        found = active[:1]
    else:
        found = [row for row in rows if row["origin"] == Origin.PUSHED and row["version"] == version]
    if not found:
        which = f"{name!r}" if version is None else f"{name!r} of version {version} that was pushed"
        raise NotFound(f"there is no prompt {which}; `ai-worker prompt list --all` names those there are")
    left = [row for row in active if row["id_prompt"] != found[0]["id_prompt"]]
    if not left and found[0]["origin"] == Origin.SHIPPED:
        raise UsageError(f"no other prompt {name!r} would be left for the tasks of this type; push one first")
    tx.execute("activate_prompt", {"id_prompt": found[0]["id_prompt"], "is_active": 0})
    return _known({**found[0], "is_active": 0}, is_current=False), _known(left[0], is_current=True) if left else None


def _columns(prompt: NewPrompt, created_by: str | None) -> dict[str, object]:
    return {**prompt._asdict(), "origin": prompt.origin.value, "created_by": created_by}


def _known(row: Row, is_current: bool) -> Known:
    return Known(
        row["id_prompt"],
        row["name"],
        row["version"],
        Origin(row["origin"]),
        row["digest"],
        bool(row["is_active"]),
        is_current,
        row["created_by"],
        row["created_at"],
    )


def _stored(row: Row) -> Stored:
    return Stored(row["id_prompt"], row["name"], row["version"], Origin(row["origin"]), row["digest"], row["source"])
