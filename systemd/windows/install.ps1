#Requires -Version 5.1
#Requires -RunAsAdministrator
<#
.SYNOPSIS
    Installs AI Worker's workers, and its web service if wished, as Windows services under NSSM.
.DESCRIPTION
    Can be run again at any time, after an upgrade or with other parameters: it brings what is there in line with them, removes
    workers beyond -Instances, and starts what does not run. Services that run are not disturbed; what has changed takes effect
    when they are restarted. docs/windows.md says what to do before and after.

    Each service has a virtual account of its own (NT SERVICE\ai-worker-1) that may read the settings and the secrets, and write
    nothing but its own folder.

    Settings, secrets and logs lie in %ProgramData%\AI Worker. Settings are written once and never again: they are yours. Secrets
    that are not there are made.
.PARAMETER DatabaseUrl
    The database, without the password; wanted the first time. As in mysql://ai_worker@db.example.org:3306/ai_worker?ssl=verify
.PARAMETER Instances
    How many workers: one process and one service each, ai-worker-1 to ai-worker-N.
.PARAMETER Web
    The HTTP API and the dashboard as well: the service ai-worker-web.
.PARAMETER Python
    The python.exe of the virtual environment that AI Worker is installed in. Not in a user's profile: the services could not read it.
.PARAMETER Nssm
    The nssm.exe to run the services with, 2.23 or later. It must stay there.
.PARAMETER DrainSeconds
    How long a stopping worker waits for the model calls in flight before it gives their items back.
.PARAMETER LogMegabytes
    From this size on, a log file is put aside, and a new one begun.
.PARAMETER KeepLogDays
    How long log files that were put aside are kept.
.PARAMETER NoStart
    Starts nothing.
.EXAMPLE
    .\install.ps1 -DatabaseUrl mysql://ai_worker@127.0.0.1:3306/ai_worker -Instances 4 -Web
.EXAMPLE
    .\install.ps1 -Instances 4 -WhatIf
    Shows what would be done.
#>
[CmdletBinding(SupportsShouldProcess)]
param(
    [string] $DatabaseUrl = '',
    [ValidateRange(0, 64)] [int] $Instances = 1,
    [switch] $Web,
    [string] $Python = (Join-Path $env:ProgramFiles 'AI Worker\venv\Scripts\python.exe'),
    [string] $Nssm = (Join-Path $env:ProgramFiles 'AI Worker\nssm.exe'),
    [ValidateRange(0, 3600)] [int] $DrainSeconds = 30,
    [ValidateRange(1, 4000)] [int] $LogMegabytes = 10,
    [ValidateRange(1, 3650)] [int] $KeepLogDays = 30,
    [switch] $NoStart
)

. (Join-Path $PSScriptRoot 'common.ps1')

# By number, for their names are others in other languages of Windows.
$System = '*S-1-5-18'
$Administrators = '*S-1-5-32-544'

# Ctrl-C begins the drain. What has not ended by then, with time to commit and to say goodbye, is killed.
$StopSeconds = $DrainSeconds + 15

function Assert-Program {
    foreach ($file in $Python, $Nssm) {
        if (-not (Test-Path -LiteralPath $file -PathType Leaf)) { throw "$file is not there. See docs/windows.md." }
    }
    $folders = @($Python)
    $config = Join-Path (Split-Path (Split-Path $Python)) 'pyvenv.cfg'
    if (Test-Path -LiteralPath $config) {
        $folders += @(Get-Content -LiteralPath $config | Where-Object { $_ -match '^home\s*=' })
    }
    foreach ($folder in $folders) {
        if ($folder -match '\\Users\\') {
            throw "$folder lies in a user's profile, which the services' accounts cannot read. Install Python for all users."
        }
    }
}

function Initialize-Folder {
    # Administrators only; what the services may do is added service by service.
    [CmdletBinding(SupportsShouldProcess)]
    param()

    foreach ($folder in $Data, $Credentials) { New-Item -ItemType Directory -Force -Path $folder | Out-Null }
    Invoke-Native icacls.exe $Data, '/inheritance:r', '/grant:r', "${System}:(OI)(CI)F", "${Administrators}:(OI)(CI)F", '/q'
    if (-not (Test-Path -LiteralPath $EnvFile)) {
        Set-Content -LiteralPath $EnvFile -Encoding Ascii -Value @(
            '# Settings of AI Worker: README.md explains them, docs/windows.md the secrets beside this file.'
            '# Paths without quotation marks: within them a backslash would begin an escape.'
            "AI_WORKER_DB_URL=$DatabaseUrl"
        )
    }
    foreach ($name in 'db-password', 'master-key') {
        $path = Join-Path $Credentials $name
        if (-not (Test-Path -LiteralPath $path) -and $PSCmdlet.ShouldProcess($path, 'make a secret')) {
            $bytes = New-Object byte[] 32
            $random = [System.Security.Cryptography.RandomNumberGenerator]::Create()
            $random.GetBytes($bytes)
            Set-Content -LiteralPath $path -Encoding Ascii -Value ([Convert]::ToBase64String($bytes))
            Write-Output "Made $path. Keep a copy of the master key: without it, the API keys in the database are lost."
        }
    }
}

