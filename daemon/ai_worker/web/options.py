"""How the web is to be served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WebOptions:
    """
    Parameters
    ----------
    connections: how many threads ask the database at once, each with a connection of its own; one more waits for results.
    allowed_hosts: names under which browsers and programs may address this server; others are refused (DNS rebinding).
    cors_origins: origins whose scripts may read the API's answers; none by default.
    cookies_secure: whether cookies go over HTTPS alone.
    """

    connections: int = 8
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    cors_origins: tuple[str, ...] = ()
    cookies_secure: bool = False
