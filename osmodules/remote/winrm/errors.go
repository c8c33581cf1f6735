package winrm

import (
	"fmt"

	"berth/osmodules/remote"
)

// The rungs, in order.
const (
	RungTCP                        = remote.RungTCP
	RungHandshake                  = remote.RungHandshake
	RungAuthentication             = remote.RungAuthentication
	RungShell          remote.Rung = "winrm shell" // the service opens a shell for us
)

// CertificateError says that a server showed another certificate than the pinned one. Both are fingerprints.
type CertificateError struct {
	Want string
	Got  string
}

func (e *CertificateError) Error() string {
	return fmt.Sprintf("the certificate is %s, and %s is pinned", e.Got, e.Want)
}

// AuthorityError says that a server's certificate is not a valid one of the target's authorities for its name.
type AuthorityError struct {
	Got string // its fingerprint
	Err error
}

func (e *AuthorityError) Error() string {
	return fmt.Sprintf("the certificate %s is not accepted: %s", e.Got, e.Err)
}

func (e *AuthorityError) Unwrap() error { return e.Err }

// FaultError is a SOAP fault: the service understood us and refuses.
type FaultError struct {
	Code    uint32 // Windows' error number, 0 if there is none
	Subcode string // such as w:TimedOut
	Text    string
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("WinRM refuses it: %s (%s, error %d)", e.Text, e.Subcode, e.Code)
}

// StatusError is an HTTP answer that is none of WinRM: something else listens, or the service is not ready.
type StatusError struct{ Status int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("the answer has HTTP status %d and is none of WinRM's", e.Status)
}

// Error numbers of Windows in faults (winerror.h, wsmerror.h).
const (
	codeAccessDenied = 5
	codeTimedOut     = 2150858793 // ERROR_WSMAN_OPERATION_TIMEDOUT
	codeNoShell      = 2150858843 // ERROR_WSMAN_UNEXPECTED_SELECTORS: no such shell
)
