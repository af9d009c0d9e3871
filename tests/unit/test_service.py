"""The units for systemd, and `ai-worker service` writing them into the image of a host."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ai_worker import config
from ai_worker.cli import cli, service, service_files
from ai_worker.cli.service_files import PACKAGED, check_readable, units_folder
from ai_worker.errors import ConfigurationError, UsageError

SERVICES = ("ai-worker@.service", "ai-worker-web.service", "ai-worker-prune.service")
HIGHEST = {
    "ai-worker@.service": 1.5,
    "ai-worker-web.service": 2.0,
    "ai-worker-prune.service": 1.5,
}  # of `systemd-analyze security`
NAMES = sorted(path.name for path in units_folder().iterdir() if path.suffix in {".service", ".timer", ".target"})

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def unit(name: str) -> dict[str, list[str]]:
    """A unit's assignments, by name; an empty one takes back those before."""
    found: dict[str, list[str]] = {}
    for line in (units_folder() / name).read_text(encoding="ascii").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def hardening(name: str) -> list[str]:
    text = (units_folder() / name).read_text(encoding="ascii")
    return re.findall(r"^(?:[A-Z]\w*=.*)$", text.partition("# What it may not do")[2].partition("\n\n")[0], re.M)


def test_all_units_are_there() -> None:
    assert {*service_files.FILES} == {*NAMES}
    assert {PACKAGED} == {unit(name)["ExecStart"][0].split()[0] for name in SERVICES}


def test_all_services_are_hardened_alike() -> None:
    assert len(hardening(SERVICES[0])) > 25
    for name in SERVICES[1:]:
        assert hardening(name) == hardening(SERVICES[0])
    for name in SERVICES:
        assert unit(name)["DynamicUser"] == ["yes"]
        keys = set() if name == "ai-worker-prune.service" else {"ai_worker_master_key"}  # which it has no use for
        assert {each.split(":")[0] for each in unit(name)["LoadCredential"]} == {"ai_worker_db_password", *keys}


def test_the_units_fit_the_program() -> None:
    worker = unit("ai-worker@.service")
    assert worker["RestartPreventExitStatus"] == ["2 78"]  # errors.EXIT_USAGE, EXIT_CONFIGURATION
    assert worker["Type"] == ["notify"]
    assert worker["KillMode"] == ["mixed"]
    # Without being asked for more, enough for the drain time as it is by default, and for the last commits.
    assert int(worker["TimeoutStopSec"][0]) > 2 * config.Settings.model_fields["drain_seconds"].default
    assert unit("ai-worker-web.service")["KillMode"] == ["control-group"]  # what POST /task/run has started drains, too


@pytest.mark.parametrize(("name", "own"), service_files.OWN_SETTINGS.items())
def test_settings_of_one_service_win_over_those_of_all(name: str, own: str, tmp_path: Path) -> None:
    """The commands that hand the settings over, run as they stand in the unit but for where files are."""
    runtime = unit(name)["RuntimeDirectory"][0]
    (tmp_path / "etc").mkdir()
    (tmp_path / "run" / runtime).mkdir(parents=True)
    (tmp_path / "etc/ai-worker.env").write_text('AI_WORKER_DB_URL="a"\nAI_WORKER_LOG_LEVEL="debug"')  # without an end of line

    def handed_over() -> dict[str, str | None]:
        for command in unit(name)["ExecStartPre"]:
            here = command.removeprefix("+").replace("/etc/ai-worker/", f"{tmp_path}/etc/").replace("/run/", f"{tmp_path}/run/")
            subprocess.run(shlex.split(here), check=True, timeout=10)
        return config.env_values(tmp_path / "run" / runtime / "ai-worker.env")

    assert handed_over() == {"AI_WORKER_DB_URL": "a", "AI_WORKER_LOG_LEVEL": "debug"}
    (tmp_path / "etc" / own).write_text('AI_WORKER_DB_URL="b"\n')
    for _ in range(2):  # a restart begins anew
        assert handed_over() == {"AI_WORKER_DB_URL": "b", "AI_WORKER_LOG_LEVEL": "debug"}


