package loadlog

import (
	"fmt"
	"io"
	"strings"
	"time"

	"berth/reservation"
)

// Line returns what fits on one line of a view: name, computer, state, attempt, time and a remark. Live lines and
// lists are made of it.
func (v View) Line(style Style) []Cell {
	state, paint := v.state()
	attempt := v.Attempt.String()
	if v.Attempt.Of == 0 {
		attempt = ""
	}
	return []Cell{
		{Clean(v.Reservation), Strong}, {Clean(v.Computer), Plain}, {state, paint},
		{strings.TrimPrefix(attempt, "attempt "), Plain}, {v.spent(style.Now), Plain}, v.remark(style),
	}
}

// LineHeader names the columns of Line.
func LineHeader() []string {
	return []string{"RESERVATION", "COMPUTER", "STATE", "ATTEMPT", "TIME", "DOING"}
}

// LineWidths returns the columns' widths that the longest usual state, attempt and time need, so that live lines do not
// move when these change.
func LineWidths() []int {
	return []int{0, 0, len("post-load"), len("attempt"), len("59m59s of 1h30m")}
}

// state returns the phase of a reservation that goes on and the outcome of one that is over.
func (v View) state() (string, Paint) {
	if v.Over() {
		outcome := string(v.Outcome)
		switch {
		case v.Bad():
			return outcome, Bad
		case v.Outcome == reservation.OutcomeCancelled:
			return outcome, Warn
		default:
			return outcome, Good
		}
	}
	if v.Phase == reservation.PhaseReady {
		return string(v.Phase), Good
	}
	if v.Live != nil && v.Live.Trouble != "" {
		return string(v.Phase), Warn
	}
	return string(v.Phase), Plain
}

// spent returns the running phase's time of its limit; how long it took to be ready; how long it was.
func (v View) spent(now time.Time) string {
	switch {
	case v.Live != nil:
		return OfLimit(v.Live.Elapsed, v.Live.Limit)
	case v.Over() && !v.Ended.IsZero():
		return Span(v.Ended.Sub(v.Began))
	case v.Phase == reservation.PhaseReady && !v.Ready.IsZero():
		return "after " + Span(v.Ready.Sub(v.Began))
	case v.Began.IsZero():
		return ""
	}
	// Between two phases nothing is pending for a moment, and a phase that was just begun has no heartbeat yet.
	if n := len(v.Phases); n > 0 && v.Phases[n-1].Ended.IsZero() {
		return OfLimit(rounded(now.Sub(v.Phases[n-1].Began)), v.Phases[n-1].Limit)
	}
	return Span(now.Sub(v.Began))
}

func (v View) remark(style Style) Cell {
	switch {
	case v.Over():
		paint := Plain
		if v.Bad() {
			paint = Bad
		}
		reason := Clean(v.Reason)
		if reason == string(v.Outcome) {
			reason = ""
		}
		return Cell{reason, paint}
	case v.Live != nil && v.Live.Trouble != "":
		// The trouble comes first: a live line is cut at the terminal's edge.
		text := Clean(v.Live.Trouble)
		if what := v.Live.what(); what != "" {
			text += "; at " + what
		}
		return Cell{text, Warn}
	case v.Live != nil:
		text := v.Live.what()
		if v.Live.Try > 1 {
			text = strings.TrimPrefix(fmt.Sprintf("%s (try %d)", text, v.Live.Try), " ")
		}
		return Cell{text, Plain}
	case v.Phase == reservation.PhaseReady:
		return Cell{"until " + style.ClockAndSpan(v.End), Plain}
	default:
		return Cell{}
	}
}

// what returns the stage and its detail.
func (l *Live) what() string {
	text := Clean(l.Stage)
	if l.Detail != "" {
		text += ": " + Clean(l.Detail)
	}
	return text
}

// remarks returns what is wrong, or was, with a running phase.
func (l *Live) remarks() []string {
	var remarks []string
	if l.Trouble != "" {
		remarks = append(remarks, Clean(l.Trouble))
	}
	if l.Try > 1 && l.State != StateRetrying {
		text := fmt.Sprintf("try %d", l.Try)
		if l.Worker != "" {
			text += " on worker " + Clean(l.Worker)
		}
		if l.Fault != "" {
			text += "; what ended the try before: " + faultWords(l.Fault)
		}
		remarks = append(remarks, text)
	}
	return remarks
}

// faultWords puts the server's words for a missed heartbeat into ours.
func faultWords(fault string) string {
	if strings.Contains(strings.ToLower(fault), "heartbeat timeout") {
		return "the worker was lost"
	}
	return fault
}

