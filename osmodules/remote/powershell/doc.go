// Package powershell runs scripts on Windows guests, over whichever control channel.
//
// The command line is always the same (Line): it starts Windows PowerShell with a small bootstrap. The script, the values
// of its parameters and a file's bytes come through standard input in base64 (Input), so that nothing of a reservation
// is ever parsed as PowerShell and no code page, no shell and no quoting rule can touch it. The input has a closing line:
// the bootstrap needs no end of file to begin, and it runs nothing of an input that was cut off.
//
// A script declares its values with param(...), finds the bytes in $BerthData and answers with
//
//	Write-BerthAnswer @{ result = 'done'; detail = 'for a person'; further = 'the script''s own' }
//
// which is one line of JSON on standard output. Everything else that it prints is noise, shown only when something went
// wrong (ParseAnswer). $ErrorActionPreference is Stop: an error that the script does not catch ends it.
//
// Everything here is valid on Windows PowerShell 2.0, which XP to 2008 R2 have. The guest's shell must leave standard
// input alone: cmd.exe does, and Cygwin's sh; PowerShell as OpenSSH's DefaultShell does not (it reads all of it itself),
// and then the bootstrap says that its input was cut off.
package powershell
