"""Settings: where they come from, what they mean, and the database URL taken apart.

One setting may be given in several places. The first of these that has it wins:

1. the environment: `AI_WORKER_DB_PASSWORD`
2. a file named in the environment: `AI_WORKER_DB_PASSWORD_FILE=/run/secrets/db` (one trailing newline is dropped)
3. a systemd credential: `$CREDENTIALS_DIRECTORY/ai_worker_db_password`
4. `.env` in the working directory, or the file that `AI_WORKER_ENV_FILE` names; `..._FILE` works in there too
5. the default

Credentials stand above `.env`, unlike in pydantic-settings' own order, so that a forgotten `.env` never beats a rotated secret.
An empty variable counts as not set.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args
from urllib.parse import quote, unquote

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ai_worker.errors import ConfigurationError
from ai_worker.models import Secret

PREFIX = "AI_WORKER_"
ENV_FILE_VARIABLE = PREFIX + "ENV_FILE"
DATABASE_SETTING = PREFIX + "DB_URL"

_NO_PASSWORD = Secret("")

SslMode = Literal["off", "prefer", "required", "verify"]


class Settings(BaseSettings):
    """All settings. Made by `load_settings`, which turns pydantic's complaints into messages for people.

    A field's description ends the sentence "AI_WORKER_X must be ...", for error messages and the documentation alike.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    db_url: SecretStr | None = Field(default=None, description="a URL like mysql://user:password@host:3306/ai_worker")
    db_password: SecretStr | None = Field(
        default=None, description="the database password; it takes the place of the one in the URL"
    )
    master_key: SecretStr | None = Field(default=None, description="base64 of 32 bytes, as `ai-worker keygen` prints it")
    master_key_old: SecretStr | None = Field(
        default=None, description="the master key before the current one, while `rekey` is on its way"
    )
    legacy_aes_key: SecretStr | None = Field(default=None, description="the passphrase with which a PHP panel called AES_ENCRYPT")
    lease_seconds: float = Field(
        default=30, ge=5, le=3600, description="the seconds after which a silent worker loses its items, 5 to 3600"
    )
    drain_seconds: float = Field(
        default=30, ge=0, le=3600, description="the seconds a stopping worker waits for calls in flight, 0 to 3600"
    )
    concurrency: int = Field(
        default=50, ge=1, le=2000, description="the number of model calls in flight in one process, 1 to 2000"
    )
    request_timeout_seconds: float = Field(
        default=120, ge=1, le=3600, description="the seconds one model call may take, 1 to 3600"
    )
    files_folder: Path | None = Field(
        default=None, description="an absolute folder for pictures, which are kept in the database without one"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="debug, info, warning or error")
    log_format: Literal["auto", "json", "console"] = Field(default="auto", description="auto, json or console")
    source_url: SecretStr | None = Field(
        default=None, description="the URL of the database that `import` reads and `export` writes, like AI_WORKER_DB_URL"
    )
    worker_name: str | None = Field(default=None, max_length=200, description="a name for this worker of at most 200 characters")

    prompt_folder: Path | None = Field(default=None, description="a folder with the team's own prompts, files NAME.md")

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("files_folder")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("a relative folder would be another one in each working directory")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- pydantic-settings' signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, *(source for _, source in _sources(settings_cls)))

    def database_url(self) -> DatabaseUrl:
        """The database to work on. Raises ConfigurationError when none is set, or its URL is wrong."""
        if self.db_url is None:
            raise ConfigurationError(
                f"no database is set. Set {PREFIX}DB_URL in the environment or in .env, "
                "for example mysql://user:password@127.0.0.1:3306/ai_worker"
            )
        password = None if self.db_password is None else self.db_password.get_secret_value()
        return parse_database_url(self.db_url.get_secret_value(), password)


