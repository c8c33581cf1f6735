# Makes the control channel's service start by itself.
param([string]$Names)

foreach ($name in $Names.Split(',')) {
    $service = Get-Service | Where-Object { $_.Name -eq $name }
    if ($service) {
        Set-Service -Name $name -StartupType Automatic
        Write-BerthAnswer @{ result = 'done'; detail = 'automatic: ' + $name; service = $name }
        return
    }
}
Write-BerthAnswer @{ result = 'reload'; detail = 'there is none of the services ' + $Names; service = '' }
