"""The doctor's look at this host: the services of systemd, where they are installed, the folder for files, and personal data."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ai_worker.cli.findings import Finding, misconfigured, ok, problem, warning
from ai_worker.cli.service_files import (
    FILES,
    OWN_PASSWORD,
    OWN_SETTINGS,
    PACKAGED,
    PRUNE,
    TARGET,
    UNITS,
    WEB,
    WORKER,
    Host,
    check_readable,
    show,
    unit_text,
)
from ai_worker.config import SERVICE_CREDENTIALS, SERVICE_ENV_FILE, SERVICE_FOLDER, Settings
from ai_worker.errors import AiWorkerError, CannotMask, ConfigurationError

LEAST_SPACE: Final = 1 << 30
"""Bytes free in the folder for files below which the doctor warns: pictures have some megabytes each."""

_EXEC: Final = re.compile(r"^ExecStart=(\S+)", re.MULTILINE)
_PROPERTIES: Final = ("Id", "LoadState", "ActiveState", "SubState", "Result", "NRestarts")
_AGAIN: Final = "Run `ai-worker service install` again, then systemctl restart 'ai-worker*'."


def check_service(root: Path | None = None) -> Iterator[Finding]:
    """Findings about the services, on a host where they are installed; `root` is the image of a host instead of this one."""
    host = Host(root)
    if host.read(UNITS / TARGET) is None:
        return
    sound = [*_check_units(host), *_check_secrets(host)]
    if root is None:
        sound += _check_running(host)
    yield from sound or [ok("service", f"installed, with {_count(len(host.instances()))}")]


def _check_units(host: Host) -> Iterator[Finding]:
    """Whether they are of this version, enabled, and can start their program."""
    for name in FILES:
        text = host.read(UNITS / name)
        if text is None:
            if name != WEB:
                yield warning("service", f"{UNITS / name} is missing", _AGAIN)
            continue
        program = _EXEC.search(text)
        has_own = host.has_own_password(name)
        expected = (
            unit_text(name, Path(program[1] if program else PACKAGED), own_password=each)
            for each in ((False, True) if has_own is None else (has_own,))
        )
        if text not in expected:
            yield warning("service", f"{UNITS / name} is not what this version brings", _AGAIN)
        if program and name.startswith(WORKER):
            try:
                check_readable(Path(program[1]), host.root)
            except ConfigurationError as error:
                yield misconfigured("service", str(error), "Then run `ai-worker service install` of that installation.")
    if not host.is_enabled(TARGET) or not host.instances():
        yield warning("service", "no worker starts with this host", "Run `ai-worker service install`.")


def _check_secrets(host: Host) -> Iterator[Finding]:
    """Settings and credentials are for root alone: the services get theirs from systemd."""
    names = (SERVICE_ENV_FILE, *OWN_SETTINGS.values(), *SERVICE_CREDENTIALS.values(), *OWN_PASSWORD.values())
    for path in (SERVICE_FOLDER / name for name in names):
        try:
            found = host.path(path).stat()
        except FileNotFoundError:
            continue
        except OSError:  # in a folder that this user may not look into: as it should be
            continue
        if found.st_mode & 0o077:
            message = f"{path} can be read by others than root (mode {stat.S_IMODE(found.st_mode):04o})"
            yield problem("service", message, f"chown root: {path} && chmod 600 {path}")
        elif found.st_uid != 0 and host.root is None:
            yield problem("service", f"{path} belongs to user {found.st_uid}, who can read it", f"chown root: {path}")


def _check_running(host: Host) -> Iterator[Finding]:
    """Whether systemd has those running that are enabled."""
    wanted = [f"{WORKER}{name}.service" for name in host.instances()] + [WEB] * host.is_enabled(WEB)
    try:
        units = show(*wanted, PRUNE, properties=_PROPERTIES)
    except AiWorkerError as error:
        yield warning("service", f"systemd cannot be asked: {error}", "Look with `systemctl status 'ai-worker*'`.")
        return
    for unit in units:
        name, state, result = unit.get("Id", "?"), unit.get("ActiveState", ""), unit.get("Result", "")
        if state == "failed" or result not in {"success", ""}:
            remedy = f"`journalctl -u {name} -n 50` says why; then `systemctl restart {name}`."
            yield problem("service", f"{name} has failed ({result}), after {unit.get('NRestarts', '0')} restarts", remedy)
        elif name in wanted and state not in {"active", "activating", "reloading"}:
            yield warning("service", f"{name} is enabled and {state}", f"systemctl start {name}")


def check_files_folder(settings: Settings) -> Iterator[Finding]:
    """Findings about the folder for files, where one is set."""
    folder = settings.files_folder
    if folder is None:
        return
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        remedy = "Make it, and let the workers' user write there; results with files are kept in hand until then."
        yield problem("files", f"{folder}: {error.strerror or error}", remedy)
        return
    free = f"{usage.free / (1 << 30):,.1f} GiB free in {folder}"
    if usage.free < max(LEAST_SPACE, usage.total // 20):
        remedy = "Make room, or run `ai-worker prune --older-than 30d`: results that cannot be written are kept in hand."
        yield warning("files", free, remedy)
    else:
        yield ok("files", free)


def check_personal_data(settings: Settings) -> Iterator[Finding]:
    """Findings about what it takes to mask or block personal data; none where nothing here says that it is to be."""
    from ai_worker.personal_data import Detector
    from ai_worker.task_types.masking import names_of

    path = settings.personal_names_file
    try:
        names = [] if path is None else names_of(path)
        Detector(names)
    except CannotMask as error:
        if path is not None:  # without it, and without the extra, this host may be one that is not meant for such tasks
            remedy = "Until then no item of a task with --personal-data is sent from here: docs/personal-data.md."
            yield misconfigured("personal data", str(error), remedy)
        return
    if path is None:
        yield ok("personal data", "can be masked, names apart: there is no AI_WORKER_PERSONAL_NAMES_FILE")
    else:
        yield ok("personal data", f"can be masked, with {len(names)} {'name' if len(names) == 1 else 'names'} from {path}")


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"
