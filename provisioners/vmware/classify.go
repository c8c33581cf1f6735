package vmware

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/types"

	"berth/reservation"
)

// Classify turns an error of vSphere into a verdict, and is the only place that does. It reads fault types, never texts.
// nil, the errors of an ended context and errors that bear a verdict already come back unchanged, and so does a plain
// fault: the same phase is then tried again in the same attempt.
//
//	fault                                    verdict  why
//	NotAuthenticated                         fault    the session ran out; the next try logs in again
//	InvalidLogin, PasswordExpired            fail     the same user and password will be refused again
//	certificate or thumbprint does not match fail     nothing but an operator can tell whether the server is the right one
//	NoPermission                             fail     the user lacks a privilege; trying again does not grant it
//	a name of the catalog that is not found, fail     template, snapshot, folder, pool, datastore, host or network: the
//	  or found twice; NotFound; a computer's name     catalog names what is not there, or gives a computer the name of
//	  that a folder or a template bears               something that is never removed
//	ManagedObjectNotFound                    fault    the object went between our look and our call; the next try looks again
//	NoDiskSpace                              fail     the placement names the datastore, so a reload would fill the same one
//	                                                  seconds later; only an operator, or an unload, makes room
//	InsufficientResourcesFault and its kind  reload   other loads end, and DRS may find another host for the next attempt
//	DuplicateName                            fault    something took the name between our look and our call; the next try
//	                                                  looks at what stands there
//	FileLocked                               reload   a host holds a file of this VM; a new clone has new files
//	TaskInProgress, ConcurrentAccess         fault    somebody works on the VM just now
//	InvalidPowerState                        fault    the VM's power changed under us; the next try looks again
//	RequestCanceled                          reload   somebody cancelled our task in the vCenter; bounded by the attempts,
//	                                                  because they may have meant it
//	HostCommunication (HostNotConnected, ..) reload   the host is lost to its vCenter; the next attempt may get another
//	HostConnectFault and its kind            reload   likewise
//	InvalidArgument, InvalidVmConfig,        fail     vSphere refuses what the catalog asks for and will refuse it again
//	  InvalidName, NotSupported
//	any other fault that ended a task        reload   vSphere took the order and could not do it: the load went wrong
//	anything else (connection cut, HTTP 503, fault    ours or the network's: no verdict on the image
//	  SystemError from a call, ...)
func Classify(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if reservation.VerdictOf(err) != "" {
		return err
	}
	for _, r := range rows() {
		detail, ok := r.matches(err)
		if !ok {
			continue
		}
		reason := r.reason
		if detail != "" {
			reason = detail + ": " + reason
		}
		switch r.verdict {
		case reservation.VerdictReload:
			return reservation.Reload(reason, err)
		case reservation.VerdictFail:
			return reservation.Fail(reason, err)
		default:
			return err
		}
	}
	return err
}

// row is one line of Classify's table. The first that matches counts, so a fault stands before the kind it belongs to.
type row struct {
	matches func(error) (detail string, ok bool)
	verdict reservation.Verdict // "" is a plain fault
	reason  string              // what is wrong and what to do, for whoever reads the load log
}