@needs_systemd
def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
    program = shutil.which("true")
    for name in NAMES:
        text = (units_folder() / name).read_text(encoding="ascii").replace(PACKAGED, str(program))
        (tmp_path / name.replace("@.", "@1.")).write_text(text, encoding="ascii")
    checked = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_the_units_are_exposed_to_little(name: str) -> None:
    highest = round(HIGHEST[name] * 10)
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={highest}", units_folder() / name]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout[-300:] + checked.stderr
    found = re.search(r"exposure level for \S+: ([\d.]+)", checked.stdout)
    assert found
    assert float(found[1]) <= HIGHEST[name]


def test_settings_are_read_alike_by_all_who_read_them() -> None:
    """`KEY="value"` and nothing else: systemd, shells and python-dotenv take that for the same."""
    lines = (units_folder() / "ai-worker.env").read_text(encoding="ascii").splitlines()
    settings = [line.lstrip("#") for line in lines if re.match(r"#?AI_WORKER_", line)]
    assert len(settings) >= 5
    for line in settings:
        assert re.fullmatch(r'AI_WORKER_\w+="[^"$\\]*"', line)
        assert config.variable(line.partition("=")[0][len(config.PREFIX) :].lower()) == line.partition("=")[0]
        assert line.partition("=")[0][len(config.PREFIX) :].lower() in config.Settings.model_fields


# ----- the command, into an image

URL = "mysql://ai_worker@127.0.0.1:3306/ai_worker"
needs_systemctl = pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemctl here")


