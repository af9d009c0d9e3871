"""The checks of `doctor`, in the order in which one rests on the other."""

from __future__ import annotations

import platform
import re
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ai_worker import __version__
from ai_worker.cli import context
from ai_worker.cli.doctor_endpoint import WITHOUT_NETWORK, probe
from ai_worker.cli.doctor_fleet import check_fleet, check_web
from ai_worker.cli.doctor_order import check_order
from ai_worker.cli.doctor_service import check_files_folder, check_personal_data, check_service
from ai_worker.cli.doctor_settings import check_settings
from ai_worker.cli.findings import Finding, misconfigured, ok, problem, warning
from ai_worker.cli.service_files import WEB, Host
from ai_worker.config import PREFIX, Settings
from ai_worker.database_url import DatabaseUrl
from ai_worker.db import Database
from ai_worker.errors import EXIT_TEMPORARY, ConfigurationError, DatabaseAway, DatabaseError, DatabaseRefused
from ai_worker.keys import Keyring
from ai_worker.migrate import check as check_schema
from ai_worker.migrate import migrations
from ai_worker.models import Model, Secret
from ai_worker.providers import provider_class
from ai_worker.store.health import Health, Server
from ai_worker.store.models import Models

OLDEST_MARIADB: Final = (10, 6, 0)  # SKIP LOCKED, JSON_TABLE
OLDEST_MYSQL: Final = (8, 0, 19)  # CHECK constraints, rows of VALUES
SMALLEST_PACKET: Final = 16 * 1024 * 1024  # bytes; a group of results travels in one statement
LARGEST_SKEW: Final = 1.0  # seconds

# What to do about a login that was refused, by the server's error number.
_DENIED: Final = {1142, 1143}  # a right to a table, or a column

_REFUSED: Final = {
    1044: "Let a DBA grant this user its privileges on the database: sql/grants.sql.",
    1045: f"Check user and password in {PREFIX}DB_URL and {PREFIX}DB_PASSWORD. A user made with REQUIRE SSL needs ?ssl=required.",
    1049: "Run `ai-worker migrate`, which makes the database too, or let a DBA make it.",
    1130: "Let a DBA make a user for this host: CREATE USER 'name'@'this host' ...",
    1698: "This user logs in by the system's user name only: use another one, or its socket (?socket=...).",
    2026: "Check ssl, ssl_ca, ssl_cert and ssl_key in the database URL against the server's certificate.",
}


def examine(*, offline: bool) -> Iterator[Finding]:
    """All findings. A check that rests on one that failed is left out. `offline` leaves the models' endpoints alone."""
    yield ok("version", f"AI Worker {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}")
    try:
        settings = context.settings()
        yield from check_settings()
        yield from check_service()
        yield from check_files_folder(settings)
        yield from check_personal_data(settings)
        settings.database_url()
        ring = context.keyring(settings)
    except ConfigurationError as error:
        yield misconfigured("settings", str(error), "Put this right first; nothing else was looked at.")
        return
    try:
        with context.database(settings, patience=0, check=False) as db:
            db.connect()
            yield from _check_server(Health(db), db.url)
            yield from _check_rows(db, ring, settings, offline=offline)
    except DatabaseRefused as error:
        remedy = _REFUSED.get(error.code, "Check the user, its password and its rights on the server.")
        yield misconfigured("database", str(error), remedy)
    except DatabaseAway as error:
        remedy = "Is the server running? Are host, port and firewall right? Workers go on trying by themselves."
        yield problem("database", str(error), remedy, EXIT_TEMPORARY)
    except ConfigurationError as error:
        yield misconfigured("database", str(error), f"Put it right, or set {PREFIX}DB_URL to another database.")
    except DatabaseError as error:
        yield misconfigured("database", str(error), "Show this to the DBA.")


def _check_server(health: Health, url: DatabaseUrl) -> Iterator[Finding]:
    server = health.server()
    yield from check_version(server.version)
    yield from check_session(server)
    yield from _check_encryption(server, url)
    skew = health.clock_skew()
    if abs(skew) > LARGEST_SKEW:
        message = f"the database's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this host's"
        yield warning("clock", message, "Let NTP set both. Leases go by the database's clock, but logs and certificates do not.")
    else:
        yield ok("clock", f"within {max(abs(skew), 0.001):.3f} s of the database's")


