# Runs one of the site's own scripts, which came as data.
param([string]$Name, [string]$Reservation, [string]$User, [string]$Computer, [string]$Image, [string]$Revision,
    [string]$Attempt, [string]$Address, [string]$PublicAddress)

$env:BERTH_STAGE = 'post-load'
$env:BERTH_RESERVATION = $Reservation
$env:BERTH_USER = $User
$env:BERTH_COMPUTER = $Computer
$env:BERTH_IMAGE = $Image
$env:BERTH_REVISION = $Revision
$env:BERTH_ATTEMPT = $Attempt
$env:BERTH_ADDRESS = $Address
$env:BERTH_PUBLIC_ADDRESS = $PublicAddress

$path = [IO.Path]::Combine([IO.Path]::GetTempPath(), 'berth-' + [guid]::NewGuid().ToString('N') + '.ps1')
[IO.File]::WriteAllBytes($path, $BerthData)
try {
    # What a program writes to its standard error must not end this script.
    $ErrorActionPreference = 'Continue'
    $lines = @($null | & powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -File $path 2>&1 | ForEach-Object { [string]$_ })
    $code = $LASTEXITCODE
} finally {
    Remove-Item -LiteralPath $path -Force
}
$output = @($lines | Where-Object { $_ } | Select-Object -Last 5) -join ' / '
if ($output.Length -gt 400) { $output = $output.Substring($output.Length - 400) }
$result = 'done'
if ($code -ne 0) { $result = 'warned' }
Write-BerthAnswer @{ result = $result; detail = $Name + ' ended with exit code ' + $code; exit = [string]$code; output = $output }
