"""Secrets that are looked for wherever nobody may see them, in every form that they could be written in."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote


@dataclass
class Canaries:
    """The secrets of one run by name; `places` are where one was seen, each with what was looked at."""

    values: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    looked_at: int = 0  # bytes
    _forms: dict[str, list[bytes]] = field(default_factory=dict)

    def plant(self, name: str, value: str) -> str:
        """From now on this value is looked for under this name; the value."""
        self.values[name] = value
        self._forms[name] = list(forms(value))
        return value

    def seen_in(self, data: bytes | str) -> list[str]:
        """The names of those that stand in it, in whatever form."""
        raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        return [name for name, wanted in self._forms.items() if any(form in raw for form in wanted)]

    def look(self, place: str, data: bytes | str, *, but: tuple[str, ...] = ()) -> None:
        """Writes down those that stand in it; `but` names those that belong there."""
        self.looked_at += len(data)
        for name in self.seen_in(data):
            if name not in but:
                raw = data if isinstance(data, str) else data.decode("utf-8", "replace")
                if (found := f"{name} in {place}: {_around(raw, self._forms[name])}") not in self.places:
                    self.places.append(found)

    def look_into(self, folder: Path, *, but: tuple[str, ...] = ()) -> None:
        """The same of all files below a folder; `but` names those that belong there, by the beginning of their path."""
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_file() and not name.startswith(but):
                with contextlib.suppress(FileNotFoundError):
                    self.look(f"the file {name}", path.read_bytes())


def forms(value: str) -> Iterator[bytes]:
    """How a secret may be written: as it is, in a URL, in JSON, in Base64 wherever it begins in it, in hexadecimal."""
    raw = value.encode()
    yield raw
    yield quote(value, safe="").encode()
    yield value.replace("/", "\\/").encode()
    for skipped in range(3):
        encoded = base64.b64encode(b"\0" * skipped + raw).rstrip(b"=")
        yield encoded[4 if skipped else 0 : -2]  # without what its neighbours have a part in
        yield base64.urlsafe_b64encode(b"\0" * skipped + raw).rstrip(b"=")[4 if skipped else 0 : -2]
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    with contextlib.suppress(ValueError):  # a master key is Base64 itself: what it encodes is the secret
        if len(inner := base64.b64decode(value, validate=True)) == 32:
            yield inner
            yield inner.hex().encode()


def _around(text: str, wanted: list[bytes]) -> str:
    for form in wanted:
        at = text.find(form.decode("latin-1"))
        if at >= 0:
            return repr(text[max(0, at - 80) : at + len(form) + 40])
    return "(in bytes)"


@dataclass
class Watch:
    """Looks again and again at the command lines of all processes, and at all files below a folder. A context manager."""

    canaries: Canaries
    folder: Path
    looks: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)
    _lines: set[bytes] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._look, name="watch")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
        for line in self._lines:
            self.canaries.look("a process list", line)

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        self._lines.add(Path(entry.path, "cmdline").read_bytes())
            if self.folder.exists():
                with contextlib.suppress(OSError):
                    self.canaries.look_into(self.folder)
            self.looks += 1
