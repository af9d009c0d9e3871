"""Files of results on their way out: what is told of them, written into a folder, shown on a page."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ai_worker import pictures
from ai_worker.errors import AiWorkerError, UsageError
from ai_worker.store.files import FileLost, Files, StoredFile
from ai_worker.store.results import ItemResult


def told(files: Iterable[StoredFile]) -> list[dict[str, Any]]:
    """What stands in results for files: all that is known but the bytes. `file` is the name that `--files` writes."""
    return [
        {
            "file": file.name,
            "mime_type": file.mime_type,
            "size": file.size,
            "sha256": file.sha256.hex(),
            "width": file.width,
            "height": file.height,
            "path": file.path,
        }
        for file in files
    ]


def shown(files: Iterable[StoredFile]) -> list[Mapping[str, str | None]]:
    """The same for the page: a line on each, and its thumbnail as an address that needs nothing but itself."""
    return [
        {
            "line": pictures.line(file.mime_type, file.size, file.width, file.height),
            "source": None if file.thumbnail is None else _address(file.thumbnail),
        }
        for file in files
    ]


def _address(thumbnail: bytes) -> str:
    return f"data:{pictures.mime_type(thumbnail) or 'image/png'};base64,{base64.b64encode(thumbnail).decode()}"


class Writer:
    """Writes the files of results into a folder, one at a time in memory; `count` says how many.

    A file that is damaged or gone holds up no other; `lost` says what is wrong with each. Raises UsageError when the folder
    cannot be made, AiWorkerError when it cannot be written to, or when nobody has said where the files lie.
    """

    def __init__(self, files: Files, folder: str) -> None:
        self._files = files
        self._folder = Path(folder)
        self.count = 0
        self.lost: list[str] = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made: {error.strerror}") from None

    def of(self, items: Iterable[ItemResult]) -> Iterator[ItemResult]:
        """The items as they come, once their files are written."""
        for item in items:
            for file in item.files:
                self._write(file)
            yield item

    def _write(self, file: StoredFile) -> None:
        """Under its name it appears when it is complete, and what it was when it was stored."""
        part = self._folder / f".{file.name}.{os.getpid()}.part"
        try:
            with part.open("xb") as stream:
                for piece in self._files.content(file):
                    stream.write(piece)
            part.replace(self._folder / file.name)
            self.count += 1
        except FileLost as error:
            self.lost.append(str(error))
        except OSError as error:
            raise AiWorkerError(f"{file.name} could not be written to {self._folder}: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
