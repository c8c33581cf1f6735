package xcatd

import (
	"context"
	"encoding/csv"
	"fmt"
	"strings"
)

// Object is what lsdef tells of a node or an osimage: its attributes that are set.
type Object map[string]string

// Node returns attributes of a node's definition. status is not to be read here: lsdef returns it blank now and then
// although it is set. See Status.
func (c *Client) Node(ctx context.Context, node string, attributes ...string) (Object, error) {
	return c.object(ctx, "node", node, attributes)
}

// OSImage returns attributes of an osimage's definition.
func (c *Client) OSImage(ctx context.Context, osimage string, attributes ...string) (Object, error) {
	return c.object(ctx, "osimage", osimage, attributes)
}

func (c *Client) object(ctx context.Context, kind, name string, attributes []string) (Object, error) {
	command := Command{Name: "lsdef", Args: []string{"-t", kind, "-o", name, "-i", strings.Join(attributes, ",")}}
	answer, err := c.Do(ctx, command)
	if err != nil {
		return nil, err
	}
	var object Object
	for _, line := range answer.plain() {
		if found, ok := strings.CutPrefix(line, "Object name: "); ok && strings.TrimSpace(found) == name {
			object = Object{}
		}
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && object != nil {
			object[key] = value
		}
	}
	if object == nil {
		return nil, &Error{Kind: Other, Command: command.String(), Text: "the answer has no line about it"}
	}
	return object, nil
}

// Status is a node's row in the table nodelist.
type Status struct {
	Status  string // "" is no reading: a callback may never come, and other clients may have cleared it
	Time    string // of the management node, such as "11-23-2026 18:15:38"; good only to be compared
	Comment string // the attribute usercomment
}

// Status reads a node's row by tabdump, which is the only reading of the status that is never blank by mistake.
func (c *Client) Status(ctx context.Context, node string) (Status, error) {
	command := Command{Name: "tabdump", Args: []string{"-w", "node==" + node, "nodelist"}}
	answer, err := c.Do(ctx, command)
	if err != nil {
		return Status{}, err
	}
	reader := csv.NewReader(strings.NewReader(strings.TrimPrefix(strings.TrimSpace(strings.Join(answer.plain(), "\n")), "#")))
	reader.FieldsPerRecord = -1
	records, err := reader.ReadAll()
	if err != nil {
		return Status{}, &Error{Kind: Other, Command: command.String(), Text: "the answer is no CSV", Cause: err}
	}
	for i, record := range records {
		if i == 0 || len(record) == 0 || record[0] != node {
			continue
		}
		var status Status
		for at, value := range record {
			if at >= len(records[0]) {
				break
			}
			switch records[0][at] {
			case "status":
				status.Status = value
			case "statustime":
				status.Time = value
			case "comments":
				status.Comment = value
			}
		}
		return status, nil
	}
	return Status{}, &Error{Kind: UnknownNode, Command: command.String(), Node: node, Text: "the table nodelist has no row of it"}
}

// one runs a command for one node and returns the node's line.
func (c *Client) one(ctx context.Context, name, node string, args ...string) (string, error) {
	answer, err := c.Do(ctx, Command{Name: name, Nodes: []string{node}, Args: args})
	if err != nil {
		return "", err
	}
	text, _ := answer.Of(node)
	return strings.TrimSpace(text), nil
}

// State returns a node's provisioning state: "boot", "offline", "install rocky9.4-x86_64-compute".
func (c *Client) State(ctx context.Context, node string) (string, error) {
	return c.one(ctx, "nodeset", node, "stat")
}

// States returns the provisioning states of the nodes of a noderange, such as a group's name, by node.
func (c *Client) States(ctx context.Context, noderange string) (map[string]string, error) {
	answer, err := c.Do(ctx, Command{Name: "nodeset", Range: noderange, Args: []string{"stat"}})
	if err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, line := range answer.Lines {
		if line.Node != "" && line.Kind == Data {
			states[line.Node] = strings.TrimSpace(line.Text)
		}
	}
	return states, nil
}

// Arm makes a node install an osimage at its next boot from the net, and returns the new provisioning state.
func (c *Client) Arm(ctx context.Context, node, osimage string) (string, error) {
	return c.one(ctx, "nodeset", node, "osimage="+osimage)
}

// Disarm makes a node boot from its disk. It may be called again.
func (c *Client) Disarm(ctx context.Context, node string) error {
	state, err := c.one(ctx, "nodeset", node, "boot")
	if err == nil && state != "boot" {
		err = &Error{Kind: Other, Command: "nodeset " + node + " boot", Node: node, Text: fmt.Sprintf("the state is %q after it", state)}
	}
	return err
}

// BootNext sets what a node boots from next: "net" or "hd". uefi asks for an UEFI boot.
func (c *Client) BootNext(ctx context.Context, node, device string, uefi bool) error {
	args := []string{device}
	if uefi {
		args = append(args, "-u")
	}
	_, err := c.one(ctx, "rsetboot", node, args...)
	return err
}

// Power runs rpower and returns the node's line: "on" or "off" for stat; "on" or "reset" for boot. Only stat is to be
// believed: "reset" of a node that is off says "off" and does nothing, "on" of one that is on likewise.
func (c *Client) Power(ctx context.Context, node, action string) (string, error) {
	return c.one(ctx, "rpower", node, action)
}

// On says whether a node is powered on. openbmc says "on (Chassis)".
func (c *Client) On(ctx context.Context, node string) (bool, error) {
	text, err := c.Power(ctx, node, "stat")
	return text == "on" || strings.HasPrefix(text, "on "), err
}

// Services returns what nodestat sees of a node: services, "ping", "noping", or the provisioning state of one that answers a
// ping and has no service open.
func (c *Client) Services(ctx context.Context, node string) (string, error) {
	return c.one(ctx, "nodestat", node)
}

// Change sets attributes of a node, each "name=value".
func (c *Client) Change(ctx context.Context, node string, attributes ...string) error {
	_, err := c.Do(ctx, Command{Name: "chdef", Args: append([]string{"-t", "node", "-o", node}, attributes...)})
	return err
}

// ShareKnownHost writes the management node's shared SSH host key under a node's names into its known_hosts. xCAT rewrites
// that file without a lock: one at a time.
func (c *Client) ShareKnownHost(ctx context.Context, node string) error {
	_, err := c.Do(ctx, Command{Name: "makeknownhosts", Nodes: []string{node}, Quiet: true})
	return err
}

// Greet asks xcatd whether it knows us and lets us read: a row of the table nodelist that is not there.
func (c *Client) Greet(ctx context.Context) error {
	_, err := c.Do(ctx, Command{Name: "tabdump", Args: []string{"-w", "node==berth-asks-whether-you-are-there", "nodelist"}})
	return err
}
