package xcatd

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority is a CA like xCAT's, which signs the daemon's and the clients' certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	// xCAT's certificates begin in 1970.
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "xCAT CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{t, key, cert}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue signs a certificate for a CN, with names in its SAN if there are any.
func (a *authority) issue(cn string, end time.Time, names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn}, DNSNames: names,
		NotBefore: time.Unix(0, 0), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// daemon is a TLS server that does what a test wants with each connection.
type daemon struct {
	address string
	users   sync.Map // CNs that were shown
}

func serve(t *testing.T, certificate tls.Certificate, clients *x509.CertPool, handle func(conn net.Conn, in *bufio.Reader)) *daemon {
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	require.NoError(t, err)
	d := &daemon{address: listener.Addr().String()}
	var running sync.WaitGroup
	t.Cleanup(func() { listener.Close(); running.Wait() })
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() != nil {
					return
				}
				for _, peer := range conn.(*tls.Conn).ConnectionState().PeerCertificates {
					d.users.Store(peer.Subject.CommonName, true)
				}
				handle(conn, bufio.NewReader(conn))
			})
		}
	})
	return d
}

type lab struct {
	*authority
	native *Native
	client *Client
	daemon *daemon
}

func newLab(t *testing.T, handle func(conn net.Conn, in *bufio.Reader)) *lab {
	a := newAuthority(t)
	l := &lab{authority: a, daemon: serve(t, a.issue("xcatmn", time.Now().Add(time.Hour), "xcatmn.cluster.test", "mn"), a.pool(), handle)}
	own := a.issue("berth", time.Now().Add(time.Hour))
	l.native = &Native{Address: l.daemon.address, ServerName: "mn", CA: a.pool(), Certificate: func() (tls.Certificate, error) { return own, nil }}
	l.client = NewClient(l.native, 0)
	return l
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// commandOf reads a request of the transcripts back.
func commandOf(t *testing.T, request string) Command {
	between := func(text, tag string) (string, string) {
		_, after, ok := strings.Cut(text, "<"+tag+">")
		if !ok {
			return "", ""
		}
		value, rest, _ := strings.Cut(after, "</"+tag+">")
		return value, rest
	}
	var command Command
	command.Name, _ = between(request, "command")
	if nodes, _ := between(request, "noderange"); nodes != "" {
		command.Nodes = strings.Split(nodes, ",")
	}
	for value, rest := between(request, "arg"); value != ""; value, rest = between(rest, "arg") {
		command.Args = append(command.Args, value)
	}
	command.Quiet = command.Name == "makeknownhosts"
	return command
}

// chunks cuts the answers up: as xcatd sent them, all at once, byte by byte, and at odd places.
func chunks(answers []string, size int) []string {
	all := strings.Join(answers, "")
	switch {
	case size == 0:
		return answers
	case size < 0:
		return []string{all}
	}
	var cut []string
	for len(all) > 0 {
		n := min(size, len(all))
		cut, all = append(cut, all[:n]), all[n:]
	}
	return cut
}

func TestTheRawTranscriptIsReadByteForByte(t *testing.T) {
	type want struct {
		lines []Line
		kind  Kind
	}
	node := func(name, text string) Line { return Line{Node: name, Text: text} }
	plain := func(text string) Line { return Line{Text: text} }
	failure := func(text string) Line { return Line{Kind: Failure, Text: text} }
	wants := map[string]want{
		"rpower stat, two nodes": {lines: []Line{node("n02", "on"), node("n01", "on")}},
		"one good, one dead BMC (note: answers stream in separate xcatresponse documents)": {kind: BMCTimeout,
			lines: []Line{node("n01", "on"), {Node: "n04", Kind: Failure, Text: "ERROR: timeout"}}},
		"lsdef":                                     {lines: []Line{plain("Object name: n01"), plain("    currstate=boot"), plain("    status=booted"), plain("    statustime=11-23-2026 18:15:38")}},
		"nodestat":                                  {lines: []Line{node("n01", "sshd"), node("n02", "noping")}},
		"nodeset stat":                              {lines: []Line{node("n01", "boot"), node("n02", "install rocky9.4-x86_64-compute")}},
		"nodeset osimage":                           {lines: []Line{node("n02", "install rocky9.4-x86_64-compute")}},
		"nodeset unknown osimage":                   {kind: UnknownOSImage, lines: []Line{failure("Cannot find the OS image nosuch in the osimage table.")}},
		"rsetboot net":                              {lines: []Line{node("n02", "Network")}},
		"makeknownhosts":                            {},
		"rpower bad action":                         {kind: Other, lines: []Line{plain("n01: Error: Unsupported command: rpower frobnicate when using mgt=ipmi.")}},
		"invalid noderange":                         {kind: UnknownNode, lines: []Line{failure("Invalid nodes and/or groups in noderange: nosuch")}},
		"unknown command":                           {kind: Other, lines: []Line{failure("Unsupported request")}}, // no errorcode
		"authcheck with client cert":                {lines: []Line{plain("Authenticated")}},
		"authcheck, no client cert":                 {kind: Permission, lines: []Line{failure("Permission denied for request")}},
		"no client cert: permission denied":         {kind: Permission, lines: []Line{failure("Permission denied for request")}},
		"no cert, becomeuser wrong password":        {kind: Authentication, lines: []Line{failure("Authentication failure")}},
		"transid echoed only in serverdone":         {lines: []Line{node("n01", "")}},
		"XML prolog on its own line":                {lines: []Line{node("n01", ""), node("n02", ""), node("n03", ""), node("n04", "")}},
		"malformed XML inside xcatrequest tags":     {kind: Connection},
		"read it back (8-bit bytes come back as ?)": {lines: []Line{plain("Object name: n03"), plain(`    usercomment=caf?? <a> & "q"`)}},
		"non-ASCII and metacharacters in a value: chdef usercomment": {lines: []Line{plain("1 object definitions have been created or modified.")}},
	}
	all := exchanges(t)
	for name, w := range wants {
		e, ok := all[name]
		require.True(t, ok, "the transcript has no %q", name)
		for _, size := range []int{0, -1, 1, 7, 64} {
			l := newLab(t, func(conn net.Conn, in *bufio.Reader) {
				if _, err := in.ReadString('\n'); err != nil {
					return
				}
				for _, chunk := range chunks(e.answers, size) {
					if _, err := io.WriteString(conn, chunk); err != nil {
						return
					}
				}
			})
			command := commandOf(t, e.request)
			var streamed []Line
			command.Each = func(line Line) { streamed = append(streamed, line) }
			answer, err := l.client.Do(soon(t), command)
			if w.kind == "" {
				require.NoError(t, err, "%s, %d", name, size)
			} else {
				require.Equal(t, w.kind, KindOf(err), "%s, %d: %v", name, size, err)
			}
			require.Equal(t, w.lines, answer.Lines, "%s, %d", name, size)
			require.Equal(t, w.lines, streamed, name)
		}
	}
}

func TestTheTypedAnswersOfTheTranscript(t *testing.T) {
	all := exchanges(t)
	byWords := map[string]exchange{}
	for _, e := range all {
		byWords[commandOf(t, e.request).String()] = e
	}
	l := newLab(t, func(conn net.Conn, in *bufio.Reader) {
		line, _ := in.ReadString('\n')
		io.WriteString(conn, strings.Join(byWords[commandOf(t, line).String()].answers, ""))
	})
	ctx := soon(t)
	node, err := l.client.Node(ctx, "n01", "status", "statustime", "currstate")
	require.NoError(t, err)
	require.Equal(t, Object{"currstate": "boot", "status": "booted", "statustime": "11-23-2026 18:15:38"}, node)
	status, err := l.client.Status(ctx, "n01")
	require.NoError(t, err)
	require.Equal(t, Status{Status: "booted", Time: "11-23-2026 18:15:38"}, status)
	state, err := l.client.Arm(ctx, "n02", "rocky9.4-x86_64-install-compute")
	require.NoError(t, err)
	require.Equal(t, "install rocky9.4-x86_64-compute", state)
	require.NoError(t, l.client.BootNext(ctx, "n02", "net", false))
	require.NoError(t, l.client.ShareKnownHost(ctx, "n02"))
	_, shown := l.daemon.users.Load("berth")
	require.True(t, shown, "our certificate is shown")
}

func TestTheRequestIsOneLineWithEverythingEscaped(t *testing.T) {
	text := string(encode(Command{Name: "chdef", Nodes: []string{"n01", "n02"}, Args: []string{"usercomment=<a> & \"q\"\nb", "</arg><arg>x"}}))
	require.Equal(t, 1, strings.Count(text, "\n"))
	require.True(t, strings.HasSuffix(text, "\n"))
	require.True(t, strings.HasPrefix(text, "<xcatrequest><command>chdef</command>"))
	require.Contains(t, text, "<noderange>n01,n02</noderange>")
	require.Equal(t, 2, strings.Count(text, "<arg>"), text)
}

func TestWhatXCATPassesOnFromABMCIsReadAllTheSame(t *testing.T) {
	answer, err := decode(strings.NewReader("<xcatresponse><node><data><contents>\x1b[1mon\x00\x07\xff</contents></data><name>n01</name></node>"+
		"</xcatresponse><xcatresponse><serverdone></serverdone></xcatresponse>"), nil)
	require.NoError(t, err)
	text, _ := answer.Of("n01")
	require.Equal(t, "[1mon?", text)
}

func TestAnAnswerCountsOnlyWhole(t *testing.T) {
	const good = "<xcatresponse><node><data><contents>on</contents></data><name>n01</name></node></xcatresponse>"
	const done = "<xcatresponse><serverdone></serverdone></xcatresponse>"
	for name, c := range map[string]struct {
		text string
		kind Kind
	}{
		"nothing at all":              {"", Connection},
		"no serverdone":               {good, Connection},
		"ends inside an element":      {good + "<xcatresponse><node><da", Connection},
		"no line about the node":      {done, Other},
		"a line about another":        {strings.ReplaceAll(good, "n01", "n02") + done, Other},
		"error code only":             {"<xcatresponse><node><data>on</data><errorcode>1</errorcode><name>n01</name></node></xcatresponse>" + done, Other},
		"error text with code 0":      {"<xcatresponse><node><data>Error: unable to reach</data><name>n01</name></node></xcatresponse>" + done, BMCRefusal},
		"error without a code":        {"<xcatresponse><node><error>no</error><name>n01</name></node></xcatresponse>" + done, BMCRefusal},
		"the BMC's password is wrong": {"<xcatresponse><node><error>ERROR: Incorrect password provided</error><errorcode>1</errorcode><name>n01</name></node></xcatresponse>" + done, BMCLogin},
		"the BMC gives up":            {"<xcatresponse><node><error>Timeout while processing command, response unavailable</error><errorcode>1</errorcode><name>n01</name></node></xcatresponse>" + done, BMCRefusal},
		"no XML":                      {"HTTP/1.1 400 Bad Request\r\n\r\n", Connection},
		"whole":                       {good + done, ""},
		"serverdone together with it": {strings.ReplaceAll(good, "</xcatresponse>", "<serverdone></serverdone></xcatresponse>"), ""},
	} {
		l := newLab(t, func(conn net.Conn, in *bufio.Reader) {
			in.ReadString('\n')
			io.WriteString(conn, c.text)
		})
		_, err := l.client.Power(soon(t), "n01", "stat")
		if c.kind == "" {
			require.NoError(t, err, name)
			continue
		}
		require.Equal(t, c.kind, KindOf(err), "%s: %v", name, err)
	}
}

func TestWhatPeopleWriteIntoATableIsNoError(t *testing.T) {
	const comment = "rack 7, Error: psu 2"
	for _, tools := range []bool{false, true} {
		row, object := `"n01","all","booted","11-23-2026 18:15:38",,,,,,,,"`+comment+`",`, "    usercomment="+comment
		client := NewClient(transportFunc(func(_ context.Context, command Command) (Answer, error) {
			lines := map[string][]string{"tabdump": {"#node,groups,status,statustime,appstatus,appstatustime,primarysn,hidden,updatestatus,updatestatustime,zonename,comments,disable", row},
				"lsdef": {"Object name: n01", object}}[command.Name]
			if tools {
				return read(command, Output{Stdout: strings.Join(lines, "\n") + "\n"}), nil
			}
			answer := Answer{Done: true}
			for _, line := range lines {
				answer.Lines = append(answer.Lines, Line{Text: line})
			}
			return answer, nil
		}), 0)
		status, err := client.Status(soon(t), "n01")
		require.NoError(t, err)
		require.Equal(t, comment, status.Comment)
		node, err := client.Node(soon(t), "n01", "usercomment")
		require.NoError(t, err)
		require.Equal(t, comment, node["usercomment"])
		row = "Error: [mn]: no such table"
		_, err = client.Status(soon(t), "n01")
		require.Equal(t, Other, KindOf(err), "%v", err)
	}
}

func TestACancelAbortsTheCommandAndWaitsForItsEnd(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan struct{})
	aborted := make(chan string, 1)
	l := newLab(t, func(conn net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		close(asked)
		line, _ := in.ReadString('\n')
		aborted <- line
		close(ended) // and the connection with it
	})
	ctx, cancel := context.WithCancel(soon(t))
	go func() { <-asked; cancel() }()
	_, err := l.client.Power(ctx, "n04", "boot")
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "<xcatrequest><abortcommand>1</abortcommand></xcatrequest>\n", <-aborted)
	select {
	case <-ended:
	default:
		t.Fatal("the call returned before the command had ended")
	}
}

