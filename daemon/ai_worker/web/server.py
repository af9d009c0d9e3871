"""The web as a process: a socket, uvicorn on it, and a stop that leaves nobody hanging."""

from __future__ import annotations

import os
import signal
import socket
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import uvicorn

from ai_worker import __version__
from ai_worker.errors import AiWorkerError, ConfigurationError
from ai_worker.log import Event, Log
from ai_worker.web.app import create_app
from ai_worker.web.options import WebOptions
from ai_worker.web.serving import WebServer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ai_worker.db import Database

log = Log()


class PortTaken(AiWorkerError):
    """Somebody else listens there, perhaps our own predecessor that is about to end: to be tried again."""


def serve(db: Database, host: str, port: int, options: WebOptions, proxies: tuple[str, ...], drain_seconds: float) -> None:
    """Serves until SIGTERM or Ctrl-C; requests under way then have `drain_seconds`. Port 0 takes any free one.

    Raises ConfigurationError when it may not, or cannot, listen there, PortTaken when somebody else does.
    """
    begun = time.monotonic()
    with listen(host, port) as listener:
        server = made(create_app(db, options), proxies=proxies, drain_seconds=drain_seconds)
        address = _address(listener)
        log(Event.WEB_START, host=socket.gethostname(), pid=os.getpid(), version=__version__, address=address)
        if not ip_address(listener.getsockname()[0]).is_loopback:
            log(Event.WEB_EXPOSED, address=address, message=_exposed(options, proxies))
        # uvicorn sends itself the signal again when all is done: by then it says nothing new.
        before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            server.run(sockets=[listener])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
            log(Event.WEB_STOP, seconds=round(time.monotonic() - begun, 1))


def made(app: FastAPI, *, proxies: tuple[str, ...] = (), drain_seconds: float = 30.0) -> WebServer:
    """uvicorn, set up for the web. `proxies` are addresses and networks whose X-Forwarded-For and -Proto are believed."""
    config = uvicorn.Config(
        app,
        log_config=None,  # its warnings come out as LIBRARY, and what else it would say we say ourselves
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        ws="none",
    )
    return WebServer(app, config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigurationError and PortTaken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except socket.gaierror as error:
        raise ConfigurationError(f"the web cannot listen on {host}: {error.strerror}; set AI_WORKER_WEB_HOST") from None
    except PermissionError:
        raise ConfigurationError(
            f"the web may not listen on port {port}: those below 1024 are for root. Take another one by AI_WORKER_WEB_PORT, "
            "with a proxy in front"
        ) from None
    except OSError as error:
        raise PortTaken(
            f"the web cannot listen on {host}, port {port}: {error.strerror}; AI_WORKER_WEB_PORT or --port takes another one"
        ) from None
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _exposed(options: WebOptions, proxies: tuple[str, ...]) -> str:
    parts = ["other machines can reach it, and everything but the health checks needs a token"]
    if not proxies:
        parts.append(
            "tokens and texts cross the network in clear text: put a proxy with HTTPS in front, named in AI_WORKER_WEB_PROXIES"
        )
    parts.append(f"it answers to the names {', '.join(options.allowed_hosts)} (AI_WORKER_WEB_ALLOWED_HOSTS)")
    return "; ".join(parts)
