"""`service`: AI Worker under systemd. Units, settings and credentials are written, enabled, looked at and taken away again."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import subprocess
from pathlib import Path
from typing import Any, Final

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.keys import read_secret
from ai_worker.cli.service_files import (
    BACKOFF,
    BACKOFF_SINCE,
    FILES,
    TARGET,
    TIMER,
    UNITS,
    WEB,
    WORKER,
    Host,
    check_host,
    check_path,
    check_readable,
    credential,
    echo_done,
    last_line,
    settings_text,
    show,
    this_program,
    unit_text,
    units_folder,
    version,
)
from ai_worker.cli.status import visible
from ai_worker.config import SERVICE_ENV_FILE, SERVICE_FOLDER, env_values
from ai_worker.database_url import parse_database_url
from ai_worker.errors import EXIT_DONE, EXIT_FAILED, AiWorkerError, ConfigurationError, UsageError

MOST_INSTANCES: Final = 64
DATA: Final = Path("/var/lib/ai-worker")
_UNFIT: Final = re.compile(r"[\"\\$\s]")  # of a URL in a file that systemd, a shell and python-dotenv may read

_ADVICE: Final = {
    "db_password": "give it to the database's user",
    "master_key": "keep a copy, and give it to every host: without it the API keys in the database cannot be read",
}

_ROOT = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The image of a host, not this one.",
)
_DRY = click.option("--dry-run", "is_dry", is_flag=True, help="Tell what would be done, and do nothing.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def service() -> None:
    """AI Worker as services of systemd: hardened, watched, drained, started with the host.

    docs/service.md has the way from a new installation to a running service. On Windows, see systemd/windows.
    """


@service.command()
@click.option("--instances", type=click.IntRange(1, MOST_INSTANCES), metavar="N", help="Worker processes.  [those enabled, or 1]")
@click.option("--web/--no-web", default=None, help="With the HTTP API and the dashboard, or without.  [as it is, or without]")
@click.option(
    "--prune/--no-prune", default=None, help="Delete each night what is older than 30 days, or not.  [as it is, or not]"
)
@click.option("--db-url", metavar="URL", help="The database, without the password; needed the first time.")
@click.option("--db-password-file", type=_FILE, metavar="F", help="The database user's password.  [one is made]")
@click.option("--master-key-file", type=_FILE, metavar="F", help="The master key, the same on every host.  [one is made]")
@click.option(
    "--program", type=click.Path(path_type=Path), metavar="FILE", help="What to start.  [this installation's ai-worker]"
)
@click.option("--no-start", is_flag=True, help="Enable, but start nothing now.")
@_ROOT
@_DRY
@_JSON
def install(
    instances: int | None,
    web: bool | None,
    prune: bool | None,
    db_url: str | None,
    db_password_file: Path | None,
    master_key_file: Path | None,
    program: Path | None,
    no_start: bool,
    root: Path | None,
    is_dry: bool,
    as_json: bool,
) -> int:
    """Write units, settings and credentials, enable the services and start them. May be repeated, also with other options.

    /etc/ai-worker/ai-worker.env is written once and never again: it is yours. Secrets that are not given are made, and kept in
    /etc/ai-worker/credentials. After an upgrade, or when db-password-web or db-password-prune has come into that folder, run it
    again, and then `systemctl restart 'ai-worker*'`.
    """
    check_host(root, writes=not is_dry)
    host = Host(root, is_dry)
    program = program or this_program()
    check_path(program)
    check_readable(program, root)
    units = _wanted(host, instances, web=web, prune=prune)
    if WEB in units and program == this_program() and importlib.util.find_spec("fastapi") is None:
        raise ConfigurationError("the web needs more packages: pip install 'ai-worker[web]' into this installation")
    was_there = host.read(UNITS / TARGET) is not None

    made = _configure(host, db_url, db_password_file, master_key_file)
    has_changed = _write_units(host, program, units)
    _enable(host, units)
    if root is None and not no_start:
        if not is_dry:
            _check_database(program)
        host.systemctl("start", *units)
    if as_json:
        context.emit_json({"done": host.done, "made": made, "units": units})
        return EXIT_DONE
    echo_done(host)
    for name in made:
        verb = "would be made" if is_dry else "was made"
        click.echo(f"a new {name.replace('_', ' ')} {verb}: {credential(name)}; {_ADVICE[name]}", err=True)
    if not host.done:
        click.echo("all of it is so already")
    elif has_changed and was_there and root is None:
        click.echo("units have changed: systemctl restart 'ai-worker*' lets running ones take that on", err=True)
    return EXIT_DONE


def _wanted(host: Host, instances: int | None, *, web: bool | None, prune: bool | None) -> list[str]:
    """The units that are to be enabled; what is not said stays as it is."""
    present = host.instances()
    if instances is None:
        workers = present or ["1"]
    else:  # named ones are somebody's own
        workers = [*map(str, range(1, instances + 1)), *(name for name in present if not name.isdigit())]
    options = [unit for unit, wish in ((WEB, web), (TIMER, prune)) if (host.is_enabled(unit) if wish is None else wish)]
    return [TARGET, *(f"{WORKER}{name}.service" for name in workers), *options]


def _configure(host: Host, db_url: str | None, db_password_file: Path | None, master_key_file: Path | None) -> list[str]:
    """Writes settings and credentials, where they are not there yet; which secrets were made."""
    path = SERVICE_FOLDER / SERVICE_ENV_FILE
    present = host.read(path)
    if db_url is not None:
        if _UNFIT.search(db_url):
            raise UsageError("--db-url: percent-encode quotes, spaces, dollar signs and backslashes")
        if parse_database_url(db_url).password.reveal():
            raise UsageError(
                "leave the password out of --db-url, where every user of this host could read it: use --db-password-file"
            )
    if present is None:
        if db_url is None:
            raise UsageError("name the database: --db-url mysql://ai_worker@127.0.0.1:3306/ai_worker")
        host.write(path, settings_text(db_url), 0o600)
    elif db_url is not None and db_url != (set_url := env_values(host.path(path)).get("AI_WORKER_DB_URL")):
        shown = "no database" if not set_url else "another database"
        raise UsageError(f"{path} names {shown}, and is never written over: put the URL there with an editor")
    made = []
    host.folder(credential("db_password").parent, 0o700)
    for name, given in (("db_password", db_password_file), ("master_key", master_key_file)):
        there = host.read(credential(name))
        # An empty password file is a user without one.
        text = None if given is None else (read_secret(given) if given.stat().st_size or name == "master_key" else "")
        if text is not None and there is not None and there.strip() != text and name == "master_key":
            raise UsageError(f"{credential(name)} has another master key: `ai-worker rekey --help` says how to change over")
        if text is None and there is None:
            text = _new(name)
            made.append(name)
        if text is not None:
            host.write(credential(name), text + "\n", 0o600)
    return made


def _new(name: str) -> str:
    from ai_worker.keys import generate_master_key

    return generate_master_key() if name == "master_key" else secrets.token_urlsafe(24)


def _write_units(host: Host, program: Path, units: list[str]) -> bool:
    """Writes the unit files; whether any was not so already."""
    has_changed, has_web = False, WEB in units
    for name in FILES:
        if name != WEB or has_web:
            text = unit_text(name, program, own_password=bool(host.has_own_password(name)))
            has_changed |= host.write(UNITS / name, text)
    if version() >= BACKOFF_SINCE:
        text = (units_folder() / "restart-backoff.conf").read_text(encoding="utf-8")
        for name in (f"{WORKER}.service", *([WEB] if has_web else [])):
            has_changed |= host.write(UNITS / f"{name}.d" / BACKOFF, text)
    if has_changed and host.root is None:
        host.systemctl("daemon-reload")
    return has_changed


def _enable(host: Host, units: list[str]) -> None:
    """Has these units, and no others of ours, start with the host."""
    workers = [f"{WORKER}{name}.service" for name in host.instances()]
    surplus = [unit for unit in (*workers, WEB, TIMER) if unit not in units and host.is_enabled(unit)]
    if surplus:
        host.systemctl("disable", *(["--now"] if host.root is None else []), *surplus)
        if WEB in surplus:
            host.remove(UNITS / WEB)
    if missing := [unit for unit in units if not host.is_enabled(unit)]:
        host.systemctl("enable", *missing)


def _check_database(program: Path) -> None:
    """A worker that ends at once, because its database is away or has no tables, is better not started: say so here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AI_WORKER_")}
    checked = subprocess.run(  # noqa: S603 -- this program
        [program, "migrate", "--check"], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    if checked.returncode:
        said = (checked.stderr.strip() or checked.stdout.strip()).removeprefix("ai-worker: ")
        raise AiWorkerError(f"all is enabled, and nothing was started: {said}")


@service.command()
@click.option("--purge", is_flag=True, help="Delete settings, credentials and /var/lib/ai-worker as well: the master key, too.")
@_ROOT
@_DRY
@_JSON
def uninstall(purge: bool, root: Path | None, is_dry: bool, as_json: bool) -> int:
    """Stop the services, which drain, and take their units away. Settings and credentials stay, unless --purge is given.

    The database is left alone. So are drop-ins of your own (`systemctl edit`).
    """
    check_host(root, writes=not is_dry)
    host = Host(root, is_dry)
    others = [unit for unit in (WEB, TIMER, TARGET) if host.read(UNITS / unit) is not None or host.is_enabled(unit)]
    units = [*_workers(host), *others]
    if units:
        host.systemctl("disable", *(["--now"] if root is None else []), *units)
    removed = [host.remove(UNITS / name) for name in FILES]
    removed += [host.remove(UNITS / f"{name}.d" / BACKOFF) for name in (f"{WORKER}.service", WEB)]
    if any(removed) and root is None:
        host.systemctl("daemon-reload")
    if purge:
        for folder in (SERVICE_FOLDER, DATA, DATA.parent / "private" / DATA.name):
            host.remove(folder)
    if as_json:
        context.emit_json({"done": host.done})
        return EXIT_DONE
    echo_done(host)
    if not host.done:
        click.echo("nothing is installed")
    elif not purge and host.path(SERVICE_FOLDER).is_dir():
        click.echo(f"{SERVICE_FOLDER} is left, with the master key; --purge deletes it", err=True)
    return EXIT_DONE


def _workers(host: Host) -> list[str]:
    """All instances: those that are enabled, and those that run without."""
    names = {f"{WORKER}{name}.service" for name in host.instances()}
    if host.root is None:
        names |= {unit["Id"] for unit in show(f"{WORKER}*.service", properties=("Id",)) if "Id" in unit}
    return sorted(names)


_PROPERTIES: Final = ("Id", "ActiveState", "SubState", "StatusText", "MainPID", "NRestarts", "Result", "ActiveEnterTimestamp")


@service.command()
@_JSON
def status(as_json: bool) -> int:
    """How the services of this host are, the last line of each one's log, and the workers of all hosts. Exit code 1 where one
    that is enabled does not run.
    """
    check_host(None, writes=False)
    host = Host()
    wanted = [*_workers(host), *(unit for unit in (WEB, TIMER) if host.is_enabled(unit))]
    if not wanted:
        raise UsageError("no service is installed: `ai-worker service install` does it")
    units = [{**unit, "last_line": last_line(unit["Id"])} for unit in show(*wanted, properties=_PROPERTIES)]
    workers, trouble = _fleet()
    if as_json:
        context.emit_json({"units": units, "workers": workers, "database": trouble})
    else:
        context.emit_table(("SERVICE", "STATE", "RESTARTS", "SAYS"), [_row(unit) for unit in units], right=(2,))
        for unit in units:
            if unit["last_line"]:
                click.echo(f"{_unit(unit)}: {visible(unit['last_line'])}")
        click.echo()
        if trouble:
            click.echo(f"workers of all hosts: {trouble}")
        for worker in workers:
            click.echo(
                f"worker {worker['id_worker']} on {visible(worker['host'])}, pid {worker['pid']}: {worker['state']}, "
                f"{worker['in_flight']} of {worker['concurrency']} in flight, "
                f"last seen {formats.duration(worker['silent_seconds'])} ago"
            )
    return EXIT_DONE if all(unit["ActiveState"] in {"active", "reloading"} for unit in units) else EXIT_FAILED


def _row(unit: dict[str, str]) -> tuple[str | None, ...]:
    # Of a unit that was stopped systemd keeps the last words, which are true no more.
    says = None if unit["ActiveState"] in {"inactive", "failed"} else visible(unit.get("StatusText", "")) or None
    return _unit(unit), f"{unit['ActiveState']} ({unit['SubState']})", unit.get("NRestarts"), says


def _unit(unit: dict[str, str]) -> str:
    return unit["Id"].removesuffix(".service")


def _fleet() -> tuple[list[dict[str, Any]], str | None]:
    """The workers in the database, or why they cannot be told."""
    from ai_worker.store.reports import Reports, WorkerReport

    try:
        with context.database(patience=2) as db:
            found = Reports(db).workers()
    except AiWorkerError as error:
        return [], str(error)
    return [{name: getattr(worker, name) for name in WorkerReport.__slots__} for worker in found], None
