// Package winrm is the control channel to Windows guests through Windows Remote Management: WS-Management over HTTPS.
//
// A Dialer climbs the rungs of one connection (TCP, TLS handshake, authentication, shell) and says which one it is on. A
// Client is one authenticated connection with one shell, used for all of a load. Requests of one command go over that
// connection one after the other; a command beside it, and the signal that terminates a command whose output is being
// waited for, get a connection of their own for as long as they last.
//
// # Certificates
//
// There is no plain HTTP and no way to connect without judging the certificate. With Target.Roots it must be a valid one
// of these authorities for the target's name. Without, it must be the pinned one; when none is pinned yet, the
// certificate of this handshake is taken and reported (Target.Shown) before anything is authenticated, so that the
// caller can pin it. TLS 1.0 is spoken with guests that know no better: Windows 7 and 2008 R2 as they are installed.
//
// # Authentication
//
// NTLM version 2, bound to the TLS channel (so that CbtHardeningLevel may be Strict), or Basic where the target asks for
// it. NTLM's message encryption is not used: TLS encrypts.
//
// # What is done about the library
//
// Requests and answers are those of github.com/masterzen/winrm. Its client is not used: it has no deadline or context
// for a request, its NTLM handshake may be spread over several connections, and it knows either an authority's
// certificate or none. And its commands have a console as standard input, which takes no end of input.
package winrm
