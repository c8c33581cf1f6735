# Sets the clock if it is off, and lets Windows keep it.
param([string]$Now, [string]$Tolerance)

$epoch = New-Object -TypeName DateTime -ArgumentList 1970, 1, 1, 0, 0, 0, ([DateTimeKind]::Utc)
# A PowerShell may need seconds to start; Now was said before that.
$right = $epoch.AddSeconds([double]$Now) + ([DateTime]::Now - [Diagnostics.Process]::GetCurrentProcess().StartTime)
$off = [int][Math]::Round(([DateTime]::UtcNow - $right).TotalSeconds)
if ([Math]::Abs($off) -gt [int]$Tolerance) { [void](Set-Date -Date $right.ToLocalTime()) }
$service = Get-Service | Where-Object { $_.Name -eq 'W32Time' }
if ($service) {
    Set-Service -Name W32Time -StartupType Automatic
    Start-Service -Name W32Time
}
Write-BerthAnswer @{ result = 'done'; detail = 'the clock was off by ' + $off + ' s'; off = [string]$off }
