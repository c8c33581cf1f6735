# Switches off standby and hibernation.
param()

if ([Environment]::OSVersion.Version.Major -lt 6) {
    & powercfg.exe /hibernate off | Out-Null
    $code = $LASTEXITCODE
} else {
    & powercfg.exe -change -standby-timeout-ac 0 | Out-Null
    $code = $LASTEXITCODE
    & powercfg.exe -change -standby-timeout-dc 0 | Out-Null
    # It fails on hardware that knows no hibernation, which is as good; what it then says must not end this script.
    $ErrorActionPreference = 'Continue'
    & powercfg.exe -hibernate off 2>&1 | Out-Null
}
if ($code -eq 0) {
    Write-BerthAnswer @{ result = 'done'; detail = 'off' }
} else {
    Write-BerthAnswer @{ result = 'warned'; detail = 'powercfg.exe ended with exit code ' + $code }
}
