package guestos

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Paths of sshd's things on every guest's disk.
const (
	HostKeyPath        = "/etc/ssh/ssh_host_ed25519_key"
	authorizedKeysFile = ".ssh/authorized_keys"
	sshdConfigPath     = "/etc/ssh/sshd_config"
)

// SetHostKey stores a private host key (PEM) and its public half on the guest's disk, where it outlives boots.
func (m *Machine) SetHostKey(pemText []byte) error {
	signer, err := ssh.ParsePrivateKey(pemText)
	if err != nil {
		return fmt.Errorf("host key: %w", err)
	}
	if err := m.WriteFile(HostKeyPath, pemText, 0o600); err != nil {
		return err
	}
	return m.WriteFile(HostKeyPath+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644)
}

// HostKey returns the host key on the guest's disk, and makes one if there is none, as a first boot does.
func (m *Machine) HostKey() (ssh.Signer, error) {
	text, err := m.disk.readFile(HostKeyPath)
	if err != nil {
		if text, err = newHostKey(); err != nil {
			return nil, err
		}
		if err := m.SetHostKey(text); err != nil {
			return nil, err
		}
	}
	return ssh.ParsePrivateKey(text)
}

// ForgetHostKey removes the host key from the guest's disk, so that HostKey makes another.
func (m *Machine) ForgetHostKey() error {
	return errors.Join(m.disk.remove(HostKeyPath, false), m.disk.remove(HostKeyPath+".pub", false))
}

// NewSigner returns a new host key that is on no disk.
func NewSigner() (ssh.Signer, error) {
	text, err := newHostKey()
	if err != nil {
		return nil, err
	}
	return ssh.ParsePrivateKey(text)
}

func newHostKey() ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// Authorized says whether a key may log in as a user: whether it is in that user's authorized_keys.
func (m *Machine) Authorized(user string, key ssh.PublicKey) bool {
	a, ok := m.user(user)
	if !ok {
		return false
	}
	text, err := m.disk.readFile(strings.TrimSuffix(a.home, "/") + "/" + authorizedKeysFile)
	for err == nil && len(text) > 0 {
		var entry ssh.PublicKey
		if entry, _, _, text, err = ssh.ParseAuthorizedKey(text); err == nil && string(entry.Marshal()) == string(key.Marshal()) {
			return true
		}
	}
	return false
}

// sshdConfig returns sshd's settings, the first of each name, in lower case; listenaddress keeps all.
func (m *Machine) sshdConfig() (values map[string][]string, fault string) {
	values = map[string][]string{}
	text, err := m.disk.readFile(sshdConfigPath)
	if err != nil {
		return values, sshdConfigPath + ": No such file or directory"
	}
	known := strings.Fields(`port listenaddress addressfamily permitrootlogin passwordauthentication pubkeyauthentication usepam usedns x11forwarding printmotd
		acceptenv subsystem include hostkey kbdinteractiveauthentication challengeresponseauthentication authorizedkeysfile allowusers denyusers allowgroups
		clientaliveinterval clientalivecountmax maxauthtries maxsessions logingracetime loglevel syslogfacility match permitemptypasswords gssapiauthentication
		strictmodes allowtcpforwarding banner ciphers macs kexalgorithms maxstartups pidfile printlastlog tcpkeepalive x11displayoffset`)
	for i, line := range lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		name := strings.ToLower(words[0])
		if !slices.Contains(known, name) {
			return values, fmt.Sprintf("%s: line %d: Bad configuration option: %s", sshdConfigPath, i+1, words[0])
		}
		if len(words) < 2 {
			return values, fmt.Sprintf("%s: line %d: no argument after keyword \"%s\"", sshdConfigPath, i+1, words[0])
		}
		if name == "match" {
			break
		}
		if name == "port" {
			if n, err := strconv.Atoi(words[1]); err != nil || n < 1 || n > 65535 {
				return values, fmt.Sprintf("%s line %d: Badly formatted port number.", sshdConfigPath, i+1)
			}
		}
		if len(values[name]) == 0 || name == "listenaddress" {
			values[name] = append(values[name], strings.Join(words[1:], " "))
		}
	}
	return values, ""
}

