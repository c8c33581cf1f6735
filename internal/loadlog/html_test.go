package loadlog

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"

	"berth/reservation"
)

// nodes returns the page's elements of a name, with all that is text in each.
func nodes(t *testing.T, page []byte, name string) (elements []*html.Node, texts []string) {
	t.Helper()
	root, err := html.Parse(bytes.NewReader(page))
	require.NoError(t, err)
	for n := range root.Descendants() {
		if n.Type != html.ElementNode || n.Data != name {
			continue
		}
		var text strings.Builder
		for inner := range n.Descendants() {
			if inner.Type == html.TextNode {
				text.WriteString(inner.Data)
			}
		}
		elements, texts = append(elements, n), append(texts, text.String())
	}
	return elements, texts
}

func TestThePageOfALoadTellsWhatItsLogTells(t *testing.T) {
	for name, events := range goldenHistories(t, "testdata/*.json") {
		t.Run(name, func(t *testing.T) {
			log := Read(events)
			view := View{Status: log.Status, WorkflowID: "computer/" + log.Status.Computer, RunID: "019ab"}
			style := Style{Now: events[len(events)-1].GetEventTime().AsTime().Add(time.Minute).In(time.FixedZone("CET", 3600))}
			var page bytes.Buffer
			require.NoError(t, log.WriteHTML(&page, view, style))

			_, rows := nodes(t, page.Bytes(), "tr")
			stages := 0
			for _, e := range log.Entries {
				require.True(t, slices.ContainsFunc(rows, func(row string) bool { return strings.HasSuffix(row, e.Text) }), e.Text)
			}
			for _, p := range view.Phases {
				stages += len(p.Stages)
			}
			_, heads := nodes(t, page.Bytes(), "h2")
			bars, _ := nodes(t, page.Bytes(), "i")
			require.Len(t, bars, len(view.Phases)+stages)
			require.Len(t, rows, len(bars)+len(heads)+len(log.Entries), "each table has one heading")
			for _, fact := range []string{view.Computer, view.Image, "computer/" + view.Computer, "019ab", Clean(view.Reason)} {
				require.Contains(t, html.UnescapeString(page.String()), fact)
			}
		})
	}
}

// What a guest says ends up on the page, and the page on the screens of those who read the ticket.
func TestThePageIsWholeAndRunsNothing(t *testing.T) {
	const evil = `<script>alert(1)</script><img src=x onerror=alert(1)>"'>`
	began := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	stage := reservation.Stage{Name: evil, Detail: evil, Began: began, Ended: began.Add(-time.Hour)} // a clock that was set back
	view := View{WorkflowID: evil, RunID: evil, Status: reservation.Status{Reservation: evil, Computer: evil, Image: evil, User: evil, Reason: evil, HostKey: evil,
		Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeFailed, Began: began, Ended: began, Attempt: reservation.Attempt{Number: 1, Of: 3},
		Phases: []reservation.PhaseRecord{{Attempt: 1, Phase: reservation.PhaseLoad, Began: began, Verdict: reservation.VerdictFail, Reason: evil, Worker: evil, Stages: []reservation.Stage{stage}}}}}
	log := Log{Status: view.Status, Entries: []Entry{{Time: began, Kind: KindStage, Text: evil}, {Kind: KindVerdict, Text: evil, Verdict: reservation.VerdictFail}}}
	var page bytes.Buffer
	require.NoError(t, log.WriteHTML(&page, view, Style{Now: began}))

	reader := html.NewTokenizer(&page)
	for {
		kind := reader.Next()
		if kind == html.ErrorToken {
			require.Equal(t, io.EOF, reader.Err())
			break
		}
		token := reader.Token()
		if kind != html.StartTagToken && kind != html.SelfClosingTagToken {
			continue
		}
		require.NotContains(t, []string{"script", "img", "link", "iframe", "object", "embed", "base", "form"}, token.Data)
		for _, a := range token.Attr {
			require.NotContains(t, []string{"src", "href", "srcset", "action"}, a.Key, "the page needs nothing from elsewhere")
			require.False(t, strings.HasPrefix(a.Key, "on"), a.Key)
			require.NotContains(t, a.Val, "alert")
			require.NotContains(t, a.Val, "ZgotmplZ", "the template could not show a value there")
		}
	}
}
