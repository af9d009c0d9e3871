"""Files in a result, made ready to be stored: what their bytes say, and thumbnails, worked out beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ai_worker import pictures
from ai_worker.models import Result

# Threads of their own, made with the first picture: decoding must not hold up the database verbs, which use the loop's.
_THREADS: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="pictures")


async def with_described_files(result: Result) -> Result:
    """The result with all that is known of its files, also in its data (`files`); where it has no text, the text says it too.

    Raises BadAnswer for a file that is not what it says.
    """
    files = await asyncio.get_running_loop().run_in_executor(_THREADS, pictures.completed, result.files)
    data = {**result.data, "files": [pictures.described(file) for file in files]}
    text = result.text_corrected or "; ".join(
        pictures.line(file.mime_type, len(file.content), file.width, file.height) for file in files
    )
    return result._replace(files=files, data=data, text_corrected=text)
