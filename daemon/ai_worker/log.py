"""Logs: one vocabulary of events, written as JSON lines, or readable ones on a terminal, and never a secret in them.

    log = Log().bind(worker=7)
    log(Event.DONE, **of_item(item, "gpt"), tokens_input=812, cost="0.0004")

Standard error takes the log; standard output stays free for data. Under systemd, lines carry the `<N>` that gives the journal
their priority. Lines of other libraries (warnings and worse) come out in the same shape, as the event LIBRARY.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ai_worker.events import Event
from ai_worker.models import Item
from ai_worker.redaction import excerpt, redact, redacted, redacted_text

__all__ = [
    "DEBUG",
    "ERROR",
    "INFO",
    "WARNING",
    "Event",
    "Log",
    "bound",
    "configure",
    "excerpt",
    "of_item",
    "redacted",
    "redacted_text",
]

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

LEFT_OUT_SECONDS = 60.0  # between two lines that tell how many were left out


class Log:
    """Writes events, with the fields bound so far on each line. Cheap to make, cheap to bind, safe in any thread."""

    __slots__ = ("_context",)

    def __init__(self, **context: object) -> None:
        self._context = context

    def bind(self, **context: object) -> Log:
        """A log that adds these fields to each of its lines."""
        return Log(**{**self._context, **context})

    def carry(self, **context: object) -> None:
        """Has this very log add these fields to each line from now on, also where others have it already."""
        self._context = {**self._context, **context}

    def __call__(
        self, event: Event, *, level: int | None = None, exc_info: BaseException | None = None, **fields: object
    ) -> None:
        """Writes one line, unless its level is switched off. `level` overrules the event's own (ERROR as a warning)."""
        number = event.level if level is None else level
        if number < _state.level:
            return
        if exc_info is not None:
            fields["exc_info"] = exc_info
        _state.write(_LEVEL_NAMES[number], {"event": event.name, **_bound.get(), **self._context}, [fields])

    def each(self, event: Event, rows: Sequence[Mapping[str, object]], *, left_out: int = 0) -> None:
        """Writes one line per row of fields, all in one go: what thousands of lines a second would else cost in system calls.

        `left_out` is how many rows more there would be, had `keeps` not said otherwise.
        """
        if event.level >= _state.level:
            if left_out:
                _state.left_out[event] += left_out
            if rows:
                _state.write(_LEVEL_NAMES[event.level], {"event": event.name, **_bound.get(), **self._context}, rows)

    def tell_left_out(self, every: float = LEFT_OUT_SECONDS) -> None:
        """Writes how many lines were left out since it was told last, if any were and that is so many seconds ago."""
        seconds = time.monotonic() - _state.told_at
        if _state.left_out and seconds >= every:
            left_out, _state.left_out, _state.told_at = _state.left_out, Counter(), time.monotonic()
            done, fetch = left_out[Event.DONE], left_out[Event.FETCH]
            self(Event.LEFT_OUT, share=_state.share, done=done, fetch=fetch, seconds=round(seconds, 1))

    @staticmethod
    def enabled(level: int) -> bool:
        """Whether a line of this level would be written: spares the work of building its fields."""
        return level >= _state.level

    @staticmethod
    def keeps_all() -> bool:
        """Whether the lines of all items are written that tell of nothing wrong; else `keeps` says of which."""
        return _state.share == 1 and _state.level <= INFO

    @staticmethod
    def keeps(id_task_item: int) -> bool:
        """Whether such lines are written of this item. All of an item share its fate, in every process and at every attempt."""
        # Times 2^32 over the golden ratio, numbers in a row are spread evenly (Knuth, The Art of Computer Programming, 6.4).
        return _state.level <= INFO and (id_task_item * 2654435769 & 0xFFFFFFFF) < _state.share * 2**32


_bound: ContextVar[Mapping[str, object]] = ContextVar("ai_worker_log", default=MappingProxyType({}))


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Adds these fields to each line that is written within the block, by whichever log: also by tasks that begin in it, and by
    threads that are given its context."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def of_item(item: Item, model: str) -> dict[str, Any]:
    """The fields that every line about an item carries."""
    return {
        "task": item.task.id_task,
        "item": item.id_task_item,
        "attempt": item.attempt,
        "operation_uuid": item.operation_uuid,
        "model": model,
    }


