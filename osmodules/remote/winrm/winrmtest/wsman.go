package winrmtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	shellNS    = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
	transferNS = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
	faultURI   = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault"
)

// envelope is every request that there is.
type envelope struct {
	Action    string `xml:"Header>Action"`
	MessageID string `xml:"Header>MessageID"`
	Timeout   string `xml:"Header>OperationTimeout"`
	Size      int    `xml:"Header>MaxEnvelopeSize"`
	Selectors []struct {
		Name  string `xml:"Name,attr"`
		Value string `xml:",chardata"`
	} `xml:"Header>SelectorSet>Selector"`
	Identify *struct{} `xml:"Body>Identify"`
	Command  struct {
		Line      string   `xml:"Command"`
		Arguments []string `xml:"Arguments"`
	} `xml:"Body>CommandLine"`
	Send struct {
		Streams []struct {
			Name    string `xml:"Name,attr"`
			Command string `xml:"CommandId,attr"`
			End     string `xml:"End,attr"`
			Content string `xml:",chardata"`
		} `xml:"Stream"`
	} `xml:"Body>Send"`
	Receive struct {
		Command string `xml:"CommandId,attr"`
	} `xml:"Body>Receive>DesiredStream"`
	Signal struct {
		Command string `xml:"CommandId,attr"`
		Code    string `xml:"Code"`
	} `xml:"Body>Signal"`
}

func (e envelope) shell() string {
	for _, selector := range e.Selectors {
		if selector.Name == "ShellId" {
			return strings.TrimSpace(selector.Value)
		}
	}
	return ""
}

// timeout returns the OperationTimeout; WinRM's default is 60 s.
func (e envelope) timeout() time.Duration {
	seconds, ok := strings.CutPrefix(strings.TrimSpace(e.Timeout), "PT")
	if timeout, err := time.ParseDuration(strings.ToLower(seconds)); ok && err == nil {
		return timeout
	}
	return 60 * time.Second
}

// fault is a SOAP fault with Windows' error number.
type fault struct {
	subcode string
	number  uint32
	text    string
}

func noSuchShell() *fault {
	return &fault{"w:InvalidSelectors", 2150858843, "The request contained invalid selectors for the resource: there is no such shell."}
}

func noSuchCommand() *fault {
	return &fault{"w:InvalidParameter", 87, "The parameter is incorrect: there is no such command."}
}

// ServeHTTP answers one request. NTLM needs the connections of Serve.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "Microsoft-HTTPAPI/2.0")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/wsman" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	user := s.authenticate(w, r)
	if user == "" {
		return
	}
	var request envelope
	if err := xml.Unmarshal(body, &request); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	action := request.Action[strings.LastIndex(request.Action, "/")+1:]
	if request.Identify != nil {
		action = "Identify"
	}
	if before := s.now().Before; before != nil {
		if before(r.Context(), action) != nil {
			panic(http.ErrAbortHandler)
		}
	}
	answer, wrong := s.handle(r.Context(), user, action, request)
	w.Header().Set("Content-Type", "application/soap+xml;charset=UTF-8")
	response := request.Action + "Response"
	if wrong != nil {
		w.WriteHeader(http.StatusInternalServerError)
		response, answer = faultURI, wrong.String()
	}
	fmt.Fprintf(w, `<s:Envelope xml:lang="en-US" xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" `+
		`xmlns:x="%s" xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd" xmlns:rsp="%s">`+
		`<s:Header><a:Action>%s</a:Action><a:MessageID>uuid:%s</a:MessageID>`+
		`<a:To>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:To><a:RelatesTo>%s</a:RelatesTo></s:Header><s:Body>%s</s:Body></s:Envelope>`,
		transferNS, shellNS, response, uuid.NewString(), text(request.MessageID), answer)
}

func (f *fault) String() string {
	return fmt.Sprintf(`<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>%s</s:Value></s:Subcode></s:Code>`+
		`<s:Reason><s:Text xml:lang="en-US">%s</s:Text></s:Reason><s:Detail>`+
		`<f:WSManFault xmlns:f="http://schemas.microsoft.com/wbem/wsman/1/wsmanfault" Code="%d" Machine="%s"><f:Message>%s</f:Message></f:WSManFault>`+
		`</s:Detail></s:Fault>`, f.subcode, text(f.text), f.number, computerName, text(f.text))
}