class Image:
    """The image of a host, and the command on it. The program that its units start need not be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def service(self, command: str, *options: str) -> Result:
        program = ("--program", PACKAGED) if command == "install" else ()
        return CliRunner().invoke(
            cli, ["service", command, "--root", str(self.folder), *program, *options], standalone_mode=False
        )

    def json(self, command: str, *options: str) -> Any:
        result = self.service(command, *options, "--json")
        assert result.exception is None, result.output
        return json.loads(result.stdout)

    def files(self) -> dict[str, str]:
        """All files and links, with their text or where they lead."""
        return {
            str(path.relative_to(self.folder)): str(path.readlink()) if path.is_symlink() else path.read_text(encoding="utf-8")
            for path in self.folder.rglob("*")
            if not path.is_dir()
        }

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.folder / path).stat().st_mode)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    folder = tmp_path / "image"
    folder.mkdir()
    return Image(folder)


@needs_systemctl
def test_install_writes_units_settings_and_secrets(image: Image) -> None:
    done = image.json("install", "--db-url", URL, "--instances", "2", "--web")
    assert done["made"] == ["db_password", "master_key"]
    assert done["units"] == ["ai-worker.target", "ai-worker@1.service", "ai-worker@2.service", "ai-worker-web.service"]
    files = image.files()
    wants = {name for name in files if ".wants/" in name}
    assert wants == {
        "etc/systemd/system/multi-user.target.wants/ai-worker.target",
        *(f"etc/systemd/system/ai-worker.target.wants/{name}" for name in done["units"][1:]),
    }
    for name in NAMES:
        assert files[f"etc/systemd/system/{name}"] == (units_folder() / name).read_text(encoding="utf-8")
    assert f'AI_WORKER_DB_URL="{URL}"' in files["etc/ai-worker/ai-worker.env"]
    assert image.mode("etc/ai-worker/ai-worker.env") == 0o600
    assert image.mode("etc/ai-worker/credentials") == 0o700
    for name in ("db-password", "master-key"):
        assert image.mode(f"etc/ai-worker/credentials/{name}") == 0o600
        assert len(files[f"etc/ai-worker/credentials/{name}"].strip()) >= 32
        assert files[f"etc/ai-worker/credentials/{name}"].strip() not in json.dumps(done)


@needs_systemctl
def test_install_again_changes_nothing_or_what_is_asked_for(image: Image) -> None:
    image.json("install", "--db-url", URL, "--instances", "3", "--web")
    (image.folder / "etc/ai-worker/ai-worker.env").write_text(f'AI_WORKER_DB_URL="{URL}"\nAI_WORKER_CONCURRENCY="7"\n')
    before = image.files()
    assert image.json("install")["done"] == []
    assert image.json("install", "--db-url", URL, "--instances", "3")["made"] == []
    assert image.files() == before

    # Fewer instances, no web; an instance with a name of somebody's own is left alone.
    named = image.folder / "etc/systemd/system/ai-worker.target.wants/ai-worker@bulk.service"
    named.symlink_to("/etc/systemd/system/ai-worker@.service")
    units = image.json("install", "--instances", "1", "--no-web", "--prune")["units"]
    assert units == ["ai-worker.target", "ai-worker@1.service", "ai-worker@bulk.service", "ai-worker-prune.timer"]
    wants = {Path(name).name for name in image.files() if ".target.wants/" in name}
    assert wants == set(units)
    assert "etc/systemd/system/ai-worker-web.service" not in image.files()
    assert 'AI_WORKER_CONCURRENCY="7"' in image.files()["etc/ai-worker/ai-worker.env"]


@needs_systemctl
def test_secrets_that_are_given_are_kept_and_a_master_key_is_never_replaced(image: Image, tmp_path: Path) -> None:
    password, key, other = tmp_path / "password", tmp_path / "key", tmp_path / "other"
    password.write_text("geheim\n")
    key.write_text("A" * 43 + "=\n")
    other.write_text("B" * 43 + "=\n")
    given = ("--db-password-file", str(password), "--master-key-file", str(key))
    assert image.json("install", "--db-url", URL, *given)["made"] == []
    assert image.files()["etc/ai-worker/credentials/db-password"] == "geheim\n"
    password.write_text("neu\n")
    image.json("install", *given)
    assert image.files()["etc/ai-worker/credentials/db-password"] == "neu\n"
    refused = image.service("install", "--master-key-file", str(other))
    assert "another master key" in str(refused.exception)
    assert image.files()["etc/ai-worker/credentials/master-key"] == "A" * 43 + "=\n"


@needs_systemctl
def test_a_service_with_a_password_of_its_own_gets_no_other(image: Image) -> None:
    image.json("install", "--db-url", URL, "--web")
    before = image.files()
    common = "LoadCredential=ai_worker_db_password:/etc/ai-worker/credentials/db-password\n"
    for part in ("web", "prune"):
        assert common in before[f"etc/systemd/system/ai-worker-{part}.service"]
        (image.folder / f"etc/ai-worker/credentials/db-password-{part}").write_text("geheim\n")
    assert image.json("install")["done"] == [f"write /etc/systemd/system/ai-worker-{part}.service" for part in ("web", "prune")]
    assert image.json("install")["done"] == []
    for part in ("web", "prune"):
        text = image.files()[f"etc/systemd/system/ai-worker-{part}.service"]
        assert common not in text
        assert common.replace("db-password", f"db-password-{part}") in text
        (image.folder / f"etc/ai-worker/credentials/db-password-{part}").unlink()
    image.json("install")
    assert image.files() == before


@needs_systemctl
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name the database: --db-url"),
        (("--db-url", "mysql://u:secret@h/d"), "leave the password out"),
        (("--db-url", "mysql://u@h/d$x"), "percent-encode"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(image: Image, options: tuple[str, ...], says: str) -> None:
    result = image.service("install", *options)
    assert says in str(result.exception)
    assert "secret" not in str(result.exception)
    assert image.files() == {}


@needs_systemctl
def test_settings_are_never_written_over(image: Image) -> None:
    image.json("install", "--db-url", URL)
    result = image.service("install", "--db-url", URL + "_2")
    assert "never written over" in str(result.exception)


@needs_systemctl
def test_a_dry_run_tells_and_does_nothing(image: Image) -> None:
    result = image.service("install", "--db-url", URL, "--dry-run")
    assert "would write /etc/systemd/system/ai-worker@.service" in result.output
    assert "would systemctl" in result.output
    assert image.files() == {}


@needs_systemctl
def test_uninstall_leaves_settings_unless_they_are_to_go(image: Image) -> None:
    image.json("install", "--db-url", URL, "--web", "--prune")
    own = image.folder / "etc/systemd/system/ai-worker@.service.d/override.conf"
    own.parent.mkdir(exist_ok=True)
    own.write_text("[Service]\nMemoryMax=3G\n")
    image.json("uninstall")
    assert set(image.files()) == {
        "etc/systemd/system/ai-worker@.service.d/override.conf",
        *(f"etc/ai-worker/{name}" for name in ("ai-worker.env", "credentials/db-password", "credentials/master-key")),
    }
    assert image.json("uninstall")["done"] == []
    image.json("uninstall", "--purge")
    assert set(image.files()) == {"etc/systemd/system/ai-worker@.service.d/override.conf"}


@needs_systemctl
def test_uninstall_takes_away_links_and_never_what_they_lead_to(image: Image) -> None:
    image.json("install", "--db-url", URL, "--web")
    data = image.folder / "var/lib/private/ai-worker"  # as systemd lays it out for a user that it makes
    data.mkdir(parents=True)
    (data.parent.parent / "ai-worker").symlink_to("private/ai-worker")
    kept = image.folder / "srv/settings"
    shutil.move(image.folder / "etc/ai-worker", kept)
    (image.folder / "etc/ai-worker").symlink_to(kept)
    (image.folder / "etc/systemd/system/ai-worker-web.service").unlink()  # by hand: its link is left
    image.json("uninstall", "--purge")
    assert {path.split("/")[0] for path in image.files()} == {"srv"}
    assert not data.exists()


@needs_systemctl
@pytest.mark.parametrize("program", ["bin/ai-worker", "/opt/my tools/bin/ai-worker", "/opt/100%/bin/ai-worker"])
def test_a_program_that_a_unit_cannot_name_is_refused(image: Image, program: str) -> None:
    result = image.service("install", "--db-url", URL, "--program", program)
    assert isinstance(result.exception, UsageError)
    assert program in str(result.exception)
    assert image.files() == {}


@needs_systemctl
@pytest.mark.parametrize("version", [252, 254, 257])
def test_restarts_back_off_where_systemd_can(image: Image, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr("ai_worker.cli.service.version", lambda: version)
    image.json("install", "--db-url", URL)
    has_it = "etc/systemd/system/ai-worker@.service.d/10-restart-backoff.conf" in image.files()
    assert has_it is (version >= 254)


@pytest.mark.parametrize(
    ("state", "says"), [("active", "4 in flight"), ("deactivating", "4 in flight"), ("inactive", None), ("failed", None)]
)
def test_a_service_that_was_stopped_says_nothing_any_more(state: str, says: str | None) -> None:
    unit = {"Id": "ai-worker@1.service", "ActiveState": state, "SubState": "?", "NRestarts": "0", "StatusText": "4 in flight"}
    assert service._row(unit)[-1] == says


# ----- where it cannot work


def test_without_systemd_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_files.shutil, "which", lambda _: None)
    for command in ("install", "uninstall", "status"):
        result = CliRunner().invoke(cli, ["service", command], standalone_mode=False)
        assert "there is no systemd on this host" in str(result.exception)


def test_programs_that_services_cannot_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_files, "_HIDDEN", (Path("/home"), Path("/root")))
    for program in ("/home/me/.venv/bin/ai-worker", "/root/venv/bin/ai-worker"):
        with pytest.raises(ConfigurationError, match="hidden from services"):
            check_readable(Path(program), Path("/image"))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "ai-worker").write_text("#!/bin/sh\n")
    monkeypatch.setattr(service_files, "_interpreter", lambda _: [])
    with pytest.raises(ConfigurationError, match="other users may not read"):
        check_readable(closed / "ai-worker", None)
    with pytest.raises(ConfigurationError, match="not there"):
        check_readable(tmp_path / "nothing", None)


def test_a_home_folder_of_python_is_found(tmp_path: Path) -> None:
    script = tmp_path / "ai-worker"
    script.write_text(f"#!{sys.executable}\n")
    assert service_files._interpreter(script) == [Path(sys.executable).resolve()]


# ----- the services' settings, for an administrator's commands


def test_commands_use_the_services_settings_where_nothing_else_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "etc"
    (folder / "credentials").mkdir(parents=True)
    (folder / "ai-worker.env").write_text(f'AI_WORKER_DB_URL="{URL}"\nAI_WORKER_CONCURRENCY="7"\n')
    (folder / "credentials" / "db-password").write_text("geheim\n")
    monkeypatch.setattr(config, "SERVICE_FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    settings = config.load_settings()
    assert settings.concurrency == 7
    assert settings.database_url().password.reveal() == "geheim"
    assert config.origins()["db_password"] == [f"a credential in {folder}"]

    # A database of one's own: nothing of theirs is mixed in.
    monkeypatch.setenv("AI_WORKER_DB_URL", "mysql://me@elsewhere/db")
    other = config.load_settings()
    assert (other.concurrency, other.db_password) == (50, None)
    monkeypatch.delenv("AI_WORKER_DB_URL")
    (tmp_path / ".env").write_text('AI_WORKER_DB_URL="mysql://me@elsewhere/db"\n')
    assert config.load_settings().db_password is None
