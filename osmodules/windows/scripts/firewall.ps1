# Lets the management network reach the control channel's ports, and nobody else.
param([string]$Ports, [string]$Sources)

$title = 'Berth control channel'
$closed = 0
if ([Environment]::OSVersion.Version.Major -lt 6) {
    # XP and 2003 know ports, not rules.
    $current = (New-Object -ComObject HNetCfg.FwMgr).LocalPolicy.CurrentProfile
    foreach ($port in $Ports.Split(',')) {
        $open = New-Object -ComObject HNetCfg.FWOpenPort
        $open.Name = $title
        $open.Port = [int]$port
        $open.Protocol = 6
        $open.RemoteAddresses = $Sources
        $open.Enabled = $true
        $current.GloballyOpenPorts.Remove([int]$port, 6)
        $current.GloballyOpenPorts.Add($open)
    }
    $current.ExceptionsNotAllowed = $false
    $current.FirewallEnabled = $true
    Write-BerthAnswer @{ result = 'done'; detail = 'open to ' + $Sources; closed = 0 }
    return
}

$policy = New-Object -ComObject HNetCfg.FwPolicy2
$ours = @($policy.Rules | Where-Object { $_.Name -eq $title })
if ($ours.Count -eq 0) {
    $rule = New-Object -ComObject HNetCfg.FWRule
    $rule.Name = $title
    $rule.Protocol = 6
    $rule.LocalPorts = $Ports
    $rule.RemoteAddresses = $Sources
    $rule.Direction = 1
    $rule.Action = 1
    $rule.Profiles = 2147483647
    $rule.Enabled = $true
    $policy.Rules.Add($rule)
} else {
    foreach ($rule in $ours) {
        $rule.RemoteAddresses = $Sources
        $rule.LocalPorts = $Ports
        $rule.Enabled = $true
    }
}
foreach ($rule in @($policy.Rules | Where-Object { $_.Enabled -and $_.Direction -eq 1 -and $_.Action -eq 1 -and $_.Protocol -eq 6 -and $_.Name -ne $title })) {
    $shared = @(([string]$rule.LocalPorts).Split(',') | Where-Object { $Ports.Split(',') -contains $_ })
    if ($shared.Count -gt 0) {
        $rule.Enabled = $false
        $closed += 1
    }
}
foreach ($kind in @(1, 2, 4)) {
    $policy.BlockAllInboundTraffic($kind) = $false
    $policy.FirewallEnabled($kind) = $true
}
Write-BerthAnswer @{ result = 'done'; detail = 'open to ' + $Sources; closed = $closed }
