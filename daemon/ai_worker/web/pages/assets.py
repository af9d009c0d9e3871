"""Style, scripts and pictures: files of the package, kept by browsers as long as their address names their content."""

from __future__ import annotations

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ai_worker.web.pages.rendering import STATIC

YEAR = 365 * 24 * 3600


class Assets(StaticFiles):
    """The files of static/; asked for by their content's hash they never change, otherwise browsers ask again (ETag)."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or 404."""
        response = await super().get_response(path, scope)
        lasting = scope["query_string"].startswith(b"v=")
        response.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable" if lasting else "no-cache"
        return response
