# Lets the management network reach the control port, and nobody else.
param([string]$Port, [string]$Sources)

$title = 'Berth control channel'
$closed = 0
if ([Environment]::OSVersion.Version.Major -lt 6) {
    # XP and 2003 know ports, not rules.
    $profile = (New-Object -ComObject HNetCfg.FwMgr).LocalPolicy.CurrentProfile
    $open = New-Object -ComObject HNetCfg.FWOpenPort
    $open.Name = $title
    $open.Port = [int]$Port
    $open.Protocol = 6
    $open.RemoteAddresses = $Sources
    $open.Enabled = $true
    $profile.GloballyOpenPorts.Remove([int]$Port, 6)
    $profile.GloballyOpenPorts.Add($open)
    $profile.FirewallEnabled = $true
    Write-BerthAnswer @{ result = 'done'; detail = 'open to ' + $Sources; closed = 0 }
    return
}

$policy = New-Object -ComObject HNetCfg.FwPolicy2
$ours = @($policy.Rules | Where-Object { $_.Name -eq $title })
if ($ours.Count -eq 0) {
    $rule = New-Object -ComObject HNetCfg.FWRule
    $rule.Name = $title
    $rule.Protocol = 6
    $rule.LocalPorts = $Port
    $rule.RemoteAddresses = $Sources
    $rule.Direction = 1
    $rule.Action = 1
    $rule.Profiles = 2147483647
    $rule.Enabled = $true
    $policy.Rules.Add($rule)
} else {
    foreach ($rule in $ours) {
        $rule.RemoteAddresses = $Sources
        $rule.LocalPorts = $Port
        $rule.Enabled = $true
    }
}
foreach ($rule in @($policy.Rules | Where-Object { $_.Enabled -and $_.Direction -eq 1 -and $_.Action -eq 1 -and $_.Protocol -eq 6 -and $_.Name -ne $title })) {
    if ($rule.LocalPorts -and ($rule.LocalPorts.Split(',') -contains $Port)) {
        $rule.Enabled = $false
        $closed += 1
    }
}
foreach ($kind in @(1, 2, 4)) { $policy.FirewallEnabled($kind) = $true }
Write-BerthAnswer @{ result = 'done'; detail = 'open to ' + $Sources; closed = $closed }
