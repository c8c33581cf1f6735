package winrm

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/masterzen/winrm"
	"github.com/masterzen/winrm/soap"
)

// identify asks whether the service is there (DSP0226, 11).
const identify = `<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:wsmid="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd">` +
	`<s:Header/><s:Body><wsmid:Identify/></s:Body></s:Envelope>`

// envelopeSize is the longest message: the default of MaxEnvelopeSizekb up to 2008 R2 (150); later ones take 500.
const envelopeSize = 150 << 10

// inputSize is how much input goes into one message: base64 makes 4 bytes of 3, and the rest is room for the envelope.
const inputSize = (envelopeSize - 8<<10) / 4 * 3

// leastTimeout is the shortest OperationTimeout that WinRM takes (MS-WSMV 2.2.4.21: 500 ms).
const leastTimeout = 500 * time.Millisecond

func parameters(timeout time.Duration) *winrm.Parameters {
	seconds := strconv.FormatFloat(max(timeout, leastTimeout).Seconds(), 'f', 3, 64)
	return winrm.NewParameters("PT"+seconds+"S", "en-US", envelopeSize)
}

// newCommand returns the request that starts a command. It is the library's but for the standard input, which is a pipe:
// a console takes no end of input.
func newCommand(url, shell, line string, timeout time.Duration) string {
	var escaped bytes.Buffer
	xml.EscapeText(&escaped, []byte(line))
	p := parameters(timeout)
	message := soap.NewMessage()
	message.Header().
		To(url).
		ReplyTo("http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous").
		MaxEnvelopeSize(p.EnvelopeSize).
		Id("uuid:" + uuid.NewString()).
		Locale(p.Locale).
		Timeout(p.Timeout).
		Action("http://schemas.microsoft.com/wbem/wsman/1/windows/shell/Command").
		ResourceURI("http://schemas.microsoft.com/wbem/wsman/1/windows/shell/cmd").
		ShellId(shell).
		AddOption(soap.NewHeaderOption("WINRS_CONSOLEMODE_STDIN", "FALSE")).
		AddOption(soap.NewHeaderOption("WINRS_SKIP_CMD_SHELL", "FALSE")).
		Build()
	body := message.CreateBodyElement("CommandLine", soap.DOM_NS_WIN_SHELL)
	message.CreateElement(body, "Command", soap.DOM_NS_WIN_SHELL).SetContent(escaped.String())
	return message.String()
}

// checkID accepts an id of the guest's, which goes into our requests.
func checkID(id string, err error) (string, error) {
	if err != nil {
		return "", fmt.Errorf("the guest's answer cannot be read: %w", err)
	}
	if !regexp.MustCompile(`^[0-9A-Za-z:-]{1,100}$`).MatchString(id) {
		return "", fmt.Errorf("the guest's answer has no usable id: %.50q", id)
	}
	return id, nil
}
