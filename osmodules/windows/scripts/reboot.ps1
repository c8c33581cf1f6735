# Asks for a reboot. The answer comes first: the shutdown cuts the connection.
param()

$first = Get-WmiObject -Class Win32_Process -Filter "Name='smss.exe'" | Sort-Object -Property CreationDate | Select-Object -First 1
$boot = (Get-WmiObject -Class Win32_OperatingSystem).LastBootUpTime
if ($first -and $first.CreationDate) { $boot = $first.CreationDate }
$boot = [Management.ManagementDateTimeConverter]::ToDateTime($boot).ToUniversalTime()

& shutdown.exe -r -f -t 2 | Out-Null
# 1115, 1190: it is under way already, or waits for its time.
if (@(0, 1115, 1190) -notcontains $LASTEXITCODE) {
    Write-BerthAnswer @{ result = 'warned'; detail = 'shutdown.exe ended with exit code ' + $LASTEXITCODE }
    return
}
Write-BerthAnswer @{
    result = 'done'
    boot   = $boot.ToString('yyyy-MM-ddTHH:mm:ss.fffZ', [Globalization.CultureInfo]::InvariantCulture)
}
