# Switches off the question which kind of network this is.
param()

if ([Environment]::OSVersion.Version.Major -lt 6) {
    Write-BerthAnswer @{ result = 'skipped'; detail = 'this Windows does not ask' }
    return
}
$key = 'HKLM:\SYSTEM\CurrentControlSet\Control\Network\NewNetworkWindowOff'
if (-not (Test-Path -Path $key)) { [void](New-Item -Path $key) }
Write-BerthAnswer @{ result = 'done'; detail = 'off' }
