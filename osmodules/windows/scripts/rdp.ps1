# Allows Remote Desktop, from the given networks only.
param([string]$Port, [string]$Sources)

function Test-Listening {
    $listening = [Net.NetworkInformation.IPGlobalProperties]::GetIPGlobalProperties().GetActiveTcpListeners()
    return @($listening | Where-Object { $_.Port -eq [int]$Port }).Count -gt 0
}

$title = 'Berth Remote Desktop'
$server = 'HKLM:\SYSTEM\CurrentControlSet\Control\Terminal Server'
$listener = $server + '\WinStations\RDP-Tcp'
$old = [Environment]::OSVersion.Version.Major -lt 6
Set-ItemProperty -Path $server -Name fDenyTSConnections -Value 0
Set-ItemProperty -Path $listener -Name PortNumber -Value ([int]$Port)

$closed = 0
if ($old) {
    $current = (New-Object -ComObject HNetCfg.FwMgr).LocalPolicy.CurrentProfile
    $open = New-Object -ComObject HNetCfg.FWOpenPort
    $open.Name = $title
    $open.Port = [int]$Port
    $open.Protocol = 6
    $open.RemoteAddresses = $Sources
    $open.Enabled = $true
    $current.GloballyOpenPorts.Remove([int]$Port, 6)
    $current.GloballyOpenPorts.Add($open)
} else {
    $policy = New-Object -ComObject HNetCfg.FwPolicy2
    # From Windows 8 on, Remote Desktop speaks UDP, too.
    foreach ($protocol in @(6, 17)) {
        $ours = @($policy.Rules | Where-Object { $_.Name -eq $title -and $_.Protocol -eq $protocol })
        if ($ours.Count -eq 0) {
            $rule = New-Object -ComObject HNetCfg.FWRule
            $rule.Name = $title
            $rule.Protocol = $protocol
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
        foreach ($rule in @($policy.Rules | Where-Object { $_.Enabled -and $_.Direction -eq 1 -and $_.Action -eq 1 -and $_.Protocol -eq $protocol -and $_.Name -ne $title })) {
            if ($rule.LocalPorts -and ($rule.LocalPorts.Split(',') -contains $Port)) {
                $rule.Enabled = $false
                $closed += 1
            }
        }
    }
}
Set-Service -Name TermService -StartupType Automatic
Start-Service -Name TermService
foreach ($second in 1..5) {
    if (Test-Listening) { break }
    Start-Sleep -Seconds 1
}
# A port that was changed. XP and 2003 cannot stop the service: there it holds from the next boot on.
$reboot = $false
if (-not (Test-Listening)) {
    if ($old) { $reboot = $true } else { Restart-Service -Name TermService -Force }
}
Write-BerthAnswer @{ result = 'done'; detail = 'port ' + $Port + ' open to ' + $Sources; closed = $closed; reboot = $reboot }