def check_version(text: str) -> Iterator[Finding]:
    """Findings about a server's `@@version`, such as `10.11.19-MariaDB-0+deb12u1`."""
    match = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)", text)  # MariaDB prefixes 5.5.5- for old replicas
    is_mariadb = "mariadb" in text.lower()
    oldest = OLDEST_MARIADB if is_mariadb else OLDEST_MYSQL
    name = "MariaDB" if is_mariadb else "MySQL"
    if match is None:
        yield warning(
            "server", f"its version {text!r} cannot be read", f"AI Worker is tested on {name} {_dotted(oldest)} and later."
        )
    elif tuple(map(int, match.groups())) < oldest:
        yield misconfigured("server", f"{name} {text} is too old", f"Upgrade to {name} {_dotted(oldest)} or later.")
    else:
        yield ok("server", f"{name} {text}")


def check_session(server: Server) -> Iterator[Finding]:
    """Findings about the session that the server, or a proxy before it, really gave us."""
    sound = True
    proxy = "AI Worker asks for it at each connection; a proxy or an init_connect in between changes it. Take that away."
    if server.isolation != "READ-COMMITTED":
        sound = False
        yield misconfigured(
            "session", f"the isolation is {server.isolation}, not READ-COMMITTED: polling would block INSERTs", proxy
        )
    if not server.sql_mode & {"STRICT_ALL_TABLES", "STRICT_TRANS_TABLES"}:
        sound = False
        yield misconfigured("session", "the SQL mode is not strict: texts would be cut short silently", proxy)
    if server.time_zone != "+00:00":
        sound = False
        yield misconfigured("session", f"the time zone is {server.time_zone}, not +00:00: schedules would be off", proxy)
    if server.max_allowed_packet < SMALLEST_PACKET:
        sound = False
        message = f"max_allowed_packet is {server.max_allowed_packet:,} bytes: long texts and groups of results do not fit"
        yield problem(
            "session", message, "Let a DBA set max_allowed_packet = 64M in the server's [mysqld] section (at least 16M)."
        )
    if sound:
        yield ok("session", f"READ COMMITTED, strict, UTC, packets of up to {server.max_allowed_packet // 1024 // 1024} MB")


def _check_encryption(server: Server, url: DatabaseUrl) -> Iterator[Finding]:
    if server.cipher and (url.ssl == "verify" or not url.is_remote):
        yield ok("encryption", f"{server.cipher}, {'verified' if url.ssl == 'verify' else 'to this machine'}")
    elif server.cipher:
        message = f"{server.cipher}, but nobody checks that this is the right server"
        yield warning("encryption", message, "Add ?ssl=verify&ssl_ca=FILE to the database URL.")
    elif url.is_remote:
        message = "texts and passwords travel to the database in the clear"
        yield warning("encryption", message, "Set up TLS on the server and add ?ssl=verify&ssl_ca=FILE to the database URL.")
    else:
        yield ok("encryption", "none, and none needed: the database is on this machine")


def _check_rows(db: Database, ring: Keyring, settings: Settings, *, offline: bool) -> Iterator[Finding]:
    try:
        version, needed = check_schema(db), migrations()[-1].version
        if version == needed:
            yield ok("schema", f"at version {version}, as this version needs it")
        else:
            yield ok(
                "schema",
                f"at version {version}, newer than this version's {needed}, and compatible: upgrade this host when you can",
            )
    except ConfigurationError as error:
        yield misconfigured("schema", str(error), "Upgrade whichever is behind; take a backup of the database before.")
        return
    health = Health(db)
    missing = health.missing_privileges()
    for privilege, table in missing:
        remedy = f"Let a DBA run: GRANT {privilege} ON {db.url.database}.{table} TO {db.url.user!r}@'...'; see sql/grants.sql."
        yield misconfigured("privileges", f"{db.url.user} may not {privilege} {table}", remedy)
    if any(privilege == "SELECT" for privilege, _ in missing):
        return
    if not missing:
        yield ok("privileges", f"{db.url.user} may do what a worker does")
    orphans = health.orphan_tasks()
    if orphans:
        shown = ", ".join(map(str, orphans))
        message = f"task_item has rows of tasks that do not exist (id_task {shown}); they are never processed"
        yield problem("items", message, "Insert the tasks with these ids, or delete the items.")
    else:
        yield ok("items", "each belongs to a task")
    yield from check_order(db)
    yield from check_fleet(db)
    try:
        yield from check_web(settings, db, is_served=Host().is_enabled(WEB))
    except DatabaseError as error:
        if error.code not in _DENIED:
            raise
        yield ok("web", f"{db.url.user} may not look at tokens: a worker needs none")
    models = Models(db).all()
    readable = yield from _check_keys(models, ring)
    yield from _check_models(models, readable, offline=offline)


