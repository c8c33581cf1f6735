# Reads the public address: of the named interface, or of the one with a default route.
param([string]$Interface, [string]$Wait)

function Find-Configuration {
    $index = @()
    if ($Interface) { $index = @(Get-WmiObject -Class Win32_NetworkAdapter | Where-Object { $_.NetConnectionID -eq $Interface } | ForEach-Object { $_.Index }) }
    return @(Get-WmiObject -Class Win32_NetworkAdapterConfiguration | Where-Object {
        if ($Interface) { $index -contains $_.Index } else { $_.IPEnabled -and $_.DefaultIPGateway }
    })
}

function Find-Address {
    foreach ($one in Find-Configuration) {
        # 169.254 is what Windows gives itself while no DHCP server answers.
        $found = $one.IPAddress | Where-Object { $_ -and $_ -notmatch ':' -and $_ -notmatch '^(169\.254\.|0\.)' } | Select-Object -First 1
        if ($found) { return [string]$found }
    }
    return ''
}

if ($Interface -and @(Find-Configuration).Count -eq 0) {
    Write-BerthAnswer @{ result = 'fail'; detail = 'there is no network connection ' + $Interface; publicAddress = '' }
    return
}
$address = ''
foreach ($round in @(1, 2)) {
    $watch = [Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $address = Find-Address
        if ($address -or $watch.Elapsed.TotalSeconds -ge [int]$Wait) { break }
        Start-Sleep -Seconds 2
    }
    if ($address -or $round -eq 2) { break }
    foreach ($one in @(Get-WmiObject -Class Win32_NetworkAdapterConfiguration | Where-Object { $_.IPEnabled -and $_.DHCPEnabled })) {
        [void]$one.RenewDHCPLease()
    }
}
if ($address) {
    Write-BerthAnswer @{ result = 'done'; detail = $address; publicAddress = $address }
} else {
    Write-BerthAnswer @{ result = 'reload'; detail = 'no public address came, not even after the lease was renewed'; publicAddress = '' }
}
