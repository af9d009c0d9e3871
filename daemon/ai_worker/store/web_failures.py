"""Wrong tokens, counted by the address that they came from, for all instances of the web together."""

from __future__ import annotations

from typing import Final

from ai_worker.db import Database

WINDOW_SECONDS: Final = 600  # as `count_web_failure` has it


class WebFailures:
    """Counts in windows of ten minutes that begin at each full ten minutes of the database's clock."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def count(self, address: str) -> int:
        """Counts a wrong token from an address of at most 45 characters; how many there were in this window, with this one."""
        _, failures = self._db.execute_for_id("count_web_failure", {"address": address})
        if not failures:
            self._db.execute("delete_old_web_failures")
        return failures or 1
