#Requires -Version 5.1
#Requires -RunAsAdministrator
<#
.SYNOPSIS
    Stops and removes AI Worker's services. Settings, secrets and logs stay, unless -Purge is given. The database is not touched.
.PARAMETER Nssm
    The nssm.exe that the services were installed with.
.PARAMETER StopSeconds
    How long to wait for the services to stop: more than the drain time that was given to install.ps1.
.PARAMETER Purge
    Deletes the folder too: settings, secrets and logs. Without the master key, the API keys in the database are lost.
.EXAMPLE
    .\uninstall.ps1 -WhatIf
    Shows what would be done.
#>
[CmdletBinding(SupportsShouldProcess, ConfirmImpact = 'High')]
param(
    [string] $Nssm = (Join-Path $env:ProgramFiles 'AI Worker\nssm.exe'),
    [ValidateRange(1, 7200)] [int] $StopSeconds = 120,
    [switch] $Purge
)

. (Join-Path $PSScriptRoot 'common.ps1')

if (-not (Test-Path -LiteralPath $Nssm -PathType Leaf)) { throw "$Nssm is not there. Name the one in use with -Nssm." }

$services = @(Get-AiWorkerService)
if ($services) { Remove-AiWorkerService -Service $services -Nssm $Nssm -Seconds $StopSeconds }
if (Get-ScheduledTask -TaskName $LogTask -ErrorAction SilentlyContinue) { Unregister-ScheduledTask -TaskName $LogTask -Confirm:$false }
Write-AiWorkerEvent 2 "Removed: $($services | ForEach-Object Name)."
if ($Purge -and (Test-Path -LiteralPath $Data) -and $PSCmdlet.ShouldProcess($Data, 'delete settings, secrets and logs')) {
    Remove-Item -LiteralPath $Data -Recurse -Force
}
