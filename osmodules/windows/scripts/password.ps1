# Sets the password of a local account.
param([string]$Account, [string]$Password, [string]$Keep)

$accounts = Get-WmiObject -Class Win32_UserAccount -Filter 'LocalAccount=True'
$found = $accounts | Where-Object { if ($Account -eq '-500') { $_.SID -like 'S-1-5-21-*-500' } else { $_.Name -eq $Account } } | Select-Object -First 1
if (-not $found) {
    Write-BerthAnswer @{ result = 'skipped'; detail = 'there is no account ' + $Account; account = '' }
    return
}
if ($Keep -and $found.Name -eq $Keep) {
    Write-BerthAnswer @{ result = 'warned'; detail = 'kept: the control channel logs in as ' + $found.Name + ' with this password'; account = $found.Name }
    return
}
$user = [ADSI]('WinNT://' + $env:COMPUTERNAME + '/' + $found.Name + ',user')
$user.psbase.Invoke('SetPassword', $Password)
$user.psbase.CommitChanges()
Write-BerthAnswer @{ result = 'done'; detail = 'new password for ' + $found.Name; account = $found.Name }
