// Package xcatd speaks with xcatd, the daemon of an xCAT management node.
//
// A Client gives xCAT's commands typed answers and typed errors. It runs them over a Transport: Native speaks xcatd's own
// protocol (XML over TLS, port 3001), Tools runs xCAT's command-line tools on this machine or by SSH on the management node.
//
// xCAT's exit codes do not tell the truth, so one rule judges every answer, whichever way it came: a command has succeeded
// only when the daemon has said that it is done, nothing in the answer is an error (an error element, an errorcode other than
// 0, or "Error:" in a text), and every node that was asked about has answered.
package xcatd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"berth/internal/span"
)

// How long a command may take. The figures are for one node; a dead BMC takes 14 s to be noticed (ipmiretries 3, ipmitimeout
// 2).
const (
	readLimit    = 30 * time.Second
	changeLimit  = 60 * time.Second // nodeset, chdef, makeknownhosts
	machineLimit = 90 * time.Second // rpower, rsetboot: the BMC is asked
)

// DefaultInFlight is how many commands run at once at one management node. xcatd serves 64 clients (site.xcatmaxconnections)
// and forks for each; a few at a time are answered soonest.
const DefaultInFlight = 8

// Command is one xCAT command.
type Command struct {
	Name  string   // such as "rpower"
	Nodes []string // the noderange; every one of them has to answer
	Range string   // in place of Nodes: a noderange such as a group's name, of which whoever is in it answers
	Args  []string
	// Quiet says that the command answers nothing when it succeeds (makeknownhosts), so that no node is waited for.
	Quiet bool
	// Each is called with each line as it arrives, if it is not nil. xcatd answers node by node, in any order; the tools'
	// lines are taken when they have ended.
	Each func(Line)
}

// String returns the command as somebody would type it.
func (c Command) String() string {
	words := []string{c.Name}
	if nodes := c.noderange(); nodes != "" {
		words = append(words, nodes)
	}
	return strings.Join(append(words, c.Args...), " ")
}

func (c Command) noderange() string {
	if c.Range != "" {
		return c.Range
	}
	return strings.Join(c.Nodes, ",")
}

// limit returns how long the command may take.
func (c Command) limit() time.Duration {
	switch c.Name {
	case "rpower", "rsetboot":
		return machineLimit
	case "chdef", "makeknownhosts":
		return changeLimit
	case "nodeset":
		if len(c.Args) > 0 && c.Args[0] == "stat" {
			return readLimit
		}
		return changeLimit
	default:
		return readLimit
	}
}

// LineKind tells what a line of an answer is.
type LineKind int

// The kinds of lines.
const (
	Data LineKind = iota
	Warning
	Failure
)

// Line is one line of an answer.
type Line struct {
	Node string // "" if it is about no node
	Kind LineKind
	Text string
}

// Answer is what a command has answered, in the order in which it came.
type Answer struct {
	Lines []Line
	Code  int  // all error codes, or'ed
	Done  bool // the daemon has said that there is nothing more
}

// Of returns the first data line of a node, and whether there is one.
func (a Answer) Of(node string) (string, bool) {
	for _, line := range a.Lines {
		if line.Node == node && line.Kind == Data {
			return line.Text, true
		}
	}
	return "", false
}

// plain returns the data lines that are about no node. One element may hold several lines.
func (a Answer) plain() []string {
	var texts []string
	for _, line := range a.Lines {
		if line.Node == "" && line.Kind == Data {
			texts = append(texts, strings.Split(line.Text, "\n")...)
		}
	}
	return texts
}

// Transport carries a command to xcatd and its answer back. Run returns what has come even when it returns an error, which
// is then an *Error of kind Connection or Authentication, or the context's. It does not judge the answer. When the context
// ends it asks xcatd to abort the command, and returns once that has ended or a few seconds have passed.
type Transport interface {
	Run(ctx context.Context, command Command) (Answer, error)
}

// Client runs commands at one management node. It is safe for concurrent use.
type Client struct {
	transport Transport
	slots     chan struct{}
	limit     func(Command) time.Duration
}

// NewClient returns a client that runs at most inFlight commands at once; 0 means DefaultInFlight.
func NewClient(transport Transport, inFlight int) *Client {
	if inFlight <= 0 {
		inFlight = DefaultInFlight
	}
	return &Client{transport: transport, slots: make(chan struct{}, inFlight), limit: Command.limit}
}

// Do runs a command and judges its answer. The error is an *Error, or the context's if that has ended. The answer is what
// came, with an error too: a command for several nodes may have succeeded for some of them.
func (c *Client) Do(ctx context.Context, command Command) (Answer, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
	limit := c.limit(command)
	call, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	call, ended := span.Call(call, "xcatd", command.Name, attribute.String("xcat.noderange", command.noderange()))
	answer, err := c.run(ctx, call, command, limit)
	ended(err)
	return answer, err
}

// run runs a command within call, which ends at the command's limit or with ctx, and judges its answer.
func (c *Client) run(ctx, call context.Context, command Command, limit time.Duration) (Answer, error) {
	answer, err := c.transport.Run(call, command)
	switch {
	case ctx.Err() != nil:
		return answer, ctx.Err()
	case call.Err() != nil && (err != nil || !answer.Done):
		return answer, &Error{Kind: Connection, Command: command.String(), Text: fmt.Sprintf("no complete answer within %s", limit)}
	case err != nil:
		return answer, err
	}
	return answer, judge(command, answer)
}