func rows() []row {
	const plain = reservation.Verdict("")
	return []row{
		{is[*types.NotAuthenticated], plain, ""},
		{is[types.BaseInvalidLogin], reservation.VerdictFail, "the vCenter refuses the login: check the site's user and the secret that its credential names"},
		{badCertificate, reservation.VerdictFail, "the vCenter's certificate is not the expected one: compare it with the site's thumbprint or ca_file"},
		{noPermission, reservation.VerdictFail, "the site's user lacks a privilege: grant it in the vCenter"},
		{unresolved, reservation.VerdictFail, "the catalog and the vCenter do not fit"},
		{is[*types.NotFound], reservation.VerdictFail, "the vCenter does not have what the load needs: check the image's source and the computer's placement"},
		{is[*types.ManagedObjectNotFound], plain, ""},
		{noDiskSpace, reservation.VerdictFail, "no space is left: free some, or place the computer on another datastore"},
		{is[types.BaseInsufficientResourcesFault], reservation.VerdictReload, "the vCenter has not enough CPU, memory or failover capacity for the VM just now"},
		{is[*types.DuplicateName], plain, ""},
		{fileLocked, reservation.VerdictReload, "a file of the VM is locked by a host"},
		{is[types.BaseTaskInProgress], plain, ""},
		{is[*types.ConcurrentAccess], plain, ""},
		{is[*types.InvalidPowerState], plain, ""},
		{is[*types.RequestCanceled], reservation.VerdictReload, "the task was cancelled in the vCenter by somebody else"},
		{is[types.BaseHostCommunication], reservation.VerdictReload, "the vCenter has lost the host"},
		{is[types.BaseHostConnectFault], reservation.VerdictReload, "the vCenter has lost the host"},
		{invalidArgument, reservation.VerdictFail, "the vCenter refuses what the catalog asks for: check the image's source and the computer's hardware and placement"},
		{is[types.BaseInvalidVmConfig], reservation.VerdictFail, "the vCenter refuses the VM's hardware: check the computer's CPUs, memory, MACs and networks"},
		{is[*types.InvalidName], reservation.VerdictFail, "the vCenter refuses the computer's name"},
		{is[types.BaseNotSupported], reservation.VerdictFail, "the vCenter cannot do that with this template, host or datastore"},
		{endedTask, reservation.VerdictReload, "the vCenter could not do it"},
	}
}

// is matches a fault of type T, or of one of its kind where T is a fault's interface, anywhere in the error's tree.
func is[T any](err error) (string, bool) {
	_, ok := faultAs[T](err)
	return "", ok
}

func faultAs[T any](err error) (T, bool) {
	var target T
	if err == nil {
		return target, false
	}
	_, ok := fault.As(err, &target)
	return target, ok
}

func noPermission(err error) (string, bool) {
	f, ok := faultAs[types.BaseNoPermission](err)
	if !ok {
		return "", false
	}
	detail := f.GetNoPermission()
	var lacks []string
	for _, entity := range detail.MissingPrivileges { // from vSphere 8.0 on
		lacks = append(lacks, strings.Join(entity.PrivilegeIds, ", ")+" on "+entity.Entity.Value)
	}
	if len(lacks) == 0 && detail.PrivilegeId != "" && detail.Object != nil {
		lacks = append(lacks, detail.PrivilegeId+" on "+detail.Object.Value)
	}
	return strings.Join(lacks, "; "), true
}

func noDiskSpace(err error) (string, bool) {
	f, ok := faultAs[*types.NoDiskSpace](err)
	if !ok {
		return "", false
	}
	if f.Datastore == "" {
		return "datastore", true
	}
	return "datastore " + f.Datastore, true
}

func fileLocked(err error) (string, bool) {
	f, ok := faultAs[*types.FileLocked](err)
	if !ok {
		return "", false
	}
	return f.File, true
}

func invalidArgument(err error) (string, bool) {
	f, ok := faultAs[types.BaseInvalidArgument](err)
	if !ok {
		return "", false
	}
	return f.GetInvalidArgument().InvalidProperty, true
}

// unresolved matches a name that this package or the finder has looked up in vain.
func unresolved(err error) (string, bool) {
	var (
		missing         *MissingError
		occupied        *OccupiedError
		notFound        *find.NotFoundError
		multiple        *find.MultipleFoundError
		defaultNotFound *find.DefaultNotFoundError
		defaultMultiple *find.DefaultMultipleFoundError
	)
	return "", errors.As(err, &missing) || errors.As(err, &occupied) || errors.As(err, &notFound) || errors.As(err, &multiple) ||
		errors.As(err, &defaultNotFound) || errors.As(err, &defaultMultiple)
}

func badCertificate(err error) (string, bool) {
	var (
		pinned   *ThumbprintError
		verified *tls.CertificateVerificationError
	)
	return "", errors.As(err, &pinned) || errors.As(err, &verified)
}

// endedTask matches the fault that a task ended with, whatever it is.
func endedTask(err error) (string, bool) {
	var (
		value   task.Error
		pointer *task.Error
	)
	return "", errors.As(err, &value) || errors.As(err, &pointer)
}
