"""What comes in by a form with a file: bounded while it is read, and held on the disk, not in memory."""

from __future__ import annotations

import tempfile
from http import HTTPStatus
from typing import IO, ClassVar, Final

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from ai_worker.errors import UsageError
from ai_worker.web.problems import Refused

UPLOAD_BYTES: Final = 256_000_000
PASTED_BYTES: Final = 16_000_000


class TooLarge(Refused):
    """More was sent than is taken."""

    status: ClassVar[HTTPStatus] = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def form_of(request: Request, limit: int = UPLOAD_BYTES) -> FormData:
    """The fields of a form, its file in a temporary one. Raises TooLarge as soon as more than `limit` bytes have come in.

    Called by a handler, after it is known who asks: what FastAPI reads by itself it reads before.
    """
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise _too_large(limit)
    receive, seen = request.receive, 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    bounded = Request(request.scope, counted)
    return await bounded.form(max_files=1, max_fields=100, max_part_size=PASTED_BYTES)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"that is more than the {limit // 1_000_000:,} MB that this page takes; `ai-worker submit FILE` takes files of any size"
    )


def rows_in(form: FormData) -> tuple[IO[bytes], str]:
    """What was uploaded or pasted, as a file, with a name for messages. Raises UsageError for neither, or both."""
    upload, pasted = form.get("file"), form.get("pasted")
    has_file = isinstance(upload, UploadFile) and bool(upload.filename)
    if has_file and isinstance(pasted, str) and pasted.strip():
        raise UsageError("choose a file or paste rows, not both")
    if isinstance(upload, UploadFile) and has_file:
        return upload.file, upload.filename or "the file"
    if not isinstance(pasted, str) or not pasted.strip():
        raise UsageError("choose a file, or paste rows")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the RowFile
    copy.write(pasted.replace("\r\n", "\n").encode("utf-8", "surrogatepass"))
    copy.flush()
    return copy, "the pasted text"
