"""`web`: the HTTP API and the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from ai_worker.cli import context
from ai_worker.config import Settings, listed
from ai_worker.errors import EXIT_DONE, ConfigurationError

if TYPE_CHECKING:
    from ai_worker.web.options import WebOptions

PATIENCE: Final = 2.0  # seconds for which a request waits for a database that is away, before it is answered by 503


@click.command()
@click.option("--host", help="The address to listen on.  [AI_WORKER_WEB_HOST, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="The port; 0 takes any free one.  [AI_WORKER_WEB_PORT, 8080]")
def web(host: str | None, port: int | None) -> int:
    """Serve the HTTP API and the dashboard, for ever. Any number of instances may serve one database.

    Everything but the two health checks needs a token of `ai-worker token add`. Beyond this machine it is reached through a
    proxy with HTTPS: see docs/http-api.md.

    SIGTERM or Ctrl-C: takes no more requests, ends those under way within AI_WORKER_DRAIN_SECONDS, exits 0.
    """
    try:
        from ai_worker.web.server import serve
    except ImportError as error:
        raise ConfigurationError(f"the web needs more than is installed ({error.name}): pip install 'ai-worker[web]'") from None
    settings = context.settings()
    address = host or settings.web_host
    with context.database(settings) as db:
        db.patience = PATIENCE
        serve(
            db,
            address,
            settings.web_port if port is None else port,
            _options(settings, address),
            listed(settings.web_proxies),
            settings.drain_seconds,
        )
    return EXIT_DONE


def _options(settings: Settings, address: str) -> WebOptions:
    from ai_worker.web.options import LOOPBACK, WebOptions

    own = f"[{address}]" if ":" in address else address
    names = LOOPBACK if own in {*LOOPBACK, "0.0.0.0", "[::]"} else (*LOOPBACK, own)  # noqa: S104 -- compared, not bound
    return WebOptions(
        allowed_hosts=(*names, *listed(settings.web_allowed_hosts)),
        cors_origins=listed(settings.web_cors_origins),
        runs=settings.web_runs,
        run_env_file=settings.run_env_file,
        prompt_folder=settings.prompt_folder,
        files_folder=settings.files_folder,
        names_file=settings.personal_names_file,
    )
