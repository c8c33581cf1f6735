package reservation

import "errors"

// Verdict is what a module says of its part of a load. The values in brackets are those of the proposal of 2010 (Apache VCL,
// VCL-291).
type Verdict string

// The verdicts. Done has no error; the other two are errors made by Reload and Fail. An error that bears no verdict is
// a fault of ours (a connection cut, a worker killed): it is tried again in the same attempt and never judges the image.
const (
	VerdictDone   Verdict = "done"   // (1) the next phase
	VerdictReload Verdict = "reload" // (0) the workflow counts one more attempt and loads again
	VerdictFail   Verdict = "fail"   // (undef) nobody tries again; the reservation fails with the reason
)

// VerdictError is a module's answer that is not "done". Make it with Reload or Fail; read it with errors.As or
// VerdictOf.
type VerdictError struct {
	Verdict Verdict
	Reason  string // for the person who reads the load log: what is wrong, without secrets
	Cause   error  // may be nil
}

func (e *VerdictError) Error() string {
	if e.Cause == nil {
		return e.Reason
	}
	if e.Reason == "" {
		return e.Cause.Error()
	}
	return e.Reason + ": " + e.Cause.Error()
}

func (e *VerdictError) Unwrap() error { return e.Cause }

// Reload says: this load went wrong, load the image again (0). cause may be nil.
func Reload(reason string, cause error) error {
	return &VerdictError{Verdict: VerdictReload, Reason: reason, Cause: cause}
}

// Fail says: this went wrong and loading again will not help (undef). cause may be nil.
func Fail(reason string, cause error) error {
	return &VerdictError{Verdict: VerdictFail, Reason: reason, Cause: cause}
}

// VerdictOf returns the verdict that err bears: VerdictDone for nil, the outermost VerdictError's for one that holds
// one, and "" for a plain fault.
func VerdictOf(err error) Verdict {
	if err == nil {
		return VerdictDone
	}
	var v *VerdictError
	if errors.As(err, &v) {
		return v.Verdict
	}
	return ""
}