func text(value string) string {
	var out bytes.Buffer
	xml.EscapeText(&out, []byte(value))
	return out.String()
}

func (s *Server) handle(ctx context.Context, user, action string, request envelope) (string, *fault) {
	switch action {
	case "Identify":
		return `<wsmid:IdentifyResponse xmlns:wsmid="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd">` +
			`<wsmid:ProtocolVersion>http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd</wsmid:ProtocolVersion>` +
			`<wsmid:ProductVendor>Microsoft Corporation</wsmid:ProductVendor>` +
			`<wsmid:ProductVersion>OS: 10.0.20348 SP: 0.0 Stack: 3.0</wsmid:ProductVersion></wsmid:IdentifyResponse>`, nil
	case "Create":
		if admin := s.now().Admin; admin != nil && !admin(user) {
			return "", &fault{"w:AccessDenied", 5, "Access is denied."}
		}
		id := strings.ToUpper(uuid.NewString())
		s.mu.Lock()
		s.shells[id] = &shell{commands: map[string]*command{}}
		s.mu.Unlock()
		return fmt.Sprintf(`<x:ResourceCreated><a:Address>https://localhost/wsman</a:Address></x:ResourceCreated>`+
			`<rsp:Shell><rsp:ShellId>%s</rsp:ShellId><rsp:InputStreams>stdin</rsp:InputStreams>`+
			`<rsp:OutputStreams>stdout stderr</rsp:OutputStreams></rsp:Shell>`, id), nil
	}
	s.mu.Lock()
	shell := s.shells[request.shell()]
	if action == "Delete" {
		delete(s.shells, request.shell())
	}
	s.mu.Unlock()
	if shell == nil {
		return "", noSuchShell()
	}
	switch action {
	case "Delete":
		shell.end()
		return "", nil
	case "Command":
		line := strings.Join(append([]string{request.Command.Line}, request.Command.Arguments...), " ")
		return fmt.Sprintf(`<rsp:CommandResponse><rsp:CommandId>%s</rsp:CommandId></rsp:CommandResponse>`, s.run(shell, user, line)), nil
	case "Send":
		for _, stream := range request.Send.Streams {
			command := shell.command(stream.Command)
			content, err := base64.StdEncoding.DecodeString(strings.TrimSpace(stream.Content))
			if command == nil || err != nil || stream.Name != "stdin" {
				return "", noSuchCommand()
			}
			command.send(content, stream.End == "true" || stream.End == "TRUE" || stream.End == "1")
		}
		return `<rsp:SendResponse/>`, nil
	case "Receive":
		command := shell.command(request.Receive.Command)
		if command == nil {
			return "", noSuchCommand()
		}
		return command.receive(ctx, request.timeout(), request.Size)
	case "Signal":
		command := shell.command(request.Signal.Command)
		if command == nil {
			return "", noSuchCommand()
		}
		switch request.Signal.Code[strings.LastIndex(request.Signal.Code, "/")+1:] {
		case "terminate":
			shell.mu.Lock()
			delete(shell.commands, request.Signal.Command)
			shell.mu.Unlock()
			command.terminate()
		case "ctrl_c", "ctrl_break":
			command.cancel()
		default:
			return "", noSuchCommand()
		}
		return `<rsp:SignalResponse/>`, nil
	default:
		return "", &fault{"a:ActionNotSupported", 2150858754, "The action is not supported by the service."}
	}
}

// shell holds commands.
type shell struct {
	mu       sync.Mutex
	commands map[string]*command
}

func (sh *shell) command(id string) *command {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.commands[id]
}

func (sh *shell) end() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for id, command := range sh.commands {
		command.terminate()
		delete(sh.commands, id)
	}
}

// run starts a command and returns its id.
func (s *Server) run(sh *shell, user, line string) string {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), userKey{}, user))
	id := strings.ToUpper(uuid.NewString())
	c := &command{id: id, cancel: cancel}
	c.changed = sync.NewCond(&c.mu)
	sh.mu.Lock()
	sh.commands[id] = c
	sh.mu.Unlock()
	exec := s.now().Exec
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		defer cancel()
		exit := exec(ctx, line, input{c}, output{c, &c.stdout}, output{c, &c.stderr})
		c.change(func() { c.done, c.exit = true, uint32(exit) })
	}()
	return id
}

