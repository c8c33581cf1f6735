# Installs the update packages (.cab) of a folder of the image.
param([string]$Folder)

$packages = @()
if (Test-Path -LiteralPath $Folder) { $packages = @([IO.Directory]::GetFiles($Folder, '*.cab') | Sort-Object) }
if ($packages.Count -eq 0) {
    Write-BerthAnswer @{ result = 'skipped'; detail = 'there is no package in ' + $Folder; installed = ''; failed = ''; reboot = $false }
    return
}
$installed = @()
$failed = @()
$reboot = $false
foreach ($package in $packages) {
    $name = [IO.Path]::GetFileName($package)
    # A package that is installed already is no error to it.
    & dism.exe /Online /Quiet /NoRestart '/Add-Package' ('/PackagePath:' + $package) | Out-Null
    if ($LASTEXITCODE -eq 3010) { $reboot = $true }
    if ($LASTEXITCODE -eq 0 -or $LASTEXITCODE -eq 3010) { $installed += $name } else { $failed += $name + ' (' + $LASTEXITCODE + ')' }
}
$result = 'done'
if ($failed.Count -gt 0) { $result = 'warned' }
Write-BerthAnswer @{
    result    = $result
    detail    = 'installed ' + $installed.Count + ', failed ' + ($failed -join ', ')
    installed = $installed -join ','
    failed    = $failed -join ','
    reboot    = $reboot
}
