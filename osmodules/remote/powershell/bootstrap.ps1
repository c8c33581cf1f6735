# Runs one script that comes through standard input, with its values as parameters.
# Windows PowerShell 2.0 is enough. Only ASCII in and out, so that no code page can spoil anything.
#
# Input, line by line:   value NAME BASE64    a parameter (UTF-8); lines of the same name are joined
#                        script BASE64        the script (UTF-8); lines are joined
#                        data BASE64          bytes for $BerthData; lines are joined
#                        end                  the last line: nothing runs without it
# Exit codes: the script's own; 97 the input was cut off; 98 the script ended with an error.

$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

# ConvertTo-Json came with PowerShell 3.0. Whatever is not printable ASCII, and " and \, becomes \uXXXX.
function ConvertTo-BerthJson($Value) {
    if ($null -eq $Value) { return 'null' }
    if ($Value -is [bool]) { return $Value.ToString().ToLowerInvariant() }
    if ($Value -is [int] -or $Value -is [long] -or $Value -is [uint32]) { return $Value.ToString() }
    if ($Value -is [Collections.IDictionary]) {
        $parts = @($Value.Keys | Sort-Object | ForEach-Object { (ConvertTo-BerthJson ([string]$_)) + ':' + (ConvertTo-BerthJson $Value[$_]) })
        return '{' + ($parts -join ',') + '}'
    }
    if ($Value -is [Collections.IList]) {
        $parts = @($Value | ForEach-Object { ConvertTo-BerthJson $_ })
        return '[' + ($parts -join ',') + ']'
    }
    $escape = [Text.RegularExpressions.MatchEvaluator]{ '\u{0:x4}' -f [int][char]$args[0].Value }
    return '"' + [regex]::Replace([string]$Value, '[^ !#-\[\]-~]', $escape) + '"'
}

# Past the pipeline, so that no assignment in a script can swallow it.
function Write-BerthAnswer([hashtable]$Answer) {
    [Console]::Out.WriteLine('berth:' + (ConvertTo-BerthJson $Answer))
}

function ConvertFrom-BerthText([string]$Text) {
    return [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($Text))
}

$BerthValues = @{}
$BerthScript = New-Object Text.StringBuilder
$BerthBytes = New-Object Text.StringBuilder
while ($true) {
    $BerthLine = [Console]::In.ReadLine()
    if ($null -eq $BerthLine) {
        [Console]::Error.WriteLine('berth: the input was cut off before its line "end"; nothing was run')
        exit 97
    }
    if ($BerthLine -eq 'end') { break }
    $BerthWord, $BerthFirst, $BerthSecond = $BerthLine.Split(' ')
    if ($BerthWord -eq 'value') { $BerthValues[$BerthFirst] = [string]$BerthValues[$BerthFirst] + $BerthSecond }
    if ($BerthWord -eq 'script') { [void]$BerthScript.Append($BerthFirst) }
    if ($BerthWord -eq 'data') { [void]$BerthBytes.Append($BerthFirst) }
}
try {
    foreach ($BerthName in @($BerthValues.Keys)) { $BerthValues[$BerthName] = ConvertFrom-BerthText $BerthValues[$BerthName] }
    [byte[]]$BerthData = [Convert]::FromBase64String($BerthBytes.ToString())
    & ([scriptblock]::Create((ConvertFrom-BerthText $BerthScript.ToString()))) @BerthValues
} catch {
    $BerthLine = 'line ' + $_.InvocationInfo.ScriptLineNumber + ': ' + $_.Exception.Message
    [Console]::Error.WriteLine('berth-error:' + (ConvertTo-BerthJson $BerthLine))
    exit 98
}
exit 0