function Get-Setting {
    # What NSSM is told of a service: one parameter a line, with its value as it is.
    param([string] $Service, [string] $Title, [string] $Parameters)

    $folder = Join-Path $Data $Service
    $stopMilliseconds = $StopSeconds * 1000
    $logBytes = $LogMegabytes * 1048576
    @"
Application $Python
AppParameters $Parameters
AppDirectory $folder
DisplayName $Title
Description A language model at work on the rows of a MySQL or MariaDB database
Start SERVICE_DELAYED_AUTO_START

# Standard output and error go into one file, which is put aside when it has grown.
AppStdout $folder\service.log
AppStderr $folder\service.log
AppRotateFiles 1
AppRotateOnline 1
AppRotateBytes $logBytes

# Stopped by Ctrl-C alone, which is SIGINT: there is no window that could be closed (2), no message queue (4). Never AppNoConsole:
# without a console there is no Ctrl-C.
AppStopMethodSkip 6
AppStopMethodConsole $stopMilliseconds

# Started again whatever happens, but not after a stop (0), a wrong command line (2) or wrong settings (78): a restart helps none
# of these. One that lives for less than AppThrottle waits longer from time to time.
AppExit Default Restart
AppExit 0 Exit
AppExit 2 Exit
AppExit 78 Exit
AppRestartDelay 2000
AppThrottle 5000
"@ -split "`r?`n" | Where-Object { $_ -and $_ -notmatch '^#' }
}

function Install-AiWorkerService {
    [CmdletBinding(SupportsShouldProcess)]
    param([string] $Service, [string] $Title, [string] $Parameters)

    if (-not (Get-Service -Name $Service -ErrorAction SilentlyContinue)) { Invoke-Native $Nssm 'install', $Service, $Python }
    foreach ($line in Get-Setting $Service $Title $Parameters) {
        $parameter, $value = $line -split ' ', 2
        # Of AppExit, the exit code is an argument of its own.
        $values = if ($parameter -eq 'AppExit') { $value -split ' ' } else { $value }
        Invoke-Native $Nssm (@('set', $Service, $parameter) + $values)
    }
    $environment = @(
        "AI_WORKER_ENV_FILE=$EnvFile"
        "AI_WORKER_DRAIN_SECONDS=$DrainSeconds"
        "AI_WORKER_WORKER_NAME=$env:COMPUTERNAME $Service"
        'PYTHONUTF8=1'
        'PYTHONUNBUFFERED=1'
    )
    Invoke-Native $Nssm (@('set', $Service, 'AppEnvironmentExtra') + $environment)

    # Not by NSSM: 2.23 and 2.24 ask for the password of an account that has none.
    Invoke-Native sc.exe 'config', $Service, 'obj=', "NT SERVICE\$Service"
    # Should nssm.exe itself be ended: again after 5 s, 5 s and a minute; a day without counts as a new beginning.
    Invoke-Native sc.exe 'failure', $Service, 'reset=', '86400', 'actions=', 'restart/5000/restart/5000/restart/60000'

    $folder = Join-Path $Data $Service
    New-Item -ItemType Directory -Force -Path $folder | Out-Null
    Invoke-Native icacls.exe $folder, '/grant:r', "NT SERVICE\${Service}:(OI)(CI)M", '/q'
    Invoke-Native icacls.exe $EnvFile, '/grant:r', "NT SERVICE\${Service}:R", '/q'
    Invoke-Native icacls.exe $Credentials, '/grant:r', "NT SERVICE\${Service}:(OI)(CI)R", '/q'
}

function Register-LogTask {
    # NSSM puts log files aside and never deletes one.
    [CmdletBinding(SupportsShouldProcess)]
    param()

    if (-not $PSCmdlet.ShouldProcess($LogTask, 'register a scheduled task')) { return }
    $path = (Join-Path $Data 'ai-worker-*\service-*.log') -replace "'", "''"
    $command = "Get-ChildItem -Path '$path' -File | Where-Object LastWriteTime -LT (Get-Date).AddDays(-$KeepLogDays) | Remove-Item"
    $action = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument "-NoProfile -NonInteractive -Command `"$command`""
    $trigger = New-ScheduledTaskTrigger -Daily -At '03:30'
    Register-ScheduledTask -TaskName $LogTask -Action $action -Trigger $trigger -User 'SYSTEM' -Force | Out-Null
}

function Test-AiWorker {
    # Whether the settings are good enough to start with; says what is wrong with them.
    $before = $env:AI_WORKER_ENV_FILE
    try {
        $env:AI_WORKER_ENV_FILE = $EnvFile
        Invoke-Native $Python '-m', 'ai_worker', 'doctor'
        return $true
    } catch {
        Write-Warning $_.Exception.Message
        return $false
    } finally {
        $env:AI_WORKER_ENV_FILE = $before
    }
}

Assert-Program
Initialize-Folder

$wanted = @()
for ($number = 1; $number -le $Instances; $number++) {
    $wanted += "ai-worker-$number"
    Install-AiWorkerService "ai-worker-$number" "AI Worker $number" '-m ai_worker daemon'
}
if ($Web) {
    $wanted += 'ai-worker-web'
    Install-AiWorkerService 'ai-worker-web' 'AI Worker web' '-m ai_worker web'
}
$surplus = @(Get-AiWorkerService | Where-Object { $_.Name -notin $wanted })
if ($surplus) { Remove-AiWorkerService -Service $surplus -Nssm $Nssm -Seconds ($StopSeconds + 15) }
Register-LogTask
Write-AiWorkerEvent 1 "Installed: $wanted. Removed: $($surplus | ForEach-Object Name)."

if ($NoStart) { return }
if (-not (Test-AiWorker)) {
    Write-Warning "Nothing was started. Put $EnvFile right, then run this again."
    return
}
foreach ($service in $wanted) {
    $current = Get-Service -Name $service -ErrorAction SilentlyContinue
    if ($current -and $current.Status -ne 'Stopped') {
        Write-Output "$service runs already. Restart-Service $service has it take what has changed."
    } elseif ($PSCmdlet.ShouldProcess($service, 'start')) {
        Start-Service -Name $service
    }
}