// PasswordLogin says whether sshd lets a user in by password, as its configuration stands.
func (m *Machine) PasswordLogin(user string) bool {
	values, fault := m.sshdConfig()
	first := func(name, otherwise string) string {
		if len(values[name]) == 0 {
			return otherwise
		}
		return strings.ToLower(values[name][0])
	}
	if fault != "" || first("passwordauthentication", "yes") != "yes" {
		return false
	}
	return user != "root" || first("permitrootlogin", "prohibit-password") == "yes"
}

func (m *Machine) sshdPort() string {
	values, _ := m.sshdConfig()
	if len(values["port"]) > 0 {
		return values["port"][0]
	}
	return strconv.Itoa(m.port)
}

func sshd(_ context.Context, p *process) int {
	f, _, err := options(p.Args[1:], "t T f: D d e q G p: C:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	values, fault := p.machine.sshdConfig()
	if fault != "" {
		return p.fail2(255, "%s", fault)
	}
	if !f.has("T", "G") {
		return 0
	}
	port := p.machine.sshdPort()
	fmt.Fprintf(p.Stdout, "port %s\naddressfamily any\n", port)
	listens := values["listenaddress"]
	if len(listens) == 0 {
		listens = []string{"[::]", "0.0.0.0"}
	}
	for _, address := range listens {
		if !strings.Contains(strings.TrimPrefix(address, "["), "]:") && (strings.HasPrefix(address, "[") || strings.Count(address, ":") != 1) {
			address += ":" + port
		}
		fmt.Fprintf(p.Stdout, "listenaddress %s\n", address)
	}
	for _, pair := range [][2]string{{"permitrootlogin", "without-password"}, {"passwordauthentication", "yes"}, {"pubkeyauthentication", "yes"}, {"usepam", "yes"}} {
		value := pair[1]
		if set := values[pair[0]]; len(set) > 0 {
			value = set[0]
		}
		fmt.Fprintf(p.Stdout, "%s %s\n", pair[0], value)
	}
	return 0
}

func sshKeygen(_ context.Context, p *process) int {
	f, _, err := options(p.Args[1:], "l f: A t: N: q y R: F: b: C: E:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	m := p.machine
	switch {
	case f.has("A"):
		if _, err := m.HostKey(); err != nil {
			return p.fail(1, "%v", err)
		}
	case f.has("l"):
		text, err := p.readOperand(f.last("f"))
		if err != nil {
			return p.fail(255, "%s: %s", f.last("f"), reason(err))
		}
		var key ssh.PublicKey
		comment := "no comment"
		if signer, perr := ssh.ParsePrivateKey(text); perr == nil {
			key = signer.PublicKey()
		} else if parsed, note, _, _, perr := ssh.ParseAuthorizedKey(text); perr == nil {
			key = parsed
			if note != "" {
				comment = note
			}
		} else {
			return p.fail(255, "%s is not a public key file.", f.last("f"))
		}
		fmt.Fprintf(p.Stdout, "256 %s %s (%s)\n", ssh.FingerprintSHA256(key), comment, strings.ToUpper(strings.TrimPrefix(key.Type(), "ssh-")))
	case f.has("y"):
		text, err := p.readOperand(f.last("f"))
		if err != nil {
			return p.fail(255, "%s: %s", f.last("f"), reason(err))
		}
		signer, err := ssh.ParsePrivateKey(text)
		if err != nil {
			return p.fail(255, "Load key \"%s\": invalid format", f.last("f"))
		}
		_, _ = p.Stdout.Write(ssh.MarshalAuthorizedKey(signer.PublicKey()))
	case f.has("t", "f"):
		name := p.abs(f.last("f"))
		text, err := newHostKey()
		if err == nil {
			err = m.disk.writeFile(name, text, 0o600)
		}
		if err == nil {
			var signer ssh.Signer
			if signer, err = ssh.ParsePrivateKey(text); err == nil {
				err = m.disk.writeFile(name+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644)
			}
		}
		if err != nil {
			return p.fail(1, "%s", reason(err))
		}
	default:
		return p.fail(1, "Too few arguments.")
	}
	return 0
}
