"""What models have made that is no text: kept in `task_item_file`, or in a folder with only its description there.

In the database a file comes in with its item's result, in one transaction. In a folder it is written before, under a name made of
its ids and its checksum: a commit that is repeated writes the same file again, one that fails leaves a file that no row names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from ai_worker.db import Database, Transaction
from ai_worker.errors import AiWorkerError, DatabaseError, ValueRefused
from ai_worker.models import File, Outcome
from ai_worker.pictures import EXTENSIONS

PIECE_BYTES: Final = 500_000  # in one statement, where they take twice as many characters: below the smallest packet, 1 MB
_ROW_BYTES: Final = 8192  # of a row beside its file and thumbnail, and of the packet around it
_FOLDER: Final = "AI_WORKER_FILES_FOLDER"


class StoredFile(NamedTuple):
    """A file of an item, without its bytes. `path` is within the folder for files, None where the bytes are in the database;
    `thumbnail` is there where it was asked for, and could be made."""

    id_task_item: int
    position: int
    mime_type: str
    size: int
    sha256: bytes
    width: int | None
    height: int | None
    path: str | None
    thumbnail: bytes | None = None

    @property
    def name(self) -> str:
        """A file name for it, among the files of any items: `12-1.png`."""
        return f"{self.id_task_item}-{self.position}.{_extension(self.mime_type)}"


class FileLost(AiWorkerError):
    """A file's bytes are not there any more, or not what they were."""


class Files:
    """Reads files. `folder` is where those lie that are not in the database."""

    def __init__(self, db: Database, folder: Path | None = None) -> None:
        self._db = db
        self._folder = folder

    def of_item(self, id_task_item: int, *, thumbnails: bool = False) -> list[StoredFile]:
        """An item's files, in order."""
        return self.of_items([id_task_item], thumbnails=thumbnails).get(id_task_item, [])

    def of_items(self, items: Sequence[int], *, thumbnails: bool = False) -> dict[int, list[StoredFile]]:
        """The files of these items, by item; items without any are not there."""
        if not items:
            return {}
        found: dict[int, list[StoredFile]] = defaultdict(list)
        for row in self._db.query("files_with_thumbnails", {"items": items, "thumbnails": thumbnails}):
            found[row["id_task_item"]].append(StoredFile(**row))
        return dict(found)

    def content(self, file: StoredFile) -> Iterator[bytes]:
        """The bytes, in pieces. Raises FileLost when they are not there any more, and at the end when their checksum is not what
        it was: what was yielded is not the file then. Raises AiWorkerError when nobody has said in which folder they lie."""
        checksum = hashlib.sha256()
        for piece in self._pieces(file) if file.path is None else self._read(file.path):
            checksum.update(piece)
            yield piece
        if checksum.digest() != file.sha256:
            raise FileLost(f"file {file.position} of item {file.id_task_item} is damaged: its SHA-256 is not what it was")

    def _pieces(self, file: StoredFile) -> Iterator[bytes]:
        place = {"id_task_item": file.id_task_item, "position": file.position, "length": PIECE_BYTES}
        for start in range(1, file.size + 1, PIECE_BYTES):
            rows = self._db.query("file_piece", {**place, "start": start})
            if not rows or rows[0]["piece"] is None:
                raise FileLost(f"file {file.position} of item {file.id_task_item} is gone")
            yield rows[0]["piece"]

    def _read(self, path: str) -> Iterator[bytes]:
        if self._folder is None:
            raise AiWorkerError(f"the file {path} lies in a folder: say in which by {_FOLDER}")
        try:
            with _open_within(self._folder, path) as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except OSError as error:
            raise FileLost(f"the file {path} cannot be read in {self._folder}: {error.strerror or error}") from None


