"""How the web is to be served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class WebOptions:
    """
    Parameters
    ----------
    connections: how many threads ask the database at once, each with a connection of its own; one more waits for results,
        and two do what takes long.
    allowed_hosts: names under which browsers and programs may address this server, `*.example.com` and `*` too; others are
        refused, so that no page of somebody else's can reach it by a name of its own (DNS rebinding).
    cors_origins: origins whose scripts may read the API's answers; none by default.
    cookies_secure: whether cookies go over HTTPS alone; those that come over HTTPS do so anyway.
    body_bytes: the longest request that is read; upload_bytes: with a file for a new task.
    runs: how many runs that `POST /task/run` has started may go on at once.
    run_env_file: the settings of these runs; None: those of this process.
    prompt_folder, files_folder: the team's own prompts, and where pictures lie that are not in the database.
    names_file: names that are personal data; None: none.
    """

    connections: int = 8
    allowed_hosts: tuple[str, ...] = LOOPBACK
    cors_origins: tuple[str, ...] = ()
    cookies_secure: bool = False
    body_bytes: int = 32 << 20
    upload_bytes: int = 256_000_000
    runs: int = 2
    run_env_file: Path | None = None
    prompt_folder: Path | None = None
    files_folder: Path | None = None
    names_file: Path | None = None
