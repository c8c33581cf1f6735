# Reads how far the system's own set-up is.
param()

function Get-Value($Key, $Name) {
    if (-not (Test-Path -Path $Key)) { return '' }
    $value = (Get-Item -Path $Key).GetValue($Name)
    if ($null -eq $value) { return '' }
    return [string]$value
}

# The last lines of a log that set-up may be writing: it grows to several megabytes. One that nobody else may open now can
# be read by the next look.
function Get-End($Path) {
    try { $stream = [IO.File]::Open($Path, 'Open', 'Read', 'ReadWrite') } catch { return @() }
    try {
        $most = [Math]::Min($stream.Length, 32768)
        [void]$stream.Seek(-$most, 'End')
        $bytes = New-Object -TypeName 'byte[]' -ArgumentList ([int]$most)
        $got = $stream.Read($bytes, 0, [int]$most)
    } finally {
        $stream.Close()
    }
    return [Text.Encoding]::UTF8.GetString($bytes, 0, $got).Split([char]10) | ForEach-Object { $_.Trim() } | Where-Object { $_ } | Select-Object -Last 50
}

$all = @(Get-WmiObject -Class Win32_Process)
$first = $all | Where-Object { $_.Name -eq 'smss.exe' } | Sort-Object -Property CreationDate | Select-Object -First 1
$boot = (Get-WmiObject -Class Win32_OperatingSystem).LastBootUpTime
if ($first -and $first.CreationDate) { $boot = $first.CreationDate }
$boot = [Management.ManagementDateTimeConverter]::ToDateTime($boot).ToUniversalTime()

# Many programs are installed by a setup.exe of their own: only that of the system counts.
$names = @('sysprep.exe', 'setupcl.exe', 'windeploy.exe', 'oobeldr.exe', 'msoobe.exe', 'setup.exe')
$ours = @($all | Where-Object { ($names -contains $_.Name) -and ($_.Name -ne 'setup.exe' -or -not $_.ExecutablePath -or $_.ExecutablePath -like '*\System32\*') })
$running = @($ours | ForEach-Object { $_.Name.ToLowerInvariant().Replace('.exe', '') } | Sort-Object -Unique)
# What set-up has started and waits for: commands of the answer file, SetupComplete.cmd.
$ids = @($ours | ForEach-Object { $_.ProcessId })
$started = @($all | Where-Object { ($ids -contains $_.ParentProcessId) -and ($ids -notcontains $_.ProcessId) -and $_.Name -ne 'conhost.exe' })
$commands = @($started | ForEach-Object { $_.Name.ToLowerInvariant() } | Sort-Object -Unique)

# Sysprep's generalize pass logs elsewhere; what stands here is the pass that runs on this computer. XP and 2003 log into
# the system's folder itself. The logs are in English on every Windows. A file's time of writing may be old as long as
# somebody has it open, so what its last line says counts, too.
$since = $boot.ToLocalTime().ToString('yyyy-MM-dd HH:mm:ss', [Globalization.CultureInfo]::InvariantCulture)
$panther = Join-Path -Path $env:SystemRoot -ChildPath 'Panther'
$size = 0
$errors = @()
$failure = ''
$givesUp = 'could not finish configuring|could not complete the installation|could not parse or process|is not configured to run on this computer|restarted unexpectedly|Online installation cannot complete|Setup\.exe failed, returning exit code|unattend file is not valid'
foreach ($folder in @($env:SystemRoot, $panther, (Join-Path -Path $panther -ChildPath 'UnattendGC'))) {
    foreach ($name in @('setupact.log', 'setuperr.log')) {
        $log = Join-Path -Path $folder -ChildPath $name
        if (-not (Test-Path -Path $log)) { continue }
        $file = Get-Item -Path $log
        if ($name -eq 'setupact.log') { $size += $file.Length }
        $lines = @(Get-End $log)
        $last = [string]($lines | Where-Object { $_ -match '^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d' } | Select-Object -Last 1)
        if ($file.LastWriteTimeUtc -lt $boot -and [string]::CompareOrdinal($last, $since) -lt 0) { continue }
        if ($name -eq 'setuperr.log') { $errors += @($lines | Select-Object -Last 5) }
        $said = $lines | Where-Object { $_ -match $givesUp } | Select-Object -Last 1
        if ($said) { $failure = [string]$said }
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
    commands        = $commands -join ','
    logSize         = [string]$size
    errors          = $text
    failure         = $failure
}
