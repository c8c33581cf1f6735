package xcatmn

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// seen is what a look at a node shows. A blank status is no reading.
type seen struct{ nodestat, currstate, status string }

// life is a transcript of a load: what was typed and answered, each look at the node, and what the machine noted itself.
type life struct {
	node    string
	answers []string
	looks   []seen
	log     []string
}

func readLife(t *testing.T, file string) life {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "provisioners", "xcat", "xcatd", "testdata", file))
	require.NoError(t, err)
	look := regexp.MustCompile(`^\+\d+s nodestat=\[(\S+): (.*?) ?\] currstate=(.*) status=(.*)$`)
	noted := regexp.MustCompile(`^\d\d:\d\d:\d\d (.*)$`)
	var l life
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if found := look.FindStringSubmatch(line); found != nil {
			l.node = found[1]
			l.looks = append(l.looks, seen{found[2], found[3], strings.TrimSpace(found[4])})
		} else if found := noted.FindStringSubmatch(line); found != nil {
			if said, _, _ := strings.Cut(found[1], " mode "); !strings.HasPrefix(said, "stat query") {
				l.log = append(l.log, said)
			}
		} else if answer, ok := strings.CutPrefix(line, "stdout: [vm]: "); ok {
			l.answers = append(l.answers, answer)
		}
	}
	require.NotEmpty(t, l.looks, file)
	return l
}

// The loads of the transcripts happen to the simulated machines as they happened to those beside a real xcatd: each look at the
// node, in its order, and each line of the machine's own log.
func TestALoadGoesAsInItsTranscript(t *testing.T) {
	for file, c := range map[string]struct {
		mode   Mode
		modern bool // the installer answers on 3054, where nodestat does not look
		on     bool // the node was on before
	}{
		"06-load-ok-rinstall.txt": {mode: Works},
		"07-load-hang.txt":        {mode: Hangs, on: true},
		"08-load-nopxe.txt":       {mode: NoPXE},
		"09-load-postfail.txt":    {mode: PostFails},
		"10-load-nocallback.txt":  {mode: NeverCallsBack, on: true},
		"11-load-bmcfail.txt":     {mode: BMCRefuses, on: true},
		"13-load-ownkeys.txt":     {mode: OwnHostKeys, on: true},
		"21-load-modern-3054.txt": {mode: Works, modern: true},
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			want := readLife(t, file)
			var mu sync.Mutex
			var recorded []seen
			over := make(chan struct{})
			m := start(t, func(o *Options) {
				if o.Speed = 600; !c.modern {
					o.InstallerPort = 3001
				}
				for i := range o.Nodes {
					o.Nodes[i].Address = strings.Replace(o.Nodes[i].Address, "127.0.17.", "127.0.1"+file[:2]+".", 1)
					o.Nodes[i].Mode = c.mode
				}
			})
			last := want.looks[len(want.looks)-1]
			m.mu.Lock()
			n := m.nodes[want.node]
			n.on = c.on
			m.mu.Unlock()
			for i, command := range []string{"nodeset osimage=" + rocky, "rsetboot net", "rpower boot"} {
				if command == "rpower boot" {
					m.mu.Lock()
					m.observe = func(one *machine) {
						if one != n {
							return
						}
						mu.Lock()
						defer mu.Unlock()
						now := seen{n.services(true), n.currstate, n.status}
						if len(recorded) == 0 || recorded[len(recorded)-1] != now {
							recorded = append(recorded, now)
						}
						if now == last {
							select {
							case <-over:
							default:
								close(over)
							}
						}
					}
					m.mu.Unlock()
				}
				answer := ask(t, m, "root", strings.ReplaceAll(order(strings.Fields(command)...), "n01", want.node))
				if len(want.answers) > 0 { // the run with -V says what each command said, after "Run command: ..."
					_, says, _ := strings.Cut(want.answers[2+2*i], ": ")
					require.Contains(t, answer, ">"+says+"<", command)
				}
			}
			select {
			case <-over:
			case <-time.After(time.Minute):
				mu.Lock()
				require.FailNow(t, "the load does not end as in the transcript", "%q\n%s", recorded, strings.Join(m.History(), "\n"))
			}
			mu.Lock()
			got := slices.Clone(recorded)
			mu.Unlock()
			at := 0
			for i, one := range want.looks {
				// nodestat was asked first, so the rest may be of the moment after.
				fits := func(nodestat, rest seen) bool {
					return nodestat.nodestat == one.nodestat && rest.currstate == one.currstate && (one.status == "" || rest.status == one.status)
				}
				for at < len(got) && !fits(got[at], got[at]) && !fits(got[at], got[min(at+1, len(got)-1)]) {
					at++
				}
				require.Less(t, at, len(got), "look %d, %+v, is none of what followed the looks before: %+v", i+1, one, got)
			}
			var log []string
			require.Eventually(t, func() bool {
				log = nil
				for _, line := range m.History() {
					if said, ok := strings.CutPrefix(line, want.node+": "); ok {
						log = append(log, said)
					}
				}
				return len(log) >= len(want.log)
			}, time.Minute, time.Millisecond, "%q", log)
			for i, said := range want.log {
				if strings.HasPrefix(said, "sshd up, keys from /root/sim") {
					want.log[i] = "sshd up, keys of its own"
				}
			}
			require.Equal(t, want.log, log)
		})
	}
}