func TestACommandThatIsNotAnsweredInTimeIsAFaultOfTheConnection(t *testing.T) {
	l := newLab(t, func(conn net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		in.ReadString('\n') // until it is aborted
	})
	l.client.limit = func(Command) time.Duration { return 50 * time.Millisecond }
	_, err := l.client.Power(soon(t), "n01", "stat")
	require.Equal(t, Connection, KindOf(err), "%v", err)
	require.NotErrorIs(t, err, context.DeadlineExceeded, "the caller's own context goes on")
}

func TestADaemonThatIgnoresAnAbortHoldsNobodyUp(t *testing.T) {
	gone := make(chan struct{})
	l := newLab(t, func(conn net.Conn, in *bufio.Reader) { <-gone })
	t.Cleanup(func() { close(gone) })
	l.native.abort = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := l.client.State(ctx, "n01")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

type transportFunc func(context.Context, Command) (Answer, error)

func (f transportFunc) Run(ctx context.Context, command Command) (Answer, error) {
	return f(ctx, command)
}

func TestTheDeadlineOfACommandFollowsItsKind(t *testing.T) {
	for _, c := range []struct {
		command Command
		want    time.Duration
	}{
		{Command{Name: "tabdump"}, 45 * time.Second},
		{Command{Name: "nodeset", Args: []string{"stat"}}, 45 * time.Second},
		{Command{Name: "nodeset", Args: []string{"osimage=x"}}, 60 * time.Second},
		{Command{Name: "rpower", Args: []string{"stat"}}, 90 * time.Second},
		{Command{Name: "rsetboot"}, 90 * time.Second},
	} {
		var left time.Duration
		client := NewClient(transportFunc(func(ctx context.Context, _ Command) (Answer, error) {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
			return Answer{Done: true}, nil
		}), 0)
		_, err := client.Do(context.Background(), c.command)
		require.NoError(t, err)
		require.LessOrEqual(t, left, c.want)
		require.Greater(t, left, c.want-20*time.Second)
	}
}

func TestNoMoreCommandsRunAtOnceThanTheSiteAllows(t *testing.T) {
	var now, most atomic.Int32
	running, release := make(chan struct{}, 12), make(chan struct{})
	client := NewClient(transportFunc(func(context.Context, Command) (Answer, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		running <- struct{}{}
		<-release
		return Answer{Done: true}, nil
	}), 3)
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() { _, _ = client.Do(t.Context(), Command{Name: "nodels"}) })
	}
	for range 3 {
		<-running
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := client.Do(gone, Command{Name: "nodels"})
	require.ErrorIs(t, err, context.Canceled, "who waits for a place can leave")
	// Each lets the next one in: there are never more than three.
	for range 12 {
		release <- struct{}{}
	}
	all.Wait()
	require.EqualValues(t, 3, most.Load())
}