def to_folder(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes the files of these outcomes into the folder: `<task>/<item>-<position>-<checksum's start>.<kind>`, each at once
    under its name. Raises DatabaseError where that fails: results are kept in hand then, as when the database is away."""
    for outcome in outcomes:
        for position, file in enumerate(outcome.result.files if outcome.result else (), 1):
            path = _path(outcome, position, file)
            try:
                _write_within(folder, path, file.content)
            except OSError as error:
                raise DatabaseError(f"{path} cannot be written to {_FOLDER} {folder}: {error.strerror or error}") from None


def remove_from_folder(folder: Path, path: str) -> bool:
    """Deletes a file whose row is about to go; whether it was there."""
    try:
        place = _within(folder, path)
        _refuse_link(place.parent)
        place.unlink()
    except OSError:
        return False
    return True


def remove_folders(folder: Path, tasks: Iterable[int]) -> None:
    """Deletes the folders of these tasks as far as they are empty."""
    for id_task in tasks:
        with contextlib.suppress(OSError):
            (folder / str(id_task)).rmdir()


def write_files(tx: Transaction, outcomes: Sequence[Outcome], *, in_folder: bool) -> None:
    """The rows of these outcomes' files instead of those that their items have had; with their bytes, where not `in_folder`.

    Raises ValueRefused for a file larger than a row can be.
    """
    tx.execute("forget_files", {"rows": json.dumps([{"id": outcome.item.id_task_item} for outcome in outcomes])})
    for outcome in outcomes:
        for position, file in enumerate(outcome.result.files if outcome.result else (), 1):
            row = _columns(outcome, position, file)
            if in_folder:
                tx.execute("add_file_in_folder", {**row, "path": _path(outcome, position, file)})
            else:
                _check_size(file, tx.max_packet)
                _send(tx, file.content)
                tx.execute("add_file", row)
    if not in_folder:
        tx.execute("end_file")


def _send(tx: Transaction, content: bytes) -> None:
    length = min(PIECE_BYTES, tx.max_packet // 2 - 256)  # a byte takes two characters
    tx.execute("begin_file", {"piece": content[:length]})
    for start in range(length, len(content), length):
        tx.execute("append_to_file", {"piece": content[start : start + length]})


def _check_size(file: File, packet: int) -> None:
    size = len(file.content)
    needed = size + len(file.thumbnail or b"") + _ROW_BYTES
    if needed > packet:
        megabytes = -(-needed // (1 << 20))
        raise ValueRefused(
            f"the {file.mime_type} has {size:,} bytes, and max_allowed_packet of the database server is {packet:,}: let a DBA set"
            f" it to {max(16, megabytes)}M or more there, or have files kept in a folder by {_FOLDER}",
            1153,
        )


def _columns(outcome: Outcome, position: int, file: File) -> dict[str, Any]:
    return {
        "id_task_item": outcome.item.id_task_item,
        "position": position,
        "mime_type": file.mime_type,
        "size": len(file.content),
        "sha256": _sha256(file),
        "width": file.width,
        "height": file.height,
        "thumbnail": file.thumbnail,
    }


def _sha256(file: File) -> bytes:
    return file.sha256 or hashlib.sha256(file.content).digest()


def _extension(mime_type: str) -> str:
    return EXTENSIONS.get(mime_type, "bin")


def _path(outcome: Outcome, position: int, file: File) -> str:
    """Within the folder, with slashes on every system. Made of numbers alone: nothing of it comes from a model."""
    name = f"{outcome.item.id_task_item}-{position}-{_sha256(file).hex()[:16]}.{_extension(file.mime_type)}"
    return f"{outcome.item.task.id_task}/{name}"


def _write_within(folder: Path, path: str, content: bytes) -> None:
    """Under another name first, on the disk, and then moved: half of a file is never seen under its name."""
    place = _within(folder, path)
    place.parent.mkdir(mode=0o750, exist_ok=True)
    _refuse_link(place.parent)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o640), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(place.parent)


@contextlib.contextmanager
def _open_within(folder: Path, path: str) -> Iterator[Any]:
    place = _within(folder, path)
    _refuse_link(place.parent)
    with os.fdopen(os.open(place, os.O_RDONLY | _NO_LINK), "rb") as file:
        yield file


_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # POSIX has the one, Windows the other


def _within(folder: Path, path: str) -> Path:
    """The place of a path of ours, which is `task/name`; a row may hold another's. Raises OSError where it leads elsewhere."""
    parts = PurePosixPath(path).parts
    if len(parts) != 2 or not parts[0].isdecimal() or parts[1].startswith(".") or "\\" in path or ":" in path:
        raise OSError(f"{path!r} is no path of a file here")
    return folder / parts[0] / parts[1]


def _refuse_link(folder: Path) -> None:
    if stat.S_ISLNK(folder.lstat().st_mode):
        raise OSError(f"{folder} is a symbolic link, which is not followed")


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a power failure; Windows does not let folders be opened."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
