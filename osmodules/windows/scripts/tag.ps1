# Writes down what was loaded, for whom.
param()

$folder = Join-Path -Path $env:ALLUSERSPROFILE -ChildPath 'Berth'
if (-not (Test-Path -Path $folder)) { [void](New-Item -Path $folder -ItemType Directory) }
$path = Join-Path -Path $folder -ChildPath 'load.json'
$new = $path + '.new'
[IO.File]::WriteAllBytes($new, $BerthData)
if (Test-Path -Path $path) { Remove-Item -Path $path -Force }
Move-Item -Path $new -Destination $path
Write-BerthAnswer @{ result = 'done'; detail = $path; path = $path }
