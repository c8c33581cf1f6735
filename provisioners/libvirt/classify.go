package libvirt

import (
	"context"
	"crypto/tls"
	"errors"

	rpc "github.com/digitalocean/go-libvirt"

	"berth/provisioners/libvirt/dial"
	"berth/reservation"
)

// Classify turns an error of this package or of libvirt into a verdict. libvirt has one code for many things (internal error,
// operation failed, system error), so these are a verdict only where it is known what was being done; otherwise they stay
// faults, which are tried again.
//
//	the host refuses us, its key or certificate     fail      settings
//	is another
//	pool, network, volume, way to run is missing    fail      the catalog and the host do not fit
//	the image's bits or format are other ones,      fail      the image's source
//	or its source does not give them
//	the pool is full                                fail      somebody has to make room
//	access denied, read-only connection             fail      the user's rights on the host
//	XML, argument, configuration, CPU refused       fail      what the catalog asks for
//	QEMU did not start, or was off at once          reload    another try may find the host in another state
//	no domain or volume (any more), already there,  fault     the host has changed under us: it is looked again
//	wrong state for it
//	lock not got in time, busy                      fault     another operation on the domain is going on
//	connection cut, daemon restarted, internal      fault     ours or the host's: no verdict on the image
//	error, system error, anything else
func Classify(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || reservation.VerdictOf(err) != "" {
		return err
	}
	for _, r := range rows() {
		if !r.matches(err) {
			continue
		}
		switch r.verdict {
		case reservation.VerdictReload:
			return reservation.Reload(r.reason, err)
		case reservation.VerdictFail:
			return reservation.Fail(r.reason, err)
		default:
			return err
		}
	}
	return err
}

// row is one line of Classify's table. The first that matches counts.
type row struct {
	matches func(error) bool
	verdict reservation.Verdict // "" is a plain fault
	reason  string              // what is wrong and what to do, for whoever reads the load log
}

func rows() []row {
	const plain = reservation.Verdict("")
	return []row{
		{is[*LostError], plain, ""},
		{is[*LateError], plain, ""},
		{is[*dial.RefusedError], reservation.VerdictFail, "the host refuses us: check the site's user and credential"},
		{is[*dial.HostKeyError], reservation.VerdictFail,
			"the host shows another key than the site's host_key or known_hosts_file has: compare them"},
		{is[*tls.CertificateVerificationError], reservation.VerdictFail,
			"the host's certificate is not the expected one: compare it with the site's ca_file and server_name"},
		{is[*NoSpaceError], reservation.VerdictFail, "no space is left: free some, or place the computer in another storage pool"},
		{is[*MissingError], reservation.VerdictFail, "the catalog and the host do not fit"},
		{is[*DigestError], reservation.VerdictFail,
			"the image's bits are not those that the catalog names: correct the source's sha256, or its bits"},
		{is[*FormatError], reservation.VerdictFail, "the image's bits are no disk as the catalog says"},
		{is[*SourceError], reservation.VerdictFail, "the image's source does not give its bits"},
		{has(rpc.ErrAccessDenied, rpc.ErrOperationDenied, rpc.ErrAuthFailed, rpc.ErrAuthCancelled, rpc.ErrAuthUnavailable),
			reservation.VerdictFail,
			"the host does not allow it: the worker's user needs the group libvirt or a polkit rule"},
		{has(rpc.ErrNoNetwork), reservation.VerdictFail,
			"the host does not have a network of the computer's: correct the computer's networks"},
		{has(rpc.ErrNoStoragePool), reservation.VerdictFail,
			"the host does not have the storage pool: correct the site's pool or the computer's placement"},
		{has(rpc.ErrXMLError, rpc.ErrXMLDetail, rpc.ErrXMLInvalidSchema, rpc.ErrInvalidArg, rpc.ErrConfigUnsupported,
			rpc.ErrArgumentUnsupported, rpc.ErrCPUIncompatible,
			rpc.ErrOsType, rpc.ErrInvalidMac, rpc.ErrNoSupport), reservation.VerdictFail,
			"the host refuses what the catalog asks for: check the image's source and the computer's hardware and networks"},
		{is[*StartError], reservation.VerdictReload, "the host could not run the guest"},
		{has(rpc.ErrNoDomain, rpc.ErrNoStorageVol, rpc.ErrStorageVolExist, rpc.ErrDomExist, rpc.ErrOperationInvalid), plain, ""},
		{has(rpc.ErrOperationTimeout, rpc.ErrResourceBusy), plain, ""},
	}
}

// is matches an error of type T anywhere in the error's tree.
func is[T error](err error) bool { return errors.As(err, new(T)) }

// has matches libvirt's errors of the given codes.
func has(codes ...rpc.ErrorNumber) func(error) bool {
	return func(err error) bool { return code(err, codes...) }
}
