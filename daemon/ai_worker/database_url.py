"""The database URL taken apart: where a database is, as whom to connect, and how safely."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

from ai_worker.errors import ConfigurationError
from ai_worker.models import Secret

DATABASE_SETTING = "AI_WORKER_DB_URL"

_NO_PASSWORD = Secret("")

SslMode = Literal["off", "prefer", "required", "verify"]


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A database URL taken apart; see `parse_database_url`. Times are in seconds.

    `hosts` are tried in turn. `unix_socket`, where given, takes the place of the hosts. `path` is the folder of an
    embedded server (scheme `embedded`), for which nothing else is set.

    `setting` is where it was given, for messages.

    `ssl`: `off` never encrypts; `prefer` encrypts to other machines, where the server offers it, without checking who it is;
    `required` encrypts or fails; `verify` also checks the certificate and the host's name, against `ssl_ca` or the system's
    authorities.
    """

    scheme: Literal["mysql", "mariadb", "embedded"]
    user: str = ""
    password: Secret = _NO_PASSWORD
    hosts: tuple[tuple[str, int], ...] = ()
    unix_socket: str | None = None
    database: str = ""
    ssl: SslMode = "prefer"
    ssl_ca: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    write_timeout: float = 60.0
    path: Path | None = None
    setting: str = dataclasses.field(default=DATABASE_SETTING, compare=False)

    @property
    def is_remote(self) -> bool:
        """Whether any host is not this machine: then the connection should be encrypted and verified."""
        return self.unix_socket is None and any(not _is_loopback(host) for host, _ in self.hosts)

    def __str__(self) -> str:
        """For messages: never the password."""
        if self.scheme == "embedded":
            return f"embedded://{self.path}"
        where = self.unix_socket or ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{self.user}@{where}/{self.database}"

    def without_password(self) -> str:
        """As a URL that `parse_database_url` reads, for keeping: all but the password and the time-outs."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='')}:{port}" for host, port in self.hosts)
        options = {
            "socket": self.unix_socket,
            "ssl": self.ssl,
            "ssl_ca": self.ssl_ca,
            "ssl_cert": self.ssl_cert,
            "ssl_key": self.ssl_key,
        }
        query = "&".join(f"{name}={quote(value)}" for name, value in options.items() if value)
        return f"{self.scheme}://{quote(self.user, safe='')}@{hosts}/{quote(self.database, safe='')}?{query}"


class _WrongUrlError(Exception):
    """What is wrong with a URL, without a word of what could be its password."""


_EXAMPLE = "it must look like mysql://user:password@host:3306/database"
_QUERY_TIMES = ("connect_timeout", "read_timeout", "write_timeout")
_QUERY_PATHS = ("ssl_ca", "ssl_cert", "ssl_key")
_QUERY = ("ssl", *_QUERY_PATHS, *_QUERY_TIMES, "socket")


def parse_database_url(url: str, password: str | None = None, *, setting: str = DATABASE_SETTING) -> DatabaseUrl:
    """Takes a database URL apart.

    `mysql://user:password@host1:3306,host2:3306/database?ssl=verify&ssl_ca=/etc/ssl/db.pem`, with `mariadb://` as another
    word for the same; `mysql://user@/database?socket=/run/mysqld/mysqld.sock`; `embedded:///folder` for a private server.
    Special characters are percent-encoded; IPv6 addresses stand in brackets; the port defaults to 3306.
    Naming an authority (`ssl_ca`) without `ssl` means `ssl=verify`.

    `password`, where given, takes the place of the URL's; `setting` is where the URL was given, for messages. Raises
    ConfigurationError saying which part is wrong; the message never holds the password, nor anything that could be a piece of it.
    """
    try:
        return _parsed(url, password, setting)
    except _WrongUrlError as error:
        message = f"the database URL ({setting}) {error}"
    raise ConfigurationError(message)


def _parsed(url: str, password: str | None, setting: str) -> DatabaseUrl:
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in ("mysql", "mariadb", "embedded"):
        raise _WrongUrlError(f"begins with none of mysql://, mariadb://, embedded://; {_EXAMPLE}")
    if scheme == "embedded":
        return DatabaseUrl("embedded", path=_embedded_path(rest), setting=setting)

    location, _, query = rest.partition("?")
    authority, _, database = location.partition("/")
    if "@" in rest[len(authority) :]:
        # Anything around it may be a piece of the password: say nothing of it.
        raise _WrongUrlError(
            "holds a special character in the user or the password; write / as %2F, ? as %3F, # as %23, @ as %40"
        )
    if "@" not in authority:
        raise _WrongUrlError(f"names no user; {_EXAMPLE}")
    credentials, _, hosts = authority.rpartition("@")
    user, _, url_password = credentials.partition(":")
    if not user:
        raise _WrongUrlError(f"names no user; {_EXAMPLE}")
    options = _query_options(query)
    socket = options.pop("socket", None)
    if not database or "/" in database:
        raise _WrongUrlError(f"names no database, or more than one, after the host; {_EXAMPLE}")
    if bool(hosts) == bool(socket):
        raise _WrongUrlError("must name either hosts or ?socket=, not both and not neither")
    return DatabaseUrl(
        "mysql" if scheme == "mysql" else "mariadb",
        user=unquote(user),
        password=Secret(unquote(url_password) if password is None else password),
        hosts=tuple(_host(each) for each in hosts.split(",")) if hosts else (),
        unix_socket=socket,
        database=unquote(database),
        setting=setting,
        **options,
    )


def _query_options(query: str) -> dict[str, Any]:
    """The part after `?`, checked, as keyword arguments for `DatabaseUrl`, and `socket`."""
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, _, text = pair.partition("=")
        value = unquote(text)
        if name not in _QUERY:
            raise _WrongUrlError(f"has an unknown option {name!r}; known ones: {', '.join(_QUERY)}")
        if name in options:
            raise _WrongUrlError(f"gives the option {name!r} twice")
        if name == "ssl" and value not in get_args(SslMode):
            raise _WrongUrlError(f"has ssl={_shown(value)}; it must be one of {', '.join(get_args(SslMode))}")
        options[name] = _seconds(name, value) if name in _QUERY_TIMES else value
    if bool(options.get("ssl_cert")) != bool(options.get("ssl_key")):
        raise _WrongUrlError("must give ssl_cert and ssl_key together, or neither")
    for name in _QUERY_PATHS:
        if name in options and not is_file(Path(options[name])):
            raise _WrongUrlError(f"has {name}={options[name]!r}, which is not a file")
    if "ssl_ca" in options:
        if options.setdefault("ssl", "verify") == "off":
            raise _WrongUrlError("has ssl=off together with ssl_ca; leave one of them out")
    elif "ssl_cert" in options and options.setdefault("ssl", "required") == "off":
        raise _WrongUrlError("has ssl=off together with ssl_cert; leave one of them out")
    return options


def _host(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[([0-9A-Fa-f:.%]+)\](?::(.*))?|([^:\[\]]+)(?::(.*))?", text)
    if match is None:
        raise _WrongUrlError(
            f"has a host {text!r} that cannot be read; write host:port, and IPv6 addresses in brackets, as [::1]:3306"
        )
    host = match[1] or unquote(match[3])
    port = match[2] or match[4] or "3306"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _WrongUrlError(f"has the port {port!r} for host {host!r}; it must be a number from 1 to 65535")
    return host, int(port)


def _shown(value: str) -> str:
    """A wrong value, for a message; `***` where it is none of the words that one mistakes it for, but could be a password."""
    return repr(value) if re.fullmatch(r"[\w.+-]{0,12}", value) else "***"


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise _WrongUrlError(f"has {name}={_shown(value)}; it must be a number of seconds, more than 0 and at most 3600")
    return seconds


def _embedded_path(rest: str) -> Path:
    text = unquote(rest)
    if not text or "?" in text:
        raise _WrongUrlError("must name a folder and nothing else, as in embedded:///var/lib/ai-worker")
    if os.name == "nt" and re.match(r"/[A-Za-z]:", text):
        text = text[1:]
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~somebody, who has no home
        path = Path(text)
    if not (path.is_absolute() or text.startswith("/")) or "\0" in text:
        # A relative one would be another database in each working directory; and of embedded://var/lib, var looks like a host.
        raise _WrongUrlError("must name an absolute folder, with three slashes: embedded:///absolute/folder")
    return path


def is_file(path: Path) -> bool:
    """Whether there is such a file, as far as we may see."""
    try:
        return path.is_file()
    except OSError:  # in a folder that we may not enter, or with a name too long
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
