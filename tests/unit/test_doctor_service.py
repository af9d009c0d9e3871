"""What the doctor says of services, workers, tokens and the folder for files."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ai_worker import __version__
from ai_worker.cli import main
from ai_worker.cli.doctor_fleet import is_open, of_tokens, of_workers
from ai_worker.cli.doctor_service import check_files_folder, check_personal_data, check_service
from ai_worker.cli.findings import Finding
from ai_worker.config import Settings
from ai_worker.store.reports import WorkerReport
from ai_worker.store.tokens import Scope, TokenReport

NOW = datetime(2026, 11, 22, 12)  # noqa: DTZ001 -- as the database gives it


def levels(findings: list[Finding]) -> set[str]:
    return {each.level for each in findings}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The image of a host on which the services are installed."""
    if shutil.which("systemctl") is None:
        pytest.skip("there is no systemctl to install with")
    root = tmp_path / "image"
    root.mkdir()
    url = "mysql://ai_worker@127.0.0.1/ai_worker"
    arguments = ["service", "install", "--db-url", url, "--web", "--prune", "--program", "/opt/ai-worker/bin/ai-worker"]
    assert main([*arguments, "--root", str(root)]) == 0
    return root


def test_a_host_without_services_has_nothing_to_say(tmp_path: Path) -> None:
    assert list(check_service(tmp_path)) == []


def test_what_was_just_installed_is_sound(root: Path) -> None:
    assert levels(found := list(check_service(root))) == {"ok"}, found


def old_unit(root: Path) -> None:
    path = root / "etc/systemd/system/ai-worker@.service"
    path.write_text(path.read_text().replace("WatchdogSec=60", "WatchdogSec=600"))


def other_program(root: Path) -> None:
    path = root / "etc/systemd/system/ai-worker@.service"
    path.write_text(path.read_text().replace("/opt/ai-worker/bin", "/home/anna/bin"))


def no_timer(root: Path) -> None:
    (root / "etc/systemd/system/ai-worker-prune.timer").unlink()


def open_key(root: Path) -> None:
    (root / "etc/ai-worker/credentials/master-key").chmod(0o644)


def open_settings(root: Path) -> None:
    (root / "etc/ai-worker/ai-worker.env").chmod(0o640)


def open_settings_of_the_web(root: Path) -> None:
    (root / "etc/ai-worker/ai-worker-web.env").touch(mode=0o644)


def open_password_of_prune(root: Path) -> None:
    (root / "etc/ai-worker/credentials/db-password-prune").touch(mode=0o640)
    assert main(["service", "install", "--program", "/opt/ai-worker/bin/ai-worker", "--root", str(root)]) == 0


def password_that_is_not_used(root: Path) -> None:
    (root / "etc/ai-worker/credentials/db-password-web").touch(mode=0o600)


def no_worker(root: Path) -> None:
    (root / "etc/systemd/system/ai-worker.target.wants/ai-worker@1.service").unlink()


@pytest.mark.parametrize(
    ("change", "says", "remedy"),
    [
        (old_unit, "is not what this version brings", "service install"),
        (other_program, "hidden from services", "service install"),
        (no_timer, "ai-worker-prune.timer is missing", "service install"),
        (open_key, "master-key can be read by others than root (mode 0644)", "chmod 600"),
        (open_settings, "ai-worker.env can be read by others than root (mode 0640)", "chmod 600"),
        (open_settings_of_the_web, "ai-worker-web.env can be read by others than root (mode 0644)", "chmod 600"),
        (open_password_of_prune, "db-password-prune can be read by others than root (mode 0640)", "chmod 600"),
        (password_that_is_not_used, "ai-worker-web.service is not what this version brings", "service install"),
        (no_worker, "no worker starts with this host", "service install"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(root: Path, change: Callable[[Path], None], says: str, remedy: str) -> None:
    change(root)
    (found,) = check_service(root)
    assert says in found.message
    assert found.level != "ok"
    assert found.remedy is not None
    assert remedy in found.remedy


def test_who_may_not_look_for_passwords_is_told_nothing_wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "etc/ai-worker/credentials/db-password-web").touch(mode=0o600)
    assert main(["service", "install", "--program", "/opt/ai-worker/bin/ai-worker", "--root", str(root)]) == 0
    stat = Path.stat

    def closed(path: Path, **options: bool) -> os.stat_result:
        if path.parent.name == "credentials":
            raise PermissionError(13, "no", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", closed)
    assert levels(found := list(check_service(root))) == {"ok"}, found


def worker(state: str = "alive", version: str = __version__) -> WorkerReport:
    return WorkerReport(7, state, "ha", 1, version, "daemon", 8, 0, 0, 0, NOW, None, 12.0)


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ([worker("late")], "7 on ha, pid 1, was last heard of 12 s ago (late)"),
        ([worker("lost", "0.0.1")], "(lost)"),
        ([worker(), worker(version="0.0.1")], f"1 worker of another version than {__version__}: 7 on ha (0.0.1)"),
    ],
)
def test_workers_that_are_silent_or_of_another_version_are_named(workers: list[WorkerReport], says: str) -> None:
    (found,) = of_workers(workers)
    assert found.level == "warning"
    assert says in found.message


def test_workers_that_are_well_are_counted() -> None:
    assert [each.message for each in of_workers([worker(), worker("draining")])] == ["2 workers at work, none silent"]


def token(expire: timedelta | None = None, *, revoked: bool = False) -> TokenReport:
    return TokenReport("ci", (Scope.READ,), NOW, expire and NOW + expire, None, NOW if revoked else None, False)


@pytest.mark.parametrize(
    ("tokens", "level", "says"),
    [
        ([], "warning", "no valid token"),
        ([token(revoked=True)], "warning", "no valid token"),
        ([token(), token(timedelta(days=6))], "warning", "the token ci expires at 2026-11-28T12"),
        ([token(timedelta(days=8)), token()], "ok", "2 valid tokens"),
    ],
)
def test_tokens(tokens: list[TokenReport], level: str, says: str) -> None:
    (found,) = of_tokens(tokens, NOW)
    assert (found.level, says in found.message) == (level, True)


@pytest.mark.parametrize(
    ("host", "opened"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("::", True), ("10.0.0.5", True), ("web", True)],
)
def test_addresses_that_others_reach(host: str, opened: bool) -> None:
    assert is_open(host) is opened


def test_the_folder_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_files_folder(Settings.model_construct(files_folder=None))) == []
    (missing,) = check_files_folder(Settings.model_construct(files_folder=tmp_path / "none"))
    assert missing.level == "problem"
    usage = shutil.disk_usage(tmp_path)
    for free, level in ((usage.total // 30, "warning"), (usage.total, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        (found,) = check_files_folder(Settings.model_construct(files_folder=tmp_path))
        assert found.level == level


def test_what_it_takes_to_mask_personal_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tmp_path / "names.txt"
    settings = Settings.model_construct(personal_names_file=names)
    assert [each.level for each in check_personal_data(settings)] == ["problem"], "a list that is named must be there"
    for content, level in (("# nobody yet\n", "problem"), ("Jan Kowalski\n", "ok")):
        names.write_text(content, encoding="utf-8")
        (found,) = check_personal_data(settings)
        assert found.level == level
        assert "Kowalski" not in found.message
    monkeypatch.setitem(sys.modules, "stdnum", None)
    (found,) = check_personal_data(settings)
    assert found.level == "problem"
    assert "ai-worker[pii]" in found.message
    assert list(check_personal_data(Settings.model_construct(personal_names_file=None))) == [], "not every host is for that"
