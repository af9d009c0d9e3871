"""Files of results on their way out: what is told of them, and how they are shown on a page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from ai_worker import pictures
from ai_worker.store.files import StoredFile


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
