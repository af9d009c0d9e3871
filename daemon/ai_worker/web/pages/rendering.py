"""Templates to answers: `render` is what every page ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ai_worker import __version__, formats
from ai_worker.store.tokens import Principal, Scope
from ai_worker.text import harmless
from ai_worker.web.browsers import HEADERS

WEB: Final = Path(__file__).parents[1]
STATIC: Final = WEB / "static"

PAGES: Final = (
    ("overview", "/", "Overview"),
    ("tasks", "/ui/tasks", "Tasks"),
    ("submit", "/ui/submit", "Submit"),
    ("models", "/ui/models", "Models"),
    ("workers", "/ui/workers", "Workers"),
    ("schedules", "/ui/schedules", "Schedules"),
)


def render(request: Request, template: str, *, status: int = HTTPStatus.OK, **context: Any) -> HTMLResponse:
    """The page that a template of templates/ makes, for whoever asks.

    Beside `context`, templates see `who` (the Principal, None before the login), `may('run')` (whether the token has that
    scope: a button that may not be used is not shown), `place` (which page of the navigation this is), `static('app.css')` and
    the filters of `environment`. A page with `live='topic'` or `live='topic?key'` is kept up to date, see `live`.
    """
    who: Principal | None = getattr(request.state, "principal", None)
    frame = {"who": who, "may": permits(who), "place": _place(request.url.path), "pages": PAGES, "live": None}
    text = environment().get_template(template).render({**frame, **context})
    return HTMLResponse(text, status, {"Cache-Control": "no-store", **HEADERS})  # also where an error is answered outside of them


def fragment(template: str, may: Callable[[str], bool], **context: Any) -> str:
    """A piece of a page, for live updates: what the page itself includes, with the same names."""
    return environment().get_template(template).render({"may": may, **context})


def permits(who: Principal | None) -> Callable[[str], bool]:
    """`may` of the templates."""
    return lambda scope: who is not None and who.may(Scope(scope))


@cache
def environment() -> Environment:
    """The templates: everything in them is escaped, and a name that nobody gave is an error."""
    made = Environment(
        loader=FileSystemLoader(WEB / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"static": static, "version": __version__}
    made.filters |= {
        "number": formats.number,
        "money": formats.money,
        "duration": formats.duration,
        "iso": formats.iso,
        "utc": _utc,
        "percent": _percent,
        "harmless": harmless,
        "pairs": lambda values: [(each, each) for each in values],
        "price": _price,
        "spelled": lambda name: name.lower().replace("_", " "),
    }
    return made


@cache
def static(name: str) -> str:
    """The address of a file of static/, with its content's hash, so that browsers may keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def _place(path: str) -> str:
    """The page of the navigation that a path belongs to."""
    if path.startswith("/ui/items"):
        return "tasks"
    fitting: Mapping[str, str] = {address: name for name, address, _ in PAGES}
    return "overview" if path == "/" else next((fitting[each] for each in fitting if each != "/" and path.startswith(each)), "")


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _percent(ratio: float | Decimal | None) -> str:
    """0.031 is `3.1 %`; a dash for None."""
    return "–" if ratio is None else f"{float(ratio) * 100:.1f} %"


def _price(amount: Decimal) -> str:
    """A price per million tokens: `$0.40`, `$0.075`, `$12.00`."""
    text = f"{amount:.6f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents:0<2}"
