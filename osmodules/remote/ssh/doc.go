// Package ssh is the control channel to guests that speak SSH.
//
// A Dialer climbs the rungs of one connection (TCP, banner, handshake, authentication) and says which one it is on, so
// that a guest that does not come up can be named by the rung where it hangs. A Client is one authenticated connection,
// used for all of a load: it runs commands, each with a limit, and writes files in one piece.
//
// # Host keys
//
// There is no way to connect without judging the host key. A Target bears a Pin: either the whole public key, which is
// then required from the first packet, or the fingerprint of an earlier handshake, or nothing, which takes the key of
// this handshake and reports it (Target.Shown) before anything is authenticated, so that the caller can pin it. When
// the pin's type is known only algorithms of that type are offered: a guest that has several keys shows the pinned one.
//
// # Nothing of a reservation in a shell string
//
// Run sends a constant line of the caller's and the caller's standard input. Copy sends a constant script of this
// package; the file's size, mode and path are the first three lines of its standard input, and the content follows. So
// nothing but constants is ever parsed by the guest's shell. To a Windows guest (Target.Windows, with Win32-OpenSSH or
// Cygwin's sshd) a file goes through a PowerShell script in the same way: see package powershell.
//
// # Algorithms
//
// The client offers what x/crypto/ssh lists as supported and without known weakness (SupportedAlgorithms). SHA-1
// signatures and key exchanges, CBC and RC4 are never offered; a server that knows nothing else is refused at the
// handshake with both lists in the error.
package ssh
