package commands

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"berth/internal/loadlog"
)

// display shows reservations while they are watched.
type display interface {
	// update shows what has changed.
	update(views []loadlog.View) error
	// say shows one sentence about the watching itself.
	say(text string) error
	// end shows how all of them stand when the watching is over.
	end(views []loadlog.View) error
}

// changeOf is what a line is written for when it changes: not for times, and not for details such as percentages.
func changeOf(v loadlog.View) string {
	change := fmt.Sprint(v.Phase, "/", v.Attempt.Number, "/", v.Outcome, "/", v.Live.Signature())
	if v.Live == nil {
		change += v.End.String()
	}
	return change
}

// liveDisplay returns the display for w: lines in place on a terminal, one line a change otherwise.
func (s *session) liveDisplay(w io.Writer) display {
	if _, _, ok := s.Terminal(w); ok && s.Env("TERM") != "dumb" {
		return &screen{session: s, w: w}
	}
	return &lines{session: s, w: w, last: map[string]string{}}
}

// screen redraws its lines in place.
type screen struct {
	*session
	w     io.Writer
	drawn int
	said  string
}

func (d *screen) update(views []loadlog.View) error {
	width, height, _ := d.Terminal(d.w)
	table := loadlog.Table{Header: loadlog.LineHeader(), Width: width - 1, Widths: loadlog.LineWidths()}
	style := d.style(d.w)
	room := height - 3 // the heading, what is said, and the line that the cursor stands in
	shown := mostInteresting(views, room)
	for _, v := range shown {
		table.Row(v.Line(style)...)
	}
	frame := table.Lines(style)
	if hidden := len(views) - len(shown); hidden > 0 {
		frame = append(frame, style.Paint(loadlog.Faint, fmt.Sprintf("... and %d more", hidden)))
	}
	if d.said != "" {
		frame = append(frame, style.Paint(loadlog.Warn, d.said))
	}
	return d.draw(frame)
}

// draw puts a frame in place of the one before it.
func (d *screen) draw(frame []string) error {
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", d.drawn)
	}
	for _, line := range frame {
		b.WriteString("\r" + line + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	d.drawn = len(frame)
	_, err := io.WriteString(d.w, b.String())
	return err
}

func (d *screen) say(text string) error {
	d.said = text
	return nil
}

func (d *screen) end(views []loadlog.View) error {
	// The last frame was cut at the terminal's edge; what stays is whole.
	if err := d.draw(nil); err != nil {
		return err
	}
	return writeLines(d.w, d.style(d.w), views)
}

// mostInteresting returns at most room views, in their order: those that go on before those that are over or ready.
func mostInteresting(views []loadlog.View, room int) []loadlog.View {
	room = max(room, 1)
	if len(views) <= room {
		return views
	}
	room = max(room-1, 1) // one line says how many are missing
	going := 0
	for _, v := range views {
		if v.Live != nil {
			going++
		}
	}
	resting := max(room-going, 0)
	shown := make([]loadlog.View, 0, room)
	for _, v := range views {
		if v.Live == nil {
			if resting == 0 {
				continue
			}
			resting--
		}
		if len(shown) < room {
			shown = append(shown, v)
		}
	}
	return shown
}

// lines writes one line a change.
type lines struct {
	*session
	w      io.Writer
	last   map[string]string // by run
	widths []int
}

func (d *lines) update(views []loadlog.View) error {
	style := d.style(d.w)
	// Lines are written one by one and cannot be put right later: room for the longest state, attempt and time is kept
	// from the start.
	if d.widths == nil {
		d.widths = append([]int{len("15:04:05")}, loadlog.LineWidths()...)
	}
	for _, v := range views {
		d.widths[1] = max(d.widths[1], len(v.Reservation))
		d.widths[2] = max(d.widths[2], len(v.Computer))
	}
	for _, v := range views {
		change := changeOf(v)
		if d.last[v.RunID] == change {
			continue
		}
		d.last[v.RunID] = change
		table := loadlog.Table{Widths: d.widths}
		table.Row(append([]loadlog.Cell{{Text: d.Now().Format("15:04:05")}}, v.Line(style)...)...)
		if err := table.Write(d.w, style); err != nil {
			return err
		}
	}
	return nil
}

func (d *lines) say(text string) error {
	if text == "" {
		return nil
	}
	_, err := fmt.Fprintln(d.w, d.Now().Format("15:04:05")+"  "+text)
	return err
}

func (d *lines) end(views []loadlog.View) error {
	if _, err := fmt.Fprintln(d.w); err != nil {
		return err
	}
	return writeLines(d.w, d.style(d.w), views)
}

// objects writes one JSON object a line and a change.
type objects struct {
	*session
	last map[string]string
}

func (d *objects) update(views []loadlog.View) error {
	for _, v := range views {
		change := changeOf(v)
		if d.last[v.RunID] == change {
			continue
		}
		d.last[v.RunID] = change
		if err := json.NewEncoder(d.Stdout).Encode(v); err != nil {
			return err
		}
	}
	return nil
}

func (d *objects) say(text string) error {
	if text != "" {
		d.warn(text, "")
	}
	return nil
}

func (d *objects) end([]loadlog.View) error { return nil }

// progressOnly shows changes and nothing at the end: what is printed then goes elsewhere.
type progressOnly struct{ display }

func (d progressOnly) end([]loadlog.View) error { return nil }
