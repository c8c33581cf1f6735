# Reads how far the system's own set-up is.
param()

function Get-Value($Key, $Name) {
    if (-not (Test-Path -Path $Key)) { return '' }
    $value = (Get-Item -Path $Key).GetValue($Name)
    if ($null -eq $value) { return '' }
    return [string]$value
}

$first = Get-WmiObject -Class Win32_Process -Filter "Name='smss.exe'" | Sort-Object -Property CreationDate | Select-Object -First 1
$boot = (Get-WmiObject -Class Win32_OperatingSystem).LastBootUpTime
if ($first -and $first.CreationDate) { $boot = $first.CreationDate }
$boot = [Management.ManagementDateTimeConverter]::ToDateTime($boot).ToUniversalTime()

$names = @('sysprep', 'setupcl', 'windeploy', 'oobeldr', 'msoobe', 'setup')
$running = @(Get-Process | Where-Object { $names -contains $_.Name } | ForEach-Object { $_.Name.ToLowerInvariant() } | Sort-Object -Unique)

# Sysprep's generalize pass logs elsewhere; what stands here is the pass that runs on this computer. XP and 2003 log into
# the system's folder itself.
$panther = Join-Path -Path $env:SystemRoot -ChildPath 'Panther'
$size = 0
$errors = @()
$failure = ''
$givesUp = 'could not finish configuring|could not complete the installation|could not parse or process|is not configured to run on this computer|restarted unexpectedly'
foreach ($folder in @($env:SystemRoot, $panther, (Join-Path -Path $panther -ChildPath 'UnattendGC'))) {
    $act = Join-Path -Path $folder -ChildPath 'setupact.log'
    if (Test-Path -Path $act) { $size += (Get-Item -Path $act).Length }
    $err = Join-Path -Path $folder -ChildPath 'setuperr.log'
    if ((Test-Path -Path $err) -and (Get-Item -Path $err).LastWriteTimeUtc -ge $boot) {
        $errors += @(Get-Content -Path $err | Select-Object -Last 5)
    }
    foreach ($log in @($act, $err)) {
        if ((Test-Path -Path $log) -and (Get-Item -Path $log).LastWriteTimeUtc -ge $boot) {
            $said = Get-Content -Path $log | Select-Object -Last 50 | Where-Object { $_ -match $givesUp } | Select-Object -Last 1
            if ($said) { $failure = [string]$said }
        }
    }
}
$text = $errors -join ' / '
if ($text.Length -gt 400) { $text = $text.Substring($text.Length - 400) }

Write-BerthAnswer @{
    result          = 'done'
    boot            = $boot.ToString('yyyy-MM-ddTHH:mm:ss.fffZ', [Globalization.CultureInfo]::InvariantCulture)
    setupInProgress = Get-Value 'HKLM:\SYSTEM\Setup' 'SystemSetupInProgress'
    oobeInProgress  = Get-Value 'HKLM:\SYSTEM\Setup' 'OOBEInProgress'
    imageState      = Get-Value 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State' 'ImageState'
    generalization  = Get-Value 'HKLM:\SYSTEM\Setup\Status\SysprepStatus' 'GeneralizationState'
    processes       = $running -join ','
    logSize         = [string]$size
    errors          = $text
    failure         = $failure
}