def _check_keys(models: list[Model], ring: Keyring) -> Generator[Finding, None, dict[int, Secret]]:
    """Findings about the encrypted keys; returns those that can be read, by `id_ai_model`."""
    readable: dict[int, Secret] = {}
    encrypted = [(each, each.api_key_encrypted) for each in models if each.api_key_encrypted is not None]
    unsealed = False
    for model, value in encrypted:
        try:
            readable[model.id_ai_model] = ring.decrypt(model.id_ai_model, value, model.name)
            unsealed = unsealed or not ring.is_current(value)
        except ConfigurationError as error:
            remedy = f"If the old key is lost: `ai-worker model set {model.name} --api-key-file FILE`."
            yield misconfigured("keys", str(error), remedy)
    if not ring.has_master_key and not encrypted:
        remedy = "Run `ai-worker keygen` before you add a model that needs an API key."
        yield warning("keys", f"no master key is set ({PREFIX}MASTER_KEY)", remedy)
    elif unsealed:
        yield warning("keys", "some are encrypted with an old master key, or by a panel", "Run `ai-worker rekey`.")
    elif len(readable) == len(encrypted):
        yield ok("keys", f"{len(encrypted)} encrypted, all can be read")
    return readable


def _check_models(models: list[Model], readable: dict[int, Secret], *, offline: bool) -> Iterator[Finding]:
    active = [each for each in models if each.is_active]
    if not active:
        remedy = "Add one, for example `ai-worker model add try --provider offline`, which needs no key."
        yield warning("models", "there is no active model", remedy)
    for model in active:
        if model.stopped_kind:
            remedy = f"Put it right, then run `ai-worker model test {model.name}`."
            yield warning("models", f"{model.name} is stopped ({model.stopped_kind}): {model.stopped_reason}", remedy)
    if offline or not active:
        return
    with ThreadPoolExecutor(max_workers=8) as pool:
        probes = list(pool.map(lambda each: probe(each, readable.get(each.id_ai_model)), active))
    for model, found in zip(active, probes, strict=True):
        if found is None and model.provider in WITHOUT_NETWORK:
            yield ok("models", f"{model.name} needs no network ({model.provider})")
        elif found is None:
            yield _check_plugin(model)
        elif found.is_refused and (model.id_ai_model in readable or model.api_key_encrypted is None):
            remedy = f"Set a valid one: `ai-worker model set {model.name} --api-key-file FILE`."
            yield problem("models", f"{model.name}: {found.url} does not accept the API key (HTTP {found.status})", remedy)
        elif found.status is None:
            remedy = "Check the base URL, DNS, firewall, proxy variables and the certificate from this host."
            yield problem("models", f"{model.name}: {found.url} cannot be reached: {found.reason}", remedy)
        else:
            yield ok("models", f"{model.name}: {found.url} answers")


def _check_plugin(model: Model) -> Finding:
    """All that can be said of a provider of somebody else's whose endpoint no base URL tells."""
    try:
        provider_class(model.provider)
    except ConfigurationError as error:
        remedy = f"Put that right on this host, or run `ai-worker model set {model.name} --provider ...`."
        return problem("models", f"{model.name} cannot be used from here: {error}", remedy)
    message = f"{model.name}: the endpoint of its provider {model.provider!r} is not known and was not tried"
    return ok("models", f"{message}; `ai-worker model test {model.name}` makes a real call")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
