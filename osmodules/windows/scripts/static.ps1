# Sets a fixed public address.
param([string]$Interface, [string]$Address, [string]$Mask, [string]$Gateway, [string]$Dns, [string]$Control)

$index = @(Get-WmiObject -Class Win32_NetworkAdapter | Where-Object { $_.NetConnectionID -eq $Interface } | ForEach-Object { $_.Index })
$card = Get-WmiObject -Class Win32_NetworkAdapterConfiguration | Where-Object { $index -contains $_.Index } | Select-Object -First 1
if (-not $card) {
    Write-BerthAnswer @{ result = 'fail'; detail = 'there is no network connection ' + $Interface; publicAddress = '' }
    return
}
if ($Control -and ($card.IPAddress -contains $Control) -and $Control -ne $Address) {
    Write-BerthAnswer @{ result = 'fail'; detail = 'the network connection ' + $Interface + ' is the control channel''s own'; publicAddress = '' }
    return
}
if (-not $card.DHCPEnabled -and ($card.IPAddress -contains $Address) -and ($card.IPSubnet -contains $Mask) -and ($card.DefaultIPGateway -contains $Gateway)) {
    Write-BerthAnswer @{ result = 'done'; detail = $Address + ' is set already'; publicAddress = $Address }
    return
}
$codes = @($card.EnableStatic(@($Address), @($Mask)).ReturnValue)
if ($Gateway) { $codes += $card.SetGateways(@($Gateway), @([uint16]1)).ReturnValue }
if ($Dns) { $codes += $card.SetDNSServerSearchOrder($Dns.Split(',')).ReturnValue }
# 1 means: done, and a reboot is needed; no Windows from XP on asks for it here.
$bad = @($codes | Where-Object { $_ -ne 0 -and $_ -ne 1 })
if ($bad.Count -gt 0) {
    Write-BerthAnswer @{ result = 'reload'; detail = 'Windows refused the address with code ' + $bad[0]; publicAddress = '' }
    return
}
Write-BerthAnswer @{ result = 'done'; detail = $Address; publicAddress = $Address }
