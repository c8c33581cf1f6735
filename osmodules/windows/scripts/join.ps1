# Joins the domain. It holds from the next boot on.
param([string]$Domain, [string]$Ou, [string]$User, [string]$Password)

$computer = Get-WmiObject -Class Win32_ComputerSystem
if ($computer.PartOfDomain -and $computer.Domain -eq $Domain) {
    Write-BerthAnswer @{ result = 'skipped'; detail = 'it is in ' + $Domain + ' already'; reboot = $false; code = 0; retry = $false }
    return
}
$place = $null
if ($Ou) { $place = $Ou }
# 1 joins a domain, 2 makes the account, 32 takes an account that an earlier load has left.
$code = [int]$computer.JoinDomainOrWorkgroup($Domain, $Password, $User, $place, 35).ReturnValue
if ($code -eq 0) {
    Write-BerthAnswer @{ result = 'done'; detail = 'joined ' + $Domain; reboot = $true; code = 0; retry = $false }
    return
}
# The domain knows us and says no: access denied, wrong name or password, account locked or disabled, no such place.
$refused = @(5, 1326, 1327, 1330, 1331, 1907, 1909, 2, 8522) -contains $code
# Its controllers are not found or not reached yet.
$retry = @(51, 53, 59, 64, 67, 1231, 1311, 1355, 1722, 1727, 2453) -contains $code
$result = 'reload'
if ($refused) { $result = 'fail' }
Write-BerthAnswer @{ result = $result; detail = 'joining ' + $Domain + ' failed with code ' + $code; reboot = $false; code = $code; retry = $retry }
