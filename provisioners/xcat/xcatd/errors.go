package xcatd

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Kind says what went wrong.
type Kind string

// The kinds of errors.
const (
	Connection     Kind = "connection"        // xcatd was not reached, or its answer broke off
	Authentication Kind = "authentication"    // we are not who we must be, or the daemon is not
	Permission     Kind = "permission denied" // the table policy has no row that allows it
	UnknownNode    Kind = "unknown node"
	UnknownOSImage Kind = "unknown osimage"
	BMCTimeout     Kind = "bmc timeout" // the BMC does not answer
	BMCRefusal     Kind = "bmc refusal" // the BMC answers, and does not do it
	BMCLogin       Kind = "bmc login"   // the BMC refuses the password of xCAT's table ipmi or passwd
	Other          Kind = "other"
)

// Error is a command that has not succeeded.
type Error struct {
	Kind    Kind
	Command string // as somebody would type it
	Node    string // "" if it is not about one node
	Text    string // xcatd's words, or ours
	Cause   error  // may be nil
}

func (e *Error) Error() string {
	text := e.Text
	if e.Node != "" && !strings.HasPrefix(text, e.Node+":") {
		text = e.Node + ": " + text
	}
	if e.Cause != nil {
		text = strings.TrimPrefix(text+": "+e.Cause.Error(), ": ")
	}
	return fmt.Sprintf("xcatd: %s: %s (%s)", e.Command, text, e.Kind)
}

func (e *Error) Unwrap() error { return e.Cause }

// KindOf returns the kind of an error of this package, and "" for any other.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

// judge returns nil only if a command has succeeded. Errors about several nodes are joined.
func judge(command Command, answer Answer) error {
	var faults []error
	fault := func(kind Kind, node, text string) {
		faults = append(faults, &Error{Kind: kind, Command: command.String(), Node: node, Text: text})
	}
	failed := map[string]bool{}
	for _, line := range answer.Lines {
		_, after, found := strings.Cut(line.Text, "Error:")
		found = found && (!command.tells() || message().MatchString(line.Text))
		switch {
		case line.Kind == Failure:
			fault(kindOf(command, line.Node, line.Text), line.Node, line.Text)
		case found:
			// "n01: Error: ..." comes as plain data, and credential nags of nodeset with exit code 0.
			fault(kindOf(command, line.Node, after), line.Node, line.Text)
		default:
			continue
		}
		failed[line.Node] = true
	}
	if len(faults) == 0 && answer.Code != 0 {
		fault(Other, "", fmt.Sprintf("error code %d: %s", answer.Code, strings.Join(texts(answer), "; ")))
		failed[""] = true
	}
	if !answer.Done {
		fault(Connection, "", "the answer ended before serverdone")
		failed[""] = true
	}
	if failed[""] || command.Quiet {
		return errors.Join(faults...) // what went wrong as a whole has no nodes to wait for
	}
	for _, node := range command.Nodes {
		if _, ok := answer.Of(node); !ok && !failed[node] {
			fault(Other, node, "the answer has no line about it")
		}
	}
	return errors.Join(faults...)
}

// tells says whether a command answers with what people have written into xCAT's tables: a comment there may say anything.
func (c Command) tells() bool { return c.Name == "lsdef" || c.Name == "tabdump" }

// message fits a line that is xCAT's own word, and none of a table: "Error: ...", "n01: Error: ...", "n01: [mn]: Error: ...".
func message() *regexp.Regexp { return regexp.MustCompile(`^([^\s"=]+: )?(\[\S+\]: )?Error:`) }

func texts(answer Answer) []string {
	var all []string
	for _, line := range answer.Lines {
		all = append(all, line.Text)
	}
	return all
}

// kindOf reads xcatd's words. There is nothing but words: error codes are 1 for all of it.
func kindOf(command Command, node, text string) Kind {
	for _, known := range []struct {
		kind    Kind
		pattern string
	}{
		{Authentication, `Authentication failure`},
		{Permission, `Permission denied for request`},
		{UnknownNode, `Invalid nodes and/or groups in noderange`},
		{UnknownNode, `Could not find an object named '.*' of type 'node'`},
		{UnknownOSImage, `Could not find an object named '.*' of type 'osimage'`},
		{UnknownOSImage, `Cannot find the OS image`},
		{Connection, `Unable to open socket connection to xcatd|communication with the xCAT server seems to have been ended`},
		{Other, `Unsupported command: `},
	} {
		if regexp.MustCompile(known.pattern).MatchString(text) {
			return known.kind
		}
	}
	if command.Name != "rpower" && command.Name != "rsetboot" {
		return Other
	}
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "incorrect password"), strings.Contains(lower, "invalid user"), strings.Contains(lower, "unauthorized"):
		return BMCLogin
	case strings.Contains(lower, "while processing command"):
		return BMCRefusal
	case strings.Contains(lower, "timeout"), strings.Contains(lower, "timed out"):
		return BMCTimeout
	case node != "":
		return BMCRefusal
	default:
		return Other
	}
}
