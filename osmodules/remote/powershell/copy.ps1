# Writes $BerthData to a file in one piece: beside it first, then in its place.
param([string]$Path)

$mark = [guid]::NewGuid().ToString('N')
$new = $Path + '.new-' + $mark
$old = $Path + '.old-' + $mark
try {
    [IO.File]::WriteAllBytes($new, $BerthData)
    if ([IO.File]::Exists($Path)) {
        # PowerShell 2.0 cannot pass a null string, so the old file must get a name.
        [IO.File]::Replace($new, $Path, $old, $true)
    } else {
        [IO.File]::Move($new, $Path)
    }
} finally {
    foreach ($left in @($new, $old)) {
        # A virus scanner may hold it for a moment; the copy itself is right all the same.
        try { [IO.File]::Delete($left) } catch { }
    }
}
Write-BerthAnswer @{ result = 'done'; detail = 'wrote ' + $BerthData.Length + ' bytes' }
