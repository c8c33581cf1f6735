# Activates Windows: by the KMS server, or with a key of its own where no server is given.
param([string]$Server, [string]$Port, [string]$Key)

if ([Environment]::OSVersion.Version.Major -lt 6) {
    Write-BerthAnswer @{ result = 'warned'; detail = 'this Windows has no licensing service'; code = 0; name = '' }
    return
}
$windows = "ApplicationID='55c92734-d682-4d71-983e-d6ec3f16059f' AND PartialProductKey IS NOT NULL"
$product = Get-WmiObject -Class SoftwareLicensingProduct -Filter $windows | Select-Object -First 1
if ($product -and $product.LicenseStatus -eq 1) {
    Write-BerthAnswer @{ result = 'skipped'; detail = 'it is activated already'; code = 0; name = $product.Name }
    return
}
try {
    $service = Get-WmiObject -Class SoftwareLicensingService
    if ($Key) { [void]$service.InstallProductKey($Key) }
    if ($Server) {
        [void]$service.SetKeyManagementServiceMachine($Server)
        [void]$service.SetKeyManagementServicePort([uint32]$Port)
    }
    [void]$service.RefreshLicenseStatus()
    $product = Get-WmiObject -Class SoftwareLicensingProduct -Filter $windows | Select-Object -First 1
    [void]$product.Activate()
    [void]$service.RefreshLicenseStatus()
} catch {
    # The message holds a code such as 0xC004F074 (no KMS server answered), and never the key.
    $code = 0
    if ($_.Exception.ErrorCode) { $code = $_.Exception.ErrorCode }
    Write-BerthAnswer @{ result = 'warned'; detail = $_.Exception.Message; code = [string]$code; name = '' }
    return
}
$product = Get-WmiObject -Class SoftwareLicensingProduct -Filter $windows | Select-Object -First 1
if ($product.LicenseStatus -eq 1) {
    Write-BerthAnswer @{ result = 'done'; detail = $product.Name; code = 0; name = $product.Name }
} else {
    Write-BerthAnswer @{ result = 'warned'; detail = 'the licence status is ' + $product.LicenseStatus; code = 0; name = $product.Name }
}
