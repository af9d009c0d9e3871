"""Who makes a request, and whether they may: a bearer token for programs, a session's cookie for browsers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from ai_worker.store.tokens import Principal, Scope
from ai_worker.web.problems import Forbidden, Unauthorised
from ai_worker.web.services import Served, Services

COOKIE: Final = "ai_worker_session"

_BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="A token of `ai-worker token add`.")


async def principal(request: Request, services: Served) -> Principal:
    """Whoever makes the request; looked for once. Raises as `look`."""
    known: Principal | None = getattr(request.state, "principal", None)
    return known or await look(request, services)


async def look(request: Request, services: Services) -> Principal:
    """Whoever makes the request, as it is now. Raises Unauthorised for no token, or one that is not, or no longer, valid, and
    TooMany for too many of these."""
    found = await _found(request, services)
    if found is None:
        raise Unauthorised("this needs a valid token: `Authorization: Bearer …`; `ai-worker token add` makes one")
    request.state.principal = found
    return found


async def _found(request: Request, services: Services) -> Principal | None:
    scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer":
        return await services.door.admit(token, request)
    session = request.cookies.get(COOKIE)
    return None if session is None else await services.ask(services.tokens.session, session)


class Guarded(APIRoute):
    """A route that knows who asks before it reads what they send: FastAPI by itself reads and parses the whole body first, of
    strangers too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI made, behind the door."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            await principal(request, request.app.state.services)
            return await handler(request)

        return guarded


def needs(scope: Scope) -> Any:
    """A dependency that lets in whose token has this scope. Raises Unauthorised, or Forbidden for another scope."""

    async def check(who: Annotated[Principal, Depends(principal)], _: Annotated[object, Depends(_BEARER)]) -> Principal:
        if not who.may(scope):
            raise Forbidden(f"the token {who.name!r} lacks the scope {scope.value!r}")
        return who

    return Depends(check)


Reader = Annotated[Principal, needs(Scope.READ)]
Runner = Annotated[Principal, needs(Scope.RUN)]
Reviewer = Annotated[Principal, needs(Scope.REVIEW)]
Admin = Annotated[Principal, needs(Scope.ADMIN)]
