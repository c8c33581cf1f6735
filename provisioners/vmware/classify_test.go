package vmware_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners/vmware"
	"berth/reservation"
)

// ended is the error of a task that ended with a fault.
func ended(fault types.BaseMethodFault) error {
	return task.Error{LocalizedMethodFault: &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: "localized"}}
}

// refused is the error of a call that was answered with a fault.
func refused(fault types.BaseMethodFault) error {
	f := &soap.Fault{Code: "ServerFaultCode", String: "localized"}
	f.Detail.Fault = fault
	return soap.WrapSoapFault(f)
}

// caused is a fault that names another one as its cause, as vCenters nest them.
func caused(by types.BaseMethodFault) types.BaseMethodFault {
	return &types.InvalidState{VimFault: types.VimFault{MethodFault: types.MethodFault{FaultCause: &types.LocalizedMethodFault{Fault: by}}}}
}

func TestClassify(t *testing.T) {
	const fault, reload, fail = reservation.Verdict(""), reservation.VerdictReload, reservation.VerdictFail
	vm := types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-7"}
	for name, c := range map[string]struct {
		err  error
		want reservation.Verdict
		says string
	}{
		"session expired":                        {refused(&types.NotAuthenticated{}), fault, ""},
		"session expired, as a missing property": {soap.WrapVimFault(&types.NotAuthenticated{}), fault, ""},
		"invalid login":                          {refused(&types.InvalidLogin{}), fail, "refuses the login"},
		"expired password":                       {refused(&types.PasswordExpired{}), fail, "refuses the login"},
		"no permission":                          {refused(&types.NoPermission{Object: &vm, PrivilegeId: "VirtualMachine.Provisioning.Clone"}), fail, "VirtualMachine.Provisioning.Clone on vm-7"},
		"no permission, vSphere 8": {ended(&types.NoPermission{MissingPrivileges: []types.NoPermissionEntityPrivileges{{Entity: vm, PrivilegeIds: []string{"Datastore.AllocateSpace"}}}}),
			fail, "Datastore.AllocateSpace on vm-7"},
		"template not found":             {&vmware.MissingError{Site: "lab", Kind: "template", Name: "x"}, fail, `site lab has no template "x"`},
		"found by no finder":             {&find.NotFoundError{}, fail, ""},
		"found twice":                    {&find.MultipleFoundError{}, fail, ""},
		"name borne by a folder":         {&vmware.OccupiedError{Site: "lab", Name: "x"}, fail, "rename"},
		"not found":                      {ended(&types.NotFound{}), fail, ""},
		"managed object gone":            {refused(&types.ManagedObjectNotFound{Obj: vm}), fault, ""},
		"no disk space":                  {ended(&types.NoDiskSpace{Datastore: "ds1"}), fail, "datastore ds1"},
		"insufficient resources":         {ended(&types.InsufficientResourcesFault{}), reload, "not enough"},
		"insufficient memory":            {ended(&types.InsufficientMemoryResourcesFault{}), reload, "not enough"},
		"no failover capacity":           {ended(&types.InsufficientFailoverResourcesFault{}), reload, "not enough"},
		"duplicate name":                 {ended(&types.DuplicateName{Name: "vm-01"}), fault, ""},
		"file locked":                    {ended(&types.FileLocked{FileFault: types.FileFault{File: "[ds1] vm-01/vm-01.vmdk"}}), reload, "vm-01.vmdk"},
		"file locked, as a cause":        {ended(caused(&types.FileLocked{})), reload, "locked"},
		"task in progress":               {refused(&types.TaskInProgress{}), fault, ""},
		"vApp task in progress":          {refused(&types.VAppTaskInProgress{}), fault, ""},
		"concurrent access":              {refused(&types.ConcurrentAccess{}), fault, ""},
		"invalid power state":            {ended(&types.InvalidPowerState{ExistingState: types.VirtualMachinePowerStatePoweredOn}), fault, ""},
		"request cancelled":              {ended(&types.RequestCanceled{}), reload, "cancelled"},
		"host not connected":             {ended(&types.HostNotConnected{}), reload, "lost the host"},
		"host not reachable":             {ended(&types.HostNotReachable{}), reload, "lost the host"},
		"host connect fault":             {ended(&types.SSLVerifyFault{}), reload, "lost the host"},
		"invalid argument":               {refused(&types.InvalidArgument{InvalidProperty: "spec.location.pool"}), fail, "spec.location.pool"},
		"invalid configuration":          {ended(&types.InvalidVmConfig{Property: "numCPUs"}), fail, "hardware"},
		"invalid name":                   {ended(&types.InvalidName{}), fail, "name"},
		"not supported":                  {ended(&types.NotSupported{}), fail, ""},
		"another fault that ends a task": {ended(&types.CannotAccessVmDisk{}), reload, "could not do it"},
		"system error that ends a task":  {ended(&types.SystemError{}), reload, ""},
		"system error from a call":       {refused(&types.SystemErrorFault{}), fault, ""},
		"connection refused":             {&url.Error{Op: "Post", URL: "https://vc/sdk", Err: syscall.ECONNREFUSED}, fault, ""},
		"connection cut":                 {&url.Error{Op: "Post", URL: "https://vc/sdk", Err: io.ErrUnexpectedEOF}, fault, ""},
		"wrong thumbprint":               {&url.Error{Op: "Post", Err: &vmware.ThumbprintError{Site: "lab"}}, fail, "thumbprint"},
		"unknown authority": {&url.Error{Op: "Post", Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}},
			fail, "ca_file"},
		"task forgotten":  {&vmware.GoneError{Task: "task-1"}, fault, ""},
		"late worker":     {&vmware.LateError{}, fault, ""},
		"another's VM":    {&vmware.ForeignError{}, fault, ""},
		"any other error": {errors.New("x"), fault, ""},
		"no error":        {nil, reservation.VerdictDone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.err
			if err != nil {
				err = fmt.Errorf("site lab: clone: %w", err)
			}
			got := vmware.Classify(err)
			require.Equal(t, c.want, reservation.VerdictOf(got))
			if c.want == fault {
				require.Same(t, err, got, "a plain fault comes back unchanged")
			}
			if c.err != nil {
				require.ErrorIs(t, got, err, "what happened is never lost")
				require.ErrorContains(t, got, c.says)
			}
		})
	}
}

func TestClassifyLeavesTheEndOfAContextAndVerdictsAlone(t *testing.T) {
	for _, err := range []error{
		context.Canceled, context.DeadlineExceeded, fmt.Errorf("clone: %w", context.Canceled),
		&url.Error{Op: "Post", Err: context.DeadlineExceeded},
		reservation.Fail("mine", ended(&types.FileLocked{})),
		reservation.Reload("mine", ended(&types.NoPermission{})),
	} {
		require.Equal(t, err, vmware.Classify(err))
	}
}
