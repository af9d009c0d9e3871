# What install.ps1, uninstall.ps1 and status.ps1 share. They load it; by itself it does nothing.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Where AI Worker looks for the services' settings. Administrators' alone; install.ps1 says what else the services may read.
$Data = Join-Path $env:ProgramData 'AI Worker'
$EnvFile = Join-Path $Data 'ai-worker.env'
$Credentials = Join-Path $Data 'credentials'

$EventSource = 'ai-worker'
$LogTask = 'AI Worker old logs'

function Invoke-Native {
    # Runs a program, and stops the script when it fails: PowerShell itself takes no notice of exit codes.
    [CmdletBinding(SupportsShouldProcess)]
    param([string] $File, [string[]] $Arguments)

    $line = "$(Split-Path -Leaf $File) $Arguments"
    if (-not $PSCmdlet.ShouldProcess($line, 'run')) { return }
    # With 'Stop', Windows PowerShell would end at the first line on standard error, whatever the exit code.
    $ErrorActionPreference = 'Continue'
    $output = & $File @Arguments 2>&1
    if ($LASTEXITCODE -ne 0) {
        $said = ($output | Out-String) -replace "`0", ''  # NSSM writes UTF-16
        throw "$line ended with $LASTEXITCODE. $($said.Trim())"
    }
}

function Get-AiWorkerService {
    # Our services that are there: ai-worker-1, ai-worker-2, ... and ai-worker-web.
    Get-Service -Name 'ai-worker-*' | Where-Object { $_.Name -match '^ai-worker-(\d+|web)$' }
}

function Stop-AiWorkerService {
    # Asks all to stop, then waits for each: they drain side by side. Windows gives up waiting sooner than a drain may take.
    [CmdletBinding(SupportsShouldProcess)]
    param([object[]] $Service, [int] $Seconds)

    foreach ($each in $Service) {
        $each.Refresh()
        if ($each.Status -notin 'Stopped', 'StopPending' -and $PSCmdlet.ShouldProcess($each.Name, 'stop')) { $each.Stop() }
    }
    foreach ($each in $Service) {
        if ($PSCmdlet.ShouldProcess($each.Name, "wait until it has stopped, for at most $Seconds s")) {
            $each.WaitForStatus('Stopped', [TimeSpan]::FromSeconds($Seconds))
        }
    }
}

function Remove-AiWorkerService {
    # Stops and removes services, and takes their accounts' rights away while Windows still knows their names.
    [CmdletBinding(SupportsShouldProcess)]
    param([object[]] $Service, [string] $Nssm, [int] $Seconds)

    Stop-AiWorkerService -Service $Service -Seconds $Seconds
    foreach ($each in $Service) {
        foreach ($path in $EnvFile, $Credentials, (Join-Path $Data $each.Name)) {
            if (Test-Path -LiteralPath $path) { Invoke-Native icacls.exe $path, '/remove', "NT SERVICE\$($each.Name)", '/q' }
        }
        Invoke-Native $Nssm 'remove', $each.Name, 'confirm'
    }
}

function Write-AiWorkerEvent {
    # A line in the event log "Application". Starts, stops and exit codes of the services stand there too, from the source "nssm".
    [CmdletBinding(SupportsShouldProcess)]
    param([int] $Id, [string] $Message)

    if (-not $PSCmdlet.ShouldProcess($Message, 'write into the event log')) { return }
    if (-not [System.Diagnostics.EventLog]::SourceExists($EventSource)) {
        [System.Diagnostics.EventLog]::CreateEventSource($EventSource, 'Application')
    }
    [System.Diagnostics.EventLog]::WriteEntry($EventSource, $Message, 'Information', $Id)
}
