package xcat

import (
	"context"
	"errors"

	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// Classify turns an error of xCAT into a verdict, and is the only place that does. nil, the errors of an ended context and
// errors that bear a verdict already come back unchanged, and so does a plain fault: the same phase is then tried again in
// the same attempt.
//
//	kind               verdict  why
//	connection         fault    xcatd restarts, or is busy: no word about the node or the image
//	authentication     fail     nothing but an operator can tell who is who
//	permission denied  fail     the table policy has no row for it; trying again adds none
//	unknown node       fail     the catalog and xCAT do not fit
//	unknown osimage    fail     likewise
//	bmc timeout        reload   BMCs come back; by then it has been asked several times
//	bmc refusal        reload   likewise
//	bmc login          fail     xCAT has the wrong password for the BMC
//	a foreign node     fail     somebody else works on it
//	anything else      fault    in doubt it costs no attempt
func Classify(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || reservation.VerdictOf(err) != "" {
		return err
	}
	if errors.As(err, new(*ForeignError)) {
		return reservation.Fail("somebody else works on the node", err)
	}
	switch xcatd.KindOf(err) {
	case xcatd.Authentication:
		return reservation.Fail("we and xcatd do not believe each other: compare the site's ca_file, server_name and credential with the management node's", err)
	case xcatd.Permission:
		return reservation.Fail("xCAT's table policy does not allow it: add a row for our certificate's name", err)
	case xcatd.UnknownNode:
		return reservation.Fail("xCAT has no such node: check the computer's name and placement", err)
	case xcatd.UnknownOSImage:
		return reservation.Fail("xCAT has no such osimage: check the image's source", err)
	case xcatd.BMCLogin:
		return reservation.Fail("the node's BMC refuses xCAT's password: correct xCAT's table ipmi", err)
	case xcatd.BMCTimeout:
		return reservation.Reload("the node's BMC does not answer", err)
	case xcatd.BMCRefusal:
		return reservation.Reload("the node's BMC does not do what it is told", err)
	default:
		return err
	}
}
