# Renames the computer. The name holds from the next boot on.
param([string]$Name)

$names = 'HKLM:\SYSTEM\CurrentControlSet\Control\ComputerName'
$active = (Get-ItemProperty -Path ($names + '\ActiveComputerName')).ComputerName
$next = (Get-ItemProperty -Path ($names + '\ComputerName')).ComputerName
if ($next -eq $Name) {
    Write-BerthAnswer @{ result = 'skipped'; detail = 'the name is ' + $Name + ' already'; reboot = ($active -ne $Name) }
    return
}
$computer = Get-WmiObject -Class Win32_ComputerSystem
$code = $computer.Rename($Name).ReturnValue
if ($code -ne 0) {
    Write-BerthAnswer @{ result = 'reload'; detail = 'Windows refused the name ' + $Name + ' with code ' + $code; reboot = $false }
    return
}
Write-BerthAnswer @{ result = 'done'; detail = $active + ' becomes ' + $Name; reboot = $true }