def load_settings() -> Settings:
    """Reads the settings afresh. Raises ConfigurationError: which variable, where it was set, its value, what it must be."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [_complaint(str(each["loc"][0]), each["input"]) for each in error.errors(include_url=False)]
    # Outside of the handler: pydantic's error holds the raw values and must not travel along as context.
    raise ConfigurationError("; ".join(lines))


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return PREFIX + field.upper()


def origins() -> dict[str, list[str]]:
    """For each field of `Settings` that is set somewhere: the places that set it, the winning one first."""
    found: dict[str, list[str]] = {}
    for label, source in _sources(Settings):
        for field in source():
            if field in Settings.model_fields:
                found.setdefault(field, []).append(label)
    return found


def env_file() -> Path | None:
    """The `.env` in use, None when there is none. Raises ConfigurationError when AI_WORKER_ENV_FILE names a missing file."""
    named = os.environ.get(ENV_FILE_VARIABLE)
    path = Path(named or ".env")
    if _is_file(path):
        return path
    if named:
        raise ConfigurationError(f"{ENV_FILE_VARIABLE} names {named!r}, which is not a file")
    return None


def _complaint(field: str, value: object) -> str:
    places = origins().get(field)
    where = f" (from {places[0]})" if places else ""
    shown = "not usable" if "SecretStr" in str(Settings.model_fields[field].annotation) else repr(value)
    return f"{variable(field)} is {shown}{where}, but must be {Settings.model_fields[field].description}"


def _sources(settings_cls: type[BaseSettings]) -> list[tuple[str, PydanticBaseSettingsSource]]:
    """The places that settings come from, with a name for people, the strongest first."""
    sources: list[tuple[str, PydanticBaseSettingsSource]] = [
        ("the environment", EnvSettingsSource(settings_cls)),
        ("a file named in the environment", _FilesSource(settings_cls, _named_in(os.environ))),
        ("a systemd credential", _FilesSource(settings_cls, _credential)),
    ]
    if path := env_file():
        values = _env_values(path)
        # utf-8-sig: Windows' Notepad puts a byte order mark in front, which would spoil the first variable's name.
        dotenv = DotEnvSettingsSource(settings_cls, env_file=path, env_file_encoding="utf-8-sig")
        sources += [
            (str(path), dotenv),
            (f"a file named in {path}", _FilesSource(settings_cls, _named_in(values))),
        ]
    return sources


def _env_values(path: Path) -> dict[str, str | None]:
    """What stands in a `.env`. Raises ConfigurationError when it, or a line of it, cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            broken = _broken_lines(file)
        if not broken:
            return dotenv_values(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    where = f"line {broken[0]}" if len(broken) == 1 else f"lines {', '.join(map(str, broken))}"
    raise ConfigurationError(f'{path}, {where}: cannot be read; write KEY="value", or # before a comment')


def _broken_lines(file: IO[str]) -> list[int]:
    """Numbers of the lines that python-dotenv would leave out with a warning. Never their content: it may be a secret."""
    broken = []
    for binding in parse_stream(file):
        if binding.error:
            text = binding.original.string  # with the blank lines before it
            broken.append(binding.original.line + text[: len(text) - len(text.lstrip())].count("\n"))
    return broken


def _named_in(variables: Mapping[str, str | None]) -> Callable[[str], tuple[str, Path] | None]:
    def find(field: str) -> tuple[str, Path] | None:
        name = variable(field) + "_FILE"
        value = variables.get(name)
        return (name, Path(value)) if value else None

    return find


def _credential(field: str) -> tuple[str, Path] | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder or "", f"ai_worker_{field}")
    return (f"the systemd credential {path.name}", path) if folder and _is_file(path) else None


class _FilesSource(PydanticBaseSettingsSource):
    """Values from one file each; `find` says which file, if any, holds a field, and what to call it."""

    def __init__(self, settings_cls: type[BaseSettings], find: Callable[[str], tuple[str, Path] | None]) -> None:
        super().__init__(settings_cls)
        self._find = find

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 -- the base's signature
        found = self._find(field_name)
        if found is None:
            return None, field_name, False
        name, path = found
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigurationError(f"{name} names {str(path)!r}, which cannot be read: {reason}") from None
        return text.removesuffix("\n").removesuffix("\r"), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value}


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
    if "@" not in authority:
        if "@" in rest:
            # Anything that follows may be a piece of the password: say nothing of it.
            raise _WrongUrlError(
                "holds a special character in the user or the password; write / as %2F, ? as %3F, # as %23, @ as %40"
            )
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
            raise _WrongUrlError(f"has ssl={value!r}; it must be one of {', '.join(get_args(SslMode))}")
        options[name] = _seconds(name, value) if name in _QUERY_TIMES else value
    if bool(options.get("ssl_cert")) != bool(options.get("ssl_key")):
        raise _WrongUrlError("must give ssl_cert and ssl_key together, or neither")
    for name in _QUERY_PATHS:
        if name in options and not _is_file(Path(options[name])):
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


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise _WrongUrlError(f"has {name}={value!r}; it must be a number of seconds, more than 0 and at most 3600")
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that we may not enter, or with a name too long
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
