# Removes what the image has brought of secrets: answer files with passwords, and the automatic logon.
param()

$removed = @()
$root = $env:SystemRoot
$drive = $env:SystemDrive
$files = @(
    ($root + '\Panther\unattend.xml'), ($root + '\Panther\autounattend.xml'), ($root + '\Panther\unattend-original.xml'),
    ($root + '\Panther\Unattend\unattend.xml'), ($root + '\Panther\Unattend\autounattend.xml'),
    ($root + '\System32\Sysprep\unattend.xml'), ($root + '\System32\Sysprep\Panther\unattend.xml'),
    ($drive + '\unattend.xml'), ($drive + '\autounattend.xml'),
    ($drive + '\sysprep.inf'), ($drive + '\sysprep\sysprep.inf'), ($root + '\System32\$winnt$.inf')
)
$setup = 'HKLM:\SYSTEM\Setup'
$named = [string](Get-Item -Path $setup).GetValue('UnattendFile')
# What stands on another drive is a medium of the provisioner's.
if ($named -like ($drive + '\*')) { $files += $named }
foreach ($file in $files) {
    if (Test-Path -LiteralPath $file) {
        Remove-Item -LiteralPath $file -Force
        $removed += $file
    }
}

if ($named) {
    Remove-ItemProperty -Path $setup -Name UnattendFile
    $removed += 'UnattendFile'
}
$logon = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon'
foreach ($name in @('DefaultPassword', 'AutoLogonCount', 'AutoLogonSID')) {
    if ($null -ne (Get-Item -Path $logon).GetValue($name)) {
        Remove-ItemProperty -Path $logon -Name $name
        $removed += $name
    }
}
Set-ItemProperty -Path $logon -Name AutoAdminLogon -Value '0'
Write-BerthAnswer @{ result = 'done'; detail = 'removed: ' + $removed.Count; removed = $removed -join ',' }