// Show writes everything that is known of a reservation: what it is, and the table of its phases, their stages and
// steps with times.
func (v View) Show(w io.Writer, style Style) error {
	state, paint := v.state()
	heading := style.Paint(Strong, Clean(v.Reservation)) + "  " + style.Paint(paint, state)
	if v.Attempt.Of > 0 {
		heading += ", " + v.Attempt.String()
	}
	if remark := v.remark(style); remark.Text != "" && (v.Over() || v.Live != nil) {
		heading += "\n  " + style.Paint(remark.Paint, remark.Text)
	}
	if _, err := fmt.Fprintln(w, heading); err != nil {
		return err
	}
	facts := Table{Indent: "  "}
	fact := func(name, value string) {
		if value != "" {
			facts.Row(Cell{name, Faint}, Cell{Clean(value), Plain})
		}
	}
	fact("user", v.User)
	fact("image", withBrackets(v.Image, v.OS))
	fact("computer", withBrackets(v.Computer, strings.TrimSpace(v.Provisioner+" "+v.Site)))
	fact("address", v.Address)
	fact("public address", v.PublicAddress)
	fact("host key", v.HostKey)
	fact("reserved", style.ClockAndSpan(v.Began))
	if !v.Ready.IsZero() {
		fact("ready", style.Clock(v.Ready)+", after "+Span(v.Ready.Sub(v.Began)))
	}
	if v.Over() {
		fact("over", style.ClockAndSpan(v.Ended))
	} else {
		fact("ends", style.ClockAndSpan(v.End))
	}
	fact("queue", v.Queue)
	fact("workflow", v.WorkflowID+", run "+v.RunID)
	if err := facts.Write(w, style); err != nil {
		return err
	}
	if len(v.Phases) > 0 {
		phases := v.phaseTable(style)
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := phases.Write(w, style); err != nil {
			return err
		}
	}
	for _, note := range v.Notes {
		if _, err := fmt.Fprintln(w, "\n"+style.Paint(Warn, "note: "+Clean(note))); err != nil {
			return err
		}
	}
	return nil
}

func withBrackets(text, more string) string {
	if more == "" {
		return text
	}
	return text + " (" + more + ")"
}

func (v View) phaseTable(style Style) Table {
	table := Table{Header: []string{"ATTEMPT", "PHASE", "BEGAN", "TOOK", "RESULT"}}
	attempt := 0
	for _, p := range v.Phases {
		number := ""
		if p.Attempt != attempt {
			number, attempt = fmt.Sprint(p.Attempt), p.Attempt
		}
		var took, result string
		paint := Plain
		switch {
		case !p.Ended.IsZero():
			took = Span(p.Ended.Sub(p.Began))
			result, paint = verdictText(p)
		case v.Over():
			result = "not ended"
		default:
			took = OfLimit(rounded(style.Now.Sub(p.Began)), p.Limit)
			result, paint = "running", Strong
			if v.Live != nil && v.Live.Phase == p.Phase {
				if remarks := v.Live.remarks(); len(remarks) > 0 {
					result, paint = strings.Join(remarks, "; "), Warn
				}
			}
		}
		if p.Lost > 0 && !p.Ended.IsZero() {
			result += fmt.Sprintf(" (tried again %s)", times(p.Lost))
		}
		table.Row(Cell{number, Strong}, Cell{string(p.Phase), Strong}, Cell{style.Clock(p.Began), Plain}, Cell{took, Plain}, Cell{Clean(result), paint})
		for _, stage := range p.Stages {
			took := ""
			switch {
			case !stage.Ended.IsZero():
				took = Span(stage.Ended.Sub(stage.Began))
			case p.Ended.IsZero() && !v.Over():
				took = Span(style.Now.Sub(stage.Began))
			}
			table.Row(Cell{}, Cell{"  " + Clean(stage.Name), Plain}, Cell{style.Clock(stage.Began), Plain}, Cell{took, Plain}, Cell{Clean(stage.Detail), Plain})
		}
		for _, step := range p.Steps {
			took := ""
			if step.Took > 0 {
				took = Span(step.Took.Std())
			}
			text := string(step.Result)
			if step.Detail != "" {
				text += ": " + Clean(step.Detail)
			}
			table.Row(Cell{}, Cell{"  - " + Clean(step.Name), Plain}, Cell{}, Cell{took, Plain}, Cell{text, stepPaint(step.Result)})
		}
	}
	return table
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func verdictText(p reservation.PhaseRecord) (string, Paint) {
	paint := Plain
	switch p.Verdict {
	case reservation.VerdictDone:
		paint = Good
	case reservation.VerdictReload:
		paint = Warn
	case reservation.VerdictFail:
		paint = Bad
	}
	text := string(p.Verdict)
	if p.Reason != "" {
		text = strings.TrimPrefix(text+": "+p.Reason, ": ")
	}
	return text, paint
}

func stepPaint(result reservation.StepResult) Paint {
	switch result {
	case reservation.StepFailed:
		return Bad
	case reservation.StepWarned:
		return Warn
	case reservation.StepSkipped:
		return Faint
	default:
		return Plain
	}
}

// Write writes the load log as text, one entry a line.
func (l Log) Write(w io.Writer, style Style) error {
	table := Table{}
	var day time.Time
	for _, e := range l.Entries {
		clock := ""
		if !e.Time.IsZero() {
			local := e.Time.In(style.Now.Location())
			if !sameDay(local, day) {
				if day.IsZero() && sameDay(local, style.Now) {
					day = local
				} else {
					day = local
					table.Row(Cell{local.Format("2006-01-02"), Faint})
				}
			}
			clock = local.Format("15:04:05.000")
		}
		attempt := ""
		if e.Attempt > 0 {
			attempt = fmt.Sprint(e.Attempt)
		}
		took := ""
		if e.Took > 0 {
			took = Span(e.Took.Std())
		}
		what, paint := e.Text, Plain
		switch e.Kind {
		case KindStage:
			what = "  " + what
		case KindStep:
			what = "  - " + what
		case KindVerdict:
			_, paint = verdictText(reservation.PhaseRecord{Verdict: e.Verdict})
		case KindLost:
			paint = Warn
		case KindReserved, KindReady, KindAsked, KindEnded:
			what = string(e.Kind) + ": " + what
			paint = Strong
		}
		table.Row(Cell{clock, Plain}, Cell{attempt, Faint}, Cell{string(e.Phase), Faint}, Cell{took, Plain}, Cell{what, paint})
	}
	table.Header = []string{"TIME", "ATTEMPT", "PHASE", "TOOK", "WHAT"}
	return table.Write(w, style)
}
