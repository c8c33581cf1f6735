package xcatmn

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const rocky = "rocky9.4-x86_64-install-compute"

// start returns a management node like the one that the transcripts were taken of: four nodes, the last with a dead BMC.
func start(t *testing.T, changes ...func(*Options)) *Manager {
	t.Helper()
	options := Options{Speed: 1000, OSImages: []string{rocky, "alma9-x86_64-install-compute"}, Policy: []Row{{CN: "root"}, {CN: "reader", Commands: []string{"lsdef"}}},
		Passwords: map[string]string{"vclws": "vclpw"}}
	for i := range 4 {
		options.Nodes = append(options.Nodes, Node{Name: fmt.Sprintf("n%02d", i+1), Address: fmt.Sprintf("127.0.17.%d", 11+i)})
	}
	options.Nodes[3].Mode = BMCDead
	for _, change := range changes {
		change(&options)
	}
	m, err := Start(context.Background(), options)
	require.NoError(t, err)
	t.Cleanup(m.Close)
	return m
}

// dial connects as a client of that name; "" shows no certificate.
func dial(t *testing.T, m *Manager, cn string) *tls.Conn {
	t.Helper()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(m.CA))
	config := &tls.Config{RootCAs: pool, ServerName: hostname, MinVersion: tls.VersionTLS12}
	if cn != "" {
		pem, err := m.ClientCertificate(cn)
		require.NoError(t, err)
		certificate, err := tls.X509KeyPair(pem, pem)
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{certificate}
	}
	conn, err := tls.Dial("tcp", m.Address, config)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

// await reads up to the end of an answer, or of the connection.
func await(conn net.Conn) string {
	var all strings.Builder
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		all.WriteString(line)
		if err != nil || line == "</xcatresponse>\n" && strings.Contains(all.String(), "<serverdone>") {
			return all.String()
		}
	}
}

func ask(t *testing.T, m *Manager, cn, request string) string {
	t.Helper()
	conn := dial(t, m, cn)
	_, err := io.WriteString(conn, request+"\n")
	require.NoError(t, err)
	return await(conn)
}

// order writes a command of the node n01.
func order(words ...string) string {
	text := "<xcatrequest><command>" + words[0] + "</command><noderange>n01</noderange>"
	for _, word := range words[1:] {
		text += "<arg>" + word + "</arg>"
	}
	return text + "</xcatrequest>"
}

// documents returns the responses of an answer, sorted: xcatd answers node by node in any order.
func documents(answer string) []string {
	all := strings.SplitAfter(answer, "</xcatresponse>\n")
	slices.Sort(all)
	return all
}

func TestAnswersAreThoseOfARealXcatd(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../provisioners/xcat/xcatd/testdata/15-raw-xml-3001.txt")
	require.NoError(t, err)
	m := start(t)
	m.mu.Lock()
	n01, n02 := m.nodes["n01"], m.nodes["n02"]
	n01.on, n01.sshd, n01.currstate, n01.status, n01.statustime = true, true, "boot", "booted", "11-23-2026 18:15:38"
	n02.on = true
	n02.arm(m.images[rocky])
	m.mu.Unlock()
	replayed := 0
	for _, section := range strings.Split(string(text), "##### ")[1:] {
		title, rest, _ := strings.Cut(section, "\n")
		if strings.HasPrefix(title, "NO NEWLINE") {
			continue // it has a test of its own
		}
		var request, answer strings.Builder
		into := &strings.Builder{}
		for _, line := range strings.SplitAfter(rest, "\n") {
			switch {
			case strings.HasPrefix(line, ">>> "):
				into = &request
			case strings.HasPrefix(line, "<<< "), strings.HasPrefix(line, "(EOF)"):
				into = &answer
			case line != "\n":
				into.WriteString(line)
			}
		}
		cn := "root"
		if strings.Contains(title, "no client cert") || strings.HasPrefix(title, "no cert") {
			cn = ""
		}
		got := ask(t, m, cn, strings.TrimSuffix(request.String(), "\n"))
		require.Equal(t, documents(answer.String()), documents(got), title)
		replayed++
	}
	require.Greater(t, replayed, 20)
}

func TestCommandsSayWhatTheySay(t *testing.T) {
	t.Parallel()
	m := start(t)
	for _, step := range []struct {
		command string
		says    string
	}{
		{"rpower reset", "<contents>off</contents>"}, // and does nothing
		{"rpower off", "<contents>off</contents>"},
		{"rpower stat", "<contents>off</contents>"},
		{"rpower boot", "<contents>on</contents>"},
		{"rpower on", "<contents>on</contents>"}, // likewise
		{"rpower reset", "<contents>reset</contents>"},
		{"rpower boot", "<contents>reset</contents>"},
		{"rpower", "<data>n01: Please enter an action"},
		{"rsetboot bogus", "<error>unsupported command setboot bogus</error>"},
		{"rsetboot stat", "<contents>BIOS default</contents>"},
		{"rsetboot net -u", "<contents>Network</contents>"},
		{"rsetboot hd", "<contents>Hard Drive</contents>"},
		{"nodeset stat", "<data>offline</data>"},
		{"nodeset install", "have been deprecated, use &quot;osimage=&lt;osimage_name&gt;&quot; instead.</error>"},
		{"nodeset frob", "<error>Unknown state frob requested</error>"},
		{"nodeset", "<error>Invalid argument: ''</error>"},
		{"nodeset osimage=" + rocky, "<data>install rocky9.4-x86_64-compute</data>"},
		{"nodeset boot", "<data>boot</data>"},
		{"chdef -t node -o nosuch99 usercomment=x", "<error>Attribute 'groups' is not specified for node 'nosuch99', skipping to the next node.</error>"},
		{"lsdef -t osimage -o nosuchimg", "<error>Could not find an object named 'nosuchimg' of type 'osimage'.</error>"},
		{"lsdef -t osimage -o " + rocky + " -i provmethod,osarch", "<info>    osarch=x86_64</info>\n  <info>    provmethod=install</info>"},
		{"makeknownhosts", "<xcatresponse>\n  <serverdone></serverdone>"},
	} {
		require.Contains(t, ask(t, m, "root", order(strings.Fields(step.command)...)), step.says, step.command)
	}
	require.Equal(t, Counts{PowerOns: 1, Resets: 2, Nodesets: 1}, m.Counts("n01"))
	require.Equal(t, 1, m.MostArmed())
}

