# Reads whether a reboot is due.
param()

$reasons = @()
if (Test-Path -Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending') { $reasons += 'components' }
if (Test-Path -Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired') { $reasons += 'updates' }
$names = 'HKLM:\SYSTEM\CurrentControlSet\Control\ComputerName'
$active = (Get-ItemProperty -Path ($names + '\ActiveComputerName')).ComputerName
$next = (Get-ItemProperty -Path ($names + '\ComputerName')).ComputerName
if ($active -ne $next) { $reasons += 'name' }
$pending = $reasons.Count -gt 0
# Files to be moved are named, but virus scanners leave such entries for ever: they alone are no reason.
if ((Get-Item -Path 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager').GetValue('PendingFileRenameOperations')) { $reasons += 'files' }
Write-BerthAnswer @{ result = 'done'; detail = $reasons -join ', '; pending = $pending; reasons = $reasons -join ',' }