// command is one that runs or that has ended and whose end was not fetched.
type command struct {
	id     string
	cancel context.CancelFunc

	mu         sync.Mutex
	changed    *sync.Cond
	stdin      []byte
	closed     bool // stdin has ended
	stdout     []byte
	stderr     []byte
	done       bool
	terminated bool
	exit       uint32
}

func (c *command) change(change func()) {
	c.mu.Lock()
	change()
	c.mu.Unlock()
	c.changed.Broadcast()
}

func (c *command) send(content []byte, end bool) {
	c.change(func() {
		c.stdin = append(c.stdin, content...)
		c.closed = c.closed || end
	})
}

// terminate ends a command and everything that waits for it.
func (c *command) terminate() {
	c.change(func() { c.terminated, c.closed = true, true })
	c.cancel()
}

// receive waits for output or the end. What it returns stays within the client's envelope.
func (c *command) receive(ctx context.Context, timeout time.Duration, size int) (string, *fault) {
	over := false
	timer := time.AfterFunc(timeout, func() { c.change(func() { over = true }) })
	defer timer.Stop()
	stop := context.AfterFunc(ctx, func() { c.change(func() { over = true }) })
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.stdout) == 0 && len(c.stderr) == 0 && !c.done && !c.terminated && !over {
		c.changed.Wait()
	}
	switch {
	case c.terminated:
		return "", &fault{"w:InternalError", 995, "The I/O operation has been aborted because of either a thread exit or an application request."}
	case len(c.stdout) == 0 && len(c.stderr) == 0 && !c.done:
		return "", &fault{"w:TimedOut", 2150858793, "The WS-Management service cannot complete the operation within the time specified in OperationTimeout."}
	}
	// Base64 makes 4 bytes of 3; the rest is room for the envelope.
	const envelopeRoom, most = 4096, 32768
	room := most
	if size > 0 {
		room = max(3, min(most, (size-envelopeRoom)/4*3))
	}
	var out strings.Builder
	out.WriteString(`<rsp:ReceiveResponse>`)
	for _, stream := range []struct {
		name string
		from *[]byte
	}{{"stdout", &c.stdout}, {"stderr", &c.stderr}} {
		n := min(room, len(*stream.from))
		if n > 0 {
			fmt.Fprintf(&out, `<rsp:Stream Name="%s" CommandId="%s">%s</rsp:Stream>`, stream.name, c.id, base64.StdEncoding.EncodeToString((*stream.from)[:n]))
			*stream.from = (*stream.from)[n:]
			room -= n
		}
	}
	if c.done && len(c.stdout) == 0 && len(c.stderr) == 0 {
		for _, name := range []string{"stdout", "stderr"} {
			fmt.Fprintf(&out, `<rsp:Stream Name="%s" CommandId="%s" End="true"></rsp:Stream>`, name, c.id)
		}
		fmt.Fprintf(&out, `<rsp:CommandState CommandId="%s" State="%s/CommandState/Done"><rsp:ExitCode>%s</rsp:ExitCode></rsp:CommandState>`,
			c.id, shellNS, strconv.FormatUint(uint64(c.exit), 10))
	} else {
		fmt.Fprintf(&out, `<rsp:CommandState CommandId="%s" State="%s/CommandState/Running"></rsp:CommandState>`, c.id, shellNS)
	}
	out.WriteString(`</rsp:ReceiveResponse>`)
	c.changed.Broadcast()
	return out.String(), nil
}

// input is a command's standard input.
type input struct{ c *command }

func (i input) Read(p []byte) (int, error) {
	i.c.mu.Lock()
	defer i.c.mu.Unlock()
	for len(i.c.stdin) == 0 && !i.c.closed {
		i.c.changed.Wait()
	}
	if len(i.c.stdin) == 0 {
		return 0, io.EOF
	}
	n := copy(p, i.c.stdin)
	i.c.stdin = i.c.stdin[n:]
	return n, nil
}

// output is one of a command's output streams. A command whose output nobody fetches waits.
type output struct {
	c  *command
	to *[]byte
}

func (o output) Write(p []byte) (int, error) {
	const most = 256 << 10
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	for len(*o.to) > most && !o.c.terminated {
		o.c.changed.Wait()
	}
	if o.c.terminated {
		return 0, io.ErrClosedPipe
	}
	*o.to = append(*o.to, p...)
	o.c.changed.Broadcast()
	return len(p), nil
}