func TestMakeknownhostsWritesTheSharedKeyUnderANodesNames(t *testing.T) {
	t.Parallel()
	m := start(t)
	for range 2 { // the old line goes
		ask(t, m, "root", order("makeknownhosts"))
		require.Len(t, m.KnownHosts(), 1)
		require.Regexp(t, `^n01,n01\.cluster\.test,127\.0\.17\.11 ssh-rsa AAAA\S+ $`, m.KnownHosts()[0])
	}
	ask(t, m, "root", order("makeknownhosts", "-d"))
	require.Empty(t, m.KnownHosts())
}

func TestThePolicyDeniesWhatNoRowAllows(t *testing.T) {
	t.Parallel()
	m := start(t)
	require.NotContains(t, ask(t, m, "reader", order("lsdef", "-t", "node", "-o", "n01")), "<error>")
	require.Contains(t, ask(t, m, "reader", order("rpower", "boot")), "Permission denied for request")
	require.Contains(t, ask(t, m, "stranger", order("lsdef", "-t", "node", "-o", "n01")), "Permission denied for request")
	require.False(t, m.State("n01").Power)
}

func TestARequestWithoutANewlineIsWaitedFor(t *testing.T) {
	t.Parallel()
	conn := dial(t, start(t), "root")
	_, err := io.WriteString(conn, order("nodels"))
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestOnlyAnAbortStopsACommand(t *testing.T) {
	t.Parallel()
	m := start(t, func(o *Options) { o.Nodes[0].Mode, o.Nodes[1].Mode, o.Speed = Slow, Slow, 10 }) // a command takes three seconds
	told := func(command string) func() bool {
		return func() bool {
			return slices.ContainsFunc(m.History(), func(line string) bool { return strings.HasPrefix(line, command) })
		}
	}
	aborted := dial(t, m, "root")
	_, err := io.WriteString(aborted, order("nodeset", "osimage="+rocky)+"\n")
	require.NoError(t, err)
	_, err = io.WriteString(aborted, "<xcatrequest><abortcommand>1</abortcommand></xcatrequest>\n")
	require.NoError(t, err)
	require.Empty(t, await(aborted))
	require.True(t, told("aborted: nodeset n01")())

	left := dial(t, m, "root")
	_, err = io.WriteString(left, strings.ReplaceAll(order("nodeset", "osimage="+rocky), "n01", "n02")+"\n")
	require.NoError(t, err)
	require.Eventually(t, told("nodeset n02"), time.Minute, time.Millisecond)
	require.NoError(t, left.Close())
	require.Eventually(t, func() bool { return m.State("n02").Armed() }, time.Minute, time.Millisecond, "the command went on without its client")
	require.False(t, m.State("n01").Armed())
}

func TestTheMonitorPortKnowsNodesByTheirAddress(t *testing.T) {
	t.Parallel()
	m := start(t)
	say := func(from, line string) string {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", m.Monitor)
		require.NoError(t, err)
		defer conn.Close()
		_, _ = io.WriteString(conn, line+"\n")
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	status := func() string { return m.State("n03").Status }
	require.Equal(t, "ready\ndone\n", say("127.0.17.13", "installstatus booted"))
	require.Eventually(t, func() bool { return status() == "booted" }, time.Minute, time.Millisecond)
	require.Equal(t, "ready\ndone\n", say("127.0.17.13", "installstatus frobbed"))
	require.Empty(t, say("127.0.17.99", "installstatus failed"))
	require.Equal(t, "ready\ndone\n", say("127.0.17.13", "next"))
	require.Eventually(t, func() bool { return m.State("n03").Currstate == "boot" }, time.Minute, time.Millisecond)
	require.Equal(t, "booting", status())
}

func TestTheSystemOfANodeFollowsItsPower(t *testing.T) {
	t.Parallel()
	events := make(chan string, 10)
	m := start(t, func(o *Options) {
		o.Nodes[0].OS = func(boot Boot) func() {
			events <- "starts " + boot.OSImage
			return func() { events <- "stops" }
		}
	})
	for _, command := range []string{"nodeset osimage=" + rocky, "rsetboot net", "rpower boot"} {
		require.NotContains(t, ask(t, m, "root", order(strings.Fields(command)...)), "rror")
	}
	require.Equal(t, "starts "+rocky, <-events)
	require.Equal(t, Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, m.Counts("n01"))
	ask(t, m, "root", order("rpower", "reset")) // it boots from its disk: no second install
	require.Equal(t, "stops", <-events)
	require.Equal(t, "starts "+rocky, <-events)
	require.Equal(t, 1, m.Counts("n01").Installs)
	ask(t, m, "root", order("rpower", "off"))
	require.Equal(t, "stops", <-events)
}
