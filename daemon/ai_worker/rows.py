"""Rows out of CSV, JSONL and text files: streamed, checked, and with a message for people where they cannot be used.

What is refused, and what is not:

* a cell that is not there, not text, longer than its column in the database, or holds NUL or half a surrogate pair: refused
* an empty cell, or one of white space alone: skipped and counted
* everything else, such as emoji, line ends inside of quotes, a byte order mark: taken as it is
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final, Literal, NoReturn, Self

from ai_worker.errors import UsageError
from ai_worker.store.new_tasks import NewItem, fits

Format = Literal["csv", "jsonl", "txt"]

SUFFIXES: Final[dict[str, Format]] = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}
USUAL_COLUMNS: Final = ("text_original", "text")
USUAL_CONTEXT_KEY: Final = "context_key"
USUAL_CONTEXT: Final = "context"  # in JSONL; as an object it is the item's context, not a part of it

LONGEST_TEXT: Final = 16_777_215  # bytes of a MEDIUMTEXT
LONGEST_KEY: Final = 190  # characters of task_item.external_key and context_key
LONGEST_CONTEXT: Final = 1_000_000  # characters of all the other columns of a row
LONGEST_LINE: Final = 120_000_000  # characters: a text of the longest size, each character written as \uXXXX, and then some

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read an input. `packet` is the longest statement that the database takes, in bytes.

    `column` holds the text, `key_column` the caller's own key, `context_key_column` whom or what it is about; the others become
    the item's context. Without `column` it is `text_original`, `text`, or the only one there is; in JSONL, without
    `context_key_column`, the field `context_key`; and an object in the field `context` is taken as the context itself.
    """

    format: Format
    column: str | None = None
    key_column: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    packet: int = 16_777_216
    context_key_column: str | None = None

    @property
    def subject_column(self) -> str | None:
        """Where the context key stands, where there is one."""
        return self.context_key_column or (USUAL_CONTEXT_KEY if self.format == "jsonl" else None)


