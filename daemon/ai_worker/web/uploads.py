"""What comes in by a form with a file, held on the disk, not in memory."""

from __future__ import annotations

import tempfile
from typing import IO, Final

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from ai_worker.errors import UsageError

PASTED_BYTES: Final = 16_000_000


async def form_of(request: Request) -> FormData:
    """The fields of a form, its file in a temporary one. How much is read, the application's outermost layer bounds.

    Called by a handler, after it is known who asks: what FastAPI reads by itself it reads before.
    """
    return await request.form(max_files=1, max_fields=100, max_part_size=PASTED_BYTES)


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
