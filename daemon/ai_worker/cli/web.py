"""`web`: the HTTP API and the dashboard."""

from __future__ import annotations

import click

from ai_worker.cli import context
from ai_worker.errors import EXIT_DONE, ConfigurationError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The port; 0 takes any free one.")
def web(host: str, port: int) -> int:
    """Serve the HTTP API and the dashboard, for ever. Any number of instances may serve one database."""
    try:
        import uvicorn

        from ai_worker.web.app import create_app
        from ai_worker.web.serving import WebServer
    except ImportError as error:
        raise ConfigurationError(f"the web needs more than is installed ({error.name}): pip install 'ai-worker[web]'") from None
    settings = context.settings()
    with context.database(settings) as db:
        app = create_app(db)
        WebServer(app, uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False)).run()
    return EXIT_DONE
