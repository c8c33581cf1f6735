# Gives the nonce back, and says which boot of which system answered.
param([string]$Nonce)

# Win32_OperatingSystem.LastBootUpTime moves when the clock is set; the creation time of a process does not.
$first = Get-WmiObject -Class Win32_Process -Filter "Name='smss.exe'" | Sort-Object -Property CreationDate | Select-Object -First 1
$system = Get-WmiObject -Class Win32_OperatingSystem
$boot = $system.LastBootUpTime
if ($first -and $first.CreationDate) { $boot = $first.CreationDate }
$boot = [Management.ManagementDateTimeConverter]::ToDateTime($boot).ToUniversalTime()

$identity = [Security.Principal.WindowsIdentity]::GetCurrent()
$principal = New-Object -TypeName Security.Principal.WindowsPrincipal -ArgumentList $identity
Write-BerthAnswer @{
    result  = 'done'
    nonce   = $Nonce
    boot    = $boot.ToString('yyyy-MM-ddTHH:mm:ss.fffZ', [Globalization.CultureInfo]::InvariantCulture)
    admin   = $principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)
    version = $system.Version
    # To a 32-bit PowerShell, Windows hides half of its registry and of System32.
    hidden  = ([IntPtr]::Size -eq 4 -and [string]$system.OSArchitecture -match '64')
}
