#Requires -Version 5.1
<#
.SYNOPSIS
    Shows AI Worker's services: whether they run, as whom, since when, what their logs say last, and what the event log has of them.
.DESCRIPTION
    Ends with 0 when all of them run, with 1 when one does not, with 2 when there is none. Who may not read the logs, which
    administrators may, is shown the rest.
.PARAMETER Lines
    How many of the latest lines of each log to show.
.PARAMETER Events
    How many of the latest events to show: starts, exit codes and restarts (source nssm), installation (source ai-worker).
.EXAMPLE
    .\status.ps1 -Lines 20
#>
[CmdletBinding()]
param(
    [ValidateRange(0, 1000)] [int] $Lines = 3,
    [ValidateRange(0, 1000)] [int] $Events = 10
)

. (Join-Path $PSScriptRoot 'common.ps1')

$services = @(Get-AiWorkerService)
if (-not $services) {
    Write-Output 'No service of AI Worker is installed.'
    exit 2
}
$known = @(Get-CimInstance -ClassName Win32_Service -Filter "Name LIKE 'ai-worker-%'")
$processes = @(Get-CimInstance -ClassName Win32_Process)
$services | ForEach-Object {
    $service = $_
    $about = $known | Where-Object Name -EQ $service.Name | Select-Object -First 1
    # NSSM is the service; the worker is the process under it.
    $worker = $processes | Where-Object { $about.ProcessId -gt 0 -and $_.ParentProcessId -eq $about.ProcessId } | Select-Object -First 1
    [pscustomobject]@{
        Service = $service.Name
        Status = $service.Status
        Start = $about.StartMode
        Account = $about.StartName
        Process = if ($worker) { $worker.ProcessId } else { $null }
        Since = if ($worker) { $worker.CreationDate } else { $null }
    }
} | Format-Table -AutoSize

foreach ($service in $services) {
    $log = Join-Path (Join-Path $Data $service.Name) 'service.log'
    if ($Lines -gt 0 -and (Test-Path -LiteralPath $log -ErrorAction SilentlyContinue)) {
        Write-Output "$log ends with:"
        Get-Content -LiteralPath $log -Tail $Lines -Encoding UTF8
        Write-Output ''
    }
}
if ($Events -gt 0) {
    $filter = @{ LogName = 'Application'; ProviderName = 'nssm', $EventSource }
    # No event at all, or a source that is not registered yet, is an error to Get-WinEvent.
    Get-WinEvent -FilterHashtable $filter -MaxEvents 1000 -ErrorAction SilentlyContinue |
        Where-Object { $_.ProviderName -eq $EventSource -or $_.Message -match 'ai-worker-' } |
        Select-Object -First $Events |
        Format-Table -Property @('TimeCreated', 'LevelDisplayName', 'Message') -AutoSize -Wrap
}
if (@($services | Where-Object Status -NE 'Running')) { exit 1 }
exit 0
