package workflows

import (
	"errors"
	"fmt"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/reservation"
)

// phaseAttributes are the search attributes that change in a reservation's life.
type phaseAttributes struct {
	phase   reservation.Phase
	attempt int
	outcome reservation.Outcome
	named   bool // the attributes that never change are set
}

// attributesAtStart returns what the workflow was started with. One that was started by hand has no attributes yet.
func attributesAtStart(ctx workflow.Context, r reservation.Reservation) phaseAttributes {
	set := workflow.GetTypedSearchAttributes(ctx)
	if name, ok := set.GetKeyword(SearchAttributes().Reservation); !ok || name != r.Name {
		return phaseAttributes{}
	}
	return phaseAttributes{phase: reservation.PhaseLoad, attempt: 1, named: true}
}

// enter enters a phase: in the status, the search attributes and the current details. Attributes that stay the same are
// not upserted, because every upsert costs an event.
func (l *life) enter(ctx workflow.Context, phase reservation.Phase) {
	l.status.Phase = phase
	attributes := SearchAttributes()
	var updates []temporal.SearchAttributeUpdate
	if !l.upserted.named {
		updates = attributes.AtStart(l.r)
	}
	if l.upserted.phase != phase {
		updates = append(updates, attributes.Phase.ValueSet(string(phase)))
	}
	if l.upserted.attempt != l.status.Attempt.Number {
		updates = append(updates, attributes.Attempt.ValueSet(int64(l.status.Attempt.Number)))
	}
	if l.upserted.outcome != l.status.Outcome {
		updates = append(updates, attributes.Outcome.ValueSet(string(l.status.Outcome)))
	}
	l.upserted = phaseAttributes{phase: phase, attempt: l.status.Attempt.Number, outcome: l.status.Outcome, named: true}
	if len(updates) > 0 {
		if err := workflow.UpsertTypedSearchAttributes(ctx, updates...); err != nil {
			workflow.GetLogger(ctx).Error("search attributes not set", "reservation", l.r.Name, "error", err.Error())
		}
	}
	l.describe(ctx)
}

// describe renders the status as the current details that the Web UI shows.
func (l *life) describe(ctx workflow.Context) { workflow.SetCurrentDetails(ctx, Details(l.status)) }

// maxDetails is below the server's limit for current details (limit.userMetadataDetailsSize: 20,000 bytes).
const maxDetails = 16_000

// Details renders a status as the Markdown that the Web UI shows: where the reservation stands, and a table of its phases
// and their stages with times (UTC).
func Details(s reservation.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "**%s**, %s", s.Phase, s.Attempt)
	if s.Outcome != "" && string(s.Outcome) != string(s.Phase) {
		fmt.Fprintf(&b, ", %s", s.Outcome)
	}
	fmt.Fprintf(&b, ". Ends %s UTC.", s.End.Format("2006-01-02 15:04"))
	if s.HostKey != "" {
		fmt.Fprintf(&b, " Host key `%s`.", s.HostKey)
	}
	if s.PublicAddress != "" {
		fmt.Fprintf(&b, " Public address %s.", s.PublicAddress)
	}
	b.WriteString("\n\n")
	if s.Reason != "" {
		fmt.Fprintf(&b, "> %s\n\n", oneLine(s.Reason))
	}
	b.WriteString("| attempt | phase or stage | began | took | result |\n|---|---|---|---|---|\n")
	for _, p := range s.Phases {
		result := string(p.Verdict)
		switch {
		case p.Ended.IsZero():
			result = "running, limit " + p.Limit.String()
		case p.Reason != "":
			result = strings.TrimPrefix(result+": "+cell(p.Reason), ": ")
		}
		if p.Lost > 0 {
			result += fmt.Sprintf(" (tried again %d times)", p.Lost)
		}
		fmt.Fprintf(&b, "| %d | **%s** | %s | %s | %s |\n", p.Attempt, p.Phase, clock(p.Began), took(p.Began, p.Ended), result)
		for _, stage := range p.Stages {
			if b.Len() > maxDetails {
				break
			}
			fmt.Fprintf(&b, "| | %s | %s | %s | %s |\n", cell(stage.Name), clock(stage.Began), took(stage.Began, stage.Ended), cell(stage.Detail))
		}
	}
	return b.String()
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

func took(began, ended time.Time) string {
	if ended.IsZero() {
		return ""
	}
	return ended.Sub(began).Round(100 * time.Millisecond).String()
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func cell(text string) string { return strings.ReplaceAll(oneLine(text), "|", "\\|") }

// count counts a load's outcome.
func (l *life) count(ctx workflow.Context, outcome reservation.Outcome) {
	workflow.GetMetricsHandler(ctx).WithTags(map[string]string{
		"provisioner": l.r.Computer.Provisioner, "os": string(l.r.Image.OS.Family), "outcome": string(outcome),
	}).Counter("berth_loads").Inc(1)
}

// Why an attempt is lost, as the metrics tell it: few values, whatever the modules say.
const (
	reasonModule = "module"      // the module said so
	reasonLimit  = "limit"       // the phase outlived its limit
	reasonLost   = "lost-worker" // its worker was lost, and no time was left for another
	reasonFaults = "faults"      // faults of ours until its time was up
)

// reloadReason returns why what an activity ended with costs an attempt, if it does.
func reloadReason(err error) string {
	var timeout *temporal.TimeoutError
	var application *temporal.ApplicationError
	switch {
	case errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_HEARTBEAT:
		return reasonLost
	case errors.As(err, &timeout), errors.As(err, &application) && strings.HasPrefix(application.Message(), activities.Outlived):
		return reasonLimit
	case errors.As(err, &application) && application.Type() == activities.TypeReload:
		return reasonModule
	default:
		return reasonFaults
	}
}

// measure records how long a phase took, and counts reloads by their reason.
func (l *life) measure(ctx workflow.Context, record reservation.PhaseRecord, reason string) {
	verdict := string(record.Verdict)
	if verdict == "" {
		verdict = "none"
	}
	handler := workflow.GetMetricsHandler(ctx)
	handler.WithTags(map[string]string{
		"phase": string(record.Phase), "provisioner": l.r.Computer.Provisioner, "os": string(l.r.Image.OS.Family),
		"image": l.r.Image.String(), "verdict": verdict,
	}).Timer("berth_phase").Record(record.Ended.Sub(record.Began))
	if record.Verdict == reservation.VerdictReload {
		stage := ""
		if n := len(record.Stages); n > 0 {
			stage = record.Stages[n-1].Name
		}
		handler.WithTags(map[string]string{
			"provisioner": l.r.Computer.Provisioner, "phase": string(record.Phase), "image": l.r.Image.String(), "stage": stage, "reason": reason,
		}).Counter("berth_reloads").Inc(1)
	}
}