class RowFile:
    """An input that can be read from its start as often as needed. Anything but a plain file is copied to a temporary one first.

    `name` is for messages; `skipped` is how many rows without text the latest reading has met.
    """

    def __init__(self, file: IO[bytes], name: str, layout: Layout) -> None:
        self._file = file
        self.name = name
        self.layout = layout
        self.skipped = 0

    @classmethod
    def open(cls, path: str, layout: Layout) -> Self:
        """Opens a file, or standard input for `-`. Raises UsageError when it cannot be read."""
        name = "standard input" if path == "-" else path
        try:
            if path == "-":
                return cls(_spooled(sys.stdin.buffer), name, layout)
            file = Path(path).open("rb")  # noqa: SIM115 -- closed by `close`
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return cls(file, name, layout)
            with file:  # a pipe, such as the shell's <(...), can be read only once
                return cls(_spooled(file), name, layout)
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self) -> Iterator[NewItem]:
        """All rows with a text. Raises UsageError when there is none, or at the first that cannot be used, naming its line."""
        self.skipped = 0
        read = {"csv": self._csv, "jsonl": self._jsonl, "txt": self._txt}[self.layout.format]
        found = False
        try:
            with self._text() as stream:
                for item in read(stream):
                    found = True
                    yield item
        except UnicodeDecodeError:
            raise self._undecodable() from None
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read any further: {error.strerror or error}") from None
        if not found:
            raise UsageError(
                f"{self.name} holds no text: all of its {self.skipped} rows are empty"
                if self.skipped
                else f"{self.name} holds a header, but no rows"
                if self.layout.format == "csv"
                else f"{self.name} is empty"
            )

    # ----- bytes to lines

    def _text(self) -> io.TextIOWrapper:
        encoding = self.layout.encoding
        try:
            if codecs.lookup(encoding).name == "utf-8":
                encoding = "utf-8-sig"  # the same, but a byte order mark is not taken for text
            copy = os.fdopen(os.dup(self._file.fileno()), "rb")  # closing the stream must not close the file
            copy.seek(0)
            # CSV wants its line ends untouched; in JSONL only \n ends a line.
            return io.TextIOWrapper(copy, encoding, newline={"csv": "", "jsonl": "\n", "txt": None}[self.layout.format])
        except LookupError:
            raise UsageError(f"unknown --encoding {encoding!r}; examples: utf-8, cp1250, iso-8859-2, utf-16") from None

    def _lines(self, stream: io.TextIOWrapper) -> Iterator[str]:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if "\0" in line:
                self._refuse(
                    number,
                    "a NUL character, which texts do not have. If the file is UTF-16, say --encoding utf-16; "
                    "otherwise remove them: tr -d '\\000' < FILE",
                )
            if len(line) >= LONGEST_LINE:
                self._refuse(number, f"the line is longer than {LONGEST_LINE:,} characters")
            yield line

    def _undecodable(self) -> UsageError:
        """Finds the place that cannot be decoded: the stream reads ahead and cannot tell."""
        encoding = self.layout.encoding
        offset = 0
        self._file.seek(0)
        for number, line in enumerate(iter(lambda: self._file.readline(LONGEST_LINE), b""), 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                if "16" in encoding or "32" in encoding:
                    break  # bytes of half a character look like line ends
                hint = "utf-16" if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1250"
                return UsageError(
                    f"{self.name}, line {number}: byte 0x{line[error.start]:02x} at offset {offset + error.start} is not "
                    f"{encoding}. Say which encoding the file has, for example --encoding {hint}"
                )
            offset += len(line)
        return UsageError(f"{self.name} is not {encoding}. Say which encoding the file has, for example --encoding cp1250")

    # ----- lines to rows

    def _csv(self, stream: io.TextIOWrapper) -> Iterator[NewItem]:
        lines = self._lines(stream)
        first = next(lines, None)
        if first is None:
            raise UsageError(f"{self.name} is empty")
        csv.field_size_limit(LONGEST_TEXT)  # characters; the module's own limit is 131,072
        delimiter = self.layout.delimiter or _delimiter(first)
        reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        records = self._records(reader)
        _, header = next(records, (1, []))
        if not header:
            raise UsageError(f"{self.name} is empty")
        names = [name.strip() for name in header]
        text_at, key_at, subject_at = self._columns(names)
        others = [(at, name) for at, name in enumerate(names) if name and at not in (text_at, key_at, subject_at)]
        field = names[text_at]
        for line, record in records:
            if len(record) > len(names) or len(record) <= text_at:
                self._refuse(
                    line,
                    f"{_fields(len(record))} where the header has {len(names)} (delimiter {delimiter!r}). "
                    "Put quotes around cells that hold the delimiter, or name the right one with --delimiter",
                )
            text = record[text_at]
            if not text or text.isspace():
                self.skipped += 1
                continue
            context = {name: record[at] for at, name in others if at < len(record) and record[at]} if others else None
            key, subject = (record[at] if at is not None and at < len(record) else None for at in (key_at, subject_at))
            yield self._item(line, field, text, key, context, subject)

    def _records(self, reader: Any) -> Iterator[tuple[int, list[str]]]:
        """Records with the number of the line that they begin on; blank lines are passed over."""
        line = 1
        try:
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1
        except csv.Error as error:
            said = str(error)
            if "field limit" in said:
                self._refuse(line, f"a cell longer than {LONGEST_TEXT:,} characters; perhaps a quote is never closed")
            if "end of data" in said:
                self._refuse(line, "a quote is opened here and never closed")
            if "expected after" in said:
                self._refuse(line, 'text after a closing quote. Quotes inside of a quoted cell must be doubled: "he said ""no"""')
            self._refuse(line, f"this is not CSV: {said}")

    def _columns(self, names: Sequence[str]) -> tuple[int, int | None, int | None]:
        """The positions of the text, of the key and of the context key."""
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            self._refuse(1, f"the header names the column {_short(twice)!r} twice")
        text = names.index(self._column(names))
        key = self._place(names, self.layout.key_column, "--key-column")
        return text, key, self._place(names, self.layout.context_key_column, "--context-key-column")

    def _place(self, names: Sequence[str], wanted: str | None, option: str) -> int | None:
        if wanted is not None and wanted not in names:
            raise UsageError(f"{self.name} has no column {wanted!r}, which {option} asks for; {_listed(names)}")
        return None if wanted is None else names.index(wanted)

    def _column(self, names: Sequence[str]) -> str:
        column = self.layout.column
        if column is not None:
            if column not in names:
                raise UsageError(f"{self.name} has no column {column!r}; {_listed(names)}")
            return column
        rest = [name for name in names if name not in (self.layout.key_column, self.layout.subject_column)]
        for usual in USUAL_COLUMNS:
            if usual in rest:
                return usual
        if len(rest) == 1:
            return rest[0]
        raise UsageError(
            f"{self.name} has no column named text_original or text; {_listed(names)}. Name the one to use with --column"
        )

    def _jsonl(self, stream: io.TextIOWrapper) -> Iterator[NewItem]:
        decode = json.JSONDecoder(parse_constant=_no_constant).decode
        key_column, subject_column = self.layout.key_column, self.layout.subject_column
        column = ""
        for line, raw in enumerate(self._lines(stream), 1):
            if raw.isspace():
                continue
            value = self._decoded(line, raw, decode)
            key: str | None = None
            subject: str | None = None
            context: dict[str, Any] | None = None
            if isinstance(value, dict):
                column = column or self._column(list(value))
                if column not in value:
                    self._refuse(line, f"the object has no field {column!r}; {_listed(list(value))}")
                context = {name: each for name, each in value.items() if name not in (column, key_column, subject_column)}
                if isinstance(whole := context.get(USUAL_CONTEXT), dict):
                    del context[USUAL_CONTEXT]
                    context |= whole
                key, subject = (self._key(line, value, name) for name in (key_column, subject_column))
                value = value[column]
            if value is None or (isinstance(value, str) and (not value or value.isspace())):
                self.skipped += 1
                continue
            if not isinstance(value, str):
                self._refuse(line, f"the text must be a JSON string, but is {_short(_encode(value))}")
            yield self._item(line, column or "text", value, key, context, subject)

    def _key(self, line: int, row: dict[str, Any], name: str | None) -> str | None:
        key = row.get(name) if name else None
        if key is not None and not isinstance(key, str | int):
            self._refuse(line, f"the key must be a string or an integer, but field {name!r} is {_short(_encode(key))}")
        return None if key is None else str(key)

    def _decoded(self, line: int, raw: str, decode: Callable[[str], Any]) -> Any:
        try:
            return decode(raw.rstrip())  # else an early end is told as the beginning of the next line
        except RecursionError:
            self._refuse(line, "the JSON is nested too deeply")
        except json.JSONDecodeError as error:
            self._refuse(
                line, f"broken JSON at column {error.colno}: {error.msg}: {_short(raw[max(0, error.pos - 20) :].strip())}"
            )
        except ValueError as error:
            self._refuse(line, f"JSON that a database does not take: {_short(str(error))}")

    def _txt(self, stream: io.TextIOWrapper) -> Iterator[NewItem]:
        for line, raw in enumerate(self._lines(stream), 1):
            text = raw.removesuffix("\n")
            if text and not text.isspace():
                yield self._item(line, "text", text)

    # ----- rows to items

    def _item(
        self,
        line: int,
        field: str,
        text: str,
        key: str | None = None,
        context: dict[str, Any] | None = None,
        subject: str | None = None,
    ) -> NewItem:
        try:
            size = len(text) if text.isascii() else len(text.encode())
            others = _encode(context) if context else None
            if self.layout.format == "jsonl":  # only there can characters be written that no encoding has
                others and others.encode()
                keys = f"{key or ''}{subject or ''}"
                keys.encode()
                if "\0" in text or "\0" in keys:
                    self._refuse(line, f"field {field!r} or the key holds a NUL character (\\u0000), which texts do not have")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            self._refuse(line, f"{half}, half of a surrogate pair, which is no character: the program that wrote the file cut it")
        except ValueError:
            self._refuse(line, "a number that JSON does not have")
        for each in (key, subject):
            if each is not None and len(each) > LONGEST_KEY:
                self._refuse(line, f"the key is longer than {LONGEST_KEY} characters: {_short(each)!r}")
        if others is not None and len(others) > LONGEST_CONTEXT:
            self._refuse(
                line, f"the columns beside {field!r} hold more than {LONGEST_CONTEXT:,} characters; leave out what is not needed"
            )
        if size > 100_000:  # spares the usual text the exact look
            if size > LONGEST_TEXT:
                self._refuse(
                    line,
                    f"column {field!r} holds {size:,} bytes, and an item at most {LONGEST_TEXT:,}; split it: {_short(text)!r}",
                )
            if not fits(text, size + 8 * len(others or ""), self.layout.packet):
                self._refuse(
                    line,
                    f"column {field!r} holds {size:,} bytes, more than the server takes in one statement "
                    f"(max_allowed_packet is {self.layout.packet:,}); raise it there, or split the text: {_short(text)!r}",
                )
        return NewItem(text, key or None, others, subject or None)

    def _refuse(self, line: int, what: str) -> NoReturn:
        raise UsageError(f"{self.name}, line {line}: {what}")


def format_of(path: str) -> Format:
    """The format that a file's name tells. Raises UsageError when it tells none."""
    found = SUFFIXES.get(Path(path).suffix.lower())
    if found is None:
        what = "standard input" if path == "-" else f"{path!r}"
        raise UsageError(f"cannot tell the format of {what}; add --format csv, jsonl or txt")
    return found


def _spooled(source: IO[bytes]) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by RowFile
    shutil.copyfileobj(source, copy, 1 << 20)
    copy.flush()
    return copy


def _delimiter(header: str) -> str:
    """Comma, semicolon or tab: whichever the header has most of, outside of quotes."""
    bare = "".join(header.split('"')[::2])
    return max(",;\t", key=bare.count)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(_short(name)) for name in names[:30])
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"its columns are {shown}{more}"


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