def configure(level: str = "info", format: Literal["auto", "json", "console"] = "auto", sample: float = 1) -> None:
    """Sets up the log of this process, on the present `sys.stderr`. May be called again at any time, while others are writing:
    each line is written once, as it was set up before or after.

    Parameters
    ----------
    level: debug, info, warning or error.
    format: readable lines, or JSON; "auto" is readable on a terminal.
    sample: the share of items whose lines are written that tell of nothing wrong, 0 to 1. Warnings and errors always are.
    """
    stream = sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    if format == "console" or (format == "auto" and stream.isatty()):
        # No pretty tracebacks: they print local variables, and with them keys and row texts.
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty() and not os.environ.get("NO_COLOR"),
            timestamp_key="time",
            pad_event_to=14,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
        stamp: Callable[[str], EventDict] = _local_time
        processors: list[Processor] = [_redact_fields, renderer, _redact_line]
    else:
        stamp = _utc_time
        processors = [structlog.processors.format_exc_info, _redact_fields, _render_json, _redact_line]
        if _is_journal(stream):
            processors.append(_prefix_priority)
    # The same stream keeps its lock, so that lines of several threads stay apart; the way is changed in one go.
    out = _state.way.out if _state.way.out.is_of(stream) else _Stream(stream)
    _state.way = _Way(stamp, processors, out)
    _state.level, _state.share = number, sample
    # A plug-in that logs through structlog comes out in the same shape.
    structlog.configure(
        processors=[lambda _, level, fields: {**stamp(level), **fields}, *processors],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: out,
    )
    # Libraries speak through `logging`: only warnings and worse, since at INFO the HTTP clients write a line per request.
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryHandler) for handler in root.handlers):
        root.addHandler(_LibraryHandler())
    for handler in [each for each in root.handlers if not isinstance(each, _LibraryHandler)]:
        root.removeHandler(handler)  # after ours was there: in between, a line would go out raw
        handler.close()
    root.setLevel(max(number, WARNING))


_LEVEL_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error", logging.CRITICAL: "critical"}
_PRIORITY = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}


class _Stream:
    """Where finished lines go. A log that cannot be written (its reader has gone, the disk is full) never stops the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # Bytes below the text layer: one write per line keeps lines of several threads apart, and costs half.
        self._buffer = getattr(stream, "buffer", None)
        self._lock = threading.Lock()

    def is_of(self, stream: TextIO) -> bool:
        """Whether this is where it goes."""
        return self._stream is stream

    def write(self, text: str) -> None:
        """One line, or several with line ends between them."""
        try:
            if self._buffer is None:
                with self._lock:
                    self._stream.write(text + "\n")
                    self._stream.flush()
            else:
                data = (text + "\n").encode("utf-8", "backslashreplace")
                with self._lock:
                    self._buffer.write(data)
                    self._buffer.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            pass

    debug = info = warning = error = critical = write


class _Way(NamedTuple):
    """How a line is made of fields, and where it goes."""

    stamp: Callable[[str], EventDict]
    processors: Sequence[Processor]
    out: _Stream


class _State:
    """The one configuration of the process. Nothing is written before `configure` was called."""

    __slots__ = ("left_out", "level", "share", "told_at", "way")

    def __init__(self) -> None:
        self.level = ERROR + 1
        self.share = 1.0
        self.way = _Way(lambda level: {"level": level}, (), _Stream(sys.stderr))
        self.left_out: Counter[Event] = Counter()
        self.told_at = time.monotonic()

    def write(self, level: str, common: EventDict, rows: Iterable[Mapping[str, object]]) -> None:
        """What structlog's bound logger does, with fewer copies of the fields: DONE is written thousands of times a second."""
        way = self.way
        head = {**way.stamp(level), **common}
        lines: list[str] = []
        for fields in rows:
            line: Any = {**head, **fields}
            for process in way.processors:
                line = process(None, level, line)
            lines.append(line)
        way.out.write("\n".join(lines))


_state = _State()


class _LibraryHandler(logging.Handler):
    """Turns a record of `logging` into an event LIBRARY."""

    def emit(self, record: logging.LogRecord) -> None:
        level = WARNING if record.levelno < ERROR else ERROR
        if level < _state.level:
            return
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 -- a library's arguments that do not fit its text must not stop the work
            message = str(record.msg)
        fields: EventDict = {"logger": record.name, "message": message}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        _state.write(_LEVEL_NAMES[level], {"event": Event.LIBRARY.name, **_bound.get()}, [fields])


def _utc_time(level: str) -> EventDict:
    """Time, level and event stand first, so that lines can be read down the left edge. ISO 8601 in UTC, milliseconds."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return {"time": f"{_utc_second(seconds)}.{rest // 1_000_000:03d}Z", "level": level}


@lru_cache(maxsize=4)
def _utc_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _local_time(level: str) -> EventDict:
    return {"time": time.strftime("%H:%M:%S"), "level": level}


def _redact_fields(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    return redact(fields)


def _redact_line(_: WrappedLogger, __: str, line: Any) -> str:
    return redacted_text(line)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def _render_json(_: WrappedLogger, __: str, fields: EventDict) -> str:
    try:
        return orjson.dumps(fields, default=str).decode()
    except TypeError:  # rare, and the standard library takes more: keys that are no texts, surrogates, integers beyond 64 bits
        return _encode(fields)


def _prefix_priority(_: WrappedLogger, method: str, line: Any) -> str:
    """journald takes `<N>` at the beginning of a line for its priority (sd-daemon(3))."""
    return f"{_PRIORITY[method]}{line}"


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd connected this very stream to the journal: JOURNAL_STREAM holds its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