func TestWhomWeTalkToIsChecked(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		server tls.Certificate
		want   string // ServerName
		ok     bool
	}{
		"a name of the SAN":                          {a.issue("x", later, "mn.cluster.test", "mn"), "mn", true},
		"another name than the SAN's":                {a.issue("x", later, "mn.cluster.test"), "mn", false},
		"the CN does not count beside a SAN":         {a.issue("mn", later, "mn.cluster.test"), "mn", false},
		"an old certificate with its name in the CN": {a.issue("mn", later), "mn", true},
		"an old certificate of another machine":      {a.issue("mn2", later), "mn", false},
		"another authority":                          {other.issue("mn", later, "mn"), "mn", false},
		"run out":                                    {a.issue("mn", time.Now().Add(-time.Hour), "mn"), "mn", false},
	} {
		d := serve(t, c.server, a.pool(), func(conn net.Conn, in *bufio.Reader) {
			in.ReadString('\n')
			io.WriteString(conn, "<xcatresponse><serverdone></serverdone></xcatresponse>")
		})
		own := a.issue("berth", later)
		client := NewClient(&Native{Address: d.address, ServerName: c.want, CA: a.pool(), Certificate: func() (tls.Certificate, error) { return own, nil }}, 0)
		_, err := client.Do(soon(t), Command{Name: "nodels"})
		if c.ok {
			require.NoError(t, err, name)
		} else {
			require.Equal(t, Authentication, KindOf(err), "%s: %v", name, err)
		}
	}
}

func TestACertificateThatTheDaemonDoesNotTakeIsNoFaultOfTheConnection(t *testing.T) {
	l := newLab(t, func(conn net.Conn, in *bufio.Reader) { in.ReadString('\n') })
	stranger := newAuthority(t).issue("berth", time.Now().Add(time.Hour))
	l.native.Certificate = func() (tls.Certificate, error) { return stranger, nil }
	_, err := l.client.Power(soon(t), "n01", "stat")
	require.Equal(t, Authentication, KindOf(err), "%v", err)
	l.native.Certificate = func() (tls.Certificate, error) { return tls.Certificate{}, errors.New("no such file") }
	_, err = l.client.Power(soon(t), "n01", "stat")
	require.Equal(t, Authentication, KindOf(err), "%v", err)
}

func TestNobodyThereIsAFaultOfTheConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	listener.Close()
	own := newAuthority(t).issue("berth", time.Now().Add(time.Hour))
	client := NewClient(&Native{Address: address, CA: x509.NewCertPool(), Certificate: func() (tls.Certificate, error) { return own, nil }}, 0)
	_, err = client.State(soon(t), "n01")
	require.Equal(t, Connection, KindOf(err), "%v", err)
}
