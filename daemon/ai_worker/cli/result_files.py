"""Files of results, written into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ai_worker.errors import AiWorkerError, UsageError
from ai_worker.store.files import FileLost, Files, StoredFile
from ai_worker.store.results import ItemResult


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
