"""The verbs of `ai_model`: endpoints, their encrypted keys, and the breaker that stops one for every worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Final, TypedDict, TypeVar, Unpack

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseError, UsageError
from ai_worker.models import Model
from ai_worker.text import clean

T = TypeVar("T")

_COLUMNS: Final = tuple(each.name for each in fields(Model))
_DUPLICATE, _USED, _TOO_LONG, _OUT_OF_RANGE = 1062, 1451, 1406, 1264


class Changes(TypedDict, total=False):
    """What `Models.set` may change; a missing key leaves the column as it is. The fields are those of `Model`."""

    name: str
    provider: str
    model: str | None
    base_url: str | None
    options: dict[str, Any]
    max_requests_per_minute: int | None
    max_tokens_per_minute: int | None
    max_in_flight: int | None
    price_input: Any
    price_cached: Any
    price_output: Any
    budget_per_day: Any
    is_active: bool


class Models:
    """All verbs about endpoints. A model is named by its name or, where that is a number, by its `id_ai_model`.

    With `keys` False, nothing is read of their encrypted keys, for users who may not: `all` and `get` alone work then.
    """

    def __init__(self, db: Database, *, keys: bool = True) -> None:
        self._db = db
        self._keys = keys

    def add(self, model: Model, seal: Callable[[int], bytes] | None = None) -> int:
        """Stores a new model and returns its `id_ai_model`; the one in `model` is ignored.

        `seal` makes the value of `api_key_encrypted` once the id is known, since an encrypted key is bound to it.
        Raises UsageError when the name is taken or a value does not fit its column.
        """
        if model.name.isdigit():
            raise UsageError(f"a model's name must not be a number, as {model.name!r} is: it would be taken for an id")

        def work(transaction: Transaction) -> int:
            try:
                number = transaction.insert("model_add", _row(model))
            except Exception as error:
                # A COMMIT whose answer was lost had landed: the name is taken by this very call.
                if transaction.in_doubt and error.args[:1] == (_DUPLICATE,):
                    return next(each.id_ai_model for each in _all(transaction) if each.name == model.name)
                raise
            if seal is not None:
                transaction.execute("model_set_key", {"id_ai_model": number, "api_key_encrypted": seal(number)})
            return number

        return self._checked(work, model.name)

    def all(self) -> list[Model]:
        """All models, the oldest first."""
        return [_model(row) for row in self._db.query("model_list" if self._keys else "model_list_without_keys")]

    def get(self, model: str | int) -> Model:
        """One model. Raises UsageError, naming those there are, when there is no such one."""
        return _find(self.all(), model)

    def set(self, model: str | int, /, **changes: Unpack[Changes]) -> Model:
        """Changes some columns of a model and returns the whole. Raises UsageError as `get` and `add` do."""

        def work(transaction: Transaction) -> Model:
            number = _find(_all(transaction), model).id_ai_model
            locked = transaction.query("model_lock", {"id_ai_model": number})
            if not locked:
                raise UsageError(f"model {model!r} was removed just now")
            changed = replace(_model(locked[0]), **changes)
            transaction.execute("model_set", _row(changed))
            return changed

        if str(changes.get("name", "")).isdigit():
            raise UsageError("a model's name must not be a number: it would be taken for an id")
        return self._checked(work, str(changes.get("name", model)))

    def set_key(self, id_ai_model: int, api_key_encrypted: bytes | None) -> None:
        """Stores an encrypted key, or takes it away."""
        self._db.execute("model_set_key", {"id_ai_model": id_ai_model, "api_key_encrypted": api_key_encrypted})

    def rekey(self, seal: Callable[[int, bytes], bytes | None]) -> int:
        """Replaces all keys in one transaction and returns how many.

        `seal` gets `id_ai_model` and the stored value, and returns the new one, or None to leave it. If it raises, all stay.
        """

        def work(transaction: Transaction) -> int:
            count = 0
            for row in transaction.query("model_keys_lock"):
                value = seal(row["id_ai_model"], bytes(row["api_key_encrypted"]))
                if value is not None:
                    count += transaction.execute("model_set_key", {"id_ai_model": row["id_ai_model"], "api_key_encrypted": value})
            return count

        return self._db.transaction(work)

    def remove(self, model: str | int) -> None:
        """Deletes a model. Raises UsageError when there is none, or when tasks use it."""
        found = self.get(model)
        try:
            self._db.execute("model_remove", {"id_ai_model": found.id_ai_model})
        except DatabaseError as error:
            if error.code != _USED:
                raise
            tasks = self._db.query("model_task_count", {"id_ai_model": found.id_ai_model})[0]["tasks"]
            raise UsageError(
                f"model {found.name!r} is used by {tasks} {'task' if tasks == 1 else 'tasks'} and stays, with what they cost; "
                f"to keep it from being used, run `ai-worker model set {found.name} --inactive`"
            ) from None

    def stop(self, id_ai_model: int, kind: str, reason: str, probe_seconds: float, is_probe: bool = False) -> bool:
        """Stops a model for every worker; after `probe_seconds`, by the database's clock, one may try it again.

        `is_probe` says that it was such a try that failed. True when this call stopped it, or kept it stopped after a probe;
        False when somebody else had done so already.
        """
        stopped = {"kind": kind[:32], "reason": clean(reason)[:1000], "probe_seconds": probe_seconds}
        parameters = {"id_ai_model": id_ai_model, **stopped, "is_probe": is_probe}
        return self._db.execute("model_stop", parameters) == 1

    def resume(self, id_ai_model: int) -> bool:
        """Lets everybody use a model again. True when it was stopped."""
        return self._db.execute("model_resume", {"id_ai_model": id_ai_model}) == 1

    def reset(self, id_ai_model: int) -> None:
        """Lets everybody use a model again, and forgets what was learnt of its limits."""

        def work(transaction: Transaction) -> None:
            transaction.execute("model_resume", {"id_ai_model": id_ai_model})
            transaction.execute("forget_pace", {"id_ai_model": id_ai_model})

        self._db.transaction(work)

    def _checked(self, work: Callable[[Transaction], T], name: str) -> T:
        try:
            return self._db.transaction(work)
        except DatabaseError as error:
            if error.code == _DUPLICATE:
                raise UsageError(f"there is a model {name!r} already; `ai-worker model set {name}` changes it") from None
            if error.code in (_TOO_LONG, _OUT_OF_RANGE):
                raise UsageError(f"model {name!r}: {error}") from None
            raise


def _all(transaction: Transaction) -> list[Model]:
    return [_model(row) for row in transaction.query("model_list")]


def _find(models: list[Model], wanted: str | int) -> Model:
    for model in models:
        if model.name == wanted:
            return model
    for model in models:
        if str(model.id_ai_model) == str(wanted):
            return model
    if not models:
        raise UsageError(f"unknown model {wanted!r}; there are none yet: `ai-worker model add` makes one")
    raise UsageError(f"unknown model {wanted!r}; known ones: {', '.join(each.name for each in models)}")


def _model(row: Row) -> Model:
    values: dict[str, Any] = {name: row.get(name) for name in _COLUMNS}
    values["options"] = json.loads(row["options"]) if row["options"] else {}
    values["is_active"] = bool(row["is_active"])
    return Model(**values)


def _row(model: Model) -> dict[str, Any]:
    row = {name: getattr(model, name) for name in _COLUMNS}
    row["options"] = json.dumps(model.options, ensure_ascii=False) if model.options else None
    return row
