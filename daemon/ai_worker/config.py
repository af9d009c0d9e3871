"""Settings: where they come from, and what they mean.

One setting may be given in several places. The first of these that has it wins:

1. the environment: `AI_WORKER_DB_PASSWORD`
2. a file named in the environment: `AI_WORKER_DB_PASSWORD_FILE=/run/secrets/db` (one trailing newline is dropped)
3. a systemd credential: `$CREDENTIALS_DIRECTORY/ai_worker_db_password`
4. `.env` in the working directory, or the file that `AI_WORKER_ENV_FILE` names; `..._FILE` works in there too
5. what `ai-worker service install` has written to /etc/ai-worker (on Windows install.ps1 to AI Worker in %ProgramData%), for
   whoever may read it, where nothing above names a database and there is no `.env`: an administrator's commands work with the
   services' settings
6. the default

Credentials stand above `.env`, unlike in pydantic-settings' own order, so that a forgotten `.env` never beats a rotated secret.
An empty variable counts as not set.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from ipaddress import ip_network
from pathlib import Path
from typing import IO, Any, Final, Literal

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ai_worker.database_url import DatabaseUrl, is_file, parse_database_url
from ai_worker.errors import ConfigurationError

PREFIX = "AI_WORKER_"
if sys.platform == "win32":
    SERVICE_FOLDER = Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "AI Worker")
else:
    SERVICE_FOLDER = Path("/etc/ai-worker")
SERVICE_ENV_FILE = "ai-worker.env"
SERVICE_CREDENTIALS = {"db_password": "credentials/db-password", "master_key": "credentials/master-key"}
ENV_FILE_VARIABLE = PREFIX + "ENV_FILE"

_HOST: Final = re.compile(r"\*|(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]+\]?")
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?")


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
    log_sample: float = Field(
        default=1, ge=0, le=1, description="the share of items whose lines DONE and FETCH are logged, 0 to 1, like 0.01 or 1/100"
    )
    traces: Literal["auto", "on", "off"] = Field(default="auto", description="auto, on or off")
    source_url: SecretStr | None = Field(
        default=None, description="the URL of the database that `import` reads and `export` writes, like AI_WORKER_DB_URL"
    )
    worker_name: str | None = Field(default=None, max_length=200, description="a name for this worker of at most 200 characters")

    prompt_folder: Path | None = Field(default=None, description="a folder with the team's own prompts, files NAME.md")
    personal_names_file: Path | None = Field(
        default=None, description="an absolute path: names that are personal data, one on each line, in every form that occurs"
    )

    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="the port where a worker tells Prometheus of itself, 0 to 65535; 0 takes any free one",
    )
    metrics_host: str = Field(default="127.0.0.1", description="the address that it listens on")

    web_host: str = Field(default="127.0.0.1", description="the address that `ai-worker web` listens on")
    web_port: int = Field(
        default=8080, ge=0, le=65535, description="the port that it listens on, 0 to 65535; 0 takes any free one"
    )
    web_allowed_hosts: str = Field(
        default="", description="host names under which browsers and programs reach the web, with commas between them"
    )
    web_cors_origins: str = Field(
        default="", description="origins like https://shop.example whose pages may call the HTTP API, with commas between them"
    )
    web_proxies: str = Field(
        default="", description="addresses or networks of the proxies in front of the web, with commas between them"
    )
    web_runs: int = Field(
        default=2, ge=0, le=100, description="the number of runs that one web process keeps going at once, 0 to 100"
    )
    run_env_file: Path | None = Field(
        default=None, description="an absolute path of a .env with the workers' settings, for what `POST /task/run` starts"
    )

    @field_validator("log_level", "log_format", "traces", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_sample", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if not isinstance(value, str) or "/" not in value:
            return value
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError("no share") from None

    @field_validator("web_allowed_hosts", "web_cors_origins", "web_proxies")
    @classmethod
    def _well_formed(cls, value: str, info: ValidationInfo) -> str:
        pattern = {"web_allowed_hosts": _HOST, "web_cors_origins": _ORIGIN}.get(info.field_name or "")
        for each in listed(value):
            if pattern is None:
                ip_network(each, strict=False)
            elif not pattern.fullmatch(each):
                raise ValueError(f"{each!r} cannot be one")
        return value

    @field_validator("files_folder", "run_env_file", "personal_names_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("a relative path would be another one in each working directory")
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


def listed(value: str) -> tuple[str, ...]:
    """The parts of a setting that may name several, without blanks."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


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
    """The `.env` in use, or the services' own; None when there is none. Raises ConfigurationError when AI_WORKER_ENV_FILE names
    a missing file."""
    named = os.environ.get(ENV_FILE_VARIABLE)
    path = Path(named or ".env")
    if is_file(path):
        return path
    if named:
        raise ConfigurationError(f"{ENV_FILE_VARIABLE} names {named!r}, which is not a file")
    services = SERVICE_FOLDER / SERVICE_ENV_FILE
    names_a_database = any(os.environ.get(PREFIX + name) for name in ("DB_URL", "DB_URL_FILE"))
    return services if not names_a_database and os.access(services, os.R_OK) else None


def encoding_of(path: Path) -> str:
    """How a small text file of a person's is encoded: as its byte order mark says, else in UTF-8. Raises OSError.

    Windows' Notepad may put a mark before UTF-8, which would be taken for a part of the first name or of a password; `>` and
    Out-File of Windows PowerShell 5.1 write UTF-16.
    """
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


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
        values = env_values(path)
        dotenv = DotEnvSettingsSource(settings_cls, env_file=path, env_file_encoding=encoding_of(path))
        sources += [
            (str(path), dotenv),
            (f"a file named in {path}", _FilesSource(settings_cls, _named_in(values))),
        ]
        if path == SERVICE_FOLDER / SERVICE_ENV_FILE:
            sources.append((f"a credential in {SERVICE_FOLDER}", _FilesSource(settings_cls, _service_credential)))
    return sources


def env_values(path: Path) -> dict[str, str | None]:
    """What stands in a `.env`. Raises ConfigurationError when it, or a line of it, cannot be read."""
    try:
        encoding = encoding_of(path)
        with path.open(encoding=encoding) as file:
            broken = _broken_lines(file)
        if not broken:
            return dotenv_values(path, encoding=encoding)
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
    return (f"the systemd credential {path.name}", path) if folder and is_file(path) else None


def _service_credential(field: str) -> tuple[str, Path] | None:
    path = SERVICE_FOLDER / SERVICE_CREDENTIALS[field] if field in SERVICE_CREDENTIALS else None
    return (f"the services' credential {path.name}", path) if path and os.access(path, os.R_OK) else None


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
            text = path.read_text(encoding=encoding_of(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigurationError(f"{name} names {str(path)!r}, which cannot be read: {reason}") from None
        return text.removesuffix("\n").removesuffix("\r"), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value}
