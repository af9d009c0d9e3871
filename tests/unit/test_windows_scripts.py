"""The scripts for Windows services, as far as they can be checked without a Windows: `make test-windows` goes further."""

from __future__ import annotations

import re

import pytest

from ai_worker.errors import EXIT_CONFIGURATION, EXIT_DONE, EXIT_USAGE
from tests.powershell import FOLDER, functions, nssm_settings, parameters, program_calls, syntax_errors

NAMES = ["common.ps1", "install.ps1", "status.ps1", "uninstall.ps1"]
SCRIPTS = {name: (FOLDER / name).read_bytes() for name in NAMES}
INSTALL = SCRIPTS["install.ps1"]
PAGE = (FOLDER.parents[1] / "docs" / "windows.md").read_text(encoding="utf-8")

VARIABLES = {
    "Python": r"C:\Program Files\AI Worker\venv\Scripts\python.exe",
    "Parameters": "-m ai_worker daemon",
    "Title": "AI Worker 1",
    "Service": "ai-worker-1",
    "folder": r"C:\ProgramData\AI Worker\ai-worker-1",
    "EnvFile": r"C:\ProgramData\AI Worker\ai-worker.env",
    "COMPUTERNAME": "HOST",
    "DrainSeconds": "30",
    "logBytes": "10485760",
    "stopMilliseconds": "45000",
}

with_each_script = pytest.mark.parametrize("source", SCRIPTS.values(), ids=SCRIPTS)


@with_each_script
def test_it_can_be_read(source: bytes) -> None:
    assert syntax_errors(source) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("if ($NoStart) { return }", "if ($NoStart) { return"),
        ("function Assert-Program {", "function Assert-Program"),
        ("foreach ($file in $Python, $Nssm)", "foreach ($file of $Python, $Nssm)"),
        ("[switch] $NoStart\n)", "[switch] $NoStart"),
        ('\n"@ -split', '\n "@ -split'),
    ],
)
def test_a_broken_script_is_found(right: str, wrong: str) -> None:
    text = INSTALL.decode()
    assert text.count(right) == 1
    assert syntax_errors(text.replace(right, wrong).encode())


@with_each_script
def test_it_is_ascii(source: bytes) -> None:
    """Windows PowerShell 5.1 reads what has no byte order mark in the country's code page."""
    assert source.isascii()


@pytest.mark.parametrize("name", ["install.ps1", "uninstall.ps1"])
def test_it_asks_for_an_administrator_and_can_be_tried_without_effect(name: str) -> None:
    text = SCRIPTS[name].decode()
    assert text.startswith("#Requires -Version 5.1\n#Requires -RunAsAdministrator\n")
    assert "\n[CmdletBinding(SupportsShouldProcess" in text
    assert ". (Join-Path $PSScriptRoot 'common.ps1')" in text
    # What is left to be asked for by hand: cmdlets that change something ask -WhatIf by themselves.
    for method in (".Stop()", "WriteEntry(", "CreateEventSource(", "WaitForStatus("):
        for function, body in functions(SCRIPTS["common.ps1"]).items():
            assert method not in body or "$PSCmdlet.ShouldProcess(" in body, function


def test_mistakes_end_a_script() -> None:
    common = SCRIPTS["common.ps1"].decode()
    assert "\nSet-StrictMode -Version Latest\n" in common
    assert "\n$ErrorActionPreference = 'Stop'\n" in common


def test_each_program_is_called_in_one_place_which_looks_at_its_exit_code() -> None:
    calls = [(name, *call) for name, source in SCRIPTS.items() for call in program_calls(source)]
    assert [(name, function) for name, function, _ in calls] == [("common.ps1", "Invoke-Native")]
    body = functions(SCRIPTS["common.ps1"])["Invoke-Native"]
    call = calls[0][2]
    after = body[body.index(call) + len(call) :].strip()
    assert after.startswith("if ($LASTEXITCODE -ne 0) {")
    assert "throw" in after


def test_a_call_beside_that_place_would_be_found() -> None:
    for line in (b"& $Nssm set a b c", b"icacls.exe $Data /reset"):
        assert (b"\n" + line) not in INSTALL
        assert ("", line.decode()) in program_calls(INSTALL + b"\n" + line + b"\n")


def test_nssm_is_told_how_a_worker_stops_and_when_it_is_started_again() -> None:
    settings = nssm_settings(VARIABLES)
    names = [setting[0] for setting in settings]
    assert "AppNoConsole" not in names  # without a console there is no Ctrl-C
    one = {setting[0]: setting[1] for setting in settings if setting[0] != "AppExit"}
    assert one["AppStopMethodSkip"] == "6"
    assert int(one["AppStopMethodConsole"]) > 1000 * int(VARIABLES["DrainSeconds"])
    assert "$StopSeconds = $DrainSeconds + 15" in INSTALL.decode()
    assert "$stopMilliseconds = $StopSeconds * 1000" in INSTALL.decode()
    assert {setting[1]: setting[2] for setting in settings if setting[0] == "AppExit"} == {
        "Default": "Restart",
        **{str(code): "Exit" for code in (EXIT_DONE, EXIT_USAGE, EXIT_CONFIGURATION)},
    }
    assert one["Start"] == "SERVICE_DELAYED_AUTO_START"
    assert one["AppStdout"] == one["AppStderr"]
    assert (one["AppRotateFiles"], one["AppRotateOnline"], one["AppRotateBytes"]) == ("1", "1", "10485760")
    environment = dict(value.split("=", 1) for value in settings[-1][1:])
    assert environment["AI_WORKER_ENV_FILE"] == VARIABLES["EnvFile"]
    assert environment["AI_WORKER_DRAIN_SECONDS"] == VARIABLES["DrainSeconds"]  # NSSM waits for longer than this


def test_no_secret_is_left_where_everybody_may_read_it() -> None:
    """The registry, where NSSM keeps what it is told, can be read by every user of the machine."""
    told = " ".join(" ".join(setting) for setting in nssm_settings(VARIABLES))
    assert not re.search(r"PASSWORD|MASTER_KEY|DB_URL", told)
    assert "'/inheritance:r'" in functions(INSTALL)["Initialize-Folder"]
    rights = re.findall(r"NT SERVICE\\\$\{Service\}:(\S+?)\"", INSTALL.decode())
    assert rights == ["(OI)(CI)M", "R", "(OI)(CI)R"]  # its own folder, the settings, the secrets


@pytest.mark.parametrize("name", ["install.ps1", "uninstall.ps1", "status.ps1"])
def test_each_parameter_is_explained(name: str) -> None:
    source = SCRIPTS[name]
    named = parameters(source)
    assert named
    assert re.findall(r"^\.PARAMETER (\w+)$", source.decode(), re.MULTILINE) == named


def test_the_page_names_no_parameter_that_there_is_not() -> None:
    known = {name: set(parameters(source)) | {"WhatIf", "Confirm"} for name, source in SCRIPTS.items()}
    calls = re.findall(r"\\(install|uninstall|status)\.ps1((?: -\w+(?: [^-\s]\S*)?)*)", PAGE)
    assert {script for script, _ in calls} == {"install", "uninstall", "status"}
    for script, options in calls:
        assert set(re.findall(r"-(\w+)", options)) <= known[f"{script}.ps1"], options
